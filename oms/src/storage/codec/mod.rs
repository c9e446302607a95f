//! Encoding and decoding of the volume's values, and of keys that have several parts.
//!
//! **Invariants**
//! - Every value that this module encodes begins with a layout version, except for the time at
//!   which a statistics file was added. Rows that earlier releases wrote stay readable.
//! - In values, numbers are LEB128 varints unless stated otherwise. A text is its length and its
//!   UTF-8 bytes.
//! - Encoding appends to the buffer. Decoding never panics: bytes that cannot be decoded cause an
//!   error, or `None` for the key of a message.
//!
//! Deliberately absent: the list of tables and their keys (see `volume`).

pub(crate) mod bytes;
mod order;
mod stock;

use crate::domain::order::{OrderId, State};
use crate::domain::sales::Sums;
use crate::outbox::{Kind, Message, MessageState};

pub(crate) use crate::error::DecodeError;
use crate::storage::codec::bytes::{Reader, Writer};
pub(crate) use crate::storage::codec::order::{decode_order, encode_order};
pub(crate) use crate::storage::codec::stock::{
    decode_catalogue, decode_delivery, decode_incarnation, decode_loan, decode_loan_key, decode_quantities,
    decode_reservation, decode_settlement, decode_stock_head, encode_catalogue, encode_delivery,
    encode_incarnation, encode_loan, encode_loan_key, encode_quantities, encode_reservation,
    encode_settlement, encode_stock_head,
};

/// Appends the key of an order in a store: order id, a slash (never part of an id), the store in
/// decimal. An order may have rows for two stores for some time: an abandoned attempt to reserve
/// its units may leave a reservation in another store.
pub(crate) fn encode_order_store_key(order: &OrderId, store: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(order.as_bytes());
    bytes.push(b'/');
    bytes.extend_from_slice(store.to_string().as_bytes());
}

/// Returns the order and the store of a key written by [`encode_order_store_key`].
pub(crate) fn decode_order_store_key(key: &[u8]) -> Result<(OrderId, u32), DecodeError> {
    let parts = || {
        let (order, store) = std::str::from_utf8(key).ok()?.rsplit_once('/')?;
        Some((OrderId::parse(order).ok()?, store.parse().ok()?))
    };
    parts().ok_or(DecodeError {
        offset: 0,
        expected: "an order id, a slash and a store as key",
    })
}

/// Appends the key of a message to the warehouse: order id, a slash (never part of an id), the name
/// of the kind.
pub(crate) fn encode_message_key(order: &OrderId, kind: Kind, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(order.as_bytes());
    bytes.push(b'/');
    bytes.extend_from_slice(kind.name().as_bytes());
}

/// Returns the order and the kind of a key written by [`encode_message_key`]. `None` for another
/// key.
pub(crate) fn decode_message_key(key: &[u8]) -> Option<(OrderId, Kind)> {
    let slash = key.iter().rposition(|&byte| byte == b'/')?;
    let order = OrderId::parse(std::str::from_utf8(&key[..slash]).ok()?).ok()?;
    let kind = Kind::from_name(std::str::from_utf8(&key[slash + 1..]).ok()?)?;
    Some((order, kind))
}

/// Encodes a message to the warehouse.
pub(crate) fn encode_message(message: &Message, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 24);
    row.code(match message.state {
        MessageState::Waiting => 0,
        MessageState::Dead => 1,
    });
    row.number(u64::from(message.attempts));
    row.number(message.next_try_ms);
    row.text(message.last_error.as_deref().unwrap_or(""));
}

/// Decodes a message to the warehouse.
pub(crate) fn decode_message(bytes: &[u8]) -> Result<Message, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let state = match row.byte("a message state")? {
        0 => MessageState::Waiting,
        1 => MessageState::Dead,
        _ => return Err(row.fault("a known message state")),
    };
    let attempts = row.small("a number of attempts")?;
    let next_try_ms = row.number("milliseconds")?;
    let error = row.text("an error")?;
    row.end()?;
    Ok(Message {
        state,
        attempts,
        next_try_ms,
        last_error: (!error.is_empty()).then(|| error.into()),
    })
}

/// Encodes the revenue and the units of a product as two 128-bit numbers, little-endian.
pub(crate) fn encode_sums(sums: &Sums, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 33);
    row.raw(&sums.revenue.to_le_bytes());
    row.raw(&sums.units.to_le_bytes());
}

