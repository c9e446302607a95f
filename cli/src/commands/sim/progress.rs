//! Progress of a run on standard error: one line per second of at most 80 columns, or the same line
//! redrawn in place on a terminal.

use crate::logging;
use imt_sim::Telemetry;
use imt_sim::telemetry::{Phase, Route, RunState};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Time between two redraws on a terminal.
const REDRAW_EVERY: Duration = Duration::from_millis(200);
/// Seconds that the shown rate and latency are of.
const RECENT: usize = 2;
/// Columns of the smallest terminal.
const COLUMNS: usize = 80;

/// A running display; dropping it removes what a terminal shows.
pub(super) struct Display(JoinHandle<()>);

impl Drop for Display {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Shows the progress of a run until the display is dropped.
pub(super) fn start(telemetry: Telemetry, is_plain: bool) -> Display {
    let is_line = is_plain || !std::io::stderr().is_terminal();
    Display(tokio::spawn(async move {
        match is_line {
            true => print_lines(&telemetry).await,
            false => redraw(&telemetry).await,
        }
    }))
}

async fn print_lines(telemetry: &Telemetry) {
    let mut beat = tokio::time::interval(LINE_EVERY);
    loop {
        beat.tick().await;
        let text = line(&telemetry.snapshot(RECENT, 0));
        // A closed standard error must not end the run.
        let _ = logging::progress_display().suspend(|| writeln!(std::io::stderr().lock(), "{text}"));
    }
}

async fn redraw(telemetry: &Telemetry) {
    let bar = logging::progress_display().add(ProgressBar::new(1));
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    let bar = Cleared(bar);
    let mut beat = tokio::time::interval(REDRAW_EVERY);
    loop {
        beat.tick().await;
        bar.0.set_message(line(&telemetry.snapshot(RECENT, 0)));
    }
}

struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Returns the line of a moment.
fn line(state: &RunState) -> String {
    let elapsed = state.elapsed.as_secs();
    let window = state.sending_window.as_secs_f64().round() as u64;
    let text = match state.phase {
        Phase::Waiting => "waiting for the order management and its first stock".to_owned(),
        Phase::Auditing => format!("audit: {}", state.audit),
        Phase::Done => "done".to_owned(),
        Phase::Sending | Phase::Draining => {
            let rate = state.seconds.back().map_or(0, |second| second.sent);
            let recent = state
                .seconds
                .iter()
                .map(|second| second.routes[Route::Order.index()].p99_us);
            let p99_ms = recent.max().unwrap_or(0) as f64 / 1_000.0;
            let orders = state.cluster.orders_of_run();
            let count = |name: &str| orders.get(name).copied().unwrap_or_default();
            let clock = match state.phase {
                Phase::Sending => format!("{elapsed:>3}/{window} s"),
                _ => format!("{elapsed:>3} s, draining"),
            };
            let nodes = match state.cluster.nodes.len() {
                0 | 1 => String::new(),
                count => format!(" | {count} nodes"),
            };
            format!(
                "{clock} {rate:>5}/s p99 {p99_ms:.1} ms {} failed | {} orders {} delivered | outbox {}{nodes}",
                state.failed,
                orders.values().sum::<u64>(),
                count("delivered"),
                state.cluster.outbox,
            )
        }
    };
    text.chars().take(COLUMNS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use imt_sim::telemetry::{NodeState, SecondPoint};

    #[test]
    fn a_line_fits_80_columns_and_shows_rate_latency_and_orders() {
        let mut state = RunState {
            phase: Phase::Sending,
            elapsed: Duration::from_millis(12_300),
            sending_window: Duration::from_secs(30),
            failed: 4,
            ..RunState::default()
        };
        let mut second = SecondPoint {
            sent: 1_180,
            ..SecondPoint::default()
        };
        second.routes[Route::Order.index()].p99_us = 2_140;
        state.seconds.push_back(second);
        state.cluster.orders_total = [("delivered".to_owned(), 201), ("paid".to_owned(), 39)].into();
        state.cluster.outbox = 12;
        assert_eq!(
            line(&state),
            " 12/30 s  1180/s p99 2.1 ms 4 failed | 240 orders 201 delivered | outbox 12"
        );
        let node = |name: &str| NodeState {
            name: name.to_owned(),
            slots: 1,
            is_served: true,
        };
        state.cluster.nodes = vec![node("a"), node("b")];
        state.cluster.outbox = 1_234_567;
        state.failed = 9_999_999;
        assert!(line(&state).chars().count() <= COLUMNS, "{}", line(&state));
        state.phase = Phase::Waiting;
        assert!(line(&state).contains("waiting"));
    }
}
