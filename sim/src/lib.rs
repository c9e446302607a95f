//! Simulators of the systems around the order management: a shop front that sends load, and a
//! warehouse that supplies stock and delivers. An audit compares the order management with both.
//!
//! The simulators use the order management from outside, as real systems would: over HTTP, and by
//! statistics files. Each simulator derives all its random choices from a seed.
//!
//! - [`mod@audit`]: compares the order management with the warehouse and, after a run, with the
//!   record of the front.
//! - [`client`]: a small HTTP client.
//! - [`cluster_detail`]: the ring and the nodes, as the web console describes them.
//! - [`compare`]: the numbers of two runs side by side.
//! - [`front`]: the shop front, with open-loop load, latencies from the intended start, and
//!   `stats.csv`.
//! - [`latency`]: latency histograms and their percentiles.
//! - [`monitor`]: polls the order management and the warehouse during a run.
//! - [`node_events`]: results of the node events of a run.
//! - [`report`]: draws a run, or two runs side by side, as one HTML page.
//! - [`run_folder`]: the record of a run on disk.
//! - [`samples`]: small files in the formats of the original system, from which this project grew.
//! - [`scenario`]: load, faults, node events and thresholds of a run, from TOML.
//! - [`series`]: the results of a run, second by second.
//! - [`summary`]: the results of a run, as a table and as JSON.
//! - [`telemetry`]: live state of a run, for views.
//! - [`thresholds`]: conditions under which a run fails.
//! - [`warehouse`]: a simulated warehouse with stock and a durable ledger, slow and unreliable on
//!   purpose.
//! - [`wire`]: the messages of the order management and the warehouse, as the simulators read and
//!   write them.
//! - [`workload`]: the planned requests and their intended starts, as pure functions of the
//!   settings and a seed.
#![forbid(unsafe_code)]

pub mod audit;
pub mod client;
pub mod cluster_detail;
pub mod compare;
mod error;
pub mod front;
pub mod latency;
pub mod monitor;
pub mod node_events;
pub mod report;
pub mod run_folder;
pub mod samples;
pub mod scenario;
mod seed;
pub mod series;
pub mod summary;
pub mod telemetry;
pub mod thresholds;
pub mod warehouse;
pub mod wire;
pub mod workload;

/// Compiles the examples of the guide for clients as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/clients.md")]
struct ClientExamples;

pub use audit::{AuditConfig, AuditReport, Finding, audit};
pub use client::Endpoint;
pub use error::{Error, Result};
pub use front::{FrontConfig, FrontReport, run_front};
pub use run_folder::RunFolder;
pub use scenario::Scenario;
pub use summary::Summary;
pub use telemetry::Telemetry;
pub use warehouse::{Warehouse, WarehouseConfig};
