//! What is in the stores, what of it is promised, and what has left since the last snapshot.
//!
//! Available = on hand - reserved, and on hand = last snapshot - deliveries that it does not count.
//! The warehouse numbers its deliveries; a snapshot says up to which number it counts them
//! (`X-Stock-As-Of`). So a delivery is subtracted exactly once: by the snapshot if its number is
//! not above the snapshot's, by us if it is. A snapshot that does not say counts the deliveries
//! that were confirmed before it began to arrive; a delivery without a number is counted by the
//! first snapshot that begins to arrive after it.
//!
//! Invariants: units are set aside only where every product of an order is available, so reserved
//! plus not yet counted deliveries never exceed what a snapshot showed, and nothing is sold twice;
//! a snapshot never touches reservations. Memory mirrors the volume: callers change both under one
//! lock, in one order. Absent on purpose: disk, clock and locks (`storage`, `transactor`).

mod journal;
mod plausible;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::domain::reserved_units::ReservedUnits;
pub(crate) use crate::domain::stock::journal::{Journal, Moment as StockMoment};

use crate::domain::order::{Line, OrderId};
use crate::domain::stock_matrix::{Layout, StockMatrix};
use crate::domain::stock_snapshot::Column;

/// Units of one store set aside for one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// Whose they are.
    pub order: OrderId,
    /// Where they are.
    pub store: u32,
    /// What they are.
    pub lines: Box<[Line]>,
    /// By which request of another volume they were set aside; none if by a step of the order
    /// itself, in one commit with it. With a nonce it is not certain that there is an order that
    /// keeps them: it must be asked (`remote_stock`).
    pub nonce: Option<u64>,
}

/// Units that left a store and that the last snapshot does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) store: u32,
    pub(crate) lines: Box<[Line]>,
    /// Its number in the warehouse's ledger, if the warehouse says it.
    pub(crate) sequence: Option<u64>,
    /// The how-manieth confirmation it was in this process; decides for snapshots that do not say
    /// what they count.
    pub(crate) ordinal: u64,
}

/// What is kept of the last snapshot beside its quantities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StockHead {
    /// The highest as-of that any snapshot had; an older one is refused.
    pub(crate) newest_as_of: Option<u64>,
    /// Deliveries up to this number are counted by the snapshot that is in force.
    pub(crate) counted_to: Option<u64>,
    /// Snapshots applied since the volume began.
    pub(crate) snapshots: u64,
}

impl StockHead {
    /// What is known where stores come from another volume: how far these count is said by their
    /// own rows.
    pub(crate) fn joined_with(self, other: &StockHead) -> StockHead {
        StockHead {
            newest_as_of: self.newest_as_of.max(other.newest_as_of),
            counted_to: self.counted_to,
            snapshots: self.snapshots.max(other.snapshots),
        }
    }
}

/// Up to which delivery a store's quantities count what left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CountedTo {
    /// As the head of the volume says; rows of earlier versions do not say it themselves.
    #[default]
    OfVolume,
    /// To this one; none if their snapshot did not say.
    Delivery(Option<u64>),
}

impl CountedTo {
    /// The delivery, in a volume with this head.
    pub(crate) fn resolve(self, head: &StockHead) -> Option<u64> {
        match self {
            CountedTo::OfVolume => head.counted_to,
            CountedTo::Delivery(sequence) => sequence,
        }
    }
}

/// The moment at which a snapshot began to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival(pub(crate) u64);

/// A snapshot older than the one in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StaleSnapshot {
    /// The sequence up to which it counts deliveries.
    pub as_of: u64,
    /// The sequence of the newest snapshot applied.
    pub newest: u64,
}

/// What applying a snapshot changed, to be written, or undone if it could not be.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) head: StockHead,
    pub(crate) counted: Vec<(OrderId, Delivery)>,
    head_before: StockHead,
    /// The stock that it took the place of, to be dropped where nobody waits.
    _replaced: StockMatrix,
}

/// The stock of a volume.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    matrix: StockMatrix,
    reserved: ReservedUnits,
    uncounted: HashMap<OrderId, Delivery>,
    /// Deliveries whose rows are there still, though the quantities of their store count them.
    counted: Vec<(OrderId, Delivery)>,
    head: StockHead,
    /// Stores that count up to another delivery than the head says: they came from another volume,
    /// or the snapshot after it was broken off.
    counted_apart: BTreeMap<u32, Option<u64>>,
    confirmed: u64,
    /// The highest number of a delivery seen since the volume was opened.
    newest_sequence: Option<u64>,
    demands: Vec<Line>,
}

