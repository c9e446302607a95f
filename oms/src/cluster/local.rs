//! Nodes as processes of one machine that share a data folder.
//!
//! | path | content |
//! | --- | --- |
//! | `nodes/NAME.lock` | held by the process that runs the node NAME |
//! | `nodes/NAME.json` | the description that node NAME published; removed at an orderly stop |
//! | `coordinator.lock` | held by the process that may replace the cluster's state |
//! | `ring.json` | the cluster's state; written to a temporary file, synced, and renamed |
//! | `secret` | authenticates nodes to each other; only the file's owner can read it |
//! | `volumes/NAME/` | the volume of the node NAME |
//!
//! **Invariants**
//! - The kernel reports the end of a node. A thread waits for a shared lock on the node's lock
//!   file, and gets it when the node withdraws or its process ends.
//! - A node belongs to the folder that it joined, even if the path later leads to another folder.
//!   Before the node publishes its description, replaces the state, or opens or removes a volume,
//!   it checks its folder and the lock file that entitles it to the change. The change fails if the
//!   folder or the lock file was replaced, removed or renamed.

mod files;
mod locks;
mod warehouse;

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imt_ring::{Member, NodeName};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::UnboundedSender;

use crate::cluster::local::files::{
    COORDINATOR, STATE, failed, holder, lock_path, node_info_path, read_state, replace_file, secret,
    write_state,
};
pub use crate::cluster::local::files::{
    has_coordinator, is_node_running, node_infos, read_ring, read_secret, read_warehouse,
};
use crate::cluster::local::locks::{FolderLock, OpenPath, is_held, lock, open_lock};
pub use crate::cluster::local::warehouse::check_warehouse;
use crate::cluster::{Authority, ClusterState, Event, Expected, Membership, NodeInfo, Soon, Volumes};
use crate::error::NodeError;
use crate::runtime::{self, regular_file};
use crate::storage::volume::Volume;

/// Longest wait for the lock of a name. A thread that watched the name's former process may hold
/// the lock for some microseconds.
const NAME_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for the cluster's first state, and for the warehouse's URL in it. The first node
/// writes both right after it has taken the coordinator's lock.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two attempts to take a lock, or to read the first state or the warehouse's URL.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The membership of this process in the cluster of a data folder, and its access to the state and
/// the volumes.
pub(crate) struct LocalCluster {
    data: PathBuf,
    /// The data folder, as opened when the node joined.
    folder: OpenPath,
    name: NodeName,
    secret: String,
    held: Mutex<Held>,
    withdrawn: AtomicBool,
}

/// The locks that this process holds while its node is a member. The kernel releases them when the
/// process ends in any way.
#[derive(Default)]
struct Held {
    name: Option<OpenPath>,
    coordinator: Option<OpenPath>,
}

