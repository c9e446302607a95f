//! The clock of a run: hands each request over at its intended start.
//!
//! It is a thread of its own. An asynchronous timer ticks in whole milliseconds and runs late when
//! the tasks beside it are busy, and both would look like latency of the order management. The
//! pacer waits for a full queue and catches up afterwards. Intended starts are never moved.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::workload::{Arrival, Schedule};
use crate::{Error, Result};

/// The running clock.
pub(super) struct Pacer {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Pacer {
    /// Starts to hand over the schedule's requests; the queue is closed after the last.
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
                    // Nearly always there is room; waiting for it is the dear way.
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

    /// Ends it, early if the queue is not yet closed.
    pub(super) async fn stop(self) {
        drop(self.stop);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the front's pacer failed; the run may be shorter than asked for");
        }
    }
}
