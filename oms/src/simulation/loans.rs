//! Watches the loans of units between volumes in each run.
//!
//! **Violation**: a volume holds more units of a store, usable or taken by orders that the store's
//! owner has not entered, than the owner has lent to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::simulation::warehouse::STORES;
use crate::simulation::world::World;
use crate::volume::server::VolumeServer;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Looks at all loans until the run ends.
pub(super) async fn watch(world: Arc<World>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        look(&world);
    }
}

/// Returns the volume servers of all processes that have not lost their volumes.
fn servers(world: &World) -> Vec<Arc<VolumeServer>> {
    let clusters: Vec<_> = {
        let inside = world.inside();
        let alive = inside
            .incarnations
            .iter()
            .filter(|one| !one.process.is_dead() && !one.process.is_fenced());
        alive.filter_map(|one| one.cluster.clone()).collect()
    };
    let mut servers = Vec::new();
    for cluster in clusters {
        servers.extend(cluster.topology().servers.values().cloned());
    }
    servers
}

fn look(world: &World) {
    let servers = servers(world);
    let mut counts = [false; 3];
    for owner in &servers {
        let state = owner.app.state();
        let mut stock = state.stock();
        for store in (1..=STORES).filter(|store| state.slots.check_store(*store).unwrap_or(false)) {
            for borrower in &servers {
                let (incarnation, claims) = borrower.app.state().allotments().claims(store);
                let loan = stock.loans().get(store, &borrower.volume);
                let Some(open) = loan.filter(|open| open.loan.incarnation == incarnation) else {
                    continue;
                };
                counts[0] |= !open.loan.units.is_empty();
                counts[1] |= open.recalled_ms.is_some();
                counts[2] |= open.is_hidden;
                for (product, claimed) in claims {
                    let lent = open.loan.units.get(&product).copied().unwrap_or(0);
                    if claimed > lent {
                        world.violated(format!(
                            "{} holds {claimed} units of product {product} of store {store}, and {} has lent {lent}",
                            borrower.volume, owner.volume
                        ));
                    }
                }
            }
        }
    }
    let events = [
        "looks with loans",
        "looks with recalls",
        "looks with hidden loans",
    ];
    for (event, _) in events.into_iter().zip(counts).filter(|(_, is_so)| *is_so) {
        world.count(event);
    }
}

/// Counts the orders that took borrowed units from the running nodes.
pub(super) fn count_orders(world: &World) {
    for server in servers(world) {
        for _ in 0..server
            .app
            .counters
            .orders_from_borrowed_units
            .load(Ordering::Relaxed)
        {
            world.count("orders from allotments");
        }
    }
}
