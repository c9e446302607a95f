//! Faults of a simulation, with the place and a remedy.
//!
//! Answers of the order management that a shop has to live with (a 409, a time-out, a closed
//! connection) are not errors here: the front counts them. `Display` never repeats its `source`.

use std::path::{Path, PathBuf};

/// The simulators' result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason for which a simulation could not start or go on.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be used.
    Config {
        /// The setting's name, as in the configuration.
        setting: &'static str,
        /// The fault, and the values that are allowed.
        problem: String,
    },
    /// An address that is not of the form `http://HOST:PORT`.
    Address {
        /// The address as given.
        given: String,
        /// The fault.
        problem: &'static str,
    },
    /// A file or folder could not be read or written.
    Io {
        /// The action ("read", "create", ...).
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The port is taken, or the address is not one of this machine.
    Listen {
        /// The address to listen on.
        address: std::net::SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file with a content that cannot be understood.
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The fault, and the remedy.
        problem: String,
    },
    /// Another process uses the file.
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A server does not answer.
    Unreachable {
        /// The server.
        who: &'static str,
        /// Its address.
        address: String,
        /// The last failure.
        problem: String,
    },
    /// An answer that is not in the contract.
    Answer {
        /// The route.
        route: String,
        /// The answer.
        problem: String,
    },
    /// The ledger could not be written; nothing was confirmed since.
    LedgerFailed {
        /// The first failure.
        problem: String,
    },
    /// A report could not be drawn.
    Report {
        /// The failure.
        problem: String,
    },
    /// The run was ended before its first request.
    Interrupted {
        /// The order management that was waited for.
        address: String,
    },
}

impl Error {
    /// For `map_err`: an IO error with its action and path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config { setting, problem } => write!(f, "{setting}: {problem}"),
            Self::Address { given, problem } => {
                write!(
                    f,
                    "{given:?} is not an address: {problem}; expected http://HOST:PORT"
                )
            }
            Self::Io { action, path, .. } => write!(f, "cannot {action} {}", path.display()),
            Self::Listen { address, .. } => write!(
                f,
                "cannot listen on {address}; if another process does, choose another port, or 0 for a free one"
            ),
            Self::Malformed { path, line, problem } => {
                write!(f, "{}, line {line}: {problem}", path.display())
            }
            Self::InUse { path } => write!(
                f,
                "{} is in use by another process; stop it or choose another data folder",
                path.display()
            ),
            Self::Unreachable {
                who,
                address,
                problem,
            } => {
                write!(f, "{who} does not answer at {address}: {problem}")
            }
            Self::Answer { route, problem } => write!(f, "{route}: unexpected answer: {problem}"),
            Self::Interrupted { address } => {
                write!(
                    f,
                    "interrupted before the first request to {address}; nothing was sent"
                )
            }
            Self::Report { problem } => write!(f, "the report cannot be drawn: {problem}"),
            Self::LedgerFailed { problem } => {
                write!(f, "the warehouse's ledger cannot be written: {problem}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::Listen { source, .. } => Some(source),
            _ => None,
        }
    }
}
