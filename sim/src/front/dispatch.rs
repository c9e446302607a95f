//! Starts each request of the timeline and waits until all requests have ended.
//!
//! Invariants:
//! - A permit (one of `FrontConfig::in_flight_max`) is acquired before the next planned request, an
//!   [`Arrival`], is received from the pacer. A stop interrupts only the wait for the permit and
//!   the wait for the arrival, before an arrival has been received. So every received arrival is
//!   sent or dropped, and recorded.
//! - A payment or cancellation that is planned after its order waits until the request that places
//!   the order has ended. If the order is dropped, the payments and cancellations that wait for it
//!   are dropped as well. In a replay, no request waits for another one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::owners::Owners;
use super::recorder::{Sample, Target};
use super::{FrontConfig, Outcome, pacer, stopped};
use crate::Result;
use crate::client::{Answer, Client, Failure, FailureKind};
use crate::telemetry::{EventKind, Phase, Telemetry};
use crate::wire::{Payment, Problem};
use crate::workload::{Arrival, Load, LoadPhase, Request, Workload};

/// Lag above which a request is late. The limit is well above the delays of a timer and of a busy
/// scheduler, and well below a delay that a customer notices.
const LATE_AFTER: Duration = Duration::from_millis(10);
/// Capacity of the queue from the pacer (the clock of the run), in arrivals. If the queue is full,
/// the pacer waits, and then hands the delayed arrivals over without pauses.
const ARRIVALS_QUEUED: usize = 1024;
/// Maximum length of the name of a problem (RFC 9457) in bytes. A longer name is not recorded. All
/// names in `docs/errors.md` are shorter.
const PROBLEM_NAME_MAX: usize = 40;

/// Nodes to which the front sends its requests.
pub(super) enum Way {
    /// All requests are sent to the node at the address `FrontConfig::oms`.
    Entry(Box<Client>),
    /// Each request is sent to the node that owns its order or the statistics.
    Owners(Arc<Owners>),
}

/// State shared by the front's tasks.
pub(super) struct Shop {
    pub(super) way: Way,
    pub(super) samples: Sender<Sample>,
    pub(super) sent: Arc<AtomicU64>,
    pub(super) started: Instant,
    pub(super) started_at_ms: u64,
}

/// Progress of the request that places an order. The order's payments and cancellations wait for
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OrderProgress {
    /// The request has not ended yet.
    Pending,
    /// The request was sent and has ended, with or without an answer.
    Answered,
    /// The request was not sent.
    Dropped,
}

/// One request to be sent, with its permit to be in flight.
struct Task {
    arrival: Arrival,
    /// Progress of the order for which this payment or cancellation waits; `None` for a request
    /// that waits for no order.
    after: Option<watch::Receiver<OrderProgress>>,
    /// Sender of the progress of this order to its payments and cancellations; `None` for a request
    /// for which no other request waits.
    progress: Option<watch::Sender<OrderProgress>>,
    drop_after: Duration,
    _permit: OwnedSemaphorePermit,
}

/// An order with payments or cancellations that are not received from the pacer yet. `follow_ups`
/// is the number of those that are still to come.
struct Awaited {
    progress: watch::Receiver<OrderProgress>,
    follow_ups: u8,
}

/// Starts every request, or those before a stop, and waits until all of them have ended. Returns
/// the time at which `stop` ended the run early, since the start of the run; `None` if all planned
/// requests were received from the pacer.
pub(super) async fn dispatch(
    config: &FrontConfig,
    workload: &Workload,
    shop: &Arc<Shop>,
    telemetry: &Telemetry,
    stop: &mut watch::Receiver<bool>,
) -> Result<Option<Duration>> {
    let (queue, mut arrivals) = mpsc::channel(ARRIVALS_QUEUED);
    let pacer = pacer::Pacer::start(workload.schedule(), shop.started, queue)?;
    let in_flight = Arc::new(Semaphore::new(config.in_flight_max));
    let mut awaited: HashMap<u64, Awaited> = HashMap::new();
    let mut phases = PhaseEvents::new(&config.load);
    let mut ended_early = None;
    loop {
        let next = async {
            let permit = Arc::clone(&in_flight).acquire_owned().await;
            (permit, arrivals.recv().await)
        };
        let (permit, arrival) = tokio::select! {
            next = next => next,
            () = stopped(stop) => {
                ended_early = Some(shop.started.elapsed());
                break;
            }
        };
        let (Ok(permit), Some(arrival)) = (permit, arrival) else {
            break;
        };
        phases.reach(arrival.at, telemetry);
        let (after, progress) = relate(&mut awaited, arrival.request);
        tokio::spawn(perform(
            Arc::clone(shop),
            Task {
                arrival,
                after,
                progress,
                drop_after: config.drop_after,
                _permit: permit,
            },
        ));
    }
    telemetry.update(|state| state.phase = Phase::Draining);
    drop(arrivals);
    pacer.stop().await;
    // All permits are available once all requests have ended. Every request has a deadline, so the
    // wait ends. The call cannot fail, because the semaphore is never closed.
    let all = in_flight.acquire_many(config.in_flight_max as u32).await;
    drop(all);
    Ok(ended_early)
}

