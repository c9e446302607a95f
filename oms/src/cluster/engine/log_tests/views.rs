//! Tests of the views that decode rows, and of the queries in the guide, against a real engine.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{TIMEOUT, engine, log};
use crate::cluster::engine::init_engine;
use crate::domain::order::{Event, Line, Order, OrderId};
use crate::domain::stock::{CountedTo, Counting, Delivery, Reservation, Stock, StockHead};
use crate::domain::stock_snapshot::{Column, StockSnapshot};
use crate::outbox::{Kind, Message, MessageState};
use crate::postgres::{EngineUrl, Param, Session};
use crate::storage::codec;
use crate::storage::inspect::row_as_json;
use crate::storage::log::takeover::{Takeover, take_over};
use crate::storage::log::{LastWords, Log};
use crate::storage::write_batch::{CATALOGUE, STOCK_HEAD, Table};

/// The stores of the tests with their quantities of two products, and the last delivery that the
/// quantities count.
const PRODUCTS: [u32; 2] = [812, 3_000_000_000];
const STORES: [(u32, [i32; 2], CountedTo); 4] = [
    (4, [7, 255], CountedTo::OfVolume),
    (70_000, [300, 0], CountedTo::Delivery(Some(9))),
    (70_001, [9, 8], CountedTo::OfVolume),
    (3_000_000_000, [-2, 70_000], CountedTo::Delivery(None)),
];

/// Returns key and row of an order with the given events.
fn order(id: &str, events: Vec<Event>) -> (Vec<u8>, Vec<u8>) {
    let lines = [
        Line { id: 812, quantity: 3 },
        Line {
            id: 70_000,
            quantity: 1,
        },
    ];
    let mut order = Order::place(
        OrderId::parse(id).unwrap(),
        Box::new(lines),
        Some(4),
        1_700_000_000_123,
    );
    order.apply(events, 1_700_000_001_000);
    let mut row = Vec::new();
    codec::encode_order(&order, &mut row);
    (id.as_bytes().to_vec(), row)
}

/// Returns a reservation of three units of the product 812.
fn reservation(order: &str, store: u32, nonce: Option<u64>) -> Reservation {
    Reservation {
        order: OrderId::parse(order).unwrap(),
        store,
        lines: Box::new([Line { id: 812, quantity: 3 }]),
        nonce,
    }
}

/// Adds the rows of the stock: the catalogue and the quantities.
fn put_stock(words: &mut LastWords) {
    let mut catalogue = Vec::new();
    codec::encode_catalogue(&PRODUCTS, &mut catalogue);
    words.puts.push((Table::Stock, CATALOGUE.to_vec(), catalogue));
    for (store, quantities, counted) in STORES {
        let mut row = Vec::new();
        codec::encode_quantities(counted, &quantities, &mut row);
        words.puts.push((Table::Stock, store.to_be_bytes().to_vec(), row));
    }
}

/// Adds the row of a reservation.
fn put_reservation(words: &mut LastWords, reservation: &Reservation) {
    let (mut key, mut row) = (Vec::new(), Vec::new());
    let Reservation { order, store, .. } = reservation;
    codec::encode_order_store_key(order, *store, &mut key);
    codec::encode_reservation(*store, &reservation.lines, reservation.nonce, &mut row);
    words.puts.push((Table::Reservations, key, row));
}

