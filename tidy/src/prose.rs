//! Counts words and finds the paragraphs of a text. Trouble words are relative pronouns that often
//! start a clause without a named subject.

/// The trouble words, in lower case.
const TROUBLE_WORDS: [&str; 6] = ["what", "whoever", "whatever", "whose", "wherever", "whichever"];

/// Number of words of a text, and of the trouble words among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WordCount {
    /// Number of all words.
    pub words: usize,
    /// Number of words that are in `TROUBLE_WORDS`.
    pub trouble: usize,
}

impl WordCount {
    /// Returns the number of trouble words per 1,000 words, rounded up.
    #[must_use]
    pub fn per_thousand(&self) -> usize {
        (self.trouble * 1000).div_ceil(self.words.max(1))
    }

    /// Adds the words of another count to this count.
    pub fn add(&mut self, other: WordCount) {
        self.words += other.words;
        self.trouble += other.trouble;
    }
}

/// Counts the words of a text. A word is a sequence of letters and apostrophes.
#[must_use]
pub fn count_words(text: &str) -> WordCount {
    let mut count = WordCount::default();
    for word in text.split(|letter: char| !letter.is_alphabetic() && letter != '\'') {
        if word.is_empty() {
            continue;
        }
        count.words += 1;
        count.trouble += usize::from(TROUBLE_WORDS.contains(&word.to_lowercase().as_str()));
    }
    count
}

/// A paragraph or list item of a Markdown document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paragraph {
    /// Line number of the first line of the paragraph, from 1.
    pub number: usize,
    /// Number of words in the paragraph.
    pub words: usize,
}

/// Returns the paragraphs and list items of a Markdown text. Code blocks, tables and headings are
/// left out.
#[must_use]
pub fn paragraphs(markdown: &str) -> Vec<Paragraph> {
    let mut paragraphs: Vec<Paragraph> = Vec::new();
    let mut is_open = false;
    for (number, line) in prose_lines(markdown) {
        let text = line.trim_start();
        let starts_item = text.starts_with("- ") || text.starts_with("* ") || starts_with_number(text);
        if text.is_empty() || text.starts_with('|') || text.starts_with('#') {
            is_open = false;
            continue;
        }
        let words = count_words(text).words;
        match paragraphs.last_mut().filter(|_| is_open && !starts_item) {
            Some(paragraph) => paragraph.words += words,
            None => paragraphs.push(Paragraph { number, words }),
        }
        is_open = true;
    }
    paragraphs
}

/// Returns the lines of a Markdown text with their numbers. Each line of a code block is replaced
/// by an empty line.
pub fn prose_lines(markdown: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    let mut was_blank = true;
    let mut indented = false;
    markdown.lines().enumerate().map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        let is_blank = line.trim().is_empty();
        // A block indented by four spaces is code if it follows a blank line. A line that begins
        // with `- ` is a list item and no code.
        let is_indented = line.starts_with("    ") && !line.trim_start().starts_with("- ");
        indented = is_indented && (was_blank || indented) || (is_blank && indented);
        was_blank = is_blank;
        let is_code = fenced || is_fence || indented;
        (index + 1, if is_code { "" } else { line })
    })
}

fn starts_with_number(text: &str) -> bool {
    let digits = text.len()
        - text
            .trim_start_matches(|letter: char| letter.is_ascii_digit())
            .len();
    digits > 0 && text[digits..].starts_with(". ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_without_regard_to_case() {
        let count = count_words("What came is the owner's; whoever asks, is told.");
        assert_eq!((count.words, count.trouble, count.per_thousand()), (9, 2, 223));
    }

    #[test]
    fn paragraphs_end_at_blank_lines_items_tables_and_code() {
        let text = "# Title\none two\nthree\n\n- four five\n- six\n\n| a | b c d |\n\n```\ncode code\n```\n\n    code\n\nseven\n";
        let found: Vec<_> = paragraphs(text)
            .iter()
            .map(|found| (found.number, found.words))
            .collect();
        assert_eq!(found, [(2, 3), (5, 2), (6, 1), (16, 1)]);
    }
}
