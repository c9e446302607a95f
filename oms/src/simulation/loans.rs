//! Watches the loans of units between volumes during a simulation.
//!
//! **Violation**: a volume holds more units of a store than the store's owner has lent to it. A
//! volume holds its usable units, its recalled units, and the units that its orders took from
//! them. The units of an order count until a request of the volume's present server names the
//! order to the owner. They do not count if the owner already has the order's reservation.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::simulation::warehouse::STORES;
use crate::simulation::world::World;
use crate::volume::server::VolumeServer;

/// Pause between two checks of all loans.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Checks all loans repeatedly. The caller aborts this task at the end of the simulation.
pub(super) async fn watch(world: Arc<World>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        look(&world);
    }
}

/// Returns the volume servers of all processes that are alive and have their lease.
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
    let mut counts = [false; 2];
    for owner in &servers {
        let state = owner.app.state();
        let mut stock = state.stock();
        let reservations = state.remote_reservations();
        for store in (1..=STORES).filter(|store| state.slots.check_store(*store).unwrap_or(false)) {
            for borrower in &servers {
                let claims = borrower.app.state().allotments().claims(store);
                let loan = stock.loans().get(store, &borrower.volume);
                if loan.is_some_and(|open| open.loan.incarnation > claims.incarnation) {
                    // The borrowing volume has a newer server. The server `borrower` has lost the
                    // volume and does not know it yet.
                    continue;
                }
                counts[0] |= loan.is_some_and(|open| !open.loan.units.is_empty());
                counts[1] |= loan.is_some_and(|open| open.recalled.is_some());
                let mut held = claims.usable;
                for spent in claims.orders {
                    let known = reservations.get(&spent.order, store);
                    if known.is_none_or(|known| known.nonce != spent.nonce) {
                        for line in &spent.lines {
                            *held.entry(line.id).or_default() += line.quantity;
                        }
                    }
                }
                for (product, held) in held {
                    let lent = loan.and_then(|open| open.loan.units.get(&product));
                    let lent = lent.copied().unwrap_or(0);
                    if held > lent {
                        world.violated(format!(
                            "{} holds {held} units of product {product} of store {store}, and {} has lent {lent}",
                            borrower.volume, owner.volume
                        ));
                    }
                }
            }
        }
    }
    let events = ["looks with loans", "looks with recalls"];
    for (event, _) in events.into_iter().zip(counts).filter(|(_, is_so)| *is_so) {
        world.count(event);
    }
}

/// Adds up the orders that took borrowed units, as counted by the volume servers of the running
/// nodes.
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
