//! Steps that change the messages of an order to the warehouse, and leave the order as it is.

use std::sync::Arc;

use super::{Begun, OrderError, Outcome, Pending, Units, VolumeState, Wanted};
use crate::domain::order::{Order, State};
use crate::outbox::{Kind, Message, MessageState};
use crate::storage::group_commit::Permit;
use crate::storage::write_batch::WriteBatch;

impl VolumeState {
    /// Begins to record the failed attempts of a message. Does nothing if the message has changed
    /// in memory since, for example because a client has requested a retry of the dead letter.
    pub(crate) fn note_attempts(
        &self,
        order: Arc<Order>,
        kind: Kind,
        message: &Message,
        permit: Option<Permit<'_>>,
    ) -> Result<Begun, OrderError> {
        let is_newest = self
            .outbox()
            .get(&order.id, kind)
            .is_some_and(|known| (known.state, known.attempts) == (message.state, message.attempts));
        if !is_newest {
            return Ok(Begun::Done(Outcome {
                order,
                repeated: true,
            }));
        }
        self.note_message(order, kind, message, permit)
    }

    /// Begins to store a message, if the order still needs the message.
    fn note_message(
        &self,
        order: Arc<Order>,
        kind: Kind,
        message: &Message,
        permit: Option<Permit<'_>>,
    ) -> Result<Begun, OrderError> {
        if !wants(order.state, kind) {
            return Ok(Begun::Done(Outcome {
                order,
                repeated: true,
            }));
        }
        let mut batch = WriteBatch::default();
        batch.message(&order.id, kind, message);
        self.change_message(order, batch, permit, None)
    }

    /// Begins to remove a message that its order does not need. Does nothing if the order needs the
    /// message or the message does not exist.
    pub(crate) fn drop_message(
        &self,
        order: Arc<Order>,
        kind: Kind,
        permit: Option<Permit<'_>>,
    ) -> Result<Begun, OrderError> {
        if wants(order.state, kind) || self.outbox().get(&order.id, kind).is_none() {
            return Ok(Begun::Done(Outcome {
                order,
                repeated: true,
            }));
        }
        let mut batch = WriteBatch::default();
        batch.forget_message(&order.id, kind);
        self.change_message(order, batch, permit, Some(kind))
    }

    /// Begins to commit a change of an order's messages. The order itself does not change.
    fn change_message(
        &self,
        order: Arc<Order>,
        mut batch: WriteBatch,
        permit: Option<Permit<'_>>,
        answered: Option<Kind>,
    ) -> Result<Begun, OrderError> {
        let permit = match permit {
            Some(permit) => permit,
            None => self.storage.try_permit()?,
        };
        let ticket = {
            let _stock = self.stock();
            self.slots.check_order(&order.id)?;
            batch.fence(self.slots.fence_of_order(&order.id));
            permit.send(batch)
        };
        Ok(Begun::Pending(Pending {
            ticket,
            order,
            units: Units::Unchanged,
            store_fence: None,
            replaced: None,
            answered,
            wanted: None,
            is_lent: false,
            settlement: None,
        }))
    }

    /// Begins to make a dead letter (a message that is no longer sent) a waiting message without
    /// failed attempts. Changes nothing if the message is waiting already. The error `NoMessage`
    /// means that the order has no message of this kind, or no longer needs it.
    pub(crate) fn retry_message(
        &self,
        order: Arc<Order>,
        kind: Kind,
        permit: Option<Permit<'_>>,
    ) -> Result<Begun, OrderError> {
        let state = self.outbox().get(&order.id, kind).map(|message| message.state);
        match state {
            None => return Err(OrderError::NoMessage),
            Some(MessageState::Waiting) => {
                return Ok(Begun::Done(Outcome {
                    order,
                    repeated: true,
                }));
            }
            Some(MessageState::Dead) => {}
        }
        let message = Message::new(self.clock.now_ms());
        match self.note_message(order, kind, &message, permit)? {
            Begun::Done(_) | Begun::SearchAgain(_) => Err(OrderError::NoMessage),
            Begun::Pending(mut step) => {
                step.wanted = Some(Wanted { kind, message });
                Ok(Begun::Pending(step))
            }
        }
    }
}

/// Returns `true` if an order in this state needs a message of this kind.
pub(crate) fn wants(state: State, kind: Kind) -> bool {
    match kind {
        Kind::Announce => matches!(state, State::Reserved | State::Paid),
        Kind::Deliver => state == State::Delivering,
    }
}
