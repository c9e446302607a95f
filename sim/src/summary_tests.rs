//! Tests that the table of a run's summary shows the results and fits 80 columns, and that the run
//! gets the right verdict.

use super::*;
use crate::front::OrderRecord;
use crate::telemetry::Route;
use std::time::Duration;

fn front() -> FrontReport {
    FrontReport {
        seed: 7,
        started_at_ms: 0,
        duration: Duration::from_secs(30),
        window: Duration::from_secs(30),
        drain: Duration::from_millis(3_500),
        stopped_early: false,
        requests: 7_012,
        requests_in_window: 6_900,
        late: 3,
        dropped: 0,
        lag: Latency {
            count: 7_012,
            p50_us: 40,
            p90_us: 90,
            p99_us: 700,
            p999_us: 3_000,
            max_us: 12_345,
        },
        payments_not_sent: 0,
        routes: vec![RouteReport {
            name: "order",
            route: Route::Order.template(),
            requests: 1_012,
            ok: 1_000,
            errors: BTreeMap::from([("409 insufficient-stock".to_owned(), 12)]),
            latency: Latency {
                count: 1_012,
                p50_us: 480,
                p90_us: 900,
                p99_us: 12_340,
                p999_us: 140_000,
                max_us: 1_234_567,
            },
            mean_us: 600.0,
        }],
        histograms: Default::default(),
        stats_csv: Some("data/stats.csv".into()),
        log_problem: None,
        record: OrderRecord::default(),
        routing: None,
    }
}

fn audit(findings: Vec<Finding>) -> AuditReport {
    AuditReport {
        findings,
        orders: 1_172,
        orders_of_run: BTreeMap::from([("delivered".to_owned(), 1_000), ("rejected".to_owned(), 12)]),
        orders_acknowledged: 1_000,
        payments_acknowledged: 1_000,
        deliveries: 1_160,
        ..AuditReport::default()
    }
}

fn state() -> RunState {
    let mut state = RunState::default();
    state.cluster.orders_total =
        BTreeMap::from([("delivered".to_owned(), 1_160), ("rejected".to_owned(), 12)]);
    (state.cluster.stock_snapshots, state.cluster.stat_files) = (3, 1);
    let warehouse = |announced, delivered| WarehouseSummary {
        announced,
        delivered,
        ..WarehouseSummary::default()
    };
    state.warehouse_before = warehouse(160, 160);
    state.warehouse = Some(WarehouseSummary {
        faults: BTreeMap::from([("504-after-acting".to_owned(), 31)]),
        ..warehouse(1_160, 1_160)
    });
    state
}

fn identity() -> RunIdentity {
    RunIdentity {
        scenario: "calm".to_owned(),
        repeat: "imt sim run --scenario calm --seed 7".to_owned(),
        run_folder: Some("data/runs/20260131-174502".into()),
    }
}

fn summary(front: &FrontReport, audit: Result<AuditReport, String>, missed: bool) -> Summary {
    let threshold = ThresholdResult {
        condition: "p99(order) > 5ms".to_owned(),
        measured: Some("12.34ms".to_owned()),
        is_missed: missed,
    };
    Summary::new(identity(), front, audit, &state(), vec![threshold])
}

