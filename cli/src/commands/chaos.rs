//! `imt sim chaos`: runs a shop while random events kill, stop, pause and remove nodes. The audit
//! shows if anything was lost.
//!
//! Invariants:
//! - Each node with random events runs in a process of its own. The first of these nodes starts
//!   before all others, so it becomes the coordinator.
//! - Without `--route`, the shop calls only a node in this process, and no event happens to this
//!   node. A failed request is therefore a fault of the cluster, and not a connection that ended
//!   with a killed node.
//! - The seed determines the events and their order.

use super::sim::load::{LoadArgs, StockArgs};
use super::sim::{self, ShopPlan};
use crate::args;
use crate::error::CliError;
use crate::output::OutputFormat;
use imt_oms::EngineUrl;
use imt_sim::scenario::NodeAction;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Name of the node in this process. Without `--route`, the shop calls only this node.
const ENTRY: &str = "chaos-entry";

#[derive(clap::Args)]
pub(crate) struct ChaosArgs {
    /// Data folder, created if it does not exist
    #[arg(short, long, env = "IMT_DATA", default_value = "data", value_name = "DIR", value_parser = args::folder())]
    data: PathBuf,
    /// Engine of the nodes, in place of the data folder
    #[arg(long, env = "IMT_ENGINE", value_name = "URL")]
    engine: Option<EngineUrl>,
    /// Number of nodes with events, besides one node without events
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: u32,
    /// Time between two events, at least 50ms
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = args::interval)]
    every: Duration,
    /// Kinds of events
    #[arg(long, value_enum, default_value_t = Harm::All)]
    harm: Harm,
    /// Print one line per second instead of a display
    #[arg(long)]
    plain: bool,
    // The flags of the load come last, because their last help heading would also apply to flags
    // after them.
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    stock: StockArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Harm {
    /// Kills, pauses, graceful stops and leaves in random order
    All,
    /// Kills (kill -9), each followed by a start
    Kill,
    /// Graceful stops and leaves, each followed by a start
    Graceful,
}

impl Harm {
    fn actions(self) -> &'static [NodeAction] {
        match self {
            Self::All => &[
                NodeAction::Kill,
                NodeAction::Kill,
                NodeAction::Stop,
                NodeAction::Leave,
                NodeAction::Pause,
            ],
            Self::Kill => &[NodeAction::Kill],
            Self::Graceful => &[NodeAction::Stop, NodeAction::Leave],
        }
    }
}

/// Runs the shop while random events happen to its nodes.
pub(super) async fn run(args: ChaosArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let mut scenario = args.load.scenario("chaos")?;
    scenario.warehouse.shape = args.stock.shape();
    scenario.nodes = args.nodes;
    scenario.random_events = sim::random_events(args.every, args.harm.actions());
    let plan = ShopPlan {
        seed: args.load.seed(&scenario),
        scenario,
        data: args.data,
        engine: args.engine,
        port: 0,
        warehouse_port: 0,
        name: ENTRY.to_owned(),
        stays: false,
        plain: args.plain,
    };
    sim::run_shop(plan, |_| {}, output).await
}
