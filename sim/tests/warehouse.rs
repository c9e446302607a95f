//! Tests of the warehouse's routes over real HTTP.
#![allow(clippy::unwrap_used)] // Also in the helpers: a failure there fails the test.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use imt_sim::warehouse::{Delay, Fault, Profile, Stock, StockShape};
use imt_sim::{Warehouse, WarehouseConfig};
use serde_json::{Value, json};

const SHAPE: StockShape = StockShape {
    products: 20,
    stores: 5,
    units: 15,
};

struct Caller {
    warehouse: Warehouse,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// An answer: its status, the sequence number of the delivery if the answer has one, and the body
/// (`Null` if it is not JSON).
type Answer = (StatusCode, Option<u64>, Value);

impl Caller {
    async fn start(data: &Path) -> Self {
        Self::start_with(data, |_| {}).await
    }

    /// Starts a warehouse with these faults for all kinds of calls.
    async fn disturbed(data: &Path, faults: &[(Fault, f64)]) -> Self {
        Self::start_with(data, |config| {
            config.behaviour.announce.faults = faults.to_vec();
            config.behaviour.deliver.faults = faults.to_vec();
        })
        .await
    }

    async fn start_with(data: &Path, change: impl FnOnce(&mut WarehouseConfig)) -> Self {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut config = WarehouseConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            oms: nobody.into(),
            data: data.to_owned(),
            shape: SHAPE,
            behaviour: Profile::Fast.behaviour(),
            ..WarehouseConfig::default()
        };
        change(&mut config);
        let warehouse = Warehouse::start(config).await.unwrap();
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self { warehouse, http }
    }

    async fn post(&self, path: &str, key: Option<&str>, body: &Value) -> Answer {
        let mut request = Request::post(format!("http://{}{path}", self.warehouse.address()));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.call(request.body(Full::from(body.to_string())).unwrap())
            .await
    }

    async fn get(&self, path: &str) -> Answer {
        let request = Request::get(format!("http://{}{path}", self.warehouse.address()));
        self.call(request.body(Full::default()).unwrap()).await
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        let answer = self.http.request(request).await.unwrap();
        let sequence = answer.headers().get("x-stock-sequence");
        let sequence = sequence.map(|n| n.to_str().unwrap().parse().unwrap());
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (
            status,
            sequence,
            serde_json::from_slice(&body).unwrap_or(Value::Null),
        )
    }

    async fn deliver(&self, id: &str, product: u32, store: u32, quantity: u32) -> Answer {
        let body = order(id, product, store, quantity);
        self.post("/order/process_delivery", Some(&format!("{id}/deliver")), &body)
            .await
    }
}

fn order(id: &str, product: u32, store: u32, quantity: u32) -> Value {
    json!({
        "id": id, "products": [{"id": product, "quantity": quantity}], "store_id": store,
        "transaction_id": 4711,
    })
}

/// Returns a product, a store and a quantity of at least `units`, which the store has of the
/// product in the stock of the first day.
fn shelf(units: u32) -> (u32, u32, u32) {
    let stock = Stock::first_day(1, SHAPE);
    let all = (1..=SHAPE.products).flat_map(|p| (1..=SHAPE.stores).map(move |s| (p, s)));
    all.map(|(p, s)| (p, s, stock.get(p, s).unwrap()))
        .find(|shelf| shelf.2 >= units)
        .unwrap()
}

#[tokio::test]
async fn a_repeated_delivery_gets_the_first_ones_sequence_and_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let caller = Caller::start(folder.path()).await;
    let (product, store, there) = shelf(2);
    let (status, first, _) = caller.deliver("17", product, store, there).await;
    assert_eq!(status, StatusCode::OK);
    let (status, again, _) = caller.deliver("17", product, store, there).await;
    assert_eq!((status, again), (StatusCode::OK, first));
    let (status, _, problem) = caller.deliver("17", product, store, 1).await;
    assert_eq!(
        (status, &problem["type"]),
        (StatusCode::CONFLICT, &json!("urn:imt:warehouse:conflict"))
    );

    let (_, _, summary) = caller.get("/summary").await;
    assert_eq!(
        (&summary["delivered"], &summary["duplicates_after_answer"]),
        (&json!(1), &json!(1))
    );
    let (_, _, ledger) = caller.get("/ledger?limit=10").await;
    assert_eq!(
        ledger,
        json!({"deliveries": [{
            "order": "17", "store": store, "products": [{"id": product, "quantity": there}],
            "transaction_id": 4711, "count": 1, "sequence": first,
        }], "next": null})
    );
    caller.warehouse.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_with_its_store_and_order() {
    let folder = tempfile::tempdir().unwrap();
    let caller = Caller::start(folder.path()).await;
    let (product, store, there) = shelf(1);
    let (status, sequence, problem) = caller.deliver("9", product, store, there + 1).await;
    assert_eq!((status, sequence), (StatusCode::CONFLICT, None));
    assert_eq!(problem["type"], "urn:imt:warehouse:out-of-stock");
    let (_, _, refusals) = caller.get("/refusals").await;
    let refusal =
        json!({"order": "9", "store": store, "product": product, "asked": there + 1, "there": there});
    assert_eq!(refusals, json!({"refusals": [refusal], "next": null}));
    caller.warehouse.stop().await;
}

