//! Tests of leases, takeovers and restored engines: real nodes on the simulated engine, each with
//! chosen faults.
//!
//! Tests with a comment "Detects the mistake" fail if this deliberate mistake is selected
//! (`runtime::seeded`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::time::Instant;

use crate::cluster::engine::EngineCluster;
use crate::cluster::{Authority, Expected, Membership, NodeInfo, Volumes};
use crate::runtime;
use crate::runtime::simulated::Process;
use crate::simulation::world::{FURTHER_ENGINE, Node, World};
use crate::simulation::{NAMES, in_virtual_time};
use crate::storage::fence::SlotOwnership;
use crate::storage::volume::Volume;
use crate::storage::write_batch::WriteBatch;

/// Longest wait for an expected event, after which a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node without requests: a process that beats and looks, and opens volumes for the test.
struct Sole {
    node: Arc<Node>,
    process: Arc<Process>,
    cluster: Arc<EngineCluster>,
}

impl Sole {
    /// Starts a process with this name, and lets it join the cluster.
    async fn start(world: &Arc<World>, name: &'static str) -> Sole {
        let node = world.start(name).unwrap();
        let process = node.process();
        let joining = Arc::clone(&node);
        let cluster = process.spawn(async move { joining.join().await.unwrap() });
        let cluster = Arc::new(cluster.await.unwrap());
        let card = NodeInfo {
            name: node.name.clone(),
            address: node.address(),
            process: node.id as u32,
            started_at_ms: 0,
            weight: 1,
            zone: None,
        };
        cluster.announce(&card).unwrap();
        Sole {
            node,
            process,
            cluster,
        }
    }

    /// Runs a task of the process to its end.
    async fn run<F>(&self, task: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.process.spawn(task).await.unwrap()
    }

    /// Assigns a volume to a node, as the coordinator does. With two engines, the volume is on the
    /// further one. The process of `self` must be the coordinator.
    async fn assign(&self, volume: &NodeName, to: &NodeName) {
        let (cluster, volume, to) = (Arc::clone(&self.cluster), volume.clone(), to.clone());
        self.run(async move {
            let mut next = cluster.read().await.unwrap().renewed();
            if let Some(further) = next.engines.keys().next() {
                next.placed.insert(volume.clone(), further.clone());
            }
            next.since.insert(volume.clone(), next.version);
            next.serving.insert(volume, to);
            cluster.replace(next).await.unwrap();
        })
        .await;
    }

    /// Opens a volume, and repeats the attempt until it succeeds.
    async fn open(&self, volume: &NodeName) -> Volume {
        let (cluster, volume) = (Arc::clone(&self.cluster), volume.clone());
        self.run(async move {
            let until = Instant::now() + PATIENCE;
            loop {
                let opening = Arc::clone(&cluster).open(volume.clone(), Expected::MaybeNew);
                match opening.await {
                    Ok(Some(opened)) => return opened,
                    Ok(None) | Err(_) => assert!(Instant::now() < until, "{volume} is not opened"),
                }
            }
        })
        .await
    }

    /// Tries once to open a volume.
    async fn try_open(&self, volume: &NodeName) -> Option<Volume> {
        let opening = Arc::clone(&self.cluster).open(volume.clone(), Expected::MaybeNew);
        self.run(async move { opening.await.unwrap_or(None) }).await
    }

    /// Tries to open a volume until this node records the reason why that is impossible. Returns
    /// this reason.
    async fn refused(&self, volume: &NodeName) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(self.try_open(volume).await.is_none(), "{volume} was opened");
            if let Some(cause) = self.cluster.complaint_of(volume) {
                return cause;
            }
            assert!(Instant::now() < until, "nothing tells why {volume} is not opened");
        }
    }

    /// Closes a volume, and records in the engine that this node has released it. Tries the release
    /// once: a stalled engine may execute it later.
    async fn close(&self, opened: Volume, volume: &NodeName) {
        let (cluster, volume) = (Arc::clone(&self.cluster), volume.clone());
        self.run(async move {
            let closed = runtime::blocking(move || opened.close()).await;
            closed.unwrap().unwrap();
            let _ = cluster.release(volume).await;
        })
        .await;
    }

    fn stop(&self) {
        self.process.stop();
    }

    fn resume(&self) {
        self.process.resume();
    }

    fn kill(&self) {
        self.process.kill();
    }

    /// Waits until this node may answer reads of a volume.
    async fn leased(&self, volume: &Volume) {
        let until = Instant::now() + PATIENCE;
        while !volume.is_ours() {
            assert!(Instant::now() < until, "{} gets no lease", self.node.name);
            wait_ms(10).await;
        }
    }
}

async fn wait_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

fn volume() -> NodeName {
    NodeName::new("cleo").unwrap()
}

/// Runs a test in virtual time, with two nodes on an engine without faults. The first node, bob, is
/// the coordinator. The second one, ada, serves the volume cleo.
fn with_two_nodes<F: Future<Output = ()>>(test: impl FnOnce(Arc<World>, Sole, Sole, Volume) -> F) {
    on_engines(1, test);
}

