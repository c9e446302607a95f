//! Encoding of reservations, loans, incarnations of borrowers, settlements, deliveries and stock.
//!
//! **Invariant**: rows of earlier releases stay readable. The first releases wrote reservations
//! without a nonce, and rows of stores without the number of the last delivery that the quantities
//! reflect.

use std::collections::BTreeMap;

use imt_ring::NodeName;

use crate::domain::loans::Loan;
use crate::domain::order::{Line, OrderId};
use crate::domain::settlement::Settlement;
use crate::domain::stock::{CountedTo, Delivery, Reservation, StockHead};
use crate::error::DecodeError;
use crate::storage::codec::bytes::{Reader, Writer};

/// Encodes a reservation: store, lines, and a nonce if the reservation was made for an order of
/// another volume. The nonce is a random number of that volume. A row without a nonce ends after
/// the lines, as in releases before nonces existed. Rows in `spent` have this layout too.
pub(crate) fn encode_reservation(store: u32, lines: &[Line], nonce: Option<u64>, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 18 + lines.len() * 6);
    row.number(u64::from(store));
    row.lines(lines);
    if let Some(nonce) = nonce {
        row.number(nonce);
    }
}

/// Decodes a reservation.
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

/// Appends the key of a loan: the store, four bytes big-endian, and the name of the borrower.
pub(crate) fn encode_loan_key(store: u32, borrower: &NodeName, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&store.to_be_bytes());
    bytes.extend_from_slice(borrower.as_str().as_bytes());
}

/// Returns the store and the borrower of a loan's key.
pub(crate) fn decode_loan_key(key: &[u8]) -> Result<(u32, NodeName), DecodeError> {
    let parts = || {
        let (store, borrower) = key.split_first_chunk::<4>()?;
        let borrower = NodeName::new(std::str::from_utf8(borrower).ok()?).ok()?;
        Some((u32::from_be_bytes(*store), borrower))
    };
    parts().ok_or(DecodeError {
        offset: 0,
        expected: "a store and a borrower as key",
    })
}

/// Encodes a loan: the incarnation and the number of the borrower's last request, all lent units,
/// and the units granted to the last request.
pub(crate) fn encode_loan(loan: &Loan, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 32 + (loan.units.len() + loan.granted.len()) * 6);
    row.number(loan.incarnation);
    row.number(loan.sequence);
    row.number(loan.units.len() as u64);
    for (product, units) in &loan.units {
        row.number(u64::from(*product));
        row.number(u64::from(*units));
    }
    row.lines(&loan.granted);
}

/// Decodes a loan.
pub(crate) fn decode_loan(bytes: &[u8]) -> Result<Loan, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let incarnation = row.number("an incarnation")?;
    let sequence = row.number("a number of a request")?;
    let mut units = BTreeMap::new();
    for line in row.lines()? {
        if line.quantity == 0 || units.insert(line.id, line.quantity).is_some() {
            return Err(row.fault("lent units, each product once"));
        }
    }
    let granted = row.lines()?;
    row.end()?;
    Ok(Loan {
        incarnation,
        sequence,
        units,
        granted,
    })
}

/// Encodes the incarnation of a volume as a borrower: a number that grows with each server of the
/// volume that borrows units.
pub(crate) fn encode_incarnation(incarnation: u64, bytes: &mut Vec<u8>) {
    Writer::new(bytes, 10).number(incarnation);
}

/// Decodes the incarnation of a volume as a borrower.
pub(crate) fn decode_incarnation(bytes: &[u8]) -> Result<u64, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let incarnation = row.number("an incarnation")?;
    row.end()?;
    Ok(incarnation)
}

/// Encodes a settlement: the end of a reservation that another volume keeps.
pub(crate) fn encode_settlement(settlement: &Settlement, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 16 + settlement.lines.len() * 6);
    row.number(u64::from(settlement.store));
    row.code(u8::from(settlement.delivered));
    row.optional(settlement.sequence);
    row.lines(&settlement.lines);
}

/// Decodes a settlement.
pub(crate) fn decode_settlement(bytes: &[u8]) -> Result<Settlement, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let store = row.small("a store")?;
    let delivered = match row.byte("a delivered flag")? {
        0 => false,
        1 => true,
        _ => return Err(row.fault("a delivered flag of 0 or 1")),
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

/// Encodes a delivery that no stock snapshot reflects yet.
pub(crate) fn encode_delivery(delivery: &Delivery, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 16 + delivery.lines.len() * 6);
    row.number(u64::from(delivery.store));
    row.optional(delivery.sequence);
    row.lines(&delivery.lines);
}

/// Decodes a delivery. Its `ordinal` is not stored and becomes 0.
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

/// Encodes the facts about the applied stock snapshots: the highest `X-Stock-As-Of`, the last
/// counted delivery, and the number of snapshots.
pub(crate) fn encode_stock_head(head: &StockHead, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 32);
    row.optional(head.newest_as_of);
    row.optional(head.counted_to);
    row.number(head.snapshots);
}

/// Decodes the facts about the applied stock snapshots (`encode_stock_head`).
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

/// Encodes product ids in the order of the rows of the stock matrix: four bytes each,
/// little-endian.
pub(crate) fn encode_catalogue(products: &[u32], bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 1 + products.len() * 4);
    for product in products {
        row.raw(&product.to_le_bytes());
    }
}

/// Decodes product ids in the order of the rows of the stock matrix.
pub(crate) fn decode_catalogue(bytes: &[u8]) -> Result<Vec<u32>, DecodeError> {
    let products = whole(Reader::new(bytes)?, "products of four bytes each")?;
    Ok(products
        .iter()
        .map(|product| u32::from_le_bytes(*product))
        .collect())
}

/// Flag in the width byte. If set, the number of the last delivery that the quantities reflect
/// follows, as an optional number.
const SAYS_COUNTED: u8 = 0x10;

/// Encodes the quantities of a store in the order of the rows of the stock matrix. Missing
/// quantities at the end are 0. All have the width of the largest quantity: 1, 2 or 4 bytes. So two
/// million small quantities take two megabytes. With `CountedTo::Delivery`, the number of the last
/// delivery that the quantities reflect follows the width, as an optional number. With
/// `CountedTo::OfVolume`, as in rows of earlier releases, the number in the volume's `StockHead`
/// applies.
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

/// Decodes a store's quantities and the number of the last delivery that they reflect.
pub(crate) fn decode_quantities(bytes: &[u8]) -> Result<(CountedTo, Vec<i32>), DecodeError> {
    let mut row = Reader::new(bytes)?;
    let widths = "a width of 1, 2 or 4";
    let width = row.byte(widths)?;
    let counted_to = if width & SAYS_COUNTED == 0 {
        CountedTo::OfVolume
    } else {
        CountedTo::Delivery(row.optional("an as-of sequence")?)
    };
    let expected = "quantities of the width of the row";
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

/// Splits the unread bytes of a row into values of `WIDTH` bytes. Returns an error if bytes are
/// left over.
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
