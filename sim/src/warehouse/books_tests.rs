//! Tests that the warehouse's books decide correctly about calls, and that their totals account for
//! every unit of the stock.

use super::*;

fn books() -> Books {
    Books::begin(&Entry::Begin {
        version: LEDGER_VERSION,
        seed: 5,
        base: 1000,
        products: 10,
        stores: 4,
        units: 15,
    })
    .unwrap()
}

/// Returns the first product and store of which the stock has at least `units` units.
fn shelf(books: &Books, units: u32) -> (u32, u32) {
    (1..=10)
        .flat_map(|product| (1..=4).map(move |store| (product, store)))
        .find(|&(product, store)| books.stock().get(product, store).unwrap() >= units)
        .unwrap()
}

fn order(id: &str, product: u32, store: u32, quantity: u32) -> WarehouseOrder {
    WarehouseOrder {
        id: id.into(),
        products: vec![Product {
            id: product,
            quantity,
        }],
        store_id: store,
        transaction_id: Some(4711),
    }
}

#[test]
fn a_delivery_under_its_key_happens_once() {
    let mut books = books();
    let (product, store) = shelf(&books, 4);
    let there = books.stock().get(product, store).unwrap();
    let seventeen = order("17", product, store, 2);
    let Decision::Deliver(entry) = books.deliver(&seventeen, Some("17/deliver")) else {
        panic!("not delivered");
    };
    books.apply(&entry).unwrap();
    assert_eq!(
        books.deliver(&seventeen, Some("17/deliver")),
        Decision::Known(0, 1001)
    );
    assert_eq!(books.stock().get(product, store), Some(there - 2));
    let other = order("17", product, store, 1);
    assert_eq!(books.deliver(&other, Some("17/deliver")), Decision::Conflict);
    assert!(!books.answer(0));
    assert!(books.answer(0), "answered before");

    let Decision::Deliver(again) = books.deliver(&seventeen, None) else {
        panic!("without its key it is a second delivery");
    };
    books.apply(&again).unwrap();
    assert_eq!(books.stock().get(product, store), Some(there - 4));
    assert_eq!(
        books
            .deliveries(0, 9)
            .iter()
            .map(|d| (d.sequence, d.count))
            .collect::<Vec<_>>(),
        [(1001, 2), (1002, 2)]
    );
    assert!(books.apply(&again).unwrap_err().contains("delivered as 1002"));
}

#[test]
fn what_is_not_there_is_refused_and_kept() {
    let mut books = books();
    let (product, store) = shelf(&books, 1);
    let there = books.stock().get(product, store).unwrap();
    let mut twice = order("9", product, store, there);
    twice.products.push(Product {
        id: product,
        quantity: 1,
    });
    let Decision::Refuse(entry) = books.deliver(&twice, Some("9/deliver")) else {
        panic!("two lines of one product are one demand");
    };
    books.apply(&entry).unwrap();
    assert_eq!(
        books.refusals(),
        [Refusal {
            order: "9".into(),
            store,
            product,
            asked: there + 1,
            there
        }]
    );
    assert!(matches!(
        books.deliver(&order("10", 11, 1, 1), None),
        Decision::Refuse(_)
    ));
    assert!(matches!(
        books.deliver(&order("10", 1, 5, 1), None),
        Decision::Refuse(_)
    ));
    assert_eq!(books.stock().get(product, store), Some(there));
}

#[test]
fn what_was_sold_comes_back_in_the_end() {
    let mut books = books();
    let mut sold = 0_u32;
    for round in 0..200 {
        for store in 1..=4 {
            for product in 1..=10 {
                let id = format!("{round}-{store}-{product}");
                if let Decision::Deliver(entry) = books.deliver(&order(&id, product, store, 2), None) {
                    books.apply(&entry).unwrap();
                    sold += 2;
                }
            }
        }
        if let Some(entry) = books.restock(1) {
            books.apply(&entry).unwrap();
        }
    }
    let first_day = Stock::first_day(
        5,
        StockShape {
            products: 10,
            stores: 4,
            units: 15,
        },
    );
    let total = |stock: &Stock| -> u32 {
        (1..=10)
            .flat_map(|p| (1..=4).map(move |s| stock.get(p, s).unwrap()))
            .sum()
    };
    assert!(sold > 10 * total(&first_day), "sold {sold}");
    let came: u32 = books.restocks().iter().map(|r| r.units).sum();
    assert_eq!(total(&first_day) + came - sold, total(books.stock()));
}

#[test]
fn an_announcement_is_known_by_its_content() {
    let mut books = books();
    let seventeen = order("17", 1, 1, 1);
    let Announcement::Enter(entry) = books.announce(&seventeen) else {
        panic!("not new");
    };
    books.apply(&entry).unwrap();
    assert_eq!(books.announce(&seventeen), Announcement::Known);
    assert_eq!(books.announce(&order("17", 2, 1, 1)), Announcement::Conflict);
    let counts = OrderCounts {
        announced: 1,
        delivered: 0,
        refused: 0,
    };
    assert_eq!(books.counts(), counts);
    assert_eq!(
        (
            books.count_delivery_attempt("17"),
            books.count_delivery_attempt("17")
        ),
        (0, 1)
    );
    assert_eq!(books.count_announce_attempt("17"), 0);
}

#[test]
fn a_ledger_without_a_number_of_units_has_fifteen_and_one_that_no_stock_can_have_is_refused() {
    let begin = |units: &str| {
        let line =
            format!(r#"{{"kind":"begin","version":1,"seed":5,"base":1000,"products":10,"stores":4{units}}}"#);
        Books::begin(&serde_json::from_str(&line).unwrap())
    };
    assert_eq!(begin("").unwrap().stock(), books().stock());
    assert_eq!(begin(r#","units":700"#).unwrap().stock().shape().units, 700);
    for units in [0, 65_536] {
        let problem = begin(&format!(r#","units":{units}"#)).unwrap_err();
        assert!(problem.contains("units must be from 1 to 65535"), "{problem}");
    }
}
