//! Nodes export spans to a collector that this test runs. One trace covers the client's request,
//! the node that owns the order, the node that owns the stock, and the call to the warehouse.
//!
//! These tests need a build with the feature `otlp`:
//! `cargo test -p imt --features otlp --test cli otlp::`.
#![cfg(feature = "otlp")]

use crate::support::{Server, free_address, http, until};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use tempfile::tempdir;

/// A field of a message in the wire format of Protocol Buffers.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Splits a message into its fields. Returns each field with its number.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for place in 0..10 {
            let (byte, rest) = message.split_first().expect("a whole number");
            *message = rest;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return value;
            }
        }
        panic!("a number of more than 64 bits");
    }
    fn take<'a>(message: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, rest) = message.split_at(length);
        *message = rest;
        taken
    }
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut message)),
            1 => Field::Number(u64::from_le_bytes(take(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut message) as usize;
                Field::Bytes(take(&mut message, length))
            }
            5 => Field::Number(u32::from_le_bytes(take(&mut message, 4).try_into().unwrap()).into()),
            wire_type => panic!("unknown wire type {wire_type}"),
        };
        fields.push((tag >> 3, field));
    }
    fields
}

/// Returns the content of each field of `message` that has the field number `number` and contains
/// a message or a text.
fn all(message: &[u8], number: u64) -> Vec<&[u8]> {
    let fields = fields(message).into_iter();
    let bytes = fields.filter_map(|field| match field {
        (at, Field::Bytes(bytes)) if at == number => Some(bytes),
        _ => None,
    });
    bytes.collect()
}

fn number(message: &[u8], at: u64) -> u64 {
    let fields = fields(message).into_iter();
    let mut numbers = fields.filter_map(|field| match field {
        (found, Field::Number(number)) if found == at => Some(number),
        _ => None,
    });
    numbers.next().unwrap_or_default()
}

fn text(message: &[u8], at: u64) -> String {
    let texts = all(message, at);
    String::from_utf8(texts.first().map(|text| text.to_vec()).unwrap_or_default()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the attributes of a protobuf message by key. Each field of `message` with the field
/// number `at` is one attribute. A value that is not text is read as an integer, because the
/// exporter sends no other numbers.
fn attributes(message: &[u8], at: u64) -> BTreeMap<String, String> {
    let pairs = all(message, at).into_iter();
    let pairs = pairs.map(|pair| {
        let value = all(pair, 2)[0];
        let value = match text(value, 1) {
            text if text.is_empty() => number(value, 3).to_string(),
            text => text,
        };
        (text(pair, 1), value)
    });
    pairs.collect()
}

#[derive(Clone, Debug)]
struct Span {
    /// Name of the node that exported the span.
    node: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    /// Kind of the span in the OTLP format: 2 for a server, 3 for a client.
    kind: u64,
    begun_ns: u64,
    ended_ns: u64,
    attributes: BTreeMap<String, String>,
}

/// Reads the spans of an `ExportTraceServiceRequest`.
fn spans_of(request: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in all(request, 1) {
        let resource = attributes(all(of_resource, 1)[0], 1);
        assert_eq!(resource["service.name"], "imt-order");
        for span in all(of_resource, 2).into_iter().flat_map(|scope| all(scope, 2)) {
            let id = |at| all(span, at).first().map(|id| hex(id)).unwrap_or_default();
            spans.push(Span {
                node: resource["service.instance.id"].clone(),
                trace: id(1),
                id: id(2),
                parent: id(4),
                name: text(span, 5),
                kind: number(span, 6),
                begun_ns: number(span, 7),
                ended_ns: number(span, 8),
                attributes: attributes(span, 9),
            });
        }
    }
    spans
}

/// Receives the spans that come on one connection, until the connection is closed.
fn collect(stream: TcpStream, spans: &Mutex<Vec<Span>>) -> std::io::Result<()> {
    let mut answer = stream.try_clone()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut path = String::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_lowercase();
            if path.is_empty() {
                path.clone_from(&line);
            }
            if let Some(given) = line.strip_prefix("content-length:") {
                length = given.trim().parse().unwrap();
            }
            assert!(!line.starts_with("transfer-encoding"), "{line}");
            if line.is_empty() {
                break;
            }
        }
        assert_eq!(path, "post /v1/traces http/1.1");
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        spans.lock().unwrap().extend(spans_of(&body));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
        answer.write_all(head.as_bytes())?;
    }
}

/// Starts a collector. Returns its address, and the list to which it adds all received spans.
fn collector() -> (String, Arc<Mutex<Vec<Span>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let spans = Arc::new(Mutex::new(Vec::new()));
    let received = Arc::clone(&spans);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let received = Arc::clone(&received);
            std::thread::spawn(move || collect(stream, &received));
        }
    });
    (address, spans)
}

