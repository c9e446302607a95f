//! Carries messages from the outbox to the warehouse, and the answers back to the orders.
//!
//! One task waits for the next due message and starts a call for it, as many at a time as the
//! outbox allows. An answer goes to the order's transactor, which commits what follows from it
//! together with the message's end; only then is the message gone. So a message is told at least
//! once, and a kill at any moment repeats it at most.

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

/// How long a job waits after our own side could not take its answer in (a volume that is full or
/// closing).
const OWN_FAULT_WAIT_MS: u64 = 1_000;

/// Sends what is due until told to stop. What is in flight then is let go: the next start makes
/// those calls again.
pub(crate) async fn carry(
    transactors: Arc<Transactors>,
    wms: Arc<dyn Warehouse>,
    mut stop: watch::Receiver<bool>,
) {
    let state = Arc::clone(transactors.state());
    let mut calls = JoinSet::new();
    loop {
        while calls.try_join_next().is_some() {}
        // Asked for before looking, so that a call between looking and waiting is not missed.
        let called = state.courier_called.notified();
        let now_ms = state.now().monotonic_ms;
        let next = state.outbox().next(now_ms);
        let look_again = match next {
            Ok(job) if !state.slots.has_order(&job.order) => {
                // It has gone, and is about to be forgotten here.
                let mut outbox = state.outbox();
                outbox.put_back(&job, now_ms);
                outbox.remove(&job.order, job.kind);
                continue;
            }
            Ok(job) => {
                calls.spawn(runtime::within(carry_one(
                    Arc::clone(&transactors),
                    Arc::clone(&wms),
                    job,
                )));
                continue;
            }
            Err(at_ms) => at_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms).max(1))),
        };
        let timer = async {
            match look_again {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = called => {}
            () = timer => {}
        }
    }
}

async fn carry_one(transactors: Arc<Transactors>, wms: Arc<dyn Warehouse>, job: Job) {
    let state = transactors.state();
    let put_back = |fault: &OrderError| {
        match fault {
            // The order is on its way to another volume, whose courier asks again.
            OrderError::Moved => tracing::debug!(order = %job.order, "an answer came while its order moved"),
            _ => {
                tracing::warn!(order = %job.order, kind = job.kind.name(), ?fault, "could not take an answer in");
            }
        }
        state
            .outbox()
            .put_back(&job, state.now().monotonic_ms + OWN_FAULT_WAIT_MS);
    };
    match state.storage.order(&job.order) {
        Err(error) => put_back(&OrderError::Storage(error)),
        Ok(None) => {
            // A message without its order cannot be: they are committed together. It must not be
            // tried for ever.
            tracing::error!(order = %job.order, "a message waits for an order that does not exist");
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
    state.courier_called.notify_one();
}

/// Returns the command that an answer amounts to, or why the call failed.
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
    // The schedule in memory goes on even if this cannot be written: a restart then repeats a try
    // at most.
    if let Err(fault) = transactors.ask(&job.order, Ask::Note(job.kind, message)).await {
        tracing::warn!(order = %job.order, ?fault, "failed try not recorded");
    }
    Ok(())
}
