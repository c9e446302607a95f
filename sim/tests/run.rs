//! Tests of whole runs: shop front, warehouse and audit, against a small order management in
//! memory.
#![allow(clippy::unwrap_used)] // Also in the helpers: a failure there fails the test.

mod support;

use std::path::Path;
use std::time::Duration;

use imt_sim::audit::AuditProgress;
use imt_sim::front::Outcome;
use imt_sim::monitor::Monitor;
use imt_sim::run_folder::{RunFacts, RunFolder};
use imt_sim::summary::{RunIdentity, Verdict};
use imt_sim::telemetry::{Phase, Route};
use imt_sim::warehouse::{
    Behaviour, CallBehaviour, Delay, Fault as WarehouseFault, Profile, SnapshotFault, StockShape,
};
use imt_sim::workload::{Arrivals, Customers, Habits, Load, Popularity, Zipf};
use imt_sim::{
    AuditConfig, AuditReport, Error, Finding, FrontConfig, FrontReport, Summary, Telemetry, Warehouse,
    WarehouseConfig, audit, run_front, series,
};
use support::{FakeOms, Fault};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Starts a warehouse with the kinds of faults of the original system but with short delays, and an
/// order management with `fault`. Each of the two servers knows the address of the other one.
/// Returns once the order management has accepted a stock snapshot.
async fn neighbours(data: &Path, fault: Fault) -> (Warehouse, FakeOms) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let warehouse = Warehouse::start(quick(data, listener.local_addr().unwrap()))
        .await
        .unwrap();
    let oms = FakeOms::serve(listener, warehouse.address(), fault);
    warehouse.stocked().await;
    (warehouse, oms)
}

fn quick(data: &Path, oms: std::net::SocketAddr) -> WarehouseConfig {
    WarehouseConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        oms: oms.into(),
        data: data.to_owned(),
        shape: StockShape {
            products: 1000,
            stores: 20,
            units: 15,
        },
        snapshot_every: Duration::from_millis(300),
        stat_file_every: Duration::from_millis(400),
        behaviour: Behaviour {
            announce: CallBehaviour::after(Delay {
                min: Duration::from_millis(20),
                step: Duration::from_millis(10),
                steps: 3,
            }),
            deliver: CallBehaviour {
                delay: Delay::fixed(Duration::from_millis(10)),
                faults: vec![
                    (WarehouseFault::TimeoutBefore, 1.0 / 6.0),
                    (WarehouseFault::TimeoutAfterActing, 1.0 / 6.0),
                ],
            },
            ..Profile::Original.behaviour()
        },
        ..WarehouseConfig::default()
    }
}

fn load(seconds: u64) -> Load {
    Load::steady(400.0, Duration::from_secs(seconds), Arrivals::Fixed)
}

fn front(data: &Path, oms: &FakeOms, warehouse: &Warehouse) -> FrontConfig {
    FrontConfig {
        oms: oms.address.into(),
        warehouse: warehouse.address().into(),
        data: data.to_owned(),
        load: load(1),
        ..FrontConfig::default()
    }
}

async fn run(config: FrontConfig) -> FrontReport {
    let (_stop, stopped) = watch::channel(false);
    run_front(config, &Telemetry::default(), stopped).await.unwrap()
}

