//! The public routes of a volume. A handler parses, calls and renders; what happens is decided elsewhere. Which volume a
//! request is for, and on which node that is, is found in front of them (`gate`).

pub(crate) mod body;
pub(crate) mod cors;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod gate;
mod gzip;
mod health;
mod idempotency;
mod lane;
pub(crate) mod lists;
mod node_status;
mod orders;
pub(crate) mod peer;
mod problem;
mod query;
mod reports;
mod shelves;
mod spread;
mod stocks;

use std::sync::{Arc, RwLock};

use axum::Router as Routes;
use axum::routing::{get, post, put};
use tokio::sync::Semaphore;

use crate::desk::Desk;
use crate::metrics::{Metrics, VolumeCounters};
use crate::process;
use crate::stats::Statistics;
use crate::transactor::Transactors;

pub(crate) use lane::{AnswerBody, Entrance};
pub(crate) use problem::Problem;

/// Snapshots that may arrive at a time: each takes some megabytes, and the second is there for a sender that
/// tries again while its first is still being read.
const SNAPSHOTS_ARRIVING_MAX: usize = 2;

/// What handlers work with.
pub(crate) struct App {
    /// The volume that it is about.
    pub(crate) volume: String,
    pub(crate) up_since_ms: u64,
    /// Tells these rooms from earlier ones over the same volume.
    incarnation: u64,
    pub(crate) transactors: Arc<Transactors>,
    pub(crate) statistics: Arc<RwLock<Statistics>>,
    pub(crate) counters: Arc<VolumeCounters>,
    snapshot_turns: Semaphore,
    applying: tokio::sync::Mutex<()>,
    in_progress: idempotency::InProgress,
}

impl App {
    /// The application over its rooms.
    pub(crate) fn new(
        volume: String,
        transactors: Arc<Transactors>,
        statistics: Arc<RwLock<Statistics>>,
        metrics: &Metrics,
    ) -> App {
        App {
            counters: metrics.of_volume(&volume),
            volume,
            up_since_ms: transactors.desk().clock.now_ms(),
            transactors,
            statistics,
            incarnation: process::random_u64(),
            snapshot_turns: Semaphore::new(SNAPSHOTS_ARRIVING_MAX),
            applying: tokio::sync::Mutex::new(()),
            in_progress: idempotency::InProgress::default(),
        }
    }

    pub(crate) fn desk(&self) -> &Arc<Desk> {
        self.transactors.desk()
    }

    /// While this is held, no snapshot and no change of the stock is applied.
    pub(crate) async fn stock_at_rest(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.applying.lock().await
    }
}

/// The way in to all public routes.
pub(crate) fn routes(app: Arc<App>) -> Entrance {
    Entrance::new(Arc::clone(&app), table(app))
}

/// The table of all public routes.
fn table(app: Arc<App>) -> Routes {
    Routes::new()
        .route("/order", post(orders::place))
        .route("/order/{id}", get(orders::show))
        .route("/order/{id}/payment-callback", post(orders::pay))
        .route("/order/{id}/cancel", post(orders::cancel))
        .route("/order/{id}/history", get(orders::history))
        .route("/orders", get(orders::list))
        .route("/stocks", put(stocks::put).patch(stocks::patch))
        .route("/stocks/{product}", get(shelves::product))
        .route("/stores/{store}", get(shelves::store))
        .route("/aggregate-stats", get(reports::top_stats))
        .route("/aggregate-stats/{product}", get(reports::product_stats))
        .route("/reservations", get(reports::reservations))
        .route("/outbox", get(reports::outbox))
        .route("/outbox/{order}/{kind}/retry", post(reports::retry))
        .route("/health", get(health::health))
        .route("/openapi.json", get(health::openapi))
        .route("/ring", get(health::ring))
        .fallback(orders::no_such_path)
        .method_not_allowed_fallback(orders::method_not_allowed)
        .with_state(app)
}

/// The table of the routes that are about the node, not about a volume.
fn node_table(gate: Arc<gate::Gate>) -> Routes {
    Routes::new()
        .route("/health/live", get(node_status::live))
        .route("/health/ready", get(node_status::ready))
        .route("/metrics", get(node_status::metrics))
        .fallback(orders::no_such_path)
        .method_not_allowed_fallback(orders::method_not_allowed)
        .with_state(gate)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The routes as this file wires them: each `.route("PATH", get(..).put(..))`.
    fn wired() -> BTreeSet<(String, String)> {
        let source = include_str!("mod.rs");
        let tables = source.split("    Routes::new()").skip(1).take(2);
        let mut found = BTreeSet::new();
        for call in
            tables.flat_map(|table| table.split(".fallback(").next().unwrap().split(".route(").skip(1))
        {
            let path = call.split('"').nth(1).unwrap();
            for method in ["get", "post", "put", "patch"] {
                if call.contains(&format!("{method}(")) {
                    found.insert((path.to_owned(), method.to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn the_document_has_exactly_the_routes_there_are() {
        let document: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let mut documented = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                documented.insert((path.clone(), method.clone()));
                let declared: Vec<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "path")
                    .map(|parameter| parameter["name"].as_str().unwrap())
                    .collect();
                let in_path: Vec<&str> = path
                    .split('/')
                    .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                    .collect();
                assert_eq!(declared, in_path, "{method} {path}");
            }
        }
        assert_eq!(documented, wired());
    }

    #[test]
    fn the_document_knows_every_state() {
        let document: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let states = &document["components"]["schemas"]["Order"]["properties"]["state"]["enum"];
        let names: Vec<&str> = crate::order::State::ALL
            .iter()
            .map(|state| state.name())
            .collect();
        assert_eq!(*states, serde_json::json!(names));
    }
}
