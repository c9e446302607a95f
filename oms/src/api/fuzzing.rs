//! Entry points of this crate's fuzzers in `fuzz/`: each passes arbitrary bytes to one or two
//! parsers of external input or of stored rows.
//!
//! **Invariants**
//! - A parser may reject its input. It must not panic, and its memory use must be bounded.
//! - Parsers of CSV give the same result as a simple reference parser. The result does not depend
//!   on the pieces in which the input arrived.
//! - A rejected request gets a 4xx status, never 5xx.
//!
//! The module is compiled only with the feature `fuzzing` and is not part of the public interface.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::api::order_body::{parse_order, parse_payment};
use crate::cluster::channel::message::{decode_answers, decode_requests};
use crate::domain::csv::{CsvError, LineReader};
use crate::domain::order::Line;
use crate::domain::sales;
use crate::domain::stock_snapshot::{PRODUCT_MAX, StockSnapshot};
use crate::storage::inspect;
use crate::storage::log::Position;
use crate::storage::log::body::{Body, BodyWriter};

/// A fuzz target. It panics if the parser breaks an invariant on the given bytes.
pub type Target = fn(&[u8]);

/// All targets by name. Each name is also the name of the folder with the target's corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("stock_csv", stock_csv),
    ("stat_csv", stat_csv),
    ("order_json", order_json),
    ("volume_row", volume_row),
    ("log_entry", log_entry),
    ("peer_frame", peer_frame),
];

/// Names of tables of a volume, and `none`, which is no table.
const TABLES: [&str; 11] = [
    "orders",
    "arrivals",
    "reservations",
    "outbox",
    "deliveries",
    "stock",
    "stats",
    "meta",
    "none",
    "loans",
    "spent",
];

/// Runs the target called `name`.
///
/// # Panics
/// If `TARGETS` has no such name, or the parser breaks an invariant on `bytes`.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("the fuzz target is in TARGETS").1(bytes);
}

/// Decodes the payload of a frame between nodes as requests and as answers. Encoding the decoded
/// messages and decoding them again must give equal messages.
pub fn peer_frame(bytes: &[u8]) {
    let payload = Bytes::copy_from_slice(bytes);
    if let Ok(requests) = decode_requests(&payload) {
        let mut again = Vec::new();
        requests.iter().for_each(|request| request.encode(&mut again));
        assert_eq!(decode_requests(&again.into()), Ok(requests));
    }
    if let Ok(answers) = decode_answers(&payload) {
        let mut again = Vec::new();
        answers.iter().for_each(|answer| answer.encode(&mut again));
        assert_eq!(decode_answers(&again.into()), Ok(answers));
    }
}

/// Parses a stock snapshot as a whole and in pieces, and compares both with the reference parser.
/// The first byte is the size of the pieces, and the rest is the snapshot.
pub fn stock_csv(bytes: &[u8]) {
    let Some((size, body)) = bytes.split_first() else {
        return;
    };
    let (whole, pieces) = (read(body, body.len()), read(body, (*size).into()));
    match (&whole, &pieces, plain_lines(body)) {
        (Ok(whole), Ok(pieces), Ok(plain)) => {
            assert_eq!(whole, &plain);
            assert_eq!(pieces, &plain, "parsed in pieces of {size} bytes");
        }
        (Err(whole), Err(pieces), Err(line)) => {
            assert_eq!(
                (whole.line, pieces.line),
                (line, line),
                "number of the wrong line"
            );
        }
        other => panic!("the parsers disagree: {other:?}"),
    }
    let (mut snapshot, mut plain) = (StockSnapshot::default(), BTreeMap::new());
    for line in whole.unwrap_or_default() {
        let taken = snapshot.set(line);
        assert_eq!(taken.is_ok(), StockSnapshot::check(line).is_ok(), "{line:?}");
        if taken.is_err() {
            break;
        }
        plain.insert((line[0], line[1]), line[2]);
    }
    for ((product, store), quantity) in plain {
        assert_eq!(snapshot.quantity(product, store), quantity as i32);
    }
}

/// Compares the parser of statistics files with a simple reference parser.
pub fn stat_csv(bytes: &[u8]) {
    let is_known = |line: &[u32; 3]| (1..=PRODUCT_MAX).contains(&line[0]);
    let plain = plain_lines(bytes).ok().filter(|lines| lines.iter().all(is_known));
    match (sales::read_file(bytes), plain) {
        (Ok(sums), Some(lines)) => {
            let total = |of: fn(&[u32; 3]) -> u128| lines.iter().map(of).sum::<u128>();
            let units = sums.values().map(|sums| sums.units).sum::<u128>();
            let revenue = sums.values().map(|sums| sums.revenue).sum::<u128>();
            assert_eq!(units, total(|line| line[1].into()));
            assert_eq!(revenue, total(|line| u128::from(line[1]) * u128::from(line[2])));
        }
        (Err(_), None) => {}
        other => panic!("the parsers disagree: {other:?}"),
    }
}

