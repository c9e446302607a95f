//! The faults of a run. Nodes die at any wait, stop and resume, join and leave. Clocks jump, the
//! disk fills up, messages are lost, the warehouse gets another address, and engines fail.
//!
//! **Invariants**
//! - Every fault is drawn from the seed of the run.
//! - After `heal`, every node has been started, and this module causes no fault until the first
//!   audit has ended. The audit needs both.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};

use crate::cluster::peer_client::{Peers, SECRET as SECRET_HEADER};
use crate::cluster::{Authority, Membership, NodeInfo, Volumes};
use crate::config::{NodeConfig, NodeContext};
use crate::control::member::Member;
use crate::runtime::clock::Clock;
use crate::runtime::metrics::Metrics;
use crate::runtime::simulated::{Dice, Process};
use crate::runtime::watch;
use crate::simulation::disk::Room;
use crate::simulation::engine::SimEngine;
use crate::simulation::warehouse::{Caller, WarehouseModel};
use crate::simulation::world::{Node, SECRET, VirtualClock, World};
use crate::simulation::{NAMES, invariants, net};
use crate::storage::write_batch::WriteBatch;
use crate::volume::server::VolumeServer;

/// Time after which a stopped process loses its lease, in runs with leases.
const LEASE: Duration = Duration::from_millis(1_200);

/// Channel with the name of the node that must stop gracefully.
pub(super) type Stops = Arc<watch::Sender<Option<&'static str>>>;

/// Starts a node unless it is running. Behind an engine, a second process is started beside a
/// stopped one.
pub(super) fn start(world: &Arc<World>, warehouse: &Arc<WarehouseModel>, stops: &Stops, name: &'static str) {
    let Some(node) = world.start(name) else { return };
    let process = node.process();
    let (world, warehouse, stops) = (Arc::clone(world), Arc::clone(warehouse), stops.subscribe());
    process.spawn(async move {
        if !world.has_engine() {
            serve(&world, &warehouse, &node, Arc::clone(&node), name, stops).await;
            return;
        }
        match node.join().await {
            Ok(cluster) => {
                let cluster = Arc::new(cluster);
                serve(&world, &warehouse, &node, Arc::clone(&cluster), name, stops).await;
                cluster.farewell().await;
            }
            Err(error) => world.note(|| format!("{name} cannot join: {error}")),
        }
        node.exit();
    });
}

/// Runs a node until it has stopped. `backend` is its access to the cluster.
pub(super) async fn serve<C>(
    world: &Arc<World>,
    warehouse: &Arc<WarehouseModel>,
    node: &Arc<Node>,
    backend: Arc<C>,
    name: &'static str,
    stops: watch::Receiver<Option<&'static str>>,
) where
    C: Membership + Authority + Volumes + 'static,
{
    let node_info = NodeInfo {
        name: node.name.clone(),
        address: node.address(),
        process: node.id as u32,
        started_at_ms: world.now_ms(name),
        weight: 1,
        zone: None,
    };
    let _ = backend.announce(&node_info);
    let net = net::Net {
        world: Arc::clone(world),
        from: name.to_owned(),
    };
    let peers = Peers::new(net.clone(), net, SECRET, Arc::default());
    let mut config = NodeConfig::new(name, "/nowhere");
    config.payment_timeout = Duration::from_secs(24 * 60 * 60);
    config.stat_scan_every = Duration::ZERO;
    config.allotments = world.has_allotments;
    // The breaker opens after few failures, and probes are rare. So if failing messages delayed
    // other messages, the delay would exceed the time that the audit allows.
    config.outbox.breaker_failures = 4;
    config.outbox.tries_max = 12;
    config.outbox.probe_max_ms = 10_000;
    let context = NodeContext {
        config,
        wms: Arc::new(Caller::new(warehouse, name)),
        metrics: Arc::new(Metrics::default()),
        clock: Clock::Virtual(VirtualClock {
            world: Arc::downgrade(world),
            name,
        }),
    };
    match Member::begin(Arc::clone(&backend), peers, context).await {
        Ok(member) => {
            node.listen(member.cluster());
            run(world, name, member, stops).await;
        }
        Err(error) => {
            world.note(|| format!("{name} cannot begin: {error}"));
            backend.withdraw();
        }
    }
}

