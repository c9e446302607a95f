//! Tests of whole timelines (repeatability, mix of requests, rates, follow-ups and replays), and of
//! loads that cannot be used.

use super::*;
use std::collections::{HashMap, HashSet};

fn workload(arrivals: Arrivals) -> Workload {
    Workload {
        seed: 42,
        first_id: 1001,
        load: Load::steady(500.0, Duration::from_secs(20), arrivals),
        customers: Customers::default(),
    }
}

fn odd_customers() -> Customers {
    Customers {
        popularity: Popularity::Zipf(Zipf::new(1_000, 1.1)),
        basket_min: 1,
        basket_max: 6,
        habits: Habits {
            never_paid: 0.1,
            paid_twice: 0.2,
            paid_late: 0.1,
            late_by: Duration::from_secs(10),
            paid_before: 0.1,
            cancelled: 0.1,
        },
        ..Customers::default()
    }
}

#[test]
fn the_same_seed_gives_the_same_schedule_and_another_seed_another() {
    for arrivals in [Arrivals::Fixed, Arrivals::Poisson] {
        for customers in [Customers::default(), odd_customers()] {
            let workload = Workload {
                customers,
                ..workload(arrivals)
            };
            let one: Vec<_> = workload.schedule().collect();
            assert_eq!(one, workload.schedule().collect::<Vec<_>>());
            let other = Workload { seed: 43, ..workload };
            assert_ne!(one, other.schedule().collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_schedule_has_the_originals_mix_and_ranges() {
    let arrivals: Vec<_> = workload(Arrivals::Fixed).schedule().collect();
    assert!(arrivals.is_sorted_by_key(|a| a.at));
    let mut orders = HashMap::new();
    let mut stats = 0;
    let mut payments = 0;
    for arrival in &arrivals {
        match arrival.request {
            Request::Stats { product, .. } => {
                assert!((1..=1000).contains(&product));
                stats += 1;
            }
            Request::Order(order) => {
                let [a, b] = order.products[..] else {
                    panic!("{order:?}");
                };
                assert_ne!(a.id, b.id);
                assert!([a, b].iter().all(|p| (1..=1000).contains(&p.id)));
                assert!([a, b].iter().all(|p| (1..=5).contains(&p.quantity)));
                assert!((1..=10_000).contains(&order.transaction_id));
                let planned = (arrival.at, order.transaction_id);
                assert!(orders.insert(order.id, planned).is_none());
            }
            Request::Payment {
                order,
                transaction_id,
                is_early,
            } => {
                let (ordered_at, expected) = orders[&order];
                assert_eq!((transaction_id, is_early), (expected, false));
                let after_ms = (arrival.at - ordered_at).as_millis() as u32;
                assert!((2000..=4000).contains(&after_ms) && after_ms.is_multiple_of(125));
                payments += 1;
            }
            Request::Cancel { .. } => panic!("nobody cancels by default"),
        }
    }
    assert_eq!(stats + orders.len(), 10_000);
    assert_eq!(payments, orders.len());
    // 2 in 12 of the 10,000 requests are orders. The limits are five standard deviations away from
    // the expected count.
    assert!((1480..1853).contains(&orders.len()), "{}", orders.len());
    assert_eq!(workload(Arrivals::Fixed).request_count(), 10_000);
}

#[test]
fn poisson_arrivals_keep_the_rate_with_uneven_gaps() {
    let starts: Vec<_> = workload(Arrivals::Poisson)
        .schedule()
        .filter(|a| !matches!(a.request, Request::Payment { .. }))
        .map(|a| a.at.as_secs_f64())
        .collect();
    assert!((9_500..10_500).contains(&starts.len()), "{}", starts.len());
    assert_eq!(workload(Arrivals::Poisson).request_count(), starts.len() as u64);
    let short = starts.windows(2).filter(|w| w[1] - w[0] < 0.001).count();
    // 39 % of exponential gaps are shorter than 1 ms, half of the mean gap. With fixed arrivals
    // every gap is 2 ms.
    assert!((3_600..4_300).contains(&short), "{short}");
}

#[test]
fn every_follow_up_belongs_to_an_order_that_counts_it() {
    let workload = Workload {
        customers: odd_customers(),
        ..workload(Arrivals::Poisson)
    };
    let mut open: HashMap<u64, u8> = HashMap::new();
    let mut early: HashSet<u64> = HashSet::new();
    let (mut cancelled, mut paid_early) = (0, 0);
    let mut last = Duration::ZERO;
    for arrival in workload.schedule() {
        assert!(arrival.at >= last);
        last = arrival.at;
        match arrival.request {
            Request::Stats { .. } => {}
            Request::Order(order) => {
                paid_early += u32::from(early.remove(&order.id));
                open.insert(order.id, order.follow_ups);
            }
            Request::Payment {
                order,
                is_early: true,
                ..
            } => {
                assert!(!open.contains_key(&order), "ahead of its order");
                early.insert(order);
            }
            Request::Payment { order, .. } => *open.get_mut(&order).unwrap() -= 1,
            Request::Cancel { order } => {
                cancelled += 1;
                *open.get_mut(&order).unwrap() -= 1;
            }
        }
    }
    assert!(open.values().all(|left| *left == 0) && early.is_empty());
    assert!(cancelled > 50 && paid_early > 50, "{cancelled} {paid_early}");
}

#[test]
fn habits_do_not_change_the_orders() {
    let orders = |customers: Customers| -> Vec<_> {
        let workload = Workload {
            customers,
            ..workload(Arrivals::Fixed)
        };
        let mut orders: Vec<_> = workload
            .schedule()
            .filter_map(|arrival| match arrival.request {
                Request::Order(order) => Some((order.id, order.products, order.transaction_id)),
                _ => None,
            })
            .collect();
        orders.sort_unstable_by_key(|(id, ..)| *id);
        orders
    };
    let habits = odd_customers().habits;
    assert_eq!(
        orders(Customers::default()),
        orders(Customers {
            habits,
            ..Customers::default()
        })
    );
}

#[test]
fn a_replay_sends_the_same_paths_at_the_same_distances() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats.csv");
    let log = "17,1000,/order,3,ok,200\n18,1250,/aggregate-stats/5,1,ok,200\n\
               900000017,3500,/order/17/payment-callback,2,ok,200\n";
    std::fs::write(&path, log).unwrap();
    let workload = Workload {
        load: Load::Replay(Replay::read(&path).unwrap()),
        ..workload(Arrivals::Fixed)
    };
    let arrivals: Vec<_> = workload.schedule().collect();
    let starts: Vec<u128> = arrivals.iter().map(|a| a.at.as_millis()).collect();
    assert_eq!(starts, [0, 250, 2500]);
    let Request::Order(order) = arrivals[0].request else {
        panic!("{arrivals:?}");
    };
    assert_eq!(order.id, 1001);
    assert!(order.is_paid, "the log has its payment");
    assert_eq!(arrivals[1].request, Request::Stats { id: 1002, product: 5 });
    let Request::Payment {
        order: paid,
        transaction_id,
        ..
    } = arrivals[2].request
    else {
        panic!("{arrivals:?}");
    };
    assert_eq!((paid, transaction_id), (1001, order.transaction_id));
    assert!(workload.request_count() >= 2);
}

#[test]
fn loads_that_cannot_be_used_are_named() {
    let second = Duration::from_secs(1);
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
        let load = Load::steady(rate, second, Arrivals::Fixed);
        assert_eq!(load.fault().map(|(setting, _)| setting), Some("rate"), "{rate}");
    }
    for duration in [Duration::ZERO, Duration::from_secs(31 * 86_400)] {
        let load = Load::steady(1.0, duration, Arrivals::Fixed);
        assert_eq!(load.fault().map(|(setting, _)| setting), Some("duration"));
    }
    assert_eq!(
        Load::Phases(vec![]).fault().map(|(setting, _)| setting),
        Some("duration")
    );
    let ramp = LoadPhase {
        rate_end: 100.0,
        ..LoadPhase::steady("ramp", 0.0, second, Arrivals::Fixed)
    };
    assert_eq!(Load::Phases(vec![ramp]).fault(), None);
}
