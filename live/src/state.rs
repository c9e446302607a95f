//! Everything that the view draws, as plain data.

use imt_sim::summary::Verdict;
use imt_sim::telemetry::RunState;
use serde::{Deserialize, Serialize};

/// Number of seconds of a run that the view reads, enough for one column each on a wide screen.
pub const SECONDS_SHOWN: usize = 300;
/// Number of events and of log lines that the view reads, enough for one row each on a tall screen.
pub const LINES_SHOWN: usize = 100;

/// Content of the bottom panel of a small screen, which the keys `l` and Tab change. Larger screens
/// show events and log in two panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pane {
    /// The panel shows the events of the run.
    #[default]
    Events,
    /// The panel shows the newest lines of the log.
    Log,
}

/// A window on top of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlay {
    /// No window is shown.
    #[default]
    None,
    /// The help window, with the keys and the symbols.
    Help,
}

/// State of the user's request to end the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// The end of the run was not requested.
    #[default]
    NotAsked,
    /// The end of the run was requested. No new request is sent. If the run has sent requests,
    /// those in flight and the audit are completed. Otherwise the run ends at once.
    Asked,
}

/// Result of a run after its audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Verdict on the run as a whole.
    pub verdict: Verdict,
    /// Number of findings of the audit.
    pub findings: usize,
    /// Number of thresholds that were missed.
    pub thresholds_missed: usize,
}

/// The state of a run at one moment, with the settings of the view.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// State of the run, with its newest seconds and events.
    pub run: RunState,
    /// Newest lines of the log, from the oldest to the newest.
    pub log: Vec<String>,
    /// Content of the bottom panel of a small screen.
    pub pane: Pane,
    /// Window on top of the view.
    pub overlay: Overlay,
    /// `Ending::Asked` once the user pressed `q` or Ctrl-C, or a signal was received.
    pub ending: Ending,
    /// Result of the run. `None` before the audit has ended.
    pub outcome: Option<Outcome>,
    /// Address of the web console, if there is one.
    pub console: Option<String>,
    /// A message that the loop of the view shows for a few seconds in place of the web console's
    /// address.
    pub notice: Option<String>,
}

/// The state of a run at one moment as JSON, from which a picture for documents can be drawn.
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