/// Runs a test like `with_two_nodes`, with this number of engines. With two engines, the volume is
/// on the further one.
fn on_engines<F: Future<Output = ()>>(
    engines: usize,
    test: impl FnOnce(Arc<World>, Sole, Sole, Volume) -> F,
) {
    in_virtual_time(async {
        let world = World::new(7, &NAMES, false, engines);
        let bob = Sole::start(&world, "bob").await;
        let ada = Sole::start(&world, "ada").await;
        bob.assign(&volume(), &ada.node.name).await;
        let opened = ada.open(&volume()).await;
        ada.leased(&opened).await;
        // Each node looks a few times, so that it knows the beats of the other node.
        wait_ms(500).await;
        test(world, bob, ada, opened).await;
    });
}

/// Asserts for two seconds that a volume of a former server answers no read.
async fn assert_lost(former: &Volume) {
    for _ in 0..400 {
        assert!(!former.is_ours(), "the former server may answer reads");
        wait_ms(5).await;
    }
}

/// Detects the mistake `engine-silence-trusted`.
#[test]
fn a_beat_under_way_while_the_state_changes_extends_no_lease() {
    with_two_nodes(|world, bob, ada, former| async move {
        ada.stop();
        wait_ms(1_240).await;
        // The first beat after the pause begins before the state changes, and is written later.
        world.engines[0].stall_next_of("ada", Duration::from_millis(400));
        ada.resume();
        wait_ms(10).await;
        let changed = Instant::now();
        bob.assign(&volume(), &bob.node.name).await;
        let present = bob.open(&volume()).await;
        let took = changed.elapsed();
        assert!(
            took < Duration::from_millis(300),
            "{took:?}: the silent node was waited for"
        );
        assert!(present.is_ours());
        assert_lost(&former).await;
    });
}

/// Detects the mistake `engine-lease-from-answer`.
#[test]
fn a_beat_that_is_answered_late_extends_the_lease_from_its_sending() {
    with_two_nodes(|world, _, ada, opened| async move {
        let engine = &world.engines[0];
        // The next beat begins within 105 ms, and the engine writes it 800 ms later. The beat after
        // it gets no answer. So the lease ends at most 1,005 ms after this moment.
        engine.stall_next_of("ada", Duration::from_millis(800));
        wait_ms(700).await;
        assert!(opened.is_ours());
        engine.stall_next_of("ada", Duration::from_secs(4));
        wait_ms(310).await;
        for _ in 0..130 {
            assert!(!opened.is_ours(), "the lease is counted from the answer");
            wait_ms(5).await;
        }
        // The connection without an answer is given up, and a later beat extends the lease again.
        ada.leased(&opened).await;
    });
}

/// Detects the mistake `engine-conflict-not-repeated`.
#[test]
fn a_replacement_of_the_state_that_conflicts_is_repeated() {
    with_two_nodes(|world, bob, _ada, _former| async move {
        let engine = &world.engines[0];
        let before = engine.cluster().unwrap().state.version;
        engine.conflict_next(3);
        bob.assign(&volume(), &bob.node.name).await;
        let after = engine.cluster().unwrap().state;
        assert_eq!(after.version, before + 1, "the replacement is made once");
        assert_eq!(after.serving.get(&volume()), Some(&bob.node.name));
    });
}

/// Detects the mistake `engine-lease-not-awaited`.
#[test]
fn a_node_that_beats_again_is_waited_for() {
    with_two_nodes(|_, bob, ada, former| async move {
        ada.stop();
        wait_ms(1_240).await;
        ada.resume();
        wait_ms(150).await;
        assert!(
            former.is_ours(),
            "the beat after the pause has extended the lease"
        );
        let changed = Instant::now();
        // The node is stopped at once, so that it does not learn of the new state.
        ada.stop();
        bob.assign(&volume(), &bob.node.name).await;
        let _present = bob.open(&volume()).await;
        let took = changed.elapsed();
        assert!(took > Duration::from_millis(900), "{took:?}");
        assert!(!former.is_ours());
        ada.resume();
        assert_lost(&former).await;
    });
}

/// Detects the mistake `engine-owner-not-confirmed`.
#[test]
fn the_owner_that_an_old_primary_shows_is_not_trusted() {
    // In some of these runs, the old primary ends between two statements of the takeover.
    for end_ms in 0..60 {
        with_two_nodes(|world, bob, ada, former| async move {
            let engine = Arc::clone(&world.engines[0]);
            // All servers show bob as the owner.
            bob.assign(&volume(), &bob.node.name).await;
            ada.close(former, &volume()).await;
            let opened = bob.open(&volume()).await;
            // The old primary, which bob tries first, goes on without standbys. So it does not show
            // that ada takes the volume over.
            let failing = Arc::clone(&engine);
            let failing = tokio::spawn(async move { failing.fail_over_within(true, 100, 60_000).await });
            wait_ms(2_000).await;
            bob.assign(&volume(), &ada.node.name).await;
            bob.close(opened, &volume()).await;
            let former = ada.open(&volume()).await;
            ada.leased(&former).await;
            bob.assign(&volume(), &bob.node.name).await;
            ada.stop();
            tokio::spawn(async move {
                wait_ms(end_ms).await;
                engine.end_server(0);
            });
            let _present = bob.open(&volume()).await;
            assert!(!former.is_ours(), "the former server may answer reads");
            ada.resume();
            assert_lost(&former).await;
            failing.abort();
        });
    }
}

