//! Lists over all volumes: asked of each, put together here.
//!
//! Orders go volume by volume, in order of arrival within each: the cursor says `VOLUME~CURSOR`. Reservations and messages are
//! by order, so the same page of every volume is asked for and the smallest of all are answered. While slots
//! move, a list may miss or repeat what moves; it is whole again when they have moved.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::Query;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use imt_ring::NodeName;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::gate::{Call, Gate};
use super::health::RingHealth;
use super::orders;
use super::problem::Problem;
use crate::process;
use crate::router::List;

/// Fields of a volume's health that are added up over all.
const SUMMED: [&str; 7] = [
    "outbox",
    "outbox_dead",
    "outbox_in_flight",
    "stat_files",
    "stores",
    "transactors",
    "transactor_panics",
];

/// Answers a list; begins again if a volume that was to be asked has left meanwhile.
pub(super) async fn list(
    gate: &Arc<Gate>,
    list: List,
    call: &Call,
    until: Instant,
) -> Result<Response, Problem> {
    loop {
        match list_once(gate, list, call, until).await {
            Err(problem) if problem.is_moved() && Instant::now() < until => tokio::task::yield_now().await,
            answer => return answer,
        }
    }
}

async fn list_once(gate: &Arc<Gate>, list: List, call: &Call, until: Instant) -> Result<Response, Problem> {
    match list {
        List::Orders => orders(gate, call, until).await,
        List::Reservations => merged(gate, call, until, "reservations", |entry| text(&entry["order"])).await,
        List::Outbox => {
            let key = |entry: &Value| format!("{}/{}", text(&entry["order"]), text(&entry["kind"]));
            merged(gate, call, until, "messages", key).await
        }
        List::Health => Ok(orders::json(&health(gate, until).await)),
        List::Product => product(gate, call, until).await,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn query_of(call: &Call) -> Result<HashMap<String, String>, Problem> {
    let uri: Uri = call
        .path_and_query
        .parse()
        .map_err(|_| Problem::field("query", "is none"))?;
    let query = Query::<HashMap<String, String>>::try_from_uri(&uri);
    Ok(query
        .map_err(|fault| Problem::field("query", fault.body_text()))?
        .0)
}

/// The same call with another cursor. Cursors of volumes are plain text.
fn with_cursor(call: &Call, cursor: &str) -> Call {
    let (path, query) = call
        .path_and_query
        .split_once('?')
        .unwrap_or((&call.path_and_query, ""));
    let mut parts: Vec<&str> = query
        .split('&')
        .filter(|part| !part.is_empty() && !part.starts_with("cursor="))
        .collect();
    let cursor = Some(cursor)
        .filter(|cursor| !cursor.is_empty())
        .map(|cursor| format!("cursor={cursor}"));
    parts.extend(cursor.as_deref());
    Call {
        path_and_query: format!("{path}?{}", parts.join("&")),
        ..call.clone()
    }
}

enum Page {
    Json(Value),
    /// Not what was asked for: answered as it is.
    Other(Response),
}

async fn ask(gate: &Arc<Gate>, volume: &NodeName, call: &Call, until: Instant) -> Result<Page, Problem> {
    let response = gate
        .carry_to(|view| view.known(volume), "public", call, until)
        .await?;
    if response.status() != StatusCode::OK {
        return Ok(Page::Other(response));
    }
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    let body = body.map_err(|error| Problem::internal(error.to_string()))?;
    let json = serde_json::from_slice(&body).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(Page::Json(json))
}

/// The same call at every volume, all at once, in the order of their names.
async fn ask_all(gate: &Arc<Gate>, call: &Call, until: Instant) -> Vec<(NodeName, Result<Page, Problem>)> {
    let volumes = gate.view().volumes().cloned().collect();
    ask_each(gate, volumes, call, until).await
}

/// The same call at each of these volumes, all at once, in the order of their names.
async fn ask_each(
    gate: &Arc<Gate>,
    volumes: Vec<NodeName>,
    call: &Call,
    until: Instant,
) -> Vec<(NodeName, Result<Page, Problem>)> {
    let mut asked = JoinSet::new();
    for volume in volumes {
        let (gate, call) = (Arc::clone(gate), call.clone());
        asked.spawn(process::within(async move {
            let page = ask(&gate, &volume, &call, until).await;
            (volume, page)
        }));
    }
    let mut pages = asked.join_all().await;
    pages.sort_by(|one, other| one.0.cmp(&other.0));
    pages
}

async fn orders(gate: &Arc<Gate>, call: &Call, until: Instant) -> Result<Response, Problem> {
    let cursor = query_of(call)?.remove("cursor").unwrap_or_default();
    let mut volumes: Vec<NodeName> = gate.view().volumes().cloned().collect();
    volumes.sort();
    let (first, mut inner) = match cursor.split_once('~') {
        Some((volume, inner)) => (volume, inner),
        // Of a time when there was one volume.
        None => (volumes.first().map_or("", NodeName::as_str), cursor.as_str()),
    };
    let mut at = volumes.partition_point(|volume| volume.as_str() < first);
    if volumes.get(at).is_some_and(|volume| volume.as_str() != first) {
        // The one that it stood in has left: the next one is listed from its beginning.
        inner = "";
    }
    loop {
        let Some(volume) = volumes.get(at) else {
            return Ok(orders::json(&json!({"orders": [], "next": null})));
        };
        let mut page = match ask(gate, volume, &with_cursor(call, inner), until).await? {
            Page::Json(page) => page,
            Page::Other(response) => return Ok(response),
        };
        if let Some(next) = page["next"].as_str() {
            page["next"] = format!("{volume}~{next}").into();
            return Ok(orders::json(&page));
        }
        at += 1;
        let is_empty = page["orders"].as_array().is_none_or(Vec::is_empty);
        match volumes.get(at) {
            Some(_) if is_empty => inner = "",
            Some(next) => {
                page["next"] = format!("{next}~").into();
                return Ok(orders::json(&page));
            }
            None => return Ok(orders::json(&page)),
        }
    }
}

async fn merged(
    gate: &Arc<Gate>,
    call: &Call,
    until: Instant,
    field: &str,
    key: impl Fn(&Value) -> String,
) -> Result<Response, Problem> {
    let limit = query_of(call)?
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(1_000);
    let mut entries: Vec<(String, Value)> = Vec::new();
    let mut goes_on = false;
    for (_, page) in ask_all(gate, call, until).await {
        match page? {
            Page::Other(response) => return Ok(response),
            Page::Json(mut page) => {
                goes_on |= !page["next"].is_null();
                if let Value::Array(found) = page[field].take() {
                    entries.extend(found.into_iter().map(|entry| (key(&entry), entry)));
                }
            }
        }
    }
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    goes_on |= entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().filter(|_| goes_on).map(|(key, _)| key.clone());
    let entries: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    Ok(orders::json(&json!({field: entries, "next": next})))
}

/// The health of all volumes together, as seen from this node; volumes that do not answer are named.
pub(crate) async fn health(gate: &Arc<Gate>, until: Instant) -> Value {
    let mut whole = Map::new();
    let mut unreachable = Vec::new();
    let missing = gate.missing().clone();
    let volumes = gate.view().volumes().cloned().collect::<Vec<_>>();
    let (absent, volumes): (Vec<NodeName>, Vec<NodeName>) = volumes
        .into_iter()
        .partition(|volume| missing.contains_key(volume));
    for (volume, page) in ask_each(gate, volumes, &Call::get("/health".to_owned()), until).await {
        match page {
            Ok(Page::Json(Value::Object(health))) => add_health(&mut whole, health),
            _ => unreachable.push(volume.to_string()),
        }
    }
    unreachable.extend(absent.iter().map(ToString::to_string));
    unreachable.sort_unstable();
    let view = gate.view();
    let served: Vec<String> = view.posts.keys().map(ToString::to_string).collect();
    let slots: usize = view
        .posts
        .keys()
        .map(|volume| view.ring.slots_of(volume).count())
        .sum();
    whole.insert("node".to_owned(), gate.me.as_str().into());
    whole.insert("slots".to_owned(), slots.into());
    whole.insert("volumes".to_owned(), served.into());
    whole.insert("epoch".to_owned(), view.ring.epoch().0.into());
    if let Ok(ring) = serde_json::to_value(RingHealth::of(&view.ring)) {
        whole.insert("ring".to_owned(), ring);
    }
    if let Some(card) = view.cards.get(&gate.me) {
        whole.insert("up_since_ms".to_owned(), card.started_at_ms.into());
    }
    if !missing.is_empty() {
        let faults = missing
            .iter()
            .map(|(volume, reason)| (volume.to_string(), reason.clone().into()));
        let faults: Map<String, Value> = faults.collect();
        whole.insert("missing_volumes".to_owned(), faults.into());
    }
    if !unreachable.is_empty() {
        whole.insert("status".to_owned(), "degraded".into());
        whole.insert("unreachable".to_owned(), unreachable.into());
    }
    Value::Object(whole)
}

fn add_health(whole: &mut Map<String, Value>, health: Map<String, Value>) {
    if whole.is_empty() {
        *whole = health;
        return;
    }
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(0);
    for field in SUMMED {
        let sum = number(whole.get(field)) + number(health.get(field));
        whole.insert(field.to_owned(), sum.into());
    }
    let snapshots = number(whole.get("stock_snapshots")).max(number(health.get("stock_snapshots")));
    whole.insert("stock_snapshots".to_owned(), snapshots.into());
    if health
        .get("warehouse")
        .is_some_and(|warehouse| warehouse == "away")
    {
        whole.insert("warehouse".to_owned(), "away".into());
    }
    if health.get("status").is_some_and(|status| status != "ok") {
        whole.insert("status".to_owned(), "degraded".into());
    }
    if let (Some(Value::Object(sums)), Some(Value::Object(orders))) =
        (whole.get_mut("orders"), health.get("orders"))
    {
        for (state, count) in orders {
            let sum = number(sums.get(state)) + number(Some(count));
            sums.insert(state.clone(), sum.into());
        }
    }
}

async fn product(gate: &Arc<Gate>, call: &Call, until: Instant) -> Result<Response, Problem> {
    let mut whole: Option<Value> = None;
    let mut other = None;
    for (_, page) in ask_all(gate, call, until).await {
        match (page?, &mut whole) {
            (Page::Other(response), _) if response.status() == StatusCode::NOT_FOUND => {
                other = Some(response);
            }
            (Page::Other(response), _) => return Ok(response),
            (Page::Json(page), None) => whole = Some(page),
            (Page::Json(mut page), Some(whole)) => {
                if let (Value::Array(more), Value::Array(stores)) =
                    (page["stores"].take(), &mut whole["stores"])
                {
                    stores.extend(more);
                    stores.sort_by_key(|shelf| shelf["store_id"].as_u64());
                }
            }
        }
    }
    match (whole, other) {
        (Some(whole), _) => Ok(orders::json(&whole)),
        (None, Some(response)) => Ok(response),
        (None, None) => Err(Problem::not_found("no volume has any stock")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_takes_the_place_of_the_one_before() {
        let call = Call::get("/orders?limit=5&cursor=a~1.2&state=paid".to_owned());
        assert_eq!(
            with_cursor(&call, "3.4").path_and_query,
            "/orders?limit=5&state=paid&cursor=3.4"
        );
        let call = Call::get("/orders".to_owned());
        assert_eq!(with_cursor(&call, "").path_and_query, "/orders?");
    }
}