/// Connects an order with the payments and cancellations that wait for it. Returns the receiver of
/// the order's progress for such a payment or cancellation, and the sender for the order. Both are
/// `None` for any other request.
fn relate(
    awaited: &mut HashMap<u64, Awaited>,
    request: Request,
) -> (
    Option<watch::Receiver<OrderProgress>>,
    Option<watch::Sender<OrderProgress>>,
) {
    match request {
        Request::Order(order) if order.follow_ups > 0 => {
            let (sender, progress) = watch::channel(OrderProgress::Pending);
            let follow_ups = order.follow_ups;
            awaited.insert(order.id, Awaited { progress, follow_ups });
            (None, Some(sender))
        }
        Request::Payment {
            order,
            is_early: false,
            ..
        }
        | Request::Cancel { order } => {
            let Some(known) = awaited.get_mut(&order) else {
                return (None, None);
            };
            known.follow_ups -= 1;
            let progress = known.progress.clone();
            if known.follow_ups == 0 {
                awaited.remove(&order);
            }
            (Some(progress), None)
        }
        _ => (None, None),
    }
}

/// Reports the beginnings of load phases, and the end of the time in which orders and statistics
/// requests start, to the telemetry.
struct PhaseEvents {
    upcoming: Vec<(Duration, LoadPhase)>,
    window: Duration,
    is_over: bool,
}

impl PhaseEvents {
    fn new(load: &Load) -> Self {
        let mut begins = Duration::ZERO;
        let mut upcoming = Vec::new();
        if let Load::Phases(phases) = load {
            for phase in phases {
                upcoming.push((begins, phase.clone()));
                begins += phase.duration;
            }
        }
        upcoming.reverse();
        Self {
            upcoming,
            window: load.duration(),
            is_over: false,
        }
    }

    fn reach(&mut self, at: Duration, telemetry: &Telemetry) {
        while let Some((begins, phase)) = self.upcoming.pop_if(|(begins, _)| *begins <= at) {
            let text = match phase.rate == phase.rate_end {
                true => format!("load phase {}: {} requests/s", phase.name, phase.rate),
                false => format!(
                    "load phase {}: {} to {} requests/s",
                    phase.name, phase.rate, phase.rate_end
                ),
            };
            tracing::debug!(begins_s = begins.as_secs_f64(), "{text}");
            telemetry.event(EventKind::Load, phase.name, text);
        }
        if !self.is_over && at >= self.window {
            self.is_over = true;
            telemetry.update(|state| state.phase = Phase::Draining);
        }
    }
}

/// Sends one request, or drops it if it is too late or its order was dropped. Hands the result over
/// to the recorder.
async fn perform(shop: Arc<Shop>, task: Task) {
    let Task {
        arrival,
        after,
        progress,
        drop_after,
        _permit,
    } = task;
    let mut at = arrival.at;
    let mut is_dropped = false;
    if let Some(mut order) = after {
        let is_pending = *order.borrow() == OrderProgress::Pending;
        let reached = order.wait_for(|order| *order != OrderProgress::Pending).await;
        // An error means that the task of the order panicked and dropped the sender without a
        // result. Then this request is dropped, as if the order had been dropped.
        is_dropped = reached.map_or(true, |order| *order == OrderProgress::Dropped);
        if is_pending {
            // The request of the order ended after the planned start of this request. A customer
            // pays or cancels only afterwards, so the intended start becomes the end of the order's
            // request.
            at = at.max(shop.started.elapsed());
        }
    }
    let intended = shop.started + at;
    let lag = intended.elapsed();
    is_dropped |= lag > drop_after;
    let Ended { outcome, problem } = if is_dropped {
        Ended {
            outcome: Outcome::NotSent,
            problem: None,
        }
    } else {
        shop.sent.fetch_add(1, Ordering::Relaxed);
        send(&shop.way, arrival.request).await
    };
    let sample = Sample {
        target: Target::of(arrival.request),
        at,
        at_ms: shop.started_at_ms + at.as_millis() as u64,
        took: intended.elapsed(),
        lag,
        is_late: lag > LATE_AFTER,
        outcome,
        problem,
    };
    // The recorder runs until all senders of samples are dropped, and `shop` has one of them. So
    // sending fails only if the recorder's thread has panicked, which `Recorder::finish` reports.
    let _ = shop.samples.send(sample);
    if let Some(progress) = progress {
        progress.send_replace(match is_dropped {
            true => OrderProgress::Dropped,
            false => OrderProgress::Answered,
        });
    }
}

