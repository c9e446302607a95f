//! The errors of a node and of its storage.
//!
//! **Invariants**
//! - `Display` names the failed action and its object, and does not repeat the `source`.
//! - Each fault that an operator can correct has a variant of its own.
//!
//! Deliberately absent: HTTP statuses and problem types, which belong to `api::problem`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::postgres::SessionError;

/// A row with bytes that this version does not write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Byte offset in the value.
    pub offset: usize,
    /// The content expected there.
    pub expected: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at byte {}", self.expected, self.offset)
    }
}

impl std::error::Error for DecodeError {}

/// A failed operation on a volume. Cheap to clone, because one failed commit answers many callers.
#[derive(Clone, Debug)]
pub enum StorageError {
    /// The volume could not be opened.
    Open {
        /// The folder of the volume.
        folder: PathBuf,
        /// The cause.
        source: Arc<microdb::Error>,
    },
    /// The commit thread could not be started.
    Thread {
        /// The cause.
        source: Arc<std::io::Error>,
    },
    /// A row could not be read.
    Read {
        /// The table.
        table: &'static str,
        /// The cause.
        source: Arc<microdb::Error>,
    },
    /// A row was read but could not be decoded.
    Row {
        /// The table.
        table: &'static str,
        /// The row's key, as text.
        key: String,
        /// The fault.
        fault: DecodeError,
    },
    /// A write batch could not be made durable. None of its rows was written.
    Commit {
        /// The cause.
        source: Arc<microdb::Error>,
    },
    /// The commit queue is full. The caller may try again.
    Busy,
    /// The volume no longer owns the slots of the write batch. None of its rows was written.
    Stale,
    /// The engine of the volume does not answer. It is not known whether the rows were written.
    EngineAway,
    /// An entry of the volume's log cannot be used.
    Log {
        /// The number of the entry.
        entry: u64,
        /// The fault.
        reason: String,
    },
    /// The volume is being closed.
    Closed,
}

impl StorageError {
    /// Returns `true` if there is no database in the folder.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, StorageError::Open { source, .. } if matches!(**source, microdb::Error::NotADatabase { .. }))
    }

    /// Returns `true` if another process has the volume open.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, StorageError::Open { source, .. } if matches!(**source, microdb::Error::Locked { .. }))
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Open { folder, .. } => write!(f, "cannot open the volume {}", folder.display()),
            StorageError::Thread { .. } => write!(f, "cannot start the commit thread"),
            StorageError::Read { table, .. } => write!(f, "cannot read the table {table}"),
            StorageError::Row { table, key, .. } => {
                write!(f, "cannot decode the row {key} of the table {table}")
            }
            StorageError::Commit { .. } => write!(f, "cannot make a write durable"),
            StorageError::Busy => write!(f, "the commit queue is full; retry"),
            StorageError::Stale => write!(f, "the volume no longer owns the slots of this write"),
            StorageError::EngineAway => {
                write!(
                    f,
                    "the engine of the volume does not answer, so the change may or may not have been made; retry"
                )
            }
            StorageError::Log { entry, reason } => {
                write!(
                    f,
                    "entry {entry} of the volume's log cannot be used: {reason}; restore the engine from a backup"
                )
            }
            StorageError::Closed => write!(f, "the volume is being closed"),
        }
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StorageError::Open { source, .. }
            | StorageError::Read { source, .. }
            | StorageError::Commit { source } => Some(source.as_ref()),
            StorageError::Thread { source } => Some(source.as_ref()),
            StorageError::Row { fault, .. } => Some(fault),
            StorageError::Busy
            | StorageError::Stale
            | StorageError::EngineAway
            | StorageError::Log { .. }
            | StorageError::Closed => None,
        }
    }
}

