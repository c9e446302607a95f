//! Faults of a simulation, with the place and a remedy.
//!
//! Answers of the order management that a shop has to live with (a 409, a time-out, a closed
//! connection) are not errors here: the front counts them. `Display` never repeats its `source`.

use std::path::{Path, PathBuf};

/// The simulators' result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason for which a simulation could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be used.
    #[error("{setting}: {problem}")]
    Config {
        /// The setting's name, as in the configuration.
        setting: &'static str,
        /// The fault, and the values that are allowed.
        problem: String,
    },
    /// An address that is not of the form `http://HOST:PORT`.
    #[error("{given:?} is not an address: {problem}; expected http://HOST:PORT")]
    Address {
        /// The address as given.
        given: String,
        /// The fault.
        problem: &'static str,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action ("read", "create", ...).
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The port is taken, or the address is not one of this machine.
    #[error("cannot listen on {address}; if another process does, choose another port, or 0 for a free one")]
    Listen {
        /// The address to listen on.
        address: std::net::SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file with a content that cannot be understood.
    #[error("{}, line {line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The fault, and the remedy.
        problem: String,
    },
    /// Another process uses the file.
    #[error("{} is in use by another process; stop it or choose another data folder", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A server does not answer.
    #[error("{who} does not answer at {address}: {problem}")]
    Unreachable {
        /// The server.
        who: &'static str,
        /// Address of the server.
        address: String,
        /// The last failure.
        problem: String,
    },
    /// An answer that is not in the contract.
    #[error("{route}: unexpected answer: {problem}")]
    Answer {
        /// The route.
        route: String,
        /// The answer.
        problem: String,
    },
    /// The ledger could not be written; nothing was confirmed since.
    #[error("the warehouse's ledger cannot be written: {problem}")]
    LedgerFailed {
        /// The first failure.
        problem: String,
    },
    /// A report could not be drawn.
    #[error("the report cannot be drawn: {problem}")]
    Report {
        /// The failure.
        problem: String,
    },
    /// The run was ended before its first request.
    #[error("interrupted before the first request to {address}; nothing was sent")]
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
