//! Tests that each request is sent to the owner of its order, also after the owner has changed, and
//! to another node if the owner is unreachable. A request that timed out must not be sent again.

use std::net::SocketAddr;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::AtomicBool;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use imt_ring::{Member, Options};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::*;

/// Two nodes that share a ring of two volumes.
struct Cluster {
    ring: Ring,
    nodes: [Node; 2],
    /// Index of the node that serves each of the two volumes.
    serving: Arc<StdMutex<[usize; 2]>>,
}

struct Node {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    is_silent: Arc<AtomicBool>,
    serving: AbortHandle,
}

#[derive(Clone)]
struct Shared {
    ring: Ring,
    addresses: [SocketAddr; 2],
    serving: Arc<StdMutex<[usize; 2]>>,
    requests: Arc<AtomicU64>,
    is_silent: Arc<AtomicBool>,
}

impl Shared {
    fn owner_of(&self, product: &str) -> SocketAddr {
        let owner = self.ring.locate(product.as_bytes()).unwrap().owner;
        let volume = usize::from(*owner == "b");
        self.addresses[self.serving.lock().unwrap()[volume]]
    }
}

async fn ring(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let serving = *shared.serving.lock().unwrap();
    let tag = format!("\"{serving:?}\"");
    if headers.get("if-none-match").is_some_and(|known| *known == tag) {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let mut document = serde_json::to_value(&shared.ring).unwrap();
    let owner = |node: usize| serde_json::json!({"node": "n", "address": shared.addresses[node]});
    document["owners"] = serde_json::json!({"a": owner(serving[0]), "b": owner(serving[1])});
    ([("etag", tag)], document.to_string()).into_response()
}

async fn order(
    State(shared): State<Shared>,
    axum::extract::Path(order): axum::extract::Path<String>,
) -> Response {
    if shared.is_silent.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    shared.requests.fetch_add(1, Ordering::Relaxed);
    ([("x-imt-owner", shared.owner_of(&order).to_string())], "{}").into_response()
}

impl Cluster {
    async fn start() -> Self {
        let members = ["a", "b"].map(|name| Member::new(name).unwrap());
        let ring_of_both = Ring::bootstrap(members, Options::new()).unwrap();
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let addresses = [0, 1].map(|at: usize| listeners[at].local_addr().unwrap());
        let serving = Arc::new(StdMutex::new([0, 1]));
        let nodes = listeners.map(|listener| {
            let shared = Shared {
                ring: ring_of_both.clone(),
                addresses,
                serving: Arc::clone(&serving),
                requests: Arc::default(),
                is_silent: Arc::default(),
            };
            let routes = Router::new()
                .route("/ring", get(ring))
                .route("/order/{order}/cancel", axum::routing::post(order))
                .with_state(shared.clone());
            Node {
                address: listener.local_addr().unwrap(),
                requests: shared.requests,
                is_silent: shared.is_silent,
                serving: tokio::spawn(serve(listener, routes)).abort_handle(),
            }
        });
        Self {
            ring: ring_of_both,
            nodes,
            serving,
        }
    }

    /// Returns the id of an order in a slot of the volume with this index (0 for `a`, 1 for `b`).
    fn order_of(&self, volume: usize) -> u64 {
        let name = ["a", "b"][volume];
        let is_there = |order: &u64| *self.ring.locate(order.to_string().as_bytes()).unwrap().owner == name;
        (1..).find(is_there).unwrap()
    }

    async fn owners(&self, timeout: Duration) -> Arc<Owners> {
        let entry = Client::new(self.nodes[0].address.into(), timeout);
        Owners::read(entry).await.unwrap()
    }

    fn requests(&self) -> [u64; 2] {
        [0, 1].map(|at: usize| self.nodes[at].requests.load(Ordering::Relaxed))
    }
}

/// Serves connections. If the task is aborted, the set of connection tasks is dropped, so all
/// connections are closed as well.
async fn serve(listener: TcpListener, routes: Router) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(routes.clone());
        connections.spawn(async move {
            let io = hyper_util::rt::TokioIo::new(stream);
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(io, service).await;
        });
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

async fn cancel(owners: &Arc<Owners>, order: u64) -> Result<Answer, Failure> {
    let path = format!("/order/{order}/cancel");
    let request = Request::Cancel { order };
    owners.exchange(&request, &path, Some(Bytes::new())).await
}

#[tokio::test]
async fn each_request_goes_to_its_owner_and_follows_a_new_server() {
    let cluster = Cluster::start().await;
    let owners = cluster.owners(DEADLINE).await;
    let orders = [cluster.order_of(0), cluster.order_of(1)];
    for order in orders {
        cancel(&owners, order).await.unwrap();
    }
    assert_eq!(cluster.requests(), [1, 1]);
    // The two nodes swap their volumes. The client still calls the first node, but the answer names
    // the second node as the owner. So the client reads the routes again.
    *cluster.serving.lock().unwrap() = [1, 0];
    cancel(&owners, orders[0]).await.unwrap();
    assert_eq!(cluster.requests(), [2, 1]);
    while owners.counts().reads < 2 {
        tokio::task::yield_now().await;
    }
    for order in orders {
        cancel(&owners, order).await.unwrap();
    }
    assert_eq!(cluster.requests(), [3, 2]);
    let expected = RoutingCounts {
        direct: 4,
        forwarded: 1,
        resent: 0,
        reads: 2,
    };
    assert_eq!(owners.counts(), expected);
}

#[tokio::test]
async fn a_request_for_an_owner_that_is_away_goes_to_another_node() {
    let cluster = Cluster::start().await;
    let owners = cluster.owners(DEADLINE).await;
    cluster.nodes[1].serving.abort();
    // The second node is stopped. The routes, read again, still name it as the owner, so the
    // request is sent to the entry node, which is the first node.
    cancel(&owners, cluster.order_of(1)).await.unwrap();
    assert_eq!(cluster.requests(), [1, 0]);
    assert_eq!((owners.counts().resent, owners.counts().reads), (1, 2));
    // The first node serves both volumes now. The next request fails at the second node, so the
    // client reads the new routes. The request after it is sent to the first node at once.
    *cluster.serving.lock().unwrap() = [0, 0];
    cancel(&owners, cluster.order_of(1)).await.unwrap();
    cancel(&owners, cluster.order_of(1)).await.unwrap();
    assert_eq!(cluster.requests(), [3, 0]);
    assert_eq!(owners.counts().resent, 2, "the last one went to the new server");
}

#[tokio::test]
async fn a_request_that_timed_out_is_not_repeated() {
    let cluster = Cluster::start().await;
    let owners = cluster.owners(Duration::from_millis(100)).await;
    cluster.nodes[1].is_silent.store(true, Ordering::Relaxed);
    let failure = cancel(&owners, cluster.order_of(1)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert_eq!((cluster.requests(), owners.counts().resent), ([0, 0], 0));
}

#[tokio::test]
async fn a_server_without_a_ring_is_refused_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve(listener, Router::new()));
    let read = Owners::read(Client::new(address.into(), DEADLINE)).await;
    let error = read.err().unwrap().to_string();
    assert!(error.contains("/ring") && error.contains("404"), "{error}");
    serving.abort();
}
