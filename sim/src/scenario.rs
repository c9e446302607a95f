//! Scenarios: load, behaviour of the warehouse, node events and thresholds of a run, as TOML. The
//! times of faults and events count from the start of the sending window, in which orders and
//! statistics requests start.
//!
//! Invariants:
//! - An unknown key is an error. An error in the text names file and line, and the field if it is
//!   known.
//! - A scenario and a seed determine the requests, the faults and the node events of a run, each
//!   with its planned time.
//! - The scenarios of `data/scenarios/` are compiled into the binary, and a test checks each of
//!   them.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::seed::{Dice, Purpose};
use crate::thresholds::Threshold;
use crate::warehouse::{Profile, StockShape};
use crate::workload::{Customers, Load};
use crate::{Error, Result};

mod parse;

/// The built-in scenarios: name and TOML text.
pub const BUILT_IN: [(&str, &str); 8] = [
    ("calm", include_str!("../../data/scenarios/calm.toml")),
    (
        "black-friday",
        include_str!("../../data/scenarios/black-friday.toml"),
    ),
    (
        "slow-warehouse",
        include_str!("../../data/scenarios/slow-warehouse.toml"),
    ),
    (
        "flaky-warehouse",
        include_str!("../../data/scenarios/flaky-warehouse.toml"),
    ),
    ("stock-out", include_str!("../../data/scenarios/stock-out.toml")),
    ("node-kill", include_str!("../../data/scenarios/node-kill.toml")),
    (
        "rolling-restart",
        include_str!("../../data/scenarios/rolling-restart.toml"),
    ),
    ("chaos", include_str!("../../data/scenarios/chaos.toml")),
];

/// Maximum number of further nodes of a run, beside the entry node (`FrontConfig::oms`).
pub const NODES_MAX: u32 = 16;

/// Maximum number of random events of a run. The limit bounds the memory of a long run with a short
/// interval between events.
const RANDOM_EVENTS_MAX: usize = 10_000;

/// A temporary change of the warehouse's behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarehouseFault {
    /// Time at which the change begins, since the start of the sending window.
    pub at: Duration,
    /// Length of the change. Afterwards the warehouse returns to its usual behaviour, unless the
    /// next change has begun by then.
    pub lasts: Duration,
    /// Behaviour of the warehouse during the change.
    pub profile: Profile,
}

/// Action of a node event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeAction {
    /// Starts the node with this number, after those with lower numbers that the run has not
    /// started yet. Without effect on a node that runs.
    Join,
    /// Stops a node gracefully, and starts it again once all volumes answer.
    Stop,
    /// Kills a node (`kill -9`), and starts it again once all volumes answer.
    Kill,
    /// Pauses the process of a node (`SIGSTOP`) and lets it continue later.
    Pause,
    /// Removes a node and its volume from the cluster, as `imt node leave` does. Later a node with
    /// the same name joins with an empty volume.
    Leave,
}

impl NodeAction {
    /// All actions, for the parser and for lists of the names.
    pub const ALL: [Self; 5] = [Self::Join, Self::Stop, Self::Kill, Self::Pause, Self::Leave];

    /// Returns the name of the action in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Leave => "leave",
        }
    }
}

impl FromStr for NodeAction {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|action| action.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("{name:?} is no node action; the actions are {}", names.join(", "))
        })
    }
}

/// A planned action on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeEvent {
    /// Planned time of the action, since the start of the sending window. The action begins later
    /// if the event before is not complete.
    pub at: Duration,
    /// The action to perform.
    pub action: NodeAction,
    /// Number of the node, from 1.
    pub node: u32,
    /// For a pause, the time for which the process is paused. For a stop, kill or leave, the time
    /// from the moment when all volumes answer again until the node is started again. Without
    /// effect for a join.
    pub lasts: Duration,
}

/// Random node events at equal intervals, derived from the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RandomEvents {
    /// Interval between two events.
    pub every: Duration,
    /// The actions to choose from with equal probability. An action that is listed more than once
    /// is chosen more often.
    pub actions: Vec<NodeAction>,
}

