//! Encoding of orders.
//!
//! A row has the version, the lines (a count, then product and quantity of each), and the events (a
//! count, then each event). An event has the milliseconds since the previous event, a code, and the
//! fields that belong to the code. The first event has the milliseconds since 1970.
//!
//! **Invariant**: the meaning of a code never changes, because rows of earlier releases must stay
//! readable.

use crate::domain::order::{Entry, Event, Order, OrderId};
use crate::error::DecodeError;
use crate::storage::codec::bytes::{Reader, Writer};

/// Encodes an order: its lines, then its events with the milliseconds since the previous event.
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
                row.code(1);
                row.number(u64::from(*store));
            }
            Event::Rejected => row.code(2),
            Event::Announced => row.code(3),
            Event::Paid { transaction } => {
                row.code(4);
                row.number(*transaction);
            }
            Event::DeliveryStarted => row.code(5),
            Event::Delivered { sequence } => {
                row.code(6);
                row.optional(*sequence);
            }
            Event::Cancelled => row.code(7),
            Event::Expired => row.code(8),
            Event::Failed { reason } => {
                row.code(9);
                row.text(reason);
            }
            Event::RefundWanted { transaction } => {
                row.code(10);
                row.number(*transaction);
            }
        }
    }
}

/// Decodes an order.
pub(crate) fn decode_order(id: OrderId, bytes: &[u8]) -> Result<Order, DecodeError> {
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
