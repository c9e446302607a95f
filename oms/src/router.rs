//! Which node an order belongs to, as the ring says.

use std::sync::Arc;

use imt_ring::{Epoch, NodeName};

use crate::cluster::Ownership;
use crate::order::OrderId;

/// Where a call for an order is to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// On this node.
    Here,
    /// On another node, as of this epoch of the ring.
    Elsewhere { node: NodeName, epoch: Epoch },
}

/// Finds the node of an order.
#[derive(Clone)]
pub(crate) struct Router {
    ownership: Arc<dyn Ownership>,
}

impl Router {
    /// A router over what the cluster says.
    pub(crate) fn new(ownership: Arc<dyn Ownership>) -> Router {
        Router { ownership }
    }

    /// The node that an order belongs to.
    pub(crate) fn route(&self, order: &OrderId) -> Result<Route, imt_ring::Error> {
        let ring = self.ownership.ring();
        let location = ring.locate(order.as_bytes())?;
        if self.ownership.serves(location.owner) {
            return Ok(Route::Here);
        }
        Ok(Route::Elsewhere {
            node: location.owner.clone(),
            epoch: location.epoch,
        })
    }
}