impl Stock {
    /// The stock that the volume's rows make.
    pub(crate) fn new(
        matrix: StockMatrix,
        (head, counted_apart): (StockHead, BTreeMap<u32, Option<u64>>),
        reservations: &[Reservation],
        deliveries: Vec<(OrderId, Delivery)>,
    ) -> Stock {
        let mut stock = Stock {
            matrix,
            head,
            counted_apart,
            ..Stock::default()
        };
        let mut reserved_units = ReservedUnits::default();
        for reservation in reservations {
            reserved_units.add(reservation.store, &reservation.lines);
        }
        stock.take_in(reserved_units, deliveries);
        stock
    }

    /// Takes into account what is promised of the shelves and what has left them.
    fn take_in(&mut self, reserved_units: ReservedUnits, deliveries: Vec<(OrderId, Delivery)>) {
        reserved_units.each(|store, line| self.matrix.take(store, line));
        self.reserved.join(reserved_units);
        for (order, mut delivery) in deliveries {
            self.confirmed += 1;
            delivery.ordinal = self.confirmed;
            self.newest_sequence = self.newest_sequence.max(delivery.sequence);
            if self.counts(&delivery) {
                self.counted.push((order, delivery));
            } else {
                self.subtract(order, delivery);
            }
        }
    }

    /// True if the quantities of its store count a delivery.
    fn counts(&self, delivery: &Delivery) -> bool {
        let apart = self.counted_apart.get(&delivery.store).copied();
        let counted_to = apart.unwrap_or(self.head.counted_to);
        matches!((delivery.sequence, counted_to), (Some(sequence), Some(counted_to)) if sequence <= counted_to)
    }

    fn subtract(&mut self, order: OrderId, delivery: Delivery) {
        for line in &delivery.lines {
            self.matrix.take(delivery.store, *line);
        }
        self.uncounted.insert(order, delivery);
    }

    /// Stores come from another volume, with what is promised and what has left of them. `products`
    /// are those of the columns by row: the known ones in their order, then new ones.
    pub(crate) fn arrive(
        &mut self,
        products: &[u32],
        columns: &[Column],
        head: StockHead,
        reserved_units: ReservedUnits,
        deliveries: Vec<(OrderId, Delivery)>,
    ) {
        self.matrix.add_stores(products, columns);
        self.head = head;
        for column in columns {
            let counted_to = column.counted_to.resolve(&head);
            if counted_to != head.counted_to {
                self.counted_apart.insert(column.store, counted_to);
            }
        }
        self.take_in(reserved_units, deliveries);
    }

    /// Stores go to another volume: nothing is known of them any more.
    pub(crate) fn depart(&mut self, stays: impl Fn(u32) -> bool) {
        self.matrix.retain_stores(&stays);
        self.reserved.retain_stores(&stays);
        self.uncounted.retain(|_, delivery| stays(delivery.store));
        self.counted.retain(|(_, delivery)| stays(delivery.store));
        self.counted_apart.retain(|store, _| stays(*store));
    }

    /// Sets an order's units aside in the first store, ascending, that has them all.
    #[cfg(test)]
    pub(crate) fn reserve(&mut self, lines: &[Line]) -> Option<u32> {
        let store = self.first_store(lines)?;
        self.promise(store, lines);
        Some(store)
    }

    /// Sets an order's units aside in this store, if it has them all.
    pub(crate) fn reserve_at(&mut self, store: u32, lines: &[Line]) -> bool {
        self.sum_demands(lines);
        let has_all = self.matrix.has_all(store, &self.demands);
        if has_all {
            self.promise(store, lines);
        }
        has_all
    }

    /// The first store, ascending, that has all of an order's units.
    pub(crate) fn first_store(&mut self, lines: &[Line]) -> Option<u32> {
        self.sum_demands(lines);
        self.matrix.first_store(&self.demands)
    }

    fn sum_demands(&mut self, lines: &[Line]) {
        sum_into(&mut self.demands, lines);
    }

    /// Sets units aside in a store that has them.
    pub(crate) fn promise(&mut self, store: u32, lines: &[Line]) {
        self.reserved.add(store, lines);
        for line in lines {
            self.matrix.take(store, *line);
        }
    }

    /// Gives an order's units back.
    pub(crate) fn release(&mut self, store: u32, lines: &[Line]) {
        for line in lines {
            let was_promised = self.reserved.take(store, *line);
            debug_assert!(was_promised, "units are released that were never reserved");
            if was_promised {
                self.matrix.give(store, *line);
            }
        }
    }

    /// An order's units left the store: what is on hand shrinks unless the snapshot in force counts
    /// the delivery already. They stay promised until they are released, once that they left is
    /// durable. Returns the delivery if it must be remembered.
    pub(crate) fn deliver(
        &mut self,
        order: &OrderId,
        store: u32,
        lines: &[Line],
        sequence: Option<u64>,
    ) -> Option<&Delivery> {
        self.confirmed += 1;
        self.newest_sequence = self.newest_sequence.max(sequence);
        let delivery = Delivery {
            store,
            lines: lines.into(),
            sequence,
            ordinal: self.confirmed,
        };
        if self.counts(&delivery) {
            return None;
        }
        self.subtract(order.clone(), delivery);
        self.uncounted.get(order)
    }

