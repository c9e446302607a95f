//! The dispatcher: sends due messages from the outbox to the warehouse and passes the answers to
//! the orders.
//!
//! **Invariants**
//! - A message is sent at least once. A crash at any moment repeats it at most.
//! - A message leaves the outbox only with the commit of the order's next state, made by its
//!   transactor.
//! - The number of calls in flight is bounded by the outbox.
//!
//! Deliberately absent: the schedule of retries, the circuit breaker and the retry budget, which
//! belong to `outbox`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::domain::order::Command;
use crate::outbox::warehouse_client::{Answer, Warehouse};
use crate::outbox::{Failure, FailureKind, Job, Kind, MessageState};
use crate::runtime;
use crate::volume::state::OrderError;
use crate::volume::transactor::{Ask, Transactors};

/// Pause before a message is sent again after its answer could not be stored, because the volume is
/// full or closing.
const OWN_FAULT_WAIT_MS: u64 = 1_000;

/// Sends due messages until `stop` becomes true. Calls in flight are dropped then, and the next
/// start repeats them.
pub(crate) async fn run(
    transactors: Arc<Transactors>,
    wms: Arc<dyn Warehouse>,
    mut stop: watch::Receiver<bool>,
) {
    let state = Arc::clone(transactors.state());
    let mut calls = JoinSet::new();
    loop {
        while calls.try_join_next().is_some() {}
        // Created before the outbox is read, so that a notification in between is not lost.
        let notified = state.message_due.notified();
        let now_ms = state.now().monotonic_ms;
        let next = state.outbox().next(now_ms);
        let next_wait = match next {
            Ok(job) if !state.slots.has_order(&job.order) => {
                // The order has migrated, and `forget_messages` will remove its message.
                let mut outbox = state.outbox();
                outbox.put_back(&job, now_ms);
                outbox.remove(&job.order, job.kind);
                continue;
            }
            Ok(job) => {
                calls.spawn(runtime::within(send_one(
                    Arc::clone(&transactors),
                    Arc::clone(&wms),
                    job,
                )));
                continue;
            }
            Err(at_ms) => at_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms).max(1))),
        };
        let timer = async {
            match next_wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = notified => {}
            () = timer => {}
        }
    }
}

async fn send_one(transactors: Arc<Transactors>, wms: Arc<dyn Warehouse>, job: Job) {
    let state = transactors.state();
    let put_back = |fault: &OrderError| {
        match fault {
            // The order is being migrated. The dispatcher of its next volume sends the message
            // again.
            OrderError::Moved => {
                tracing::debug!(order = %job.order, "warehouse answer dropped: the order is being migrated");
            }
            _ => {
                tracing::warn!(order = %job.order, kind = job.kind.name(), ?fault, "warehouse answer not stored");
            }
        }
        state
            .outbox()
            .put_back(&job, state.now().monotonic_ms + OWN_FAULT_WAIT_MS);
    };
    match state.storage.order(&job.order) {
        Err(error) => put_back(&OrderError::Storage(error)),
        Ok(None) => {
            // This cannot happen, since order and message are committed together. Such a message
            // must not be retried for ever.
            tracing::error!(order = %job.order, "message without an order failed for good");
            let failure = Failure::new(FailureKind::Malformed, "the order does not exist");
            state.outbox().failed(&job, &failure, state.now(), 0.0);
        }
        Ok(Some(order)) => {
            let answer = wms.send(job.kind, &order).await;
            let taken = match command(job.kind, &answer) {
                Ok(command) => {
                    let taken = transactors.ask(&job.order, Ask::Command(command)).await;
                    taken.map(|_| state.outbox().answered(&job))
                }
                Err(failure) => failed(&transactors, &job, &failure).await,
            };
            if let Err(fault) = taken {
                put_back(&fault);
            }
        }
    }
    state.message_due.notify_one();
}

/// Returns the command that follows from an answer, or the reason why the call failed.
fn command(kind: Kind, answer: &Answer) -> Result<Command, Failure> {
    match (kind, answer.clone()) {
        (_, Answer::Failed(failure)) => Err(failure),
        (Kind::Announce, Answer::Done { .. }) => Ok(Command::ConfirmAnnouncement),
        (Kind::Announce, Answer::Refused { reason }) => Ok(Command::RefuseAnnouncement { reason }),
        (Kind::Deliver, Answer::Done { sequence }) => Ok(Command::ConfirmDelivery { sequence }),
        (Kind::Deliver, Answer::Refused { reason }) => Ok(Command::RefuseDelivery { reason }),
    }
}

async fn failed(transactors: &Arc<Transactors>, job: &Job, failure: &Failure) -> Result<(), OrderError> {
    let state = transactors.state();
    let jitter = runtime::random_share();
    let message = state.outbox().failed(job, failure, state.now(), jitter);
    let Some(message) = message else { return Ok(()) };
    if message.state == MessageState::Dead {
        tracing::warn!(
            order = %job.order,
            kind = job.kind.name(),
            attempts = message.attempts,
            reason = failure.reason,
            "message to the warehouse given up"
        );
    }
    // If this cannot be written, the schedule in memory still advances. A restart then repeats one
    // attempt at most.
    if let Err(fault) = transactors.ask(&job.order, Ask::Note(job.kind, message)).await {
        tracing::warn!(order = %job.order, ?fault, "failed attempt not recorded");
    }
    Ok(())
}
