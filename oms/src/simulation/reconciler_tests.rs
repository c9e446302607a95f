//! Tests of the reconciler: real nodes in virtual time, with chosen faults of single volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use imt_ring::NodeName;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::cluster::{
    Authority, ClusterState, Event, Expected, Membership, NodeInfo, Soon, VolumeLog, Volumes,
};
use crate::control::handle::ClusterHandle;
use crate::error::{NodeError, StorageError};
use crate::runtime::watch;
use crate::simulation::warehouse::WarehouseModel;
use crate::simulation::world::{Node, World};
use crate::simulation::{NAMES, faults, in_virtual_time, invariants};
use crate::storage::volume::Volume;
use crate::volume::migration::source::ExportRequest;
use crate::volume::server::MigrationError;

/// Longest wait for an expected event in virtual time, after which a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum time for the stop of a node with a step that does not end: twice the wait for a step,
/// and the wait for the writers of a volume that is closed (`Reconciler::run`).
const STOP_MAX: Duration = Duration::from_secs(16);

/// The faults of a node's volumes, and a record of the calls.
#[derive(Default)]
struct Faults {
    /// Volumes that cannot be opened.
    unopenable: Mutex<BTreeSet<NodeName>>,
    failed_openings: AtomicU32,
    /// Volumes with openings that do not end before `go`. The volume is open by then.
    held: Mutex<BTreeSet<NodeName>>,
    go: Notify,
    /// Number of openings that have waited for `go`.
    held_openings: AtomicU32,
    /// Number of releases and of removals that still fail.
    failing_releases: AtomicU32,
    failing_removals: AtomicU32,
    released: Mutex<Vec<NodeName>>,
    removals: AtomicU32,
    follows: AtomicU32,
}

fn fault() -> NodeError {
    StorageError::Busy.into()
}

/// Decrements a number of failures that are left. Returns `false` if none is left.
fn fails(left: &AtomicU32) -> bool {
    let decremented = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    decremented.is_ok()
}

/// A node without an engine, with faults of its volumes.
struct FaultyNode {
    node: Arc<Node>,
    faults: Arc<Faults>,
}

impl Membership for FaultyNode {
    fn name(&self) -> &NodeName {
        self.node.name()
    }

    fn announce(&self, node_info: &NodeInfo) -> Result<(), NodeError> {
        self.node.announce(node_info)
    }

    fn alive(&self) -> Result<Vec<NodeInfo>, NodeError> {
        self.node.alive()
    }

    fn node_infos(&self) -> Result<Vec<NodeInfo>, NodeError> {
        self.node.node_infos()
    }

    fn forget(&self, node: &NodeName) -> Result<(), NodeError> {
        self.node.forget(node)
    }

    fn watch(&self, node: &NodeName, events: UnboundedSender<Event>) {
        self.node.watch(node, events);
    }

    fn stand(self: Arc<Self>, events: UnboundedSender<Event>) {
        Arc::clone(&self.node).stand(events);
    }

    fn retire(&self) {
        self.node.retire();
    }

    fn withdraw(&self) {
        self.node.withdraw();
    }

    fn secret(&self) -> &str {
        self.node.secret()
    }
}

impl Authority for FaultyNode {
    fn read(&self) -> Soon<'_, ClusterState> {
        self.node.read()
    }

    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()> {
        Arc::clone(&self.node).replace(next)
    }
}

impl Volumes for FaultyNode {
    fn open(self: Arc<Self>, volume: NodeName, expected: Expected) -> Soon<'static, Option<Volume>> {
        if self.faults.unopenable.lock().contains(&volume) {
            self.faults.failed_openings.fetch_add(1, Ordering::Relaxed);
            return Box::pin(std::future::ready(Err(fault())));
        }
        let is_held = self.faults.held.lock().contains(&volume);
        let opening = Arc::clone(&self.node).open(volume, expected);
        Box::pin(async move {
            let opened = opening.await?;
            if is_held && opened.is_some() {
                self.faults.held_openings.fetch_add(1, Ordering::Relaxed);
                self.faults.go.notified().await;
            }
            Ok(opened)
        })
    }

    fn release(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        if fails(&self.faults.failing_releases) {
            return Box::pin(std::future::ready(Err(fault())));
        }
        self.faults.released.lock().push(volume);
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        if fails(&self.faults.failing_removals) {
            return Box::pin(std::future::ready(Err(fault())));
        }
        // The removal takes longer than a pass waits for it.
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Arc::clone(&self.node).remove(volume).await?;
            self.faults.removals.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }

    fn follow(self: Arc<Self>, _volumes: BTreeMap<NodeName, VolumeLog>) -> Soon<'static, ()> {
        self.faults.follows.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Nodes without an engine and without faults, except for those of `Faults`.
struct Shop {
    world: Arc<World>,
    warehouse: Arc<WarehouseModel>,
    stops: faults::Stops,
}

