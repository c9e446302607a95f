//! The bytes of the volume's rows, and back.
//!
//! Every value begins with the version of its layout and is written behind what its buffer holds. Numbers are LEB128 varints unless said otherwise, texts
//! are a length and UTF-8. Decoding cannot panic: a row that ends early, goes on too long or holds an unknown
//! code is a `RowFault` that says what was expected at which byte. What the rows mean stands in `store`.

use std::fmt;

use crate::among::Settlement;
use crate::order::{Entry, Event, Line, Order, OrderId, State};
use crate::outbox::{Kind, Message, MessageState};
use crate::stats::Sums;
use crate::stock::{Delivery, Reservation, StockHead};

/// Layout version of all rows.
const VERSION: u8 = 1;

/// A row whose bytes are not what this version writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFault {
    /// Byte offset in the value.
    pub offset: usize,
    /// What should have stood there.
    pub expected: &'static str,
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at byte {}", self.expected, self.offset)
    }
}

impl std::error::Error for RowFault {}

/// Writes one value behind what is in the buffer already: the rows of one change share a buffer.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn new(bytes: &mut Vec<u8>, expected: usize) -> Writer<'_> {
        bytes.reserve(expected);
        bytes.push(VERSION);
        Writer(bytes)
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn optional(&mut self, value: Option<u64>) {
        match value {
            None => self.0.push(0),
            Some(value) => {
                self.0.push(1);
                self.number(value);
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    fn blob(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn lines(&mut self, lines: &[Line]) {
        self.number(lines.len() as u64);
        for line in lines {
            self.number(u64::from(line.id));
            self.number(u64::from(line.quantity));
        }
    }
}

/// Reads one value.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Reader<'a>, RowFault> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.byte("a layout version")? != VERSION {
            return Err(RowFault {
                offset: 0,
                expected: "layout version 1",
            });
        }
        Ok(reader)
    }

    fn fault(&self, expected: &'static str) -> RowFault {
        RowFault {
            offset: self.at,
            expected,
        }
    }

    fn byte(&mut self, expected: &'static str) -> Result<u8, RowFault> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.fault(expected))?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, count: usize, expected: &'static str) -> Result<&'a [u8], RowFault> {
        let end = self.at.checked_add(count).ok_or_else(|| self.fault(expected))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| self.fault(expected))?;
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self, expected: &'static str) -> Result<u64, RowFault> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(expected)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fault(expected))
    }

    fn small(&mut self, expected: &'static str) -> Result<u32, RowFault> {
        let value = self.number(expected)?;
        u32::try_from(value).map_err(|_| self.fault(expected))
    }

    fn optional(&mut self, expected: &'static str) -> Result<Option<u64>, RowFault> {
        match self.byte(expected)? {
            0 => Ok(None),
            1 => self.number(expected).map(Some),
            _ => Err(self.fault(expected)),
        }
    }

    fn text(&mut self, expected: &'static str) -> Result<String, RowFault> {
        let bytes = self.blob(expected)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.fault(expected))
    }

    fn blob(&mut self, expected: &'static str) -> Result<&'a [u8], RowFault> {
        let count = self.number(expected)? as usize;
        self.take(count, expected)
    }

    fn lines(&mut self) -> Result<Box<[Line]>, RowFault> {
        let count = self.number("a number of lines")? as usize;
        // A line takes two bytes at least, so a hostile count cannot ask for memory.
        if count > self.bytes.len() {
            return Err(self.fault("a number of lines"));
        }
        let mut lines = Vec::with_capacity(count);
        for _ in 0..count {
            lines.push(Line {
                id: self.small("a product")?,
                quantity: self.small("a quantity")?,
            });
        }
        Ok(lines.into_boxed_slice())
    }

    fn end(self) -> Result<(), RowFault> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(self.fault("the end of the row"))
        }
    }
}

