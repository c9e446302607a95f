//! One volume that this process serves: its state in memory, its transactors (actors) and its
//! periodic tasks.
//!
//! **Invariants**
//! - A step of an order takes units in memory and queues its rows under one lock
//!   (`VolumeState::stock`), so memory and rows change in the same sequence.
//! - An order has at most one transactor (actor), and all of its commands pass through it.
//! - A command is answered only after its rows are durable.
//!
//! Deliberately absent: routing and the choice of the node that serves a volume, which belong to
//! `control`. Other volumes are reached only through traits: `RemoteVolumes`, and `Transport` for
//! the rows of a migration.

pub(crate) mod app;
pub(crate) mod borrowing;
pub(crate) mod followers;
pub(crate) mod handover;
pub(crate) mod jobs;
pub(crate) mod lending;
pub(crate) mod migration;
pub(crate) mod questions;
pub(crate) mod remote_reservations;
pub(crate) mod remote_stock;
pub(crate) mod server;
pub(crate) mod state;
pub(crate) mod store_search;
pub(crate) mod traced_orders;
pub(crate) mod transactor;