impl LocalCluster {
    /// Creates missing folders, takes the lock of the node's name, and ensures that the cluster has
    /// a secret and a state.
    pub(crate) fn join(data: &Path, name: &str) -> Result<LocalCluster, NodeError> {
        let member = Member::new(name).map_err(|error| NodeError::Config {
            setting: "name",
            reason: format!("cannot be used: {error}"),
        })?;
        // An absolute path stays valid if the working directory changes.
        let data = &std::path::absolute(data).map_err(failed("find", data))?;
        for folder in [data.to_owned(), data.join("nodes"), data.join("volumes")] {
            // Mode 0700 of a new folder keeps other users of the machine from reading orders.
            let made = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder);
            made.map_err(failed("create", &folder))?;
        }
        let folder = OpenPath::folder(data)?;
        let name_path = lock_path(data, member.name());
        let begun = Instant::now();
        let name_lock = loop {
            if let Some(lock) = lock(&name_path)? {
                break lock;
            }
            // A thread that watches the former process holds the lock only for a moment. A running
            // node holds it permanently.
            if begun.elapsed() > NAME_TIMEOUT {
                return Err(NodeError::NameInUse {
                    name: name.to_owned(),
                    data: data.to_owned(),
                    holder: holder(data, member.name()),
                });
            }
            std::thread::sleep(RETRY_INTERVAL);
        };
        let cluster = LocalCluster {
            secret: secret(data)?,
            data: data.to_owned(),
            folder,
            name: member.name().clone(),
            held: Mutex::new(Held {
                name: Some(name_lock),
                coordinator: None,
            }),
            withdrawn: AtomicBool::new(false),
        };
        cluster.ensure_state(member)?;
        Ok(cluster)
    }

    /// Takes the coordinator's lock if it is free, and waits until the cluster has a state. If
    /// there is none and this node has the lock, it writes the first state.
    fn ensure_state(&self, member: Member) -> Result<(), NodeError> {
        let begun = Instant::now();
        loop {
            if let Some(lock) = lock(&self.data.join(COORDINATOR))? {
                self.held().coordinator = Some(lock);
            }
            if read_state(&self.data)?.is_some() {
                return Ok(());
            }
            if self.held().coordinator.is_some() {
                let first = ClusterState::first(member).map_err(|error| NodeError::Ring {
                    path: self.data.join(STATE),
                    reason: error.to_string(),
                })?;
                // The volume is created before the ring that names it. So if a volume in the ring
                // is missing later, it was lost.
                Volume::open(&self.volume_folder(&self.name))?.close()?;
                return write_state(&self.data, &first);
            }
            if begun.elapsed() > STATE_TIMEOUT {
                return Err(NodeError::Ring {
                    path: self.data.join(STATE),
                    reason: "another process holds coordinator.lock and does not write the file; stop that process".to_owned(),
                });
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }

    fn node_info_path(&self) -> PathBuf {
        node_info_path(&self.data, &self.name)
    }

    /// Stores the coordinator's lock. Releases it and returns `false` if the node has withdrawn
    /// while it waited for the lock.
    fn take_coordination(&self, lock: OpenPath) -> bool {
        let mut held = self.held();
        if self.withdrawn.load(Ordering::Acquire) {
            return false;
        }
        held.coordinator = Some(lock);
        true
    }

    /// Fails if the data folder or the lock file of the name was replaced, removed or renamed since
    /// the node joined. After `withdraw`, only the folder is checked.
    fn check(&self) -> Result<(), NodeError> {
        self.folder.check()?;
        self.held().name.as_ref().map_or(Ok(()), OpenPath::check)
    }
}

impl Membership for LocalCluster {
    fn name(&self) -> &NodeName {
        &self.name
    }

    fn announce(&self, node_info: &NodeInfo) -> Result<(), NodeError> {
        let path = self.node_info_path();
        let json = serde_json::to_vec(node_info).map_err(|error| NodeError::Folder {
            action: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        self.check()?;
        replace_file(&path, &json)
    }

    fn alive(&self) -> Result<Vec<NodeInfo>, NodeError> {
        let mut node_infos = node_infos(&self.data)?;
        node_infos.retain(|node_info| {
            node_info.name == self.name || is_held(&lock_path(&self.data, &node_info.name))
        });
        Ok(node_infos)
    }

    fn node_infos(&self) -> Result<Vec<NodeInfo>, NodeError> {
        node_infos(&self.data)
    }

    fn forget(&self, node: &NodeName) -> Result<(), NodeError> {
        // The lock of the name must be taken first. A starting process with this name publishes its
        // description only after it has that lock, so its description cannot be removed here.
        let Some(_name) = lock(&lock_path(&self.data, node))? else {
            return Ok(());
        };
        let node_info = node_info_path(&self.data, node);
        match std::fs::remove_file(&node_info) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &node_info)(error)),
            _ => Ok(()),
        }
    }

    fn watch(&self, node: &NodeName, events: UnboundedSender<Event>) {
        let (path, node) = (lock_path(&self.data, node), node.clone());
        let waiting = std::thread::Builder::new().name(format!("watch {node}"));
        let started = waiting.spawn(move || {
            match regular_file::open_with(OpenOptions::new().read(true), &path)
                .and_then(|file| file.lock_shared())
            {
                // If the lock file is missing, the node does not exist and is reported as gone.
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::error!(%error, path = %path.display(), "cannot watch a node");
                    return;
                }
                _ => {}
            }
            // The send fails if the coordinator's task on this node has stopped. Then the event is
            // not needed.
            let _ = events.send(Event::Gone(node));
        });
        if let Err(error) = started {
            tracing::error!(%error, "cannot start the thread that watches a node");
        }
    }

    fn stand(self: Arc<Self>, events: UnboundedSender<Event>) {
        if self.held().coordinator.is_some() {
            let _ = events.send(Event::Elected);
            return;
        }
        if let Err(error) = self.check() {
            tracing::error!(%error, "cannot stand as coordinator");
            return;
        }
        let path = self.data.join(COORDINATOR);
        let cluster = Arc::downgrade(&self);
        let waiting = std::thread::Builder::new().name("coordinator".to_owned());
        let started = waiting.spawn(move || {
            let file = open_lock(&path);
            match file.and_then(|file| file.lock().map(|()| file)) {
                Ok(file) => {
                    let cluster = cluster.upgrade();
                    let lock = OpenPath { path, file };
                    if cluster.is_some_and(|cluster| cluster.take_coordination(lock)) {
                        let _ = events.send(Event::Elected);
                    }
                }
                Err(error) => tracing::error!(%error, "cannot wait for the lock of the coordinator"),
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "cannot start the thread that waits for the lock of the coordinator");
        }
    }

    fn retire(&self) {
        if let Err(error) = self.check() {
            tracing::debug!(%error, "description of the node not removed");
            return;
        }
        // `alive` lists only nodes with a description. So a retired node is not listed, although it
        // still holds its lock.
        match std::fs::remove_file(self.node_info_path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::debug!(%error, "description of the node not removed");
            }
            _ => {}
        }
    }

    fn withdraw(&self) {
        self.retire();
        let mut held = self.held();
        self.withdrawn.store(true, Ordering::Release);
        *held = Held::default();
    }

    fn secret(&self) -> &str {
        &self.secret
    }
}