    /// Takes a delivery back that could not be written.
    pub(crate) fn undo_delivery(&mut self, order: &OrderId) {
        // A snapshot that came in between may count the delivery already, and then has forgotten
        // it.
        if let Some(delivery) = self.uncounted.remove(order) {
            self.hold_no_longer(&delivery);
        }
    }

    /// Remembers when a snapshot began to arrive.
    pub(crate) fn arrival(&self) -> Arrival {
        Arrival(self.confirmed)
    }

    /// Returns the largest number of a delivery that is plausible now (see `plausible`).
    pub(crate) fn largest_plausible(&self, now_ms: u64) -> u64 {
        let newest_apart = self.counted_apart.values().copied().max().flatten();
        let newest = self.head.newest_as_of.max(newest_apart).max(self.newest_sequence);
        plausible::largest_plausible(newest, now_ms)
    }

    /// Says whether a snapshot of that age would be taken. One that counts less than a store does
    /// already is not: what the store counts was forgotten, and could not be subtracted from it
    /// again.
    pub(crate) fn accepts(&self, as_of: Option<u64>) -> Result<(), StaleSnapshot> {
        let newest_apart = self.counted_apart.values().copied().max().flatten();
        match (as_of, self.head.newest_as_of.max(newest_apart)) {
            (Some(as_of), Some(newest)) if as_of < newest => Err(StaleSnapshot { as_of, newest }),
            _ => Ok(()),
        }
    }

    /// Puts a snapshot in force: what it counts is forgotten here, all else is subtracted from it.
    pub(crate) fn apply(
        &mut self,
        matrix: StockMatrix,
        as_of: Option<u64>,
        arrival: Arrival,
    ) -> Result<Applied, StaleSnapshot> {
        self.accepts(as_of)?;
        let head_before = self.head;
        // It does not rest on what stores count of one that was broken off.
        for (order, delivery) in std::mem::take(&mut self.counted) {
            self.subtract(order, delivery);
        }
        self.counted_apart.clear();
        let counts = |delivery: &Delivery| match (as_of, delivery.sequence) {
            (Some(as_of), Some(sequence)) => sequence <= as_of,
            _ => delivery.ordinal <= arrival.0,
        };
        let counted: Vec<(OrderId, Delivery)> = self
            .uncounted
            .extract_if(|_, delivery| counts(delivery))
            .collect();
        self.head = StockHead {
            newest_as_of: as_of.or(head_before.newest_as_of),
            counted_to: as_of,
            snapshots: head_before.snapshots + 1,
        };
        for (_, delivery) in &counted {
            self.hold_no_longer(delivery);
        }
        Ok(Applied {
            head: self.head,
            counted,
            head_before,
            _replaced: self.replace(matrix),
        })
    }

    /// Takes a snapshot back that could not be written, or not all of it: `matrix` and
    /// `counted_apart` are what the volume has.
    pub(crate) fn undo(
        &mut self,
        applied: Applied,
        matrix: StockMatrix,
        counted_apart: BTreeMap<u32, Option<u64>>,
    ) {
        self.head = applied.head_before;
        for (order, delivery) in applied.counted {
            self.subtract(order, delivery);
        }
        drop(self.become_those(matrix, counted_apart));
    }

    /// Puts what the volume has in place of what is here, of the same head; what was here before is
    /// best dropped after the lock is let go of.
    pub(crate) fn become_those(
        &mut self,
        matrix: StockMatrix,
        counted_apart: BTreeMap<u32, Option<u64>>,
    ) -> StockMatrix {
        self.counted_apart = counted_apart;
        let uncounted = std::mem::take(&mut self.uncounted);
        for (order, delivery) in uncounted {
            if self.counts(&delivery) {
                self.hold_no_longer(&delivery);
                self.counted.push((order, delivery));
            } else {
                self.uncounted.insert(order, delivery);
            }
        }
        self.replace(matrix)
    }

    /// Units by store and product that left since the snapshot in force and that it does not count.
    pub(crate) fn uncounted(&self) -> HashMap<(u32, u32), u32> {
        let mut left = HashMap::new();
        for delivery in self.uncounted.values() {
            for line in &delivery.lines {
                *left.entry((delivery.store, line.id)).or_default() += line.quantity;
            }
        }
        left
    }

    fn hold_no_longer(&mut self, delivery: &Delivery) {
        for line in &delivery.lines {
            self.matrix.give(delivery.store, *line);
        }
    }

