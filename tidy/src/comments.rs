//! Finds the comment lines of a Rust file.
//!
//! Only lines that begin with `//` after their indentation are found. Comments after code on the
//! same line are usually short, and `//` within a line may also be part of a string. Lines between
//! code fences are marked as code. A fence without an end lasts to the end of its comment block.

/// A comment line of a Rust file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommentLine<'a> {
    /// Line number in the file, from 1.
    pub number: usize,
    /// The whole line, including its indentation.
    pub line: &'a str,
    /// The text after `//`, `///` or `//!`.
    pub text: &'a str,
    /// `true` if the line is inside a code fence or is a fence.
    pub is_code: bool,
}

/// Returns the comment lines of a Rust source.
#[must_use]
pub fn comment_lines(source: &str) -> Vec<CommentLine<'_>> {
    let mut lines = Vec::new();
    let mut fenced = false;
    for (index, line) in source.lines().enumerate() {
        let Some(text) = comment_text(line) else {
            fenced = false;
            continue;
        };
        let is_fence = text.trim_start().starts_with("```");
        lines.push(CommentLine {
            number: index + 1,
            line,
            text,
            is_code: fenced || is_fence,
        });
        fenced ^= is_fence;
    }
    lines
}

/// Returns the text of a comment line without its slashes. `None` for any other line.
fn comment_text(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("//")?;
    Some(rest.trim_start_matches(['/', '!']))
}

/// Returns the prose of a file's comments as one text, with a blank line between two comment
/// blocks. Lines inside code fences, and the fences, become blank lines.
#[must_use]
pub fn prose_of(source: &str) -> String {
    let mut prose = String::new();
    let mut last = 0;
    for comment in comment_lines(source) {
        if comment.number != last + 1 {
            prose.push('\n');
        }
        last = comment.number;
        if !comment.is_code {
            prose.push_str(comment.text.trim());
        }
        prose.push('\n');
    }
    prose
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_lines_are_found_with_their_numbers_and_fences() {
        let source = "//! Header.\nfn f() {} // not counted\n    /// ```\n    /// let a = 1;\n    /// ```\n    /// Prose.\n";
        let lines = comment_lines(source);
        let seen: Vec<_> = lines.iter().map(|line| (line.number, line.is_code)).collect();
        assert_eq!(seen, [(1, false), (3, true), (4, true), (5, true), (6, false)]);
        assert_eq!(
            prose_of(source),
            "\nHeader.\n\n\n\n\nProse.\n".trim_start_matches('\n')
        );
    }
}
