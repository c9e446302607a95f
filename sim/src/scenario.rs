//! Scenarios: load, behaviour of the warehouse, node events and thresholds of a run, as TOML.
//!
//! Invariants:
//! - A key that is not known is an error. Errors name file, line and field.
//! - A scenario and a seed determine the requests, the faults and the events of a run.
//! - The scenarios of `data/scenarios/` are compiled in, and each is checked by a test.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::seed::{Dice, Purpose};
use crate::thresholds::Threshold;
use crate::warehouse::{Profile, StockShape};
use crate::workload::{Customers, Load};
use crate::{Error, Result};

mod parse;

/// The scenarios that are compiled in: name and TOML.
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

/// Most nodes beside the one that the shop calls.
pub const NODES_MAX: u32 = 16;

/// Most random events of a run: bounds the memory of a long run with short distances.
const RANDOM_EVENTS_MAX: usize = 10_000;

/// A change of the warehouse's behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarehouseFault {
    /// Beginning, since the start of the run.
    pub at: Duration,
    /// Length; the usual behaviour comes back afterwards.
    pub lasts: Duration,
    /// The behaviour.
    pub profile: Profile,
}

/// Action of a node event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeAction {
    /// A further node is started, or one that is down is started again.
    Join,
    /// A node is stopped gracefully, and started again.
    Stop,
    /// A node is killed (`kill -9`), and started again.
    Kill,
    /// A node's process is paused (`SIGSTOP`), and goes on.
    Pause,
    /// A node leaves for good, and joins again with nothing.
    Leave,
}

impl NodeAction {
    /// All actions.
    pub const ALL: [Self; 5] = [Self::Join, Self::Stop, Self::Kill, Self::Pause, Self::Leave];

    /// Name, as in scenarios.
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

/// An event of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeEvent {
    /// Moment, since the start of the run.
    pub at: Duration,
    /// Action.
    pub action: NodeAction,
    /// Number of the node, from 1.
    pub node: u32,
    /// Time until the node is started again or goes on.
    pub lasts: Duration,
}

/// Node events that are drawn from the seed at equal distances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RandomEvents {
    /// Distance of two events.
    pub every: Duration,
    /// Actions, each as likely as any other; an action may be listed more than once.
    pub actions: Vec<NodeAction>,
}

impl RandomEvents {
    /// Draws the events of a run. The last distance of the run is free of them, so that requests in
    /// flight end among nodes that stay.
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

/// The warehouse of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarehousePlan {
    /// Usual behaviour.
    pub profile: Profile,
    /// Products and stores.
    pub shape: StockShape,
    /// `true` if sold units come back into stock.
    pub restock: bool,
    /// Time from one stock snapshot to the next.
    pub snapshot_every: Duration,
    /// Time from one statistics file to the next.
    pub stat_file_every: Duration,
    /// Changes of the behaviour, in the order of their beginnings.
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

/// A scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Name: of a built-in scenario, or of its file without `.toml`.
    pub name: String,
    /// One sentence for people.
    pub description: String,
    /// Seed; `None` for the usual one.
    pub seed: Option<u64>,
    /// Time from the start that is left out of the latencies.
    pub warm_up: Duration,
    /// Nodes beside the one that the shop calls, each a process of its own.
    pub nodes: u32,
    /// `true` if the shop sends each request to the node that owns its order.
    pub route: bool,
    /// Times of the requests.
    pub load: Load,
    /// Behaviour of the customers.
    pub customers: Customers,
    /// The warehouse.
    pub warehouse: WarehousePlan,
    /// Node events with a fixed time.
    pub events: Vec<NodeEvent>,
    /// Node events that depend on the seed.
    pub random_events: Option<RandomEvents>,
    /// Conditions under which the run fails.
    pub thresholds: Vec<Threshold>,
    /// The text of the scenario file. Empty for a scenario from command line flags.
    pub toml: String,
}

impl Scenario {
    /// Returns all node events of a run in the order of their moments.
    pub fn node_events(&self, seed: u64) -> Vec<NodeEvent> {
        let mut events = self.events.clone();
        if let Some(random) = self.random_events.as_ref().filter(|_| self.nodes > 0) {
            events.extend(random.draw(self.nodes, seed, self.load.duration()));
        }
        events.sort_by_key(|event| event.at);
        events
    }

    /// Finds a scenario by its built-in name, or reads it from a file.
    ///
    /// # Errors
    /// If there is no such scenario or file, or the text cannot be used. The message names file,
    /// line and field.
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

/// A fault of a scenario, with its line.
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