impl LocalCluster {
    fn state(&self) -> Result<ClusterState, NodeError> {
        self.folder.check()?;
        read_state(&self.data)?.ok_or_else(|| NodeError::Ring {
            path: self.data.join(STATE),
            reason: "the file is missing".to_owned(),
        })
    }

    fn replace_state(&self, next: &ClusterState) -> Result<(), NodeError> {
        let rejected = |reason: String| NodeError::Ring {
            path: self.data.join(STATE),
            reason,
        };
        // If somebody deletes the coordinator's lock file, two processes can be coordinators. The
        // lock of the folder then lets only one of them replace the state at a time, and the check
        // of the version rejects the second of two replacements by the same version.
        let folder = &self.folder;
        let _one = FolderLock::take(&folder.path)?;
        let held = self.held();
        let Some(coordinator) = &held.coordinator else {
            return Err(rejected("this node is not the coordinator".to_owned()));
        };
        coordinator.check()?;
        let known = self.state()?;
        if next.version != known.version + 1 {
            return Err(rejected(format!(
                "version {} cannot follow version {}",
                next.version, known.version
            )));
        }
        write_state(&self.data, next)
    }

    fn volume_folder(&self, volume: &NodeName) -> PathBuf {
        self.data.join("volumes").join(volume.as_str())
    }
}

/// Runs `work` on a blocking thread, because it may wait for the disk.
fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Soon<'static, T> {
    Box::pin(async {
        let done = runtime::blocking(work).await;
        done.map_err(|error| NodeError::Config {
            setting: "data",
            reason: format!("could not be used: {error}"),
        })?
    })
}

impl Authority for LocalCluster {
    fn read(&self) -> Soon<'_, ClusterState> {
        // The file is small and usually in the page cache, so it is read on this thread.
        Box::pin(std::future::ready(self.state()))
    }

    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()> {
        run_blocking(move || self.replace_state(&next))
    }
}

