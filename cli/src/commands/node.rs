//! `imt node`: an order management node alone.

use super::tuning::Tuning;
use crate::error::CliError;
use crate::signals::{self, StopSignals};
use imt_oms::{Node, NodeConfig};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// `imt node ...`
#[derive(clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// Start a node and serve until Ctrl-C or SIGTERM.
    #[command(after_help = "\
Examples:
  imt node start
  imt node start --name alpha --data /srv/imt --listen 127.0.0.1:9090 --warehouse http://127.0.0.1:9091

The node keeps everything in DATA/volumes/NAME. Ctrl-C stops it gracefully; a second one, at once. Started again, it goes on where it was.")]
    Start(StartArgs),
}

#[derive(clap::Args)]
pub(crate) struct StartArgs {
    /// The node's name, and its volume's [default: the host's name].
    #[arg(long, env = "IMT_NAME")]
    name: Option<String>,
    /// The data folder, made if it is not there.
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
    /// Where to serve the API; port 0 takes a free one.
    #[arg(
        long,
        env = "IMT_LISTEN",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR"
    )]
    listen: SocketAddr,
    /// The warehouse to announce orders to.
    #[arg(
        long,
        env = "IMT_WAREHOUSE",
        default_value = "http://127.0.0.1:9091",
        value_name = "URL"
    )]
    warehouse: String,
    #[command(flatten)]
    tuning: Tuning,
}

impl NodeCommand {
    pub(crate) fn run(self) -> Result<ExitCode, CliError> {
        let Self::Start(args) = self;
        signals::block_on(start(args))
    }
}

async fn start(args: StartArgs) -> Result<ExitCode, CliError> {
    let mut signals = StopSignals::listen()?;
    let name = args.name.unwrap_or_else(host_name);
    let mut config = NodeConfig {
        listen: args.listen,
        warehouse: args.warehouse,
        ..NodeConfig::new(&name, args.data)
    };
    args.tuning.apply(&mut config);
    let node = Node::start(config)
        .await
        .map_err(|error| CliError::because(format!("cannot start node '{name}'"), error))?;
    tracing::info!("node '{name}' serves http://{}", node.address());
    let signal = signals.next().await;
    tracing::info!("{signal}: finishing what is in flight (once more to leave at once)");
    signals.exit_on_next();
    node.stop()
        .await
        .map_err(|error| CliError::because(format!("node '{name}' did not stop cleanly"), error))?;
    tracing::info!("node '{name}' has stopped");
    Ok(ExitCode::SUCCESS)
}

/// The host's name, cut to what a node's name may hold.
pub(crate) fn host_name() -> String {
    let host = gethostname::gethostname().to_string_lossy().to_lowercase();
    let name: String = host
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .collect();
    if name.is_empty() { "node".to_owned() } else { name }
}
