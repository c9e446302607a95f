//! The HTTP API of a node.
//!
//! `routes` finds and parses the operation of a request, `forward` takes it to the volume that
//! answers it, `fast_path` calls the operation at that volume, and the other modules render the
//! answer.
//!
//! **Invariants**
//! - A request gets the same status and body from every node of a cluster.
//! - Bad input is answered with a 4xx problem that names the field or line.
//!
//! Deliberately absent: decisions about orders and stock, which belong to `volume` and `domain`.

pub(crate) mod console;
pub(crate) mod content;
pub(crate) mod cors;
pub(crate) mod document;
pub(crate) mod fan_out;
pub(crate) mod fast_path;
pub(crate) mod forward;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod gzip;
pub(crate) mod health;
pub(crate) mod idempotency;
pub(crate) mod internal;
pub(crate) mod node_status;
pub(crate) mod order_body;
pub(crate) mod orders;
pub(crate) mod params;
pub(crate) mod peer_channel;
pub(crate) mod problem;
pub(crate) mod reports;
pub(crate) mod request;
pub(crate) mod ring_document;
pub(crate) mod routes;
pub(crate) mod server;
pub(crate) mod stat_files;
pub(crate) mod stock_fan_out;
pub(crate) mod stock_query;
pub(crate) mod stock_upload;

pub(crate) use crate::api::console::Console;
pub(crate) use crate::api::fast_path::AnswerBody;
pub(crate) use crate::api::problem::Problem;
