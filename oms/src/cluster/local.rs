//! Nodes as processes of one machine that share a data folder.
//!
//! | path | what |
//! | --- | --- |
//! | `nodes/NAME.lock` | held by the process that runs the node NAME |
//! | `nodes/NAME.json` | what that process says of itself |
//! | `coordinator.lock` | held by the process that may write the ring |
//! | `ring.json` | the ring; replaced through a temporary file, a sync and a rename |
//! | `volumes/NAME/` | the volume of NAME |

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use imt_ring::{Member, NodeName, Options, Ring};
use serde::{Deserialize, Serialize};

use super::{Membership, Ownership};
use crate::error::NodeError;
use crate::store::Store;

/// What a node's process says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Card {
    name: String,
    address: SocketAddr,
    process: u32,
    started_at_ms: u64,
}

/// This process as a node of a data folder.
pub(crate) struct LocalCluster {
    data: PathBuf,
    name: NodeName,
    ring: Arc<Ring>,
    /// Held while the node lives; the kernel lets go of them when the process ends, however it ends.
    locks: Mutex<Vec<File>>,
}

impl LocalCluster {
    /// Takes the name's lock and reads the ring, or writes the first one.
    pub(crate) fn join(data: &Path, name: &str) -> Result<LocalCluster, NodeError> {
        let member = Member::new(name).map_err(|error| NodeError::Config {
            setting: "name",
            reason: format!("cannot be used: {error}"),
        })?;
        for folder in [data.to_owned(), data.join("nodes"), data.join("volumes")] {
            // Orders are nobody else's business.
            let made = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder);
            made.map_err(failed("create", &folder))?;
        }
        let node_lock =
            lock(&data.join("nodes").join(format!("{name}.lock")))?.ok_or_else(|| NodeError::NameInUse {
                name: name.to_owned(),
                data: data.to_owned(),
                holder: holder(data, name),
            })?;
        let coordinator_lock = lock(&data.join("coordinator.lock"))?;
        let path = data.join("ring.json");
        let ring = match read_ring(data)? {
            Some(ring) => ring,
            None => {
                let ring =
                    Ring::bootstrap([member.clone()], Options::new()).map_err(|error| NodeError::Ring {
                        path: path.clone(),
                        reason: error.to_string(),
                    })?;
                let json = serde_json::to_vec(&ring).map_err(|error| NodeError::Ring {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
                replace_file(&path, &json)?;
                ring
            }
        };
        if ring.member(member.name()).is_none() {
            let members = ring
                .members()
                .iter()
                .map(|member| member.name().to_string())
                .collect();
            return Err(NodeError::OtherNode {
                data: data.to_owned(),
                name: name.to_owned(),
                members,
            });
        }
        Ok(LocalCluster {
            data: data.to_owned(),
            name: member.name().clone(),
            ring: Arc::new(ring),
            locks: Mutex::new(std::iter::once(node_lock).chain(coordinator_lock).collect()),
        })
    }

    fn card_path(&self) -> PathBuf {
        self.data.join("nodes").join(format!("{}.json", self.name))
    }
}

impl Ownership for LocalCluster {
    fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring)
    }

    fn serves(&self, volume: &NodeName) -> bool {
        *volume == self.name
    }

    fn open_volume(&self) -> Result<Store, NodeError> {
        let folder = self.data.join("volumes").join(self.name.as_str());
        Ok(Store::open(&folder)?)
    }
}

impl Membership for LocalCluster {
    fn name(&self) -> &NodeName {
        &self.name
    }

    fn announce(&self, address: SocketAddr, now_ms: u64) -> Result<(), NodeError> {
        let card = Card {
            name: self.name.to_string(),
            address,
            process: std::process::id(),
            started_at_ms: now_ms,
        };
        let path = self.card_path();
        let json = serde_json::to_vec(&card).map_err(|error| NodeError::Folder {
            action: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        replace_file(&path, &json)
    }

    fn withdraw(&self) {
        // The lock says who is there; a card that stays is only out of date.
        if let Err(error) = std::fs::remove_file(self.card_path()) {
            tracing::debug!(%error, "the node's card could not be removed");
        }
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError::Folder { action, path, source }
}

/// Takes a lock, or `None` if another process has it.
fn lock(path: &Path) -> Result<Option<File>, NodeError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.map_err(failed("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(failed("lock", path)(source)),
    }
}

fn holder(data: &Path, name: &str) -> Option<String> {
    let json = std::fs::read(data.join("nodes").join(format!("{name}.json"))).ok()?;
    let card: Card = serde_json::from_slice(&json).ok()?;
    Some(format!("process {}, answering on {}", card.process, card.address))
}

/// The ring in force in a data folder; `None` if no node has made one yet. A node need not run.
///
/// # Errors
/// When the file cannot be read or holds no ring.
pub fn read_ring(data: &Path) -> Result<Option<Ring>, NodeError> {
    let path = &data.join("ring.json");
    let json = match std::fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", path)(source)),
    };
    let ring = serde_json::from_slice(&json).map_err(|error| NodeError::Ring {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(Some(ring))
}

/// Puts a file in place of another, whole and durable, or not at all.
fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), NodeError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_by_one_process_and_free_again_after_it() {
        let data = tempfile::tempdir().unwrap();
        let first = LocalCluster::join(data.path(), "paris").unwrap();
        first.announce("127.0.0.1:4711".parse().unwrap(), 5).unwrap();
        match LocalCluster::join(data.path(), "paris") {
            Err(error @ NodeError::NameInUse { .. }) => {
                assert!(error.to_string().contains("127.0.0.1:4711"), "{error}");
            }
            other => panic!("{:?}", other.err()),
        }
        drop(first);
        LocalCluster::join(data.path(), "paris").unwrap();
    }

    #[test]
    fn the_orders_of_another_node_are_not_taken_over_by_mistake() {
        let data = tempfile::tempdir().unwrap();
        drop(LocalCluster::join(data.path(), "paris").unwrap());
        match LocalCluster::join(data.path(), "lyon") {
            Err(error @ NodeError::OtherNode { .. }) => {
                assert!(error.to_string().contains("paris"), "{error}");
            }
            other => panic!("{:?}", other.err()),
        }
    }

    #[test]
    fn a_damaged_ring_is_named_and_left_as_it_is() {
        let data = tempfile::tempdir().unwrap();
        drop(LocalCluster::join(data.path(), "paris").unwrap());
        let path = data.path().join("ring.json");
        std::fs::write(&path, b"{\"half\":").unwrap();
        let error = LocalCluster::join(data.path(), "paris").err().unwrap();
        assert!(error.to_string().contains("ring.json"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"half\":");
    }
}