async fn audited(oms: &FakeOms, warehouse: &Warehouse, report: &FrontReport) -> AuditReport {
    let config = AuditConfig {
        stalled_after: Duration::from_secs(5),
        // This order management never releases a reservation late.
        released_within: Duration::ZERO,
        ..AuditConfig::new(oms.address.into(), warehouse.address().into())
    };
    audit(&config, &report.record, &watch::Sender::new(AuditProgress::Begun))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_sound_run_is_clean_and_a_second_one_on_the_same_data_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let config = front(folder.path(), &oms, &warehouse);
    let report = run(config.clone()).await;
    let verdict = audited(&oms, &warehouse, &report).await;
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);

    let orders = report.record.orders();
    assert!(orders.len() > 30 && orders.iter().all(|o| o.payment != Outcome::NotSent));
    let acknowledged = orders.iter().filter(|o| o.payment.is_acknowledged()).count() as u64;
    assert_eq!(report.requests, 400 + orders.len() as u64);
    let counts = warehouse.summary();
    assert_eq!((counts.delivered, counts.refused), (acknowledged, 0));
    assert!(
        counts.gateway_timeouts > 0 && counts.stat_files_written > 0,
        "{counts:?}"
    );
    assert!(oms.snapshots().iter().all(|(_, lines)| *lines == 20_000));

    let second = run(config).await;
    assert!(
        second.record.orders()[0].id > orders.last().unwrap().id,
        "no id is used twice"
    );
    assert!(second.record.get(orders[0].id).is_none());
    let verdict = audited(&oms, &warehouse, &second).await;
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    assert_eq!(
        verdict.orders,
        (orders.len() + second.record.orders().len()) as u64
    );
    warehouse.stop().await;
}

#[tokio::test]
async fn stats_csv_has_a_line_in_the_originals_format_for_each_request() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let report = run(front(folder.path(), &oms, &warehouse)).await;
    let text = std::fs::read_to_string(folder.path().join("stats.csv")).unwrap();
    let mut ids = std::collections::HashSet::new();
    for line in text.lines() {
        let [id, at_ms, path, took_ms, verdict, status] = line.split(',').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let id: u64 = id.parse().unwrap();
        assert!(ids.insert(id), "{line}");
        assert!(at_ms.parse::<u64>().unwrap() >= report.started_at_ms, "{line}");
        assert!(took_ms.parse::<u64>().is_ok(), "{line}");
        match (path, id.checked_sub(900_000_000)) {
            ("/order", None) => assert!(report.record.get(id).is_some(), "{line}"),
            (path, Some(order)) => assert_eq!(path, format!("/order/{order}/payment-callback")),
            (path, None) => assert!(path.starts_with("/aggregate-stats/"), "{line}"),
        }
        let status: u16 = status.parse().unwrap();
        assert_eq!(verdict, if status < 400 { "ok" } else { "ko" }, "{line}");
    }
    assert_eq!(ids.len() as u64, report.requests);
    warehouse.stop().await;
}

/// Returns the findings of the audit after a run against an order management with this fault.
async fn findings(fault: Fault) -> Vec<Finding> {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), fault).await;
    let config = FrontConfig {
        // The fault `SellsWhatIsReserved` needs a shortage to have an effect. With only 4 products,
        // the first store runs out of units.
        customers: Customers {
            products: if fault == Fault::SellsWhatIsReserved {
                4
            } else {
                1000
            },
            ..Customers::default()
        },
        ..front(folder.path(), &oms, &warehouse)
    };
    let report = run(config).await;
    let findings = audited(&oms, &warehouse, &report).await.findings;
    warehouse.stop().await;
    findings
}

#[tokio::test]
async fn lost_orders_are_found() {
    let found = findings(Fault::LosesOrders).await;
    assert!(!found.is_empty());
    let missing = |f: &Finding| matches!(f, Finding::OrderMissing { order } if order.ends_with(['0', '5']));
    assert!(found.iter().all(missing), "{found:#?}");
}

#[tokio::test]
async fn second_deliveries_are_found() {
    let found = findings(Fault::DeliversTwice).await;
    let twice = |f: &&Finding| matches!(f, Finding::DeliveredTwice { count: 2, .. });
    assert!(found.iter().filter(twice).count() > 10, "{found:#?}");
}

#[tokio::test]
async fn reservations_that_stay_are_found() {
    let found = findings(Fault::KeepsReservations).await;
    let orphaned = |f: &Finding| matches!(f, Finding::ReservationOrphaned { .. });
    assert!(found.len() > 10 && found.iter().all(orphaned), "{found:#?}");
}

#[tokio::test]
async fn overselling_is_found() {
    let found = findings(Fault::SellsWhatIsReserved).await;
    let refused = |f: &Finding| matches!(f, Finding::DeliveryRefused { .. });
    assert!(found.iter().any(refused), "{found:#?}");
}

