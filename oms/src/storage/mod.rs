//! The durable state of a volume: its tables, their rows, and the commit of write batches.
//!
//! **Invariants**
//! - Rows of one `WriteBatch` become durable together or not at all.
//! - A write batch names the slots for which it writes (`fence`). Once the volume has recorded the
//!   slots that it owns, a batch that names another slot is rejected.
//! - Readers see durable rows only. Rows of slots that another volume owns may still exist, and
//!   callers skip them by `Slots`.
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
