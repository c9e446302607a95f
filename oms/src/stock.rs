//! What is in the stores, what of it is promised, and what has left since the last snapshot.
//!
//! Available = on hand - reserved, and on hand = last snapshot - deliveries that it does not count. The
//! warehouse numbers its deliveries; a snapshot says up to which number it counts them (`X-Stock-As-Of`). So a
//! delivery is subtracted exactly once: by the snapshot if its number is not above the snapshot's, by us if it
//! is. A snapshot that does not say counts the deliveries that were confirmed before it began to arrive; a
//! delivery without a number is counted by the first snapshot that begins to arrive after it.
//!
//! Invariants: units are set aside only where every product of an order is available, so reserved plus not yet
//! counted deliveries never exceed what a snapshot showed, and nothing is sold twice; a snapshot never touches
//! reservations. Memory mirrors the volume: callers change both under one lock, in one order.
//! Absent on purpose: disk, clock and locks (`store`, `transactor`).

use std::collections::HashMap;

use crate::order::{Line, OrderId};
use crate::sheet::Shelves;

/// Units of one store set aside for one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// Whose they are.
    pub order: OrderId,
    /// Where they are.
    pub store: u32,
    /// What they are.
    pub lines: Box<[Line]>,
}

/// Units that left a store and that the last snapshot does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) store: u32,
    pub(crate) lines: Box<[Line]>,
    /// Its number in the warehouse's ledger, if the warehouse says it.
    pub(crate) sequence: Option<u64>,
    /// The how-manieth confirmation it was in this process; decides for snapshots that do not say what they count.
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
    /// What is known where stores of two volumes come together: a delivery that only one of two snapshots counts
    /// is subtracted, once too often for some stores until the next snapshot, and never once too seldom.
    pub(crate) fn joined_with(self, other: &StockHead) -> StockHead {
        if self.snapshots == 0 || other.snapshots == 0 {
            return if self.snapshots == 0 { *other } else { self };
        }
        StockHead {
            newest_as_of: self.newest_as_of.max(other.newest_as_of),
            counted_to: self.counted_to.min(other.counted_to),
            snapshots: self.snapshots.max(other.snapshots),
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
}

/// The stock of a volume.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    shelves: Shelves,
    /// Units promised by store and product.
    reserved: HashMap<(u32, u32), u32>,
    uncounted: HashMap<OrderId, Delivery>,
    head: StockHead,
    confirmed: u64,
    demands: Vec<Line>,
}

impl Stock {
    /// The stock that the volume's rows make.
    pub(crate) fn new(
        shelves: Shelves,
        head: StockHead,
        reservations: &[Reservation],
        deliveries: Vec<(OrderId, Delivery)>,
    ) -> Stock {
        let mut stock = Stock {
            shelves,
            head,
            ..Stock::default()
        };
        for reservation in reservations {
            stock.promise(reservation.store, &reservation.lines);
        }
        for (order, mut delivery) in deliveries {
            stock.confirmed += 1;
            delivery.ordinal = stock.confirmed;
            delivery
                .lines
                .iter()
                .for_each(|line| stock.shelves.take(delivery.store, *line));
            stock.uncounted.insert(order, delivery);
        }
        stock
    }

    /// Sets an order's units aside in the first store, ascending, that has them all.
    pub(crate) fn reserve(&mut self, lines: &[Line]) -> Option<u32> {
        let store = self.first_store(lines)?;
        self.promise(store, lines);
        Some(store)
    }

    /// Sets an order's units aside in this store, if it has them all.
    pub(crate) fn reserve_at(&mut self, store: u32, lines: &[Line]) -> bool {
        self.sum_demands(lines);
        let has_all = self.shelves.has_all(store, &self.demands);
        if has_all {
            self.promise(store, lines);
        }
        has_all
    }

    /// The first store, ascending, that has all of an order's units.
    pub(crate) fn first_store(&mut self, lines: &[Line]) -> Option<u32> {
        self.sum_demands(lines);
        self.shelves.first_store(&self.demands)
    }

    /// The same product may stand on several lines: the store must have their sum.
    fn sum_demands(&mut self, lines: &[Line]) {
        self.demands.clear();
        for line in lines {
            match self.demands.iter_mut().find(|demand| demand.id == line.id) {
                Some(demand) => demand.quantity += line.quantity,
                None => self.demands.push(*line),
            }
        }
    }

