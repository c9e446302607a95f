//! Errors of the simulators.
//!
//! An outcome of a request that every shop must handle (a 409, a time-out, a closed connection) is
//! not an error here. The shop front counts such outcomes. `Display` never repeats the text of
//! `source`.

use std::path::{Path, PathBuf};

/// Result type of the simulators.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason for which a simulation could not start or continue, or a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting has a value that cannot be used.
    #[error("{setting}: {problem}")]
    Config {
        /// Name of the setting, as in the configuration.
        setting: &'static str,
        /// Description of the fault in the value.
        problem: String,
    },
    /// A given address is not of the form `http://HOST[:PORT]`.
    #[error("{given:?} is not an address: {problem}; expected http://HOST:PORT")]
    Address {
        /// The text that was given as the address.
        given: String,
        /// Description of the fault in the address.
        problem: &'static str,
    },
    /// An action on a file, a folder or a thread failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The failed action, such as "read" or "start the thread".
        action: &'static str,
        /// The file, the folder, or the name of the thread.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The simulator cannot listen on its address.
    #[error("cannot listen on {address}; if another process does, choose another port, or 0 for a free one")]
    Listen {
        /// The address to listen on.
        address: std::net::SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file has content that cannot be used.
    #[error("{}, line {line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Number of the faulty line, from 1.
        line: u64,
        /// Description of the fault.
        problem: String,
    },
    /// A run folder has no summary.
    #[error("{}: the run was killed before its end; there is no summary to compare", path.display())]
    NoSummary {
        /// The run folder.
        path: PathBuf,
    },
    /// Another process has locked the file.
    #[error("{} is in use by another process; stop it or choose another data folder", path.display())]
    InUse {
        /// The locked file.
        path: PathBuf,
    },
    /// A server does not answer, or is not ready in time.
    #[error("{who} does not answer at {address}: {problem}")]
    Unreachable {
        /// Name of the server, for example "the warehouse".
        who: &'static str,
        /// Address of the server.
        address: String,
        /// Text of the last failure.
        problem: String,
    },
    /// A server sent an answer that the request cannot use: an unexpected status, such as 503, or a
    /// body that cannot be parsed.
    #[error("{route}: unexpected answer: {problem}")]
    Answer {
        /// Method and address of the request.
        route: String,
        /// Description of the unexpected answer.
        problem: String,
    },
    /// The warehouse's ledger could not be written. The warehouse has confirmed no call since this
    /// failure.
    #[error("the warehouse's ledger cannot be written: {problem}")]
    LedgerFailed {
        /// Text of the first failure to write the ledger.
        problem: String,
    },
    /// A report could not be drawn.
    #[error("the report cannot be drawn: {problem}")]
    Report {
        /// Text of the failure.
        problem: String,
    },
    /// The run was stopped while it waited for the order management, before its first request.
    #[error("interrupted before the first request to {address}; nothing was sent")]
    Interrupted {
        /// Address of the order management that the run was waiting for.
        address: String,
    },
}

impl Error {
    /// Returns a function for `map_err` that adds action and path to an IO error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
