//! Tests that rows are decoded to the values that were encoded, and that changed rows cause no
//! panic.

use imt_ring::NodeName;

use super::*;
use crate::domain::loans::Loan;
use crate::domain::order::{Event, Line, Order};
use crate::domain::stock::{CountedTo, Reservation};

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
fn an_order_reads_back_as_written_and_not_from_a_shortened_row() {
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
fn decoding_a_changed_row_never_panics() {
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
            let _ = decode_counters(&changed);
            let _ = decode_answer(&changed);
            let _ = decode_quantities(&changed);
            let _ = decode_reservation(order.id.clone(), &changed);
            let _ = decode_catalogue(&changed);
            let _ = decode_sums(&changed);
            let _ = decode_stock_head(&changed);
        }
    }
}

#[test]
fn quantities_of_every_width_read_back() {
    for largest in [0, 15, 255, 256, 65_535, 65_536, 1_000_000_000] {
        let quantities = [0, 1, largest, 7];
        for counted_to in [None, Some(None), Some(Some(1_700_000_000_999))] {
            let counted_to = counted_to.map_or(CountedTo::OfVolume, CountedTo::Delivery);
            for quantities in [&quantities[..], &[]] {
                let row = bytes(|row| encode_quantities(counted_to, quantities, row));
                assert_eq!(
                    decode_quantities(&row).unwrap(),
                    (counted_to, quantities.to_vec())
                );
            }
        }
    }
    // Rows of earlier releases have only a version, a width and quantities.
    let row = bytes(|row| encode_quantities(CountedTo::OfVolume, &[3, 4], row));
    assert_eq!(row, [1, 1, 3, 4]);
}

#[test]
fn a_reservation_keeps_the_nonce_of_another_volume() {
    let id = OrderId::parse("17").unwrap();
    let lines = [Line { id: 812, quantity: 3 }];
    for nonce in [None, Some(0), Some(u64::MAX)] {
        let row = bytes(|row| encode_reservation(4, &lines, nonce, row));
        let reservation = Reservation {
            order: id.clone(),
            store: 4,
            lines: lines.into(),
            nonce,
        };
        assert_eq!(decode_reservation(id.clone(), &row).unwrap(), reservation);
        let mut longer = row;
        longer.extend_from_slice(&[0x80, 0x80]);
        assert!(decode_reservation(id.clone(), &longer).is_err());
    }
    // Rows of earlier releases have only a version, a store and lines.
    let row = bytes(|row| encode_reservation(4, &lines, None, row));
    assert_eq!(row, [1, 4, 1, 0xac, 0x06, 3]);
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

#[test]
fn a_loan_reads_back_with_its_key_and_not_from_a_shortened_row() {
    let loan = Loan {
        incarnation: 3,
        sequence: u64::MAX,
        units: [(7, 1), (1_000_000, 65_536)].into(),
        granted: [Line { id: 7, quantity: 1 }].into(),
    };
    let row = bytes(|row| encode_loan(&loan, row));
    assert_eq!(decode_loan(&row).unwrap(), loan);
    for end in 0..row.len() {
        assert!(decode_loan(&row[..end]).is_err(), "cut at {end}");
    }
    for at in 0..row.len() {
        for value in 0..=255u8 {
            let mut changed = row.clone();
            changed[at] = value;
            let _ = decode_loan(&changed);
            let _ = decode_incarnation(&changed);
        }
    }
    let borrower = NodeName::new("bob").unwrap();
    let key = bytes(|key| encode_loan_key(10_000, &borrower, key));
    assert_eq!(decode_loan_key(&key).unwrap(), (10_000, borrower));
    assert!(decode_loan_key(&key[..4]).is_err(), "no borrower");
    let row = bytes(|row| encode_incarnation(300, row));
    assert_eq!(row, [1, 0xac, 0x02]);
    assert_eq!(decode_incarnation(&row).unwrap(), 300);
}

#[test]
fn a_number_of_more_than_64_bits_is_refused() {
    let row = |last: u8| [&[1][..], &[0xff; 9], &[last]].concat();
    let number = |row: &[u8]| Reader::new(row).unwrap().number("a number");
    assert_eq!(number(&row(1)).unwrap(), u64::MAX);
    assert_eq!(number(&row(3)).unwrap_err().expected, "a number");
}

#[test]
fn a_stored_status_over_16_bits_is_refused() {
    let row = bytes(|bytes| {
        let mut row = Writer::new(bytes, 16);
        row.number(1);
        row.number(65_536 + 200);
        row.blob(b"request");
        row.blob(b"body");
    });
    assert_eq!(decode_answer(&row).unwrap_err().expected, "a status");
}
