//! Cleaning up: rows of slots that are elsewhere are taken out of a volume, page by page, beside
//! everything else.
//!
//! They are rubbish from the moment at which the ring gives their slots to another volume, or a
//! move that brought them is undone; nobody looks at them. A note in the volume says that there may
//! be some and goes last, so a crash repeats the look. No slot comes to a volume that is not clean,
//! so what is found to be rubbish stays rubbish.

use std::sync::Arc;

use tokio::time::Instant;

use crate::error::StorageError;
use crate::storage::change_feed::Walk;
use crate::storage::codec;
use crate::storage::owned_slots::{Home, Slots};
use crate::storage::volume::{Volume, order_id};
use crate::storage::write_batch::{ARRIVING, PURGE, Table, WriteBatch};
use crate::volume::migration::source::broken;
use crate::volume::migration::target::blocking;

/// Rows looked at before orders get their turn.
const LOOKED_AT: usize = 20_000;
/// Rows taken out by one commit.
const ROWS_A_COMMIT: usize = 2_000;

/// What lies in a volume and is to be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StaleRows {
    /// It was in force here, and counted.
    Counted,
    /// It came with a move that was undone.
    NeverInForce,
}

/// Takes all rubbish out, then the notes of it. False if it was told to stop before.
pub(crate) async fn purge(
    storage: &Arc<Volume>,
    slots: &Arc<Slots>,
    stale_rows: StaleRows,
    is_stopped: impl Fn() -> bool,
) -> Result<bool, StorageError> {
    let walking = Arc::clone(storage);
    let mut walk = blocking(move || Ok(walking.walk())).await?;
    loop {
        if is_stopped() {
            return Ok(false);
        }
        let (slots, begun) = (Arc::clone(slots), Instant::now());
        let (walked, batch, is_over) = blocking(move || {
            let (batch, is_over) = page(&mut walk, &slots, stale_rows)?;
            Ok((walk, batch, is_over))
        })
        .await?;
        walk = walked;
        if !batch.is_empty() {
            storage.permit().await?.send(batch).durable().await?;
        }
        if is_over {
            break;
        }
        tokio::task::yield_now().await;
        // Nobody waits for it: orders have half of the disk's time at least.
        tokio::time::sleep(begun.elapsed()).await;
    }
    let mut batch = WriteBatch::default();
    batch.remove(Table::Meta, ARRIVING);
    batch.remove(Table::Meta, PURGE);
    storage.permit().await?.send(batch).durable().await?;
    Ok(true)
}

fn page(walk: &mut Walk, slots: &Slots, stale_rows: StaleRows) -> Result<(WriteBatch, bool), StorageError> {
    let mut batch = WriteBatch::default();
    for _ in 0..LOOKED_AT {
        if batch.rows().len() >= ROWS_A_COMMIT {
            break;
        }
        let is_row =
            walk.step(|table, key, value| row(&mut batch, slots, stale_rows, (table, key, value)))?;
        if !is_row {
            return Ok((batch, true));
        }
    }
    Ok((batch, false))
}

fn row(
    batch: &mut WriteBatch,
    slots: &Slots,
    stale_rows: StaleRows,
    (table, key, value): (Table, &[u8], &[u8]),
) -> Result<(), StorageError> {
    let fault = |fault| broken(table, key, fault);
    match table {
        Table::Arriving => batch.remove(table, key),
        Table::Arrivals => {
            let ids = codec::decode_arrivals(value).map_err(fault)?;
            let stay: Vec<_> = ids.iter().filter(|id| slots.has_order(id)).collect();
            if stay.is_empty() {
                batch.remove(table, key);
            } else if stay.len() < ids.len() {
                let mut page = Vec::new();
                codec::encode_arrivals(stay.into_iter(), &mut page);
                batch.put_raw(table, key, &page);
            }
        }
        _ => match slots.home_of(table, key, Some(value)).map_err(fault)? {
            Home::Slot(slot) if !slots.has(slot) && table != Table::Meta => {
                if stale_rows == StaleRows::Counted && table == Table::Orders {
                    let order = codec::decode_order(order_id(key).map_err(fault)?, value);
                    batch.subtract_order(&order.map_err(fault)?);
                } else if stale_rows == StaleRows::Counted && table == Table::StatFiles {
                    batch.stat_files_moved(-1);
                }
                batch.remove(table, key);
            }
            _ => {}
        },
    }
    Ok(())
}
