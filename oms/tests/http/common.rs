//! Fixtures for tests over real HTTP: a node, a simulated warehouse and a client.
//!
//! With the environment variable `IMT_TEST_ENGINE`, the nodes of all tests keep their orders in
//! that engine instead of their data folder. The tests do not use `IMT_ENGINE`, the setting of the
//! program, because they create databases and must not do so in an engine with real orders.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "test helpers: a failed step is a failed test"
)]

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use imt_oms::{EngineUrl, Node, NodeConfig, OutboxLimits};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::documented;

/// The behaviour of the simulated warehouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// The warehouse executes each call and answers 200.
    Good,
    /// The warehouse answers 504 without executing the call.
    TimesOut,
    /// The warehouse executes the call, and answers 504 nevertheless.
    ActsAndTimesOut,
    /// The warehouse answers 409 with a problem type that means a final refusal.
    Refuses,
    /// The warehouse answers 409 without a problem type, and does not execute the call.
    Conflicts,
    /// The warehouse answers 409 with `Retry-After`, as if an earlier attempt was in progress.
    IsAtWork,
    /// The warehouse answers 500 to calls about orders with an id that begins with "poison", and
    /// executes all other calls.
    Poisoned,
}

fn problem(name: &str) -> Response {
    let body = json!({ "type": format!("urn:test:{name}"), "title": "No" });
    (StatusCode::CONFLICT, Json(body)).into_response()
}

/// Returns the answer to a call that the warehouse does not execute; `None` if it executes the
/// call.
fn refusal(mood: Mood, order: &Value) -> Option<Response> {
    match mood {
        Mood::TimesOut => Some(StatusCode::GATEWAY_TIMEOUT.into_response()),
        Mood::Refuses => Some(problem("out-of-stock")),
        Mood::Conflicts => Some((StatusCode::CONFLICT, "no").into_response()),
        Mood::IsAtWork => {
            let mut response = problem("anything");
            response
                .headers_mut()
                .insert("retry-after", axum::http::HeaderValue::from_static("0"));
            Some(response)
        }
        Mood::Poisoned if order["id"].as_str().is_some_and(|id| id.starts_with("poison")) => {
            Some(StatusCode::INTERNAL_SERVER_ERROR.into_response())
        }
        Mood::Good | Mood::ActsAndTimesOut | Mood::Poisoned => None,
    }
}

/// The calls that the warehouse received.
#[derive(Default)]
pub(crate) struct Seen {
    pub announced: HashMap<String, (usize, Value)>,
    /// For each delivered order: number of executed calls, body of the first executed call, and
    /// delivery number.
    pub delivered: HashMap<String, (usize, Value, u64)>,
    pub keys: Vec<String>,
    /// The header `traceparent` of the last call with each idempotency key, by this key.
    pub traces: HashMap<String, Option<String>>,
    pub calls: usize,
}

pub(crate) struct Warehouse {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    pub mood: watch::Sender<Mood>,
    stop: tokio::task::AbortHandle,
}

type Shared = (Arc<Mutex<Seen>>, watch::Receiver<Mood>);

async fn announce((seen, mood): Shared, headers: HeaderMap, order: Value) -> Response {
    let mut seen = seen.lock().unwrap();
    note(&mut seen, &headers);
    let mood = *mood.borrow();
    if let Some(response) = refusal(mood, &order) {
        return response;
    }
    let id = order["id"].as_str().unwrap().to_owned();
    assert!(order["store_id"].is_u64(), "announced without a store: {order}");
    seen.announced.entry(id).or_insert((0, order)).0 += 1;
    if mood == Mood::ActsAndTimesOut {
        StatusCode::GATEWAY_TIMEOUT
    } else {
        StatusCode::OK
    }
    .into_response()
}

async fn deliver((seen, mood): Shared, headers: HeaderMap, order: Value) -> Response {
    let mut seen = seen.lock().unwrap();
    note(&mut seen, &headers);
    let mood = *mood.borrow();
    if let Some(response) = refusal(mood, &order) {
        return response;
    }
    let next = seen.delivered.len() as u64 + 1;
    let id = order["id"].as_str().unwrap().to_owned();
    let entry = seen.delivered.entry(id).or_insert((0, order, next));
    entry.0 += 1;
    let sequence = entry.2;
    if mood == Mood::ActsAndTimesOut {
        return StatusCode::GATEWAY_TIMEOUT.into_response();
    }
    (StatusCode::OK, [("x-stock-sequence", sequence.to_string())]).into_response()
}

