//! Operations on a database as a whole, such as backup, digest, verification and salvage.
//!
//! - No read and no commit calls into this folder.
//! - Damage is reported with its position.
//! - [`inspect`], [`salvage`] and [`heal`] work on the files of a database without opening it.
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
