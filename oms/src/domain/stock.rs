//! The stock of one volume in memory: quantities on hand, reservations and uncounted deliveries.
//!
//! Available = on hand - reserved. On hand = last snapshot - deliveries that the snapshot does not
//! count. Later changes of single cells (`step`) are added. A snapshot *counts* a delivery if the
//! warehouse has already subtracted the delivered units from the snapshot's quantities.
//!
//! The warehouse numbers its deliveries, and the header `X-Stock-As-Of` names the last number that
//! a snapshot counts. A snapshot without this header counts the deliveries confirmed before its
//! upload began. A delivery without a number is counted by the first snapshot with an upload that
//! begins after the confirmation of the delivery.
//!
//! **Invariants**
//! - Each delivery is subtracted exactly once: by the warehouse in the snapshot, or by this module.
//! - Units are reserved or lent only if the store has them available. So no unit is sold twice.
//! - A snapshot never changes reservations or loans.
//! - Units lent to other volumes (`loans`) are on hand and available, but not free. The search for
//!   a store includes them, because they can be recalled. A reservation takes only free units, or
//!   lent units of an order of their borrower.
//! - Memory mirrors the volume: callers change both under one lock, in the same order.
//!
//! Deliberately absent: disk, clock and locks (see `storage` and `volume`).

mod journal;
mod lent_units;
mod plausible;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::domain::loans::Loans;
use crate::domain::reserved_units::ReservedUnits;
pub(crate) use crate::domain::stock::journal::{Journal, Moment as StockMoment};
pub(crate) use crate::domain::stock::lent_units::{Found, RECALL_BELOW};

use crate::domain::order::{Line, OrderId};
use crate::domain::stock_matrix::{Layout, StockMatrix};
use crate::domain::stock_snapshot::Column;

/// Units of one store that are reserved for one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// The order that owns the units.
    pub order: OrderId,
    /// The store that has the units.
    pub store: u32,
    /// The reserved products and quantities.
    pub lines: Box<[Line]>,
    /// Nonce of the attempt by which another volume reserved the units, or took units that it had
    /// borrowed. `None` if the order was placed in the volume of its store, where order and
    /// reservation were one commit. A reservation with a nonce may have no order, for example after
    /// a crash. So `remote_stock` asks the order's volume if the order has the reservation.
    pub nonce: Option<u64>,
}

/// Units of one order that left a store, stored until a snapshot counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) store: u32,
    pub(crate) lines: Box<[Line]>,
    /// Number that the warehouse gave to the delivery, if it sent one.
    pub(crate) sequence: Option<u64>,
    /// Number of this delivery among all deliveries that `Stock` has recorded, counted from 1.
    /// Deliveries that were read when the volume was opened have the lowest numbers. If the
    /// snapshot or the delivery has no number of the warehouse, the snapshot counts the delivery if
    /// this ordinal is at most the snapshot's [`Arrival`].
    pub(crate) ordinal: u64,
}

/// Facts about the applied snapshots, stored beside the quantities of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StockHead {
    /// Highest `X-Stock-As-Of` of any applied snapshot; `None` if none had the header. Snapshots
    /// with a lower number are rejected.
    pub(crate) newest_as_of: Option<u64>,
    /// Number of the last delivery that the current snapshot counts. `None` if the snapshot had no
    /// `X-Stock-As-Of`.
    pub(crate) counted_to: Option<u64>,
    /// Number of applied snapshots. After stores of another volume were added, the larger number of
    /// both volumes.
    pub(crate) snapshots: u64,
}

impl StockHead {
    /// Returns the head after stores of another volume, with the head `other`, were added. The rows
    /// of these stores name the last delivery that they count, so `counted_to` stays.
    pub(crate) fn joined_with(self, other: &StockHead) -> StockHead {
        StockHead {
            newest_as_of: self.newest_as_of.max(other.newest_as_of),
            counted_to: self.counted_to,
            snapshots: self.snapshots.max(other.snapshots),
        }
    }
}

/// The last delivery that is already subtracted from the quantities of a store, as given in the
/// store's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CountedTo {
    /// The row of the store names no delivery, because an earlier version of this program wrote it.
    /// The head of the volume names the delivery instead.
    #[default]
    OfVolume,
    /// The row of the store names the delivery. `None` if the store's snapshot had no
    /// `X-Stock-As-Of`.
    Delivery(Option<u64>),
}