#[test]
fn a_volume_is_taken_over_beside_an_old_primary() {
    with_two_nodes(|world, bob, ada, former| async move {
        // The old primary, which bob tries first, goes on without standbys.
        let engine = Arc::clone(&world.engines[0]);
        let failing = tokio::spawn(async move { engine.fail_over_within(true, 100, 60_000).await });
        wait_ms(3_000).await;
        ada.kill();
        bob.assign(&volume(), &bob.node.name).await;
        let started = Instant::now();
        let present = bob.open(&volume()).await;
        let took = started.elapsed();
        assert!(took < Duration::from_secs(8), "{took:?}");
        assert!(present.is_ours() && !former.is_ours());
        failing.abort();
    });
}

/// Detects the mistake `engine-late-release`.
#[test]
fn a_late_release_of_an_earlier_opening_has_no_effect() {
    with_two_nodes(|world, bob, ada, former| async move {
        bob.assign(&volume(), &bob.node.name).await;
        // The release waits in the engine until ada has opened the volume again.
        world.engines[0].stall_next_of(volume().as_str(), Duration::from_millis(3_000));
        ada.close(former, &volume()).await;
        bob.assign(&volume(), &ada.node.name).await;
        let former = ada.open(&volume()).await;
        ada.leased(&former).await;
        wait_ms(4_000).await;
        ada.stop();
        bob.assign(&volume(), &bob.node.name).await;
        let _present = bob.open(&volume()).await;
        assert!(!former.is_ours(), "the former server may answer reads");
        ada.resume();
        assert_lost(&former).await;
    });
}

#[test]
fn a_volume_that_is_later_than_a_restored_first_engine_stays_closed_with_an_error() {
    on_engines(2, |world, bob, ada, former| async move {
        let backups = [0, 1].map(|at| world.engines[at].backup());
        bob.assign(&volume(), &bob.node.name).await;
        ada.close(former, &volume()).await;
        let later = bob.open(&volume()).await;
        bob.close(later, &volume()).await;
        world.engines[0].restore(backups[0]);
        let cause = ada.refused(&volume()).await;
        for part in [
            "its log has the epoch",
            FURTHER_ENGINE,
            "postgres://imt@simulated/shop",
        ] {
            assert!(cause.contains(part), "{part}: {cause}");
        }
        assert_eq!(ada.refused(&volume()).await, cause, "the cause is the same");
        // The volume is opened once both engines have the data of one time.
        world.engines[1].restore(backups[1]);
        let present = ada.open(&volume()).await;
        ada.leased(&present).await;
        assert_eq!(ada.cluster.complaint_of(&volume()), None);
    });
}

#[test]
fn a_volume_of_an_older_first_engine_opens_if_it_was_not_taken_over_since() {
    on_engines(2, |world, bob, ada, former| async move {
        let backup = world.engines[0].backup();
        bob.assign(&NodeName::new("dora").unwrap(), &bob.node.name).await;
        ada.close(former, &volume()).await;
        world.engines[0].restore(backup);
        let present = ada.open(&volume()).await;
        ada.leased(&present).await;
        assert_eq!(ada.cluster.complaint_of(&volume()), None);
    });
}

#[test]
fn a_volume_with_slots_of_a_later_ring_stays_closed_with_an_error() {
    on_engines(2, |_, _, ada, former| async move {
        let former = ada
            .run(async move {
                let mut batch = WriteBatch::default();
                batch.set_ownership(SlotOwnership(vec![0, 99, 1]));
                let ticket = former.permit().await.unwrap().send(batch);
                ticket.durable().await.unwrap();
                former
            })
            .await;
        ada.close(former, &volume()).await;
        let cause = ada.refused(&volume()).await;
        assert!(cause.contains("from a ring of epoch 99"), "{cause}");
        assert!(cause.contains(FURTHER_ENGINE), "{cause}");
    });
}

#[test]
fn the_wait_for_a_lease_ends_with_the_assignment_of_the_volume() {
    with_two_nodes(|_, bob, ada, former| async move {
        bob.assign(&volume(), &bob.node.name).await;
        assert!(bob.try_open(&volume()).await.is_none(), "ada has a lease");
        assert_eq!(bob.cluster.waiting_for_leases(), 1);
        bob.assign(&volume(), &ada.node.name).await;
        let cluster = Arc::clone(&bob.cluster);
        bob.run(async move {
            // The reconciler reads the state, and then sets the volumes to follow.
            cluster.read().await.unwrap();
            cluster.follow(BTreeMap::new()).await.unwrap();
        })
        .await;
        assert_eq!(bob.cluster.waiting_for_leases(), 0);
        drop(former);
    });
}
