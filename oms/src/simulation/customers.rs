//! Simulated customers, who place, pay and cancel orders, repeat requests at any node, and record
//! the answers.
//!
//! Without an answer the outcome of a request is unknown, so the request is repeated. The store in
//! each acknowledgement is compared with the earlier acknowledgements of the same order. The audit
//! compares the recorded answers with the final state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use crate::cluster::peer_client::NoAnswer;
use crate::simulation::net;
use crate::simulation::warehouse::{PRODUCTS, WarehouseModel};
use crate::simulation::world::World;

/// Maximum wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);
/// Number of tries before a customer gives up.
const TRIES: u32 = 30;

/// The products that a customer orders, the requests that it sent, and the answers that it
/// received.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) products: Value,
    /// The store in the acknowledgement of the order. `Some(None)` if no store had the products.
    /// `None` while the order is not acknowledged.
    pub(super) store: Option<Option<u64>>,
    pub(super) paid: Option<u64>,
    /// The transaction of a payment that was sent, with or without an answer.
    pub(super) pays: Option<u64>,
    pub(super) cancels: bool,
    pub(super) cancelled: bool,
}

/// The records of all customers, by order id.
#[derive(Default)]
pub(super) struct CustomerRecords(Mutex<BTreeMap<String, Known>>);

impl CustomerRecords {
    pub(super) fn orders(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock()
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Known)) {
        change(self.orders().entry(id.to_owned()).or_default());
    }
}

/// Sends one request to a random node that listens. Returns the status and body of the response.
pub(super) async fn ask(
    world: &Arc<World>,
    method: Method,
    path: &str,
    body: String,
    as_of: Option<u64>,
) -> Result<(StatusCode, Bytes), NoAnswer> {
    let response = exchange(world, method, path, body, as_of).await?;
    Ok((response.status(), response.into_body()))
}

/// Sends one request to a random node that listens, and waits for the response.
pub(super) async fn exchange(
    world: &Arc<World>,
    method: Method,
    path: &str,
    body: String,
    as_of: Option<u64>,
) -> Result<Response<Bytes>, NoAnswer> {
    let addresses: Vec<_> = {
        let inside = world.inside();
        let listening = inside.incarnations.iter().filter(|one| one.cluster.is_some());
        listening.map(|one| one.address).collect()
    };
    if addresses.is_empty() {
        return Err(NoAnswer("no node listens".to_owned()));
    }
    let address = addresses[world.dice.between(0, addresses.len() as u64 - 1) as usize];
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .header("content-length", body.len());
    if let Some(as_of) = as_of {
        request = request.header("x-stock-as-of", as_of);
    }
    let request = request
        .body(Body::from(body))
        .map_err(|error| NoAnswer(error.to_string()))?;
    let call = async {
        let response = net::carry(world, "customer", address, request).await?;
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await;
        let body = body.map_err(|error| NoAnswer(error.to_string()))?;
        Ok(Response::from_parts(head, body))
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(NoAnswer("answer timed out".to_owned())),
    }
}

