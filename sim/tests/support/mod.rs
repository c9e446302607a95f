//! A small order management in memory, for tests of the simulators.
//!
//! This order management has only the routes that the simulators need, one lock, and neither a disk
//! nor nodes. Each [`Fault`] except `None` is a defect that can be switched on. Tests check that
//! the audit finds each defect.
#![allow(clippy::unwrap_used)] // Test support: a failure here fails the test.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use http_body_util::Full;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use imt_sim::wire::{
    Message, MessageKind, MessageState, NewOrder, Order, OrderState, Payment, Product, Reservation,
    WarehouseOrder,
};
use serde_json::json;
use tokio::net::TcpListener;

/// A deliberate fault of this order management.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The order management has no fault.
    None,
    /// Orders with an id divisible by 5 are acknowledged and not kept.
    LosesOrders,
    /// Every delivery is requested twice, each time with a different idempotency key.
    DeliversTwice,
    /// A reservation is not removed after the delivery.
    KeepsReservations,
    /// Reserved units are reserved again for other orders.
    SellsWhatIsReserved,
    /// Payments are acknowledged and not recorded.
    ForgetsPayments,
}

#[derive(Default)]
struct Inside {
    on_hand: HashMap<(u32, u32), i64>,
    reserved: HashMap<(u32, u32), i64>,
    as_of: u64,
    delivered: Vec<(u64, u32, Vec<Product>)>,
    orders: BTreeMap<String, Order>,
    reservations: BTreeMap<String, Reservation>,
    outbox: BTreeMap<(String, MessageKind), Message>,
    snapshots: Vec<(u64, usize)>,
}

struct Shared {
    fault: Fault,
    warehouse: SocketAddr,
    inside: Mutex<Inside>,
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Shared {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }
}

/// A running order management for tests.
pub(crate) struct FakeOms {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl FakeOms {
    /// Serves on `listener`. The caller binds `listener` before the call, because the warehouse is
    /// started first and needs the address.
    pub(crate) fn serve(listener: TcpListener, warehouse: SocketAddr, fault: Fault) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            fault,
            warehouse,
            inside: Mutex::default(),
            http: Client::builder(TokioExecutor::new()).build_http(),
        });
        let router = Router::new()
            .route("/order", post(new_order))
            .route("/order/{id}/payment-callback", post(payment))
            .route("/order/{id}/cancel", post(cancel))
            .route("/stocks", put(stocks))
            .route(
                "/aggregate-stats/{product}",
                get(async || r#"{"ca":0,"total_qty":0,"mean_price":0}"#),
            )
            .route("/orders", get(orders))
            .route("/reservations", get(reservations))
            .route("/outbox", get(outbox))
            .route("/health", get(health))
            .layer(DefaultBodyLimit::max(100 << 20))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared }
    }

    /// Returns the value of `X-Stock-As-Of` and the number of lines of every accepted snapshot.
    pub(crate) fn snapshots(&self) -> Vec<(u64, usize)> {
        self.shared.inside().snapshots.clone()
    }

    /// Requests a delivery of one unit from the warehouse, for an order that this order management
    /// does not have. Requests nothing if no quantity on hand is above 5.
    pub(crate) async fn deliver_one_unit(&self, id: &str) {
        let cell = {
            let inside = self.shared.inside();
            inside
                .on_hand
                .iter()
                .find(|(_, units)| **units > 5)
                .map(|(cell, _)| *cell)
        };
        let Some((product, store)) = cell else {
            return tokio::task::yield_now().await;
        };
        let body = json!({
            "id": id, "products": [{"id": product, "quantity": 1}], "store_id": store, "transaction_id": 1,
        });
        let url = format!("http://{}/order/process_delivery", self.shared.warehouse);
        let request = hyper::Request::post(url)
            .body(Full::from(body.to_string()))
            .unwrap();
        self.shared.http.request(request).await.unwrap();
    }

    /// Returns the units on hand: the quantity of the last snapshot, minus the confirmed deliveries
    /// that are not yet subtracted in the snapshot.
    pub(crate) fn on_hand(&self, product: u32, store: u32) -> i64 {
        self.shared.inside().on_hand[&(product, store)]
    }
}

