//! The rows of stock: what is set aside, what left, what a snapshot shows.

use crate::domain::order::{Line, OrderId};
use crate::domain::settlement::Settlement;
use crate::domain::stock::{CountedTo, Delivery, Reservation, StockHead};
use crate::storage::codec::bytes::{DecodeError, Reader, Writer};

/// The row of a reservation: store, lines, and a nonce if another volume asked for it. A row of an
/// order's own step ends before that, as all rows did before there were nonces.
pub(crate) fn encode_reservation(store: u32, lines: &[Line], nonce: Option<u64>, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 18 + lines.len() * 6);
    row.number(u64::from(store));
    row.lines(lines);
    if let Some(nonce) = nonce {
        row.number(nonce);
    }
}

/// The reservation of a row.
pub(crate) fn decode_reservation(order: OrderId, bytes: &[u8]) -> Result<Reservation, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let store = row.small("a store")?;
    let lines = row.lines()?;
    let nonce = match row.rest() {
        [] => None,
        _ => Some(row.number("a nonce")?),
    };
    row.end()?;
    Ok(Reservation {
        order,
        store,
        lines,
        nonce,
    })
}

/// The row of what became of units in a store of another volume.
pub(crate) fn encode_settlement(settlement: &Settlement, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 16 + settlement.lines.len() * 6);
    row.number(u64::from(settlement.store));
    row.code(u8::from(settlement.delivered));
    row.optional(settlement.sequence);
    row.lines(&settlement.lines);
}

/// The settlement of a row.
pub(crate) fn decode_settlement(bytes: &[u8]) -> Result<Settlement, DecodeError> {
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
pub(crate) fn decode_delivery(bytes: &[u8]) -> Result<Delivery, DecodeError> {
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

/// The row of what is known of the last snapshot.
pub(crate) fn encode_stock_head(head: &StockHead, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 32);
    row.optional(head.newest_as_of);
    row.optional(head.counted_to);
    row.number(head.snapshots);
}

/// What a row knows of the last snapshot.
pub(crate) fn decode_stock_head(bytes: &[u8]) -> Result<StockHead, DecodeError> {
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
    let mut row = Writer::new(bytes, 1 + products.len() * 4);
    for product in products {
        row.raw(&product.to_le_bytes());
    }
}

/// The products of a catalogue row.
pub(crate) fn decode_catalogue(bytes: &[u8]) -> Result<Vec<u32>, DecodeError> {
    let products = whole(Reader::new(bytes)?, "whole products")?;
    Ok(products
        .iter()
        .map(|product| u32::from_le_bytes(*product))
        .collect())
}

/// Added to the width where a row says up to which delivery its quantities count.
const SAYS_COUNTED: u8 = 0x10;

/// The row of a store's quantities, in the catalogue's order, as narrow as the largest of them
/// allows: a snapshot of two million small quantities is two megabytes. Between width and
/// quantities stands up to which delivery they count; rows of earlier versions leave that to the
/// head of the volume.
pub(crate) fn encode_quantities(counted_to: CountedTo, quantities: &[i32], bytes: &mut Vec<u8>) {
    let largest = quantities.iter().copied().max().unwrap_or(0);
    let width: u8 = if largest <= 0xff {
        1
    } else if largest <= 0xffff {
        2
    } else {
        4
    };
    let mut row = Writer::new(bytes, 13 + quantities.len() * usize::from(width));
    match counted_to {
        CountedTo::OfVolume => row.code(width),
        CountedTo::Delivery(sequence) => {
            row.code(width | SAYS_COUNTED);
            row.optional(sequence);
        }
    }
    match width {
        1 => row.each(quantities, |quantity| [quantity as u8]),
        2 => row.each(quantities, |quantity| (quantity as u16).to_le_bytes()),
        _ => row.each(quantities, i32::to_le_bytes),
    }
}

/// The quantities of a store's row, and up to which delivery they count.
pub(crate) fn decode_quantities(bytes: &[u8]) -> Result<(CountedTo, Vec<i32>), DecodeError> {
    let mut row = Reader::new(bytes)?;
    let widths = "a width of 1, 2 or 4";
    let width = row.byte(widths)?;
    let counted_to = if width & SAYS_COUNTED == 0 {
        CountedTo::OfVolume
    } else {
        CountedTo::Delivery(row.optional("an as-of sequence")?)
    };
    let expected = "whole quantities";
    let quantities = match width & !SAYS_COUNTED {
        1 => row.rest().iter().map(|byte| i32::from(*byte)).collect(),
        2 => whole(row, expected)?
            .iter()
            .map(|value| i32::from(u16::from_le_bytes(*value)))
            .collect(),
        4 => whole(row, expected)?
            .iter()
            .map(|value| i32::from_le_bytes(*value))
            .collect(),
        _ => {
            return Err(DecodeError {
                offset: 1,
                expected: widths,
            });
        }
    };
    Ok((counted_to, quantities))
}

/// The rest of a row as values of so many bytes.
fn whole<'a, const WIDTH: usize>(
    row: Reader<'a>,
    expected: &'static str,
) -> Result<&'a [[u8; WIDTH]], DecodeError> {
    let rest = row.rest();
    let (values, left) = rest.as_chunks();
    if left.is_empty() {
        Ok(values)
    } else {
        Err(row.fault_at_end(expected))
    }
}
