//! Progress of a run: the live view on a terminal, else progress lines of at most 78 columns on
//! standard error. The first row that applies decides. If the live view cannot be opened, the rows
//! below its row decide:
//!
//! | flags | standard output | standard error | shown |
//! | --- | --- | --- | --- |
//! | `--quiet` | any | any | nothing |
//! | `--plain` | any | any | one line per second |
//! | no `--output json` | terminal that can show the view | any | live view |
//! | any | any | terminal | one line, redrawn in place |
//! | any | any | no terminal | one line per second |

use crate::logging;
use crate::output::{self, OutputFormat};
use crate::signals;
use imt_live::state::Outcome;
use imt_live::theme::TerminalEnv;
use imt_live::view::ViewConfig;
use imt_live::{Theme, View};
use imt_sim::Telemetry;
use imt_sim::telemetry::{Phase, Route, RunState};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Time between two printed progress lines.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Time between two redraws of the progress line on a terminal.
const REDRAW_EVERY: Duration = Duration::from_millis(200);
/// Number of latest seconds for the latency in the progress line. The line shows the highest of the
/// 99th percentiles of the order latencies in these seconds.
const RECENT: usize = 2;
/// Name of the file in the run's folder to which log lines are written while the live view is
/// shown.
const LOG_FILE: &str = "run.log";
/// Maximum width of a progress line, in columns. The narrowest supported terminal has 80 columns.
const COLUMNS: usize = 78;

/// Settings of a progress display, and the sources of its data.
pub(super) struct DisplayConfig {
    pub(super) telemetry: Telemetry,
    pub(super) is_plain: bool,
    pub(super) output: OutputFormat,
    /// URL of the node's web console, which the live view shows.
    pub(super) console: String,
    /// Becomes `true` when the user asks for the end of the run.
    pub(super) stop: watch::Receiver<bool>,
}

/// A progress display that runs. Dropping it ends the display, and removes a live view or a redrawn
/// line from the terminal.
pub(super) enum Display {
    Live(View),
    Line(#[expect(dead_code, reason = "dropping it ends the task")] LineDisplay),
}

/// A task that prints progress lines, or redraws one line in place. With `--quiet` it shows
/// nothing.
pub(super) struct LineDisplay(JoinHandle<()>);

impl Drop for LineDisplay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Display {
    /// Shows the progress of a run until the display is dropped.
    pub(super) fn start(config: DisplayConfig) -> Self {
        let mut env = TerminalEnv::of_process();
        if !output::is_coloured(&std::io::stdout()) {
            env.no_color = Some("1".to_owned());
        }
        let is_live = !config.is_plain
            && !output::is_quiet()
            && config.output == OutputFormat::Table
            && std::io::stdout().is_terminal()
            && env.can_draw();
        if is_live {
            match open_view(&config, Theme::of(&env)) {
                Ok(view) => return Self::Live(view),
                Err(error) => tracing::warn!("no live view on this terminal: {error}"),
            }
        }
        let is_line = config.is_plain || !std::io::stderr().is_terminal();
        let telemetry = config.telemetry;
        Self::Line(LineDisplay(tokio::spawn(async move {
            match is_line {
                _ if output::is_quiet() => {}
                true => print_lines(&telemetry).await,
                false => redraw(&telemetry).await,
            }
        })))
    }

    /// Returns `true` if this display is the live view.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Sets the run's folder. The live view saves pictures in this folder. While the view is open,
    /// log lines are also written to a file in this folder. Does nothing without a live view.
    pub(super) fn set_folder(&self, folder: &Path) {
        let Self::Live(view) = self else {
            return;
        };
        view.handle().set_folder(folder.to_owned());
        let path = folder.join(LOG_FILE);
        if let Err(error) = logging::keep_view_lines_in(&path) {
            tracing::warn!("cannot keep the log in {}: {error}", path.display());
        }
    }

    /// Shows the result of the run in the live view. Does nothing for a progress line.
    pub(super) fn set_outcome(&self, outcome: Outcome) {
        if let Self::Live(view) = self {
            view.handle().set_outcome(outcome);
        }
    }