    fn promise(&mut self, store: u32, lines: &[Line]) {
        for line in lines {
            *self.reserved.entry((store, line.id)).or_default() += line.quantity;
            self.shelves.take(store, *line);
        }
    }

    /// Gives an order's units back.
    pub(crate) fn release(&mut self, store: u32, lines: &[Line]) {
        for line in lines {
            let held = self.reserved.get_mut(&(store, line.id));
            debug_assert!(held.is_some(), "units are released that were never reserved");
            let Some(held) = held else { continue };
            *held = held.saturating_sub(line.quantity);
            if *held == 0 {
                self.reserved.remove(&(store, line.id));
            }
            self.shelves.give(store, *line);
        }
    }

    /// An order's units left the store: its reservation ends, and what is on hand shrinks unless the snapshot in
    /// force counts the delivery already. Returns the delivery if it must be remembered.
    pub(crate) fn deliver(
        &mut self,
        order: &OrderId,
        store: u32,
        lines: &[Line],
        sequence: Option<u64>,
    ) -> Option<&Delivery> {
        self.release(store, lines);
        self.confirmed += 1;
        if let (Some(sequence), Some(counted_to)) = (sequence, self.head.counted_to)
            && sequence <= counted_to
        {
            return None;
        }
        lines.iter().for_each(|line| self.shelves.take(store, *line));
        let delivery = Delivery {
            store,
            lines: lines.into(),
            sequence,
            ordinal: self.confirmed,
        };
        Some(
            self.uncounted
                .entry(order.clone())
                .insert_entry(delivery)
                .into_mut(),
        )
    }

    /// Takes a delivery back that could not be written: the units are promised to the order again.
    pub(crate) fn undo_delivery(&mut self, order: &OrderId, store: u32, lines: &[Line]) {
        // A snapshot that came in between may count the delivery already, and then has forgotten it.
        if self.uncounted.remove(order).is_some() {
            lines.iter().for_each(|line| self.shelves.give(store, *line));
        }
        self.promise(store, lines);
    }

    /// Remembers when a snapshot began to arrive.
    pub(crate) fn arrival(&self) -> Arrival {
        Arrival(self.confirmed)
    }

    /// Says whether a snapshot of that age would be taken.
    pub(crate) fn accepts(&self, as_of: Option<u64>) -> Result<(), StaleSnapshot> {
        match (as_of, self.head.newest_as_of) {
            (Some(as_of), Some(newest)) if as_of < newest => Err(StaleSnapshot { as_of, newest }),
            _ => Ok(()),
        }
    }

    /// Puts a snapshot in force: what it counts is forgotten here, all else is subtracted from it.
    pub(crate) fn apply(
        &mut self,
        shelves: Shelves,
        as_of: Option<u64>,
        arrival: Arrival,
    ) -> Result<Applied, StaleSnapshot> {
        self.accepts(as_of)?;
        let head_before = self.head;
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
        self.replace(shelves);
        Ok(Applied {
            head: self.head,
            counted,
            head_before,
        })
    }

    /// Takes a snapshot back that could not be written: `shelves` are those of the snapshot before.
    pub(crate) fn undo(&mut self, applied: Applied, shelves: Shelves) {
        self.head = applied.head_before;
        self.uncounted.extend(applied.counted);
        self.replace(shelves);
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

    /// Puts other quantities in place of those of the snapshot in force; all that is promised or left since stays.
    pub(crate) fn replace(&mut self, shelves: Shelves) {
        self.shelves = shelves;
        for (&(store, id), &quantity) in &self.reserved {
            self.shelves.take(store, Line { id, quantity });
        }
        for delivery in self.uncounted.values() {
            delivery
                .lines
                .iter()
                .for_each(|line| self.shelves.take(delivery.store, *line));
        }
    }

    /// True if the snapshot in force has a cell for each of these products and stores.
    pub(crate) fn has_all(&self, mut cells: impl Iterator<Item = (u32, u32)>) -> bool {
        cells.all(|(product, store)| self.shelves.has(product, store))
    }

    /// Changes some cells of the snapshot in force; false, and nothing is changed, if there is one that it does not have.
    pub(crate) fn step(&mut self, steps: &[CellStep]) -> bool {
        let has_all = self.has_all(steps.iter().map(|step| (step.product, step.store)));
        if has_all {
            for step in steps {
                self.shelves.step(step.product, step.store, step.by);
            }
        }
        has_all
    }

    /// What is known of the snapshot in force.
    pub(crate) fn head(&self) -> StockHead {
        self.head
    }

    /// What is available of a product by store, ascending, and what is reserved of it there.
    pub(crate) fn product(&self, product: u32) -> Vec<StoreShelf> {
        let shelf = |(store, available)| {
            let reserved = self.reserved.get(&(store, product)).copied().unwrap_or(0);
            StoreShelf {
                store,
                available,
                reserved,
            }
        };
        self.shelves.by_store(product).into_iter().map(shelf).collect()
    }

    /// Every product of a store; `None` if the stock has no such store.
    pub(crate) fn store(&self, store: u32) -> Option<Vec<ProductShelf>> {
        let shelf = |(product, available)| {
            let reserved = self.reserved.get(&(store, product)).copied().unwrap_or(0);
            ProductShelf {
                product,
                available,
                reserved,
            }
        };
        Some(self.shelves.by_product(store)?.into_iter().map(shelf).collect())
    }

    /// The stores of the snapshot in force, ascending.
    pub(crate) fn stores(&self) -> &[u32] {
        self.shelves.stores()
    }
}

/// A change of what is on hand of a product in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CellStep {
    pub(crate) product: u32,
    pub(crate) store: u32,
    pub(crate) by: i32,
}