/// Returns the child of the span `parent` that is called `name`, or `None` if it has not arrived
/// yet.
fn below<'a>(spans: &'a [Span], parent: &Span, name: &str) -> Option<&'a Span> {
    let found = spans
        .iter()
        .find(|span| span.parent == parent.id && span.name == name)?;
    assert_eq!(found.trace, parent.trace);
    assert!(
        found.begun_ns >= parent.begun_ns || parent.kind == found.kind,
        "{found:?} {parent:?}"
    );
    assert!(found.ended_ns >= found.begun_ns, "{found:?}");
    Some(found)
}

/// Follows a trace from the client's request to the call of the warehouse. Returns `true` if three
/// different nodes received the request, own the order and own its stock. Returns `false` if no
/// span of a call of another node for the order or for its stock has arrived, or if the node that
/// owns the stock also received the request or owns the order. Returns `None` if one of the other
/// spans has not arrived yet.
fn leads_over_three_nodes(spans: &[Span], client: &str) -> Option<bool> {
    let request = spans
        .iter()
        .find(|span| span.parent == client && span.name == "POST /order")?;
    assert_eq!(request.attributes["http.response.status_code"], "200");
    let Some(forwarded) = below(spans, request, "call of another node") else {
        return Some(false);
    };
    let owner = below(spans, forwarded, "node command")?;
    assert_ne!(owner.node, request.node);
    assert_eq!(owner.attributes["imt.volume"], owner.node);
    let Some(asked) = below(spans, owner, "call of another node") else {
        return Some(false);
    };
    let stock = below(spans, asked, "node reserve")?;
    let announced = below(spans, owner, "POST warehouse /order/new")?;
    assert_eq!(announced.kind, 3);
    let nodes = [&request.node, &owner.node, &stock.node];
    Some(nodes[0] != nodes[2] && nodes[1] != nodes[2])
}

#[test]
fn one_trace_leads_from_the_client_over_the_owners_of_order_and_stock_to_the_warehouse() {
    let folder = tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let (address, spans) = collector();
    let collector = format!("http://{address}");
    let (first, store) = (free_address(), free_address());
    let warehouse = format!("http://{store}");
    let start = |name: &str, listen: &str| {
        Server::start(&[
            "node",
            "start",
            "--name",
            name,
            "--data",
            data,
            "--listen",
            listen,
            "--warehouse",
            &warehouse,
            "--otlp",
            &collector,
            "--otlp-share",
            "0",
        ])
    };
    let nodes = [
        start("alpha", &first),
        start("beta", "127.0.0.1:0"),
        start("gamma", "127.0.0.1:0"),
    ];
    until("each node owns slots", || {
        let health = http(&first, "GET", "/health", &[], b"").json();
        let members = health["ring"]["members"].as_object().unwrap();
        members.len() == nodes.len() && members.values().all(|slots| slots.as_u64() > Some(0))
    });
    let _warehouse = Server::start(&[
        "sim",
        "warehouse",
        "--listen",
        &store,
        "--oms",
        &nodes[0].url(),
        "--data",
        data,
        "--profile",
        "fast",
    ]);
    until("there is stock", || {
        http(&first, "GET", "/health", &[], b"").json()["stock_snapshots"].as_u64() > Some(0)
    });
    let json = [("content-type", "application/json")];
    let mut clients = Vec::new();
    for id in 1..=60 {
        let client = format!("{id:016x}");
        let parent = format!("00-{id:032x}-{client}-01");
        let body = format!("{{\"id\":\"{id}\",\"products\":[{{\"id\":{id},\"quantity\":1}}]}}");
        let headers = [json[0], ("traceparent", parent.as_str())];
        let answer = http(&first, "POST", "/order", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.body);
        clients.push(client);
    }
    until(
        "a trace over three nodes and to the warehouse has arrived",
        || {
            let spans = spans.lock().unwrap().clone();
            let mut led = clients
                .iter()
                .filter_map(|client| leads_over_three_nodes(&spans, client));
            led.any(|over_three| over_three)
        },
    );

    // With `--otlp-share 0`, a request without a trace begins no trace. The delivery continues the
    // trace of the payment instead of that of the order.
    let payment = br#"{"transaction_id":7}"#;
    let paying = [
        json[0],
        (
            "traceparent",
            "00-000000000000000000000000000000ff-00000000000000ff-01",
        ),
    ];
    let paid = http(&first, "POST", "/order/1/payment-callback", &paying, payment);
    assert_eq!(paid.status, 200, "{}", paid.body);
    let unpaid = http(&first, "POST", "/order/2/payment-callback", &json, payment);
    assert_eq!(unpaid.status, 200, "{}", unpaid.body);
    until("the delivery is part of the payment's trace", || {
        let spans = spans.lock().unwrap();
        let deliveries = spans
            .iter()
            .filter(|span| span.name == "POST warehouse /order/process_delivery");
        let mut of_payment = deliveries.filter(|span| span.trace.ends_with("00ff"));
        of_payment.any(|span| span.attributes["order.id"] == "1")
    });
    let spans = spans.lock().unwrap();
    let known = |span: &&Span| span.trace.starts_with("00000000000000000000000000000");
    assert_eq!(
        spans.iter().filter(known).count(),
        spans.len(),
        "all traces are the client's"
    );
}
