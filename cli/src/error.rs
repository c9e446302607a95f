//! What a command can fail with, and the exit code of each.

use std::error::Error;
use std::fmt;

/// A command's failure: one clear line, what to do next, and the cause below it.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The arguments fit the grammar but not each other, or not the world. Exit code 2.
    Usage(String),
    /// The command was understood and could not be done. Exit code 1.
    Failed {
        /// What failed, and what to do about it.
        message: String,
        /// Why, when another part of the system said so.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The reader of our output has gone (`imt ... | head`): not a failure.
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

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed { .. } => 1,
            Self::BrokenPipe => 0,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Failed { message, .. } => f.write_str(message),
            Self::BrokenPipe => f.write_str("the reader of the output has gone"),
        }
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed {
                source: Some(source), ..
            } => Some(source.as_ref()),
            _ => None,
        }
    }
}
