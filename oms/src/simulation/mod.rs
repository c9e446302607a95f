//! A simulation of a cluster: several real nodes in one thread and in virtual time, with faults
//! drawn from a seed.
//!
//! - **Real**: routing, API handlers, transactors, stock, outbox, dispatcher, storage over microdb,
//!   reconciler, coordinator, migrations, settlements.
//! - **Simulated**: membership and the cluster's state (`world`), the disk below microdb (`disk`),
//!   calls between nodes (`net`), the warehouse, and the clocks. Threads are replaced by tasks
//!   (`runtime`).
//! - In some runs one or two simulated engines hold the cluster's state, the rows of the nodes and
//!   the logs of the volumes (`engine`). Then beats, looks, leases and takeovers are real too
//!   (`cluster::engine`).
//! - **Deliberately absent**: HTTP, sockets and real files, power cuts (tested by microdb),
//!   statistics files.
//!
//! In runs with customers, the audit compares their answers with the final state. In runs with
//! clients, their histories are checked for linearizability. Both kinds of runs compare the rows,
//! counters and messages of the volumes repeatedly (`invariants`). In a third kind, only the engine
//! and single calls of the warehouse have faults, and no volume may change its node.
//!
//! **Invariant**: the same seed gives the same trace. `IMT_SIM_SEED=N` runs one seed and prints its
//! trace, `IMT_SIM_SEEDS=N` sets the number of seeds, and `IMT_SIM_FIRST=N` sets the first seed.

mod audit;
mod clients;
mod customers;
mod disk;
pub(crate) mod engine;
mod engine_client;
mod engine_decision_tests;
mod engine_lease_tests;
mod engine_log;
mod engine_membership;
mod engine_server;
mod engine_tables;
mod engine_tests;
mod faults;
mod first_store;
mod history;
mod invariants;
mod leases;
mod loans;
mod net;
mod reconciler_tests;
mod warehouse;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::runtime::watch;
use crate::simulation::customers::CustomerRecords;
use crate::simulation::warehouse::WarehouseModel;
use crate::simulation::world::World;

/// The names of the nodes.
pub(crate) const NAMES: [&str; 4] = ["ada", "bob", "cleo", "dan"];

/// Seeds beyond the first hundred that once found a defect. After changes of the code these seeds
/// give other runs, so each defect also has a separate test.
const SEEDS_WITH_PAST_DEFECTS: [u64; 14] = [
    145, 159, 270, 307, 311, 428, 453, 465, 526, 544, 560, 598, 615, 700,
];

/// The result of a run.
struct Outcome {
    hash: u64,
    count: u64,
    /// Number of occurrences by kind of event.
    counts: BTreeMap<&'static str, u64>,
    violations: Vec<String>,
    lines: Vec<String>,
}

impl Outcome {
    /// Returns the result of a run, and makes its nodes unreachable.
    fn of(world: &World, warehouse: &WarehouseModel) -> Outcome {
        let (hash, count, violations, lines) = world.trace();
        let mut counts = world.counts();
        counts.insert("deliveries", warehouse.deliveries() as u64);
        counts.insert("events", count);
        world.end();
        Outcome {
            hash,
            count,
            counts,
            violations,
            lines,
        }
    }
}

fn in_virtual_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work)
}

/// Runs one seed without an engine, with all volumes on the simulated disk.
fn run(seed: u64, keeps_lines: bool) -> Outcome {
    run_on(seed, keeps_lines, 0)
}

/// Runs one seed with volumes that keep their logs in an engine. The engine has faults too.
fn run_behind_engine(seed: u64, keeps_lines: bool) -> Outcome {
    run_on(seed, keeps_lines, 1)
}

/// Runs one seed with volumes that are spread over two engines. Each engine has separate faults.
fn run_behind_two_engines(seed: u64, keeps_lines: bool) -> Outcome {
    run_on(seed, keeps_lines, 2)
}

