//! Data that the warehouse sends regularly to the order management: stock snapshots and statistics
//! files.
//!
//! Invariants:
//! - Snapshots are sent one at a time, the first at the start, then at fixed intervals. If a
//!   snapshot takes longer than an interval, the missed times are skipped.
//! - All entries up to a snapshot are durable in the ledger before the snapshot is sent. So even
//!   after a power cut of the warehouse, the order management knows no delivery that the ledger
//!   lacks.
//! - The order management must refuse a snapshot that is out of date. A snapshot that breaks off
//!   must change nothing in the order management.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::Instant;

use super::behaviour::SnapshotFault;
use super::{Shared, Stock, StockCsv, files, unix_ms};
use crate::Result;
use crate::client::Client;

/// Header with the sequence number of the last delivery that is subtracted in a snapshot.
const AS_OF: &str = "x-stock-as-of";
/// Maximum time for one try to send a snapshot. Sending the 22 MB of the default stock takes far
/// less.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Smallest and largest pause after a failed try to send a snapshot. The pause doubles with each
/// try, up to the largest pause.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A copy of the stock, with the sequence number of the last delivery that is subtracted in it.
struct Snapshot {
    stock: Stock,
    as_of: u64,
}

/// Sends a snapshot at each interval until the warehouse stops.
pub(super) async fn send_snapshots(shared: Arc<Shared>) {
    let client = Client::new(shared.config.oms.clone(), SNAPSHOT_TIMEOUT);
    let mut due = Instant::now();
    let mut sender = SnapshotSender {
        shared: &shared,
        client: &client,
        number: 0,
        earlier: None,
    };
    loop {
        tokio::select! {
            () = sender.send_until_answered() => {}
            () = shared.stopped() => return,
        }
        due = next_beat(due, shared.config.snapshot_every);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = shared.stopped() => return,
        }
    }
}

/// Returns the next time at which a periodic task is due: `last` plus the smallest positive
/// multiple of `every` for which the time is not in the past.
fn next_beat(last: Instant, every: Duration) -> Instant {
    let now = Instant::now();
    let mut due = last + every;
    if due < now {
        let missed = (now - due).as_nanos() / every.as_nanos() + 1;
        due += every.saturating_mul(missed.min(u32::MAX.into()) as u32);
    }
    due
}

/// Result of sending a snapshot: taken (a status below 300), refused (a status from 300 to 499), or
/// to be tried again (a higher status, or no answer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Taken,
    Refused,
    TryAgain,
}

impl Sent {
    /// Returns the result of a snapshot that was answered with this status.
    fn of(status: u16) -> Self {
        match status {
            0..=299 => Self::Taken,
            300..=499 => Self::Refused,
            _ => Self::TryAgain,
        }
    }
}

struct SnapshotSender<'a> {
    shared: &'a Shared,
    client: &'a Client,
    number: u64,
    /// The last snapshot that was accepted under the fault [`SnapshotFault::Late`]; `None` before
    /// the first one. It is sent again after the next accepted one.
    earlier: Option<Snapshot>,
}