/// A fault that prevents the start of a node or a clean stop.
#[derive(Debug)]
pub enum NodeError {
    /// A setting is invalid.
    Config {
        /// The setting.
        setting: &'static str,
        /// The fault.
        reason: String,
    },
    /// The address is in use or cannot be bound.
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A file or folder of the data folder cannot be used.
    Folder {
        /// The failed action: "create", "read" and the like.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process runs a node of this name on this data folder.
    NameInUse {
        /// The name.
        name: String,
        /// The data folder.
        data: PathBuf,
        /// The description that the other process published, if it could be read.
        holder: Option<String>,
    },
    /// The ring file is damaged or of another format.
    Ring {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// A statement about the cluster failed in its engine.
    Engine {
        /// The failed action: "read the state" and the like.
        action: &'static str,
        /// The URL of the engine.
        url: String,
        /// The cause.
        source: SessionError,
    },
    /// The engine's tables or settings cannot hold a cluster.
    EngineUnfit {
        /// The URL of the engine.
        url: String,
        /// The fault and its remedy.
        reason: String,
    },
    /// Another process runs a node of this name in this engine's cluster.
    NameInEngine {
        /// The name.
        name: String,
        /// The URL of the engine.
        url: String,
        /// The description that the other process published, if it could be read.
        holder: Option<String>,
    },
    /// The ring names a volume, and the engine has no log of it.
    VolumeNotInEngine {
        /// The volume.
        volume: String,
        /// The URL of the engine.
        url: String,
    },
    /// A background task of the node failed.
    Failed {
        /// The error of the task.
        source: Arc<NodeError>,
    },
    /// The node was not admitted: no coordinator assigned its volume to it in time.
    NotAdmitted {
        /// The node's name.
        name: String,
    },
    /// The ring names a volume, and there is no database in its folder.
    VolumeMissing {
        /// The volume.
        volume: String,
        /// The folder of the volume.
        folder: PathBuf,
    },
    /// The volume could not be opened, read or closed.
    Storage(StorageError),
    /// The node still had requests in flight when its drain timeout ended.
    Drain {
        /// Number of those requests.
        requests: usize,
    },
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeError::Config { setting, reason } => write!(f, "the setting {setting} {reason}"),
            NodeError::Listen { address, source } if source.kind() == std::io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "cannot listen on {address}: another program listens there; stop it or choose another address"
                )
            }
            NodeError::Listen { address, .. } => write!(f, "cannot listen on {address}"),
            NodeError::Folder { action, path, .. } => write!(f, "cannot {action} {}", path.display()),
            NodeError::NameInUse { name, data, holder } => {
                write!(f, "a node named {name} already runs on {}", data.display())?;
                if let Some(holder) = holder {
                    write!(f, " ({holder})")?;
                }
                write!(f, "; stop it, or choose another data folder")
            }
            NodeError::Ring { path, reason } => {
                write!(f, "the ring in {} cannot be used: {reason}", path.display())
            }
            NodeError::Engine { action, url, .. } => write!(f, "cannot {action} in the engine {url}"),
            NodeError::EngineUnfit { url, reason } => {
                write!(f, "the engine {url} cannot hold a cluster: {reason}")
            }
            NodeError::NameInEngine { name, url, holder } => {
                write!(f, "a node named {name} already runs on the engine {url}")?;
                if let Some(holder) = holder {
                    write!(f, " ({holder})")?;
                }
                write!(f, "; stop it, or choose another name")
            }
            NodeError::VolumeNotInEngine { volume, url } => write!(
                f,
                "the engine {url} has no log of volume {volume}, and the volume has orders; restore the engine from its newest backup"
            ),
            NodeError::Failed { source } => source.fmt(f),
            NodeError::NotAdmitted { name } => {
                write!(
                    f,
                    "the node {name} was not admitted by the nodes that run on this data folder; see their logs"
                )
            }
            NodeError::VolumeMissing { volume, folder } => write!(
                f,
                "the database of volume {volume} is missing, and the volume has orders; mount or restore {}",
                folder.display()
            ),
            NodeError::Storage(error) => error.fmt(f),
            NodeError::Drain { requests } => {
                write!(
                    f,
                    "{requests} requests were cut because they outlasted the drain timeout"
                )
            }
        }
    }
}

impl std::error::Error for NodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // `Display` names this cause already. For all other causes it leaves the text to
            // `source`.
            NodeError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => None,
            NodeError::Listen { source, .. } | NodeError::Folder { source, .. } => Some(source),
            NodeError::Engine { source, .. } => Some(source),
            NodeError::Failed { source } => source.source(),
            NodeError::Storage(error) => error.source(),
            _ => None,
        }
    }
}

impl StorageError {
    /// Returns `true` if the disk was full. Nothing was written, and a later try may succeed.
    pub(crate) fn is_full_disk(&self) -> bool {
        let mut reason = std::error::Error::source(self);
        while let Some(error) = reason {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && matches!(
                    io.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
                )
            {
                return true;
            }
            reason = error.source();
        }
        false
    }
}

impl NodeError {
    /// Returns `true` if the engine does not answer now. The action can be repeated later.
    pub(crate) fn is_engine_away(&self) -> bool {
        match self {
            NodeError::Engine { source, .. } => {
                matches!(source, SessionError::Away { .. } | SessionError::Unknown { .. })
            }
            // A volume that was opened a moment ago lost its engine, or a newer owner took it.
            NodeError::Storage(error) => matches!(error, StorageError::EngineAway | StorageError::Stale),
            _ => false,
        }
    }

    /// Returns `true` if a volume is missing that the ring names.
    pub(crate) fn is_missing_volume(&self) -> bool {
        matches!(
            self,
            NodeError::VolumeMissing { .. } | NodeError::VolumeNotInEngine { .. }
        )
    }
}

impl From<StorageError> for NodeError {
    fn from(error: StorageError) -> NodeError {
        NodeError::Storage(error)
    }
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
