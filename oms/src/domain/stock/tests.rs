//! Tests of each rule of the stock, and of all rules together. Random histories are compared with a
//! model of the warehouse.

use proptest::prelude::*;

use super::*;
use crate::domain::stock_snapshot::StockSnapshot;

fn id(number: u32) -> OrderId {
    OrderId::parse(&number.to_string()).unwrap()
}

fn matrix(cells: &[[u32; 3]]) -> StockMatrix {
    let mut snapshot = StockSnapshot::default();
    cells.iter().for_each(|cell| snapshot.set(*cell).unwrap());
    snapshot.into_matrix(&Arc::default())
}

fn line(id: u32, quantity: u32) -> Line {
    Line { id, quantity }
}

fn level(stock: &Stock, product: u32, store: u32) -> Level {
    let levels = stock.product(product);
    levels
        .into_iter()
        .find(|level| level.cell.store == store)
        .unwrap()
}

fn available(stock: &Stock, product: u32, store: u32) -> i32 {
    level(stock, product, store).available
}

fn stocked(cells: &[[u32; 3]], as_of: Option<u64>) -> Stock {
    let mut stock = Stock::default();
    let arrival = stock.arrival();
    stock.apply(matrix(cells), as_of, arrival).unwrap();
    stock
}

#[test]
fn the_last_unit_is_reserved_once_and_released_once() {
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
fn a_snapshot_never_makes_reserved_units_available() {
    let mut stock = stocked(&[[7, 1, 2]], None);
    assert_eq!(stock.reserve(&[line(7, 2)]), Some(1));
    let arrival = stock.arrival();
    stock.apply(matrix(&[[7, 1, 2]]), Some(5), arrival).unwrap();
    assert_eq!(stock.reserve(&[line(7, 1)]), None);
}

#[test]
fn a_delivery_is_subtracted_exactly_once() {
    for (sequence, as_of, left) in [(10, 9, 3), (10, 10, 5), (10, 11, 5)] {
        // The delivery is confirmed before the snapshot is applied.
        let mut before = stocked(&[[7, 1, 5]], Some(1));
        before.reserve(&[line(7, 2)]);
        assert!(before.deliver(&id(1), 1, &[line(7, 2)], Some(sequence)).is_some());
        before.release(1, &[line(7, 2)]);
        let arrival = before.arrival();
        let applied = before.apply(matrix(&[[7, 1, 5]]), Some(as_of), arrival).unwrap();
        assert_eq!(available(&before, 7, 1), left, "before, as of {as_of}");
        assert_eq!(applied.counted.len(), usize::from(as_of >= sequence));
        // The delivery is confirmed after the snapshot is applied.
        let mut after = stocked(&[[7, 1, 5]], Some(as_of));
        after.reserve(&[line(7, 2)]);
        let kept = after.deliver(&id(1), 1, &[line(7, 2)], Some(sequence)).is_some();
        after.release(1, &[line(7, 2)]);
        assert_eq!(kept, as_of < sequence);
        assert_eq!(available(&after, 7, 1), left, "after, as of {as_of}");
    }
}

#[test]
fn a_snapshot_without_as_of_counts_deliveries_confirmed_before_its_upload() {
    let mut stock = stocked(&[[7, 1, 5]], None);
    stock.reserve(&[line(7, 1)]);
    stock.reserve(&[line(7, 1)]);
    stock.deliver(&id(1), 1, &[line(7, 1)], Some(1));
    stock.release(1, &[line(7, 1)]);
    let arrival = stock.arrival();
    stock.deliver(&id(2), 1, &[line(7, 1)], None);
    stock.release(1, &[line(7, 1)]);
    stock.apply(matrix(&[[7, 1, 4]]), None, arrival).unwrap();
    assert_eq!(available(&stock, 7, 1), 3);
}

#[test]
fn a_changed_quantity_counts_only_the_deliveries_before_its_arrival() {
    let mut stock = stocked(&[[7, 1, 5]], None);
    let units = |stock: &Stock, arrival| stock.uncounted(arrival).into_values().sum::<u32>();
    for number in 1..=2 {
        stock.reserve(&[line(7, 1)]);
        let arrival = stock.arrival();
        stock.deliver(&id(number), 1, &[line(7, 1)], None);
        stock.release(1, &[line(7, 1)]);
        let until_then = (units(&stock, arrival), units(&stock, stock.arrival()));
        assert_eq!(until_then, (number - 1, number));
    }
    // A repeated delivery of one order is subtracted once.
    stock.deliver(&id(2), 1, &[line(7, 1)], None);
    assert_eq!(available(&stock, 7, 1), 3);
}

#[test]
fn an_undone_delivery_changes_nothing() {
    for counted_to in [None, Some(1), Some(9)] {
        let mut stock = stocked(&[[7, 1, 5]], counted_to);
        stock.reserve(&[line(7, 2)]);
        stock.deliver(&id(1), 1, &[line(7, 2)], Some(5));
        stock.undo_delivery(&id(1));
        let shelf = level(&stock, 7, 1);
        assert_eq!(
            (shelf.available, shelf.reserved),
            (3, 2),
            "counted to {counted_to:?}"
        );
        assert!(stock.uncounted(Arrival(u64::MAX)).is_empty());
    }
}

#[test]
fn each_store_uses_the_counted_delivery_of_its_own_snapshot() {
    let mut stock = stocked(&[[7, 1, 5]], Some(4));
    let column = Column {
        store: 2,
        quantities: vec![5],
        counted_to: CountedTo::Delivery(Some(9)),
    };
    let left = Delivery {
        store: 2,
        lines: [line(7, 1)].into(),
        sequence: Some(8),
        ordinal: 0,
    };
    let deliveries = vec![(id(3), left)];
    let head = stock.head();
    stock.arrive(&[7], &[column], head, ReservedUnits::default(), deliveries);
    assert_eq!(available(&stock, 7, 2), 5, "the delivery is counted");
    for store in [1, 2] {
        let lines = [line(7, 2)];
        assert_eq!(stock.reserve_at(store, &lines), Found::Free);
        let left = stock.deliver(&id(store), store, &lines, Some(6)).is_some();
        stock.release(store, &lines);
        assert_eq!(left, store == 1, "store {store}");
    }
    assert_eq!((available(&stock, 7, 1), available(&stock, 7, 2)), (3, 5));
    // A snapshot that counts fewer deliveries than the quantities of store 2 would make delivered
    // units available again.
    let arrival = stock.arrival();
    let of_all = || matrix(&[[7, 1, 5], [7, 2, 6]]);
    let stale = stock.apply(of_all(), Some(8), arrival).unwrap_err();
    assert_eq!((stale.as_of, stale.newest), (8, 9));
    assert_eq!((available(&stock, 7, 1), available(&stock, 7, 2)), (3, 5));
    let applied = stock.apply(of_all(), Some(9), arrival).unwrap();
    assert_eq!((available(&stock, 7, 1), available(&stock, 7, 2)), (5, 6));
    let as_before = (matrix(&[[7, 1, 5], [7, 2, 5]]), BTreeMap::from([(2, Some(9))]));
    stock.undo(applied, as_before.0, as_before.1);
    assert_eq!((available(&stock, 7, 1), available(&stock, 7, 2)), (3, 5));
}

#[test]
fn an_older_snapshot_is_rejected_and_changes_nothing() {
    let mut stock = stocked(&[[7, 1, 5]], Some(20));
    let arrival = stock.arrival();
    let stale = stock.apply(matrix(&[[7, 1, 9]]), Some(19), arrival).unwrap_err();
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
fn an_undone_snapshot_changes_nothing() {
    let mut stock = stocked(&[[7, 1, 5]], Some(1));
    stock.reserve(&[line(7, 1)]);
    stock.reserve(&[line(7, 1)]);
    stock.deliver(&id(1), 1, &[line(7, 1)], Some(2));
    stock.release(1, &[line(7, 1)]);
    let arrival = stock.arrival();
    let applied = stock.apply(matrix(&[[7, 1, 100]]), Some(2), arrival).unwrap();
    assert_eq!(available(&stock, 7, 1), 99);
    stock.undo(applied, matrix(&[[7, 1, 5]]), BTreeMap::new());
    assert_eq!(available(&stock, 7, 1), 3);
    assert_eq!(stock.head().counted_to, Some(1));
}

/// One step in the history of a shop and a warehouse.
#[derive(Clone, Debug)]
enum Step {
    Order {
        first: u32,
        second: u32,
        quantity: u32,
    },
    /// The warehouse delivers one of the open orders: the one at this index modulo their number.
    WarehouseDelivers(usize),
    /// The confirmation of one of the deliveries arrives: the one at this index modulo their
    /// number. Confirmations arrive in any order.
    Confirm(usize),
    Release(usize),
    /// The warehouse writes a snapshot. `Send` sends the newest snapshot that is not sent yet.
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
                let (order, store, lines, sequence) = self.delivered.swap_remove(at % self.delivered.len());
                self.stock.deliver(&order, store, &lines, Some(sequence));
                self.stock.release(store, &lines);
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
                    if self.stock.apply(matrix(&cells), Some(as_of), arrival).is_ok() {
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

    /// Builds the stock again from the rows that a volume would have stored, and compares both
    /// stocks.
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
                nonce: None,
            })
            .collect();
        let deliveries = self.stock.uncounted.clone().into_iter().collect();
        let again = Stock::new(
            matrix(&self.in_force),
            Counting {
                head: self.stock.head(),
                overrides: BTreeMap::new(),
            },
            &reservations,
            deliveries,
        );
        for product in 1..4 {
            assert_eq!(again.product(product), self.stock.product(product));
        }
        self.stock = again;
    }

    /// Confirms every delivery and applies a snapshot. Then checks that the stock has the units
    /// that the warehouse has.
    fn settle(&mut self) {
        while !self.delivered.is_empty() {
            self.take(Step::Confirm(0));
        }
        self.take(Step::Write);
        self.take(Step::Send);
        for ((store, product), real) in self.real.clone() {
            let shelf = level(&self.stock, product, store);
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
