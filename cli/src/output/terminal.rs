//! Properties of the output: colour, width of the terminal, and quiet mode.
//!
//! Invariant: `--color always` overrides `NO_COLOR`. Otherwise a value of `NO_COLOR` that is not
//! empty turns colour off.

use std::io::IsTerminal;
use std::sync::OnceLock;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Use of colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ColorChoice {
    /// Colour on a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Colour everywhere, also in pipes and files
    Always,
    /// No colour
    Never,
}

impl ColorChoice {
    /// Returns `true` if this choice colours output to a stream.
    pub(crate) fn applies_to(self, stream: &impl IsTerminal) -> bool {
        let variable = |name| std::env::var_os(name).unwrap_or_default();
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                stream.is_terminal() && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb"
            }
        }
    }
}

/// Choices that the command line makes for the whole process.
#[derive(Clone, Copy, Default)]
struct Choices {
    color: ColorChoice,
    quiet: bool,
}

static CHOICES: OnceLock<Choices> = OnceLock::new();

/// Stores the choices of the command line for the rest of the process. Before this call, the
/// defaults apply: `ColorChoice::Auto`, and not quiet. A second call has no effect.
pub(crate) fn set_up(color: ColorChoice, quiet: bool) {
    let _ = CHOICES.set(Choices { color, quiet });
}

fn choices() -> Choices {
    CHOICES.get().copied().unwrap_or_default()
}

/// Returns `true` if progress and remarks must not be printed.
pub(crate) fn is_quiet() -> bool {
    choices().quiet
}

/// Returns `true` if the choice of the command line colours output to a stream.
pub(crate) fn is_coloured(stream: &impl IsTerminal) -> bool {
    choices().color.applies_to(stream)
}

/// Returns the width of the terminal at standard output. If the terminal does not report it, the
/// variable `COLUMNS` gives the width. Returns `None` if standard output is no terminal, or if the
/// width is unknown.
pub(crate) fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let window = rustix::termios::tcgetwinsize(&stdout).ok();
    let columns = window
        .map(|window| usize::from(window.ws_col))
        .filter(|columns| *columns > 0);
    columns.or_else(|| std::env::var("COLUMNS").ok()?.parse().ok())
}

/// Cuts a line to at most `columns` columns. A cut line ends with an ellipsis. With 0 columns, a
/// cut line is the ellipsis alone.
pub(crate) fn cut(line: &str, columns: usize) -> String {
    if line.width() <= columns {
        return line.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let fits = |c: &char| {
        let width = c.width().unwrap_or(0);
        let fits = width <= left;
        left = left.saturating_sub(width);
        fits
    };
    let kept: String = line.chars().take_while(fits).collect();
    format!("{kept}…")
}

/// Replaces control characters by escapes such as `\n` and `\u{1b}`. The result takes one line and
/// cannot move the cursor or change colours.
pub(crate) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_other_characters_are_kept() {
        assert_eq!(escaped("käse \\ 日本"), "käse \\ 日本");
        assert_eq!(escaped("a\nb\tc\u{1b}[31m\0"), "a\\nb\\tc\\u{1b}[31m\\u{0}");
    }

    #[test]
    fn a_line_is_cut_only_if_it_is_too_long() {
        assert_eq!(cut("käse", 4), "käse");
        assert_eq!(cut("käsebrot", 4), "käs…");
        assert_eq!(cut("ab", 0), "…");
        assert_eq!(cut("日本語", 5), "日本…", "such a letter takes two columns");
        assert_eq!(cut("日本語", 4), "日…");
    }

    #[test]
    fn a_choice_of_colour_needs_no_terminal() {
        let file = tempfile::tempfile().unwrap();
        assert!(ColorChoice::Always.applies_to(&file));
        assert!(!ColorChoice::Never.applies_to(&file));
        assert!(!ColorChoice::Auto.applies_to(&file));
    }
}
