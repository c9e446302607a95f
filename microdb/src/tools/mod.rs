//! Operations on a whole database: each reads or copies all data, at the request of an operator.
//!
//! - No read and no commit calls into this folder.
//! - Damage is reported with its position.
//! - [`inspect`] and [`salvage`] work on the files of a database that cannot be opened.
//!
//! Deliberately absent: changes of records. In the database itself, [`heal`] restores original
//! bytes of segments, [`seal`] writes seals, and [`backup`] writes a checkpoint and missing seals.

pub(crate) mod backup;
pub(crate) mod change_feed;
pub(crate) mod diff;
pub(crate) mod digest;
pub(crate) mod heal;
pub mod inspect;
pub(crate) mod salvage;
pub(crate) mod seal;
pub(crate) mod verify;
