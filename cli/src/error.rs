//! Errors of commands, each with its exit code.

use crate::exit::Exit;
use serde_json::json;
use std::error::Error;

/// Failure of a command. As text, its message is printed, and a line for each cause follows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The arguments or settings cannot be used, for a reason that clap does not check.
    #[error("{0}")]
    Usage(String),
    /// The arguments were accepted, and the command failed.
    #[error("{message}")]
    Failed {
        /// Sentence that names the failure, and the remedy if one is known.
        message: String,
        /// Error of the called library or of the system, if there is one.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// A node answered with a problem document (RFC 9457).
    #[error("{message}")]
    Refused {
        /// Sentence that names the node, the status and the reason.
        message: String,
        /// The problem document as the node sent it.
        problem: Box<serde_json::Value>,
    },
    /// A server gave no answer, or no complete one.
    #[error("{message}")]
    Unreachable {
        /// Sentence that names the failure, and the remedy if one is known.
        message: String,
        /// Error of the call that got no complete answer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A signal ended the command before its work began.
    #[error("{0}")]
    Interrupted(String),
    /// The reader of the output closed it (`imt ... | head`). This is no failure.
    #[error("the reader of the output closed it")]
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

    /// Returns the error with `note` at the end of its message. `BrokenPipe` stays as it is.
    pub(crate) fn with_note(mut self, note: &str) -> Self {
        match &mut self {
            Self::Usage(message)
            | Self::Interrupted(message)
            | Self::Failed { message, .. }
            | Self::Refused { message, .. }
            | Self::Unreachable { message, .. } => message.push_str(&format!("; {note}")),
            Self::BrokenPipe => {}
        }
        self
    }

    /// Returns the error as a JSON document.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut causes = Vec::new();
        let mut source = self.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let exit_code = self.exit() as u8;
        let mut error = json!({ "message": self.to_string(), "causes": causes, "exit_code": exit_code });
        if let Self::Refused { problem, .. } = self {
            error["problem"] = (**problem).clone();
        }
        json!({ "error": error })
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Failed { .. } | Self::Refused { .. } => Exit::Failed,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Interrupted(_) => Exit::Interrupted,
            Self::BrokenPipe => Exit::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_for_programs_has_its_causes_and_its_exit_code() {
        let cause = std::io::Error::other("no route");
        let error = CliError::Unreachable {
            message: "no node answers".to_owned(),
            source: Box::new(cause),
        };
        let expected =
            json!({ "error": { "message": "no node answers", "causes": ["no route"], "exit_code": 5 } });
        assert_eq!(error.to_json(), expected);
        let error = CliError::Refused {
            message: "there is no order".to_owned(),
            problem: Box::new(json!({ "status": 404 })),
        };
        assert_eq!(error.to_json()["error"]["problem"]["status"], 404);
    }
}
