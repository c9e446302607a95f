//! The source's side of a move: seal slots, then say everything that lies in them.
//!
//! | field | bytes | meaning |
//! | --- | --- | --- |
//! | table | 1 | code of the table; 255 ends the stream |
//! | key length | 4 | little-endian |
//! | value length | 4 | little-endian |
//! | key, value | | as they lie in the volume; at the end: count (8) and digest (16), little-endian, and nothing |
//!
//! The digest is the sum of the rows' hashes, so that the order of rows does not matter. Sealing comes first and is durable
//! together with a note that rows may have to be purged; what was queued before it is on disk when reading begins.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use imt_ring::Slot;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::Xxh3;

use super::slots_in;
use crate::changes::{CATALOGUE, Changes, PURGE, STATS_FORGOTTEN, STOCK_HEAD, Table};
use crate::desk::{Desk, Fault};
use crate::error::StoreError;
use crate::process;
use crate::rows;
use crate::slots::{of_order, of_statistics, of_store};
use crate::store::{order_id, u32_key};

/// Ends a stream.
pub(super) const END: u8 = 255;
/// Bytes before key and value.
pub(super) const HEAD_BYTES: usize = 9;
/// Rows are handed over in pieces of about so many bytes.
const PIECE_BYTES: usize = 256 * 1_024;
/// Pieces made before the first is taken.
const PIECES_WAITING: usize = 4;

/// What is asked of a volume that gives slots away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExportRequest {
    /// The move.
    pub(crate) id: u64,
    /// The slots, as runs.
    pub(crate) slots: Vec<(u32, u32)>,
}

/// Count and digest of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) rows: u64,
    pub(super) digest: u128,
}

impl Sum {
    /// Counts a row in.
    pub(super) fn add(&mut self, table: u8, key: &[u8], value: &[u8]) {
        let mut hash = Xxh3::new();
        hash.update(&[table]);
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(value);
        self.rows += 1;
        self.digest = self.digest.wrapping_add(hash.digest128());
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = self.rows.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.digest.to_le_bytes());
        bytes
    }
}

/// A body that is made while it is sent.
pub(crate) struct Export(mpsc::Receiver<Bytes>);

impl Body for Export {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Seals slots of a volume and gives what lies in them. A stream that ends without its end was broken off.
pub(crate) async fn export(desk: &Arc<Desk>, request: &ExportRequest) -> Result<Export, Fault> {
    let permit = desk.store.permit().await?;
    let ticket = {
        let _stock = desk.stock();
        desk.slots.seal(slots_in(&request.slots));
        let mut changes = Changes::default();
        changes.put_raw(Table::Meta, PURGE, &request.id.to_be_bytes());
        permit.send(changes)
    };
    // Whatever was queued before the seal is durable, and visible to the reader below, from here.
    ticket.durable().await?;
    let (sender, pieces) = mpsc::channel(PIECES_WAITING);
    let desk = Arc::clone(desk);
    let request = request.clone();
    let id = request.id;
    process::blocking(move || {
        let mut writer = Writer {
            sender,
            piece: Vec::with_capacity(PIECE_BYTES + 4_096),
            sum: Sum::default(),
        };
        match write_all(&desk, &request, &mut writer).and_then(|()| writer.finish()) {
            Ok(sum) => tracing::info!(moving = id, rows = sum.rows, "slots were copied out"),
            // The stream breaks off; the target sees that its end is missing.
            Err(Broken::Store(error)) => tracing::error!(%error, "slots cannot be read"),
            Err(Broken::Unwanted) => tracing::warn!(moving = id, "nobody takes the slots any more"),
        }
    });
    Ok(Export(pieces))
}

enum Broken {
    Store(StoreError),
    Unwanted,
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Broken {
        Broken::Store(error)
    }
}

struct Writer {
    sender: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
    sum: Sum,
}

impl Writer {
    fn row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Broken> {
        self.sum.add(table as u8, key, value);
        self.frame(table as u8, key, value)
    }

    fn frame(&mut self, table: u8, key: &[u8], value: &[u8]) -> Result<(), Broken> {
        self.piece.push(table);
        self.piece.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.piece.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.piece.extend_from_slice(key);
        self.piece.extend_from_slice(value);
        if self.piece.len() < PIECE_BYTES {
            return Ok(());
        }
        self.send()
    }

    fn send(&mut self) -> Result<(), Broken> {
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.sender.blocking_send(piece).map_err(|_| Broken::Unwanted)
    }

    fn finish(mut self) -> Result<Sum, Broken> {
        let sum = self.sum;
        self.frame(END, &sum.encode(), &[])?;
        if !self.piece.is_empty() {
            self.send()?;
        }
        Ok(sum)
    }
}

/// Every row of the slots asked for; others may be sealed for another target.
fn write_all(desk: &Desk, request: &ExportRequest, writer: &mut Writer) -> Result<(), Broken> {
    let (store, ring) = (&desk.store, desk.slots.ring());
    let mut asked = vec![false; ring.slots() as usize];
    for slot in slots_in(&request.slots) {
        if let Some(is_asked) = asked.get_mut(slot as usize) {
            *is_asked = true;
        }
    }
    let is_asked = |slot: Slot| asked[slot.0 as usize];
    let broken = |table: &'static str, key: &[u8], fault| {
        Broken::Store(StoreError::Row {
            table,
            key: String::from_utf8_lossy(key).into_owned(),
            fault,
        })
    };
    let order_goes = |key: &[u8]| order_id(key).map(|order| is_asked(of_order(ring, &order)));
    let store_goes = |store: u32| is_asked(of_store(ring, store));
    let goes = |table: Table, key: &[u8], value: &[u8]| {
        Ok(match table {
            Table::Orders | Table::Settlements => order_goes(key)?,
            Table::Outbox => {
                let order = rows::decode_message_key(key).map(|(order, _)| order);
                order.is_some_and(|order| is_asked(of_order(ring, &order)))
            }
            Table::Reservations => store_goes(rows::decode_reservation(order_id(key)?, value)?.store),
            Table::Deliveries => store_goes(rows::decode_delivery(value)?.store),
            Table::Stock => key == CATALOGUE || store_goes(u32_key(key)?),
            Table::Stats | Table::StatFiles => is_asked(of_statistics(ring)),
            Table::Meta => key == STOCK_HEAD || (key == STATS_FORGOTTEN && is_asked(of_statistics(ring))),
            Table::Arrivals | Table::Arriving | Table::Answers => false,
        })
    };
    for (table, name) in crate::changes::TABLES {
        if matches!(table, Table::Arrivals | Table::Arriving) {
            continue;
        }
        store.each_row(table, |key, value| {
            if goes(table, key, value).map_err(|fault| broken(name, key, fault))? {
                writer.row(table, key, value)?;
            }
            Ok::<(), Broken>(())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_does_not_depend_on_the_order_of_rows_and_notices_every_change() {
        let rows: [(u8, &[u8], &[u8]); 3] = [(1, b"a", b"b"), (1, b"ab", b""), (2, b"a", b"b")];
        let sum = |order: &[usize]| {
            let mut sum = Sum::default();
            for at in order {
                sum.add(rows[*at].0, rows[*at].1, rows[*at].2);
            }
            sum
        };
        assert_eq!(sum(&[0, 1, 2]), sum(&[2, 0, 1]));
        assert_ne!(sum(&[0]).digest, sum(&[1]).digest, "key and value are told apart");
        assert_ne!(sum(&[0]).digest, sum(&[2]).digest, "so are tables");
    }
}