impl CountedTo {
    /// Returns the number of the last counted delivery. `head` is the head of the store's volume.
    /// `None` if the snapshot of the quantities had no `X-Stock-As-Of`.
    pub(crate) fn resolve(self, head: &StockHead) -> Option<u64> {
        match self {
            CountedTo::OfVolume => head.counted_to,
            CountedTo::Delivery(sequence) => sequence,
        }
    }
}

/// The last delivery that is already subtracted from the quantities. `head` names it for the whole
/// volume, and `overrides` for the stores that differ from the volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counting {
    pub(crate) head: StockHead,
    /// Stores that count deliveries up to another number than `head.counted_to`. Such a store came
    /// from another volume, or its row was written for a newer snapshot, and a crash or failed
    /// commit interrupted the write of the other rows.
    pub(crate) overrides: BTreeMap<u32, Option<u64>>,
}

/// The moment at which the upload of a snapshot began, as the number of deliveries that `Stock` had
/// recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival(pub(crate) u64);

/// The error for a snapshot that is older than the current stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StaleSnapshot {
    /// Number of the last delivery that the rejected snapshot counts.
    pub as_of: u64,
    /// Highest number of a delivery that an applied snapshot, or the row of a store, counts.
    pub newest: u64,
}

/// The effect of a snapshot on memory. The caller writes the effect to the volume, and passes it to
/// `Stock::undo` if the write failed.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) head: StockHead,
    pub(crate) counted: Vec<(OrderId, Delivery)>,
    head_before: StockHead,
    /// The replaced quantities. After a successful write, the caller drops them once it has
    /// released the lock of the stock.
    _replaced: StockMatrix,
}

/// The stock of a volume.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    matrix: StockMatrix,
    reserved: ReservedUnits,
    loans: Loans,
    uncounted: HashMap<OrderId, Delivery>,
    /// Deliveries that the quantities of their store count already, but that still have a row in
    /// the volume.
    counted: Vec<(OrderId, Delivery)>,
    head: StockHead,
    /// Stores that count deliveries up to another number than `head.counted_to`. Such a store came
    /// from another volume, or its row was written for a newer snapshot, and a crash or failed
    /// commit interrupted the write of the other rows.
    counted_to_overrides: BTreeMap<u32, Option<u64>>,
    confirmed: u64,
    /// Highest number that the warehouse gave to any delivery that this `Stock` has recorded.
    /// `None` if no recorded delivery has a number.
    newest_sequence: Option<u64>,
    demands: Vec<Line>,
}

impl Stock {
    /// Creates the stock from the rows of the volume.
    pub(crate) fn new(
        matrix: StockMatrix,
        counting: Counting,
        reservations: &[Reservation],
        deliveries: Vec<(OrderId, Delivery)>,
    ) -> Stock {
        let mut stock = Stock {
            matrix,
            head: counting.head,
            counted_to_overrides: counting.overrides,
            ..Stock::default()
        };
        let mut reserved_units = ReservedUnits::default();
        for reservation in reservations {
            reserved_units.add(reservation.store, &reservation.lines);
        }
        stock.deduct_all(reserved_units, deliveries);
        stock
    }

