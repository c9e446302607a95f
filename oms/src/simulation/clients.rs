//! Eight clients that work on the same few orders at four nodes under faults, and record their
//! operations with the responses.
//!
//! Each request goes to a random node that listens. Another node may have taken over the volumes of
//! this node, and this node may not know it yet. At the end, the module `history` checks the
//! recorded operations of each order.
//!
//! **Invariants**
//! - A request is recorded before it is sent. A response that shows the outcome is recorded once
//!   the client has received it.
//! - No client repeats a request. A client that gets no response continues with its next operation.
//!   The reads at the end are repeated, each as another operation.
//! - Clients send at most `steps_per_order()` operations of an order, which bounds the time of the
//!   check.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::problem::REPLAYED;
use crate::simulation::customers;
use crate::simulation::history::{Answer, History, Step, lines_of};
use crate::simulation::world::World;

const CLIENTS: u64 = 8;
/// Number of orders that the clients choose from at a time.
const ORDERS_AT_ONCE: usize = 4;
/// Default number of operations of an order, not counting the reads at the end.
const STEPS_PER_ORDER: usize = 24;
/// Maximum number of reads of an order at the end. The reads are repeated until one is answered.
const TRIES: u32 = 200;

/// Returns the number of operations of an order. The environment variable `IMT_SIM_STEPS` overrides
/// this number, for longer or shorter histories of the same seeds.
fn steps_per_order() -> usize {
    let steps = crate::simulation::number("IMT_SIM_STEPS");
    steps.map_or(STEPS_PER_ORDER, |steps| steps.max(1) as usize)
}

/// The histories of all orders.
#[derive(Default)]
pub(super) struct Histories(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    orders: BTreeMap<u64, History>,
    /// Orders that still get operations, each with the number of operations left.
    open: Vec<(u64, usize)>,
    next: u64,
}

impl Histories {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock()
    }

    /// Chooses a random order for the next operation of a client.
    fn choose(&self, world: &World) -> u64 {
        let mut inside = self.inside();
        while inside.open.len() < ORDERS_AT_ONCE {
            inside.next += 1;
            let order = inside.next;
            inside.open.push((order, steps_per_order()));
        }
        let at = world.dice.between(0, ORDERS_AT_ONCE as u64 - 1) as usize;
        let (order, left) = &mut inside.open[at];
        let order = *order;
        *left -= 1;
        if *left == 0 {
            inside.open.swap_remove(at);
        }
        order
    }

    fn invoke(&self, order: u64, client: u64, step: &Step) -> usize {
        let mut inside = self.inside();
        inside
            .orders
            .entry(order)
            .or_default()
            .invoke(client, step.clone())
    }

    fn answer(&self, order: u64, number: usize, answer: Answer) {
        let mut inside = self.inside();
        inside.orders.entry(order).or_default().answer(number, answer);
    }
}

fn id_of(order: u64) -> String {
    format!("o{order}")
}

fn draw(world: &World) -> Step {
    let dice = &world.dice;
    match dice.between(0, 99) {
        0..=29 => Step::Place(if dice.between(0, 9) == 0 { 2 } else { 1 }),
        30..=54 => Step::Pay(if dice.between(0, 4) == 0 { 2 } else { 1 }),
        55..=62 => Step::Cancel,
        _ => Step::Read,
    }
}

/// Executes one operation. Returns `true` if the outcome is known.
async fn carry_out(world: &Arc<World>, histories: &Histories, client: u64, order: u64, step: Step) -> bool {
    let id = id_of(order);
    let (method, path, body) = match &step {
        Step::Place(content) => (
            Method::POST,
            "/order".to_owned(),
            json!({"id": id, "products": lines_of(*content)}),
        ),
        Step::Pay(transaction) => (
            Method::POST,
            format!("/order/{id}/payment-callback"),
            json!({"transaction_id": transaction}),
        ),
        Step::Cancel => (Method::POST, format!("/order/{id}/cancel"), json!({})),
        Step::Read => (Method::GET, format!("/order/{id}"), Value::Null),
    };
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let number = histories.invoke(order, client, &step);
    world.note(|| format!("client {client}: {id} {number} {step:?}"));
    let response = customers::exchange(world, method, &path, body, None).await;
    let Ok(response) = response else {
        world.count("operations without a response");
        return false;
    };
    let is_replayed = response.headers().contains_key(REPLAYED);
    let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    match Answer::read(&step, response.status().as_u16(), is_replayed, &body) {
        Ok(Some(answer)) => {
            world.note(|| format!("client {client}: {id} {number} is answered"));
            world.count("operations answered");
            histories.answer(order, number, answer);
            true
        }
        Ok(None) => {
            world.count("operations refused without an outcome");
            false
        }
        Err(wrong) => {
            world.violated(format!("{id}: {wrong}"));
            false
        }
    }
}

/// Lets the clients work until the time `until`. Returns once the last client has ended.
pub(super) async fn work(world: &Arc<World>, histories: &Arc<Histories>, until: Instant) {
    let mut clients = JoinSet::new();
    for client in 1..=CLIENTS {
        let (world, histories) = (Arc::clone(world), Arc::clone(histories));
        clients.spawn(async move {
            while Instant::now() < until {
                // About half of the waits are at most 5 ms, so that many operations overlap.
                let longest_ms = if world.dice.between(0, 1) == 0 { 5 } else { 500 };
                let wait_ms = world.dice.between(0, longest_ms);
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                let order = histories.choose(&world);
                let step = draw(&world);
                carry_out(&world, &histories, client, order, step).await;
            }
        });
    }
    while clients.join_next().await.is_some() {}
}

/// Reads every order in a cluster without faults until a read is answered, and checks all
/// histories.
pub(super) async fn check(world: &Arc<World>, histories: &Histories) {
    let orders: Vec<u64> = histories.inside().orders.keys().copied().collect();
    for order in orders {
        let mut tries = 0;
        while !carry_out(world, histories, 0, order, Step::Read).await {
            tries += 1;
            if tries == TRIES {
                world.violated(format!("{} cannot be read at the end", id_of(order)));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let all = std::mem::take(&mut histories.inside().orders);
    for (order, history) in all {
        world.count("histories");
        for _ in 0..history.unknown() {
            world.count("operations with an unknown outcome");
        }
        if let Err(text) = history.check() {
            world.violated(format!(
                "the history of {} is not linearizable:\n{text}",
                id_of(order)
            ));
        }
    }
}
