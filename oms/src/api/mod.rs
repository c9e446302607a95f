//! The HTTP API of a node.
//!
//! `routes` parses a request to an operation, and `forward` routes the operation to the volume that
//! owns its data. `fast_path` executes the operation at that volume. Most other modules execute
//! single operations and render their responses.
//!
//! **Invariants**
//! - A request for orders, stock, statistics or messages gets the same status and body from every
//!   node of a cluster.
//! - Invalid input gets a 4xx problem. An invalid value is named by its field or line.
//!
//! Decisions about orders and stock are not made here. They belong to `volume` and `domain`.

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
pub(crate) mod host_names;
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
