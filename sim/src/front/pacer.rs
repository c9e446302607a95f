//! The pacer is the clock of a run: it hands each request over to the front's queue at its intended
//! start.
//!
//! The pacer is a separate thread. An asynchronous timer ticks in whole milliseconds and is late
//! while other tasks are busy. Both delays would appear as latency of the order management. If the
//! queue is full, the pacer waits, and then hands the delayed requests over without pauses. Their
//! intended starts stay the same.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::workload::{Arrival, Schedule};
use crate::{Error, Result};

/// A running pacer.
pub(super) struct Pacer {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Pacer {
    /// Starts to hand over the requests of the schedule. After the last request, or after a stop,
    /// the sender is dropped, which closes the queue.
    pub(super) fn start(schedule: Schedule, started: Instant, queue: Sender<Arrival>) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("front-pacer".into())
            .spawn(move || {
                for arrival in schedule {
                    let due = started + arrival.at;
                    let wait = due.saturating_duration_since(Instant::now());
                    if !wait.is_zero() && stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                    // The queue nearly always has room. `try_send` is cheaper than `blocking_send`,
                    // so it is tried first.
                    let sent = match queue.try_send(arrival) {
                        Err(TrySendError::Full(arrival)) => queue.blocking_send(arrival).is_ok(),
                        sent => sent.is_ok(),
                    };
                    if !sent {
                        return;
                    }
                }
            })
            .map_err(|source| Error::Io {
                action: "start the front's thread",
                path: "front-pacer".into(),
                source,
            })?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread. If the schedule is not finished, its remaining requests are not handed
    /// over. The receiver of the queue must be dropped before, because a thread that waits for room
    /// in the queue does not notice this call.
    pub(super) async fn stop(self) {
        drop(self.stop);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the front's pacer failed; the run may be shorter than asked for");
        }
    }
}