/// Parses the bytes as the body of an order and as the body of a payment.
pub fn order_json(bytes: &[u8]) {
    match parse_order(bytes) {
        Ok(order) => {
            assert!(is_object(bytes));
            let line = |line: &Line| json!({ "id": line.id, "quantity": line.quantity });
            let lines: Vec<Value> = order.lines.iter().map(line).collect();
            let body = json!({ "id": order.id.as_str(), "products": lines }).to_string();
            let again =
                parse_order(body.as_bytes()).expect("an accepted order is accepted again after a round trip");
            assert_eq!((again.id, again.lines), (order.id, order.lines));
        }
        Err(problem) => check_refusal(&problem),
    }
    match parse_payment(bytes) {
        Ok(transaction) => {
            assert!(is_object(bytes));
            let body = json!({ "transaction_id": transaction }).to_string();
            assert_eq!(parse_payment(body.as_bytes()).ok(), Some(transaction));
        }
        Err(problem) => check_refusal(&problem),
    }
}

/// Decodes a row of a volume. The first byte selects the table, and the second is the length of the
/// key.
pub fn volume_row(bytes: &[u8]) {
    let [table, key_bytes, rest @ ..] = bytes else {
        return;
    };
    let table = TABLES[usize::from(*table) % TABLES.len()];
    let (key, value) = rest.split_at(usize::from(*key_bytes).min(rest.len()));
    if let Some(Ok(row)) = inspect::row_as_json(table, key, value) {
        assert!(!row.to_string().is_empty());
    }
    if let Some(text) = inspect::key_as_text(table, key) {
        assert_eq!(inspect::key_from_text(table, &text).as_deref(), Some(key));
    }
}

/// Reads an entry of a volume's log. If all its rows are valid, they are written again, and the
/// result must be a valid entry.
pub fn log_entry(bytes: &[u8]) {
    let mut again = BodyWriter::with_capacity(0);
    let read = Body::parse(bytes).and_then(|body| {
        body.each_row(|row| {
            again.add(&row);
            Ok(())
        })
    });
    if read.is_ok() {
        let (again, _) = again.seal(&Position::default(), 1);
        // The result may differ from the input: the writer encodes lengths in the shortest form,
        // and the entry is written at another position, on which its hash chain depends.
        assert!(again.len() <= bytes.len());
        assert!(Body::parse(&again).is_ok_and(|body| body.follows(&Position::default(), 1)));
    }
}

/// Returns `true` if the bytes are a JSON object in UTF-8. Only the grammar is checked. The values
/// are not built, because unknown fields may be nested to any depth and contain numbers of any
/// size.
fn is_object(bytes: &[u8]) -> bool {
    let is_json = |text: &str| serde_json::from_str::<IgnoredAny>(text).is_ok();
    bytes.trim_ascii_start().starts_with(b"{") && std::str::from_utf8(bytes).is_ok_and(is_json)
}

fn check_refusal(problem: &impl Serialize) {
    let problem = json!(problem);
    let status = problem["status"].as_u64();
    assert!(
        status.is_some_and(|status| (400..500).contains(&status)),
        "{problem}"
    );
}

/// Parses a body that is passed to the parser in pieces of `piece_bytes`.
fn read(body: &[u8], piece_bytes: usize) -> Result<Vec<[u32; 3]>, CsvError> {
    let (mut reader, mut lines) = (LineReader::default(), Vec::new());
    for piece in body.chunks(piece_bytes.max(1)) {
        reader.feed(piece, |line| {
            lines.push(line);
            Ok(())
        })?;
    }
    let count = reader.finish(|line| {
        lines.push(line);
        Ok(())
    })?;
    assert_eq!(count, lines.len() as u64);
    Ok(lines)
}

/// The reference parser for CSV. Returns the lines of a body, or the number of the first invalid
/// line.
fn plain_lines(body: &[u8]) -> Result<Vec<[u32; 3]>, u64> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut lines = Vec::new();
    for (number, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let field = |field: &[u8]| {
            let digits = (1..=10).contains(&field.len()) && field.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(field).ok().filter(|_| digits)?;
            text.parse::<u32>().ok()
        };
        let fields: Option<Vec<u32>> = line.split(|byte| *byte == b',').map(field).collect();
        let fields = fields.and_then(|fields| <[u32; 3]>::try_from(fields).ok());
        lines.push(fields.ok_or(number as u64 + 1)?);
    }
    Ok(lines)
}
