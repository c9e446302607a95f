//! `imt audit`: compares an order management with its warehouse and with a log of requests, if
//! there is one. `imt sim run` makes this comparison after its last request, and also compares both
//! with the answers that the shop front has received.

use crate::cluster::NodeAddress;
use crate::colour::Paint;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{self, OutputFormat};
use crate::signals;
use imt_oms::{DEFAULT_WAREHOUSE, WarehouseUrl};
use imt_sim::audit::AuditProgress;
use imt_sim::front::OrderRecord;
use imt_sim::{AuditConfig, AuditReport, Endpoint, Error};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// Name of the log of requests in a data folder.
const LOG: &str = "stats.csv";
/// Maximum time to wait while the set of messages that wait in the outbox does not change.
const STALLED_AFTER: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    node: NodeAddress,
    /// Address of the warehouse [default: that of the engine's nodes, or that of the data folder's
    /// nodes if the audited node is one of them, else http://127.0.0.1:9091]
    #[arg(long, env = "IMT_WAREHOUSE", value_name = "URL")]
    warehouse: Option<WarehouseUrl>,
    /// Data folder of the nodes
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
    /// Log of requests to check as well [default: DATA/stats.csv, if the address is that of a node
    /// of the data folder]
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
    /// Maximum time to wait until the outbox is empty
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Number of placed orders to send again; the answers must be the same
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(..=1_000))]
    repeat: u16,
    /// Print without colours
    #[arg(long)]
    plain: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Clean,
    Wrong,
}

/// The JSON document that `--output json` prints.
#[derive(Serialize)]
struct Document<'a> {
    verdict: Verdict,
    #[serde(flatten)]
    report: &'a AuditReport,
}

pub(crate) fn run(args: AuditArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    signals::block_on(audit(args, output)).map(ExitCode::from)
}

async fn audit(args: AuditArgs, output: OutputFormat) -> Result<Exit, CliError> {
    let oms = args.node.endpoint().await?;
    let (is_own, of_engine) = match args.node.engine() {
        Some(cluster) => (false, cluster.look().await?.warehouse),
        None => (is_node_of(&args.data, &oms), None),
    };
    let asked = args.warehouse.map(|url| url.to_string()).or(of_engine);
    let config = AuditConfig {
        stalled_after: args.wait.min(STALLED_AFTER),
        wait_max: args.wait,
        log: args.requests.or_else(|| own_log(&args.data, is_own)),
        log_is_of_node: is_own && has_one_node(&args.data),
        repeats: args.repeat.into(),
        ..AuditConfig::new(oms, warehouse(asked, &args.data, is_own)?)
    };
    let progress = watch::Sender::new(AuditProgress::default());
    let report = imt_sim::audit(&config, &OrderRecord::default(), &progress)
        .await
        .map_err(failure)?;
    match output {
        OutputFormat::Json => output::print_json(&Document {
            verdict: match report.is_clean() {
                true => Verdict::Clean,
                false => Verdict::Wrong,
            },
            report: &report,
        })?,
        OutputFormat::Table => {
            let paint = Paint::of_stdout(args.plain);
            output::print_text(&paint.verdict(&report.to_string()))?;
        }
    }
    Ok(if report.is_clean() {
        Exit::Done
    } else {
        Exit::Found
    })
}

/// Returns `true` if a running node of the data folder has the address `oms`.
fn is_node_of(data: &Path, oms: &Endpoint) -> bool {
    let infos = imt_oms::node_infos(data).unwrap_or_default();
    infos
        .iter()
        .any(|info| Endpoint::from(info.address) == *oms && imt_oms::is_node_running(data, &info.name))
}

/// Returns `true` if the data folder has a single node, running or stopped. With several nodes, the
/// shop may have sent some requests of its log to a node other than the audited one, and the
/// audited node has not counted these requests.
fn has_one_node(data: &Path) -> bool {
    let is_one_listed = imt_oms::node_infos(data).is_ok_and(|infos| infos.len() == 1);
    // A stopped node has removed its description, and is still a member of the ring.
    let ring = imt_oms::read_ring(data).ok().flatten();
    is_one_listed && ring.is_some_and(|ring| ring.members().len() == 1)
}

fn own_log(data: &Path, is_own: bool) -> Option<PathBuf> {
    Some(data.join(LOG)).filter(|log| is_own && log.is_file())
}

/// Returns the address of the warehouse: `asked` if given, else the one stored in the data folder
/// `data`, else the default. `is_own` is `true` if the audited node belongs to this folder.
/// Otherwise the folder is not read.
fn warehouse(asked: Option<String>, data: &Path, is_own: bool) -> Result<Endpoint, CliError> {
    let stored = || match is_own {
        true => imt_oms::read_warehouse(data).ok().flatten(),
        false => None,
    };
    let url = asked.or_else(stored);
    let url = url.unwrap_or_else(|| DEFAULT_WAREHOUSE.to_owned());
    super::sim::endpoint(&url)
}

fn failure(error: Error) -> CliError {
    match error {
        Error::Unreachable { .. } => CliError::Unreachable {
            message: "no verdict: one side does not answer; start it, or name it by --oms or --warehouse"
                .to_owned(),
            source: Box::new(error),
        },
        error => CliError::because("no verdict: one side cannot be read", error),
    }
}