/// The row of an order: its lines, then its events with the milliseconds since the one before.
pub(crate) fn encode_order(order: &Order, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 24 + order.lines.len() * 6 + order.history.len() * 8);
    row.lines(&order.lines);
    row.number(order.history.len() as u64);
    let mut before_ms = 0;
    for entry in &order.history {
        row.number(entry.at_ms.saturating_sub(before_ms));
        before_ms = entry.at_ms;
        match &entry.event {
            Event::Reserved { store } => {
                row.0.push(1);
                row.number(u64::from(*store));
            }
            Event::Rejected => row.0.push(2),
            Event::Announced => row.0.push(3),
            Event::Paid { transaction } => {
                row.0.push(4);
                row.number(*transaction);
            }
            Event::DeliveryStarted => row.0.push(5),
            Event::Delivered { sequence } => {
                row.0.push(6);
                row.optional(*sequence);
            }
            Event::Cancelled => row.0.push(7),
            Event::Expired => row.0.push(8),
            Event::Failed { reason } => {
                row.0.push(9);
                row.text(reason);
            }
            Event::RefundWanted { transaction } => {
                row.0.push(10);
                row.number(*transaction);
            }
        }
    }
}

/// The order of a row.
pub(crate) fn decode_order(id: OrderId, bytes: &[u8]) -> Result<Order, RowFault> {
    let mut row = Reader::new(bytes)?;
    let lines = row.lines()?;
    let count = row.number("a number of events")? as usize;
    if count == 0 || count > bytes.len() {
        return Err(row.fault("a number of events"));
    }
    let mut history = Vec::with_capacity(count);
    let mut at_ms = 0u64;
    for _ in 0..count {
        at_ms = at_ms.saturating_add(row.number("milliseconds")?);
        let event = match row.byte("an event")? {
            1 => Event::Reserved {
                store: row.small("a store")?,
            },
            2 => Event::Rejected,
            3 => Event::Announced,
            4 => Event::Paid {
                transaction: row.number("a transaction")?,
            },
            5 => Event::DeliveryStarted,
            6 => Event::Delivered {
                sequence: row.optional("a stock sequence")?,
            },
            7 => Event::Cancelled,
            8 => Event::Expired,
            9 => Event::Failed {
                reason: row.text("a reason")?,
            },
            10 => Event::RefundWanted {
                transaction: row.number("a transaction")?,
            },
            _ => return Err(row.fault("a known event")),
        };
        history.push(Entry { at_ms, event });
    }
    row.end()?;
    Ok(Order::from_history(id, lines, history))
}

/// The row of a reservation.
pub(crate) fn encode_reservation(store: u32, lines: &[Line], bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 8 + lines.len() * 6);
    row.number(u64::from(store));
    row.lines(lines);
}

/// The reservation of a row.
pub(crate) fn decode_reservation(order: OrderId, bytes: &[u8]) -> Result<Reservation, RowFault> {
    let mut row = Reader::new(bytes)?;
    let store = row.small("a store")?;
    let lines = row.lines()?;
    row.end()?;
    Ok(Reservation { order, store, lines })
}

/// The row of what became of units in a store of another volume.
pub(crate) fn encode_settlement(settlement: &Settlement, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 16 + settlement.lines.len() * 6);
    row.number(u64::from(settlement.store));
    row.0.push(u8::from(settlement.delivered));
    row.optional(settlement.sequence);
    row.lines(&settlement.lines);
}

/// The settlement of a row.
pub(crate) fn decode_settlement(bytes: &[u8]) -> Result<Settlement, RowFault> {
    let mut row = Reader::new(bytes)?;
    let store = row.small("a store")?;
    let delivered = match row.byte("whether units left")? {
        0 => false,
        1 => true,
        _ => return Err(row.fault("whether units left")),
    };
    let sequence = row.optional("a stock sequence")?;
    let lines = row.lines()?;
    row.end()?;
    Ok(Settlement {
        store,
        lines,
        delivered,
        sequence,
    })
}

/// The row of a delivery that no snapshot counts yet.
pub(crate) fn encode_delivery(delivery: &Delivery, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 16 + delivery.lines.len() * 6);
    row.number(u64::from(delivery.store));
    row.optional(delivery.sequence);
    row.lines(&delivery.lines);
}

/// The delivery of a row.
pub(crate) fn decode_delivery(bytes: &[u8]) -> Result<Delivery, RowFault> {
    let mut row = Reader::new(bytes)?;
    let store = row.small("a store")?;
    let sequence = row.optional("a stock sequence")?;
    let lines = row.lines()?;
    row.end()?;
    Ok(Delivery {
        store,
        sequence,
        lines,
        ordinal: 0,
    })
}

