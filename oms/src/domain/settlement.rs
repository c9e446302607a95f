//! The message that ends a reservation kept in another volume.

use serde::{Deserialize, Serialize};

use crate::domain::order::Line;

/// What became of units that were set aside in another volume's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settlement {
    pub(crate) store: u32,
    pub(crate) lines: Box<[Line]>,
    /// They left the store; else they are free again.
    pub(crate) delivered: bool,
    /// The delivery's number in the warehouse's ledger.
    pub(crate) sequence: Option<u64>,
}
