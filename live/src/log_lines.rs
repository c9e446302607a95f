//! The newest lines of the log, for the log panel of the view.
//!
//! Invariants:
//! - At most [`LINES_MAX`] lines of at most [`COLUMNS_MAX`] characters are kept.
//! - Lines have no escape sequences and no control characters.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// Maximum number of kept lines: more than the tallest screen shows.
pub const LINES_MAX: usize = 200;
/// Maximum number of kept characters of a line: more than the widest screen shows.
pub const COLUMNS_MAX: usize = 400;

/// The newest lines of the log. Clones share these lines.
#[derive(Debug, Clone, Default)]
pub struct LogLines(Arc<Mutex<VecDeque<String>>>);

impl LogLines {
    /// Appends the lines of a text, without empty ones. The oldest lines beyond [`LINES_MAX`] are
    /// removed.
    pub fn push(&self, text: &str) {
        let lines: Vec<String> = text.lines().map(plain).filter(|line| !line.is_empty()).collect();
        let mut kept = self.0.lock();
        for line in lines {
            if kept.len() == LINES_MAX {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    }

    /// Returns the newest lines, at most `count` of them, oldest first.
    pub fn newest(&self, count: usize) -> Vec<String> {
        let kept = self.0.lock();
        kept.range(kept.len().saturating_sub(count)..).cloned().collect()
    }
}

/// Returns a line without escape sequences (`ESC [ ... letter`) and control characters, cut to
/// [`COLUMNS_MAX`] characters. A tab becomes a blank.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars().take(4 * COLUMNS_MAX).peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                // The escape sequence ends at its first character from `@` to `~`, such as a
                // letter.
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\t' => text.push(' '),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text.chars().take(COLUMNS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_without_escape_sequences() {
        let lines = LogLines::default();
        lines.push("\u{1b}[2m2026-01-01\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m node\tstarted\u{7}\n\nsecond\r\n");
        assert_eq!(lines.newest(9), ["2026-01-01  INFO node started", "second"]);
        for number in 0..LINES_MAX + 3 {
            lines.push(&format!("line {number}"));
        }
        assert_eq!(lines.newest(usize::MAX).len(), LINES_MAX);
        assert_eq!(lines.newest(1), [format!("line {}", LINES_MAX + 2)]);
    }

    #[test]
    fn long_lines_and_broken_sequences_are_cut() {
        let lines = LogLines::default();
        lines.push(&"x".repeat(10_000));
        lines.push("end\u{1b}[31");
        let kept = lines.newest(2);
        assert_eq!(kept[0].len(), COLUMNS_MAX);
        assert_eq!(kept[1], "end");
    }
}