#[test]
fn the_table_shows_the_run_its_routes_and_the_verdict() {
    let summary = summary(&front(), Ok(audit(vec![])), false);
    assert_eq!(summary.verdict, Verdict::Clean);
    let table = summary.to_string();
    for expected in [
        "calm, seed 7: 30.0 s of requests, 3.5 s of drain",
        "7,012 with payments, 230.0/s",
        "lag p50 0.04 ms, p99 0.70 ms, max 12.3 ms; 3 late (over 10 ms), 0 dropped",
        "   1,012     12   0.48 ms   12.3 ms  1,234 ms",
        "order: 12 x 409 insufficient-stock",
        "orders     1,000 delivered, 12 rejected\n",
        "folder     1,172 orders, 3 stock snapshots and 1 statistics file since it was made",
        "1,000 announced, 1,000 delivered, 0 refused",
        "made on purpose: 31 504-after-acting; the node retries these 31 calls, and 0 messages still wait",
        "data/stats.csv",
        "clean: 1,172 orders",
        "kept: fail if p99(order) > 5ms: measured 12.34ms",
        "verdict    CLEAN",
        "imt sim run --scenario calm --seed 7",
    ] {
        assert!(
            table.replace("\n             ", " ").contains(expected),
            "{expected:?} is not in\n{table}"
        );
    }
    let widest = table.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(COLUMNS), "{widest:?}\n{table}");
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!(json["verdict"], "clean");
    assert_eq!(json["scenario"], "calm");
    assert_eq!(json["errors"]["409 insufficient-stock"], 12);
    assert_eq!(json["routes"][0]["latency"]["p99_us"], 12_340);
    assert_eq!(json["data_folder"]["orders"]["delivered"], 1_160);
}

#[test]
fn findings_are_named_and_too_many_are_counted() {
    let finding = |n: usize| Finding::OrderMissing { order: n.to_string() };
    let found = audit((1..=25).map(finding).collect());
    let summary = summary(&front(), Ok(found), true);
    assert_eq!(
        summary.verdict,
        Verdict::Findings,
        "findings outweigh a threshold"
    );
    let table = summary.to_string();
    assert!(
        table.contains("25 WRONG") && table.contains("and 5 more"),
        "{table}"
    );
    assert!(table.contains("order 1: acknowledged, but it is gone"), "{table}");
    assert_eq!(summary.findings().len(), 25);
}

#[test]
fn the_verdict_is_the_worst_that_is_true() {
    let clean = || Ok(audit(vec![]));
    assert_eq!(summary(&front(), clean(), true).verdict, Verdict::ThresholdMissed);
    let late = FrontReport {
        lag: Latency {
            p99_us: 5_001,
            ..Latency::default()
        },
        ..front()
    };
    for (missed, shown) in [
        (false, "verdict    INVALID: "),
        (true, "verdict    INVALID and THRESHOLD MISSED: "),
    ] {
        let late = summary(&late, clean(), missed);
        assert_eq!(late.verdict, Verdict::Invalid);
        assert!(late.to_string().contains(shown), "{late}");
    }
    let unaudited = summary(&front(), Err("the warehouse does not answer".into()), true);
    assert_eq!(unaudited.verdict, Verdict::Unaudited);
    let table = unaudited.to_string();
    assert!(
        table.contains("no verdict: the warehouse does not answer"),
        "{table}"
    );
}

#[test]
fn nouns_have_their_plural() {
    assert_eq!(plural(1, "order"), "1 order");
    assert_eq!(plural(0, "order"), "0 orders");
    assert_eq!(plural(2_000, "delivery"), "2,000 deliveries");
}

#[test]
fn counts_of_a_warehouse_that_is_away_are_shown_as_its_last_ones() {
    let mut state = state();
    for (is_silent, shown) in [
        (false, "warehouse  1,000 announced"),
        (
            true,
            "warehouse  does not answer; its last counts: 1,000 announced",
        ),
    ] {
        state.warehouse_is_silent = is_silent;
        let summary = Summary::new(identity(), &front(), Ok(audit(vec![])), &state, vec![]);
        let table = summary.to_string();
        assert!(table.contains(shown), "{table}");
    }
}

#[test]
fn faults_with_an_answer_are_not_said_to_be_retried() {
    let mut state = state();
    let faults = |counts: &[(&str, u64)]| {
        let counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count));
        Some(WarehouseSummary {
            faults: counts.collect(),
            ..WarehouseSummary::default()
        })
    };
    for (counts, shown) in [
        (&[("slow-drip", 3)][..], "made on purpose: 3 slow-drip\n"),
        (
            &[("slow-drip", 3), ("503", 1)],
            "made on purpose: 1 503, 3 slow-drip; the node retries this call, and 1 message still waits\n",
        ),
    ] {
        state.warehouse = faults(counts);
        let audit = AuditReport {
            outbox_waiting: 1,
            ..audit(vec![])
        };
        let table = Summary::new(identity(), &front(), Ok(audit), &state, vec![]).to_string();
        assert!(table.replace("\n             ", " ").contains(shown), "{table}");
    }
}