/// Repeats a request until a node gives a final answer (success or 409). Returns `None` if all
/// tries fail, or if the answer is a violation.
pub(super) async fn send_until_answered(
    world: &Arc<World>,
    path: &str,
    body: &Value,
) -> Option<(StatusCode, Value)> {
    for _ in 0..TRIES {
        match ask(world, Method::POST, path, body.to_string(), None).await {
            Ok((status, answer)) if status.is_success() || status == StatusCode::CONFLICT => {
                return Some((status, serde_json::from_slice(&answer).unwrap_or_default()));
            }
            Ok((status, _)) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {}
            Ok((status, answer)) => {
                let answer = String::from_utf8_lossy(&answer).into_owned();
                world.violated(format!("{path} is answered by {status}: {answer}"));
                return None;
            }
            Err(_) => {}
        }
        let wait_ms = world.dice.between(20, 800);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
    None
}

fn is_about(answer: &Value, slug: &str) -> bool {
    answer["type"].as_str().is_some_and(|kind| kind.ends_with(slug))
}

async fn place(world: &Arc<World>, records: &CustomerRecords, id: &str, products: &Value) -> Option<()> {
    let order = json!({"id": id, "products": products});
    let (status, answer) = send_until_answered(world, "/order", &order).await?;
    let store = match status {
        StatusCode::CONFLICT if is_about(&answer, "insufficient-stock") => None,
        StatusCode::CONFLICT => {
            world.violated(format!("{id} is refused: {answer}"));
            return None;
        }
        _ => answer["store_id"].as_u64(),
    };
    world.note(|| format!("{id} is acknowledged: store {store:?}"));
    let before = records.orders().get(id).and_then(|known| known.store);
    if before.is_some_and(|before| before != store) {
        world.violated(format!(
            "{id} is acknowledged with store {store:?} after {before:?}"
        ));
    }
    records.change(id, |known| known.store = Some(store));
    Some(())
}

/// Simulates one customer with one order.
pub(super) async fn order(world: Arc<World>, records: Arc<CustomerRecords>, number: u64) {
    let dice = &world.dice;
    let id = format!("o{number}");
    let mut products = Vec::new();
    for product in 1..=u64::from(PRODUCTS) {
        if dice.between(1, 3) == 1 {
            products.push(json!({"id": product, "quantity": dice.between(1, 3)}));
        }
    }
    if products.is_empty() {
        products.push(json!({"id": 1, "quantity": 1}));
    }
    let products = Value::from(products);
    records.change(&id, |known| known.products = products.clone());
    let twice = dice.between(1, 4) == 1;
    let again = async {
        if twice {
            place(&world, &records, &id, &products).await;
        }
    };
    let (placed, ()) = tokio::join!(place(&world, &records, &id, &products), again);
    if placed.is_none() {
        return;
    }
    if dice.between(1, 6) == 1 {
        let other = json!({"id": id, "products": [{"id": 1, "quantity": 9}]});
        if let Some((status, _)) = send_until_answered(&world, "/order", &other).await
            && status.is_success()
        {
            world.violated(format!("{id} is acknowledged with two contents"));
        }
    }
    let has_store = records
        .orders()
        .get(&id)
        .is_some_and(|known| matches!(known.store, Some(Some(_))));
    let wait_ms = dice.between(0, 3_000);
    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    match dice.between(1, 10) {
        1 => cancel(&world, &records, &id).await,
        2..=3 => {}
        _ if has_store => pay(&world, &records, &id, number).await,
        _ => {}
    }
    if dice.between(1, 4) == 1 {
        place(&world, &records, &id, &products).await;
    }
}

async fn pay(world: &Arc<World>, records: &CustomerRecords, id: &str, number: u64) {
    records.change(id, |known| known.pays = Some(number));
    let path = format!("/order/{id}/payment-callback");
    let payment = json!({"transaction_id": number});
    let Some((status, answer)) = send_until_answered(world, &path, &payment).await else {
        return;
    };
    if status.is_success() {
        world.note(|| format!("{id} is paid"));
        records.change(id, |known| known.paid = Some(number));
    } else {
        world.violated(format!("the payment of {id} is refused: {answer}"));
    }
}

async fn cancel(world: &Arc<World>, records: &CustomerRecords, id: &str) {
    records.change(id, |known| known.cancels = true);
    let answer = send_until_answered(world, &format!("/order/{id}/cancel"), &json!({})).await;
    if answer.is_some_and(|(status, _)| status.is_success()) {
        world.note(|| format!("{id} is cancelled"));
        records.change(id, |known| known.cancelled = true);
    }
}

/// Uploads the whole stock of the warehouse. Returns `true` on success.
pub(super) async fn send_stock(world: &Arc<World>, warehouse: &WarehouseModel) -> bool {
    let (csv, as_of) = warehouse.snapshot();
    let answer = ask(world, Method::PUT, "/stocks", csv, Some(as_of)).await;
    answer.is_ok_and(|(status, _)| status.is_success())
}