#[tokio::test]
async fn forgotten_payments_are_found() {
    let found = findings(Fault::ForgetsPayments).await;
    let lost = |f: &Finding| matches!(f, Finding::PaymentLost { kept: None, .. });
    assert!(found.len() > 10 && found.iter().all(lost), "{found:#?}");
}

#[tokio::test]
async fn a_run_ended_early_finishes_what_is_in_flight_and_reports() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let config = FrontConfig {
        load: load(3600),
        ..front(folder.path(), &oms, &warehouse)
    };
    let (stop, stopped) = watch::channel(false);
    let telemetry = Telemetry::default();
    let mut shown = telemetry.subscribe();
    let running = tokio::spawn(async move { run_front(config, &telemetry, stopped).await });
    shown
        .wait_for(|state| state.route(Route::Order).ok > 20)
        .await
        .unwrap();
    stop.send_replace(true);
    let report = running.await.unwrap().unwrap();
    assert!(report.stopped_early && report.payments_not_sent > 0);
    let over: u64 = report.routes.iter().map(|route| route.requests).sum();
    assert_eq!(over, report.requests, "everything that was sent is accounted for");
    let verdict = audited(&oms, &warehouse, &report).await;
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    warehouse.stop().await;
}

#[tokio::test]
async fn an_order_management_that_dies_is_counted_and_the_run_ends_with_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let warehouse = Warehouse::start(quick(folder.path(), listener.local_addr().unwrap()))
        .await
        .unwrap();
    // The order management has a separate runtime. The shutdown of that runtime drops every
    // connection, as a kill would.
    let theirs = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = listener.into_std().unwrap();
    let entered = theirs.enter();
    let listener = TcpListener::from_std(listener).unwrap();
    let oms = FakeOms::serve(listener, warehouse.address(), Fault::None);
    drop(entered);
    let telemetry = Telemetry::default();
    let mut shown = telemetry.subscribe();
    let (_stop, stopped) = watch::channel(false);
    let config = front(folder.path(), &oms, &warehouse);
    let running = tokio::spawn(async move { run_front(config, &telemetry, stopped).await });
    shown
        .wait_for(|state| state.route(Route::Order).ok > 10)
        .await
        .unwrap();
    theirs.shutdown_background();
    let report = running.await.unwrap().unwrap();
    let failed = |o: &Outcome| matches!(o, Outcome::Refused | Outcome::Closed);
    let orders = report.record.orders();
    assert!(orders.iter().any(|o| o.order.is_acknowledged()) && orders.iter().any(|o| failed(&o.order)));
    assert!(
        orders
            .iter()
            .all(|o| o.payment.is_acknowledged() || failed(&o.payment)),
        "{orders:#?}"
    );
    let over: u64 = report.routes.iter().map(|route| route.requests).sum();
    assert_eq!((over, report.requests), (400 + orders.len() as u64, over));
    let config = AuditConfig {
        stalled_after: Duration::ZERO,
        ..AuditConfig::new(oms.address.into(), warehouse.address().into())
    };
    let verdict = audit(&config, &report.record, &watch::Sender::default()).await;
    assert!(
        matches!(verdict, Err(Error::Unreachable { .. })),
        "no answer is no verdict: {verdict:?}"
    );
    warehouse.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_log_that_cannot_be_written_is_told_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    std::os::unix::fs::symlink("/dev/full", folder.path().join("stats.csv")).unwrap();
    let report = run(front(folder.path(), &oms, &warehouse)).await;
    let problem = report.log_problem.as_deref().unwrap_or_default();
    assert!(
        problem.contains("stats.csv") && problem.contains("No space left"),
        "{problem}"
    );
    assert!(report.requests > 400);
    warehouse.stop().await;
}

