//! Several real nodes in one thread and in virtual time, with everything that may go wrong between
//! them drawn from a seed.
//!
//! **Real** are the gate, the router, the routes, transactors, desk, stock, outbox and courier, the
//! store over microdb, the keeper, the coordinator, the moves of slots, settlements between
//! volumes. **Simulated** are what lies under the seams: membership and the truth (`world`), the
//! disk under microdb (`disk`), the calls between nodes (`net`), the warehouse, the clocks. What
//! needs threads runs as tasks (`runtime`). Absent: HTTP, sockets and files of an operating system,
//! power cuts (microdb's tests), statistics files.
//!
//! Same seed, same trace: a run can be repeated. `IMT_SIM_SEED=N` runs one seed and tells what
//! happened, `IMT_SIM_SEEDS=N` runs so many, `IMT_SIM_FIRST=N` says from which on.

mod audit;
mod customers;
mod disk;
mod faults;
mod first_store;
mod net;
mod warehouse;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::simulation::customers::Books;
use crate::simulation::warehouse::Hall;
use crate::simulation::world::World;

/// Nodes that come and go.
pub(crate) const NAMES: [&str; 4] = ["ada", "bob", "cleo", "dan"];

/// Seeds beyond the first hundred that found something once, and are run each time. As the code
/// changes around them they run another course, so what they found has tests of its own too.
const FOUND_SOMETHING: [u64; 14] = [
    145, 159, 270, 307, 311, 428, 453, 465, 526, 544, 560, 598, 615, 700,
];

/// What came of a run.
struct Outcome {
    hash: u64,
    count: u64,
    /// How often what happened.
    counts: BTreeMap<&'static str, u64>,
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
        audit::healthy_orders_are_delivered(&world, &books, &hall).await;
        audit::cure(&world, &hall).await;
        audit::audit(&world, &books, &hall).await;
        first_store::first_stores_are_taken(&world).await;
        let (hash, count, violations, lines) = world.trace();
        let mut counts = world.counts();
        counts.insert("deliveries", hall.deliveries() as u64);
        counts.insert("events", count);
        Outcome {
            hash,
            count,
            counts,
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
    let seeds: Vec<u64> = match number("IMT_SIM_SEEDS") {
        Some(count) => (first..first + count).collect(),
        None => (first..first + 100).chain(FOUND_SOMETHING).collect(),
    };
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Summary::default()));
    // Each run has one thread of its own; two of them have nothing in common.
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(*seed, false);
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.add(*seed, outcome);
                    if all.broken.len() >= 10 {
                        // Enough to look into; the others may be told to end.
                        next.store(seeds.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    println!("{} seeds: {:?}", seeds.len(), all.counts);
    assert!(all.counts["deliveries"] > 0);
    assert!(all.broken.is_empty(), "seeds {:?}", all.broken);
}

/// What came of many runs.
#[derive(Default)]
struct Summary {
    counts: BTreeMap<&'static str, u64>,
    broken: Vec<u64>,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        for (what, count) in outcome.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if !outcome.violations.is_empty() {
            println!("IMT_SIM_SEED={seed}: {:#?}", outcome.violations);
            self.broken.push(seed);
        }
    }
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