fn note(seen: &mut Seen, headers: &HeaderMap) {
    seen.calls += 1;
    let text = |name: &str| Some(headers.get(name)?.to_str().unwrap().to_owned());
    let key = text("idempotency-key").unwrap();
    seen.traces.insert(key.clone(), text("traceparent"));
    seen.keys.push(key);
}

impl Warehouse {
    pub(crate) async fn start() -> Warehouse {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Warehouse::on(listener)
    }

    pub(crate) fn on(listener: tokio::net::TcpListener) -> Warehouse {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mood, watched) = watch::channel(Mood::Good);
        let shared: Shared = (Arc::clone(&seen), watched);
        let routes = Router::new()
            .route(
                "/order/new",
                post(
                    |State(shared): State<Shared>, headers: HeaderMap, Json(order): Json<Value>| {
                        announce(shared, headers, order)
                    },
                ),
            )
            .route(
                "/order/process_delivery",
                post(
                    |State(shared): State<Shared>, headers: HeaderMap, Json(order): Json<Value>| {
                        deliver(shared, headers, order)
                    },
                ),
            )
            .with_state(shared);
        let serving = tokio::spawn(async move {
            axum_serve(listener, routes).await;
        });
        Warehouse {
            address,
            seen,
            mood,
            stop: serving.abort_handle(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn deliveries_of(&self, id: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .delivered
            .get(id)
            .map_or(0, |entry| entry.0)
    }
}

impl Drop for Warehouse {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

/// Serves routes over HTTP/1.1. The tests do without `axum::serve`, which would need a further
/// feature of the crate `axum`.
async fn axum_serve(listener: tokio::net::TcpListener, routes: Router) {
    // When the task of the server is aborted, the set is dropped and closes all connections. So an
    // aborted server behaves like a killed process.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(routes.clone());
        connections.spawn(async move {
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        });
    }
}

/// An answer: status, headers, body.
pub(crate) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

#[derive(Clone)]
pub(crate) struct Shop {
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
    base: String,
}

impl Shop {
    pub(crate) fn at(address: SocketAddr) -> Shop {
        Shop {
            client: Client::builder(TokioExecutor::new()).build_http(),
            base: format!("http://{address}"),
        }
    }

    pub(crate) async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Option<Reply> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .client
            .request(request.body(Full::new(body)).unwrap())
            .await
            .ok()?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        documented::check(method, path, head.status.as_u16(), &head.headers);
        Some(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let body = body.into();
        let length = body.len();
        let answered = self.try_send(method, path, headers, body).await;
        answered.unwrap_or_else(|| panic!("no answer to {method} {path} {headers:?} with {length} bytes"))
    }

    /// Begins a stock upload. Returns once the node has requested the body with `100 Continue`.
    pub(crate) async fn begin_stocks(&self) -> StockUpload {
        let address = self.base.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = "PUT /stocks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\
                    expect: 100-continue\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.unwrap());
        }
        assert!(asked.starts_with(b"HTTP/1.1 100 "), "the node asks for the body");
        StockUpload { stream }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn order(&self, id: &str, products: &[(u32, u32)]) -> Reply {
        self.send(
            "POST",
            "/order",
            &[("content-type", "application/json")],
            order_body(id, products),
        )
        .await
    }

    pub(crate) async fn pay(&self, id: &str, transaction: u64) -> Reply {
        let body = json!({ "transaction_id": transaction }).to_string();
        self.send("POST", &format!("/order/{id}/payment-callback"), &[], body)
            .await
    }

    pub(crate) async fn stocks(&self, csv: &str, as_of: Option<u64>) -> Reply {
        let as_of = as_of.map(|as_of| as_of.to_string());
        let headers: Vec<(&str, &str)> = as_of
            .iter()
            .map(|as_of| ("x-stock-as-of", as_of.as_str()))
            .collect();
        self.send("PUT", "/stocks", &headers, csv.to_owned()).await
    }

    pub(crate) async fn state(&self, id: &str) -> String {
        let reply = self.get(&format!("/order/{id}")).await;
        assert_eq!(reply.status, 200);
        reply.json()["state"].as_str().unwrap().to_owned()
    }

    /// Waits until an order is in this state.
    pub(crate) async fn until(&self, id: &str, state: &str) {
        let condition = format!("order {id} to be {state}");
        until(&condition, async || self.state(id).await == state).await;
    }
}

/// A stock upload that has sent its headers.
pub(crate) struct StockUpload {
    stream: tokio::net::TcpStream,
}

impl StockUpload {
    /// Sends the body and returns the answer.
    pub(crate) async fn finish(mut self, body: &str) -> Reply {
        let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        self.stream.write_all(chunk.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            let name = axum::http::HeaderName::try_from(name).unwrap();
            (name, value.parse().unwrap())
        });
        Reply {
            status: status.parse().unwrap(),
            headers: headers.collect(),
            body: body.to_owned().into(),
        }
    }
}

pub(crate) fn order_body(id: &str, products: &[(u32, u32)]) -> String {
    let products: Vec<Value> = products
        .iter()
        .map(|(id, quantity)| json!({ "id": id, "quantity": quantity }))
        .collect();
    json!({ "id": id, "products": products }).to_string()
}

/// Waits for a condition. The timeout is far above any normal wait.
pub(crate) async fn until(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < give_up, "waited in vain for {condition}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the URL of the database for the nodes of a data folder, in the engine of
/// `IMT_TEST_ENGINE`. Creates the database on first use. `None` if the tests use no engine.
fn engine_of(data: &Path) -> Option<EngineUrl> {
    let server: EngineUrl = std::env::var("IMT_TEST_ENGINE").ok()?.parse().unwrap();
    // The name depends on the folder only, so that a child process finds the database of its
    // parent.
    let mut hash = DefaultHasher::new();
    data.hash(&mut hash);
    let database = format!("http_{:016x}", hash.finish());
    let url = server.with_database(&database);
    // A separate thread runs the calls, because the caller's runtime may have only this thread,
    // which waits here.
    let created = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(create_database(&server, &database));
    });
    created.join().unwrap();
    Some(url)
}

