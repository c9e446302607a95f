//! Cleanup: removes the rows of slots that another volume owns, page by page, while orders are
//! served.
//!
//! Rows become stale when the ring gives their slots to another volume, or when the migration that
//! staged them is undone. No request reads stale rows.
//!
//! **Invariants**
//! - A note (the row `CLEANUP` or `ARRIVING` of the table `Meta`) says that the volume may have
//!   stale rows. The notes are removed last, so a cleanup that was interrupted by a crash is
//!   repeated.
//! - A volume with such a note accepts no slots of a further migration, so no stale row becomes
//!   active.
//! - The orders that stay keep their indices on their pages of arrivals, because the cursors of
//!   clients contain such indices (`api::params::Position`).
//! - After each page, the cleanup pauses for as long as the page took, so that orders are not
//!   delayed.

use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::order::OrderId;
use crate::error::StorageError;
use crate::storage::change_feed::Walk;
use crate::storage::codec;
use crate::storage::owned_slots::{Home, Slots};
use crate::storage::volume::{Volume, order_id};
use crate::storage::write_batch::{ARRIVING, CLEANUP, Table, WriteBatch};
use crate::volume::migration::source::broken;
use crate::volume::migration::target::blocking;

/// Maximum number of rows read for one page.
const ROWS_READ_MAX: usize = 20_000;
/// Maximum number of rows that one commit removes or rewrites.
const ROWS_A_COMMIT: usize = 2_000;
/// Size of the rows of one commit, in bytes, at which no further row is added to it.
const BYTES_A_COMMIT: usize = 1 << 20;

/// The origin of the stale rows of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StaleRows {
    /// The rows were active in this volume, and the volume's counters include them.
    Counted,
    /// The rows were staged by a migration that was undone. The volume's counters do not include
    /// them.
    NeverActive,
}

/// Removes all stale rows, and then the notes about them. Returns `false` if `is_stopped` returned
/// `true` before the end.
pub(crate) async fn remove_stale_rows(
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
        let (walked, Page { batch, is_last }) = blocking(move || {
            let page = page(&mut walk, &slots, stale_rows)?;
            Ok((walk, page))
        })
        .await?;
        walk = walked;
        if !batch.is_empty() {
            storage.permit().await?.send(batch).durable().await?;
        }
        if is_last {
            break;
        }
        tokio::task::yield_now().await;
        // Orders are served at the same time, so the cleanup works at most half of the time.
        tokio::time::sleep(begun.elapsed()).await;
    }
    let mut batch = WriteBatch::default();
    batch.remove(Table::Meta, ARRIVING);
    batch.remove(Table::Meta, CLEANUP);
    storage.permit().await?.send(batch).durable().await?;
    Ok(true)
}

/// The removed and rewritten rows that result from one page of the walk over all rows.
struct Page {
    batch: WriteBatch,
    /// `true` if the walk over all rows has ended.
    is_last: bool,
}

fn page(walk: &mut Walk, slots: &Slots, stale_rows: StaleRows) -> Result<Page, StorageError> {
    let mut batch = WriteBatch::default();
    for _ in 0..ROWS_READ_MAX {
        if batch.rows().len() >= ROWS_A_COMMIT || batch.bytes() >= BYTES_A_COMMIT {
            break;
        }
        let is_row =
            walk.step(|table, key, value| remove_if_stale(&mut batch, slots, stale_rows, table, key, value))?;
        if !is_row {
            return Ok(Page { batch, is_last: true });
        }
    }
    Ok(Page {
        batch,
        is_last: false,
    })
}

fn remove_if_stale(
    batch: &mut WriteBatch,
    slots: &Slots,
    stale_rows: StaleRows,
    table: Table,
    key: &[u8],
    value: &[u8],
) -> Result<(), StorageError> {
    let fault = |fault| broken(table, key, fault);
    match table {
        Table::Arriving => batch.remove(table, key),
        Table::Arrivals => {
            let ids = codec::decode_arrivals(value).map_err(fault)?;
            let stay = without_stale(&ids, |id| slots.has_order(id));
            if stay.is_empty() {
                batch.remove(table, key);
            } else if !stay.iter().copied().eq(&ids) {
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

/// Returns a page of arrivals without the ids for which `stays` returns `false`. The other ids keep
/// their indices: the next id that stays also takes the place of each stale id before it. Lists
/// skip an id that is followed by the same id. Stale ids at the end of the page are omitted.
fn without_stale(ids: &[OrderId], stays: impl Fn(&OrderId) -> bool) -> Vec<&OrderId> {
    let mut next = None;
    let from_end = ids.iter().rev().filter_map(|id| {
        if stays(id) {
            next = Some(id);
        }
        next
    });
    let mut page: Vec<&OrderId> = from_end.collect();
    page.reverse();
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_that_stay_on_a_page_keep_their_indices() {
        for (before, stay, after) in [
            ("abcd", "cd", "cccd"),
            ("abcd", "ac", "acc"),
            ("abcd", "abcd", "abcd"),
            ("abcd", "", ""),
            ("cccd", "d", "dddd"),
            ("acc", "a", "a"),
        ] {
            let ids: Vec<OrderId> = before
                .chars()
                .map(|letter| OrderId::parse(&letter.to_string()).unwrap())
                .collect();
            let page = without_stale(&ids, |id| stay.contains(id.as_str()));
            let page: String = page.into_iter().map(OrderId::as_str).collect();
            assert_eq!(page, after, "{before}, of which {stay} stay");
        }
    }
}
