//! Benchmarks of IMT Order, alone and beside its rivals.
//!
//! The `engine` program runs every workload of the engine table on microdb and, with feature
//! `rivals`, on six other embedded stores: the same keys and values, the same durability, each
//! (engine, workload) in a process of its own.
//!
//! - [`data`]: seeded keys, values and choices; nothing here depends on an engine
//! - [`engines`]: one small trait and a file for each engine
//! - [`workloads`]: what is measured; sees engines only through the trait
//! - [`machine`]: what this machine can do at best, measured in the same run
//! - [`peaks`]: peak memory and peak disk of a child process
//! - [`run`]: the parent process: starts children, collects samples, takes medians
//! - [`goals`]: the rows of the table and what we want of each
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

/// What a benchmark step answers: rivals have six error types, and a failed measurement only needs
/// its words.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
