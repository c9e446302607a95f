//! What the warehouse tells the order management unasked: its whole stock, and its sales.
//!
//! Snapshots go out one at a time, at the start (tried until one is taken) and then at fixed
//! distances; a beat that comes while one is still on its way is skipped. Everything that a
//! snapshot counts is durable in the ledger before the snapshot leaves: the order management must
//! never know more deliveries than the warehouse remembers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{House, Stock, files, unix_ms};
use crate::Result;
use crate::client::Client;

/// The header that names the last delivery a snapshot counts.
const AS_OF: &str = "x-stock-as-of";
/// Longest time for one snapshot: far beyond what 22 MB take anywhere.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries, while nobody takes the snapshot: from the first to the second value,
/// doubling.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Sends snapshots until the warehouse stops.
pub(super) async fn send_snapshots(house: Arc<House>) {
    let client = Client::new(house.config.oms.clone(), SNAPSHOT_TIMEOUT);
    let mut due = Instant::now();
    loop {
        tokio::select! {
            () = send_until_answered(&house, &client) => {}
            () = house.stopped() => return,
        }
        due = next_beat(due, house.config.snapshot_every);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = house.stopped() => return,
        }
    }
}

/// The next beat that is still to come.
fn next_beat(last: Instant, every: Duration) -> Instant {
    let now = Instant::now();
    let mut due = last + every;
    if due < now {
        let missed = (now - due).as_nanos() / every.as_nanos() + 1;
        due += every.saturating_mul(missed.min(u32::MAX.into()) as u32);
    }
    due
}

/// Sends snapshots, each the stock of its moment, until one is taken or refused for good.
async fn send_until_answered(house: &House, client: &Client) {
    let mut pause = RETRY_PAUSE.0;
    loop {
        let (stock, as_of) = match take_stock(house).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::error!(%error, "no snapshot can be sent");
                return;
            }
        };
        match client.put_csv("/stocks", (AS_OF, as_of), stock.into_csv()).await {
            Ok(answer) if answer.status < 300 => {
                house.counters.snapshots_sent.fetch_add(1, Ordering::Relaxed);
                house.stocked.send_replace(true);
                tracing::debug!(as_of, "the stock snapshot is taken in");
                return;
            }
            Ok(answer) if answer.status < 500 => {
                tracing::error!(
                    as_of,
                    status = answer.status,
                    answer = answer.excerpt(),
                    "the stock snapshot is refused"
                );
                return;
            }
            Ok(answer) => {
                tracing::warn!(
                    status = answer.status,
                    answer = answer.excerpt(),
                    "trying the stock snapshot again"
                );
            }
            Err(failure) => tracing::debug!(%failure, "trying the stock snapshot again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_PAUSE.1);
    }
}

/// Lets in what comes back, and copies the stock and the sequence of the last delivery that it
/// counts.
async fn take_stock(house: &House) -> Result<(Stock, u64)> {
    let (stock, as_of, ticket) = {
        let mut inside = house.inside();
        if house.config.restock
            && let Some(entry) = inside.books.restock(house.config.seed)
        {
            inside.enter(&entry);
        }
        let ticket = inside.ledger.ticket();
        (inside.books.stock().clone(), inside.books.sequence(), ticket)
    };
    ticket.durable().await?;
    Ok((stock, as_of))
}

/// Writes stat files until the warehouse stops.
pub(super) async fn write_stat_files(house: Arc<House>) {
    let mut due = Instant::now();
    let mut last_ms = 0;
    for number in 0.. {
        due = next_beat(due, house.config.stat_file_every);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = house.stopped() => return,
        }
        // A clock set back must not bring a name that was there before.
        last_ms = unix_ms().max(last_ms + 1);
        let config = house.config.clone();
        let written = tokio::task::spawn_blocking(move || {
            let text = files::stat_lines(config.seed, number, config.stat_file_lines);
            files::write_stat_file(&config.data, last_ms, &text)
        });
        match written.await {
            Ok(Ok(path)) => {
                house.counters.stat_files_written.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(path = %path.display(), "stat file written");
            }
            Ok(Err(error)) => tracing::error!(error = &error as &dyn std::error::Error, "no stat file"),
            Err(error) => tracing::error!(%error, "no stat file"),
        }
    }
}