    /// Deducts reservations and uncounted deliveries from the quantities.
    fn deduct_all(&mut self, reserved_units: ReservedUnits, deliveries: Vec<(OrderId, Delivery)>) {
        reserved_units.each(|store, line| self.matrix.deduct(store, line));
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

    /// Returns `true` if the quantities of the delivery's store count the delivery.
    fn counts(&self, delivery: &Delivery) -> bool {
        let counted_to_override = self.counted_to_overrides.get(&delivery.store).copied();
        let counted_to = counted_to_override.unwrap_or(self.head.counted_to);
        matches!((delivery.sequence, counted_to), (Some(sequence), Some(counted_to)) if sequence <= counted_to)
    }

    fn subtract(&mut self, order: OrderId, delivery: Delivery) {
        for line in &delivery.lines {
            self.matrix.deduct(delivery.store, *line);
        }
        if let Some(replaced) = self.uncounted.insert(order, delivery) {
            self.restore_quantities(&replaced);
        }
    }

    /// Adds stores of another volume with their reservations and deliveries. `products` names the
    /// product of each row of the matrix: first the known products in their present order, then the
    /// new products.
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
                self.counted_to_overrides.insert(column.store, counted_to);
            }
        }
        self.deduct_all(reserved_units, deliveries);
    }

    /// Keeps only the stores for which `stays` returns `true`. The other stores migrate to another
    /// volume.
    pub(crate) fn depart(&mut self, stays: impl Fn(u32) -> bool) {
        self.matrix.retain_stores(&stays);
        self.reserved.retain_stores(&stays);
        self.loans.retain_stores(&stays);
        self.uncounted.retain(|_, delivery| stays(delivery.store));
        self.counted.retain(|(_, delivery)| stays(delivery.store));
        self.counted_to_overrides.retain(|store, _| stays(*store));
    }

    /// Reserves an order's units in the store with the lowest number that has all of them.
    #[cfg(test)]
    pub(crate) fn reserve(&mut self, lines: &[Line]) -> Option<u32> {
        let store = self.first_store(lines)?;
        self.reserve_units(store, lines);
        Some(store)
    }

    /// Reserves an order's units in this store if all of them are free.
    pub(crate) fn reserve_at(&mut self, store: u32, lines: &[Line]) -> Found {
        self.sum_demands(lines);
        if !self.matrix.has_all(store, &self.demands) {
            return Found::Short;
        }
        let found = self.find_free(store, lines);
        if found == Found::Free {
            self.reserve_units(store, lines);
        }
        found
    }

    /// Returns the store with the lowest number that has all of an order's units, lent units
    /// included. `None` if no store has them.
    pub(crate) fn first_store(&mut self, lines: &[Line]) -> Option<u32> {
        self.sum_demands(lines);
        self.matrix.first_store(&self.demands)
    }

    /// Returns `true` if the store's quantity of each product in `lines` covers all reserved units
    /// of that product. A new stock may cover fewer units than were reserved before.
    pub(crate) fn has_reserved(&self, store: u32, lines: &[Line]) -> bool {
        let suffices = |line: &Line| self.available_in(line.id, store).is_some_and(|left| left >= 0);
        lines.iter().all(suffices)
    }

    fn sum_demands(&mut self, lines: &[Line]) {
        sum_into(&mut self.demands, lines);
    }

    /// Reserves units in a store. The caller has checked that the store has the units, or has taken
    /// them out of a loan.
    pub(crate) fn reserve_units(&mut self, store: u32, lines: &[Line]) {
        self.reserved.add(store, lines);
        for line in lines {
            self.matrix.deduct(store, *line);
        }
        if self.loans.any() {
            for line in lines {
                self.recall_if_scarce(store, line.id);
            }
        }
    }

    /// Releases an order's reserved units. They are available again, unless `deliver` was called
    /// for the order before.
    pub(crate) fn release(&mut self, store: u32, lines: &[Line]) {
        for line in lines {
            let was_reserved = self.reserved.take(store, *line);
            debug_assert!(was_reserved, "units are released that were never reserved");
            if was_reserved {
                self.matrix.restore(store, *line);
            }
        }
    }

    /// Records that an order's units left the store. The quantity on hand shrinks unless the
    /// quantities of the store count the delivery already. The units stay reserved until the caller
    /// has made the delivery durable and calls `release`. Returns the delivery, which the caller
    /// must store, or `None` if the quantities count it already.
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

    /// Returns `true` if this stock subtracts a delivery of the order from this store, because the
    /// store's quantities do not count the delivery.
    pub(crate) fn has_delivery(&self, order: &OrderId, store: u32) -> bool {
        self.uncounted
            .get(order)
            .is_some_and(|delivery| delivery.store == store)
    }

    /// Undoes a delivery after its write failed.
    pub(crate) fn undo_delivery(&mut self, order: &OrderId) {
        // A snapshot applied after `deliver` may have counted and removed the delivery.
        if let Some(delivery) = self.uncounted.remove(order) {
            self.restore_quantities(&delivery);
        }
    }

    /// Returns the `Arrival` of a snapshot. Call this when its upload begins.
    pub(crate) fn arrival(&self) -> Arrival {
        Arrival(self.confirmed)
    }

    /// Returns the largest plausible number of a delivery at the time `now_ms` (see `plausible`).
    pub(crate) fn largest_plausible(&self, now_ms: u64) -> u64 {
        let newest_override = self.counted_to_overrides.values().copied().max().flatten();
        let newest = self
            .head
            .newest_as_of
            .max(newest_override)
            .max(self.newest_sequence);
        plausible::largest_plausible(newest, now_ms)
    }

    /// Rejects a snapshot with a lower number (`as_of`) than an applied snapshot or the quantities
    /// of a store. Counted deliveries may no longer be stored, so they could not be subtracted from
    /// the quantities of such a snapshot. A snapshot without a number is accepted.
    pub(crate) fn accepts(&self, as_of: Option<u64>) -> Result<(), StaleSnapshot> {
        let newest_override = self.counted_to_overrides.values().copied().max().flatten();
        match (as_of, self.head.newest_as_of.max(newest_override)) {
            (Some(as_of), Some(newest)) if as_of < newest => Err(StaleSnapshot { as_of, newest }),
            _ => Ok(()),
        }
    }

    /// Makes a snapshot the current stock. Deliveries that the snapshot counts are removed. All
    /// other deliveries are subtracted from its quantities. Changes nothing if the snapshot is
    /// rejected (see `accepts`).
    pub(crate) fn apply(
        &mut self,
        matrix: StockMatrix,
        as_of: Option<u64>,
        arrival: Arrival,
    ) -> Result<Applied, StaleSnapshot> {
        self.accepts(as_of)?;
        let head_before = self.head;
        // The quantities that are being replaced count these deliveries. The new snapshot may not
        // count them, so they are checked again below.
        for (order, delivery) in std::mem::take(&mut self.counted) {
            self.subtract(order, delivery);
        }
        self.counted_to_overrides.clear();
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
            self.restore_quantities(delivery);
        }
        Ok(Applied {
            head: self.head,
            counted,
            head_before,
            _replaced: self.replace(matrix),
        })
    }

    /// Undoes a snapshot with a failed or incomplete write. `matrix` and `counted_to_overrides` are
    /// read from the rows of the volume.
    pub(crate) fn undo(
        &mut self,
        applied: Applied,
        matrix: StockMatrix,
        counted_to_overrides: BTreeMap<u32, Option<u64>>,
    ) {
        self.head = applied.head_before;
        for (order, delivery) in applied.counted {
            self.subtract(order, delivery);
        }
        drop(self.replace_quantities(matrix, counted_to_overrides));
    }

    /// Replaces the quantities by those in the rows of the volume, and keeps `head`. Returns the
    /// former matrix, so that the caller can free its memory after the lock is released.
    pub(crate) fn replace_quantities(
        &mut self,
        matrix: StockMatrix,
        counted_to_overrides: BTreeMap<u32, Option<u64>>,
    ) -> StockMatrix {
        self.counted_to_overrides = counted_to_overrides;
        let uncounted = std::mem::take(&mut self.uncounted);
        for (order, delivery) in uncounted {
            if self.counts(&delivery) {
                self.restore_quantities(&delivery);
                self.counted.push((order, delivery));
            } else {
                self.uncounted.insert(order, delivery);
            }
        }
        self.replace(matrix)
    }

    /// Returns the units, by cell, of deliveries until `arrival` that the quantities of their store
    /// do not count.
    pub(crate) fn uncounted(&self, arrival: Arrival) -> HashMap<Cell, u32> {
        let mut left = HashMap::new();
        let known = self.uncounted.values();
        for delivery in known.filter(|delivery| delivery.ordinal <= arrival.0) {
            for line in &delivery.lines {
                let cell = Cell {
                    product: line.id,
                    store: delivery.store,
                };
                *left.entry(cell).or_default() += line.quantity;
            }
        }
        left
    }

    fn restore_quantities(&mut self, delivery: &Delivery) {
        for line in &delivery.lines {
            self.matrix.restore(delivery.store, *line);
        }
    }

    /// Replaces the quantities on hand and keeps all deductions. Returns the former matrix, so that
    /// the caller can free its memory after the lock is released.
    fn replace(&mut self, matrix: StockMatrix) -> StockMatrix {
        let (before, has_deductions) = self.matrix.replace(matrix);
        if has_deductions {
            self.recall_scarce();
            return before;
        }
        self.reserved.each(|store, line| self.matrix.deduct(store, line));
        for delivery in self.uncounted.values() {
            delivery
                .lines
                .iter()
                .for_each(|line| self.matrix.deduct(delivery.store, *line));
        }
        self.recall_scarce();
        before
    }

    /// Starts recording changed cells for the copies that other nodes keep. Returns the present
    /// moment.
    pub(crate) fn follow(&mut self) -> StockMoment {
        let journal = self.matrix.journal();
        journal.follow();
        journal.now()
    }

    /// Stops recording changed cells.
    pub(crate) fn unfollow(&mut self) {
        self.matrix.journal().unfollow();
    }

    /// Returns the present moment: the generation, and the number of changes recorded so far. The
    /// generation grows when the list of products and stores changes, when all quantities are
    /// replaced, and when the recording starts.
    pub(crate) fn moment(&mut self) -> StockMoment {
        self.matrix.journal().now()
    }

    /// Returns the cells that changed after a moment, with their present quantities. `None` if not
    /// all changes since that moment are recorded.
    pub(crate) fn changes_since(&mut self, then: StockMoment) -> Option<Vec<ChangedCell>> {
        let cells = self.matrix.journal().since(then)?;
        let changed = |at| {
            let available = self.matrix.available_at(at)?;
            Some(ChangedCell { at, available })
        };
        Some(cells.into_iter().filter_map(changed).collect())
    }

    /// Returns the available quantity of a product in a store. `None` if there is no such cell.
    pub(crate) fn available_in(&self, product: u32, store: u32) -> Option<i32> {
        self.matrix.available_in(product, store)
    }

    /// Returns the product of each row of the matrix.
    pub(crate) fn products(&self) -> Vec<u32> {
        self.matrix.products()
    }

    /// Returns the available quantities of whole rows (see `StockMatrix::available_rows`).
    pub(crate) fn available_rows(&self, first: usize, cells: usize) -> Vec<i32> {
        self.matrix.available_rows(first, cells)
    }

    /// Returns the layout of the matrix: the products and stores, and the cell of each pair.
    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(self.matrix.layout())
    }

    /// Returns `true` if the stock has a row for the product, with a cell in each store.
    pub(crate) fn has_product(&self, product: u32) -> bool {
        self.matrix.has_product(product)
    }

    /// Returns `true` if the stock has each of these cells.
    pub(crate) fn has_all(&self, mut cells: impl Iterator<Item = Cell>) -> bool {
        cells.all(|cell| self.matrix.has(cell.product, cell.store))
    }

    /// Changes the quantities on hand of some cells. Returns `false` and changes nothing if any of
    /// the cells does not exist.
    pub(crate) fn step(&mut self, steps: &[CellStep]) -> bool {
        let has_all = self.has_all(steps.iter().map(|step| step.cell));
        if has_all {
            for step in steps {
                self.matrix.step(step.cell.product, step.cell.store, step.by);
                self.recall_if_scarce(step.cell.store, step.cell.product);
            }
        }
        has_all
    }

    /// Returns the facts about the applied snapshots.
    pub(crate) fn head(&self) -> StockHead {
        self.head
    }

    /// Returns the levels of a product in every store, stores ascending. The list is empty if the
    /// stock does not have the product.
    pub(crate) fn product(&self, product: u32) -> Vec<Level> {
        let cells = self.matrix.by_store(product).into_iter();
        cells
            .map(|(store, available)| self.level(Cell { product, store }, available))
            .collect()
    }

    /// Returns the levels of every product in a store, products ascending. `None` if the stock has
    /// no such store.
    pub(crate) fn store(&self, store: u32) -> Option<Vec<Level>> {
        let cells = self.matrix.by_product(store)?.into_iter();
        let levels = cells.map(|(product, available)| self.level(Cell { product, store }, available));
        Some(levels.collect())
    }

    fn level(&self, cell: Cell, available: i32) -> Level {
        Level {
            cell,
            available,
            reserved: self.reserved.of(cell.store, cell.product),
        }
    }

    /// Returns the stores, ascending.
    pub(crate) fn stores(&self) -> &[u32] {
        self.matrix.stores()
    }
}

/// Returns the sum of the quantities of each product. A product may be on several lines.
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

/// A product in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cell {
    pub(crate) product: u32,
    pub(crate) store: u32,
}

/// A change of the quantity on hand of one cell, by a positive or negative number of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CellStep {
    pub(crate) cell: Cell,
    pub(crate) by: i32,
}

/// A cell that changed: its index in the matrix, and its available quantity now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangedCell {
    pub(crate) at: u32,
    pub(crate) available: i32,
}

/// The quantities of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) cell: Cell,
    /// Available units, including units that are lent to other volumes. Negative if the current
    /// snapshot has fewer units than are reserved or were delivered since.
    pub(crate) available: i32,
    pub(crate) reserved: u32,
}

#[cfg(test)]
mod tests;