fn run_on(seed: u64, keeps_lines: bool, engines: usize) -> Outcome {
    in_virtual_time(async {
        let world = World::new(seed, &NAMES, keeps_lines, engines);
        // Some runs have many orders and plenty of units, so that nodes borrow units in advance.
        let is_busy = world.has_allotments && seed.is_multiple_of(3);
        let warehouse = WarehouseModel::new(&world, is_busy);
        let watching = [
            tokio::spawn(loans::watch(Arc::clone(&world))),
            tokio::spawn(leases::watch(Arc::clone(&world))),
        ];
        let records = Arc::new(CustomerRecords::default());
        let stops: faults::Stops = Arc::new(watch::Sender::new(None));
        let first = world.dice.between(1, 3) as usize;
        for name in &NAMES[..first] {
            faults::start(&world, &warehouse, &stops, name);
        }
        while !customers::send_stock(&world, &warehouse).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut customers = JoinSet::new();
        let count = world.dice.between(10, 40);
        for number in 0..if is_busy { 4 * count } else { count } {
            let (world, records) = (Arc::clone(&world), Arc::clone(&records));
            let wait_ms = world.dice.between(0, 9_000);
            customers.spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                customers::order(world, records, number).await;
            });
        }
        let until = Instant::now() + Duration::from_secs(10);
        let mut engine_faults = JoinSet::new();
        for engine in &world.engines {
            engine_faults.spawn(faults::cause_engine_faults(Arc::clone(engine), until, true));
        }
        let snapshots = async {
            while Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(world.dice.between(500, 4_000))).await;
                customers::send_stock(&world, &warehouse).await;
            }
        };
        tokio::join!(faults::cause_faults(&world, &warehouse, &stops, until), snapshots);
        engine_faults.join_all().await;
        faults::heal(&world, &warehouse, &stops).await;
        while customers.join_next().await.is_some() {}
        audit::healthy_orders_are_delivered(&world, &records, &warehouse).await;
        audit::cure(&world, &warehouse).await;
        audit::audit(&world, &records, &warehouse).await;
        let has_ended = first_store::first_stores_are_taken(&world).await;
        if first_store::first_stores_are_taken_beside_takeovers(&world, &warehouse, &stops).await && has_ended
        {
            // No reservation may outlive the orders that the two checks of `first_store` have
            // placed.
            audit::audit(&world, &records, &warehouse).await;
            world.count("audits after takeovers");
        }
        loans::count_orders(&world);
        watching.iter().for_each(JoinHandle::abort);
        invariants::check_now(&world);
        Outcome::of(&world, &warehouse)
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one seed with clients that record histories of their orders.
fn run_histories(seed: u64, keeps_lines: bool) -> Outcome {
    run_histories_on(seed, keeps_lines, 0)
}

/// Runs one seed with clients that record histories, behind an engine with faults.
fn run_histories_behind_engine(seed: u64, keeps_lines: bool) -> Outcome {
    run_histories_on(seed, keeps_lines, 1)
}

fn run_histories_on(seed: u64, keeps_lines: bool, engines: usize) -> Outcome {
    in_virtual_time(async {
        let world = World::new(seed, &NAMES, keeps_lines, engines);
        let warehouse = WarehouseModel::without_faults(&world);
        let watching = tokio::spawn(leases::watch(Arc::clone(&world)));
        let stops: faults::Stops = Arc::new(watch::Sender::new(None));
        for name in NAMES {
            faults::start(&world, &warehouse, &stops, name);
        }
        while !customers::send_stock(&world, &warehouse).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let histories = Arc::new(clients::Histories::default());
        let until = Instant::now() + Duration::from_secs(10);
        let mut engine_faults = JoinSet::new();
        for engine in &world.engines {
            engine_faults.spawn(faults::cause_engine_faults(Arc::clone(engine), until, true));
        }
        tokio::join!(
            faults::cause_faults(&world, &warehouse, &stops, until),
            clients::work(&world, &histories, until),
        );
        engine_faults.join_all().await;
        faults::heal(&world, &warehouse, &stops).await;
        clients::check(&world, &histories).await;
        invariants::check_now(&world);
        watching.abort();
        Outcome::of(&world, &warehouse)
    })
}

