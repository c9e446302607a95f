//! Benchmarks of IMT Order, alone and in comparison with rivals.
//!
//! The `engine` program runs every workload of the engine table on microdb and, with feature
//! `rivals`, on six other embedded stores. All of them get the same keys, values and durability,
//! and each pair of engine and workload runs in a separate process.
//!
//! - [`data`]: seeded keys, values and choices, independent of the engines
//! - [`engines`]: one small trait and a file for each engine
//! - [`workloads`]: the measured work; sees engines only through the trait
//! - [`machine`]: the limits of this machine, measured in the same run
//! - [`peaks`]: peak memory and peak disk of a child process
//! - [`run`]: the parent process: starts children, collects samples, computes medians
//! - [`goals`]: the rows of the table and their goals
//! - [`report`]: the table as text, Markdown or JSON
//!
//! Deliberately absent: thresholds that fail a build. A benchmark measures; tests never time.

pub mod data;
pub mod engines;
pub mod goals;
pub mod machine;
pub mod peaks;
pub mod report;
pub mod run;
pub mod workloads;

/// The result of a step of a benchmark. The engines have different error types, and only the text
/// of an error is needed.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
