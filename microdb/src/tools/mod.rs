//! Operations on a whole database: each reads or copies everything, at the request of an operator.
//!
//! - Nothing on the path of a read or a commit calls into this folder.
//! - Everything here reports damage with its place and goes on where it can.
//! - [`inspect`] and [`salvage`] work on the files of a database that cannot be opened.
//!
//! Deliberately absent: changes of records. Only [`heal`] and [`seal`] write to a database, and
//! they write bytes that are known already.

pub(crate) mod backup;
pub(crate) mod change_feed;
pub(crate) mod diff;
pub(crate) mod digest;
pub(crate) mod heal;
pub mod inspect;
pub(crate) mod salvage;
pub(crate) mod seal;
pub(crate) mod verify;
