use std::collections::BTreeMap;
use std::time::Duration;

use imt_sim::cluster_detail::{ClusterDetail, MoveDetail, NodeDetail, NodeRequests, NodeStatus, SlotRun};
use imt_sim::summary::Verdict;
use imt_sim::telemetry::{EventKind, NodeState, Phase, Route, RunEvent, RunState, SecondPoint};
use imt_sim::wire::WarehouseSummary;
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::*;
use crate::state::{Ending, Outcome};
use crate::theme::Palette;

fn screen(columns: u16, rows: u16, state: &State, palette: Palette) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal
        .draw(|frame| draw(frame, state, Theme::new(palette)))
        .unwrap();
    terminal
}

fn text(columns: u16, rows: u16, state: &State) -> String {
    let terminal = screen(columns, rows, state, Palette::Indexed);
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(columns));
    let lines = lines.map(|cells| {
        cells
            .iter()
            .map(ratatui::buffer::Cell::symbol)
            .collect::<String>()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Asserts that the drawn screen contains each of `words`.
#[track_caller]
fn check(columns: u16, rows: u16, state: &State, words: &[&str]) {
    let text = text(columns, rows, state);
    for word in words {
        assert!(
            text.contains(word),
            "'{word}' is missing at {columns} x {rows}:\n{text}"
        );
    }
}

fn second(number: u64) -> SecondPoint {
    let mut point = SecondPoint {
        second: number,
        sent: 1_180,
        outbox: 10 + number,
        ..SecondPoint::default()
    };
    for route in Route::ALL {
        point.routes[route.index()].requests = 100 * (route.index() as u64 + 1);
        point.routes[route.index()].p50_us = 420;
        point.routes[route.index()].p99_us = 2_100 + number * 100;
    }
    point
}

fn node(name: &str, status: NodeStatus, serves: &[&str]) -> NodeDetail {
    NodeDetail {
        name: name.to_owned(),
        status,
        slots: 4_096,
        serves: serves.iter().map(|volume| (*volume).to_owned()).collect(),
        requests: (status == NodeStatus::Serving).then_some(NodeRequests {
            requests: 95,
            p99_us: Some(2_100),
        }),
    }
}

/// Returns the state of a run with four nodes, one of which was killed.
fn busy() -> State {
    let mut run = RunState {
        phase: Phase::Sending,
        scenario: "node-kill".to_owned(),
        seed: 42,
        elapsed: Duration::from_secs(12),
        sending_window: Duration::from_secs(30),
        sent: 14_000,
        answered: 13_990,
        failed: 4,
        ..RunState::default()
    };
    run.seconds = (0..12).map(second).collect();
    run.routes[Route::Order.index()].requests = 2_400;
    run.routes[Route::Order.index()].ok = 2_396;
    run.cluster.is_reachable = true;
    run.cluster.epoch = 7;
    run.cluster.outbox = 21;
    run.cluster.outbox_dead = 2;
    run.cluster.warehouse_away = true;
    run.cluster.orders_total = BTreeMap::from([
        ("announced".to_owned(), 310),
        ("delivered".to_owned(), 1_204),
        ("rejected".to_owned(), 17),
        ("refund_wanted".to_owned(), 1),
    ]);
    run.cluster.detail = ClusterDetail {
        members: ["node-1", "node-2", "node-3", "sim-master"]
            .map(str::to_owned)
            .to_vec(),
        runs: (0..4).map(|member| SlotRun { member, slots: 4_096 }).collect(),
        nodes: vec![
            node("node-1", NodeStatus::Serving, &["node-1", "node-2"]),
            node("node-2", NodeStatus::Died, &[]),
            node("node-3", NodeStatus::Serving, &["node-3"]),
            node("sim-master", NodeStatus::Serving, &["sim-master"]),
        ],
        moving: None,
    };
    run.warehouse = Some(WarehouseSummary {
        behaviour: "brownout".to_owned(),
        announced: 1_530,
        delivered: 1_204,
        refused: 3,
        snapshots_sent: 5,
        stat_files_written: 9,
        ..WarehouseSummary::default()
    });
    run.events.push_back(RunEvent {
        at_ms: 0,
        offset_ms: 9_300,
        kind: EventKind::Kill,
        subject: "node-2".to_owned(),
        text: "node-2 killed".to_owned(),
    });
    State {
        run,
        log: vec!["2026-11-29T05:46:12.948278Z WARN circuit breaker opened volume=node-1".to_owned()],
        console: Some("http://127.0.0.1:9090/".to_owned()),
        ..State::default()
    }
}

/// Returns the state of a run in which many texts are longer than a screen is wide, and many
/// figures have the largest value of their type.
fn extreme() -> State {
    let mut state = busy();
    let long = "倉庫-with-a-name-that-no-screen-shows-in-full\u{1b}[31m".repeat(9);
    state.run.scenario.clone_from(&long);
    state.run.audit.clone_from(&long);
    (state.run.sent, state.run.answered, state.run.failed) = (u64::MAX, u64::MAX, u64::MAX);
    state.run.lag.p99_us = u64::MAX;
    for point in &mut state.run.seconds {
        (point.sent, point.outbox) = (u64::MAX, u64::MAX);
        for route in &mut point.routes {
            (route.requests, route.failed) = (u64::MAX, 1);
            (route.p50_us, route.p99_us) = (u64::MAX, u64::MAX);
        }
    }
    for count in state.run.cluster.orders_total.values_mut() {
        *count = u64::MAX;
    }
    state.run.cluster.orders_total.insert(long.clone(), 1);
    state.run.cluster.detail.moving = Some(MoveDetail {
        rows: u64::MAX,
        about: u64::MAX,
    });
    for node in &mut state.run.cluster.detail.nodes {
        node.name.clone_from(&long);
        node.slots = u64::MAX;
        node.serves = vec![long.clone(); 40];
    }
    for run in &mut state.run.cluster.detail.runs {
        run.slots = u64::MAX;
        run.member = usize::MAX;
    }
    state.run.events[0].text.clone_from(&long);
    state.run.events[0].offset_ms = u64::MAX;
    state.log = vec![long.clone(); 40];
    state.console = Some(long);
    state
}

#[test]
fn every_size_shows_requests_orders_nodes_and_servers() {
    let words = [
        "scenario node-kill",
        "seed 42",
        "sending 12 / 30 s",
        "1,180/s",
        "4 failed",
        "order",
        "200",
        "0.42",
        "announced",
        "310",
        "1,204",
        "refund wanted",
        "4 nodes · epoch 7",
        "25.0 %",
        "95/s",
        "own, node-2",
        "brownout",
        "OPEN",
        "21",
        "2 letters",
        "3 refused",
        "9.3 s ✗ node-2 killed",
        "q stop and audit",
        "http://127.0.0.1:9090/",
    ];
    for (columns, rows) in [(80, 24), (120, 40), (200, 50)] {
        check(columns, rows, &busy(), &words);
    }
    check(80, 24, &busy(), &["died → node-1"]);
    check(120, 40, &busy(), &["died → node-1"]);
    check(200, 50, &busy(), &["died, served by node-1"]);
}

#[test]
fn large_screens_show_the_log_and_small_ones_on_demand() {
    let word = ["05:46:12 WARN circuit breaker opened"];
    check(120, 40, &busy(), &word);
    check(200, 50, &busy(), &word);
    let mut state = busy();
    assert!(!text(80, 24, &state).contains(word[0]));
    state.pane = Pane::Log;
    check(80, 24, &state, &word);
    assert!(!text(80, 24, &state).contains("node-2 killed"));
}

#[test]
fn the_key_of_the_log_is_shown_where_events_and_log_share_an_area() {
    let key = "help   l log";
    for (columns, rows) in [(80, 24), (119, 50), (200, 30)] {
        check(columns, rows, &busy(), &[key]);
    }
    for (columns, rows) in [(120, 36), (200, 50)] {
        assert!(!text(columns, rows, &busy()).contains(key), "{columns} x {rows}");
    }
}

#[test]
fn a_run_that_has_not_begun_says_what_it_waits_for() {
    for (columns, rows) in [(80, 24), (120, 40), (200, 50)] {
        let words = [
            "waiting for the first stock",
            "The order management has not answered yet.",
            "no answer yet",
            "Joins, stops, deaths and faults appear here.",
        ];
        check(columns, rows, &State::default(), &words);
    }
}

#[test]
fn a_node_without_console_is_described_from_its_health() {
    let mut state = busy();
    let cluster = &mut state.run.cluster;
    cluster.detail = ClusterDetail::default();
    cluster.answered_by = "a".to_owned();
    cluster.volumes = vec!["a".to_owned()];
    cluster.nodes = [("a", true), ("b", false)]
        .map(|(name, is_served)| NodeState {
            name: name.to_owned(),
            slots: 8_192,
            is_served,
        })
        .to_vec();
    check(80, 24, &state, &["2 nodes", "50.0 %", "own volume", "not served"]);
}

#[test]
fn nodes_that_do_not_serve_are_shown_when_not_all_fit() {
    let mut state = busy();
    let mut nodes: Vec<NodeDetail> = (1..=20)
        .map(|number| node(&format!("node-{number}"), NodeStatus::Serving, &["x"]))
        .collect();
    nodes.push(node("node-21", NodeStatus::Died, &[]));
    state.run.cluster.detail.nodes = nodes;
    check(80, 24, &state, &["node-21", "died", "more"]);
}

#[test]
fn help_stop_and_verdict_are_shown() {
    let mut state = busy();
    state.overlay = Overlay::Help;
    check(
        80,
        24,
        &state,
        &["Ctrl-C", "twice: leave at once", "✗ kill", "failed requests"],
    );
    state.overlay = Overlay::None;
    state.ending = Ending::Asked;
    check(80, 24, &state, &["stopping", "q leave at once"]);
    state.run.phase = Phase::Auditing;
    state.run.audit = "orders 200 of 1,532".to_owned();
    check(80, 24, &state, &["auditing orders 200 of 1,532"]);
    state.outcome = Some(Outcome {
        verdict: Verdict::Findings,
        findings: 2,
        thresholds_missed: 0,
    });
    check(80, 24, &state, &["FINDINGS 2 findings", "q leave"]);
    for (thresholds_missed, detail) in [
        (0, "INVALID the schedule was not kept"),
        (2, "INVALID 2 thresholds missed"),
    ] {
        state.outcome = Some(Outcome {
            verdict: Verdict::Invalid,
            findings: 0,
            thresholds_missed,
        });
        check(80, 24, &state, &[detail]);
    }
}

#[test]
fn a_small_terminal_is_told_the_size_that_is_needed() {
    check(79, 24, &busy(), &["79 x 24", "80 x 24"]);
    check(80, 23, &busy(), &["80 x 23"]);
}

#[test]
fn huge_figures_and_names_stay_in_their_places() {
    for (columns, rows) in [(80, 24), (120, 40), (200, 50)] {
        let text = text(columns, rows, &extreme());
        assert!(text.contains("18E/s") || text.contains("18.4E/s"), "{text}");
        assert!(text.contains('…'), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn no_cell_has_a_colour_in_monochrome() {
    for (columns, rows) in [(80, 24), (120, 40), (200, 50)] {
        let terminal = screen(columns, rows, &busy(), Palette::Monochrome);
        let cells = terminal.backend().buffer().content();
        let coloured = cells
            .iter()
            .find(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        assert_eq!(coloured, None);
    }
}

#[test]
fn every_width_and_every_height_is_drawn() {
    let states = [State::default(), busy(), extreme()];
    let widths = (1..=250).flat_map(|columns| [24, 44].map(|rows| (columns, rows)));
    let heights = (1..=80).flat_map(|rows| [80, 120, 160].map(|columns| (columns, rows)));
    for (columns, rows) in widths.chain(heights) {
        for state in &states {
            screen(columns, rows, state, Palette::Basic);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_figures_are_drawn_at_any_size(
        columns in 1_u16..=250,
        rows in 1_u16..=80,
        figures in proptest::collection::vec(any::<u64>(), 12),
        nodes in 0_usize..40,
        seconds in 0_usize..400,
        has_help in any::<bool>(),
    ) {
        let mut state = busy();
        state.run.phase = Phase::Draining;
        (state.run.sent, state.run.answered) = (figures[0], figures[1]);
        (state.run.late, state.run.dropped) = (figures[2], figures[3]);
        state.run.sending_window = Duration::from_secs(figures[4] % 100_000);
        state.run.elapsed = Duration::from_millis(figures[5]);
        state.run.seconds = (0..seconds as u64).map(|number| {
            let mut point = second(number % 90);
            point.routes[0].requests = figures[6].wrapping_mul(number);
            point
        }).collect();
        let detail = &mut state.run.cluster.detail;
        detail.nodes = (0..nodes).map(|number| NodeDetail {
            slots: figures[7] >> number,
            ..node(&format!("n{number}"), NodeStatus::Serving, &["n0"])
        }).collect();
        detail.runs = (0..nodes).map(|member| SlotRun { member, slots: figures[8] >> member }).collect();
        state.overlay = if has_help { Overlay::Help } else { Overlay::None };
        screen(columns, rows, &state, Palette::Indexed);
    }
}