/// What a store has of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProductShelf {
    pub(crate) product: u32,
    /// May be negative, as in `StoreShelf`.
    pub(crate) available: i32,
    pub(crate) reserved: u32,
}

/// One product in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreShelf {
    pub(crate) store: u32,
    /// May be negative where the last snapshot has less than is promised.
    pub(crate) available: i32,
    pub(crate) reserved: u32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sheet::Sheet;

    fn id(number: u32) -> OrderId {
        OrderId::parse(&number.to_string()).unwrap()
    }

    fn shelves(cells: &[[u32; 3]]) -> Shelves {
        let mut sheet = Sheet::default();
        cells.iter().for_each(|cell| sheet.set(*cell).unwrap());
        sheet.shelves()
    }

    fn line(id: u32, quantity: u32) -> Line {
        Line { id, quantity }
    }

    fn available(stock: &Stock, product: u32, store: u32) -> i32 {
        stock
            .product(product)
            .iter()
            .find(|shelf| shelf.store == store)
            .unwrap()
            .available
    }

    fn stocked(cells: &[[u32; 3]], as_of: Option<u64>) -> Stock {
        let mut stock = Stock::default();
        let arrival = stock.arrival();
        stock.apply(shelves(cells), as_of, arrival).unwrap();
        stock
    }

    #[test]
    fn the_last_unit_is_sold_once_and_given_back_once() {
        let mut stock = stocked(&[[7, 1, 1]], None);
        assert_eq!(stock.reserve(&[line(7, 1)]), Some(1));
        assert_eq!(stock.reserve(&[line(7, 1)]), None);
        stock.release(1, &[line(7, 1)]);
        assert_eq!(stock.reserve(&[line(7, 1)]), Some(1));
    }

    #[test]
    fn a_product_on_two_lines_needs_the_sum_of_both() {
        let mut stock = stocked(&[[7, 1, 3], [7, 2, 4]], None);
        assert_eq!(stock.reserve(&[line(7, 2), line(7, 2)]), Some(2));
        assert_eq!(available(&stock, 7, 2), 0);
    }

    #[test]
    fn a_snapshot_never_resurrects_reserved_units() {
        let mut stock = stocked(&[[7, 1, 2]], None);
        assert_eq!(stock.reserve(&[line(7, 2)]), Some(1));
        let arrival = stock.arrival();
        stock.apply(shelves(&[[7, 1, 2]]), Some(5), arrival).unwrap();
        assert_eq!(stock.reserve(&[line(7, 1)]), None);
    }

    #[test]
    fn a_delivery_is_subtracted_by_the_snapshot_or_by_us_but_never_twice() {
        for (sequence, as_of, left) in [(10, 9, 3), (10, 10, 5), (10, 11, 5)] {
            // Confirmed before the snapshot is applied.
            let mut before = stocked(&[[7, 1, 5]], Some(1));
            before.reserve(&[line(7, 2)]);
            assert!(before.deliver(&id(1), 1, &[line(7, 2)], Some(sequence)).is_some());
            let arrival = before.arrival();
            let applied = before.apply(shelves(&[[7, 1, 5]]), Some(as_of), arrival).unwrap();
            assert_eq!(available(&before, 7, 1), left, "before, as of {as_of}");
            assert_eq!(applied.counted.len(), usize::from(as_of >= sequence));
            // Confirmed after it.
            let mut after = stocked(&[[7, 1, 5]], Some(as_of));
            after.reserve(&[line(7, 2)]);
            let kept = after.deliver(&id(1), 1, &[line(7, 2)], Some(sequence)).is_some();
            assert_eq!(kept, as_of < sequence);
            assert_eq!(available(&after, 7, 1), left, "after, as of {as_of}");
        }
    }

    #[test]
    fn a_snapshot_without_as_of_counts_what_was_confirmed_before_it_arrived() {
        let mut stock = stocked(&[[7, 1, 5]], None);
        stock.reserve(&[line(7, 1)]);
        stock.reserve(&[line(7, 1)]);
        stock.deliver(&id(1), 1, &[line(7, 1)], Some(1));
        let arrival = stock.arrival();
        stock.deliver(&id(2), 1, &[line(7, 1)], None);
        stock.apply(shelves(&[[7, 1, 4]]), None, arrival).unwrap();
        assert_eq!(available(&stock, 7, 1), 3);
    }

    #[test]
    fn a_delivery_that_could_not_be_written_leaves_everything_as_it_was() {
        for counted_to in [None, Some(1), Some(9)] {
            let mut stock = stocked(&[[7, 1, 5]], counted_to);
            stock.reserve(&[line(7, 2)]);
            stock.deliver(&id(1), 1, &[line(7, 2)], Some(5));
            stock.undo_delivery(&id(1), 1, &[line(7, 2)]);
            let shelf = stock.product(7)[0];
            assert_eq!(
                (shelf.available, shelf.reserved),
                (3, 2),
                "counted to {counted_to:?}"
            );
            assert!(stock.uncounted().is_empty());
        }
    }

    #[test]
    fn an_older_snapshot_is_refused_and_changes_nothing() {
        let mut stock = stocked(&[[7, 1, 5]], Some(20));
        let arrival = stock.arrival();
        let stale = stock.apply(shelves(&[[7, 1, 9]]), Some(19), arrival).unwrap_err();
        assert_eq!(
            stale,
            StaleSnapshot {
                as_of: 19,
                newest: 20
            }
        );
        assert_eq!(available(&stock, 7, 1), 5);
        assert!(stock.accepts(Some(20)).is_ok());
    }

    #[test]
    fn a_snapshot_that_could_not_be_written_is_taken_back_whole() {
        let mut stock = stocked(&[[7, 1, 5]], Some(1));
        stock.reserve(&[line(7, 1)]);
        stock.reserve(&[line(7, 1)]);
        stock.deliver(&id(1), 1, &[line(7, 1)], Some(2));
        let arrival = stock.arrival();
        let applied = stock.apply(shelves(&[[7, 1, 100]]), Some(2), arrival).unwrap();
        assert_eq!(available(&stock, 7, 1), 99);
        stock.undo(applied, shelves(&[[7, 1, 5]]));
        assert_eq!(available(&stock, 7, 1), 3);
        assert_eq!(stock.head().counted_to, Some(1));
    }

    /// One step of a shop beside a warehouse.
    #[derive(Clone, Debug)]
    enum Step {
        Order {
            first: u32,
            second: u32,
            quantity: u32,
        },
        /// The warehouse delivers the open order at this place.
        WarehouseDelivers(usize),
        /// The answer to a delivery reaches us, in any order.
        Confirm(usize),
        Release(usize),
        /// The warehouse writes a snapshot down; it is sent later.
        Write,
        Send,
        Restock {
            product: u32,
            store: u32,
            quantity: u32,
        },
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1..4u32, 1..4u32, 1..3u32)
                .prop_map(|(first, second, quantity)| Step::Order { first, second, quantity }),
            4 => any::<usize>().prop_map(Step::WarehouseDelivers),
            4 => any::<usize>().prop_map(Step::Confirm),
            1 => any::<usize>().prop_map(Step::Release),
            2 => Just(Step::Write),
            2 => Just(Step::Send),
            1 => (1..4u32, 1..3u32, 1..4u32)
                .prop_map(|(product, store, quantity)| Step::Restock { product, store, quantity }),
            1 => Just(Step::Restart),
        ]
    }

    struct World {
        stock: Stock,
        in_force: Vec<[u32; 3]>,
        real: HashMap<(u32, u32), u32>,
        sequence: u64,
        open: Vec<(OrderId, u32, Vec<Line>)>,
        delivered: Vec<(OrderId, u32, Vec<Line>, u64)>,
        written: Vec<(Vec<[u32; 3]>, u64)>,
        orders: u32,
    }

    impl World {
        fn new() -> World {
            let cells: Vec<[u32; 3]> = (1..4)
                .flat_map(|product| (1..3).map(move |store| [product, store, 4]))
                .collect();
            let real = cells
                .iter()
                .map(|[product, store, quantity]| ((*store, *product), *quantity))
                .collect();
            World {
                stock: stocked(&cells, Some(0)),
                in_force: cells,
                real,
                sequence: 0,
                open: Vec::new(),
                delivered: Vec::new(),
                written: Vec::new(),
                orders: 0,
            }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Order {
                    first,
                    second,
                    quantity,
                } => {
                    let lines = vec![line(first, quantity), line(second, quantity)];
                    self.orders += 1;
                    if let Some(store) = self.stock.reserve(&lines) {
                        self.open.push((id(self.orders), store, lines));
                    }
                }
                Step::WarehouseDelivers(at) if !self.open.is_empty() => {
                    let (order, store, lines) = self.open.swap_remove(at % self.open.len());
                    for line in &lines {
                        let real = self.real.get_mut(&(store, line.id)).unwrap();
                        assert!(
                            *real >= line.quantity,
                            "order {order} was oversold at store {store}"
                        );
                        *real -= line.quantity;
                    }
                    self.sequence += 1;
                    self.delivered.push((order, store, lines, self.sequence));
                }
                Step::Confirm(at) if !self.delivered.is_empty() => {
                    let (order, store, lines, sequence) =
                        self.delivered.swap_remove(at % self.delivered.len());
                    self.stock.deliver(&order, store, &lines, Some(sequence));
                }
                Step::Release(at) if !self.open.is_empty() => {
                    let (_, store, lines) = self.open.swap_remove(at % self.open.len());
                    self.stock.release(store, &lines);
                }
                Step::Write => {
                    let cells = self
                        .real
                        .iter()
                        .map(|((store, id), quantity)| [*id, *store, *quantity])
                        .collect();
                    self.written.push((cells, self.sequence));
                }
                Step::Send => {
                    if let Some((cells, as_of)) = self.written.pop() {
                        let arrival = self.stock.arrival();
                        if self.stock.apply(shelves(&cells), Some(as_of), arrival).is_ok() {
                            self.in_force = cells;
                        }
                    }
                }
                Step::Restock {
                    product,
                    store,
                    quantity,
                } => {
                    *self.real.get_mut(&(store, product)).unwrap() += quantity;
                }
                Step::Restart => self.restart(),
                _ => {}
            }
        }

        /// The stock begins anew from what the volume would hold.
        fn restart(&mut self) {
            let undelivered = self
                .open
                .iter()
                .map(|(order, store, lines)| (order, *store, lines));
            let unconfirmed = self
                .delivered
                .iter()
                .map(|(order, store, lines, _)| (order, *store, lines));
            let reservations: Vec<Reservation> = undelivered
                .chain(unconfirmed)
                .map(|(order, store, lines)| Reservation {
                    order: order.clone(),
                    store,
                    lines: lines.clone().into(),
                })
                .collect();
            let deliveries = self.stock.uncounted.clone().into_iter().collect();
            let again = Stock::new(
                shelves(&self.in_force),
                self.stock.head(),
                &reservations,
                deliveries,
            );
            for product in 1..4 {
                assert_eq!(again.product(product), self.stock.product(product));
            }
            self.stock = again;
        }

        /// When nothing is under way, what we believe is what the warehouse has.
        fn settle(&mut self) {
            while !self.delivered.is_empty() {
                self.take(Step::Confirm(0));
            }
            self.take(Step::Write);
            self.take(Step::Send);
            for ((store, product), real) in self.real.clone() {
                let shelf = self
                    .stock
                    .product(product)
                    .into_iter()
                    .find(|shelf| shelf.store == store)
                    .unwrap();
                assert_eq!(
                    shelf.available + shelf.reserved as i32,
                    real as i32,
                    "product {product} store {store}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn nothing_is_oversold_in_any_history_of_orders_deliveries_and_snapshots(
            steps in prop::collection::vec(step(), 0..80),
        ) {
            let mut world = World::new();
            for step in steps {
                world.take(step);
            }
            world.settle();
        }
    }
}