#[tokio::test]
async fn an_announcement_is_taken_once_and_a_store_must_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let caller = Caller::start(folder.path()).await;
    let body = order("17", 1, 1, 1);
    for _ in 0..2 {
        let (status, _, answer) = caller.post("/order/new", None, &body).await;
        assert_eq!((status, answer), (StatusCode::OK, Value::Null), "200 and empty");
    }
    assert_eq!(caller.warehouse.summary().announced, 1);
    let (status, ..) = caller.post("/order/new", None, &order("17", 2, 1, 1)).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let mut without_store = body;
    without_store["store_id"] = Value::Null;
    let (status, _, problem) = caller.post("/order/new", None, &without_store).await;
    assert_eq!(
        (status, &problem["field"]),
        (StatusCode::BAD_REQUEST, &json!("store_id"))
    );
    let (status, ..) = caller.get("/order/17").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    caller.warehouse.stop().await;
}

#[tokio::test]
async fn behind_a_gateway_timeout_about_half_have_been_delivered_and_a_repeat_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let halves = [(Fault::TimeoutBefore, 0.5), (Fault::TimeoutAfterActing, 0.5)];
    let always = Caller::disturbed(folder.path(), &halves).await;
    // Each order takes one unit of a different product and store with stock, so that no delivery is
    // refused.
    let stock = Stock::first_day(1, SHAPE);
    let shelves: Vec<(u32, u32)> = (1..=SHAPE.products)
        .flat_map(|p| (1..=SHAPE.stores).map(move |s| (p, s)))
        .filter(|(p, s)| stock.get(*p, *s).unwrap() > 0)
        .collect();
    for (id, (product, store)) in shelves.iter().enumerate() {
        let (status, ..) = always.deliver(&id.to_string(), *product, *store, 1).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    }
    let count = shelves.len() as u64;
    let summary = always.warehouse.stop().await;
    assert_eq!(summary.gateway_timeouts, count);
    assert!(
        (count / 4..=3 * count / 4).contains(&summary.delivered),
        "{summary:?}"
    );

    // A warehouse without faults continues on the same folder. It must deliver the missing orders.
    // It must not deliver again the orders that the first warehouse delivered and answered 504.
    let never = Caller::start(folder.path()).await;
    for (id, (product, store)) in shelves.iter().enumerate() {
        let (status, sequence, _) = never.deliver(&id.to_string(), *product, *store, 1).await;
        assert!(status == StatusCode::OK && sequence.is_some());
    }
    let summary = never.warehouse.stop().await;
    assert_eq!(
        (
            summary.delivered,
            summary.refused,
            summary.duplicates_after_answer
        ),
        (count, 0, 0)
    );
}

#[tokio::test]
async fn a_call_whose_earlier_try_is_being_carried_out_is_told_to_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3_600);
    let caller = Caller::start_with(folder.path(), |config| {
        config.behaviour.announce.delay = Delay::fixed(hour);
        config.behaviour.deliver.delay = Delay::fixed(hour);
    })
    .await;
    let address = caller.warehouse.address();
    for path in ["/order/new", "/order/process_delivery"] {
        let post = || {
            let request = Request::post(format!("http://{address}{path}"))
                .header("idempotency-key", "17/x")
                .body(Full::from(order("17", 1, 1, 1).to_string()))
                .unwrap();
            caller.http.request(request)
        };
        // Of two equal calls, the second one is answered at once. The first one waits for an hour.
        let answer = tokio::select! {
            answer = post() => answer.unwrap(),
            answer = post() => answer.unwrap(),
        };
        assert_eq!(answer.status(), StatusCode::CONFLICT, "{path}");
        assert_eq!(answer.headers()["retry-after"], "1", "{path}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["type"], "urn:imt:warehouse:in-progress", "{path}");
    }
    caller.warehouse.stop().await;
}

