//! Tests that a client's trace continues through both nodes of a pair to the warehouse.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use imt_oms::{FinishedSpan, SpanKind, SpanOutcome, SpanSink, export_spans};

use crate::common::{order_body, until};
use crate::pair::Pair;

#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<FinishedSpan>>>);

impl SpanSink for Spans {
    fn finished(&self, span: FinishedSpan) {
        self.0.lock().unwrap().push(span);
    }
}

impl Spans {
    fn of_trace(&self, trace: u128) -> Vec<FinishedSpan> {
        let spans = self.0.lock().unwrap();
        let of_trace = spans.iter().filter(|span| span.context.trace == trace);
        of_trace.cloned().collect()
    }
}

fn trace_of(number: u128) -> u128 {
    0xabc0_0000_0000_0000_0000_0000_0000_0000 + number
}

#[tokio::test]
async fn a_trace_goes_through_nodes_and_the_outbox_to_the_warehouse() {
    let spans = Spans::default();
    // With the share 0, no request begins a new trace. So requests of other tests in this process
    // are not exported.
    assert!(export_spans(Box::new(spans.clone()), 0.0));
    let pair = Pair::start().await;
    assert_eq!(pair.alpha.stocks("7,1,1000\n", None).await.status, 200);
    const ORDERS: u128 = 12;
    for number in 1..=ORDERS {
        let parent = format!("00-{:032x}-00f067aa0ba902b7-01", trace_of(number));
        let headers = [
            ("content-type", "application/json"),
            ("traceparent", parent.as_str()),
        ];
        let body = order_body(&number.to_string(), &[(7, 1)]);
        let placed = pair.alpha.send("POST", "/order", &headers, body).await;
        assert_eq!(placed.status, 200);
    }
    let untraced = pair.alpha.order("untraced", &[(7, 1)]).await;
    assert_eq!(untraced.status, 200);
    until("all announcements", async || {
        pair.warehouse.seen.lock().unwrap().announced.len() == ORDERS as usize + 1
    })
    .await;
    let traces: HashMap<String, Option<String>> = pair.warehouse.seen.lock().unwrap().traces.clone();
    assert_eq!(traces["untraced/announce"], None);
    let mut forwarded = 0;
    for number in 1..=ORDERS {
        until("the spans of the order", async || {
            spans
                .of_trace(trace_of(number))
                .iter()
                .any(|span| span.name == "POST warehouse /order/new")
        })
        .await;
        let spans = spans.of_trace(trace_of(number));
        let by_name = |name: &str| spans.iter().find(|span| span.name == name);
        let request = by_name("POST /order").unwrap();
        assert_eq!(request.parent, Some(0x00f0_67aa_0ba9_02b7), "the client's span");
        assert!(matches!(request.outcome, SpanOutcome::Status(200)));
        let call = by_name("POST warehouse /order/new").unwrap();
        let cause = match by_name("node command") {
            Some(command) => {
                forwarded += 1;
                let asking = spans
                    .iter()
                    .find(|span| command.parent == Some(span.context.span));
                let asking = asking.expect("the call to the other node has a span");
                assert_eq!(
                    (asking.name, asking.kind),
                    ("call of another node", SpanKind::Client)
                );
                assert_eq!(asking.parent, Some(request.context.span));
                command
            }
            None => request,
        };
        assert_eq!(call.parent, Some(cause.context.span));
        let expected = format!("00-{:032x}-{:016x}-01", trace_of(number), call.context.span);
        assert_eq!(traces[&format!("{number}/announce")], Some(expected));
    }
    assert!(forwarded > 0, "some orders belong to the other node");
    pair.stop().await;
}