impl Shop {
    fn new() -> Shop {
        let world = World::new(7, &NAMES, false, 0);
        Shop {
            warehouse: WarehouseModel::without_faults(&world),
            stops: Arc::new(watch::Sender::new(None)),
            world,
        }
    }

    /// Starts a node, and waits until every running node serves its own settled volume. `count` is
    /// the number of running nodes afterwards.
    async fn start(&self, name: &'static str, count: usize) -> Arc<Faults> {
        let faults = self.begin(name);
        let is_member = || {
            let state = self.world.state();
            state.is_some_and(|state| state.ring.members().len() == count)
        };
        until("the node is a member", || {
            is_member() && invariants::is_settled(&self.world)
        })
        .await;
        faults
    }

    /// Starts a node.
    fn begin(&self, name: &'static str) -> Arc<Faults> {
        let node = self.world.start(name).unwrap();
        let faults = Arc::new(Faults::default());
        let backend = Arc::new(FaultyNode {
            node: Arc::clone(&node),
            faults: Arc::clone(&faults),
        });
        let (world, warehouse) = (Arc::clone(&self.world), Arc::clone(&self.warehouse));
        let stops = self.stops.subscribe();
        let process = node.process();
        process.spawn(async move {
            faults::serve(&world, &warehouse, &node, backend, name, stops).await;
        });
        faults
    }

    /// Returns the handle of the running node with this name.
    fn cluster(&self, name: &str) -> Arc<ClusterHandle> {
        let (id, _) = self.world.running(name).unwrap();
        self.world.inside().incarnations[id].cluster.clone().unwrap()
    }

    /// Returns `true` if a running node has published a server of this volume.
    fn serves(&self, node: &str, served: &str) -> bool {
        let Some((id, _)) = self.world.running(node) else {
            return false;
        };
        let cluster = self.world.inside().incarnations[id].cluster.clone();
        cluster.is_some_and(|cluster| cluster.topology().servers.contains_key(&volume(served)))
    }

    /// Returns the nodes that serve volumes, by volume, in the cluster's state.
    fn serving(&self) -> BTreeMap<NodeName, NodeName> {
        self.world
            .state()
            .map_or_else(BTreeMap::new, |state| state.serving)
    }

    fn kill(&self, name: &str) {
        let (_, process) = self.world.running(name).unwrap();
        process.kill();
    }
}

