//! Under construction.

mod directory;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub use directory::bench_support;
mod raw;
