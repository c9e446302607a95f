//! Tests that conditions are parsed or refused with a column, and compared with the results of a
//! run.

use super::*;
use crate::front::OrderRecord;
use crate::latency::Latency;
use std::collections::BTreeMap;
use std::time::Duration;

fn check(text: &str, column: usize, problem: &str) {
    let error = text.parse::<Threshold>().unwrap_err();
    assert_eq!(error.column, column, "{error}");
    assert!(error.to_string().contains(problem), "{error}");
}

#[test]
fn faults_of_the_text_are_reported_with_their_column() {
    check("", 1, "expected a metric");
    check("p98(order) > 5ms", 1, "unknown metric p98");
    check("p99 > 5ms", 5, "expected an argument, as in p99(order)");
    check("p99(ordr) > 5ms", 5, "unknown route \"ordr\"");
    check("p99(order > 5ms", 11, "expected )");
    check("p99(order) 5ms", 12, "expected one of >");
    check("p99(order) > fast", 14, "expected a number");
    check("p99(order) > 5", 15, "expected a unit");
    check("p99(order) > 5min", 15, "unknown unit min");
    check("p99(order) > 5%", 15, "has no share");
    check("late > 5ms", 9, "a number, not a time");
    check("p99(order) > 5ms and", 18, "unexpected text");
    check("orders(lost) > 0", 8, "unknown state \"lost\"");
    check("orders > 0", 8, "as in orders(rejected)");
    check("mean(lag) > 1ms", 6, "p99 and max");
    check("é > 1", 1, "expected a metric");
}

fn front() -> FrontReport {
    let mut histograms: [LatencyHistogram; Route::COUNT] = Default::default();
    for ms in 1..=100 {
        histograms[Route::Order.index()].record(Duration::from_millis(ms));
    }
    histograms[Route::Stats.index()].record(Duration::from_millis(900));
    let route = |route: Route, requests, ok| crate::front::RouteReport {
        name: route.name(),
        route: route.template(),
        requests,
        ok,
        errors: BTreeMap::new(),
        latency: histograms[route.index()].summary(),
        mean_us: 0.0,
    };
    FrontReport {
        seed: 1,
        started_at_ms: 0,
        duration: Duration::from_secs(10),
        window: Duration::from_secs(10),
        drain: Duration::from_secs(4),
        stopped_early: false,
        requests: 200,
        requests_in_window: 180,
        late: 3,
        dropped: 0,
        lag: Latency {
            p99_us: 700,
            ..Latency::default()
        },
        payments_not_sent: 0,
        routes: vec![
            route(Route::Stats, 100, 100),
            route(Route::Order, 100, 95),
            route(Route::Payment, 0, 0),
            route(Route::Cancel, 0, 0),
        ],
        histograms: histograms.clone(),
        stats_csv: None,
        log_problem: None,
        record: OrderRecord::default(),
        routing: None,
    }
}

fn audit() -> AuditReport {
    AuditReport {
        orders_of_run: BTreeMap::from([("delivered".to_owned(), 90), ("rejected".to_owned(), 10)]),
        outbox_dead: 2,
        ..AuditReport::default()
    }
}

#[test]
fn conditions_are_compared_with_the_results() {
    let (front, audit) = (front(), audit());
    let measured = Measured {
        front: &front,
        audit: Some(&audit),
    };
    for (text, value, is_missed) in [
        ("p99(order) > 99.5ms", "99.0", false),
        ("p99(order) >= 98.5ms", "99.0", true),
        ("p50(order) < 1s", "50.0", true),
        ("max(all) > 0.5s", "900", true),
        ("p99(lag) > 1ms", "700us", false),
        ("errors(order) > 4%", "5.00%", true),
        ("errors(all) > 2.5%", "2.50%", false),
        ("errors(order) == 5", "5", true),
        ("requests(stats) < 100", "100", false),
        ("rate < 18", "18", false),
        ("late != 3", "3", false),
        ("dropped > 0", "0", false),
        ("orders(rejected) > 9%", "10.00%", true),
        ("dead <= 2", "2", true),
        ("findings > 0", "0", false),
    ] {
        let result = text.parse::<Threshold>().unwrap().evaluate(measured);
        assert_eq!(result.is_missed, is_missed, "{result:?}");
        assert!(
            result.measured.as_deref().unwrap_or_default().starts_with(value),
            "{result:?}"
        );
    }
}

#[test]
fn a_condition_that_cannot_be_checked_is_missed() {
    let front = front();
    let measured = Measured {
        front: &front,
        audit: None,
    };
    let result = "findings > 0".parse::<Threshold>().unwrap().evaluate(measured);
    assert!(result.is_missed && result.measured.is_none());
}

#[test]
fn a_latency_of_a_front_that_was_late_is_missed() {
    let front = FrontReport {
        lag: Latency {
            p99_us: 6_000,
            ..Latency::default()
        },
        ..front()
    };
    let measured = Measured {
        front: &front,
        audit: None,
    };
    let missed = |text: &str| text.parse::<Threshold>().unwrap().evaluate(measured).is_missed;
    assert!(missed("p99(order) > 1s"));
    assert!(!missed("errors(stats) > 0"));
}
