//! Finds links, headings and inline code in Markdown, and names with a prefix in a text.
//!
//! Only the forms that this project's documents use are supported: inline links, `#` headings, and
//! code between single backticks. Reference links and HTML are not found.

use crate::prose::prose_lines;

/// An inline link of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Line number in the document, from 1.
    pub line: usize,
    /// Path of the linked file. Empty if the link stays in the document.
    pub file: String,
    /// Anchor of the linked heading. Empty if the link names no heading.
    pub anchor: String,
}

/// Returns the links of a document to files and headings. Links with a scheme, such as `https:`,
/// are left out.
#[must_use]
pub fn links(markdown: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, text) in prose_lines(markdown) {
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            links.push(Link {
                line,
                file: file.to_owned(),
                anchor: anchor.to_owned(),
            });
        }
    }
    links
}

/// Returns the anchors of a document's headings, by the rules of common Git hosts: lower case,
/// hyphens for spaces, no punctuation except hyphens and underscores.
#[must_use]
pub fn anchors(markdown: &str) -> Vec<String> {
    let headings = prose_lines(markdown).filter_map(|(_, text)| {
        let title = text.trim_start_matches('#');
        (title.len() < text.len() && title.starts_with(' ')).then(|| title.trim())
    });
    headings.map(anchor_of).collect()
}

fn anchor_of(title: &str) -> String {
    let kept = title
        .chars()
        .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter })
        .flat_map(char::to_lowercase)
        .collect()
}

/// Returns the pieces of inline code of a document, with their line numbers. Code that continues on
/// the next line is not supported.
#[must_use]
pub fn inline_code(markdown: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, text) in prose_lines(markdown) {
        let pieces = text.split('`').skip(1).step_by(2);
        found.extend(pieces.map(|piece| (line, piece.to_owned())));
    }
    found
}

/// Returns the words of a text that begin with `prefix` and are longer than `prefix`. A word
/// consists of lower-case letters and underscores.
#[must_use]
pub fn names_with_prefix(text: &str, prefix: &str) -> Vec<String> {
    let is_part = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    text.split(|letter: char| !is_part(letter))
        .filter(|word| word.len() > prefix.len() && word.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_split_into_file_and_heading() {
        let text = "See [a](b.md#c) and [d](#e),\n[f](https://g.h/i.md)\n\n    [code](x.md)\n\n[j](../k/)\n";
        let found: Vec<_> = links(text)
            .into_iter()
            .map(|link| (link.line, link.file, link.anchor))
            .collect();
        let expected = [(1, "b.md", "c"), (1, "", "e"), (6, "../k/", "")];
        assert_eq!(
            found,
            expected.map(|(line, file, anchor)| (line, file.to_owned(), anchor.to_owned()))
        );
    }

    #[test]
    fn anchors_follow_the_headings() {
        let text = "# The engine: `microdb/src/`\n\n## Where we lose, and why\n#no heading\n";
        assert_eq!(anchors(text), ["the-engine-microdbsrc", "where-we-lose-and-why"]);
    }

    #[test]
    fn inline_code_is_found_between_backticks() {
        assert_eq!(
            inline_code("a `b` c `d e`\n"),
            [(1, "b".to_owned()), (1, "d e".to_owned())]
        );
    }

    #[test]
    fn names_end_at_other_letters() {
        let names = names_with_prefix("rate(imt_a_b{x=\"1\"}[5m]) imt_ imt_c-d", "imt_");
        assert_eq!(names, ["imt_a_b", "imt_c"]);
    }
}