async fn new_order(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let new: NewOrder = serde_json::from_slice(&body).unwrap();
    let mut inside = shared.inside();
    let store = (1..=200).find(|store| {
        new.products.iter().all(|product| {
            let cell = (product.id, *store);
            let on_hand = inside.on_hand.get(&cell).copied().unwrap_or_default();
            let reserved = inside.reserved.get(&cell).copied().unwrap_or_default();
            on_hand - reserved >= product.quantity.into()
        })
    });
    let order = Order {
        id: new.id.clone(),
        products: new.products.clone(),
        store_id: store,
        state: store.map_or(OrderState::Rejected, |_| OrderState::Reserved),
        transaction_id: None,
        refund_transaction_ids: Vec::new(),
        created_at_ms: 1,
        updated_at_ms: 1,
    };
    if shared.fault == Fault::LosesOrders && new.id.parse::<u64>().unwrap().is_multiple_of(5) {
        return axum::Json(order).into_response();
    }
    inside.orders.insert(new.id.clone(), order.clone());
    let Some(store) = store else {
        return (StatusCode::CONFLICT, "no store has it").into_response();
    };
    if shared.fault != Fault::SellsWhatIsReserved {
        for product in &new.products {
            *inside.reserved.entry((product.id, store)).or_default() += i64::from(product.quantity);
        }
    }
    let reservation = Reservation {
        order: new.id.clone(),
        store,
        products: new.products,
    };
    inside.reservations.insert(new.id, reservation);
    tell(&shared, &mut inside, &order, MessageKind::Announce);
    axum::Json(order).into_response()
}

async fn payment(State(shared): State<Arc<Shared>>, Path(id): Path<String>, body: Bytes) -> Response {
    let payment: Payment = serde_json::from_slice(&body).unwrap();
    let mut inside = shared.inside();
    let Some(order) = inside.orders.get_mut(&id) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if order.state == OrderState::Rejected {
        return StatusCode::CONFLICT.into_response();
    }
    if order.transaction_id == Some(payment.transaction_id) {
        return axum::Json(order.clone()).into_response();
    }
    if shared.fault == Fault::ForgetsPayments {
        return axum::Json(order.clone()).into_response();
    }
    order.transaction_id = Some(payment.transaction_id);
    order.state = OrderState::Delivering;
    let order = order.clone();
    tell(&shared, &mut inside, &order, MessageKind::Deliver);
    axum::Json(order).into_response()
}

async fn cancel(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let mut inside = shared.inside();
    let Some(order) = inside.orders.get_mut(&id) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if !matches!(order.state, OrderState::Reserved | OrderState::Announced) {
        return StatusCode::CONFLICT.into_response();
    }
    order.state = OrderState::Cancelled;
    let order = order.clone();
    let body = WarehouseOrder {
        id: order.id.clone(),
        products: order.products.clone(),
        store_id: order.store_id.unwrap(),
        transaction_id: None,
    };
    release(&mut inside, &body);
    axum::Json(order).into_response()
}

/// Puts a message into the outbox. A new task sends the message until the warehouse confirms or
/// refuses it.
fn tell(shared: &Arc<Shared>, inside: &mut Inside, order: &Order, kind: MessageKind) {
    let message = Message {
        order: order.id.clone(),
        kind,
        state: MessageState::Waiting,
        attempts: 0,
        last_error: None,
    };
    inside.outbox.insert((order.id.clone(), kind), message);
    let body = WarehouseOrder {
        id: order.id.clone(),
        products: order.products.clone(),
        store_id: order.store_id.unwrap(),
        transaction_id: order.transaction_id,
    };
    tokio::spawn(see_to(Arc::clone(shared), body, kind));
}