/// The key of what an order has in a store: order id, a slash (never part of an id), the store. An order may have units in
/// two stores for a while: a try to place it that was given up leaves some behind.
pub(crate) fn encode_held_key(order: &OrderId, store: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(order.as_bytes());
    bytes.push(b'/');
    bytes.extend_from_slice(store.to_string().as_bytes());
}

/// Order and store of such a key.
pub(crate) fn decode_held_key(key: &[u8]) -> Result<(OrderId, u32), RowFault> {
    let parts = || {
        let (order, store) = std::str::from_utf8(key).ok()?.rsplit_once('/')?;
        Some((OrderId::parse(order).ok()?, store.parse().ok()?))
    };
    parts().ok_or(RowFault {
        offset: 0,
        expected: "an order id, a slash and a store as key",
    })
}

/// The key of a message: order id, a slash (never part of an id), kind.
pub(crate) fn encode_message_key(order: &OrderId, kind: Kind, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(order.as_bytes());
    bytes.push(b'/');
    bytes.extend_from_slice(kind.name().as_bytes());
}

/// Order and kind of a message's key.
pub(crate) fn decode_message_key(key: &[u8]) -> Option<(OrderId, Kind)> {
    let slash = key.iter().rposition(|&byte| byte == b'/')?;
    let order = OrderId::parse(std::str::from_utf8(&key[..slash]).ok()?).ok()?;
    let kind = Kind::from_name(std::str::from_utf8(&key[slash + 1..]).ok()?)?;
    Some((order, kind))
}

/// The row of a message.
pub(crate) fn encode_message(message: &Message, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 24);
    row.0.push(match message.state {
        MessageState::Waiting => 0,
        MessageState::Dead => 1,
    });
    row.number(u64::from(message.attempts));
    row.number(message.next_try_ms);
    row.text(message.last_error.as_deref().unwrap_or(""));
}

/// The message of a row.
pub(crate) fn decode_message(bytes: &[u8]) -> Result<Message, RowFault> {
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

/// The row of a product's sums: two 128-bit numbers, little-endian.
pub(crate) fn encode_sums(sums: &Sums, bytes: &mut Vec<u8>) {
    let row = Writer::new(bytes, 33);
    row.0.extend_from_slice(&sums.revenue.to_le_bytes());
    row.0.extend_from_slice(&sums.units.to_le_bytes());
}

/// The sums of a row.
pub(crate) fn decode_sums(bytes: &[u8]) -> Result<Sums, RowFault> {
    let mut row = Reader::new(bytes)?;
    let mut wide = [0u8; 16];
    wide.copy_from_slice(row.take(16, "a 128-bit revenue")?);
    let revenue = u128::from_le_bytes(wide);
    wide.copy_from_slice(row.take(16, "128-bit units")?);
    let units = u128::from_le_bytes(wide);
    row.end()?;
    Ok(Sums { revenue, units })
}

/// The row of what is known of the last snapshot.
pub(crate) fn encode_stock_head(head: &StockHead, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 32);
    row.optional(head.newest_as_of);
    row.optional(head.counted_to);
    row.number(head.snapshots);
}

/// What a row knows of the last snapshot.
pub(crate) fn decode_stock_head(bytes: &[u8]) -> Result<StockHead, RowFault> {
    let mut row = Reader::new(bytes)?;
    let newest_as_of = row.optional("an as-of sequence")?;
    let counted_to = row.optional("an as-of sequence")?;
    let snapshots = row.number("a number of snapshots")?;
    row.end()?;
    Ok(StockHead {
        newest_as_of,
        counted_to,
        snapshots,
    })
}

/// The row of the products in the order of a store's quantities: four bytes each, little-endian.
pub(crate) fn encode_catalogue(products: &[u32], bytes: &mut Vec<u8>) {
    let row = Writer::new(bytes, 1 + products.len() * 4);
    for product in products {
        row.0.extend_from_slice(&product.to_le_bytes());
    }
}