    /// Puts other quantities in place of those of the snapshot in force; all that is promised or
    /// left since stays. What was there before is best dropped after the lock is let go of.
    fn replace(&mut self, matrix: StockMatrix) -> StockMatrix {
        let (before, is_held) = self.matrix.replace(matrix);
        if is_held {
            return before;
        }
        self.reserved.each(|store, line| self.matrix.take(store, line));
        for delivery in self.uncounted.values() {
            delivery
                .lines
                .iter()
                .for_each(|line| self.matrix.take(delivery.store, *line));
        }
        before
    }

    /// Records changed cells for the copies of other nodes. Returns the present moment.
    pub(crate) fn follow(&mut self) -> StockMoment {
        let journal = self.matrix.journal();
        journal.follow();
        journal.now()
    }

    /// Records no changed cells from here on.
    pub(crate) fn unfollow(&mut self) {
        self.matrix.journal().unfollow();
    }

    /// The present moment of the recorded changes.
    pub(crate) fn moment(&mut self) -> StockMoment {
        self.matrix.journal().now()
    }

    /// The cells that changed after a moment, with what is available of each now. `None` if that is
    /// not known.
    pub(crate) fn changes_since(&mut self, then: StockMoment) -> Option<Vec<(u32, i32)>> {
        let cells = self.matrix.journal().since(then)?;
        let available = |cell| Some((cell, self.matrix.available_at(cell)?));
        Some(cells.into_iter().filter_map(available).collect())
    }

    /// What is available of a product in a store; none if there is no cell for it.
    pub(crate) fn available_in(&self, product: u32, store: u32) -> Option<i32> {
        self.matrix.available_in(product, store)
    }

    /// Products by row.
    pub(crate) fn products(&self) -> Vec<u32> {
        self.matrix.products()
    }

    /// Available quantities of whole rows (see `Shelves::available_rows`).
    pub(crate) fn available_rows(&self, first: usize, cells: usize) -> Vec<i32> {
        self.matrix.available_rows(first, cells)
    }

    /// Which products and stores the snapshot in force has, and where.
    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(self.matrix.layout())
    }

    /// Returns `true` if the stock has a cell for the product in each store.
    pub(crate) fn has_product(&self, product: u32) -> bool {
        self.matrix.has_product(product)
    }

    /// True if the snapshot in force has a cell for each of these products and stores.
    pub(crate) fn has_all(&self, mut cells: impl Iterator<Item = (u32, u32)>) -> bool {
        cells.all(|(product, store)| self.matrix.has(product, store))
    }

    /// Changes some cells of the snapshot in force; false, and nothing is changed, if there is one
    /// that it does not have.
    pub(crate) fn step(&mut self, steps: &[CellStep]) -> bool {
        let has_all = self.has_all(steps.iter().map(|step| (step.product, step.store)));
        if has_all {
            for step in steps {
                self.matrix.step(step.product, step.store, step.by);
            }
        }
        has_all
    }

    /// What is known of the snapshot in force.
    pub(crate) fn head(&self) -> StockHead {
        self.head
    }

    /// What each store has of a product, stores ascending.
    pub(crate) fn product(&self, product: u32) -> Vec<(u32, Level)> {
        let cells = self.matrix.by_store(product).into_iter();
        cells
            .map(|(store, available)| (store, self.level(store, product, available)))
            .collect()
    }

    /// What a store has of each product, products ascending; `None` if the stock has no such store.
    pub(crate) fn store(&self, store: u32) -> Option<Vec<(u32, Level)>> {
        let cells = self.matrix.by_product(store)?.into_iter();
        let levels = cells.map(|(product, available)| (product, self.level(store, product, available)));
        Some(levels.collect())
    }

    fn level(&self, store: u32, product: u32, available: i32) -> Level {
        Level {
            available,
            reserved: self.reserved.of(store, product),
        }
    }

    /// The stores of the snapshot in force, ascending.
    pub(crate) fn stores(&self) -> &[u32] {
        self.matrix.stores()
    }
}

/// The same product may stand on several lines: a store must have their sum.
pub(crate) fn summed(lines: &[Line]) -> Vec<Line> {
    let mut demands = Vec::with_capacity(lines.len());
    sum_into(&mut demands, lines);
    demands
}

fn sum_into(demands: &mut Vec<Line>, lines: &[Line]) {
    demands.clear();
    for line in lines {
        match demands.iter_mut().find(|demand| demand.id == line.id) {
            Some(demand) => demand.quantity += line.quantity,
            None => demands.push(*line),
        }
    }
}

/// A change of what is on hand of a product in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CellStep {
    pub(crate) product: u32,
    pub(crate) store: u32,
    pub(crate) by: i32,
}

/// How much there is of one product in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// May be negative where the last snapshot has less than is promised.
    pub(crate) available: i32,
    pub(crate) reserved: u32,
}

#[cfg(test)]
mod tests;
