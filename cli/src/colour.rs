//! Colours of results.

use crate::output;

const GREEN: &str = "\x1b[1;32m";
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const USUAL: &str = "\x1b[0m";

/// Choice of colour in results: `true` for coloured results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paint(bool);

impl Paint {
    /// Chooses colours for standard output by `--color`. `--plain` turns them off.
    pub(crate) fn of_stdout(is_plain: bool) -> Self {
        Self(!is_plain && output::is_coloured(&std::io::stdout()))
    }

    /// Returns `text`, the result of an audit or of a run. If results are coloured, colours the
    /// verdict: the words between the label `verdict` at the beginning of a line and the next
    /// colon.
    pub(crate) fn verdict(self, text: &str) -> String {
        if !self.0 {
            return text.to_owned();
        }
        let lines = text.lines().map(|line| {
            let Some((word, rest)) = line
                .strip_prefix("  verdict    ")
                .and_then(|row| row.split_once(':'))
            else {
                return line.to_owned();
            };
            let colour = match word {
                "CLEAN" => GREEN,
                "WRONG" | "FINDINGS" => RED,
                _ => YELLOW,
            };
            format!("  verdict    {colour}{word}{USUAL}:{rest}")
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_of_the_verdict_is_coloured() {
        let text = "  audit      2 WRONG: x\n  verdict    CLEAN: nothing: lost\n  next       imt";
        assert_eq!(
            Paint(true).verdict(text),
            "  audit      2 WRONG: x\n  verdict    \x1b[1;32mCLEAN\x1b[0m: nothing: lost\n  next       imt"
        );
        assert_eq!(Paint(false).verdict(text), text);
        for (word, colour) in [("FINDINGS", RED), ("WRONG", RED), ("THRESHOLD MISSED", YELLOW)] {
            let painted = Paint(true).verdict(&format!("  verdict    {word}: y"));
            assert_eq!(painted, format!("  verdict    {colour}{word}{USUAL}: y"));
        }
    }
}
