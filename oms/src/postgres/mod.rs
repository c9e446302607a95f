//! Connections to a PostgreSQL server, or to another server that speaks its protocol.
//!
//! **Invariants**
//! - Only `session` uses the crate `tokio_postgres`, and only `tls` uses rustls.
//! - The result of a statement is *done*, *refused* (no effect) or *unknown*. The result is unknown
//!   if no answer arrives, or if the answer contains a warning.
//! - A statement is never cancelled. If a commit is cancelled while it waits for the standbys,
//!   PostgreSQL reports success, although only the primary has the commit.
//!
//! Deliberately absent: tables and the meaning of rows, which belong to `cluster::engine` and
//! `storage::log`.

mod password_file;
mod session;
#[cfg(test)]
mod session_tests;
mod tls;
mod url;

pub use crate::postgres::session::SessionError;
pub(crate) use crate::postgres::session::{OnNone, Param, Row, Session};
pub use crate::postgres::url::{EngineUrl, InvalidEngineUrl};