impl SnapshotSender<'_> {
    /// Sends the current stock until the order management accepts or refuses it, or the ledger has
    /// failed. Each try takes a new snapshot, because the stock changes between the tries. Under
    /// the fault `Truncated`, every second call sends one snapshot only once, up to its half.
    async fn send_until_answered(&mut self) {
        let fault = self.shared.behaviour().snapshots;
        self.number += 1;
        if fault == SnapshotFault::Truncated && self.number.is_multiple_of(2) {
            return self.send_broken().await;
        }
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let snapshot = match take_stock(self.shared).await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    tracing::error!(%error, "no snapshot can be sent");
                    return;
                }
            };
            match self.send(&snapshot).await {
                Sent::Taken => {
                    self.shared
                        .counters
                        .snapshots_sent
                        .fetch_add(1, Ordering::Relaxed);
                    self.shared.stocked.send_replace(true);
                    return self.send_again(fault, snapshot).await;
                }
                Sent::Refused => return,
                Sent::TryAgain => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn send(&self, snapshot: &Snapshot) -> Sent {
        let as_of = snapshot.as_of;
        let body = snapshot.stock.clone().into_csv();
        let answer = match self.client.put_csv("/stocks", (AS_OF, as_of), body).await {
            Ok(answer) => answer,
            Err(failure) => {
                tracing::debug!(%failure, "stock snapshot not taken; retrying");
                return Sent::TryAgain;
            }
        };
        let status = answer.status;
        let sent = Sent::of(status);
        match sent {
            Sent::Taken => tracing::debug!(as_of, "stock snapshot taken"),
            Sent::Refused => {
                self.count_refused();
                tracing::warn!(as_of, status, answer = answer.excerpt(), "stock snapshot refused");
            }
            Sent::TryAgain => {
                tracing::warn!(
                    status,
                    answer = answer.excerpt(),
                    "stock snapshot not taken; retrying"
                );
            }
        }
        sent
    }

    fn count_refused(&self) {
        let refused = &self.shared.counters.snapshots_refused;
        refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends the same snapshot again under the fault `Twice`, or the previous snapshot under
    /// `Late`.
    async fn send_again(&mut self, fault: SnapshotFault, snapshot: Snapshot) {
        match fault {
            SnapshotFault::Twice => {
                self.shared.counters.count_fault("snapshot-twice");
                self.send(&snapshot).await;
            }
            SnapshotFault::Late => {
                let late = self.earlier.replace(snapshot);
                if let Some(late) = late {
                    self.shared.counters.count_fault("snapshot-late");
                    self.send(&late).await;
                }
            }
            SnapshotFault::None | SnapshotFault::Truncated => {}
        }
    }

    /// Sends the first half of a snapshot, then breaks the connection.
    async fn send_broken(&self) {
        let Ok(Snapshot { stock, as_of }) = take_stock(self.shared).await else {
            return;
        };
        self.shared.counters.count_fault("snapshot-truncated");
        let body = BrokenOff::halfway(stock.into_csv());
        let answer = self.client.put_csv("/stocks", (AS_OF, as_of), body).await;
        if let Ok(answer) = answer {
            let status = answer.status;
            match Sent::of(status) {
                Sent::Taken => tracing::error!(status, "a snapshot that broke off was taken"),
                Sent::Refused => self.count_refused(),
                // The order management has failed, and has not judged the snapshot.
                Sent::TryAgain => {}
            }
        }
    }
}

/// A request body that fails after half of its pieces, which breaks the connection.
struct BrokenOff {
    rows: StockCsv,
    pieces_left: usize,
}

impl BrokenOff {
    fn halfway(rows: StockCsv) -> Self {
        let pieces_left = rows.clone().count() / 2;
        Self { rows, pieces_left }
    }
}

impl Body for BrokenOff {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let piece = this.pieces_left.checked_sub(1).and_then(|left| {
            this.pieces_left = left;
            this.rows.next()
        });
        Poll::Ready(Some(match piece {
            Some(piece) => Ok(Frame::data(piece)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }))
    }
}

/// Restocks the warehouse's books (`books.rs`) if configured, then copies the stock and the
/// sequence number of the last delivery. Returns the copy once all ledger entries up to the copy
/// are durable.
async fn take_stock(shared: &Shared) -> Result<Snapshot> {
    let (snapshot, ticket) = {
        let mut inside = shared.inside();
        if shared.config.restock
            && let Some(entry) = inside.books.restock(shared.config.seed)
        {
            inside.enter(&entry);
        }
        let ticket = inside.ledger.ticket();
        let snapshot = Snapshot {
            stock: inside.books.stock().clone(),
            as_of: inside.books.sequence(),
        };
        (snapshot, ticket)
    };
    ticket.durable().await?;
    Ok(snapshot)
}

/// Writes statistics files until the warehouse stops, the first one immediately.
pub(super) async fn write_stat_files(shared: Arc<Shared>) {
    let mut due = Instant::now();
    let mut last_ms = 0;
    for number in 0.. {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = shared.stopped() => return,
        }
        due = next_beat(due, shared.config.stat_file_every);
        // The time in the file name always increases, so that no name is used twice if the system
        // clock is set back.
        last_ms = unix_ms().max(last_ms + 1);
        let config = shared.config.clone();
        let written = tokio::task::spawn_blocking(move || {
            let text = files::stat_lines(config.seed, number, config.stat_file_lines);
            files::write_stat_file(&config.data, last_ms, &text)
        });
        match written.await {
            Ok(Ok(path)) => {
                shared.counters.stat_files_written.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(path = %path.display(), "statistics file written");
            }
            Ok(Err(error)) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "statistics file not written"
            ),
            Err(error) => tracing::error!(%error, "statistics file not written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_order_management_is_no_refusal() {
        for (status, expected) in [
            (200, Sent::Taken),
            (299, Sent::Taken),
            (300, Sent::Refused),
            (409, Sent::Refused),
            (499, Sent::Refused),
            (500, Sent::TryAgain),
            (503, Sent::TryAgain),
        ] {
            assert_eq!(Sent::of(status), expected, "{status}");
        }
    }
}
