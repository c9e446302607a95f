//! Order management for shops: takes orders, reserves stock for them, and reports them to the
//! warehouse until they are delivered.
//!
//! ```text
//!   node        start and stop of a process
//!   api         HTTP: routes, parsing, rendering
//!   control     routing, coordinator, reconciler: the tasks of a node that concern other nodes
//!   volume      one volume being served: state, transactors (actors), jobs, migration
//!   cluster     membership and the cluster's state, in a data folder or in an engine
//!   storage     rows and commits: the only folder that names microdb, apart from tests
//!   config      settings
//!   outbox      messages to the warehouse and their schedule
//!   domain      orders, stock, sales: rules without IO, clocks and locks
//!   postgres    connections to a PostgreSQL server: the only folder that names its client
//!   runtime     tasks, clocks, metrics
//! ```
//!
//! **Invariants**
//! - Each layer calls only the layers below it, and the errors in `error`.
//! - The response to an order is sent once the order is durable. It never waits for the warehouse.
//!
//! ```no_run
//! # async fn run() -> Result<(), imt_oms::NodeError> {
//! let node = imt_oms::Node::start(imt_oms::NodeConfig::new("paris", "data")).await?;
//! println!("orders are taken at http://{}/order", node.address());
//! node.stop().await
//! # }
//! ```

mod api;
mod cluster;
mod config;
mod control;
mod domain;
mod error;
mod node;
mod outbox;
mod postgres;
mod runtime;
#[cfg(test)]
mod simulation;
mod storage;
mod volume;

pub use api::document::api_document;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use api::fuzzing;
pub use api::internal::{CopyProgress, NodeReport};
pub use cluster::{
    EngineCheck, EngineView, FurtherEngine, NodeClient, NodeInfo, NodeUnreachable, Verdict, VolumeCopy,
    check_engine, check_further_engine, check_warehouse, engine_answers, engine_secret, export_volume,
    has_coordinator, init_engine, is_node_running, node_infos, promote_standby, read_ring, read_secret,
    read_warehouse, rebuild_volume, reload_standby, standby_position, view_engine,
};
pub use config::{DEFAULT_WAREHOUSE, NodeConfig, PeerEncryption, ServerLimits};
pub use domain::csv::CsvError;
pub use domain::order;
pub use domain::warehouse_url::{InvalidUrl, WarehouseUrl};
pub use error::{DecodeError, NodeError, StorageError};
pub use node::{Node, check_origin, check_weight, read_secret_file};
pub use outbox::OutboxLimits;
pub use postgres::{EngineUrl, InvalidEngineUrl, SessionError};
pub use runtime::trace::{FinishedSpan, SpanKind, SpanOutcome, SpanSink, TraceContext, export_spans};
pub use storage::inspect::{key_as_text, key_from_text, row_as_json};

/// The examples of the project's README, compiled by the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ReadmeExamples;
