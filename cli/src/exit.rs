//! Exit codes of all commands.

use std::process::ExitCode;

/// Outcome of a command. The number is the exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command succeeded, or the reader of its output closed the output early.
    Done = 0,
    /// The arguments were accepted, and the command failed for a reason without a code of its own.
    Failed = 1,
    /// The arguments or settings cannot be used. clap uses the same code.
    Usage = 2,
    /// A check, such as `imt audit` or `imt db verify`, found a fault or a difference, or an order
    /// ended in another state than the awaited one.
    Found = 3,
    /// A simulation run missed a threshold of its scenario or of `--fail-if`.
    ThresholdMissed = 4,
    /// A server gave no answer, or no complete one.
    Unreachable = 5,
    /// Ctrl-C or SIGTERM ended the command before its work was complete. Shells use this code for a
    /// program that Ctrl-C ended.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
