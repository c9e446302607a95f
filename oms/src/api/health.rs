//! The health of one volume for people, the ring, and the API's document. Probes and metrics are in `node_status`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use imt_ring::{Member, Ring};
use serde::Serialize;

use super::App;
use super::orders::json;
use crate::order::State as OrderState;

/// The ring as health tells it.
#[derive(Serialize)]
pub(super) struct RingHealth {
    epoch: u64,
    members: BTreeMap<String, usize>,
}

impl RingHealth {
    pub(super) fn of(ring: &Ring) -> RingHealth {
        let slots = |member: &Member| (member.name().to_string(), ring.slots_of(member.name()).count());
        RingHealth {
            epoch: ring.epoch().0,
            members: ring.members().iter().map(slots).collect(),
        }
    }
}

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    node: &'a str,
    epoch: u64,
    orders: BTreeMap<&'static str, u64>,
    outbox: usize,
    outbox_dead: usize,
    outbox_in_flight: usize,
    warehouse: &'static str,
    stock_snapshots: u64,
    stat_files: u64,
    stores: usize,
    slots: usize,
    transactors: usize,
    transactor_panics: u64,
    up_since_ms: u64,
    volumes: [&'a str; 1],
    ring: RingHealth,
}

/// `GET /health`
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let desk = app.desk();
    let book = desk.store.book();
    let ring = desk.slots.ring();
    let ring_health = RingHealth::of(&ring);
    let (stock_snapshots, stores) = {
        let stock = desk.stock();
        (stock.head().snapshots, stock.stores().len())
    };
    let (waiting, dead, in_flight, away) = {
        let outbox = desk.outbox();
        (
            outbox.len(),
            outbox.dead(),
            outbox.in_flight(),
            outbox.is_warehouse_away(),
        )
    };
    json(&Health {
        status: if desk.store.has_failed() { "degraded" } else { "ok" },
        node: &app.volume,
        epoch: ring.epoch().0,
        orders: OrderState::ALL
            .iter()
            .map(|state| (state.name(), book.orders[*state as usize]))
            .collect(),
        outbox: waiting,
        outbox_dead: dead,
        outbox_in_flight: in_flight,
        warehouse: if away { "away" } else { "ok" },
        stock_snapshots,
        stat_files: book.stat_files,
        stores,
        slots: ring_health.members.get(&app.volume).copied().unwrap_or(0),
        transactors: app.transactors.at_work(),
        transactor_panics: app.transactors.panics(),
        up_since_ms: app.up_since_ms,
        volumes: [&app.volume],
        ring: ring_health,
    })
}

/// `GET /ring`
pub(super) async fn ring(State(app): State<Arc<App>>) -> Response {
    json(&*app.desk().slots.ring())
}

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}