/// Decodes the revenue and the units of a product.
pub(crate) fn decode_sums(bytes: &[u8]) -> Result<Sums, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let mut wide = [0u8; 16];
    wide.copy_from_slice(row.take(16, "a 128-bit revenue")?);
    let revenue = u128::from_le_bytes(wide);
    wide.copy_from_slice(row.take(16, "128-bit units")?);
    let units = u128::from_le_bytes(wide);
    row.end()?;
    Ok(Sums { revenue, units })
}

/// Encodes the time at which a statistics file was added (UTC milliseconds), big-endian.
pub(crate) fn encode_import_time(at_ms: u64, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&at_ms.to_be_bytes());
}

/// Decodes the time at which a statistics file was added, in UTC milliseconds.
pub(crate) fn decode_import_time(bytes: &[u8]) -> Result<u64, DecodeError> {
    let at_ms = bytes.try_into().map_err(|_| DecodeError {
        offset: 0,
        expected: "eight bytes of milliseconds",
    })?;
    Ok(u64::from_be_bytes(at_ms))
}

/// A stored response. Until it is removed, it is returned again for each repetition of its request
/// with the same idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptAnswer {
    /// Time of the first response, in UTC milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) status: u16,
    /// Method, path and body of the request. A different request with the same key is rejected.
    pub(crate) request: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// Encodes a stored response.
pub(crate) fn encode_answer(answer: &KeptAnswer, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 24 + answer.request.len() + answer.body.len());
    row.number(answer.at_ms);
    row.number(u64::from(answer.status));
    row.blob(&answer.request);
    row.blob(&answer.body);
}

/// Decodes a stored response.
pub(crate) fn decode_answer(bytes: &[u8]) -> Result<KeptAnswer, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let answer = KeptAnswer {
        at_ms: row.number("milliseconds")?,
        status: row
            .number("a status")
            .and_then(|status| u16::try_from(status).map_err(|_| row.fault("a status")))?,
        request: row.blob("a request")?.to_vec(),
        body: row.blob("a body")?.to_vec(),
    };
    row.end()?;
    Ok(answer)
}

/// Encodes the volume's counters.
pub(crate) fn encode_counters(counters: &Counters, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 64);
    row.number(counters.next_page);
    row.number(counters.expired_page);
    row.number(counters.stat_files);
    for count in counters.orders {
        row.number(count);
    }
    row.number(counters.extra_payments);
}

/// Decodes the volume's counters.
pub(crate) fn decode_counters(bytes: &[u8]) -> Result<Counters, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let mut counters = Counters {
        next_page: row.number("a page")?,
        expired_page: row.number("a page")?,
        stat_files: row.number("a number of files")?,
        ..Counters::default()
    };
    for count in &mut counters.orders {
        *count = row.number("a number of orders")?;
    }
    // Rows of earlier releases end before the number of extra payments.
    if !row.rest().is_empty() {
        counters.extra_payments = row.number("a number of payments")?;
    }
    row.end()?;
    Ok(counters)
}

/// Counters of a volume. Every group commit writes them, so opening a volume needs no scan of the
/// orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Number of the page of arrivals (a row in `arrivals`) that the next commit with new or copied
    /// orders writes.
    pub(crate) next_page: u64,
    /// First page of arrivals (a row in `arrivals`) that the expiry job has not recorded as
    /// finished.
    pub(crate) expired_page: u64,
    /// Number of statistics files added to the statistics.
    pub(crate) stat_files: u64,
    /// Number of orders in each state, in the order of `State::ALL`.
    pub(crate) orders: [u64; State::ALL.len()],
    /// Number of payments that came after the first payment of their order. Each of them needs a
    /// refund.
    pub(crate) extra_payments: u64,
}

impl Counters {
    /// Returns the number of payments that need a refund.
    pub(crate) fn refunds_wanted(&self) -> u64 {
        self.orders[State::RefundWanted as usize].saturating_add(self.extra_payments)
    }
}

/// Encodes a page of arrivals: the ids of the orders that one commit added, new ones or copied from
/// another volume.
pub(crate) fn encode_arrivals<'a>(ids: impl ExactSizeIterator<Item = &'a OrderId>, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 2 + ids.len() * 12);
    row.number(ids.len() as u64);
    for id in ids {
        row.text(id.as_str());
    }
}

/// Decodes a page of arrivals.
pub(crate) fn decode_arrivals(bytes: &[u8]) -> Result<Vec<OrderId>, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let count = row.number("a number of ids")? as usize;
    if count > bytes.len() {
        return Err(row.fault("a number of ids"));
    }
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let text = row.text("an order id")?;
        ids.push(OrderId::parse(&text).map_err(|_| row.fault("an order id"))?);
    }
    row.end()?;
    Ok(ids)
}

#[cfg(test)]
mod tests;