impl RandomEvents {
    /// Returns the random events of a run. There are at most [`RANDOM_EVENTS_MAX`]. The last event
    /// is planned at least one interval before the end of the sending window, so that nodes are
    /// available again when the last requests are completed.
    fn draw(&self, nodes: u32, seed: u64, until: Duration) -> Vec<NodeEvent> {
        let mut dice = Dice::new(seed, Purpose::Faults);
        let mut events = Vec::new();
        let mut at = self.every;
        while at + self.every <= until && events.len() < RANDOM_EVENTS_MAX {
            let node = dice.between(1, nodes);
            let action = self.actions[dice.below(self.actions.len() as u32) as usize];
            let lasts = match action {
                NodeAction::Pause => Duration::from_millis(500),
                _ => Duration::ZERO,
            };
            events.push(NodeEvent {
                at,
                action,
                node,
                lasts,
            });
            at += self.every;
        }
        events
    }
}

/// Settings of the warehouse in a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarehousePlan {
    /// Behaviour of the warehouse outside of the times of `faults`.
    pub profile: Profile,
    /// Numbers of products, stores and units of a new ledger of the warehouse.
    pub shape: StockShape,
    /// `true` if the warehouse puts sold units back into its stock.
    pub restock: bool,
    /// Time from one stock snapshot to the next.
    pub snapshot_every: Duration,
    /// Time from one statistics file to the next.
    pub stat_file_every: Duration,
    /// Temporary changes of the warehouse's behaviour, ordered by their beginnings.
    pub faults: Vec<WarehouseFault>,
}

impl Default for WarehousePlan {
    fn default() -> Self {
        Self {
            profile: Profile::Original,
            shape: StockShape::default(),
            restock: true,
            snapshot_every: Duration::from_secs(15),
            stat_file_every: Duration::from_secs(10),
            faults: Vec::new(),
        }
    }
}

/// All settings of a run: load, customers, warehouse, node events and thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Name of a built-in scenario, name of the scenario's file without its extension, or another
    /// name for a scenario from command line flags.
    pub name: String,
    /// Description for people.
    pub description: String,
    /// Seed of all random choices; `None` for the default seed.
    pub seed: Option<u64>,
    /// Length of the warm-up at the start of the run. Requests with an intended start in the
    /// warm-up are left out of the latencies and lags of the whole run.
    pub warm_up: Duration,
    /// Number of further nodes, beside the entry node (`FrontConfig::oms`). Each further node is a
    /// separate process.
    pub nodes: u32,
    /// `true` if the shop front sends each request to the node that owns its order or the
    /// statistics.
    pub route: bool,
    /// Rate, shape and length of the load.
    pub load: Load,
    /// Behaviour of the customers.
    pub customers: Customers,
    /// Settings of the warehouse.
    pub warehouse: WarehousePlan,
    /// Node events at fixed times.
    pub events: Vec<NodeEvent>,
    /// Random node events, which depend on the seed; `None` for none.
    pub random_events: Option<RandomEvents>,
    /// Conditions under which the run fails.
    pub thresholds: Vec<Threshold>,
    /// The text of the scenario file. Empty for a scenario from command line flags.
    pub toml: String,
}

impl Scenario {
    /// Returns all node events of a run, ordered by time.
    pub fn node_events(&self, seed: u64) -> Vec<NodeEvent> {
        let mut events = self.events.clone();
        if let Some(random) = self.random_events.as_ref().filter(|_| self.nodes > 0) {
            events.extend(random.draw(self.nodes, seed, self.load.duration()));
        }
        events.sort_by_key(|event| event.at);
        events
    }

    /// Finds a built-in scenario by its name, or reads a scenario from a file.
    ///
    /// # Errors
    /// If there is no such scenario, the file cannot be read, or the text cannot be used. The error
    /// of the text names the file and the line.
    pub fn find(name_or_path: &str) -> Result<Self> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text).map_err(|fault| fault.in_file(Path::new(name)));
        }
        let path = Path::new(name_or_path);
        if !path.exists() && !name_or_path.contains(['/', '.']) {
            let names = BUILT_IN.map(|(name, _)| name);
            return Err(Error::Config {
                setting: "scenario",
                problem: format!(
                    "there is no scenario {name_or_path:?}; built in are {}; a path reads a file",
                    names.join(", ")
                ),
            });
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).map_err(|fault| fault.in_file(path))
    }
}

/// A mistake in the text of a scenario, with the number of its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScenarioFault {
    line: u64,
    problem: String,
}

impl ScenarioFault {
    fn in_file(self, path: &Path) -> Error {
        Error::Malformed {
            path: path.to_owned(),
            line: self.line,
            problem: self.problem,
        }
    }
}

#[cfg(test)]
#[path = "scenario_tests.rs"]
mod tests;