/// The products of a catalogue row.
pub(crate) fn decode_catalogue(bytes: &[u8]) -> Result<Vec<u32>, RowFault> {
    let row = Reader::new(bytes)?;
    let (products, rest) = row.bytes[row.at..].as_chunks::<4>();
    if !rest.is_empty() {
        return Err(RowFault {
            offset: bytes.len(),
            expected: "whole products",
        });
    }
    Ok(products
        .iter()
        .map(|product| u32::from_le_bytes(*product))
        .collect())
}

/// The row of a store's quantities, in the catalogue's order, as narrow as the largest of them allows: a
/// snapshot of two million small quantities is two megabytes.
pub(crate) fn encode_quantities(quantities: &[i32], bytes: &mut Vec<u8>) {
    let largest = quantities.iter().copied().max().unwrap_or(0);
    let width: u8 = if largest <= 0xff {
        1
    } else if largest <= 0xffff {
        2
    } else {
        4
    };
    let row = Writer::new(bytes, 2 + quantities.len() * usize::from(width));
    row.0.push(width);
    match width {
        1 => row.0.extend(quantities.iter().map(|quantity| *quantity as u8)),
        2 => quantities
            .iter()
            .for_each(|quantity| row.0.extend_from_slice(&(*quantity as u16).to_le_bytes())),
        _ => quantities
            .iter()
            .for_each(|quantity| row.0.extend_from_slice(&quantity.to_le_bytes())),
    }
}

/// The quantities of a store's row.
pub(crate) fn decode_quantities(bytes: &[u8]) -> Result<Vec<i32>, RowFault> {
    let mut row = Reader::new(bytes)?;
    let width = row.byte("a width")?;
    let body = &bytes[row.at..];
    match width {
        1 => Ok(body.iter().map(|byte| i32::from(*byte)).collect()),
        2 => {
            let (values, rest) = body.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(RowFault {
                    offset: bytes.len(),
                    expected: "whole quantities",
                });
            }
            Ok(values
                .iter()
                .map(|value| i32::from(u16::from_le_bytes(*value)))
                .collect())
        }
        4 => {
            let (values, rest) = body.as_chunks::<4>();
            if !rest.is_empty() {
                return Err(RowFault {
                    offset: bytes.len(),
                    expected: "whole quantities",
                });
            }
            Ok(values.iter().map(|value| i32::from_le_bytes(*value)).collect())
        }
        _ => Err(RowFault {
            offset: 1,
            expected: "a width of 1, 2 or 4",
        }),
    }
}

/// An answer that an idempotency key is given again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptAnswer {
    /// UTC milliseconds at which it was given.
    pub(crate) at_ms: u64,
    pub(crate) status: u16,
    /// The request as it came: method, path, body. Another request under the same key is refused.
    pub(crate) request: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// The row of an answer.
pub(crate) fn encode_answer(answer: &KeptAnswer, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 24 + answer.request.len() + answer.body.len());
    row.number(answer.at_ms);
    row.number(u64::from(answer.status));
    row.blob(&answer.request);
    row.blob(&answer.body);
}

/// The answer of a row.
pub(crate) fn decode_answer(bytes: &[u8]) -> Result<KeptAnswer, RowFault> {
    let mut row = Reader::new(bytes)?;
    let answer = KeptAnswer {
        at_ms: row.number("milliseconds")?,
        status: row.number("a status")? as u16,
        request: row.blob("a request")?.to_vec(),
        body: row.blob("a body")?.to_vec(),
    };
    row.end()?;
    Ok(answer)
}

/// The row of the volume's own book: the next arrival page and the number of orders in each state.
pub(crate) fn encode_book(book: &Book, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 64);
    row.number(book.next_page);
    row.number(book.expired_page);
    row.number(book.stat_files);
    for count in book.orders {
        row.number(count);
    }
}

/// The book of a row.
pub(crate) fn decode_book(bytes: &[u8]) -> Result<Book, RowFault> {
    let mut row = Reader::new(bytes)?;
    let mut book = Book {
        next_page: row.number("a page")?,
        expired_page: row.number("a page")?,
        stat_files: row.number("a number of files")?,
        ..Book::default()
    };
    for count in &mut book.orders {
        *count = row.number("a number of orders")?;
    }
    row.end()?;
    Ok(book)
}