#[test]
fn percentiles_of_fewer_than_20_samples_are_not_shown() {
    for (count, shown) in [
        (19, "         -         -  1,234 ms"),
        (20, "   0.48 ms   12.3 ms  1,234 ms"),
    ] {
        let mut front = front();
        front.routes[0].latency.count = count;
        front.lag.count = count;
        let summary = summary(&front, Ok(audit(vec![])), false);
        let table = summary.to_string();
        assert!(table.contains(shown), "{table}");
        assert_eq!(
            table.contains("lag p50 -, p99 -, max 12.3 ms"),
            count < 20,
            "{table}"
        );
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["routes"][0]["latency"]["p99_us"], 12_340);
    }
}

#[test]
fn a_wide_command_is_broken_at_its_options() {
    let command = "imt sim chaos --data /tmp/shop --fail-if 'p99(order) > 5ms -1' --fail-if 'it'\\''s -x' \
                   --nodes 12 --seed 1";
    let rows = command_rows(command);
    assert_eq!(
        rows,
        [
            "imt sim chaos --data /tmp/shop --fail-if 'p99(order) > 5ms -1' \\",
            "  --fail-if 'it'\\''s -x' --nodes 12 --seed 1",
        ]
    );
    assert_eq!(command_rows("imt audit --all"), ["imt audit --all"]);
    let mut summary = summary(&front(), Ok(audit(vec![])), false);
    command.clone_into(&mut summary.identity.repeat);
    let table = summary.to_string();
    let next = table.split_once("  next ").unwrap().1;
    assert!(next.contains(&rows.join("\n             ")), "{table}");
    assert!(
        next.lines().all(|line| line.chars().count() <= COMMAND_COLUMNS),
        "{table}"
    );
}

#[test]
fn node_events_and_running_nodes_are_shown_and_kept_in_json() {
    let node = |name: &str, folder: &str| RunningNode {
        name: name.to_owned(),
        address: "127.0.0.1:4711".to_owned(),
        stop: format!("imt node stop {name}{folder}"),
    };
    let long = format!(" --data /srv/{}", "x".repeat(40));
    let summary = Summary {
        node_events: NodeEvents::group(&[(crate::scenario::NodeAction::Stop, Duration::from_millis(230))]),
        still_up: vec![node("w", ""), node("v", &long)],
        ..summary(&front(), Ok(audit(vec![])), false)
    };
    let table = summary.to_string();
    for shown in [
        "  events     1 x stop, answered again after 230 ms\n".to_owned(),
        "  still up   w at 127.0.0.1:4711; stop it with imt node stop w\n".to_owned(),
        format!(
            "             v at 127.0.0.1:4711; stop it with\n             imt node stop v \\\n               {}\n",
            long.trim()
        ),
    ] {
        assert!(table.contains(&shown), "{shown}{table}");
    }
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!(json["node_events"][0]["kind"], "stop");
    assert_eq!(json["node_events"][0]["times_ms"][0], 230.0);
    assert_eq!(json["still_up"][0]["stop"], "imt node stop w");
}

#[test]
fn orders_that_took_lent_units_have_a_row_if_there_are_any() {
    for (count, row) in [
        (None, None),
        (Some(0), None),
        (
            Some(1),
            Some("\n  borrowed   1 order took units of another node's stores\n"),
        ),
        (
            Some(1_271),
            Some("\n  borrowed   1,271 orders took units of another node's stores\n"),
        ),
    ] {
        let summary = Summary {
            orders_from_borrowed_units: count,
            ..summary(&front(), Ok(audit(vec![])), false)
        };
        let table = summary.to_string();
        match row {
            Some(row) => assert!(table.contains(row), "{table}"),
            None => assert!(!table.contains("borrowed"), "{table}"),
        }
    }
}
