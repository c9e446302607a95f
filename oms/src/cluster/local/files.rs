//! The files of a data folder that all its nodes share: the descriptions of nodes, the secret and
//! the state.
//!
//! **Invariants**
//! - The state is written to a temporary file, synced, and renamed. So a reader sees the old or the
//!   new state, never a part.
//! - The secret is created once. Only the owner of the file can read it.
//! - Every read of a file has a maximum size.
//!
//! The right to replace the state is checked in `local`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use imt_ring::{NodeName, Ring};

use crate::cluster::local::locks::is_held;
use crate::cluster::{ClusterState, NodeInfo};
use crate::error::NodeError;
use crate::runtime::regular_file;

pub(super) const STATE: &str = "ring.json";
pub(super) const COORDINATOR: &str = "coordinator.lock";
pub(super) const SECRET: &str = "secret";
/// Maximum size in bytes of a node's description and of the secret. Both usually have a few hundred
/// bytes at most.
pub(super) const FILE_BYTES_MAX: u64 = 64 * 1_024;
/// Maximum size of the state in bytes. The state contains up to two rings. With 16,384 slots a ring
/// has at most about 150 KB.
pub(super) const STATE_BYTES_MAX: u64 = 64 * 1_024 * 1_024;

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError::Folder { action, path, source }
}

pub(super) fn lock_path(data: &Path, node: &NodeName) -> PathBuf {
    data.join("nodes").join(format!("{node}.lock"))
}

pub(super) fn node_info_path(data: &Path, node: &NodeName) -> PathBuf {
    data.join("nodes").join(format!("{node}.json"))
}

pub(super) fn holder(data: &Path, name: &NodeName) -> Option<String> {
    let node_infos = node_infos(data).ok()?;
    let node_info = node_infos.into_iter().find(|node_info| node_info.name == *name)?;
    Some(format!(
        "process {}, answering on {}",
        node_info.process, node_info.address
    ))
}

/// Returns the published descriptions of the nodes of a data folder, sorted by name. Nodes that no
/// longer run are included.
///
/// # Errors
/// Returns an error if the folder cannot be read. Descriptions that cannot be read or decoded are
/// skipped.
pub fn node_infos(data: &Path) -> Result<Vec<NodeInfo>, NodeError> {
    let folder = data.join("nodes");
    let mut node_infos: Vec<NodeInfo> = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed("read", &folder))? {
        let path = entry.map_err(failed("read", &folder))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let json = regular_file::read(&path, FILE_BYTES_MAX).unwrap_or_default();
            node_infos.extend(serde_json::from_slice::<NodeInfo>(&json).ok());
        }
    }
    node_infos.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(node_infos)
}

/// Returns `true` if a process runs the node with this name.
#[must_use]
pub fn is_node_running(data: &Path, node: &NodeName) -> bool {
    is_held(&lock_path(data, node))
}

/// Returns `true` if a running node of this data folder is the coordinator, so that another node
/// can join its cluster.
#[must_use]
pub fn has_coordinator(data: &Path) -> bool {
    is_held(&data.join(COORDINATOR))
}

/// Returns the secret by which nodes of this data folder authenticate each other. Only the owner of
/// the file can read it.
///
/// # Errors
/// Returns an error if the file does not exist, cannot be read or is not UTF-8 text.
pub fn read_secret(data: &Path) -> Result<String, NodeError> {
    let path = data.join(SECRET);
    let text = regular_file::read(&path, FILE_BYTES_MAX).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))
    });
    text.map_err(failed("read", &path))
}

/// Returns the cluster's secret, and creates it if it does not exist. If several processes create
/// it at once, all of them return the secret of the first one.
pub(super) fn secret(data: &Path) -> Result<String, NodeError> {
    let path = data.join(SECRET);
    let fresh = data.join(format!("{SECRET}.{}", std::process::id()));
    if !path.exists() {
        let text: String = (0..4)
            .map(|_| format!("{:016x}", rand::random::<u64>()))
            .collect();
        let _ = std::fs::remove_file(&fresh);
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(failed("create", &fresh))?;
        file.write_all(text.as_bytes()).map_err(failed("write", &fresh))?;
        file.sync_all().map_err(failed("sync", &fresh))?;
        // Unlike a rename, a hard link fails if the path exists. So it cannot replace a secret that
        // another process has just created.
        let linked = std::fs::hard_link(&fresh, &path);
        let _ = std::fs::remove_file(&fresh);
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(failed("create", &path)(error));
            }
            _ => {}
        }
    }
    read_secret(data)
}

/// Returns the cluster's state from a data folder, or `None` if the file does not exist.
pub(super) fn read_state(data: &Path) -> Result<Option<ClusterState>, NodeError> {
    let path = &data.join(STATE);
    let json = match regular_file::read(path, STATE_BYTES_MAX) {
        Ok(json) => json,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", path)(source)),
    };
    let wrong = |error: serde_json::Error| NodeError::Ring {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let value: serde_json::Value = serde_json::from_slice(&json).map_err(wrong)?;
    // The first version of the program wrote only the ring to this file.
    let state = if value.get("ring").is_some() {
        serde_json::from_value(value).map_err(wrong)?
    } else {
        ClusterState::of_ring(serde_json::from_value(value).map_err(wrong)?)
    };
    if !state.is_known_format() {
        return Err(NodeError::Ring {
            path: path.to_owned(),
            reason: "the layout of the file is not known to this version; upgrade this program".to_owned(),
        });
    }
    Ok(Some(state))
}

pub(super) fn write_state(data: &Path, state: &ClusterState) -> Result<(), NodeError> {
    let path = data.join(STATE);
    let json = serde_json::to_vec(state).map_err(|error| NodeError::Ring {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    replace_file(&path, &json)
}

/// Returns the current ring of a data folder, or `None` if no node has written one. The function
/// reads a file, so no node has to run.
///
/// # Errors
/// Returns an error if the file cannot be read or contains no valid state.
pub fn read_ring(data: &Path) -> Result<Option<Ring>, NodeError> {
    Ok(read_state(data)?.map(|state| state.ring))
}

/// Returns the URL of the warehouse that the nodes of a data folder call, or `None` if no node has
/// stored one. The function reads a file, so no node has to run.
///
/// # Errors
/// Returns an error if the file cannot be read or contains no valid state.
pub fn read_warehouse(data: &Path) -> Result<Option<String>, NodeError> {
    Ok(read_state(data)?.and_then(|state| state.warehouse))
}

/// Creates or replaces a file atomically. The new content is durable when the function returns.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), NodeError> {
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
    file.write_all(bytes).map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("sync", &temporary))?;
    std::fs::rename(&temporary, path).map_err(failed("replace", path))?;
    if let Some(folder) = path.parent() {
        let folder_file = File::open(folder).map_err(failed("open", folder))?;
        folder_file.sync_all().map_err(failed("sync", folder))?;
    }
    Ok(())
}
