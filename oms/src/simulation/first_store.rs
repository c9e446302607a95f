//! Checks that an order gets the first store (by number) that has its units. One check runs in a
//! cluster at rest. The other check places orders while a node is killed and other processes take
//! over its volumes, or while a node leaves and its slots migrate.
//!
//! Nodes search for the first store in copies of each other's stock, and the age of a copy is
//! limited. If the stock has not changed for longer than this age, no search may skip a store. So
//! the check at rest detects a change that did not reach a copy. Each round orders all units of the
//! first store and then one more unit, cancels both orders, and orders a unit again.
//!
//! During a takeover or a migration, other orders take units too, so the first store of an order is
//! not known exactly. Each order takes one unit. A store certainly had a unit for an order if it
//! had more units than there were orders that may have taken a unit of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::simulation::customers::{ask, send_until_answered};
use crate::simulation::faults::{self, Stops};
use crate::simulation::warehouse::{PRODUCTS, WarehouseModel};
use crate::simulation::world::World;
use crate::simulation::{NAMES, invariants};
use crate::volume::followers::COPY_AGE_MAX;

const ROUNDS: u64 = 4;
const TAKEOVERS: u64 = 2;
/// Time after which an order without an answer is certainly placed or refused, and reserves no more
/// units.
const ENDED_WITHIN: Duration = Duration::from_secs(10);
/// Maximum number of orders placed in one round, during a takeover or a migration.
const ORDERS_MAX: i64 = 16;
/// Time in which orders are placed after a kill, in milliseconds. Without an engine, a takeover
/// takes about as long.
const KILL_MS: u64 = 40;
/// Time in which orders are placed while slots migrate, in milliseconds.
const MOVE_MS: u64 = 400;
/// Maximum number of tries of a read, or of a check, that is repeated until it succeeds.
const READS_MAX: u32 = 600;
const READ_INTERVAL: Duration = Duration::from_millis(100);

/// Available units of one product, by store.
type Available = BTreeMap<u64, i64>;

/// Places orders in a cluster at rest. Reports each order that skipped a store, and cancelled
/// orders that did not release their units. Returns `false` if an order, which is sent once, got no
/// final answer (success or 409), or if all tries of a read or a cancellation failed.
pub(super) async fn first_stores_are_taken(world: &Arc<World>) -> bool {
    for round in 0..ROUNDS {
        let product = world.dice.between(1, u64::from(PRODUCTS));
        match probe(world, round, product).await {
            Ok(()) => {}
            // An order without an answer may reserve units later, so the cluster is not at rest.
            Err(Ended::Unanswered) => return false,
            Err(Ended::Wrong(wrong)) => world.violated(format!("at rest, product {product}: {wrong}")),
        }
    }
    true
}

/// Kills a node, or asks it to leave for good, and places orders at the same time, `TAKEOVERS`
/// times. Ends with a report and `false` at the first order that skipped a store. Also returns
/// `false` if a repeated request got no final answer, or if the cluster did not settle in time.
pub(super) async fn first_stores_are_taken_beside_takeovers(
    world: &Arc<World>,
    warehouse: &Arc<WarehouseModel>,
    stops: &Stops,
) -> bool {
    // An order of an earlier check that got no answer may still reserve units.
    tokio::time::sleep(ENDED_WITHIN).await;
    for round in 0..TAKEOVERS {
        let product = world.dice.between(1, u64::from(PRODUCTS));
        let victim = NAMES[world.dice.between(0, NAMES.len() as u64 - 1) as usize];
        let is_kill = world.dice.between(0, 1) == 1;
        let ended = order_beside_takeover(world, round, product, victim, is_kill).await;
        faults::start(world, warehouse, stops, victim);
        match ended {
            Ok(()) => {}
            Err(Ended::Unanswered) => return false,
            Err(Ended::Wrong(wrong)) => {
                world.violated(format!("beside a takeover, product {product}: {wrong}"));
                return false;
            }
        }
    }
    true
}

async fn order_beside_takeover(
    world: &Arc<World>,
    round: u64,
    product: u64,
    victim: &str,
    is_kill: bool,
) -> Result<(), Ended> {
    until_settled(world).await?;
    let before = available(world, product).await?;
    let Some((_, units)) = before.iter().find(|(_, units)| **units > 0) else {
        return Ok(());
    };
    // After a kill, there are more orders than units in the first store (unless `ORDERS_MAX` limits
    // them), so some orders must take the next store. During a migration, the orders leave a unit
    // in the first store if it has several, so that no order may skip it.
    let count = if is_kill { units + 3 } else { (units - 1).max(1) };
    let ids: Vec<String> = (0..count.min(ORDERS_MAX))
        .map(|number| format!("takeover-{round}-{number}"))
        .collect();
    tokio::time::sleep(COPY_AGE_MAX * 2).await;
    match world.running(victim) {
        Some((_, process)) if is_kill => process.kill(),
        Some(_) => faults::ask_all(world, &format!("/peer/leave/{victim}")).await,
        None => {}
    }
    let arrival_ms = if is_kill { KILL_MS } else { MOVE_MS };
    let mut placing = JoinSet::new();
    for id in ids.clone() {
        let (world, wait_ms) = (Arc::clone(world), world.dice.between(0, arrival_ms));
        placing.spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            // The result is `None` for an order without an answer, which may have reserved units in
            // any store.
            place(&world, &id, product, 1).await.ok()
        });
    }
    let answers: Vec<Option<Option<u64>>> = placing.join_all().await;
    let taken = answers.iter().flatten().map(|store| store.unwrap_or(u64::MAX));
    for taken in taken {
        let skipped = before.range(..taken).find(|(store, units)| {
            let held = answers.iter().filter(|answer| match answer {
                Some(Some(last)) => last >= *store,
                Some(None) | None => true,
            });
            **units > held.count() as i64
        });
        if let Some((store, units)) = skipped {
            let wrong =
                format!("an order took store {taken}, and store {store} had {units} units: {answers:?}");
            return Err(Ended::Wrong(wrong));
        }
    }
    for id in &ids {
        let order = json!({"id": id, "products": [{"id": product, "quantity": 1}]});
        let placed = send_until_answered(world, "/order", &order).await;
        placed.ok_or(Ended::Unanswered)?;
        cancel(world, id).await?;
    }
    world.count("takeovers beside orders");
    Ok(())
}