    /// Removes the display. After a live view, prints its newest warnings and errors on standard
    /// error if that is a terminal.
    pub(super) fn close(self) {
        if let Self::Live(view) = self {
            if let Err(error) = view.close() {
                tracing::warn!("the live view ended early: {error}");
            }
            logging::repeat_warnings();
        }
    }
}

fn open_view(config: &DisplayConfig, theme: Theme) -> std::io::Result<View> {
    let view = View::open(ViewConfig {
        telemetry: config.telemetry.clone(),
        log: logging::view_lines().clone(),
        theme,
        console: Some(config.console.clone()),
        on_end: Box::new(signals::interrupt_self),
    })?;
    let handle = view.handle();
    let mut stop = config.stop.clone();
    tokio::spawn(async move {
        if stop.wait_for(|stop| *stop).await.is_ok() {
            handle.set_ending();
        }
    });
    Ok(view)
}

async fn print_lines(telemetry: &Telemetry) {
    let mut beat = tokio::time::interval(LINE_EVERY);
    loop {
        beat.tick().await;
        let text = line(&telemetry.snapshot(RECENT, 0));
        // The error is ignored, because a closed standard error must not end the run.
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

/// Returns the progress line that shows a state of the run. A part that does not fit is left out as
/// a whole, together with the parts after it.
fn line(state: &RunState) -> String {
    let elapsed = state.elapsed.as_secs();
    let window = state.sending_window.as_secs_f64().round() as u64;
    match state.phase {
        Phase::Waiting => "waiting for the order management and its first stock".to_owned(),
        Phase::Auditing if state.audit.is_empty() => "audit begun".to_owned(),
        Phase::Auditing => format!("audit: {}", state.audit),
        Phase::Done => "done".to_owned(),
        Phase::Sending => fitting(format!("{elapsed:>3}/{window}s"), state),
        Phase::Draining => fitting(format!("{elapsed:>3}s drain"), state),
    }
}

/// Returns the clock and, as far as they fit, the parts after it, the most important ones first.
fn fitting(clock: String, state: &RunState) -> String {
    let rate = state.seconds.back().map_or(0, |second| second.sent);
    let recent = state
        .seconds
        .iter()
        .map(|second| second.routes[Route::Order.index()].p99_us);
    let p99_ms = recent.max().unwrap_or(0) as f64 / 1_000.0;
    let orders = state.cluster.orders_of_run();
    let delivered = orders.get("delivered").copied().unwrap_or_default();
    let total = orders.values().sum::<u64>();
    let nodes = match state.cluster.nodes.len() {
        0 | 1 => String::new(),
        more => format!(", {}", output::count(more, "node")),
    };
    let parts = [
        format!(" {rate:>4}/s p99 {p99_ms:.1} ms"),
        format!(" {} failed", state.failed),
        nodes,
        format!(", {delivered}/{total} delivered"),
        format!(", outbox {}", state.cluster.outbox),
    ];
    let mut text = clock;
    for part in parts {
        if text.chars().count() + part.chars().count() > COLUMNS {
            break;
        }
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use imt_sim::telemetry::{NodeState, SecondPoint};

    #[test]
    fn a_line_fits_78_columns_and_shows_rate_latency_nodes_and_orders() {
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
            " 12/30s 1180/s p99 2.1 ms 4 failed, 201/240 delivered, outbox 12"
        );
        let node = |name: &str| NodeState {
            name: name.to_owned(),
            slots: 1,
            is_served: true,
        };
        state.cluster.nodes = ["a", "b", "c", "d"].map(node).to_vec();
        state.elapsed = Duration::from_secs(120);
        state.sending_window = Duration::from_secs(300);
        state.cluster.orders_total = [("delivered".to_owned(), 20_100), ("paid".to_owned(), 3_900)].into();
        let whole = "120/300s 1180/s p99 2.1 ms 4 failed, 4 nodes, 20100/24000 delivered, outbox 12";
        assert_eq!(line(&state), whole);
        assert_eq!(whole.len(), COLUMNS);
        // A line that is too long loses whole parts at its end, and keeps the nodes.
        state.failed = 9_999_999;
        assert_eq!(
            line(&state),
            "120/300s 1180/s p99 2.1 ms 9999999 failed, 4 nodes, 20100/24000 delivered"
        );
        state.phase = Phase::Draining;
        state.seconds[0].routes[Route::Order.index()].p99_us = 10_123_456;
        state.failed = u64::MAX;
        assert_eq!(
            line(&state),
            "120s drain 1180/s p99 10123.5 ms 18446744073709551615 failed, 4 nodes"
        );
        state.phase = Phase::Auditing;
        assert_eq!(line(&state), "audit begun");
        state.audit = "comparing".to_owned();
        assert_eq!(line(&state), "audit: comparing");
        state.phase = Phase::Waiting;
        assert!(line(&state).contains("waiting"));
    }
}
