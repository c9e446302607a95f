//! The audit at the end of a simulation, after all faults have ended and all nodes were started
//! again.
//!
//! The audit compares the answers of the nodes with the answers that customers received, and with
//! the stock of the warehouse. It also checks `invariants` at rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::simulation::customers::{CustomerRecords, Known, ask};
use crate::simulation::invariants;
use crate::simulation::warehouse::{PRODUCTS, STORES, WarehouseModel};
use crate::simulation::world::World;

/// Maximum number of checks of an audit, and of passes of `cure`. Faults that the last check finds
/// are violations. Many checks are needed: a reservation without an order is rechecked at growing
/// intervals of up to ten minutes.
const CHECKS_MAX: u32 = 120;
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Longest wait for the delivery of every healthy paid order, after the faults and all customers
/// have ended. The time is enough for a few waits of the longest backoff. A message that keeps
/// failing may become a dead letter only later. So healthy orders that wait for the end of such
/// messages are detected.
const HEALTHY_WITHIN: Duration = Duration::from_secs(300);

/// Waits until every healthy paid order is delivered. Records a violation if this takes longer than
/// `HEALTHY_WITHIN`. An order is healthy if the warehouse neither answers every message about it
/// with an error nor refuses it. Other orders must not delay healthy orders.
pub(super) async fn healthy_orders_are_delivered(
    world: &Arc<World>,
    records: &CustomerRecords,
    warehouse: &WarehouseModel,
) {
    let until = Instant::now() + HEALTHY_WITHIN;
    loop {
        let is_delayed = |(id, known): &(&String, &Known)| {
            let is_healthy = !warehouse.is_failing(id) && !warehouse.is_refused(id);
            known.paid.is_some() && is_healthy && warehouse.delivered(id).is_none()
        };
        let delayed: Vec<String> = {
            let orders = records.orders();
            orders
                .iter()
                .filter(is_delayed)
                .map(|(id, _)| id.clone())
                .collect()
        };
        if delayed.is_empty() {
            return;
        }
        if Instant::now() >= until {
            world.violated(format!("paid orders are delayed by others: {delayed:?}"));
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Ends the errors with which the warehouse answers every message about some orders
/// (`WarehouseModel::cure`). If this run has such errors, retries the dead letters as an operator
/// would.
pub(super) async fn cure(world: &Arc<World>, warehouse: &WarehouseModel) {
    if !warehouse.cure() {
        return;
    }
    // A retry request may get no answer in time, so the retries are repeated until no dead letter
    // is left.
    for _ in 0..CHECKS_MAX {
        if !retry_dead_messages(world).await {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.violated("dead letters cannot be retried".to_owned());
}

/// Retries the dead letters. Returns `false` if the outbox has no dead letters. Returns `true` if
/// it has some or could not be read.
async fn retry_dead_messages(world: &Arc<World>) -> bool {
    let dead = match get(world, "/outbox?limit=1000").await {
        Ok((200, page)) => dead_messages(&page),
        _ => return true,
    };
    for path in &dead {
        world.count("messages retried");
        let _ = ask(world, Method::POST, path, String::new(), None).await;
    }
    !dead.is_empty()
}

/// Returns the paths of the retry requests for the dead letters of a page.
fn dead_messages(page: &Value) -> Vec<String> {
    let messages = page["messages"].as_array().into_iter().flatten();
    let dead = messages.filter(|message| message["state"] == "dead");
    dead.map(|message| {
        let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
        format!("/outbox/{}/{}/retry", text("order"), text("kind"))
    })
    .collect()
}

/// Repeats all checks until no fault is found, at most `CHECKS_MAX` times. Records the faults of
/// the last check as violations.
pub(super) async fn audit(world: &Arc<World>, records: &CustomerRecords, warehouse: &WarehouseModel) {
    let mut wrong = Vec::new();
    for _ in 0..CHECKS_MAX {
        tokio::time::sleep(CHECK_INTERVAL).await;
        // A message may become a dead letter after the faults have ended, so dead letters are
        // retried before each check.
        retry_dead_messages(world).await;
        wrong = look(world, records, warehouse).await;
        if wrong.is_empty() {
            world.note(|| format!("audit passed, {} deliveries", warehouse.deliveries()));
            return;
        }
    }
    wrong.into_iter().for_each(|fault| world.violated(fault));
}

async fn get(world: &Arc<World>, path: &str) -> Result<(u16, Value), String> {
    let (status, body) = ask(world, Method::GET, path, String::new(), None)
        .await
        .map_err(|error| format!("{path}: {}", error.0))?;
    Ok((status.as_u16(), serde_json::from_slice(&body).unwrap_or_default()))
}

async fn look(world: &Arc<World>, records: &CustomerRecords, warehouse: &WarehouseModel) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut reserved: BTreeMap<(u64, u64), i64> = BTreeMap::new();
    let orders = records.orders().clone();
    for (id, known) in &orders {
        match get(world, &format!("/order/{id}")).await {
            Ok((200, order)) => {
                check_order(id, known, &order, warehouse, &mut wrong);
                count(&order, &mut reserved);
            }
            Ok((404, _)) if known.store.is_none() => {}
            Ok((status, answer)) => wrong.push(format!("{id}, {known:?}: {status} {answer}")),
            Err(reason) => wrong.push(reason),
        }
    }
    for store in 1..=STORES {
        match get(world, &format!("/stores/{store}")).await {
            Ok((200, page)) => check_store(store, &page, &reserved, warehouse, &mut wrong),
            Ok((status, answer)) => wrong.push(format!("store {store}: {status} {answer}")),
            Err(reason) => wrong.push(reason),
        }
    }
    match get(world, "/outbox?limit=1000").await {
        Ok((200, page)) if page["messages"].as_array().is_some_and(Vec::is_empty) => {}
        Ok((status, page)) => wrong.push(format!("the outbox is not empty: {status} {page}")),
        Err(reason) => wrong.push(reason),
    }
    wrong.extend(invariants::faults_at_rest(world));
    if !invariants::is_settled(world) {
        // A volume that does not settle takes part in no further migration.
        wrong.push("slots migrate, or a volume is not settled".to_owned());
    }
    wrong
}

/// Compares an order with the answers that its customer received, and with its delivery by the
/// warehouse.
fn check_order(id: &str, known: &Known, order: &Value, warehouse: &WarehouseModel, wrong: &mut Vec<String>) {
    let state = order["state"].as_str().unwrap_or_default();
    let store = order["store_id"].as_u64();
    if order["products"] != known.products {
        wrong.push(format!("{id} has other products than were ordered: {order}"));
    }
    if known.store.is_some_and(|acknowledged| acknowledged != store) {
        wrong.push(format!("{id} was acknowledged with {:?}: {order}", known.store));
    }
    let is_delivered = warehouse.delivered(id);
    match (known.paid, is_delivered) {
        (Some(paid), Some(transaction)) if transaction == Some(paid) && state == "delivered" => {}
        // An order that the warehouse refused after its payment must list the payment for a refund.
        (Some(paid), None)
            if warehouse.is_refused(id)
                && state == "refund_wanted"
                && order["refund_transaction_ids"] == serde_json::json!([paid]) => {}
        (Some(_), delivered) => wrong.push(format!("{id} was paid, delivered {delivered:?}: {order}")),
        (None, Some(_)) if known.pays.is_none() => wrong.push(format!("{id} is delivered and was not paid")),
        (None, Some(_)) if state != "delivered" => wrong.push(format!("{id} is delivered: {order}")),
        _ => {}
    }
    if known.cancelled && !matches!(state, "cancelled" | "rejected") {
        wrong.push(format!("{id} was cancelled: {order}"));
    }
    if known.cancelled && is_delivered.is_some() {
        wrong.push(format!("{id} was cancelled and delivered"));
    }
}

fn count(order: &Value, reserved: &mut BTreeMap<(u64, u64), i64>) {
    let holds = matches!(
        order["state"].as_str(),
        Some("reserved" | "announced" | "paid" | "delivering")
    );
    let (Some(store), true) = (order["store_id"].as_u64(), holds) else {
        return;
    };
    for line in order["products"].as_array().into_iter().flatten() {
        let product = line["id"].as_u64().unwrap_or(0);
        *reserved.entry((store, product)).or_default() += line["quantity"].as_i64().unwrap_or(0);
    }
}

/// Compares the quantities of a store with the reservations of the orders and with the warehouse.
fn check_store(
    store: u32,
    page: &Value,
    reserved: &BTreeMap<(u64, u64), i64>,
    warehouse: &WarehouseModel,
    wrong: &mut Vec<String>,
) {
    let mut levels: BTreeMap<u64, (i64, i64)> = BTreeMap::new();
    for level in page["products"].as_array().into_iter().flatten() {
        let both = (
            level["on_hand"].as_i64().unwrap_or(-1),
            level["reserved"].as_i64().unwrap_or(-1),
        );
        levels.insert(level["product"].as_u64().unwrap_or(0), both);
    }
    for product in 1..=PRODUCTS {
        let (on_hand, reserved_units) = levels.get(&u64::from(product)).copied().unwrap_or_default();
        let real = warehouse.on_hand(store, product);
        if on_hand != real {
            wrong.push(format!(
                "store {store} has {real} units of product {product}, but its volume reports {on_hand}"
            ));
        }
        let wanted = reserved
            .get(&(u64::from(store), u64::from(product)))
            .copied()
            .unwrap_or(0);
        if reserved_units != wanted {
            wrong.push(format!(
                "store {store} has {reserved_units} units of product {product} reserved, but open orders need {wanted}"
            ));
        }
    }
}