async fn until(event: &str, mut has_happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !has_happened() {
        assert!(Instant::now() < deadline, "this did not happen: {event}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn volume(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

#[test]
fn a_step_that_does_not_end_delays_neither_other_volumes_nor_the_stop() {
    in_virtual_time(async {
        let shop = Shop::new();
        shop.start("ada", 1).await;
        shop.start("bob", 2).await;
        let cluster = shop.cluster("ada");
        let server = Arc::clone(&cluster.topology().servers[&volume("ada")]);
        // A page of a migration holds this lock until its commit is durable, and each step of the
        // reconciler on the volume waits for the lock. An engine that is away never ends the wait.
        let page = server.incoming.lock().await;
        shop.kill("bob");
        until("ada takes the volume of bob over", || {
            cluster.topology().servers.contains_key(&volume("bob"))
        })
        .await;
        let begun = Instant::now();
        shop.stops.send_replace(Some("ada"));
        until("ada has stopped", || shop.world.running("ada").is_none()).await;
        assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
        drop(page);
        shop.world.end();
    });
}

#[test]
fn a_late_step_is_taken_up_when_it_ends() {
    in_virtual_time(async {
        let shop = Shop::new();
        shop.start("ada", 1).await;
        shop.start("bob", 2).await;
        let cluster = shop.cluster("ada");
        let server = Arc::clone(&cluster.topology().servers[&volume("ada")]);
        let page = server.incoming.lock().await;
        shop.kill("bob");
        until("ada takes the volume of bob over", || {
            cluster.topology().servers.contains_key(&volume("bob"))
        })
        .await;
        drop(page);
        // A move of slots begins only after each volume has applied the earlier state.
        shop.start("cleo", 3).await;
        shop.stops.send_replace(Some("ada"));
        until("ada has stopped", || shop.world.running("ada").is_none()).await;
        shop.world.end();
    });
}

/// Returns the two nodes ada and bob, and the faults of ada. Bob is dead, and ada has opened the
/// volume of bob in an opening that has not ended.
async fn with_held_opening() -> (Shop, Arc<Faults>) {
    let shop = Shop::new();
    let ada = shop.start("ada", 1).await;
    shop.start("bob", 2).await;
    ada.held.lock().insert(volume("bob"));
    shop.kill("bob");
    until("ada opens the volume of bob", || {
        ada.held_openings.load(Ordering::Relaxed) == 1
    })
    .await;
    (shop, ada)
}

#[test]
fn an_opening_that_does_not_end_delays_neither_other_volumes_nor_the_stop() {
    in_virtual_time(async {
        let shop = Shop::new();
        let ada = shop.start("ada", 1).await;
        shop.start("bob", 2).await;
        shop.start("cleo", 3).await;
        ada.held.lock().insert(volume("bob"));
        let cluster = shop.cluster("ada");
        shop.kill("bob");
        shop.kill("cleo");
        until("ada takes the volume of cleo over", || {
            let is_held = ada.held_openings.load(Ordering::Relaxed) == 1;
            is_held && cluster.topology().servers.contains_key(&volume("cleo"))
        })
        .await;
        let begun = Instant::now();
        shop.stops.send_replace(Some("ada"));
        until("ada has stopped", || shop.world.running("ada").is_none()).await;
        assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
        shop.world.end();
    });
}

#[test]
fn an_opened_volume_that_is_not_wanted_any_more_is_closed_and_released() {
    in_virtual_time(async {
        let (shop, ada) = with_held_opening().await;
        shop.begin("bob");
        until("the state gives the volume back to bob", || {
            shop.serving().get(&volume("bob")) == Some(&volume("bob"))
        })
        .await;
        ada.go.notify_one();
        until("bob serves its volume", || shop.serves("bob", "bob")).await;
        assert_eq!(*ada.released.lock(), [volume("bob")]);
        assert!(!shop.serves("ada", "bob"));
        shop.world.end();
    });
}

#[test]
fn a_stop_closes_and_releases_a_volume_that_was_just_opened() {
    in_virtual_time(async {
        let (shop, ada) = with_held_opening().await;
        shop.stops.send_replace(Some("ada"));
        ada.go.notify_one();
        until("ada has stopped", || shop.world.running("ada").is_none()).await;
        let released: BTreeSet<NodeName> = ada.released.lock().iter().cloned().collect();
        assert_eq!(released, [volume("ada"), volume("bob")].into());
        shop.world.end();
    });
}

#[test]
fn a_volume_that_cannot_be_opened_does_not_keep_a_node_from_following_others() {
    in_virtual_time(async {
        let shop = Shop::new();
        let mut nodes = Vec::new();
        for (at, name) in ["ada", "cleo", "bob"].into_iter().enumerate() {
            nodes.push(shop.start(name, at + 1).await);
        }
        for faults in &nodes {
            faults.unopenable.lock().insert(volume("bob"));
        }
        shop.kill("bob");
        let failing = |faults: &&Arc<Faults>| faults.failed_openings.load(Ordering::Relaxed) > 0;
        until("a node fails to open the volume of bob", || {
            nodes.iter().any(|faults| failing(&faults))
        })
        .await;
        let faults = nodes.iter().find(failing).unwrap();
        let follows = || faults.follows.load(Ordering::Relaxed);
        let before = follows();
        until("the node follows volumes", || follows() > before).await;
        shop.world.end();
    });
}

#[test]
fn a_release_and_a_removal_are_repeated() {
    in_virtual_time(async {
        let shop = Shop::new();
        shop.start("ada", 1).await;
        let bob = shop.start("bob", 2).await;
        bob.failing_releases.store(2, Ordering::Relaxed);
        bob.failing_removals.store(1, Ordering::Relaxed);
        faults::ask_all(&shop.world, "/peer/leave/bob").await;
        until("the volume of bob is removed", || {
            bob.removals.load(Ordering::Relaxed) == 1
        })
        .await;
        assert_eq!(bob.failing_releases.load(Ordering::Relaxed), 0);
        until("bob has left", || shop.world.running("bob").is_none()).await;
        shop.world.end();
    });
}

/// Both migrations have ended, so the end of each request removes the seals again.
#[test]
fn a_seal_is_refused_while_slots_are_sealed_for_another_migration() {
    in_virtual_time(async {
        let shop = Shop::new();
        shop.start("ada", 1).await;
        let cluster = shop.cluster("ada");
        let server = Arc::clone(&cluster.topology().servers[&volume("ada")]);
        let request = |id| ExportRequest {
            id,
            to: volume("bob"),
            slots: vec![(0, 99)],
            page: 0,
            seal: true,
        };
        let (sealing, authority, first) = (Arc::clone(&server), Arc::clone(&cluster.authority), request(1));
        let former = tokio::spawn(async move { sealing.seal(&authority, &first).await });
        let slots = &server.app.state().slots;
        while slots.sealed_for() != Some(1) {
            assert!(!former.is_finished(), "the slots were never sealed");
            tokio::task::yield_now().await;
        }
        let next = server.seal(&cluster.authority, &request(2)).await;
        assert!(
            matches!(next, Err(MigrationError::Storage(StorageError::Busy))),
            "{next:?}"
        );
        assert!(matches!(former.await.unwrap(), Err(MigrationError::Over)));
        let next = server.seal(&cluster.authority, &request(2)).await;
        assert!(matches!(next, Err(MigrationError::Over)), "{next:?}");
        assert_eq!(slots.sealed_for(), None);
        shop.world.end();
    });
}
