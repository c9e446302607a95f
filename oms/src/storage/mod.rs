//! The durable state of a volume: its tables, their rows, and the commit of a batch of rows.
//!
//! **Invariants**
//! - Rows of one `WriteBatch` become durable together or not at all.
//! - A write batch is rejected unless the volume owns each slot for which the batch writes.
//! - Readers see durable rows only, and no rows of slots that another volume owns.
//!
//! Deliberately absent: decisions about orders and stock, which `domain` makes. Outside this
//! folder, only `error` and the simulation refer to microdb.

pub(crate) mod change_feed;
pub(crate) mod checkpoint;
pub(crate) mod codec;
pub(crate) mod fence;
pub(crate) mod follow;
pub(crate) mod group_commit;
pub(crate) mod inspect;
pub(crate) mod log;
pub(crate) mod owned_slots;
pub(crate) mod reservations;
mod tables;
pub(crate) mod volume;
pub(crate) mod write_batch;
