//! Checks that no unit is lost: at rest, each reserved unit belongs to an open order.
//!
//! The check compares rows with rows, so it needs no answers that customers received. It holds for
//! orders without an answer too.
//!
//! **Invariants of a cluster at rest**
//! - A store's volume has a reservation exactly for each open order in that store, with its lines.
//! - The units that are reserved in memory are those of the reservations.
//! - No unit is lent, no settlement waits, and each order with borrowed units is entered.
//! - On hand are the units that the warehouse has.
//!
//! A reservation without an order is an orphan. Its order's volume is asked about it, at the latest
//! `ASK_AFTER_MAX` after the question before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::order::OrderId;
use crate::error::StorageError;
use crate::simulation::invariants;
use crate::simulation::warehouse::{PRODUCTS, STORES, WarehouseModel};
use crate::simulation::world::World;
use crate::volume::remote_stock::ASK_AFTER_MAX;

/// Maximum number of faults that are reported.
const NAMED_MAX: usize = 10;
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Reserved quantities by product, of each order in each store.
type Reserved = BTreeMap<(u32, OrderId), BTreeMap<u32, u32>>;

/// Waits until every orphan has been asked about, and reports each unit that is lost then.
pub(super) async fn no_unit_is_lost(world: &Arc<World>, warehouse: &WarehouseModel) {
    // The first interval lets orders end that got no answer.
    let checks = 2 * ASK_AFTER_MAX.as_secs() / CHECK_INTERVAL.as_secs();
    let mut wrong = Vec::new();
    for check in 0..checks {
        tokio::time::sleep(CHECK_INTERVAL).await;
        wrong = match faults(world, warehouse) {
            Ok(faults) => faults,
            // The volume has been closed in the meantime.
            Err(error) => vec![format!("a volume cannot be read: {error}")],
        };
        if wrong.is_empty() {
            world.note(|| format!("no unit is lost after {} checks", check + 1));
            return;
        }
    }
    wrong.truncate(NAMED_MAX);
    for fault in wrong {
        world.violated(format!("a unit is lost: {fault}"));
    }
}

fn faults(world: &Arc<World>, warehouse: &WarehouseModel) -> Result<Vec<String>, StorageError> {
    if !invariants::is_settled(world) {
        return Ok(vec!["slots still move".to_owned()]);
    }
    let mut wrong = Vec::new();
    let (mut needed, mut stored) = (Reserved::new(), Reserved::new());
    let servers = invariants::servers(world);
    for server in &servers {
        let state = server.app.state();
        for (id, order) in invariants::orders(state)? {
            if let (true, Some(store)) = (order.state.holds_reservation(), order.store) {
                needed.insert((store, id), by_product(&order.lines));
            }
        }
        for row in state.storage.reservations(&state.slots)? {
            stored.insert((row.store, row.order), by_product(&row.lines));
        }
        let waiting = state.settlements().len();
        if waiting > 0 {
            wrong.push(format!("{waiting} settlements of {} wait", server.volume));
        }
        let spent = state.storage.spent()?.len();
        if spent > 0 {
            wrong.push(format!("{spent} orders of {} are not entered", server.volume));
        }
    }
    let name = |(store, order): &(u32, OrderId)| format!("{order} in store {store}");
    let only = |some: &Reserved, others: &Reserved| -> Vec<String> {
        let only = some.iter().filter(|(key, lines)| others.get(key) != Some(lines));
        only.map(|(key, _)| name(key)).collect()
    };
    for (kind, only) in [
        ("reserved, and not needed", only(&stored, &needed)),
        ("needed, and not reserved", only(&needed, &stored)),
    ] {
        if !only.is_empty() {
            wrong.push(format!("units are {kind}: {only:?}"));
        }
    }
    let mut reserved: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    for ((store, _), lines) in &stored {
        for (product, quantity) in lines {
            *reserved.entry((*store, *product)).or_default() += quantity;
        }
    }
    for store in 1..=STORES {
        let Some(server) = servers
            .iter()
            .find(|server| server.app.state().slots.has_store(store))
        else {
            wrong.push(format!("store {store} has no volume"));
            continue;
        };
        let levels = server.app.state().stock().store(store).unwrap_or_default();
        for product in 1..=PRODUCTS {
            let level = levels.iter().find(|level| level.cell.product == product);
            let (available, held, lent) = level.map_or((0, 0, 0), |level| {
                (i64::from(level.available), level.reserved, level.lent)
            });
            let of_rows = reserved.get(&(store, product)).copied().unwrap_or(0);
            let real = warehouse.on_hand(store, product);
            if lent > 0 || held != of_rows || available + i64::from(held) != real {
                wrong.push(format!(
                    "store {store} has {real} units of product {product}, {of_rows} of them in \
                     reservations, but in memory {available} are available, {held} held and {lent} lent"
                ));
            }
        }
    }
    Ok(wrong)
}

fn by_product(lines: &[crate::domain::order::Line]) -> BTreeMap<u32, u32> {
    let mut quantities = BTreeMap::new();
    for line in lines {
        *quantities.entry(line.id).or_default() += line.quantity;
    }
    quantities
}
