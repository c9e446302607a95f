//! Checks of the stock, as pure functions: no unit is sold twice, lost or created, and no order
//! missed a store with a lower number than its own that certainly had its units.
//!
//! The present stock of the warehouse is computed from its stock of the first day, its deliveries
//! and its arrivals of goods. The stock of the first day, with which its ledger began, is computed
//! from the seed. The warehouse's own totals are not used.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Evidence, Finding};
use crate::front::OrderRecord;
use crate::warehouse::{Stock, StockShape};
use crate::wire::{MessageKind, Order, OrderState, Product, Reservation};

/// Returns the stock of the first day, with which the warehouse's ledger began, computed from the
/// warehouse's seed.
pub(super) fn first_day(evidence: &Evidence) -> Stock {
    let shape = StockShape {
        products: evidence.warehouse.products,
        stores: evidence.warehouse.stores,
        units: evidence.warehouse.units,
    };
    Stock::first_day(evidence.warehouse.seed, shape)
}

/// Applies all deliveries and arrivals of goods in the ledger to the stock of the first day, and
/// returns the resulting stock. Adds a finding for each product of a delivery of which the store
/// had too few units. Such units are not subtracted.
pub(super) fn replay(evidence: &Evidence, findings: &mut Vec<Finding>) -> Stock {
    let mut stock = first_day(evidence);
    let mut restocks = evidence.restocks.iter().peekable();
    for delivery in &evidence.deliveries {
        while let Some(came) = restocks.next_if(|came| came.after < delivery.sequence) {
            stock.put(came.product, came.store, came.units);
        }
        for product in &delivery.products {
            if !stock.take(product.id, delivery.store, product.quantity) {
                findings.push(Finding::Oversold {
                    order: delivery.order.clone(),
                    store: delivery.store,
                    product: product.id,
                    delivered: product.quantity,
                    there: stock.get(product.id, delivery.store).unwrap_or_default(),
                });
            }
        }
    }
    for came in restocks {
        stock.put(came.product, came.store, came.units);
    }
    stock
}

/// Checks each product in each store from which the product was delivered, if the store's stock was
/// read: the order management and the warehouse must have the same number of units. The latest
/// arrivals of goods may be missing in the order management, because the next stock snapshot
/// reports them.
pub(super) fn check_conserved(evidence: &Evidence, shelves: &Stock, findings: &mut Vec<Finding>) {
    let mut arrivals: HashMap<(u32, u32), Vec<u32>> = HashMap::new();
    for came in &evidence.restocks {
        arrivals
            .entry((came.store, came.product))
            .or_default()
            .push(came.units);
    }
    // The warehouse may already have performed a delivery that is not yet confirmed to the order
    // management, or that the volume of the store has not counted yet. The products of such a
    // delivery are not compared in its store. The orders were read before the stock, and the
    // deliveries after it, so this includes all deliveries in between.
    let mut counted: HashSet<&str> = evidence
        .orders
        .iter()
        .filter(|order| order.state == OrderState::Delivered)
        .map(|order| order.id.as_str())
        .collect();
    for message in &evidence.outbox {
        if message.kind == MessageKind::Deliver {
            counted.remove(message.order.as_str());
        }
    }
    for reservation in &evidence.reservations {
        counted.remove(reservation.order.as_str());
    }
    let mut unconfirmed: HashSet<(u32, u32)> = HashSet::new();
    let mut touched: BTreeMap<(u32, u32), ()> = BTreeMap::new();
    for delivery in &evidence.deliveries {
        for product in &delivery.products {
            let cell = (delivery.store, product.id);
            touched.insert(cell, ());
            if !counted.contains(delivery.order.as_str()) {
                unconfirmed.insert(cell);
            }
        }
    }
    for ((store, product), ()) in touched {
        let Some(products) = evidence.on_hand.get(&store) else {
            continue;
        };
        if unconfirmed.contains(&(store, product)) {
            continue;
        }
        let kept = products.get(&product).copied().unwrap_or_default();
        let there = shelves.get(product, store).unwrap_or_default();
        let mut missing = i64::from(there) - kept;
        let latest = arrivals
            .get(&(store, product))
            .map(Vec::as_slice)
            .unwrap_or_default();
        for units in latest.iter().rev() {
            if missing == 0 {
                break;
            }
            missing -= i64::from(*units);
        }
        if missing != 0 {
            findings.push(Finding::StockDiffers {
                store,
                product,
                kept,
                there,
            });
        }
    }
}

