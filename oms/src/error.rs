//! The errors of a node and of its storage.
//!
//! **Invariants**
//! - `Display` names the failed action or the fault, and does not repeat the `source`.
//! - Each kind of fault that an operator can correct has a separate variant.
//!
//! Deliberately absent: HTTP statuses and problem types, which belong to `api::problem`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::postgres::SessionError;

/// The error for bytes of a stored row or log entry that this version of the program cannot decode.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected {expected} at byte {offset}")]
pub struct DecodeError {
    /// Byte offset in the decoded bytes.
    pub offset: usize,
    /// The content expected at the offset.
    pub expected: &'static str,
}

/// A failed operation on a volume. The error is cheap to clone, because one failed commit is
/// reported to many callers.
#[derive(Clone, Debug, Error)]
pub enum StorageError {
    /// The database of a volume could not be opened. With an engine, this database is the volume's
    /// local copy (cache).
    #[error("cannot open the volume {}", folder.display())]
    Open {
        /// The folder of the database.
        folder: PathBuf,
        /// The error of microdb.
        source: Arc<microdb::Error>,
    },
    /// The commit thread could not be started.
    #[error("cannot start the commit thread")]
    Thread {
        /// The error of the operating system.
        source: Arc<std::io::Error>,
    },
    /// A row could not be read.
    #[error("cannot read the table {table}")]
    Read {
        /// Name of the table.
        table: &'static str,
        /// The error of microdb.
        source: Arc<microdb::Error>,
    },
    /// A row was read but could not be decoded.
    #[error("cannot decode the row {key} of the table {table}")]
    Row {
        /// Name of the table.
        table: &'static str,
        /// The row's key, as text.
        key: String,
        /// The reason why the row's value cannot be decoded.
        #[source]
        fault: DecodeError,
    },
    /// A write to the database of a volume could not be committed, a checkpoint of the database
    /// could not be written, or the database could not be closed.
    #[error("cannot make a write durable")]
    Commit {
        /// The error of microdb.
        source: Arc<microdb::Error>,
    },
    /// The operation was refused because the commit queue is full, or because slots cannot be
    /// sealed yet. The caller may try again.
    #[error("the commit queue is full; retry")]
    Busy,
    /// A command or write batch was refused, and nothing was written. The volume does not own all
    /// slots of the command or batch, one of these slots is sealed for a migration, or another
    /// process has taken over the volume.
    #[error("the volume no longer owns the slots of this write")]
    Stale,
    /// The engine of the volume does not answer or the result of a commit is unknown, or a commit
    /// waits for space on the local disk. If a write batch was sent, its rows may or may not have
    /// been written.
    #[error("the engine of the volume does not answer, so the change may or may not have been made; retry")]
    EngineAway,
    /// An entry of the volume's log in the engine cannot be used.
    #[error("entry {entry} of the volume's log cannot be used: {reason}; restore the engine from a backup")]
    Log {
        /// Number of the entry in the volume's log.
        entry: u64,
        /// The reason why the entry cannot be used.
        reason: String,
    },
    /// The operation was refused, or ended without a result, because the volume is being closed or
    /// is closed, or because the task of the operation ended early.
    #[error("the volume is being closed")]
    Closed,
}

impl StorageError {
    /// Returns `true` if a volume could not be opened because its folder has no database.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, StorageError::Open { source, .. } if matches!(**source, microdb::Error::NotADatabase { .. }))
    }

    /// Returns `true` if a volume could not be opened because a process, also this one, has its
    /// database open.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, StorageError::Open { source, .. } if matches!(**source, microdb::Error::Locked { .. }))
    }
}

