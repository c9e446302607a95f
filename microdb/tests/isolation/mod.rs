//! Tests of isolation from outside: random histories of many threads are recorded at the callers
//! and checked for strict serializability.
//!
//! - Transactions, batches, swaps, puts, deletes, clears, drops and recreated tables run beside
//!   snapshots, iterators and reads, with checkpoints and compactions, over several openings.
//! - Half of the rounds have durable transactions, the other half has buffered ones.
//! - `MICRODB_ISOLATION_SEEDS` sets the number of seeds, `MICRODB_ISOLATION_FIRST_SEED` the first
//!   seed, and `MICRODB_ISOLATION_OPERATIONS` the number of operations per worker and round.
//!
//! Deliberately absent: knowledge of the engine in the checker.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

mod anomalies;
mod campaign;
mod checker;
mod recorder;

use campaign::Size;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn histories_of_many_threads_are_strictly_serializable() {
    let first = setting("MICRODB_ISOLATION_FIRST_SEED", 1);
    let operations = setting("MICRODB_ISOLATION_OPERATIONS", 250);
    let (mut all, mut commits, mut dependencies) = (0, 0, 0);
    for seed in first..first + setting("MICRODB_ISOLATION_SEEDS", 3) {
        let size = Size {
            rounds: 4,
            operations,
        };
        let summary = campaign::run(seed, size).unwrap_or_else(|faults| panic!("{faults}"));
        all += summary.operations;
        commits += summary.commits;
        dependencies += summary.dependencies;
    }
    println!("{all} operations, {commits} commits, {dependencies} dependencies");
    assert!(commits > 100, "the work was done");
}