impl Volumes for LocalCluster {
    fn open(self: Arc<Self>, volume: NodeName, expected: Expected) -> Soon<'static, Option<Volume>> {
        run_blocking(move || {
            self.check()?;
            let folder = self.volume_folder(&volume);
            let opened = match expected {
                Expected::Existing => Volume::open_existing(&folder),
                Expected::MaybeNew => Volume::open(&folder),
            };
            match opened {
                Ok(storage) => Ok(Some(storage)),
                Err(error) if error.is_locked() => Ok(None),
                Err(error) if error.is_missing() => Err(NodeError::VolumeMissing {
                    volume: volume.to_string(),
                    folder,
                }),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        let folder = self.volume_folder(&volume);
        run_blocking(move || {
            self.check()?;
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &folder)(error)),
                _ => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node_info(name: &str) -> NodeInfo {
        NodeInfo {
            name: NodeName::new(name).unwrap(),
            address: "127.0.0.1:4711".parse().unwrap(),
            process: 1,
            started_at_ms: 5,
            weight: 1,
            zone: None,
        }
    }

    #[test]
    fn a_name_is_used_by_one_process_and_free_after_its_end() {
        let data = tempfile::tempdir().unwrap();
        let first = LocalCluster::join(data.path(), "paris").unwrap();
        first.announce(&node_info("paris")).unwrap();
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
    fn a_node_of_a_renamed_data_folder_does_not_touch_the_new_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (data, moved) = (folder.path().join("data"), folder.path().join("moved"));
        let paris = LocalCluster::join(&data, "paris").unwrap();
        paris.announce(&node_info("paris")).unwrap();
        let next = paris
            .state()
            .unwrap()
            .with_nodes(&[NodeName::new("lyon").unwrap()].into())
            .unwrap();
        std::fs::rename(&data, &moved).unwrap();
        let other = LocalCluster::join(&data, "paris").unwrap();
        other.announce(&node_info("paris")).unwrap();
        let files = || {
            ["ring.json", "nodes/paris.json", "secret"].map(|name| std::fs::read(data.join(name)).unwrap())
        };
        let before = files();
        for rejected in [paris.announce(&node_info("paris")), paris.replace_state(&next)] {
            let error = rejected.unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("replaced"), "{error}: {source}");
        }
        assert!(paris.state().is_err());
        paris.retire();
        assert!(files() == before);
        other.replace_state(&next).unwrap();
    }

    #[test]
    fn a_coordinator_without_its_lock_file_cannot_replace_the_state() {
        let data = tempfile::tempdir().unwrap();
        let paris = LocalCluster::join(data.path(), "paris").unwrap();
        let next = paris
            .state()
            .unwrap()
            .with_nodes(&[NodeName::new("lyon").unwrap()].into())
            .unwrap();
        std::fs::remove_file(data.path().join(COORDINATOR)).unwrap();
        let lyon = LocalCluster::join(data.path(), "lyon").unwrap();
        assert!(paris.replace_state(&next).is_err());
        lyon.replace_state(&next).unwrap();
        std::fs::remove_file(lock_path(data.path(), &NodeName::new("paris").unwrap())).unwrap();
        assert!(paris.announce(&node_info("paris")).is_err());
    }

    #[test]
    fn the_kernel_reports_the_end_of_a_node_and_of_the_coordinator() {
        let data = tempfile::tempdir().unwrap();
        let paris = LocalCluster::join(data.path(), "paris").unwrap();
        paris.announce(&node_info("paris")).unwrap();
        let lyon = Arc::new(LocalCluster::join(data.path(), "lyon").unwrap());
        assert_eq!(
            lyon.alive().unwrap().len(),
            1,
            "paris; lyon has not published its description"
        );
        let (events, mut received) = tokio::sync::mpsc::unbounded_channel();
        lyon.watch(&NodeName::new("paris").unwrap(), events.clone());
        Arc::clone(&lyon).stand(events);
        let next = lyon
            .state()
            .unwrap()
            .with_nodes(&[NodeName::new("lyon").unwrap()].into());
        assert!(
            lyon.replace_state(next.as_ref().unwrap()).is_err(),
            "paris coordinates"
        );
        drop(paris);
        let mut events = [
            received.blocking_recv().unwrap(),
            received.blocking_recv().unwrap(),
        ];
        events.sort_by_key(|event| *event != Event::Elected);
        assert_eq!(
            events,
            [Event::Elected, Event::Gone(NodeName::new("paris").unwrap())]
        );
        lyon.replace_state(next.as_ref().unwrap()).unwrap();
        assert!(
            lyon.replace_state(next.as_ref().unwrap()).is_err(),
            "only one of two changes of the same version succeeds"
        );
    }

    #[test]
    fn a_damaged_ring_is_reported_and_left_unchanged() {
        let data = tempfile::tempdir().unwrap();
        drop(LocalCluster::join(data.path(), "paris").unwrap());
        let path = data.path().join("ring.json");
        std::fs::write(&path, b"{\"half\":").unwrap();
        let error = LocalCluster::join(data.path(), "paris").err().unwrap();
        assert!(error.to_string().contains("ring.json"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"half\":");
    }

    #[test]
    fn all_nodes_share_a_secret_that_only_the_owner_can_read() {
        use std::os::unix::fs::PermissionsExt;
        let data = tempfile::tempdir().unwrap();
        let paris = LocalCluster::join(data.path(), "paris").unwrap();
        let lyon = LocalCluster::join(data.path(), "lyon").unwrap();
        assert_eq!(paris.secret(), lyon.secret());
        let mode = std::fs::metadata(data.path().join("secret"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