async fn run(
    world: &Arc<World>,
    name: &'static str,
    member: Member,
    mut stops: watch::Receiver<Option<&'static str>>,
) {
    let mut asked = member.cluster().asked_to_stop.subscribe();
    match member.admitted().await {
        Ok(()) => {
            world.note(|| format!("{name} is admitted"));
            tokio::select! {
                biased;
                _ = stops.wait_for(|stops| *stops == Some(name)) => {}
                _ = asked.wait_for(|asked| *asked) => {}
            }
            world.note(|| format!("{name} stops"));
            member.hand_over().await;
        }
        Err(error) => world.note(|| format!("{name} is not admitted: {error}")),
    }
    member.begin_to_stop();
    let ended = member.end().await;
    world.note(|| format!("{name} has stopped: {}", ended.is_ok()));
}

/// Resumes a stopped process after the time `wait`. A process that has lost its lease during the
/// stop continues for up to a second, and is then killed.
async fn stopped(world: Arc<World>, name: &str, id: usize, process: Arc<Process>, wait: Duration) {
    if world.has_leases && wait > LEASE {
        tokio::time::sleep(LEASE).await;
        world.expire(id);
        tokio::time::sleep(wait - LEASE).await;
    } else {
        tokio::time::sleep(wait).await;
    }
    world.note(|| format!("{name} resumes"));
    process.resume();
    if !world.has_engine() {
        world.elect();
    }
    if process.is_fenced() {
        let wait_ms = world.dice.between(0, 1_000);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        process.kill();
    }
}

/// Sends a request of an operator to all members, and waits at most a second for each answer.
pub(super) async fn ask_all(world: &Arc<World>, path: &str) {
    let addresses: Vec<_> = {
        let inside = world.inside();
        inside
            .incarnations
            .iter()
            .filter(|one| one.is_member)
            .map(|one| one.address)
            .collect()
    };
    for address in addresses {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(SECRET_HEADER, SECRET)
            .body(Body::empty());
        if let Ok(request) = request {
            let call = net::carry(world, "operator", address, request);
            let _ = tokio::time::timeout(Duration::from_secs(1), call).await;
        }
    }
}

/// Draws the deviation of a clock from the right time: up to 20 seconds, or ten minutes to two
/// hours. If a wait depended on the wall clock, a step of more than 20 minutes could make the wait
/// longer than the time for which the audit repeats its checks.
fn skew_ms(dice: &Dice) -> i64 {
    match dice.between(0, 3) {
        0 => dice.between(600_000, 7_200_000) as i64,
        1 => -(dice.between(600_000, 7_200_000) as i64),
        _ => dice.between(0, 40_000) as i64 - 20_000,
    }
}

/// Fills the disk for the time `time_ms`.
async fn fill_disk(world: &World, room: Room, time_ms: u64) {
    world.note(|| format!("the disk is full: {room:?}"));
    world.count("full disks");
    world.disk.set_room(room);
    tokio::time::sleep(Duration::from_millis(time_ms)).await;
    world.disk.set_room(Room::Plenty);
}

