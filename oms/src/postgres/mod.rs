//! Connections to a PostgreSQL server, or to another server that speaks its protocol.
//!
//! **Invariants**
//! - Apart from tests, only `session` of this module uses the crate `tokio_postgres`, and only
//!   `tls` uses rustls.
//! - The result of a statement is *unknown* if no answer arrives, if a warning precedes a success,
//!   or if the server's error does not exclude an effect.
//! - No cancel request is sent. If a commit is cancelled while it waits for the standbys,
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
pub(crate) use crate::postgres::session::{Param, Row, Session};
pub use crate::postgres::url::{EngineUrl, InvalidEngineUrl};
