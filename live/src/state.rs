//! Everything that the view draws, as plain data.

use imt_sim::summary::Verdict;
use imt_sim::telemetry::RunState;
use serde::{Deserialize, Serialize};

/// Number of seconds of a run that the view reads: one for each column of the widest screen.
pub const SECONDS_SHOWN: usize = 300;
/// Number of events and of log lines that the view reads: one for each row of the tallest screen.
pub const LINES_SHOWN: usize = 100;

/// Content of the panel at the bottom of a small screen. Larger screens show events and log in two
/// panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pane {
    /// Events of the run.
    #[default]
    Events,
    /// Newest lines of the log.
    Log,
}

/// A window on top of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlay {
    /// No window.
    #[default]
    None,
    /// A window with the keys and the symbols.
    Help,
}

/// State of a requested end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// No end of the run was requested.
    #[default]
    NotAsked,
    /// The end was requested. No new request is sent, but requests in flight and the audit are
    /// completed.
    Asked,
}

/// Result of a run that has been audited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Verdict of the audit and of the thresholds together.
    pub verdict: Verdict,
    /// Number of findings of the audit.
    pub findings: usize,
    /// Number of thresholds that were missed.
    pub thresholds_missed: usize,
}

/// One moment of a run, with the settings of the view.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The run, with its newest seconds and events.
    pub run: RunState,
    /// Newest lines of the log, from the oldest to the newest.
    pub log: Vec<String>,
    /// Content of the panel at the bottom of a small screen.
    pub pane: Pane,
    /// Window on top of the view.
    pub overlay: Overlay,
    /// `Ending::Asked` once the user pressed `q` or Ctrl-C, or a signal was received.
    pub ending: Ending,
    /// Result of the run. `None` before the audit has ended.
    pub outcome: Option<Outcome>,
    /// Address of the web console, if there is one.
    pub console: Option<String>,
    /// A message that is shown for a few seconds in place of the console's address.
    pub notice: Option<String>,
}

/// A moment of a run as JSON, from which a picture for documents can be drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// State of the run at this moment.
    pub run: RunState,
    /// Newest lines of the log.
    pub log: Vec<String>,
    /// Address of the web console, if there is one.
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