/// Fills the disk as soon as a volume has sealed slots. The steps of a migration from the seal on
/// are short, and each of them commits. Does nothing if no slots are sealed until the time `until`.
async fn fill_disk_at_seal(world: Arc<World>, room: Room, time_ms: u64, until: tokio::time::Instant) {
    while tokio::time::Instant::now() < until {
        if invariants::some_sealed(&world) {
            world.count("disks full during a seal");
            fill_disk(&world, room, time_ms).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Causes random faults until the time `until`.
pub(super) async fn cause_faults(
    world: &Arc<World>,
    warehouse: &Arc<WarehouseModel>,
    stops: &Stops,
    until: tokio::time::Instant,
) {
    let dice = &world.dice;
    while tokio::time::Instant::now() < until {
        let wait_ms = dice.between(20, 900);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        invariants::check_now(world);
        let name = NAMES[dice.between(0, NAMES.len() as u64 - 1) as usize];
        let running = world.running(name);
        match (dice.between(0, 19), running) {
            (0..=5, Some((_, process))) => {
                let polls = dice.between(0, 400);
                world.note(|| format!("{name} will die in {polls} polls"));
                process.kill_after(polls);
            }
            (6..=8, Some((id, process))) => {
                world.note(|| format!("{name} is stopped"));
                world.count("stops");
                process.stop();
                let wait_ms = dice.between(10, 4_000);
                tokio::spawn(stopped(
                    Arc::clone(world),
                    name,
                    id,
                    process,
                    Duration::from_millis(wait_ms),
                ));
            }
            (9..=10, Some(_)) => {
                world.count("graceful stops");
                stops.send_replace(Some(name));
            }
            (11, Some(_)) => {
                world.note(|| format!("{name} is asked to leave"));
                world.count("leaves");
                ask_all(world, &format!("/peer/leave/{name}")).await;
            }
            (12, _) => {
                let skew_ms = skew_ms(dice);
                world.note(|| format!("the clock of {name} jumps to {skew_ms}"));
                world.set_clock(name, skew_ms);
            }
            (13, _) => {
                let room = match dice.between(0, 3) {
                    0 => Room::Full,
                    _ => Room::FullForOverwrites,
                };
                let time_ms = dice.between(10, 500);
                if dice.between(0, 1) == 0 {
                    fill_disk(world, room, time_ms).await;
                } else {
                    tokio::spawn(fill_disk_at_seal(Arc::clone(world), room, time_ms, until));
                }
            }
            (15, Some(_)) => {
                let warehouse = format!("http://warehouse:{}", dice.between(1, 3));
                world.note(|| format!("the warehouse moves to {warehouse}"));
                ask_all(world, &format!("/peer/warehouse?{warehouse}")).await;
            }
            (16..=19, Some((_, process))) if world.has_engine() && process.is_stopped() => {
                world.count("second processes");
                start(world, warehouse, stops, name);
            }
            (14, _) => world.loss.store(dice.between(0, 150), Ordering::Relaxed),
            (_, None) => start(world, warehouse, stops, name),
            _ => {}
        }
    }
}

/// Causes random faults of the engine until the time `until`, and then ends all of them. Messages
/// are lost and single statements stalled only if `loses` is `true`.
pub(super) async fn cause_engine_faults(engine: Arc<SimEngine>, until: tokio::time::Instant, loses: bool) {
    let dice = engine.dice().clone();
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(dice.between(50, 1_500))).await;
        match dice.between(0, 9) {
            0 => engine.fail_over(false).await,
            1 => engine.fail_over(true).await,
            2 => engine.restart_primary(),
            3 => engine.pause_standbys(true),
            4 => engine.cancel_waits(),
            5 if loses => engine.set_faults(dice.between(0, 100), dice.between(0, 20)),
            _ => engine.pause_standbys(false),
        }
    }
    engine.set_faults(0, 0);
    engine.pause_standbys(false);
}

/// Returns `true` if a volume can commit an empty batch within a second.
async fn can_commit(server: &VolumeServer) -> bool {
    let storage = &server.app.state().storage;
    let commit = async {
        let permit = storage.permit().await?;
        permit.send(WriteBatch::default()).durable().await
    };
    let committed = tokio::time::timeout(Duration::from_secs(1), commit).await;
    matches!(committed, Ok(Ok(())))
}

/// Ends all faults of nodes, clocks, disk and network. Then kills the processes with a failed
/// volume, and starts all nodes that do not run.
pub(super) async fn heal(world: &Arc<World>, warehouse: &Arc<WarehouseModel>, stops: &Stops) {
    world.loss.store(0, Ordering::Relaxed);
    world.disk.set_room(Room::Plenty);
    stops.send_replace(None);
    for name in NAMES {
        world.set_clock(name, 0);
        if let Some((_, process)) = world.running(name) {
            process.resume();
            process.kill_after(u64::MAX);
        }
    }
    // Processes that have lost their lease die during this wait.
    tokio::time::sleep(Duration::from_secs(6)).await;
    if !world.has_engine() {
        world.elect();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    // After a failed commit, a volume can be unable to write until it is opened again. Then its
    // process is killed, and its node is started again. A volume that can write again continues.
    let failed: Vec<_> = {
        let inside = world.inside();
        let clusters = inside
            .incarnations
            .iter()
            .filter_map(|one| Some((Arc::clone(&one.process), one.cluster.clone()?)));
        clusters.collect()
    };
    for (process, cluster) in failed {
        let servers: Vec<_> = cluster.topology().servers.values().cloned().collect();
        for server in servers {
            if server.app.state().storage.has_failed() && !can_commit(&server).await {
                process.kill();
            }
        }
    }
    for _ in 0..30 {
        for name in NAMES {
            start(world, warehouse, stops, name);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