/// Result of one request.
struct Ended {
    outcome: Outcome,
    /// Name of the problem (RFC 9457) in an error answer; `None` if there is no valid name.
    problem: Option<Box<str>>,
}

async fn send(way: &Way, request: Request) -> Ended {
    let (path, body) = match request {
        Request::Stats { product, .. } => (format!("/aggregate-stats/{product}"), None),
        Request::Order(order) => ("/order".to_owned(), Some(to_json(&order.to_wire()))),
        Request::Payment {
            order,
            transaction_id,
            ..
        } => {
            let body = Payment {
                transaction_id: transaction_id.into(),
            };
            (format!("/order/{order}/payment-callback"), Some(to_json(&body)))
        }
        Request::Cancel { order } => (format!("/order/{order}/cancel"), Some(Bytes::new())),
    };
    let answer = match way {
        Way::Entry(client) => client.exchange(&path, body).await,
        Way::Owners(owners) => owners.exchange(&request, &path, body).await,
    };
    outcome_of(answer, request)
}

fn outcome_of(answer: Result<Answer, Failure>, request: Request) -> Ended {
    match answer {
        Ok(answer) => Ended {
            outcome: Outcome::Status(answer.status),
            problem: (answer.status >= 400)
                .then(|| problem_name(&answer.body))
                .flatten(),
        },
        Err(failure) => {
            tracing::debug!(?request, %failure, "no answer");
            let outcome = match failure.kind {
                FailureKind::Refused => Outcome::Refused,
                FailureKind::Closed => Outcome::Closed,
                FailureKind::TimedOut => Outcome::TimedOut,
                FailureKind::Other => Outcome::Failed,
            };
            Ended {
                outcome,
                problem: None,
            }
        }
    }
}

/// Returns the name of a problem (RFC 9457): the last part of its type URI. Returns `None` if the
/// body is no problem, or if the name is empty, is too long or has other characters than letters,
/// digits, `-` and `_`.
fn problem_name(body: &[u8]) -> Option<Box<str>> {
    let problem: Problem = serde_json::from_slice(body).ok()?;
    let name = problem.kind.rsplit([':', '/', '#']).next()?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (!name.is_empty() && name.len() <= PROBLEM_NAME_MAX && name.chars().all(is_name)).then(|| name.into())
}

fn to_json<T: serde::Serialize>(value: &T) -> Bytes {
    // A request has only numbers, texts and lists, so its serialization cannot fail.
    serde_json::to_vec(value).expect("a request is plain data").into()
}

impl Target {
    fn of(request: Request) -> Self {
        match request {
            Request::Stats { id, product } => Self::Stats { id, product },
            Request::Order(order) => Self::Order(order),
            Request::Payment { order, .. } => Self::Payment { order },
            Request::Cancel { order } => Self::Cancel { order },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_problem_is_the_last_part_of_its_type() {
        let body = |kind: &str| format!(r#"{{"type":"{kind}","title":"t","status":409}}"#);
        for (kind, expected) in [
            (
                "urn:imt-order:problem:insufficient-stock",
                Some("insufficient-stock"),
            ),
            ("https://example.org/problems#busy", Some("busy")),
            ("urn:x:", None),
            ("urn:x:a b", None),
        ] {
            assert_eq!(problem_name(body(kind).as_bytes()).as_deref(), expected, "{kind}");
        }
        assert_eq!(problem_name(b"no store has it"), None);
        assert_eq!(problem_name(body(&"x".repeat(41)).as_bytes()), None);
    }
}
