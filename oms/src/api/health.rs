//! How the node is: for people, for probes, for Prometheus; and the ring it goes by.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::App;
use super::orders::json;
use super::problem::Problem;
use crate::metrics::{header, line};
use crate::order::State as OrderState;

#[derive(Serialize)]
struct RingHealth {
    epoch: u64,
    members: BTreeMap<String, usize>,
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
    ring: RingHealth,
}

/// `GET /health`
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let desk = app.desk();
    let book = desk.store.book();
    let ring = desk.slots.ring();
    let members: BTreeMap<String, usize> = ring
        .members()
        .iter()
        .map(|member| (member.name().to_string(), ring.slots_of(member.name()).count()))
        .collect();
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
        status: "ok",
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
        slots: members.get(&app.volume).copied().unwrap_or(0),
        transactors: app.transactors.at_work(),
        transactor_panics: app.transactors.panics(),
        up_since_ms: app.up_since_ms,
        ring: RingHealth {
            epoch: ring.epoch().0,
            members,
        },
    })
}

/// `GET /ring`
pub(super) async fn ring(State(app): State<Arc<App>>) -> Response {
    json(&*app.desk().slots.ring())
}

#[derive(Serialize)]
struct Alive {
    status: &'static str,
}

/// `GET /health/live`: the process answers.
pub(super) async fn live() -> Response {
    json(&Alive { status: "ok" })
}

/// `GET /health/ready`: the node can take orders.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    if app.desk().store.has_failed() {
        return Err(Problem::busy(
            "the volume takes no more changes since one could not be made durable",
        ));
    }
    drop(app.desk().store.try_permit()?);
    Ok(json(&Alive { status: "ok" }))
}

/// `GET /metrics`, Prometheus' text form.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let desk = app.desk();
    let book = desk.store.book();
    let mut text = String::with_capacity(8 * 1_024);
    app.metrics.render(&mut text);
    header(&mut text, "imt_orders", "gauge", "Orders in each state.");
    for state in OrderState::ALL {
        line(
            &mut text,
            "imt_orders",
            &[("state", state.name())],
            book.orders[state as usize],
        );
    }
    let (messages, dead, in_flight, away) = {
        let outbox = desk.outbox();
        (
            outbox.len(),
            outbox.dead(),
            outbox.in_flight(),
            outbox.is_warehouse_away(),
        )
    };
    let gauges = [
        (
            "imt_outbox_messages",
            "Messages that the warehouse has not answered.",
            messages as u64,
        ),
        (
            "imt_outbox_dead",
            "Messages given up, to be looked at.",
            dead as u64,
        ),
        (
            "imt_outbox_in_flight",
            "Calls to the warehouse in flight.",
            in_flight as u64,
        ),
        (
            "imt_warehouse_away",
            "1 while a breaker to the warehouse is open.",
            u64::from(away),
        ),
        (
            "imt_commit_queue",
            "Changes that wait to become durable.",
            desk.store.waiting() as u64,
        ),
        (
            "imt_transactors",
            "Orders being worked on now.",
            app.transactors.at_work() as u64,
        ),
        (
            "imt_ring_epoch",
            "Epoch of the ring in force.",
            app.desk().slots.ring().epoch().0,
        ),
    ];
    for (name, help, value) in gauges {
        header(&mut text, name, "gauge", help);
        line(&mut text, name, &[], value);
    }
    let counters = [
        (
            "imt_transactor_panics_total",
            "Transactors that ended in a panic.",
            app.transactors.panics(),
        ),
        (
            "imt_stock_snapshots_total",
            "Stock snapshots applied.",
            desk.stock().head().snapshots,
        ),
        ("imt_stat_files_total", "Statistics files added.", book.stat_files),
    ];
    for (name, help, value) in counters {
        header(&mut text, name, "counter", help);
        line(&mut text, name, &[], value);
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}
