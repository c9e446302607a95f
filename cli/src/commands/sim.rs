//! `imt sim`: the whole shop in one process, or each simulator alone.

use crate::error::CliError;
use crate::logging;
use crate::output::{self, OutputFormat};
use crate::signals::{self, StopSignals};
use imt_oms::{Node, NodeConfig};
use imt_sim::{Arrivals, FrontConfig, FrontReport, Progress, Stop, Warehouse, WarehouseConfig};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// Exit code of a run whose audit found something.
const AUDIT_FOUND: u8 = 3;

/// `imt sim ...`
#[derive(clap::Subcommand)]
pub(crate) enum SimCommand {
    /// Run a node, a warehouse and a shop front together, then audit them.
    #[command(after_help = "\
Examples:
  imt sim run
  imt sim run --rate 200 --duration 10s --seed 7
  imt sim run --data /tmp/shop --port 0 --warehouse-port 0 --output json

Leaves DATA/stats.csv, a line a request. Exit code 3 when the audit finds anything. Ctrl-C ends the run early, with its summary.")]
    Run(RunArgs),
    /// Run the shop front alone, against a node and a warehouse that run already, then audit them.
    #[command(after_help = "Example:\n  imt sim front --oms http://127.0.0.1:9090 --rate 50 --duration 1m")]
    Front(FrontArgs),
    /// Run the warehouse alone until Ctrl-C or SIGTERM.
    #[command(after_help = "Example:\n  imt sim warehouse --listen 127.0.0.1:9091 --oms http://127.0.0.1:9090")]
    Warehouse(WarehouseArgs),
    /// Write the sample files of data/samples anew (the same bytes every time).
    Samples {
        /// The folder to write them to.
        #[arg(default_value = "data/samples", value_name = "DIR")]
        folder: PathBuf,
    },
}

/// What the shop front does, wherever it runs.
#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// How long requests are started; what is in flight then is finished.
    #[arg(long, env = "IMT_DURATION", default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Requests a second, at moments that do not depend on the answers.
    #[arg(long, env = "IMT_RATE", default_value_t = 1.0, value_name = "N")]
    rate: f64,
    /// Seed of everything random: the same seed gives the same requests at the same moments.
    #[arg(long, env = "IMT_SEED", default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Whether requests come at even distances or as independent customers come.
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Fixed)]
    arrivals: ArrivalsArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ArrivalsArg {
    /// Evenly spaced.
    Fixed,
    /// Exponential distances.
    Poisson,
}

#[derive(clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// The data folder, made if it is not there.
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
    /// The port of the node's API on 127.0.0.1; 0 takes a free one.
    #[arg(long, env = "IMT_PORT", default_value_t = 9090)]
    port: u16,
    /// The port of the warehouse on 127.0.0.1; 0 takes a free one.
    #[arg(long, env = "IMT_WAREHOUSE_PORT", default_value_t = 9091)]
    warehouse_port: u16,
    /// The node's name, and its volume's.
    #[arg(long, env = "IMT_NAME", default_value = "sim-master")]
    name: String,
}

#[derive(clap::Args)]
pub(crate) struct FrontArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// The order management to send requests to.
    #[arg(long, env = "IMT_OMS", default_value = "http://127.0.0.1:9090", value_name = "URL")]
    oms: String,
    /// The warehouse to compare with at the end.
    #[arg(long, env = "IMT_WAREHOUSE", default_value = "http://127.0.0.1:9091", value_name = "URL")]
    warehouse: String,
    /// The folder for stats.csv and the front's own notes.
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct WarehouseArgs {
    /// Where to serve.
    #[arg(long, env = "IMT_WAREHOUSE_LISTEN", default_value = "127.0.0.1:9091", value_name = "ADDR")]
    listen: SocketAddr,
    /// The order management to send stock to.
    #[arg(long, env = "IMT_OMS", default_value = "http://127.0.0.1:9090", value_name = "URL")]
    oms: String,
    /// The data folder: stat files go there, and the warehouse's ledger.
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
    /// Seed of everything random.
    #[arg(long, env = "IMT_SEED", default_value_t = 1, value_name = "N")]
    seed: u64,
}

impl SimCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Run(args) => signals::block_on(run(args, output)),
            Self::Front(args) => signals::block_on(front(args, output)),
            Self::Warehouse(args) => signals::block_on(warehouse(args)),
            Self::Samples { folder } => {
                let written = imt_sim::write_samples(&folder)
                    .map_err(|error| CliError::because(format!("cannot write samples to {}", folder.display()), error))?;
                let names: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
                output::print_text(&names.join("\n"))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
