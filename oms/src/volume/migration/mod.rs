//! The migration of slots from one volume to another.
//!
//! **Invariants**
//! - Rows received by the target are staged: no request reads them before the new ring is written.
//! - From the seal of a slot until the end of the migration, the source rejects commits for the
//!   slot.
//! - Cleanup removes no row of a slot that the ring assigns to its volume.
//!
//! Deliberately absent: the decision to migrate, and the write of the new ring that commits the
//! migration. They belong to `control`.

pub(crate) mod cleanup;
pub(crate) mod source;
pub(crate) mod staged_rows;
pub(crate) mod staged_state;
pub(crate) mod staged_stock;
pub(crate) mod target;