async fn see_to(shared: Arc<Shared>, body: WarehouseOrder, kind: MessageKind) {
    let (path, repeats) = match kind {
        MessageKind::Announce => ("/order/new", 1),
        MessageKind::Deliver if shared.fault == Fault::DeliversTwice => ("/order/process_delivery", 2),
        MessageKind::Deliver => ("/order/process_delivery", 1),
    };
    for repeat in 0..repeats {
        loop {
            let request = hyper::Request::post(format!("http://{}{path}", shared.warehouse))
                .header("idempotency-key", format!("{}/{kind}/{repeat}", body.id))
                .body(Full::from(serde_json::to_vec(&body).unwrap()))
                .unwrap();
            let problem = match shared.http.request(request).await {
                Ok(answer) if answer.status() == 200 && repeat + 1 == repeats => {
                    let sequence = answer.headers().get("x-stock-sequence");
                    let sequence = sequence.map(|n| n.to_str().unwrap().parse().unwrap());
                    return confirm(&shared, &body, kind, sequence);
                }
                Ok(answer) if answer.status() == 200 => break,
                Ok(answer) if answer.status() == 409 => return refuse(&shared, &body, kind),
                Ok(answer) => answer.status().to_string(),
                Err(error) => error.to_string(),
            };
            if let Some(message) = shared.inside().outbox.get_mut(&(body.id.clone(), kind)) {
                message.attempts += 1;
                message.last_error = Some(problem);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn confirm(shared: &Shared, body: &WarehouseOrder, kind: MessageKind, sequence: Option<u64>) {
    let mut inside = shared.inside();
    inside.outbox.remove(&(body.id.clone(), kind));
    let order = inside.orders.get_mut(&body.id).unwrap();
    if kind == MessageKind::Announce {
        if order.state == OrderState::Reserved {
            order.state = OrderState::Announced;
        }
        return;
    }
    order.state = OrderState::Delivered;
    let sequence = sequence.unwrap();
    if sequence > inside.as_of {
        for product in &body.products {
            *inside.on_hand.entry((product.id, body.store_id)).or_default() -= i64::from(product.quantity);
        }
        inside
            .delivered
            .push((sequence, body.store_id, body.products.clone()));
    }
    if shared.fault != Fault::KeepsReservations {
        release(&mut inside, body);
    }
}

fn refuse(shared: &Shared, body: &WarehouseOrder, kind: MessageKind) {
    let mut inside = shared.inside();
    inside.orders.get_mut(&body.id).unwrap().state = OrderState::Failed;
    let message = inside.outbox.get_mut(&(body.id.clone(), kind)).unwrap();
    message.state = MessageState::Dead;
    message.last_error = Some("409".into());
    release(&mut inside, body);
}

fn release(inside: &mut Inside, body: &WarehouseOrder) {
    inside.reservations.remove(&body.id);
    for product in &body.products {
        *inside.reserved.entry((product.id, body.store_id)).or_default() -= i64::from(product.quantity);
    }
}

async fn stocks(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let as_of: u64 = headers["x-stock-as-of"].to_str().unwrap().parse().unwrap();
    let mut on_hand = HashMap::new();
    let mut lines = 0;
    for line in std::str::from_utf8(&body).unwrap().lines() {
        let mut fields = line.split(',').map(|field| field.parse::<u32>().unwrap());
        let cell = (fields.next().unwrap(), fields.next().unwrap());
        on_hand.insert(cell, i64::from(fields.next().unwrap()));
        assert_eq!(fields.next(), None);
        lines += 1;
    }
    let mut inside = shared.inside();
    if as_of < inside.as_of {
        return (StatusCode::CONFLICT, "stale snapshot").into_response();
    }
    inside.delivered.retain(|(sequence, ..)| *sequence > as_of);
    for (_, store, products) in &inside.delivered {
        for product in products {
            *on_hand.entry((product.id, *store)).or_default() -= i64::from(product.quantity);
        }
    }
    inside.on_hand = on_hand;
    inside.as_of = as_of;
    inside.snapshots.push((as_of, lines));
    axum::Json(json!({"lines": lines, "stores": 0, "applied": true})).into_response()
}

async fn orders(State(shared): State<Arc<Shared>>) -> Response {
    let orders: Vec<_> = shared.inside().orders.values().cloned().collect();
    axum::Json(json!({"orders": orders, "next": null})).into_response()
}

async fn reservations(State(shared): State<Arc<Shared>>) -> Response {
    let reservations: Vec<_> = shared.inside().reservations.values().cloned().collect();
    axum::Json(json!({"reservations": reservations, "next": null})).into_response()
}

async fn outbox(State(shared): State<Arc<Shared>>) -> Response {
    let messages: Vec<_> = shared.inside().outbox.values().cloned().collect();
    axum::Json(json!({"messages": messages, "next": null})).into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let inside = shared.inside();
    axum::Json(json!({
        "status": "ok", "node": "fake", "epoch": 1, "outbox": inside.outbox.len(),
        "stock_snapshots": inside.snapshots.len(), "stat_files": 0,
    }))
    .into_response()
}