/// Sends a delivery call. Returns the status, or the text of the error if there is no answer.
async fn try_deliver(caller: &Caller, id: &str, product: u32, store: u32) -> Result<StatusCode, String> {
    let address = caller.warehouse.address();
    let request = Request::post(format!("http://{address}/order/process_delivery"))
        .header("idempotency-key", format!("{id}/deliver"))
        .body(Full::from(order(id, product, store, 1).to_string()))
        .unwrap();
    let answer = caller.http.request(request).await;
    answer.map(|answer| answer.status()).map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    })
}

#[tokio::test]
async fn each_fault_acts_or_not_as_it_says_and_a_repeat_delivers_once() {
    for fault in [
        Fault::ResetBefore,
        Fault::ResetAfterActing,
        Fault::TimeoutBefore,
        Fault::TimeoutAfterActing,
        Fault::Unavailable,
        Fault::DuplicateAnswer,
        Fault::SlowDrip,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let caller = Caller::disturbed(folder.path(), &[(fault, 1.0)]).await;
        let (product, store, _) = shelf(1);
        let answer = try_deliver(&caller, "17", product, store).await;
        match fault {
            Fault::ResetBefore | Fault::ResetAfterActing => {
                let error = answer.unwrap_err();
                assert!(
                    error.contains("reset") || error.contains("closed"),
                    "{fault:?}: {error}"
                );
            }
            Fault::TimeoutBefore | Fault::TimeoutAfterActing => {
                assert_eq!(answer, Ok(StatusCode::GATEWAY_TIMEOUT), "{fault:?}");
            }
            Fault::Unavailable => assert_eq!(answer, Ok(StatusCode::SERVICE_UNAVAILABLE)),
            Fault::DuplicateAnswer | Fault::SlowDrip => assert_eq!(answer, Ok(StatusCode::OK), "{fault:?}"),
        }
        let summary = caller.warehouse.summary();
        assert_eq!(summary.delivered, u64::from(fault.acts()), "{fault:?}");
        assert_eq!(
            summary.faults.get(fault.name()),
            Some(&1),
            "{fault:?}: {summary:?}"
        );

        // A duplicated answer breaks its connection, but later calls use another connection and
        // succeed.
        caller
            .warehouse
            .control()
            .set_behaviour(Profile::Fast.behaviour());
        let again = try_deliver(&caller, "17", product, store).await;
        assert_eq!(again, Ok(StatusCode::OK), "{fault:?}");
        let summary = caller.warehouse.stop().await;
        assert_eq!(summary.delivered, 1, "{fault:?}");
        assert_eq!(
            summary.duplicates_after_answer,
            u64::from(fault.is_answered()),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_warehouse_that_is_away_resets_calls_in_flight_and_new_connections() {
    let folder = tempfile::tempdir().unwrap();
    let caller = Caller::start_with(folder.path(), |config| {
        config.behaviour.deliver.delay = Delay::fixed(Duration::from_secs(3_600));
    })
    .await;
    let (product, store, _) = shelf(1);
    let control = caller.warehouse.control();
    {
        let mut one = pin!(try_deliver(&caller, "17", product, store));
        let mut other = pin!(try_deliver(&caller, "17", product, store));
        // Of two calls for one delivery, the first to arrive stays in flight, and the other one is
        // refused. So a refusal shows that a call is in flight, in any order of arrival.
        let (refused, in_flight) = tokio::select! {
            refused = &mut one => (refused, other),
            refused = &mut other => (refused, one),
        };
        assert_eq!(refused, Ok(StatusCode::CONFLICT));
        control.set_behaviour(Profile::Blackout.behaviour());
        in_flight.await.unwrap_err();
    }
    assert_eq!(control.behaviour_name(), "blackout");
    try_deliver(&caller, "18", product, store).await.unwrap_err();
    control.set_behaviour(Profile::Fast.behaviour());
    assert_eq!(
        try_deliver(&caller, "18", product, store).await,
        Ok(StatusCode::OK)
    );
    let summary = caller.warehouse.stop().await;
    assert!(
        summary.faults["away"] >= 1 && summary.delivered == 1,
        "{summary:?}"
    );
}

#[tokio::test]
async fn refused_calls_are_counted_by_reason() {
    let folder = tempfile::tempdir().unwrap();
    let caller = Caller::start(folder.path()).await;
    let (product, store, there) = shelf(1);
    caller.post("/order/new", None, &json!({"id": "1"})).await;
    caller.deliver("2", product, store, there + 1).await;
    caller.deliver("3", product, store, 1).await;
    caller.deliver("3", product, store, 2).await;
    let summary = caller.warehouse.stop().await;
    assert_eq!(
        (summary.malformed, summary.refused, summary.conflicts),
        (1, 1, 1),
        "{summary:?}"
    );
}
