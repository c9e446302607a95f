//! The business rules of orders, stock and sales.
//!
//! **Invariants**
//! - Each decision is a function of its arguments: equal arguments give equal results.
//! - Quantities are limited when they are parsed, so that sums of quantities do not overflow.
//!
//! Deliberately absent: IO, clocks, locks, randomness and tasks. The caller gives the time and
//! stores the results.

pub(crate) mod allotments;
pub(crate) mod csv;
pub(crate) mod loans;
pub mod order;
pub(crate) mod reserved_units;
pub(crate) mod routing_key;
pub(crate) mod sales;
pub(crate) mod settlement;
pub(crate) mod stock;
pub(crate) mod stock_matrix;
pub(crate) mod stock_snapshot;
pub(crate) mod warehouse_url;
