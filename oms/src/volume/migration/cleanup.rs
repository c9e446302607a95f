//! Cleaning up: rows of slots that are elsewhere are taken out of a volume, page by page, beside
//! everything else.
//!
//! They are rubbish from the moment at which the ring gives their slots to another volume, or a
//! move that brought them is undone; nobody looks at them. A note in the volume says that there may
//! be some and goes last, so a crash repeats the look. No slot comes to a volume that is not clean,
//! so what is found to be rubbish stays rubbish.

use std::sync::Arc;

use tokio::time::Instant;

use crate::error::StoreError;
use crate::storage::change_feed::Walk;
use crate::storage::codec;
use crate::storage::owned_slots::{Home, Slots};
use crate::storage::volume::{Store, order_id};
use crate::storage::write_batch::{ARRIVING, Changes, PURGE, Table};
use crate::volume::migration::source::broken;
use crate::volume::migration::target::blocking;

/// Rows looked at before orders get their turn.
const LOOKED_AT: usize = 20_000;
/// Rows taken out by one commit.
const ROWS_A_COMMIT: usize = 2_000;

/// What lies in a volume and is to be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rubbish {
    /// It was in force here, and counted.
    Counted,
    /// It came with a move that was undone.
    NeverInForce,
}

/// Takes all rubbish out, then the notes of it. False if it was told to stop before.
pub(crate) async fn purge(
    store: &Arc<Store>,
    slots: &Arc<Slots>,
    rubbish: Rubbish,
    is_stopped: impl Fn() -> bool,
) -> Result<bool, StoreError> {
    let walking = Arc::clone(store);
    let mut walk = blocking(move || Ok(walking.walk())).await?;
    loop {
        if is_stopped() {
            return Ok(false);
        }
        let (slots, begun) = (Arc::clone(slots), Instant::now());
        let (walked, changes, is_over) = blocking(move || {
            let (changes, is_over) = page(&mut walk, &slots, rubbish)?;
            Ok((walk, changes, is_over))
        })
        .await?;
        walk = walked;
        if !changes.is_empty() {
            store.permit().await?.send(changes).durable().await?;
        }
        if is_over {
            break;
        }
        tokio::task::yield_now().await;
        // Nobody waits for it: orders have half of the disk's time at least.
        tokio::time::sleep(begun.elapsed()).await;
    }
    let mut changes = Changes::default();
    changes.remove(Table::Meta, ARRIVING);
    changes.remove(Table::Meta, PURGE);
    store.permit().await?.send(changes).durable().await?;
    Ok(true)
}

fn page(walk: &mut Walk, slots: &Slots, rubbish: Rubbish) -> Result<(Changes, bool), StoreError> {
    let mut changes = Changes::default();
    for _ in 0..LOOKED_AT {
        if changes.rows().len() >= ROWS_A_COMMIT {
            break;
        }
        let is_row = walk.step(|table, key, value| row(&mut changes, slots, rubbish, (table, key, value)))?;
        if !is_row {
            return Ok((changes, true));
        }
    }
    Ok((changes, false))
}

fn row(
    changes: &mut Changes,
    slots: &Slots,
    rubbish: Rubbish,
    (table, key, value): (Table, &[u8], &[u8]),
) -> Result<(), StoreError> {
    let fault = |fault| broken(table, key, fault);
    match table {
        Table::Arriving => changes.remove(table, key),
        Table::Arrivals => {
            let ids = codec::decode_arrivals(value).map_err(fault)?;
            let stay: Vec<_> = ids.iter().filter(|id| slots.has_order(id)).collect();
            if stay.is_empty() {
                changes.remove(table, key);
            } else if stay.len() < ids.len() {
                let mut page = Vec::new();
                codec::encode_arrivals(stay.into_iter(), &mut page);
                changes.put_raw(table, key, &page);
            }
        }
        _ => match slots.home_of(table, key, Some(value)).map_err(fault)? {
            Home::Slot(slot) if !slots.has(slot) && table != Table::Meta => {
                if rubbish == Rubbish::Counted && table == Table::Orders {
                    let order = codec::decode_order(order_id(key).map_err(fault)?, value);
                    changes.went(&order.map_err(fault)?);
                } else if rubbish == Rubbish::Counted && table == Table::StatFiles {
                    changes.stat_files_moved(-1);
                }
                changes.remove(table, key);
            }
            _ => {}
        },
    }
    Ok(())
}