async fn create_database(server: &EngineUrl, database: &str) {
    let mut config: tokio_postgres::Config = server.with_password().parse().unwrap();
    config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let created = client.batch_execute(&format!("CREATE DATABASE {database}")).await;
    if let Err(error) = created {
        let exists = tokio_postgres::error::SqlState::DUPLICATE_DATABASE;
        assert_eq!(error.code(), Some(&exists), "{error}");
        return;
    }
    imt_oms::init_engine(&server.with_database(database))
        .await
        .unwrap();
}

/// Returns a configuration with short retry intervals.
pub(crate) fn config(data: &Path, warehouse: &str) -> NodeConfig {
    NodeConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        warehouse: Some(warehouse.to_owned()),
        outbox: OutboxLimits {
            backoff_first_ms: 10,
            backoff_max_ms: 50,
            tries_max: 100,
            probe_first_ms: 10,
            probe_max_ms: 20,
            retries_per_second: 100_000,
            ..OutboxLimits::default()
        },
        stat_scan_every: Duration::from_millis(20),
        engine: engine_of(data),
        ..NodeConfig::new("test", data)
    }
}

/// A node with its own data folder and warehouse.
pub(crate) struct World {
    pub data: tempfile::TempDir,
    pub warehouse: Warehouse,
    pub node: Node,
    pub shop: Shop,
}

impl World {
    pub(crate) async fn start() -> World {
        World::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut NodeConfig)) -> World {
        let data = tempfile::tempdir().unwrap();
        let warehouse = Warehouse::start().await;
        let mut config = config(data.path(), &warehouse.url());
        change(&mut config);
        let node = Node::start(config).await.unwrap();
        let shop = Shop::at(node.address());
        World {
            data,
            warehouse,
            node,
            shop,
        }
    }
}