/// A fault that prevents the start of a node or a clean stop, or makes an operation on the cluster
/// fail.
#[derive(Debug, Error)]
pub enum NodeError {
    /// A setting is invalid or cannot be applied.
    #[error("the setting {setting} {reason}")]
    Config {
        /// Name of the setting.
        setting: &'static str,
        /// The fault, as the end of a sentence that begins with the name of the setting.
        reason: String,
    },
    /// Another program listens on the address.
    #[error("cannot listen on {address}: another program listens there; stop it or choose another address")]
    AddressInUse {
        /// The address on which the node was to listen.
        address: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address on which the node was to listen.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file or folder that the node needs cannot be used.
    #[error("cannot {action} {}", path.display())]
    Folder {
        /// The failed action: "create", "read" and the like.
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Another process runs a node of this name on this data folder.
    #[error(
        "a node named {name} already runs on {}{}; stop it, or choose another data folder",
        data.display(), in_brackets(holder)
    )]
    NameInUse {
        /// Name of the node.
        name: String,
        /// Path of the data folder.
        data: PathBuf,
        /// The description that the running node of this name published, if it could be read.
        holder: Option<String>,
    },
    /// The ring file (`ring.json`) cannot be used. For example, it is missing, damaged or of an
    /// unknown format, or this node may not replace it.
    #[error("the ring in {} cannot be used: {reason}", path.display())]
    Ring {
        /// Path of the ring file.
        path: PathBuf,
        /// The reason why the ring file cannot be used.
        reason: String,
    },
    /// The warehouse in the node's settings differs from the warehouse that the running nodes call.
    #[error(
        "the running nodes call the warehouse {known}, and this node was given {asked}; leave out \
         --warehouse, or change it for all nodes: imt node warehouse {asked}"
    )]
    OtherWarehouse {
        /// The URL of the warehouse in the node's settings.
        asked: String,
        /// The URL of the warehouse that the running nodes call.
        known: String,
    },
    /// A statement in an engine failed, or the engine cannot be reached.
    #[error("cannot {action} in the engine {url}")]
    Engine {
        /// The failed action: "read the state" and the like.
        action: &'static str,
        /// The URL of the engine.
        url: String,
        /// The error of the session with the engine.
        source: SessionError,
    },
    /// An engine cannot be used for a cluster. For example, its tables or settings are unfit, or
    /// another node has become the coordinator.
    #[error("the engine {url} cannot hold a cluster: {reason}")]
    EngineUnfit {
        /// The URL of the engine.
        url: String,
        /// The fault and its remedy.
        reason: String,
    },
    /// Another process runs a node of this name in this engine's cluster.
    #[error(
        "a node named {name} already runs on the engine {url}{}; stop it, or choose another name",
        in_brackets(holder)
    )]
    NameInEngine {
        /// Name of the node.
        name: String,
        /// The URL of the engine.
        url: String,
        /// The description that the running node of this name published, if it could be read.
        holder: Option<String>,
    },
    /// The engine has no log of a volume that the ring or an operator names.
    #[error(
        "the engine {url} has no log of volume {volume}, and the volume has orders; restore the engine from its newest backup"
    )]
    VolumeNotInEngine {
        /// Name of the volume.
        volume: String,
        /// The URL of the engine.
        url: String,
    },
    /// A background task of the node failed.
    #[error(transparent)]
    Failed {
        /// The error of the background task.
        source: Arc<NodeError>,
    },
    /// The node was not admitted: it did not serve its own volume in time. For example, no
    /// coordinator has assigned the volume to it.
    #[error(
        "the node {name} did not serve its own volume in time; see its log and those of the other nodes, for \
         example for `volume not opened`"
    )]
    NotAdmitted {
        /// Name of the node.
        name: String,
    },
    /// The ring names a volume, and the folder of this volume has no database.
    #[error(
        "the database of volume {volume} is missing, and the volume has orders; mount or restore {}",
        folder.display()
    )]
    VolumeMissing {
        /// Name of the volume.
        volume: String,
        /// The folder of the volume.
        folder: PathBuf,
    },
    /// An operation on a volume failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The node still had requests in flight when its drain timeout ended.
    #[error("{requests} requests were cut because they outlasted the drain timeout")]
    Drain {
        /// Number of requests that were cut off.
        requests: usize,
    },
}

impl StorageError {
    /// Returns `true` if the disk or a quota was full. Nothing was written, and a later try may
    /// succeed. After a failed sync, microdb refuses all further writes (`Poisoned`), so this
    /// returns `false`.
    pub(crate) fn is_full_disk(&self) -> bool {
        match self {
            StorageError::Open { source, .. } => source.is_disk_full(),
            StorageError::Read { source, .. } | StorageError::Commit { source } => {
                source.is_disk_full() && !matches!(**source, microdb::Error::Poisoned { .. })
            }
            _ => false,
        }
    }
}

impl NodeError {
    /// Returns `true` if the engine does not answer now, if the result of a statement is unknown,
    /// or if a newer owner has the volume. The action can be repeated later.
    pub(crate) fn is_engine_away(&self) -> bool {
        match self {
            NodeError::Engine { source, .. } => {
                matches!(source, SessionError::Away { .. } | SessionError::Unknown { .. })
            }
            // A volume was opened. Afterwards its engine stopped answering (`EngineAway`), or a
            // newer owner took the volume over (`Stale`).
            NodeError::Storage(error) => matches!(error, StorageError::EngineAway | StorageError::Stale),
            _ => false,
        }
    }

    /// Returns `true` if the ring or an operator names a volume that has no database (in a data
    /// folder) or no log (in an engine).
    pub(crate) fn is_missing_volume(&self) -> bool {
        matches!(
            self,
            NodeError::VolumeMissing { .. } | NodeError::VolumeNotInEngine { .. }
        )
    }
}

/// Renders the description of another process in brackets, or nothing if there is no description.
fn in_brackets(holder: &Option<String>) -> String {
    holder
        .as_ref()
        .map_or_else(String::new, |holder| format!(" ({holder})"))
}

/// Renders an error with all its causes on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        text.push_str(": ");
        text.push_str(&error.to_string());
        reason = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_permits_another_try_unless_the_database_refuses_further_writes() {
        let full = || microdb::Error::Io {
            action: "cannot write",
            path: PathBuf::from("log/1"),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let commit = |source| StorageError::Commit {
            source: Arc::new(source),
        };
        assert!(commit(full()).is_full_disk());
        let cause = Arc::new(full());
        let refuses = commit(microdb::Error::Poisoned { cause });
        assert!(!refuses.is_full_disk());
        assert!(!commit(microdb::Error::Closed).is_full_disk());
    }
}
