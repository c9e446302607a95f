//! The audit: after everybody has come back and nothing fails any more, what is there is what was
//! acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::simulation::customers::{Books, Known, ask};
use crate::simulation::warehouse::{Hall, PRODUCTS, STORES};
use crate::simulation::world::World;

/// How often it is looked whether all has come to rest. Orphaned reservations are asked after less
/// and less often, at last every ten minutes.
const LOOKS: u32 = 120;
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long after the trouble every paid order that the warehouse does not answer with errors is
/// delivered: a few of the longest backoffs, and far less than failing orders need to be given up.
const HEALTHY_WITHIN: Duration = Duration::from_secs(300);

/// Waits until every paid order is delivered that the warehouse neither answers with errors nor
/// refuses: the others must not hold it up.
pub(super) async fn healthy_orders_are_delivered(world: &Arc<World>, books: &Books, hall: &Hall) {
    let until = Instant::now() + HEALTHY_WITHIN;
    loop {
        let is_held_up = |(id, known): &(&String, &Known)| {
            let is_healthy = !hall.is_failing(id) && !hall.is_refused(id);
            known.paid.is_some() && is_healthy && hall.delivered(id).is_none()
        };
        let held_up: Vec<String> = {
            let orders = books.orders();
            orders
                .iter()
                .filter(is_held_up)
                .map(|(id, _)| id.clone())
                .collect()
        };
        if held_up.is_empty() {
            return;
        }
        if Instant::now() >= until {
            world.violated(format!("paid orders are held up by others: {held_up:?}"));
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Ends the warehouse's errors, and does what an operator does about the messages given up.
pub(super) async fn cure(world: &Arc<World>, hall: &Hall) {
    if !hall.cure() {
        return;
    }
    // Another node may be asked each time, and answers may get lost.
    for _ in 0..LOOKS {
        if !retry_dead_messages(world).await {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.violated("messages that were given up cannot be tried again".to_owned());
}

/// Has the dead messages tried again, as an operator would. Returns `false` if there are none.
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

/// Returns the paths that have the dead messages of a page tried again.
fn dead_messages(page: &Value) -> Vec<String> {
    let messages = page["messages"].as_array().into_iter().flatten();
    let dead = messages.filter(|message| message["state"] == "dead");
    dead.map(|message| {
        let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
        format!("/outbox/{}/{}/retry", text("order"), text("kind"))
    })
    .collect()
}

/// Looks until all is in order, or says what is not.
pub(super) async fn audit(world: &Arc<World>, books: &Books, hall: &Hall) {
    let mut wrong = Vec::new();
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK_EVERY).await;
        // A message may die of its last tries after the trouble has ended.
        retry_dead_messages(world).await;
        wrong = look(world, books, hall).await;
        if wrong.is_empty() {
            world.note(|| format!("in order, {} deliveries", hall.deliveries()));
            return;
        }
    }
    if let Ok((_, outbox)) = get(world, "/outbox?limit=1000").await {
        wrong.push(format!("the outbox at the end: {outbox}"));
    }
    wrong.into_iter().for_each(|what| world.violated(what));
}

async fn get(world: &Arc<World>, path: &str) -> Result<(u16, Value), String> {
    let (status, body) = ask(world, Method::GET, path, String::new(), None)
        .await
        .map_err(|error| format!("{path}: {}", error.0))?;
    Ok((status.as_u16(), serde_json::from_slice(&body).unwrap_or_default()))
}

async fn look(world: &Arc<World>, books: &Books, hall: &Hall) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut reserved: BTreeMap<(u64, u64), i64> = BTreeMap::new();
    let orders = books.orders().clone();
    for (id, known) in &orders {
        match get(world, &format!("/order/{id}")).await {
            Ok((200, order)) => {
                check_order(id, known, &order, hall, &mut wrong);
                count(&order, &mut reserved);
            }
            Ok((404, _)) if known.store.is_none() => {}
            Ok((status, answer)) => wrong.push(format!("{id}, {known:?}: {status} {answer}")),
            Err(reason) => wrong.push(reason),
        }
    }
    for store in 1..=STORES {
        match get(world, &format!("/stores/{store}")).await {
            Ok((200, page)) => check_store(store, &page, &reserved, hall, &mut wrong),
            Ok((status, answer)) => wrong.push(format!("store {store}: {status} {answer}")),
            Err(reason) => wrong.push(reason),
        }
    }
    wrong
}

/// An order against what its customer was told.
fn check_order(id: &str, known: &Known, order: &Value, hall: &Hall, wrong: &mut Vec<String>) {
    let state = order["state"].as_str().unwrap_or_default();
    let store = order["store_id"].as_u64();
    if order["products"] != known.products {
        wrong.push(format!("{id} has other products than were ordered: {order}"));
    }
    if known.store.is_some_and(|acknowledged| acknowledged != store) {
        wrong.push(format!("{id} was acknowledged with {:?}: {order}", known.store));
    }
    let is_delivered = hall.delivered(id);
    match (known.paid, is_delivered) {
        (Some(paid), Some(transaction)) if transaction == Some(paid) && state == "delivered" => {}
        // The payment is in the refund list.
        (Some(paid), None)
            if hall.is_refused(id)
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

/// A store's books against the orders and the warehouse.
fn check_store(
    store: u32,
    page: &Value,
    reserved: &BTreeMap<(u64, u64), i64>,
    hall: &Hall,
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
        let (on_hand, set_aside) = levels.get(&u64::from(product)).copied().unwrap_or_default();
        let real = hall.on_hand(store, product);
        if on_hand != real {
            wrong.push(format!(
                "store {store} has {real} of product {product}, and {on_hand} by its books"
            ));
        }
        let wanted = reserved
            .get(&(u64::from(store), u64::from(product)))
            .copied()
            .unwrap_or(0);
        if set_aside != wanted {
            wrong.push(format!(
                "store {store} has {set_aside} of product {product} set aside, orders hold {wanted}"
            ));
        }
    }
}
