//! Everything that the view draws, as plain data.

use imt_sim::summary::Verdict;
use imt_sim::telemetry::RunState;
use serde::{Deserialize, Serialize};

/// Seconds of the series that a picture needs: one column each on the widest screen.
pub const SECONDS_SHOWN: usize = 300;
/// Events and log lines that a picture needs: one row each on the tallest screen.
pub const LINES_SHOWN: usize = 100;

/// Content of the pane at the bottom of a small screen. Larger screens show both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pane {
    /// Events of the run.
    #[default]
    Events,
    /// Newest lines of the log.
    Log,
}

/// A window on top of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlay {
    /// No window.
    #[default]
    None,
    /// The keys and the symbols.
    Help,
}

/// Progress of an end that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// The run goes on.
    #[default]
    NotAsked,
    /// No request is started any more; requests in flight and the audit go on.
    Asked,
}

/// Result of a run that has been audited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Verdict of the audit and the thresholds.
    pub verdict: Verdict,
    /// Findings of the audit.
    pub findings: usize,
    /// Thresholds that were missed.
    pub thresholds_missed: usize,
}

/// One moment of a run and of the view.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The run, with its newest seconds and events.
    pub run: RunState,
    /// Newest lines of the log, oldest first.
    pub log: Vec<String>,
    /// Pane at the bottom of a small screen.
    pub pane: Pane,
    /// Window on top.
    pub overlay: Overlay,
    /// `Ending::Asked` after `q`, Ctrl-C or a signal.
    pub ending: Ending,
    /// Result, once the audit has ended.
    pub outcome: Option<Outcome>,
    /// Address of the web console.
    pub console: Option<String>,
    /// A sentence in place of the address, for a moment.
    pub notice: Option<String>,
}

/// A moment of a run on disk, for pictures in documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// The run.
    pub run: RunState,
    /// Newest lines of the log.
    pub log: Vec<String>,
    /// Address of the web console.
    pub console: Option<String>,
}

impl From<State> for Recording {
    fn from(state: State) -> Self {
        Self {
            run: state.run,
            log: state.log,
            console: state.console,
        }
    }
}

impl From<Recording> for State {
    fn from(recording: Recording) -> Self {
        Self {
            run: recording.run,
            log: recording.log,
            console: recording.console,
            ..Self::default()
        }
    }
}
