//! What can go wrong in a node, each with what a person needs to act on it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::storage::codec::DecodeError;

/// A volume that could not be opened, read or written. Cheap to clone: one failed commit answers
/// many callers.
#[derive(Clone, Debug)]
pub enum StorageError {
    /// The volume could not be opened.
    Open {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        source: Arc<microdb::Error>,
    },
    /// The committer's thread could not be started.
    Thread {
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// A row could not be read.
    Read {
        /// The table.
        table: &'static str,
        /// Why.
        source: Arc<microdb::Error>,
    },
    /// A row was read whole but is not what this version writes.
    Row {
        /// The table.
        table: &'static str,
        /// The row's key, as text.
        key: String,
        /// What is wrong with it.
        fault: DecodeError,
    },
    /// Changes could not be made durable; none of them happened.
    Commit {
        /// Why.
        source: Arc<microdb::Error>,
    },
    /// More changes wait than the volume can take in; they may be tried again.
    Busy,
    /// The volume has not the slots that the changes speak for, or not any more; none of them
    /// happened.
    Stale,
    /// The volume is being closed.
    Closed,
}

impl StorageError {
    /// Returns `true` if there is no database in the folder.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, StorageError::Open { source, .. } if matches!(**source, microdb::Error::NotADatabase { .. }))
    }

    /// True if another process has the volume open.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, StorageError::Open { source, .. } if matches!(**source, microdb::Error::Locked { .. }))
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Open { folder, .. } => write!(f, "cannot open the volume {}", folder.display()),
            StorageError::Thread { .. } => write!(f, "cannot start the thread that commits"),
            StorageError::Read { table, .. } => write!(f, "cannot read the table {table}"),
            StorageError::Row { table, key, .. } => {
                write!(f, "the row {key} of the table {table} is not readable")
            }
            StorageError::Commit { .. } => write!(f, "cannot make changes durable"),
            StorageError::Busy => write!(f, "too many changes are waiting to become durable"),
            StorageError::Stale => write!(f, "what the changes speak for is not the volume's any more"),
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
            StorageError::Busy | StorageError::Stale | StorageError::Closed => None,
        }
    }
}

/// Why a node cannot start, or did not stop cleanly.
#[derive(Debug)]
pub enum NodeError {
    /// A setting makes no sense.
    Config {
        /// The setting.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The address is taken or cannot be had.
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A file or folder of the data folder cannot be used.
    Folder {
        /// What was tried: "create", "read" and the like.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process runs a node of this name on this data folder.
    NameInUse {
        /// The name.
        name: String,
        /// The data folder.
        data: PathBuf,
        /// What the other process says of itself, if it could be read.
        holder: Option<String>,
    },
    /// The ring file is damaged or of another format.
    Ring {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What the node works on in the background went wrong.
    Failed {
        /// What.
        source: Arc<NodeError>,
    },
    /// The node was not let in: no coordinator gave it its volume.
    NotAdmitted {
        /// The node's name.
        name: String,
    },
    /// The ring names a volume, and there is no database in its folder.
    VolumeMissing {
        /// The volume.
        volume: String,
        /// Its folder.
        folder: PathBuf,
    },
    /// The volume could not be opened, read or closed.
    Storage(StorageError),
    /// The node still had requests in flight when its drain timeout ended.
    Drain {
        /// How many there were.
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
                    "cannot listen on {address}: another program does; stop it or choose another address"
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
            NodeError::Failed { source } => source.fmt(f),
            NodeError::NotAdmitted { name } => {
                write!(
                    f,
                    "the node {name} was not let in by the nodes that run on this data folder; see their logs"
                )
            }
            NodeError::VolumeMissing { volume, folder } => write!(
                f,
                "the volume {volume} has orders and its database is missing: mount or restore {}",
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
            // Said in full by Display already, for what is common; the rest has its reason as
            // source.
            NodeError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => None,
            NodeError::Listen { source, .. } | NodeError::Folder { source, .. } => Some(source),
            NodeError::Failed { source } => source.source(),
            NodeError::Storage(error) => error.source(),
            _ => None,
        }
    }
}

impl StorageError {
    /// True if there was no room on the disk: nothing was done, and there may be room again.
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

impl From<StorageError> for NodeError {
    fn from(error: StorageError) -> NodeError {
        NodeError::Storage(error)
    }
}

/// An error with all its reasons, on one line.
pub(crate) fn with_reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        text.push_str(": ");
        text.push_str(&error.to_string());
        reason = error.source();
    }
    text
}

/// What an error says, followed by what caused it, cause by cause.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
