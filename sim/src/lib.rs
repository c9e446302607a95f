//! The world around the order management: a shop front that loads it, a warehouse that feeds and
//! serves it, and an audit that holds both sides against each other.
//!
//! All of it reaches the order management over HTTP only, as real neighbours would, and is driven
//! by one seed.
//!
//! - [`mod@audit`]: compares both sides after a run; pure over what they say.
//! - [`front`]: open-loop load, latencies from the intended start, `stats.csv`.
//! - [`report`]: a run's summary, as a table and as JSON.
//! - [`samples`]: small files in the original's formats.
//! - [`warehouse`]: a server with real stock and a durable ledger, slow and unreliable on purpose.
//! - [`workload`]: what the front asks and when, pure.
#![forbid(unsafe_code)]

pub mod audit;
pub mod client;
mod error;
pub mod front;
pub mod report;
pub mod samples;
mod seed;
pub mod warehouse;
pub mod wire;
pub mod workload;

pub use audit::{AuditConfig, AuditReport, Finding, audit};
pub use client::Endpoint;
pub use error::{Error, Result};
pub use front::{FrontConfig, FrontReport, Progress, run_front};
pub use report::Summary;
pub use warehouse::{Warehouse, WarehouseConfig};
