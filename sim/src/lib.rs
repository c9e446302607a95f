//! under way
#![forbid(unsafe_code)]
pub mod client;
mod error;
mod seed;
pub mod warehouse;
pub mod wire;
pub mod workload;
pub use error::{Error, Result};
