//! Exit codes of all commands.

use std::process::ExitCode;

/// Outcome of a command. The number is the exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The arguments were accepted, and the command failed.
    Failed = 1,
    /// The arguments cannot be used. clap uses the same code.
    Usage = 2,
    /// A check (audit, verify, diff, salvage) found damage or a difference.
    Found = 3,
    /// A run missed a threshold of its scenario.
    ThresholdMissed = 4,
    /// A server does not answer.
    Unreachable = 5,
    /// The command was ended early by Ctrl-C or SIGTERM. Shells use this code for a program that
    /// Ctrl-C ended.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
