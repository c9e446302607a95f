//! The message that ends a reservation kept in another volume.
//!
//! An order and its store can be in different volumes, which commit separately. The order's volume
//! stores the settlement with the order's change and sends it until the store's volume confirms it.
//!
//! Deliberately absent: sending and applying (`volume::remote_stock`).

use serde::{Deserialize, Serialize};

use crate::domain::order::Line;

/// The end of a reservation: the units were delivered or released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settlement {
    pub(crate) store: u32,
    pub(crate) lines: Box<[Line]>,
    /// `true` if the units left the store, `false` if they are available again.
    pub(crate) delivered: bool,
    /// Number that the warehouse gave to the delivery, if it sent one.
    pub(crate) sequence: Option<u64>,
}
