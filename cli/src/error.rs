//! Failures of a command, and the exit code of each.

use crate::exit::Exit;
use std::error::Error;
use std::fmt;

/// A command's failure: one clear line with the remedy, and the cause below it.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The arguments fit the grammar but not each other, or not the world.
    Usage(String),
    /// The command was understood and could not be carried out.
    Failed {
        /// The failure, and the remedy.
        message: String,
        /// The cause, if another part of the system gave one.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// A server does not answer.
    Unreachable {
        /// The failure, and the remedy.
        message: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A signal ended the command before it began its work.
    Interrupted(String),
    /// The reader of our output has gone (`imt ... | head`), which is no failure.
    BrokenPipe,
}

impl CliError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn because(message: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Failed {
            message: message.into(),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Failed { .. } => Exit::Failed,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Interrupted(_) => Exit::Interrupted,
            Self::BrokenPipe => Exit::Done,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message)
            | Self::Failed { message, .. }
            | Self::Unreachable { message, .. }
            | Self::Interrupted(message) => f.write_str(message),
            Self::BrokenPipe => f.write_str("the reader of the output has gone"),
        }
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed {
                source: Some(source), ..
            }
            | Self::Unreachable { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}
