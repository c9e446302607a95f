//! Several real nodes in one thread and in virtual time, with everything that may go wrong between them drawn from a seed.
//!
//! **Real** are the gate, the router, the routes, transactors, desk, stock, outbox and courier, the store over microdb, the keeper, the
//! coordinator, the moves of slots, settlements between volumes. **Simulated** are what lies under the seams: membership and the truth
//! (`world`), the disk under microdb (`disk`), the calls between nodes (`net`), the warehouse, the clocks. What needs threads runs as
//! tasks (`process`). Absent: HTTP, sockets and files of an operating system, power cuts (microdb's tests), statistics files.
//!
//! Same seed, same trace: a run can be repeated. `IMT_SIM_SEED=N` runs one seed and tells what happened, `IMT_SIM_SEEDS=N` runs so
//! many, `IMT_SIM_FIRST=N` says from which on.

mod audit;
mod customers;
mod disk;
mod faults;
mod net;
mod warehouse;
pub(crate) mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use customers::Books;
use warehouse::Hall;
use world::World;

/// Nodes that come and go.
pub(crate) const NAMES: [&str; 4] = ["ada", "bob", "cleo", "dan"];

/// What came of a run.
struct Outcome {
    hash: u64,
    count: u64,
    deliveries: usize,
    violations: Vec<String>,
    lines: Vec<String>,
}

/// One run.
fn run(seed: u64, is_told: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(seed, &NAMES, is_told);
        let hall = Hall::new(&world);
        let books = Arc::new(Books::default());
        let stops: faults::Stops = Arc::new(watch::Sender::new(None));
        let first = world.dice.between(1, 3) as usize;
        for name in &NAMES[..first] {
            faults::start(&world, &hall, &stops, name);
        }
        while !customers::send_stock(&world, &hall).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut customers = JoinSet::new();
        for number in 0..world.dice.between(10, 40) {
            let (world, books) = (Arc::clone(&world), Arc::clone(&books));
            let wait_ms = world.dice.between(0, 9_000);
            customers.spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                customers::order(world, books, number).await;
            });
        }
        let until = Instant::now() + Duration::from_secs(10);
        let snapshots = async {
            while Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(world.dice.between(500, 4_000))).await;
                customers::send_stock(&world, &hall).await;
            }
        };
        tokio::join!(faults::trouble(&world, &hall, &stops, until), snapshots);
        faults::heal(&world, &hall, &stops).await;
        while customers.join_next().await.is_some() {}
        audit::audit(&world, &books, &hall).await;
        let (hash, count, violations, lines) = world.trace();
        Outcome {
            hash,
            count,
            deliveries: hall.deliveries(),
            violations,
            lines,
        }
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_goes_wrong_what_was_acknowledged_is_there() {
    if let Some(seed) = number("IMT_SIM_SEED") {
        let outcome = run(seed, true);
        outcome.lines.iter().for_each(|line| println!("{line}"));
        assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
        return;
    }
    let first = number("IMT_SIM_FIRST").unwrap_or(1);
    let (mut deliveries, mut events) = (0, 0);
    let seeds = number("IMT_SIM_SEEDS").unwrap_or(100);
    let mut broken = Vec::new();
    for seed in first..first + seeds {
        let outcome = run(seed, false);
        deliveries += outcome.deliveries;
        events += outcome.count;
        if !outcome.violations.is_empty() {
            println!("IMT_SIM_SEED={seed}: {:#?}", outcome.violations);
            broken.push(seed);
        }
    }
    println!("{seeds} seeds, {events} events, {deliveries} deliveries");
    assert!(deliveries > 0);
    assert!(broken.is_empty(), "seeds {broken:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=10 {
        let (one, other) = (run(seed, true), run(seed, true));
        let differs = one
            .lines
            .iter()
            .zip(&other.lines)
            .position(|(one, other)| one != other);
        if let Some(at) = differs {
            panic!("seed {seed}:\n{}\n{}", one.lines[at], other.lines[at]);
        }
        assert_eq!((one.hash, one.count), (other.hash, other.count), "seed {seed}");
    }
}