/// What a volume counts about itself, carried in every commit so that opening need not scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    /// Number of the next page of arrivals.
    pub(crate) next_page: u64,
    /// Every order on the pages before this one was looked at after its payment timeout.
    pub(crate) expired_page: u64,
    /// Statistics files added.
    pub(crate) stat_files: u64,
    /// Orders in each state, by the state's place in `State::ALL`.
    pub(crate) orders: [u64; State::ALL.len()],
}

/// The row of a page of arrivals: the ids of the orders that one commit brought, in order.
pub(crate) fn encode_arrivals<'a>(ids: impl ExactSizeIterator<Item = &'a OrderId>, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 2 + ids.len() * 12);
    row.number(ids.len() as u64);
    for id in ids {
        row.text(id.as_str());
    }
}

/// The ids on a page of arrivals.
pub(crate) fn decode_arrivals(bytes: &[u8]) -> Result<Vec<OrderId>, RowFault> {
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
mod tests {
    use super::*;

    fn bytes(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes);
        bytes
    }

    fn order() -> Order {
        let id = OrderId::parse("17").unwrap();
        let lines = vec![
            Line { id: 812, quantity: 3 },
            Line {
                id: 1_000_000,
                quantity: 1_000_000,
            },
        ];
        let mut order = Order::place(id, lines.into(), Some(200), 1_700_000_000_123);
        let events = [
            Event::Announced,
            Event::Paid {
                transaction: u64::MAX,
            },
            Event::DeliveryStarted,
            Event::Delivered {
                sequence: Some(1_700_000_000_999),
            },
            Event::Delivered { sequence: None },
            Event::Failed {
                reason: "no – really not".to_owned(),
            },
            Event::Cancelled,
            Event::Expired,
            Event::Rejected,
            Event::RefundWanted { transaction: 7 },
        ];
        for (step, event) in events.into_iter().enumerate() {
            order.apply(vec![event], 1_700_000_000_123 + step as u64 * 77);
        }
        order
    }

    #[test]
    fn an_order_reads_back_as_written_and_never_cut_short() {
        let order = order();
        let bytes = bytes(|row| encode_order(&order, row));
        assert_eq!(decode_order(order.id.clone(), &bytes).unwrap(), order);
        for end in 0..bytes.len() {
            assert!(
                decode_order(order.id.clone(), &bytes[..end]).is_err(),
                "cut at {end}"
            );
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(decode_order(order.id.clone(), &longer).is_err());
    }

    #[test]
    fn any_changed_byte_of_a_row_is_read_or_refused_but_never_a_panic() {
        let order = order();
        let bytes = bytes(|row| encode_order(&order, row));
        for at in 0..bytes.len() {
            for value in 0..=255u8 {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = decode_order(order.id.clone(), &changed);
                let _ = decode_message(&changed);
                let _ = decode_delivery(&changed);
                let _ = decode_arrivals(&changed);
                let _ = decode_book(&changed);
                let _ = decode_answer(&changed);
                let _ = decode_quantities(&changed);
                let _ = decode_catalogue(&changed);
                let _ = decode_sums(&changed);
                let _ = decode_stock_head(&changed);
            }
        }
    }

    #[test]
    fn quantities_of_every_width_read_back() {
        for largest in [0, 15, 255, 256, 65_535, 65_536, 1_000_000_000] {
            let quantities = vec![0, 1, largest, 7];
            assert_eq!(
                decode_quantities(&bytes(|row| encode_quantities(&quantities, row))).unwrap(),
                quantities
            );
        }
        assert_eq!(
            decode_quantities(&bytes(|row| encode_quantities(&[], row))).unwrap(),
            Vec::<i32>::new()
        );
    }

    #[test]
    fn message_keys_read_back() {
        let id = OrderId::parse("a-1:b").unwrap();
        for kind in [Kind::Announce, Kind::Deliver] {
            assert_eq!(
                decode_message_key(&bytes(|key| encode_message_key(&id, kind, key))),
                Some((id.clone(), kind))
            );
        }
        assert_eq!(decode_message_key(b"17"), None);
        assert_eq!(decode_message_key(b"17/else"), None);
    }
}