/// Checks for each product in each store in `Evidence::reserved` that the reservations have as many
/// units as the order management counts as reserved.
pub(super) fn check_reserved_rows(evidence: &Evidence, findings: &mut Vec<Finding>) {
    // While an order with borrowed units is entered at the owner of the store, its reservation can
    // be listed twice.
    let rows: BTreeMap<(&str, u32), &Reservation> = evidence
        .reservations
        .iter()
        .filter(|reservation| evidence.reserved.contains_key(&reservation.store))
        .map(|reservation| ((reservation.order.as_str(), reservation.store), reservation))
        .collect();
    let mut listed: HashMap<(u32, u32), u64> = HashMap::new();
    for reservation in rows.into_values() {
        for product in &reservation.products {
            *listed.entry((reservation.store, product.id)).or_default() += u64::from(product.quantity);
        }
    }
    for (&store, products) in &evidence.reserved {
        for (&product, &kept) in products {
            let listed = listed.get(&(store, product)).copied().unwrap_or_default();
            if u64::from(kept) != listed {
                findings.push(Finding::ReservedDiffers {
                    store,
                    product,
                    kept,
                    listed,
                });
            }
        }
    }
}

/// Checks for each order of the run that no store with a lower number than the chosen one certainly
/// had its units. For a rejected order, all stores are checked. Another order without a store is
/// not checked. Nothing is checked if the run has no order, or if it began before the order
/// management had the stock of all stores.
///
/// The stock of a store at the time of an order is not recorded, so a lower bound is used. A store
/// certainly had the units if its stock of the first day is enough for the order and for all units
/// that can have been unavailable at that time. The unavailable units are at most the sum of:
///
/// - the units of every order, of any run, that got this store. An order without a store counts as
///   one of the last store. With several volumes, or an unknown number of them, the units of every
///   order that got a later store or none are added. Such an order asked this store first. If the
///   answer between two nodes was lost, the units stayed reserved in this store for a while.
/// - the units of the store's deliveries, a second time. A stock snapshot can already lack the
///   delivered units while the order still has its reservation. Then the order management subtracts
///   these units twice for a while.
pub(super) fn check_choice(evidence: &Evidence, record: &OrderRecord, findings: &mut Vec<Finding>) {
    if record.orders().is_empty() || !record.judges_stores() {
        return;
    }
    let first_day = first_day(evidence);
    let mut asked_for: HashMap<u32, Vec<(u32, u32)>> = HashMap::new();
    for order in &evidence.orders {
        let last = order.store_id.unwrap_or(evidence.warehouse.stores);
        for product in &order.products {
            asked_for
                .entry(product.id)
                .or_default()
                .push((last, product.quantity));
        }
    }
    let mut delivered: HashMap<(u32, u32), u32> = HashMap::new();
    for delivery in &evidence.deliveries {
        for product in &delivery.products {
            let sum = delivered.entry((delivery.store, product.id)).or_default();
            *sum = sum.saturating_add(product.quantity);
        }
    }
    let missing_at_most = |store: u32, product: u32| {
        let orders = asked_for.get(&product).into_iter().flatten();
        let held = orders.filter(|(last, _)| match evidence.volumes {
            1 => *last == store,
            _ => *last >= store,
        });
        let held = held.fold(0_u32, |sum, (_, quantity)| sum.saturating_add(*quantity));
        let twice = delivered.get(&(store, product)).copied().unwrap_or_default();
        held.saturating_add(twice)
    };
    let always_had = |store: u32, products: &[Product]| {
        let mut asked: BTreeMap<u32, u32> = BTreeMap::new();
        for product in products {
            let sum = asked.entry(product.id).or_default();
            *sum = sum.saturating_add(product.quantity);
        }
        asked.into_iter().all(|(product, quantity)| {
            let had = first_day.get(product, store).unwrap_or_default();
            had.saturating_sub(missing_at_most(store, product)) >= quantity
        })
    };
    let is_of_run = |order: &&Order| record.get_text(&order.id).is_some();
    for order in evidence.orders.iter().filter(is_of_run) {
        let before = match order.store_id {
            Some(chosen) => chosen,
            None if order.is_rejected() => evidence.warehouse.stores.saturating_add(1),
            None => continue,
        };
        if let Some(earlier) = (1..before).find(|store| always_had(*store, &order.products)) {
            findings.push(Finding::StoreSkipped {
                order: order.id.clone(),
                chosen: order.store_id,
                earlier,
            });
        }
    }
}