/// Returns an address at which no server listens.
fn unused_address() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn without_an_order_management_the_front_says_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let address = unused_address();
    let config = FrontConfig {
        oms: address.into(),
        data: folder.path().to_owned(),
        ready_timeout: Duration::ZERO,
        stock_timeout: Duration::ZERO,
        ..FrontConfig::default()
    };
    let (_stop, stopped) = watch::channel(false);
    let error = run_front(config, &Telemetry::default(), stopped)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("connection refused"),
        "{error}"
    );
    assert!(
        !folder.path().join("front.json").exists(),
        "no id was reserved for a run that never was"
    );
}

#[tokio::test]
async fn an_interrupted_wait_for_the_order_management_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let address = unused_address();
    let config = FrontConfig {
        oms: address.into(),
        data: folder.path().to_owned(),
        ready_timeout: Duration::from_secs(3_600),
        ..FrontConfig::default()
    };
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(async move { run_front(config, &Telemetry::default(), stopped).await });
    stop.send_replace(true);
    let error = running.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, Error::Interrupted { address: waited } if waited.contains(&address.to_string()))
    );
    assert!(!folder.path().join("front.json").exists(), "{error}");
}

/// Returns customers with all kinds of unusual payments and with cancellations.
fn odd_customers() -> Customers {
    Customers {
        stats_parts: 1,
        order_parts: 2,
        popularity: Popularity::Zipf(Zipf::new(1_000, 0.9)),
        basket_min: 1,
        basket_max: 5,
        habits: Habits {
            never_paid: 0.1,
            paid_twice: 0.2,
            paid_late: 0.1,
            late_by: Duration::from_millis(300),
            paid_before: 0.2,
            cancelled: 0.2,
        },
        ..Customers::default()
    }
}

#[tokio::test]
async fn unusual_customers_leave_a_clean_audit_and_their_orders_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let config = FrontConfig {
        customers: odd_customers(),
        ..front(folder.path(), &oms, &warehouse)
    };
    let report = run(config).await;
    let verdict = audited(&oms, &warehouse, &report).await;
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    let orders = report.record.orders();
    let cancelled = orders.iter().filter(|o| o.cancel.is_acknowledged()).count() as u64;
    assert!(cancelled > 10);
    assert_eq!(verdict.orders_of_run["cancelled"], cancelled);
    assert_eq!(verdict.orders_of_run.values().sum::<u64>(), orders.len() as u64);
    let early = &report.route(Route::Payment).errors;
    assert!(early.get("404").is_some_and(|count| *count > 10), "{early:?}");
    assert!(orders.iter().all(|o| !o.is_paid || o.payment != Outcome::NotSent));
    warehouse.stop().await;
}

#[tokio::test]
async fn a_run_leaves_a_folder_whose_series_and_log_agree_with_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let run_folder = RunFolder::create(folder.path(), &RunFacts::new("test", "", 1, "imt sim run")).unwrap();
    let config = FrontConfig {
        run_folder: Some(run_folder.path().to_owned()),
        warm_up: Duration::from_millis(500),
        ..front(folder.path(), &oms, &warehouse)
    };
    let telemetry = Telemetry::default();
    let monitor = Monitor::start(config.oms.clone(), config.warehouse.clone(), telemetry.clone()).await;
    let (_stop, stopped) = watch::channel(false);
    let report = run_front(config, &telemetry, stopped).await.unwrap();
    let verdict = audited(&oms, &warehouse, &report).await;
    monitor.poll_once().await;
    let state = telemetry.snapshot(usize::MAX, usize::MAX);
    assert_eq!(state.phase, Phase::Draining);

    let points = series::read(run_folder.path()).unwrap();
    let total = |of: fn(&imt_sim::telemetry::SecondPoint) -> u64| points.iter().map(of).sum::<u64>();
    assert_eq!(total(|point| point.sent), report.requests);
    assert_eq!(total(|point| point.ok + point.failed), report.requests);
    assert_eq!(state.answered, report.requests);
    let by_route: u64 = points
        .iter()
        .flat_map(|p| &p.routes)
        .map(|route| route.requests)
        .sum();
    assert_eq!(by_route, report.requests);
    let log = std::fs::read_to_string(folder.path().join("stats.csv")).unwrap();
    assert_eq!(log.lines().count() as u64, report.requests);
    assert_eq!(
        log,
        std::fs::read_to_string(run_folder.path().join("stats.csv")).unwrap()
    );
    for route in &report.routes {
        assert!(route.latency.count <= route.requests);
    }
    assert!(
        report.route(Route::Stats).latency.count < report.route(Route::Stats).requests,
        "warm-up"
    );

    let identity = RunIdentity {
        scenario: "test".to_owned(),
        ..RunIdentity::default()
    };
    let summary = Summary::new(identity, &report, Ok(verdict), &state, Vec::new());
    assert!(
        matches!(summary.verdict, Verdict::Clean | Verdict::Invalid),
        "{summary}"
    );
    let events: Vec<_> = state.events.iter().cloned().collect();
    run_folder.write_results(&report, &events, &summary).unwrap();
    assert_eq!(run_folder.events().unwrap(), events);
    let read = run_folder.summary().unwrap().unwrap();
    assert_eq!(read["requests"], report.requests);
    let buckets = run_folder.histograms().unwrap();
    let counted: u64 = buckets
        .iter()
        .flat_map(|(_, buckets)| buckets)
        .map(|bucket| bucket.count)
        .sum();
    assert_eq!(
        counted,
        report.routes.iter().map(|route| route.latency.count).sum::<u64>()
    );
    warehouse.stop().await;
}

