//! Connections to a PostgreSQL server, or to another server that speaks its protocol.
//!
//! **Invariants**
//! - Only `session` names `tokio_postgres`, and only `tls` names rustls.
//! - The result of a statement is *done*, *refused* (no effect) or *unknown*. A statement without
//!   an answer, and one answered with a warning, is unknown.
//! - A statement is never cancelled. PostgreSQL answers a cancelled wait for standbys as a success,
//!   although only one machine has the commit.
//!
//! Deliberately absent: tables, and the meaning of rows. They belong to `cluster::engine` and
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