/// Runs one seed in which only the engine and single calls of the warehouse have faults. Commits
/// wait for paused standbys, waits are cancelled, the primary restarts or fails over, or two
/// primaries run. The nodes run all the time, so no volume may change its node.
fn run_engine_faults(seed: u64, keeps_lines: bool) -> Outcome {
    in_virtual_time(async {
        let world = World::new(seed, &NAMES, keeps_lines, 1);
        let warehouse = WarehouseModel::without_faults(&world);
        let watching = tokio::spawn(leases::watch(Arc::clone(&world)));
        let stops: faults::Stops = Arc::new(watch::Sender::new(None));
        for name in NAMES {
            faults::start(&world, &warehouse, &stops, name);
        }
        let serves_itself = || {
            let state = world.state();
            state.is_some_and(|state| {
                let own = state.serving.iter().all(|(volume, node)| volume == node);
                own && state.ring.members().len() == NAMES.len()
            })
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        while !serves_itself() || !invariants::is_settled(&world) {
            if Instant::now() > deadline {
                world.violated("the nodes do not come to rest".to_owned());
                return Outcome::of(&world, &warehouse);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let takeovers = world.counts().get("takeovers").copied();
        let until = Instant::now() + Duration::from_secs(30);
        faults::cause_engine_faults(Arc::clone(&world.engines[0]), until, false).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        if !serves_itself() || world.counts().get("takeovers").copied() != takeovers {
            world.violated("a volume has changed its node, and all nodes run".to_owned());
        }
        watching.abort();
        Outcome::of(&world, &warehouse)
    })
}

#[test]
fn acknowledged_orders_survive_every_fault() {
    let all = run_seeds(run, 100, &SEEDS_WITH_PAST_DEFECTS);
    assert!(all.is_none_or(|all| {
        let events = [
            "changes of the warehouse",
            "looks with loans",
            "looks with recalls",
            "orders from allotments",
        ];
        all.counts["deliveries"] > 0 && events.iter().all(|event| all.counts.contains_key(event))
    }));
}

#[test]
fn acknowledged_orders_survive_every_fault_of_an_engine() {
    let all = run_seeds(run_behind_engine, 40, &[]);
    assert!(all.is_none_or(|all| {
        let events = ["takeovers", "second processes"];
        all.counts["deliveries"] > 0 && events.iter().all(|event| all.counts.contains_key(event))
    }));
}

#[test]
fn acknowledged_orders_survive_every_fault_of_two_engines() {
    let all = run_seeds(run_behind_two_engines, 20, &[]);
    assert!(all.is_none_or(|all| {
        all.counts["deliveries"] > 0 && all.counts["openings on the further engine"] > 0
    }));
}

#[test]
fn histories_of_clients_are_linearizable_under_every_fault() {
    let all = run_seeds(run_histories, 100, &[]);
    let happened = |counts: &BTreeMap<&'static str, u64>| {
        let events = [
            "deaths",
            "stops",
            "moves committed",
            "operations with an unknown outcome",
        ];
        events
            .iter()
            .all(|event| counts.get(event).is_some_and(|count| *count > 0))
    };
    assert!(all.is_none_or(|all| happened(&all.counts)));
}

#[test]
fn histories_of_clients_are_linearizable_behind_an_engine() {
    let all = run_seeds(run_histories_behind_engine, 20, &[]);
    assert!(all.is_none_or(|all| all.counts["histories"] > 0 && all.counts["takeovers"] > 0));
}

#[test]
fn no_volume_changes_its_node_for_a_fault_of_the_engine() {
    run_seeds(run_engine_faults, 20, &[]);
}

/// A function that runs a seed, and keeps the lines of its trace if the second argument is `true`.
type Run = fn(u64, bool) -> Outcome;

/// Runs the seeds that the environment variables select, or else the first `count` seeds and those
/// in `further`. Returns a summary. `None` if `IMT_SIM_SEED` selects the seed.
fn run_seeds(run: Run, count: u64, further: &[u64]) -> Option<Summary> {
    if let Some(seed) = number("IMT_SIM_SEED") {
        let outcome = run(seed, true);
        outcome.lines.iter().for_each(|line| println!("{line}"));
        assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
        return None;
    }
    let first = number("IMT_SIM_FIRST").unwrap_or(1);
    let seeds: Vec<u64> = match number("IMT_SIM_SEEDS") {
        Some(count) => (first..first + count).collect(),
        None => (first..first + count).chain(further.iter().copied()).collect(),
    };
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Summary::default()));
    // Runs share no state, so each can have its own thread.
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(*seed, false);
                    let mut all = all.lock();
                    all.add(*seed, outcome);
                    if all.broken.len() >= 10 {
                        // Ten broken seeds are enough to examine, so the other threads stop too.
                        next.store(seeds.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let all = all.into_inner();
    println!("{} seeds: {:?}", seeds.len(), all.counts);
    assert!(all.broken.is_empty(), "seeds {:?}", all.broken);
    Some(all)
}

/// The results of many runs.
#[derive(Default)]
struct Summary {
    counts: BTreeMap<&'static str, u64>,
    broken: Vec<u64>,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        for (event, count) in outcome.counts {
            *self.counts.entry(event).or_default() += count;
        }
        if !outcome.violations.is_empty() {
            println!("IMT_SIM_SEED={seed}: {:#?}", outcome.violations);
            self.broken.push(seed);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let runs: [(&str, Run); 5] = [
        ("disks", run),
        ("faults of an engine", run_engine_faults),
        ("an engine", run_behind_engine),
        ("two engines", run_behind_two_engines),
        ("histories", run_histories),
    ];
    let first = number("IMT_SIM_FIRST").unwrap_or(1);
    for (name, run) in runs {
        for seed in first..first + 10 {
            let (one, other) = (run(seed, true), run(seed, true));
            let mut pairs = one.lines.iter().zip(&other.lines);
            if let Some(at) = pairs.position(|(one, other)| one != other) {
                let around =
                    |lines: &[String]| lines[at.saturating_sub(3)..lines.len().min(at + 4)].join("\n");
                panic!(
                    "{name}, seed {seed}, line {at}:\n{}\n\n{}",
                    around(&one.lines),
                    around(&other.lines)
                );
            }
            assert_eq!(
                (one.hash, one.count),
                (other.hash, other.count),
                "{name}, seed {seed}"
            );
        }
    }
}