#[tokio::test]
async fn requests_that_are_too_late_are_dropped_with_their_payments() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let config = FrontConfig {
        drop_after: Duration::ZERO,
        ..front(folder.path(), &oms, &warehouse)
    };
    let report = run(config).await;
    let planned = 400 + report.record.orders().len() as u64;
    assert_eq!((report.requests, report.dropped), (0, planned));
    assert_eq!(
        report.payments_not_sent, 0,
        "an order that was not sent needs no payment"
    );
    let log = std::fs::read_to_string(folder.path().join("stats.csv")).unwrap();
    assert!(log.lines().all(|line| line.ends_with(",ko,not sent")));
    assert_eq!(log.lines().count() as u64, planned);
    warehouse.stop().await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_named() {
    let (_stop, stopped) = watch::channel(false);
    let second = Duration::from_secs(1);
    for (config, setting) in [
        (
            FrontConfig {
                load: Load::steady(0.0, second, Arrivals::Fixed),
                ..FrontConfig::default()
            },
            "rate",
        ),
        (
            FrontConfig {
                load: Load::steady(1.0, Duration::ZERO, Arrivals::Fixed),
                ..FrontConfig::default()
            },
            "duration",
        ),
        (
            FrontConfig {
                customers: Customers {
                    products: 1,
                    ..Customers::default()
                },
                ..FrontConfig::default()
            },
            "basket",
        ),
        (
            FrontConfig {
                warm_up: Duration::from_secs(30),
                ..FrontConfig::default()
            },
            "warm_up",
        ),
        (
            FrontConfig {
                in_flight_max: 0,
                ..FrontConfig::default()
            },
            "in_flight_max",
        ),
    ] {
        match run_front(config, &Telemetry::default(), stopped.clone()).await {
            Err(Error::Config { setting: named, .. }) => assert_eq!(named, setting),
            other => panic!("{setting}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_warehouse_started_again_goes_on_with_its_real_stock() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let report = run(front(folder.path(), &oms, &warehouse)).await;
    let verdict = audited(&oms, &warehouse, &report).await;
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    let before = warehouse.stop().await;
    assert!(before.delivered > 0);

    // A process killed in the middle of a write leaves this incomplete line. Its entry was never
    // confirmed.
    let ledger = folder.path().join("warehouse/ledger.jsonl");
    let mut text = std::fs::read(&ledger).unwrap();
    text.extend_from_slice(b"{\"kind\":\"delivered\",\"sequence\":17");
    std::fs::write(&ledger, text).unwrap();

    let again = Warehouse::start(WarehouseConfig {
        seed: 999,
        ..quick(folder.path(), oms.address)
    })
    .await
    .unwrap();
    again.stocked().await;
    let after = again.summary();
    assert_eq!(
        (after.announced, after.delivered, after.sequence, after.seed),
        (before.announced, before.delivered, before.sequence, before.seed)
    );
    assert_eq!(oms.snapshots().last().unwrap().0, before.sequence);
    let verdict = audited(&oms, &again, &report).await;
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    again.stop().await;
}

#[tokio::test]
async fn a_second_warehouse_on_the_same_folder_or_port_is_turned_away() {
    let folder = tempfile::tempdir().unwrap();
    let (warehouse, oms) = neighbours(folder.path(), Fault::None).await;
    let error = Warehouse::start(quick(folder.path(), oms.address))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    let other = tempfile::tempdir().unwrap();
    let config = WarehouseConfig {
        listen: warehouse.address(),
        ..quick(other.path(), oms.address)
    };
    let error = Warehouse::start(config).await.unwrap_err();
    assert!(
        error.to_string().contains(&warehouse.address().to_string()),
        "{error}"
    );
    warehouse.stop().await;
}

#[tokio::test]
async fn the_whole_stock_of_two_million_lines_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = WarehouseConfig {
        shape: StockShape::default(),
        snapshot_every: Duration::from_secs(3600),
        ..quick(folder.path(), listener.local_addr().unwrap())
    };
    let warehouse = Warehouse::start(config).await.unwrap();
    let oms = FakeOms::serve(listener, warehouse.address(), Fault::None);
    warehouse.stocked().await;
    let snapshots = oms.snapshots();
    assert_eq!(snapshots.len(), 1);
    assert_eq!(snapshots[0].1, 2_000_000);
    let first_day = imt_sim::warehouse::Stock::first_day(1, StockShape::default());
    for (product, store) in [(1, 1), (10_000, 200), (812, 5), (9_999, 1)] {
        assert_eq!(
            oms.on_hand(product, store),
            i64::from(first_day.get(product, store).unwrap())
        );
    }
    warehouse.stop().await;
}

/// Runs a warehouse with this fault of its snapshots until `enough` returns `true` for its counts.
/// Returns the order management to which the snapshots were sent.
async fn snapshots(fault: SnapshotFault, enough: fn(&imt_sim::wire::WarehouseSummary) -> bool) -> FakeOms {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = quick(folder.path(), listener.local_addr().unwrap());
    config.snapshot_every = Duration::from_millis(20);
    config.behaviour.snapshots = fault;
    let warehouse = Warehouse::start(config).await.unwrap();
    let oms = FakeOms::serve(listener, warehouse.address(), Fault::None);
    // Deliveries between two snapshots give the snapshots different sequence numbers.
    for id in 1_u32.. {
        if enough(&warehouse.summary()) {
            break;
        }
        oms.deliver_one_unit(&id.to_string()).await;
    }
    warehouse.stop().await;
    oms
}

#[tokio::test]
async fn snapshots_come_late_twice_or_broken_and_change_nothing_wrongly() {
    let twice = snapshots(SnapshotFault::Twice, |counts| counts.snapshots_sent >= 3).await;
    let taken = twice.snapshots();
    assert!(taken.len() >= 5 && taken[0] == taken[1], "{taken:?}");

    let late = snapshots(SnapshotFault::Late, |counts| {
        counts.faults.get("snapshot-late").is_some_and(|late| *late >= 3) && counts.snapshots_refused >= 1
    })
    .await;
    assert!(
        late.snapshots().is_sorted_by_key(|(as_of, _)| *as_of),
        "late ones are refused"
    );

    let broken = snapshots(SnapshotFault::Truncated, |counts| {
        counts
            .faults
            .get("snapshot-truncated")
            .is_some_and(|broken| *broken >= 3)
    })
    .await;
    assert!(
        broken.snapshots().iter().all(|(_, lines)| *lines == 20_000),
        "none is taken in part"
    );
}
