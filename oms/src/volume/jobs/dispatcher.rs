//! The dispatcher: sends due messages from the outbox to the warehouse and passes the answers to
//! the orders.
//!
//! **Invariants**
//! - A crash may repeat a call, but loses no message.
//! - A message leaves the outbox only after a commit by its order's transactor, or if the slot of
//!   its order is in another volume.
//! - The number of calls in flight is bounded by the outbox.
//!
//! Deliberately absent: the schedule of retries, the circuit breaker and the retry budget, which
//! belong to `outbox`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::domain::order::{Command, Order};
use crate::outbox::warehouse_client::{Answer, Warehouse};
use crate::outbox::{CallHealth, Failure, FailureKind, Job, Kind, MessageState, Outbox};
use crate::runtime;
use crate::runtime::trace::{self, FinishedSpan, SpanKind, SpanOutcome, TraceContext};
use crate::runtime::watch;
use crate::volume::state::{OrderError, VolumeState, wants};
use crate::volume::transactor::{Ask, Transactors};

/// Pause before a message is tried again if this volume could not read the order or store the
/// outcome, for example because the disk is full or the order is being migrated.
const OWN_FAULT_WAIT_MS: u64 = 1_000;

/// Sends due messages until `stop` becomes `true`. Calls in flight are then dropped, and the next
/// server of the volume repeats them.
pub(crate) async fn run(
    transactors: Arc<Transactors>,
    wms: Arc<dyn Warehouse>,
    mut stop: watch::Receiver<bool>,
) {
    let state = Arc::clone(transactors.state());
    let mut calls = JoinSet::new();
    loop {
        while calls.try_join_next().is_some() {}
        // The future is created before the outbox is read, so that a notification after the read is
        // not lost.
        let notified = state.message_due.notified();
        let now_ms = state.now().monotonic_ms;
        let next = state.outbox().next(now_ms);
        let next_wait = match next {
            Ok(job) if !state.slots.has_order(&job.order) => {
                // The order has migrated, and `forget_messages` has not removed its message yet.
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

/// Puts the message of a call back if the task of the call panics. Otherwise the message would stay
/// in flight for ever.
struct InFlight {
    state: Arc<VolumeState>,
    job: Option<Job>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            let at_ms = self.state.now().monotonic_ms + OWN_FAULT_WAIT_MS;
            self.state.outbox().put_back(&job, at_ms);
            self.state.message_due.notify_one();
        }
    }
}

async fn send_one(transactors: Arc<Transactors>, wms: Arc<dyn Warehouse>, job: Job) {
    let state = transactors.state();
    let mut in_flight = InFlight {
        state: Arc::clone(state),
        job: Some(job.clone()),
    };
    let put_back = |fault: &OrderError| {
        match fault {
            // The order is migrating or has migrated, this volume server is closing, or another
            // commit changes the order's reservation. The dispatcher of the server that then has
            // the order sends the message again.
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
            // A message without its order cannot occur, because both are committed together. If it
            // occurs nevertheless, the message becomes a dead letter, because no retry would find
            // the order.
            tracing::error!(order = %job.order, "message without an order failed for good");
            let failure = Failure::new(FailureKind::Malformed, "the order does not exist");
            count(state, &*wms, job.kind, |outbox| {
                outbox.failed(&job, &failure, state.now(), 0.0);
                Some(failure.reason.clone())
            });
        }
        Ok(Some(order)) if !wants(order.state, job.kind) => {
            // The order does not need the message. Usually a step of the order, such as a
            // cancellation, was just committed and will remove the message. Otherwise a fault has
            // left the message in the outbox. It would be sent for ever, because no answer to it
            // changes the order.
            match transactors.ask(&job.order, Ask::Drop(job.kind)).await {
                Ok(outcome) => {
                    if !outcome.repeated {
                        tracing::warn!(order = %job.order, kind = job.kind.name(), state = order.state.name(), "message removed: its order does not need it");
                    }
                    let now_ms = state.now().monotonic_ms;
                    state.outbox().put_back(&job, now_ms);
                }
                Err(fault) => put_back(&fault),
            }
        }
        Ok(Some(order)) => {
            let answer = match state.traced_orders.of(&job.order) {
                Some(trace) => send_traced(trace, &*wms, job.kind, &order).await,
                None => wms.send(job.kind, &order).await,
            };
            if job.kind == Kind::Deliver && !matches!(answer, Answer::Failed(_)) {
                state.traced_orders.forget(&job.order);
            }
            let taken = match command(job.kind, &answer) {
                Ok(command) => {
                    let taken = transactors.ask(&job.order, Ask::Command(command)).await;
                    taken.map(|_| {
                        count(state, &*wms, job.kind, |outbox| {
                            outbox.answered(&job);
                            None
                        });
                    })
                }
                Err(failure) => failed(&transactors, &*wms, &job, &failure).await,
            };
            if let Err(fault) = taken {
                put_back(&fault);
            }
        }
    }
    // Each arm has counted the call as ended.
    in_flight.job = None;
    state.message_due.notify_one();
}

/// Sends a message as part of `trace`, the trace of the latest traced command about the order.
async fn send_traced(trace: TraceContext, wms: &dyn Warehouse, kind: Kind, order: &Order) -> Answer {
    let span = trace.child();
    let started = SystemTime::now();
    let begun = Instant::now();
    let answer = span.scope(wms.send(kind, order)).await;
    let finished = || FinishedSpan {
        name: match kind {
            Kind::Announce => "POST warehouse /order/new",
            Kind::Deliver => "POST warehouse /order/process_delivery",
        },
        kind: SpanKind::Client,
        context: span,
        parent: Some(trace.span),
        started,
        took: begun.elapsed(),
        outcome: match &answer {
            Answer::Done { .. } => SpanOutcome::Status(200),
            Answer::Refused { .. } => SpanOutcome::Status(409),
            Answer::Failed(_) => SpanOutcome::Unanswered,
        },
        attributes: vec![
            ("order.id", order.id.to_string()),
            ("server.address", wms.address()),
        ],
    };
    trace::finish(finished, span);
    answer
}

/// Returns the command that follows from the warehouse's answer, or the reason why the call failed.
fn command(kind: Kind, answer: &Answer) -> Result<Command, Failure> {
    match (kind, answer.clone()) {
        (_, Answer::Failed(failure)) => Err(failure),
        (Kind::Announce, Answer::Done { .. }) => Ok(Command::ConfirmAnnouncement),
        (Kind::Announce, Answer::Refused { reason }) => Ok(Command::RefuseAnnouncement { reason }),
        (Kind::Deliver, Answer::Done { sequence }) => Ok(Command::ConfirmDelivery { sequence }),
        (Kind::Deliver, Answer::Refused { reason }) => Ok(Command::RefuseDelivery { reason }),
    }
}

/// Calls `end`, which records the end of a call to the warehouse in the outbox. `end` returns the
/// cause if the call failed, and `None` if the warehouse answered. Logs if the calls of this kind
/// begin to fail or are answered again, and if the circuit breaker opened or closed.
fn count(
    state: &VolumeState,
    wms: &dyn Warehouse,
    kind: Kind,
    end: impl FnOnce(&mut Outbox) -> Option<String>,
) {
    let mut outbox = state.outbox();
    let before = outbox.call_health(kind);
    let cause = end(&mut outbox);
    let (now, failures) = (outbox.call_health(kind), outbox.failures(kind));
    drop(outbox);
    if now == before {
        return;
    }
    let volume = state.slots.volume();
    match (before, now) {
        (_, CallHealth::Failing) => tracing::warn!(
            %volume,
            kind = kind.name(),
            warehouse = wms.address(),
            failures,
            cause,
            "calls to the warehouse failed, retries continue"
        ),
        (_, CallHealth::Away) => tracing::warn!(
            %volume,
            kind = kind.name(),
            warehouse = wms.address(),
            failures,
            cause,
            "circuit breaker opened: calls to the warehouse fail"
        ),
        (CallHealth::Failing, CallHealth::Answered) => tracing::info!(
            %volume,
            kind = kind.name(),
            warehouse = wms.address(),
            "warehouse answered again"
        ),
        (_, CallHealth::Answered) => tracing::info!(
            %volume,
            kind = kind.name(),
            warehouse = wms.address(),
            "circuit breaker closed: the warehouse answers again"
        ),
    }
}

async fn failed(
    transactors: &Arc<Transactors>,
    wms: &dyn Warehouse,
    job: &Job,
    failure: &Failure,
) -> Result<(), OrderError> {
    let state = transactors.state();
    let jitter = runtime::random_share();
    let mut message = None;
    count(state, wms, job.kind, |outbox| {
        message = outbox.failed(job, failure, state.now(), jitter);
        Some(failure.reason.clone())
    });
    let Some(message) = message else { return Ok(()) };
    if message.state == MessageState::Dead {
        tracing::warn!(
            order = %job.order,
            kind = job.kind.name(),
            attempts = message.attempts,
            reason = failure.reason,
            trace_id = state.traced_orders.of(&job.order).map(TraceContext::trace_id),
            "message to the warehouse given up"
        );
    }
    // If this write fails, only the memory knows of the failed attempt. After a restart, this
    // attempt is not counted, so the message may get more attempts than allowed.
    if let Err(fault) = transactors.ask(&job.order, Ask::Note(job.kind, message)).await {
        tracing::warn!(order = %job.order, ?fault, "failed attempt not recorded");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
