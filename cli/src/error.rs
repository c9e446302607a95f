//! Failures of a command, with the exit code of each.

use crate::exit::Exit;
use std::error::Error;
use std::fmt;

/// Failure of a command: one line with the remedy, and the cause below that line.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The arguments are valid one by one, but contradict each other or cannot be used here.
    Usage(String),
    /// The command was understood and failed.
    Failed {
        /// The failure and its remedy.
        message: String,
        /// Error of the called library or of the system, if there is one.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// A server does not answer.
    Unreachable {
        /// The failure and its remedy.
        message: String,
        /// Error of the connection.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A signal ended the command before its work began.
    Interrupted(String),
    /// The reader of the output closed it (`imt ... | head`). This is no failure.
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
            Self::BrokenPipe => f.write_str("the reader of the output closed it"),
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
