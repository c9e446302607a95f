//! Tests that need more than the public interface, and entry points for fuzzers and benchmarks.
//!
//! - [`fuzzing`] and [`bench_format`] exist only with the features `fuzzing` and `bench`.
//! - [`loom_tests`] exist only in a build for the model checker loom.
//!
//! No module of this folder is compiled into a release build without these features.

#[cfg(feature = "bench")]
pub(crate) mod bench_format;
#[cfg(not(loom))]
#[cfg(test)]
mod engine_tests;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(not(loom))]
#[cfg(test)]
mod group_tests;
#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
