//! Order management: takes orders, sets stock aside for them, and tells the warehouse until it is
//! done.
//!
//! ```text
//!   shop, warehouse --HTTP--> server -> api -> router -> transactor (one per order)
//!                                        |                   |
//!                                        |                 desk --one batch--> store (the volume, a MicroDb)
//!                                      sheet, stats        /  \
//!                                                      stock  outbox <- courier -> wms --HTTP--> warehouse
//! ```
//!
//! `order`, `stock`, `sheet`, `csv`, `stats` and `outbox` are pure: they decide. `desk` carries
//! decisions out, memory and volume in one order under one lock. `store` alone knows the database,
//! `cluster` alone knows locks and folders, `node` wires it all. An order is answered once it is
//! durable and never waits for the warehouse.
//!
//! ```no_run
//! # async fn run() -> Result<(), imt_oms::NodeError> {
//! let node = imt_oms::Node::start(imt_oms::NodeConfig::new("paris", "data")).await?;
//! println!("orders are taken at http://{}/order", node.address());
//! node.stop().await
//! # }
//! ```

mod among;
mod api;
mod changes;
mod clock;
mod cluster;
mod courier;
mod csv;
mod desk;
mod error;
mod expiry;
mod far;
mod look;
mod member;
mod metrics;
mod node;
pub mod order;
mod outbox;
mod passage;
mod peers;
mod post;
mod process;
mod regular_file;
mod router;
mod rows;
mod server;
mod sheet;
mod shelves;
#[cfg(test)]
mod simulation;
mod slots;
mod stat_files;
mod stats;
mod stock;
mod store;
mod sweep;
mod transactor;
mod warehouse_url;
mod wms;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use api::fuzzing;
pub use api::peer::NodeReport;
pub use cluster::{Card, has_coordinator, is_node_running, node_cards, read_ring, read_secret};
pub use csv::CsvError;
pub use error::{NodeError, StoreError};
pub use look::{key_as_text, key_from_text, row_as_json};
pub use node::{Node, NodeConfig};
pub use node::{check_origin, check_weight};
pub use outbox::OutboxLimits;
pub use rows::RowFault;
pub use server::ServerLimits;
pub use warehouse_url::{InvalidUrl, WarehouseUrl};
