//! Tests of snapshots and of the matrices made from them, against a plain search.

use super::*;
use crate::domain::order::Line;

fn matrix(snapshot: &StockSnapshot) -> StockMatrix {
    snapshot.clone().into_matrix(&Arc::default())
}

#[test]
fn first_store_agrees_with_a_plain_search() {
    // A generator with a fixed seed, so that every run tests the same cases.
    let mut seed = 42u64;
    let mut next = |below: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((seed >> 33) as u32) % below
    };
    for stores in [1, 5, 16, 17, 33] {
        let mut snapshot = StockSnapshot::default();
        for product in (1..=40).rev() {
            for store in 1..=stores {
                snapshot.set([product * 7, store * 3, next(4)]).unwrap();
            }
        }
        let matrix = matrix(&snapshot);
        for _ in 0..500 {
            let count = next(6) + 1;
            let mut demands: Vec<Line> = Vec::new();
            for _ in 0..count {
                let id = (next(40) + 1) * 7;
                if demands.iter().all(|line| line.id != id) {
                    demands.push(Line {
                        id,
                        quantity: next(3) + 1,
                    });
                }
            }
            let plain = (1..=stores).map(|store| store * 3).find(|store| {
                demands
                    .iter()
                    .all(|line| snapshot.quantity(line.id, *store) >= line.quantity as i32)
            });
            assert_eq!(
                matrix.first_store(&demands),
                plain,
                "{stores} stores, {demands:?}"
            );
        }
    }
}

#[test]
fn a_product_or_store_without_a_line_has_no_units() {
    let mut snapshot = StockSnapshot::default();
    snapshot.set([5, 2, 3]).unwrap();
    let matrix = matrix(&snapshot);
    assert_eq!(matrix.first_store(&[Line { id: 6, quantity: 1 }]), None);
    assert_eq!(matrix.first_store(&[Line { id: 5, quantity: 4 }]), None);
    assert_eq!(matrix.first_store(&[Line { id: 5, quantity: 3 }]), Some(2));
    assert_eq!(
        StockMatrix::default().first_store(&[Line { id: 5, quantity: 1 }]),
        None
    );
}

#[test]
fn numbers_out_of_range_are_rejected_by_field() {
    let mut snapshot = StockSnapshot::default();
    for (fields, field) in [
        ([0, 1, 1], 0),
        ([PRODUCT_MAX + 1, 1, 1], 0),
        ([1, 0, 1], 1),
        ([1, STORE_MAX + 1, 1], 1),
        ([1, 1, QUANTITY_MAX + 1], 2),
    ] {
        assert_eq!(snapshot.set(fields).unwrap_err().field, field);
    }
}

#[test]
fn a_snapshot_with_too_many_cells_is_rejected() {
    let mut snapshot = StockSnapshot::default();
    // The first lines name many products in one store. Each later line names another store, which
    // adds a whole column of cells.
    let faults = (1..=PRODUCT_MAX)
        .map(|product| snapshot.set([product, 1, 1]))
        .filter(Result::is_err)
        .count();
    assert_eq!(faults, 0);
    let refused = (2..=STORE_MAX)
        .find_map(|store| snapshot.set([PRODUCT_MAX, store, 1]).err())
        .unwrap();
    assert!(refused.reason.contains("cells"));
}

#[test]
fn the_order_of_lines_does_not_matter_and_rows_read_back() {
    let stores: Vec<u32> = (1..=40).map(|store| store * 3).collect();
    let products = [70, 7, 700, 1];
    let quantity = |product: u32, store: u32| product * 31 % 17 + store % 5;
    let mut by_product = StockSnapshot::default();
    for product in products {
        for store in &stores {
            by_product
                .set([product, *store, quantity(product, *store)])
                .unwrap();
        }
    }
    let mut by_store = StockSnapshot::default();
    for store in stores.iter().rev() {
        for product in products.iter().rev() {
            by_store.set([*product, *store, 0]).unwrap();
            by_store
                .set([*product, *store, quantity(*product, *store)])
                .unwrap();
        }
    }
    let mut columns = Vec::new();
    by_store.each_store(|store, quantities| {
        let quantities = quantities.to_vec();
        columns.push(Column {
            store,
            quantities,
            counted_to: CountedTo::OfVolume,
        });
    });
    let read_back = StockSnapshot::from_rows(by_store.products().to_vec(), columns);
    for snapshot in [&by_product, &by_store, &read_back] {
        let matrix = matrix(snapshot);
        assert_eq!(matrix.stores(), stores);
        for product in products {
            let expected: Vec<(u32, i32)> = stores
                .iter()
                .map(|store| (*store, quantity(product, *store) as i32))
                .collect();
            assert_eq!(matrix.by_store(product), expected);
            assert_eq!(snapshot.quantity(product, stores[5]), expected[5].1);
        }
    }
    let layout = matrix(&by_product);
    assert!(by_product.has_layout(layout.layout()));
    assert!(!by_store.has_layout(layout.layout()));
}

#[test]
fn added_and_removed_stores_give_the_matrix_of_a_snapshot_with_just_them() {
    let mut all = StockSnapshot::default();
    for product in 1..=9 {
        for store in 1..=40 {
            all.set([product * 3, store, product * 100 + store]).unwrap();
        }
    }
    all.set([100, 40, 7]).unwrap();
    let columns = |stores: &dyn Fn(u32) -> bool| {
        let mut columns = Vec::new();
        all.each_store(|store, quantities| {
            if stores(store) {
                let quantities = quantities.to_vec();
                columns.push(Column {
                    store,
                    quantities,
                    counted_to: CountedTo::OfVolume,
                });
            }
        });
        columns
    };
    let only = |columns: &[Column]| {
        matrix(&StockSnapshot::from_rows(
            all.products().to_vec(),
            columns.to_vec(),
        ))
    };
    let same = |one: &StockMatrix, other: &StockMatrix| {
        assert_eq!(one.stores(), other.stores());
        for product in all.products() {
            assert_eq!(
                one.by_store(*product),
                other.by_store(*product),
                "product {product}"
            );
        }
    };
    let (odd, even) = (columns(&|store| store % 2 == 1), columns(&|store| store % 2 == 0));
    let line = Line { id: 3, quantity: 5 };
    let mut some = only(&odd);
    some.deduct(7, line);
    some.add_stores(all.products(), &even);
    assert_eq!(some.available_in(3, 7), Some(102), "deductions stay");
    some.restore(7, line);
    same(&some, &matrix(&all));
    some.deduct(8, line);
    some.add_stores(all.products(), &even);
    same(&some, &matrix(&all));
    some.retain_stores(|store| store % 2 == 0);
    same(&some, &only(&even));
    some.retain_stores(|_| false);
    assert_eq!(some.first_store(&[line]), None);
    let mut none = StockMatrix::default();
    none.add_stores(all.products(), &columns(&|_| true));
    same(&none, &matrix(&all));
    assert_eq!(none.layout(), matrix(&all).layout());
    none.add_stores(&[], &[]);
    same(&none, &matrix(&all));
}
