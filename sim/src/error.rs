//! What can go wrong around a simulation, with the place and what to do about it.
//!
//! Answers of the order management that a shop would have to live with (a 409, a time-out, a closed
//! connection) are not errors here: the front counts them. `Display` never repeats its `source`.

use std::path::{Path, PathBuf};

/// The simulators' result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a simulation could not start or go on.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting that makes no sense.
    Config {
        /// The setting's name, as in the configuration.
        setting: &'static str,
        /// What is wrong with it and what it must be.
        problem: String,
    },
    /// An address that is not of the form `http://HOST:PORT`.
    Address {
        /// The address as given.
        given: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file or folder could not be read or written.
    Io {
        /// What was tried ("read", "create", ...).
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The port is taken, or the address not ours.
    Listen {
        /// The address to listen on.
        address: std::net::SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of ours that we cannot make sense of.
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Another process uses the file.
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Nobody answers at an address.
    Unreachable {
        /// Who should answer there.
        who: &'static str,
        /// Where.
        address: String,
        /// The last failure.
        problem: String,
    },
    /// An answer that the other side's contract does not know.
    Answer {
        /// The route asked.
        route: String,
        /// What came.
        problem: String,
    },
    /// The ledger could not be written any more; nothing was confirmed since.
    LedgerFailed {
        /// The first failure.
        problem: String,
    },
}

impl Error {
    /// For `map_err`: an IO failure with what was tried and on what.
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
                    "{given:?} is not an address: {problem}; write http://HOST:PORT"
                )
            }
            Self::Io { action, path, .. } => write!(f, "cannot {action} {}", path.display()),
            Self::Listen { address, .. } => write!(
                f,
                "cannot listen on {address}; is another process there? Choose another address or port 0"
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
