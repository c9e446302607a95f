//! Benchmarks of IMT Order, alone and in comparison with rivals.
//!
//! The program `engine` runs its workloads (loads, gets, opens, ...) on microdb and, with feature
//! `rivals`, on six other embedded stores. All of them get the same keys, values and durability,
//! and each pair of engine and workload runs in a separate process. The program prints the engine
//! table, which has a row for each figure and a column for each engine. The modules below are its
//! parts. The programs `faults`, `machines`, `nodes`, `orders` and `ring` have modules of their
//! own.
//!
//! - [`data`]: seeded keys, values and choices, independent of the engines
//! - [`engines`]: the traits over all engines, and a module for each engine
//! - [`workloads`]: the measured work; sees engines only through these traits
//! - [`machine`]: the limits of this machine, measured in the same run
//! - [`peaks`]: peak memory and peak disk of a child process
//! - [`run`]: the parent process: starts children, collects samples, computes medians
//! - [`goals`]: the rows of the engine table and the goals of microdb
//! - [`report`]: the engine table as text, Markdown or JSON
//!
//! Deliberately absent: thresholds that fail a build. Benchmarks only print figures, and no test
//! depends on a measured time.

pub mod data;
pub mod engines;
pub mod goals;
pub mod machine;
pub mod peaks;
pub mod report;
pub mod run;
pub mod workloads;

/// The result of a step of a benchmark. The error is boxed because each engine has its own error
/// type.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