/// The reason why a round ended early.
enum Ended {
    Unanswered,
    Wrong(String),
}

async fn probe(world: &Arc<World>, round: u64, product: u64) -> Result<(), Ended> {
    let before = available(world, product).await?;
    let Some((first, units)) = before.iter().find(|(_, units)| **units > 0) else {
        return Ok(());
    };
    tokio::time::sleep(COPY_AGE_MAX * 2).await;
    let name = |step: &str| format!("rest-{round}-{step}");
    check(*first, place(world, &name("all"), product, *units).await?)?;
    // The search for the order "other" finds no unit in the first store. If a copy of the stock
    // then misses the release of the units, the order "again" skips that store.
    place(world, &name("other"), product, 1).await?;
    for step in ["all", "other"] {
        cancel(world, &name(step)).await?;
    }
    until_available(world, product, &before).await?;
    tokio::time::sleep(COPY_AGE_MAX * 2).await;
    check(*first, place(world, &name("again"), product, 1).await?)?;
    cancel(world, &name("again")).await?;
    until_available(world, product, &before).await?;
    world.count("orders at rest");
    Ok(())
}

fn check(first: u64, taken: Option<u64>) -> Result<(), Ended> {
    match taken {
        Some(taken) if taken == first => Ok(()),
        taken => {
            let wrong = format!("an order took store {taken:?}, and store {first} had its units");
            Err(Ended::Wrong(wrong))
        }
    }
}

/// Sends an order once. Returns the store of the order, or `None` if no store has the units.
async fn place(world: &Arc<World>, id: &str, product: u64, quantity: i64) -> Result<Option<u64>, Ended> {
    let order = json!({"id": id, "products": [{"id": product, "quantity": quantity}]});
    match ask(world, Method::POST, "/order", order.to_string(), None).await {
        Ok((status, body)) if status.is_success() || status == StatusCode::CONFLICT => {
            let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
            Ok(answer["store_id"].as_u64())
        }
        _ => Err(Ended::Unanswered),
    }
}

async fn cancel(world: &Arc<World>, id: &str) -> Result<(), Ended> {
    let path = format!("/order/{id}/cancel");
    let answered = send_until_answered(world, &path, &json!({})).await;
    answered.map(drop).ok_or(Ended::Unanswered)
}

async fn available(world: &Arc<World>, product: u64) -> Result<Available, Ended> {
    for _ in 0..READS_MAX {
        let path = format!("/stocks/{product}");
        if let Ok((status, body)) = ask(world, Method::GET, &path, String::new(), None).await
            && status.is_success()
        {
            let page: Value = serde_json::from_slice(&body).unwrap_or_default();
            let stores = page["stores"].as_array().into_iter().flatten();
            let level = |store: &Value| {
                let reserved = store["reserved"].as_i64()?;
                Some((store["store_id"].as_u64()?, store["on_hand"].as_i64()? - reserved))
            };
            return Ok(stores.filter_map(level).collect());
        }
        tokio::time::sleep(READ_INTERVAL).await;
    }
    Err(Ended::Unanswered)
}

/// Waits until no slots migrate and every volume is served and settled (`invariants`). Until then,
/// the list of available units may lack stores of migrating slots.
async fn until_settled(world: &Arc<World>) -> Result<(), Ended> {
    for _ in 0..READS_MAX {
        if invariants::is_settled(world) {
            return Ok(());
        }
        tokio::time::sleep(READ_INTERVAL).await;
    }
    Err(Ended::Unanswered)
}

/// Waits until the released units of a product are available again.
async fn until_available(world: &Arc<World>, product: u64, expected: &Available) -> Result<(), Ended> {
    let mut found = Available::new();
    for _ in 0..READS_MAX {
        found = available(world, product).await?;
        if found == *expected {
            return Ok(());
        }
        tokio::time::sleep(READ_INTERVAL).await;
    }
    let wrong = format!("{found:?} instead of {expected:?} after all orders were cancelled");
    Err(Ended::Wrong(wrong))
}
