//! Checks that an order takes the first store with its units while the cluster is at rest.
//!
//! Nodes find that store in copies of each other's stock, and the age of a copy is bounded. Once
//! the stock has not changed for longer than that age, no copy may skip a store. So this check
//! notices a change that was lost on its way to a copy. Each round orders all units of the first
//! store, cancels the order and orders again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::simulation::customers::{ask, send_until_answered};
use crate::simulation::warehouse::PRODUCTS;
use crate::simulation::world::World;
use crate::volume::followers::COPY_AGE_MAX;

const ROUNDS: u64 = 4;
/// Maximum number of reads until released units are available again.
const READS_MAX: u32 = 600;
const READ_INTERVAL: Duration = Duration::from_millis(100);

/// Units available of one product, by store.
type Available = BTreeMap<u64, i64>;

/// Orders in a cluster at rest, and reports each order that skipped a store.
pub(super) async fn first_stores_are_taken(world: &Arc<World>) {
    for round in 0..ROUNDS {
        let product = world.dice.between(1, u64::from(PRODUCTS));
        match probe(world, round, product).await {
            Ok(()) => {}
            // An order without an answer may reserve units later, so the cluster is not at rest.
            Err(Ended::Unanswered) => return,
            Err(Ended::Wrong(wrong)) => world.violated(format!("at rest, product {product}: {wrong}")),
        }
    }
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
    // The copies learn that the first store is empty.
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

/// Places an order, once.
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
                // An order gets lent units, too: they are called back for it.
                let reserved = store["reserved"].as_i64()? - store["lent"].as_i64().unwrap_or(0);
                Some((store["store_id"].as_u64()?, store["on_hand"].as_i64()? - reserved))
            };
            return Ok(stores.filter_map(level).collect());
        }
        tokio::time::sleep(READ_INTERVAL).await;
    }
    Err(Ended::Unanswered)
}

/// Waits until released units are available again.
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
