//! Invariants of the volumes: their rows, counters and messages in memory agree.
//!
//! Answers to customers rarely show a fault of this kind. A counter that is too low, or a message
//! that is never sent, does harm only later.
//!
//! A volume is *settled* if it owns exactly the slots that its server's ring assigns to it, is not
//! prepared for a migration (as a target, or as a source with sealed slots), and has removed all
//! stale rows. A cluster is *at rest* if it has no faults and no requests.
//!
//! **Invariants**
//! - A settled volume has no row of a slot that it does not own in the tables that move with slots
//!   (`Table::moves`), and no staged row.
//! - The counters of a settled volume equal the numbers of its orders by state.
//! - A settled volume has exactly the messages that its orders need.
//! - A waiting message in memory is in flight, scheduled or parked. This holds for every volume
//!   that is served.
//! - At rest, the messages in memory equal the messages in the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::order::{Order, OrderId, State};
use crate::error::StorageError;
use crate::outbox::Kind;
use crate::simulation::world::World;
use crate::storage::codec;
use crate::storage::owned_slots::Home;
use crate::storage::volume::order_id;
use crate::storage::write_batch::{TABLES, Table};
use crate::volume::migration::source::broken;
use crate::volume::server::VolumeServer;
use crate::volume::state::{VolumeState, wants};

/// Maximum number of rows or messages that one fault reported by `compare` names.
const NAMED_MAX: usize = 5;

/// The messages of a volume: order id and name of the message kind.
type Messages = BTreeSet<(OrderId, &'static str)>;

/// Checks every volume that is served at this moment, except for volumes with a failed last commit.
pub(super) fn check_now(world: &Arc<World>) {
    for server in servers(world) {
        faults(&server, false)
            .into_iter()
            .for_each(|fault| world.violated(fault));
        world.count("volumes checked");
    }
}

/// Returns the faults of all volumes of a cluster at rest.
pub(super) fn faults_at_rest(world: &Arc<World>) -> Vec<String> {
    let servers = servers(world);
    servers.iter().flat_map(|server| faults(server, true)).collect()
}

/// Returns `true` if a volume has sealed slots.
pub(super) fn some_sealed(world: &Arc<World>) -> bool {
    let servers = servers(world);
    servers
        .iter()
        .any(|server| server.app.state().slots.some_sealed())
}

/// Returns `true` if no slots migrate, and every volume of the ring is served and settled.
pub(super) fn is_settled(world: &Arc<World>) -> bool {
    let Some(state) = world.state() else {
        return false;
    };
    let epoch = state.ring.epoch();
    let servers = servers(world);
    let serves = |member: &imt_ring::Member| {
        let mut of_member = servers.iter().filter(|server| server.volume == *member.name());
        of_member.any(|server| server.settled_epoch() == Some(epoch))
    };
    state.moving.is_none() && state.ring.members().iter().all(serves)
}

/// Returns the servers that have the right to serve their volumes, except for volumes with a failed
/// last commit.
fn servers(world: &Arc<World>) -> Vec<Arc<VolumeServer>> {
    let clusters: Vec<_> = {
        let inside = world.inside();
        let alive = inside
            .incarnations
            .iter()
            .filter(|one| one.is_member && !one.process.is_fenced());
        alive.filter_map(|one| one.cluster.clone()).collect()
    };
    let served = clusters.iter().flat_map(|cluster| {
        let topology = cluster.topology();
        topology.servers.values().cloned().collect::<Vec<_>>()
    });
    served
        .filter(|server| {
            let storage = &server.app.state().storage;
            storage.is_ours() && !storage.has_failed()
        })
        .collect()
}

fn faults(server: &VolumeServer, is_at_rest: bool) -> Vec<String> {
    let state = server.app.state();
    let mut faults = Vec::new();
    let lost = state.outbox().unscheduled();
    if !lost.is_empty() {
        faults.push(format!("messages are neither scheduled nor in flight: {lost:?}"));
    }
    // While slots migrate, a volume may have rows of other volumes. So only a settled volume is
    // compared.
    if server.settled_epoch().is_some() {
        // A volume that was closed after `servers` returned its server cannot be read, so errors
        // are ignored.
        let _ = compare(state, is_at_rest, &mut faults);
    }
    let name = |fault: String| format!("volume {}: {fault}", server.volume);
    faults.into_iter().map(name).collect()
}

fn compare(state: &VolumeState, is_at_rest: bool, faults: &mut Vec<String>) -> Result<(), StorageError> {
    let mut foreign = Vec::new();
    for (table, name) in TABLES {
        state.storage.each_row(table, |key, value| {
            let home = state.slots.home_of(table, key, Some(value));
            let is_foreign = match home.map_err(|fault| broken(table, key, fault))? {
                Home::Slot(slot) => table.moves() && !state.slots.has(slot),
                _ => table == Table::Arriving,
            };
            if is_foreign {
                foreign.push(format!("{name} {}", String::from_utf8_lossy(key)));
            }
            Ok::<(), StorageError>(())
        })?;
    }
    if !foreign.is_empty() {
        foreign.sort_unstable();
        foreign.truncate(NAMED_MAX);
        faults.push(format!(
            "it is settled, but has rows of other volumes: {foreign:?}"
        ));
    }
    let orders = orders(state)?;
    let mut listed = [0; State::ALL.len()];
    let mut needed = Messages::new();
    for order in orders.values() {
        listed[order.state as usize] += 1;
        let kinds = Kind::ALL.into_iter().filter(|kind| wants(order.state, *kind));
        needed.extend(kinds.map(|kind| (order.id.clone(), kind.name())));
    }
    let counted = state.storage.counters().orders;
    if counted != listed {
        faults.push(format!(
            "{counted:?} orders by state are counted, and {listed:?} listed"
        ));
    }
    let stored = messages(state)?;
    compare_messages("needed, but not stored", &needed, &stored, faults);
    compare_messages("stored, but not needed", &stored, &needed, faults);
    if is_at_rest {
        let known = state.outbox().page(None, usize::MAX, state.now());
        let known = known
            .into_iter()
            .map(|message| (message.order, message.kind.name()));
        let known = known.collect();
        compare_messages("stored, but not in memory", &stored, &known, faults);
        compare_messages("in memory, but not stored", &known, &stored, faults);
    }
    Ok(())
}

fn compare_messages(name: &str, some: &Messages, others: &Messages, faults: &mut Vec<String>) {
    let only: Vec<_> = some.difference(others).take(NAMED_MAX).collect();
    if !only.is_empty() {
        faults.push(format!("messages are {name}: {only:?}"));
    }
}

/// Returns the orders that the volume owns.
fn orders(state: &VolumeState) -> Result<BTreeMap<OrderId, Order>, StorageError> {
    let mut orders = BTreeMap::new();
    state.storage.each_row(Table::Orders, |key, value| {
        let decoded = order_id(key).and_then(|id| codec::decode_order(id, value));
        let order = decoded.map_err(|fault| broken(Table::Orders, key, fault))?;
        if state.slots.has_order(&order.id) {
            orders.insert(order.id.clone(), order);
        }
        Ok::<(), StorageError>(())
    })?;
    Ok(orders)
}

/// Returns the stored messages of the orders that the volume owns.
fn messages(state: &VolumeState) -> Result<Messages, StorageError> {
    let mut messages = Messages::new();
    state.storage.each_row(Table::Outbox, |key, _| {
        if let Some((order, kind)) = codec::decode_message_key(key)
            && state.slots.has_order(&order)
        {
            messages.insert((order, kind.name()));
        }
        Ok::<(), StorageError>(())
    })?;
    Ok(messages)
}