/// Writes these rows to the volume ada by a checkpoint.
async fn put_in(url: &Arc<EngineUrl>, words: &LastWords) {
    let mut rows = log(url);
    let taken = take_over(&mut rows, "ada", 1, true).await.unwrap();
    let Takeover::Owned { position, .. } = taken else {
        panic!("{taken:?}");
    };
    let from = rows.head().await.unwrap().unwrap().kept_from;
    assert!(rows.checkpoint(from, &position, words).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn views_show_the_columns_of_rows() {
    let url = engine().await;
    let (transaction, other) = (u64::MAX, 300);
    let refund = |transaction| Event::RefundWanted { transaction };
    let orders = [
        order("plain", Vec::new()),
        order(
            "delivered",
            vec![
                Event::Announced,
                Event::Paid { transaction },
                Event::DeliveryStarted,
                Event::Delivered {
                    sequence: Some(1_000_000),
                },
                refund(other),
            ],
        ),
        order("early", vec![Event::Paid { transaction }, Event::Announced]),
        order(
            "failed",
            vec![Event::Failed {
                reason: "no paper, 'ça'".into(),
            }],
        ),
        order("refund", vec![Event::Cancelled, refund(other)]),
        order("expired", vec![Event::Expired]),
    ];
    let mut words = LastWords::default();
    for (key, row) in &orders {
        words.puts.push((Table::Orders, key.clone(), row.clone()));
    }
    for (store, nonce) in [(4, None), (70_000, Some(u64::MAX))] {
        put_reservation(&mut words, &reservation("plain", store, nonce));
    }
    for (kind, state, last_error) in [
        (Kind::Announce, MessageState::Waiting, None),
        (Kind::Deliver, MessageState::Dead, Some("503".into())),
    ] {
        let (mut key, mut row) = (Vec::new(), Vec::new());
        codec::encode_message_key(&OrderId::parse("plain").unwrap(), kind, &mut key);
        let message = Message {
            state,
            attempts: 3,
            next_try_ms: 1_700_000_000_000,
            last_error,
        };
        codec::encode_message(&message, &mut row);
        words.puts.push((Table::Outbox, key, row));
    }
    put_stock(&mut words);
    put_in(&url, &words).await;

    let mut session = Session::new(Arc::clone(&url), "test");
    let mut json_of = async |sql: &str, key: &str| -> Value {
        let params = [Param::Text(key)];
        let found = session.query(sql, &params, TIMEOUT).await.unwrap();
        let shown = |row: &crate::postgres::Row| serde_json::from_str(row.text(0).unwrap()).unwrap();
        Value::Array(found.iter().map(shown).collect())
    };
    for (key, row) in &orders {
        let id = std::str::from_utf8(key).unwrap();
        let shown = row_as_json("orders", key, row).unwrap().unwrap();
        let sql = "SELECT jsonb_build_object('id', id, 'state', state, 'products', products, 'store', store, \
            'transaction', transaction, 'history', history)::text FROM imt_orders WHERE id = $1";
        assert_eq!(json_of(sql, id).await, json!([shown]), "{id}");
    }
    let sql = "SELECT jsonb_build_array(order_id, store, products, nonce)::text FROM imt_reservations \
        WHERE order_id = $1 ORDER BY store";
    let products = json!([{ "id": 812, "quantity": 3 }]);
    let expected = json!([
        ["plain", 4, products, null],
        ["plain", 70_000, products, u64::MAX]
    ]);
    assert_eq!(json_of(sql, "plain").await, expected);
    let sql = "SELECT jsonb_build_array(kind, state, attempts, extract(epoch FROM next_try_at)::bigint, \
        last_error)::text FROM imt_outbox WHERE order_id = $1 ORDER BY kind";
    let expected = json!([
        ["announce", "waiting", 3, 1_700_000_000, null],
        ["deliver", "dead", 3, 1_700_000_000, "503"],
    ]);
    assert_eq!(json_of(sql, "plain").await, expected);
    let sql = "SELECT jsonb_build_array(store, product, quantity)::text FROM imt_stock WHERE volume = $1 \
        ORDER BY store, product";
    let expected = json!([
        [4, 812, 7],
        [4, 3_000_000_000_u32, 255],
        [70_000, 812, 300],
        [70_000, 3_000_000_000_u32, 0],
        [70_001, 812, 9],
        [70_001, 3_000_000_000_u32, 8],
        [3_000_000_000_u32, 812, -2],
        [3_000_000_000_u32, 3_000_000_000_u32, 70_000],
    ]);
    assert_eq!(json_of(sql, "ada").await, expected);
    let sql = "SELECT jsonb_build_array(store, quantity)::text FROM imt_stock_of($1::bigint) ORDER BY store";
    let expected = json!([[4, 255], [70_000, 0], [70_001, 8], [3_000_000_000_u32, 70_000]]);
    assert_eq!(json_of(sql, "3000000000").await, expected);
    assert_eq!(json_of(sql, "5").await, json!([]));
}

/// Returns the SQL blocks of the guide's section about queries, without the semicolon at the end.
fn queries_of_the_guide() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scale-out.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let (_, section) = guide.split_once("\n## Query your orders with psql\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let blocks = section.split("\n```sql\n").skip(1);
    let sql = |block: &str| {
        block
            .split_once("\n```")
            .unwrap()
            .0
            .trim_end_matches(';')
            .to_owned()
    };
    blocks.map(sql).collect()
}

/// A delivery of the test: order, store, number, units of the product 812 on each line, and `true`
/// if the quantities of the store count the delivery.
type Delivered = (&'static str, u32, Option<u64>, &'static [u32], bool);

/// The deliveries of the test. The head of the volume counts up to 5.
const DELIVERIES: [Delivered; 9] = [
    ("d1", 4, Some(5), &[1], true),
    ("d2", 4, Some(6), &[1, 1], false),
    ("d3", 4, None, &[1], false),
    ("d4", 70_000, Some(9), &[20], true),
    ("d5", 70_000, Some(10), &[40], false),
    ("d6", 70_000, Some(u64::MAX), &[80], false),
    ("d7", 70_001, Some(1), &[2], true),
    ("d8", 3_000_000_000, Some(1), &[5], false),
    // This store has no quantities any more.
    ("d9", 5, Some(5), &[1], true),
];

fn delivery_of((_, store, sequence, units, _): Delivered) -> Delivery {
    let lines = units.iter().map(|quantity| Line {
        id: 812,
        quantity: *quantity,
    });
    Delivery {
        store,
        lines: lines.collect(),
        sequence,
        ordinal: 0,
    }
}

/// The third query must return the units that a node has available in its memory.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn the_queries_of_the_guide_return_the_facts_of_the_volume() {
    let url = engine().await;
    let head = StockHead {
        newest_as_of: Some(9),
        counted_to: Some(5),
        snapshots: 2,
    };
    let mut words = LastWords::default();
    let orders = [
        ("17", vec![Event::Cancelled]),
        ("paid", vec![Event::Paid { transaction: 1 }]),
        ("refund", vec![Event::RefundWanted { transaction: 2 }]),
    ];
    for (id, events) in orders {
        let (key, row) = order(id, events);
        words.puts.push((Table::Orders, key, row));
    }
    let (mut key, mut row) = (Vec::new(), Vec::new());
    codec::encode_message_key(&OrderId::parse("paid").unwrap(), Kind::Deliver, &mut key);
    let message = Message {
        state: MessageState::Dead,
        attempts: 3,
        next_try_ms: 1_700_000_000_000,
        last_error: Some("503".into()),
    };
    codec::encode_message(&message, &mut row);
    words.puts.push((Table::Outbox, key, row));
    put_stock(&mut words);
    let reservations = [reservation("17", 4, None), reservation("17", 70_000, Some(1))];
    for reservation in &reservations {
        put_reservation(&mut words, reservation);
    }
    let mut deliveries = Vec::new();
    for row in DELIVERIES {
        let (id, delivery) = (OrderId::parse(row.0).unwrap(), delivery_of(row));
        let (mut key, mut value) = (Vec::new(), Vec::new());
        codec::encode_order_store_key(&id, delivery.store, &mut key);
        codec::encode_delivery(&delivery, &mut value);
        words.puts.push((Table::Deliveries, key, value));
        deliveries.push((id, delivery));
    }
    put_in(&url, &words).await;
    let mut session = Session::new(Arc::clone(&url), "test");
    // A cluster of an earlier release gets the view by another `imt engine init`.
    let old = "DROP VIEW imt_deliveries";
    session.batch(old, TIMEOUT).await.unwrap();
    init_engine(&url).await.unwrap();

    let mut json_of = async |sql: &str| -> Value {
        let sql = format!("SELECT to_jsonb(q)::text FROM ({sql}) q");
        let found = session.query(&sql, &[], TIMEOUT).await.unwrap();
        let shown = |row: &crate::postgres::Row| serde_json::from_str(row.text(0).unwrap()).unwrap();
        Value::Array(found.iter().map(shown).collect())
    };
    // Before the first snapshot, the quantities count no delivery with a number.
    let counted = "SELECT order_id, is_counted FROM imt_deliveries ORDER BY order_id";
    let expected = |head: bool| -> Value {
        let rows = DELIVERIES.iter().map(|(id, store, .., is_counted)| {
            let is_counted = *is_counted && (head || *store == 70_000);
            json!({ "order_id": id, "is_counted": is_counted })
        });
        rows.collect()
    };
    assert_eq!(json_of(counted).await, expected(false));
    let mut row = Vec::new();
    codec::encode_stock_head(&head, &mut row);
    let mut words = LastWords::default();
    words.puts.push((Table::Meta, STOCK_HEAD.to_vec(), row));
    put_in(&url, &words).await;
    assert_eq!(json_of(counted).await, expected(true));
    let sql = "SELECT store, products, sequence FROM imt_deliveries WHERE order_id = 'd2'";
    let unit = json!({ "id": 812, "quantity": 1 });
    let shown = json!([{ "store": 4, "products": [unit, unit], "sequence": 6 }]);
    assert_eq!(json_of(sql).await, shown);

    let queries = queries_of_the_guide();
    let [by_state, history, sellable, dead, stuck] = &queries[..] else {
        panic!("{queries:#?}");
    };
    assert_eq!(json_of(by_state).await, json!([]), "no order is of the last hour");
    let every_time = by_state.replace("1 hour", "100 years");
    let mut states = json_of(&every_time).await;
    states
        .as_array_mut()
        .unwrap()
        .sort_by_key(|row| row["state"].to_string());
    let one = |state: &str| json!({ "state": state, "count": 1 });
    assert_eq!(
        states,
        json!([one("cancelled"), one("paid"), one("refund_wanted")])
    );
    let found = json_of(history).await;
    assert_eq!(
        (&found[0]["id"], &found[0]["state"]),
        (&json!("17"), &json!("cancelled"))
    );
    assert!(
        found[0]["jsonb_pretty"].as_str().unwrap().contains("reserved"),
        "{found}"
    );
    // A snapshot in memory has a table up to the largest id, so it gets no store above 100,000.
    let small = STORES.iter().filter(|(store, ..)| *store < 100_000);
    let columns = small.map(|(store, quantities, counted_to)| Column {
        store: *store,
        quantities: vec![quantities[0]],
        counted_to: *counted_to,
    });
    let snapshot = StockSnapshot::from_rows(vec![812], columns.collect());
    let counting = Counting {
        head,
        overrides: snapshot.counted_to_overrides(&head),
    };
    let stock = Stock::new(
        snapshot.into_matrix(&Arc::default()),
        counting,
        &reservations,
        deliveries,
    );
    let in_memory = [4, 70_000, 70_001].map(|store| stock.available_in(812, store).unwrap());
    // Store 4 has 7 units. Three are reserved, and three were delivered and are not counted.
    assert_eq!(in_memory, [1, 177, 9]);
    let row = |store: u32, available: i32| json!({ "store": store, "available": available });
    let [first, second, third] = in_memory;
    let expected = [
        row(4, first),
        row(70_000, second),
        row(70_001, third),
        row(3_000_000_000, -7),
    ];
    assert_eq!(json_of(sellable).await, json!(expected));
    let expected = json!([{ "order_id": "paid", "kind": "deliver", "attempts": 3, "last_error": "503" }]);
    assert_eq!(json_of(dead).await, expected);
    let found = json_of(stuck).await;
    let ids: std::collections::BTreeSet<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str())
        .collect();
    assert_eq!(ids, [Some("paid"), Some("refund")].into());
}
