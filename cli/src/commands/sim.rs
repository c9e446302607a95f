//! `imt sim`: runs a whole shop or one simulator alone, reports on runs and compares them, lists
//! the built-in scenarios, and writes the samples.

use super::node;
use super::node_args::NodeArgs;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::signals::{self, StopSignals};
use crate::{args, completion};
use imt_oms::{EngineUrl, Node, NodeConfig, WarehouseUrl};
use imt_ring::NodeName;
use imt_sim::compare::Comparison;
use imt_sim::scenario::{NodeAction, RandomEvents, Scenario};
use imt_sim::warehouse::{Profile, WarehouseControl};
use imt_sim::{Endpoint, RunFolder, Warehouse, WarehouseConfig, samples};
use load::{LoadArgs, ScenarioArgs, StockArgs};
use run::{OwnNode, Session};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Interval at which the shop's node in this process searches for statistics files, if
/// `--stat-scan` is not given. The interval is short, so that this node counts a new file within a
/// second.
const STAT_SCAN_EVERY: Duration = Duration::from_millis(500);

pub(super) mod fleet;
pub(super) mod load;
mod progress;
mod run;

/// Subcommands of `imt sim`.
#[derive(clap::Subcommand)]
pub(crate) enum SimCommand {
    /// Run a node, a warehouse and a shop front together, then audit them.
    #[command(after_help = "\
Examples:
  imt sim run
  imt sim run --scenario black-friday
  imt sim run --rate 500 --shape spike --fail-if 'p99(order) > 50ms'
  imt sim run --data /tmp/shop --port 0 --warehouse-port 0 --output json

Leaves DATA/stats.csv (a line for each request) and DATA/runs/TIME/.
Exit codes: 0 well, 1 failure, 2 usage, 3 the audit found something,
4 a threshold was missed, 5 a server does not answer, 130 interrupted.
Ctrl-C ends the run early, with its summary.")]
    Run(Box<RunArgs>),
    /// Draw a run as one HTML page.
    #[command(after_help = "\
Examples:
  imt sim report
  imt sim report data/runs/20260131-174502 --out run.html")]
    Report(ReportArgs),
    /// Compare the numbers of two runs.
    #[command(after_help = "\
Examples:
  imt sim compare 20260131-174502 20260131-181500
  imt sim compare 20260131-174502 20260131-181500 --out compared.html")]
    Compare(CompareArgs),
    /// List the built-in scenarios.
    #[command(after_help = "Example:\n  imt sim run --scenario flaky-warehouse")]
    Scenarios,
    /// Run a shop while nodes are killed, stopped, paused and removed at random, then audit.
    #[command(after_help = "\
Examples:
  imt sim chaos --rate 500 --duration 1m --data /tmp/chaos
  imt sim chaos --nodes 7 --every 3s --harm graceful --data /tmp/chaos
  imt sim chaos --units 50000 --zipf 2 --basket 1 --orders 100% --rate 400

With plenty of units (--units) and popular products (--zipf), nodes lend
each other units.
Exit codes as of `imt sim run`.")]
    Chaos(Box<super::chaos::ChaosArgs>),
    /// Run the shop front alone against a running node and warehouse, then audit them.
    #[command(after_help = "\
Example:
  imt sim front --oms http://127.0.0.1:9090 --rate 50 --duration 1m

Exit codes as of `imt sim run`.")]
    Front(Box<FrontArgs>),
    /// Run the warehouse alone until Ctrl-C or SIGTERM.
    #[command(after_help = "\
Example:
  imt sim warehouse --listen 127.0.0.1:9091 --oms http://127.0.0.1:9090")]
    Warehouse(WarehouseArgs),
    /// Write the sample files of data/samples again. The bytes are always the same.
    #[command(after_help = "Example:\n  imt sim samples /tmp/samples")]
    Samples {
        /// Folder to write to
        #[arg(default_value = "data/samples", value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(clap::Args)]
pub(crate) struct RunArgs {
    // `stay` and `plain` come before the flags of the load, because the last help heading of the
    // load would also apply to flags after it.
    /// Keep the node and the warehouse running after the run, until Ctrl-C
    #[arg(long)]
    stay: bool,
    /// Print one line per second instead of a display
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    load: ScenarioArgs,
    /// Data folder, created if it does not exist
    #[arg(
        short,
        long,
        env = "IMT_DATA",
        default_value = "data",
        value_name = "DIR",
        value_parser = args::folder(),
        help_heading = "Servers"
    )]
    data: PathBuf,
    /// Port of the node's API on 127.0.0.1; 0 takes a free port
    #[arg(
        long,
        env = "IMT_PORT",
        default_value_t = 9090,
        value_name = "PORT",
        help_heading = "Servers"
    )]
    port: u16,
    /// Port of the warehouse on 127.0.0.1; 0 takes a free port
    #[arg(
        long,
        env = "IMT_WAREHOUSE_PORT",
        default_value_t = 9091,
        value_name = "PORT",
        help_heading = "Servers"
    )]
    warehouse_port: u16,
    /// Name of the node and of its volume.
    #[arg(
        short,
        long,
        env = "IMT_NAME",
        default_value = "sim-master",
        value_name = "NAME",
        value_parser = args::node_name,
        help_heading = "Servers"
    )]
    name: NodeName,
    /// Behaviour of the warehouse, such as original, fast or brownout [default: the scenario's].
    #[arg(long, value_name = "PROFILE", help_heading = "Servers")]
    warehouse_profile: Option<Profile>,
    #[command(flatten)]
    limits: NodeArgs,
}

#[derive(clap::Args)]
pub(crate) struct FrontArgs {
    /// Address of the order management
    #[arg(
        long,
        env = "IMT_OMS",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL"
    )]
    oms: Endpoint,
    /// Address of the warehouse to audit at the end
    #[arg(
        long,
        env = "IMT_WAREHOUSE",
        default_value = "http://127.0.0.1:9091",
        value_name = "URL"
    )]
    warehouse: WarehouseUrl,
    /// Folder of stats.csv, of the front's ids and of the run folders
    #[arg(short, long, env = "IMT_DATA", default_value = "data", value_name = "DIR", value_parser = args::folder())]
    data: PathBuf,
    /// Print one line per second instead of a display
    #[arg(long)]
    plain: bool,
    // The flags of the load come last, because their last help heading would also apply to flags
    // after them.
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(clap::Args)]
pub(crate) struct WarehouseArgs {
    /// Address at which the warehouse listens
    #[arg(
        short,
        long,
        env = "IMT_WAREHOUSE_LISTEN",
        default_value = "127.0.0.1:9091",
        value_name = "ADDR",
        value_parser = args::listen
    )]
    listen: SocketAddr,
    /// Address of the order management to send stock to
    #[arg(
        long,
        env = "IMT_OMS",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL"
    )]
    oms: Endpoint,
    /// Data folder for statistics files and the warehouse's ledger
    #[arg(short, long, env = "IMT_DATA", default_value = "data", value_name = "DIR", value_parser = args::folder())]
    data: PathBuf,
    /// Seed of all random choices
    #[arg(long, env = "IMT_SEED", default_value_t = 1, value_name = "N", value_parser = args::seed, allow_negative_numbers = true)]
    seed: u64,
    /// Behaviour, such as original, fast or brownout.
    #[arg(long, default_value = "original", value_name = "PROFILE")]
    profile: Profile,
    #[command(flatten)]
    stock: StockArgs,
}

#[derive(clap::Args)]
pub(crate) struct ReportArgs {
    /// Name or path of a run folder [default: the newest one].
    #[arg(value_name = "RUN", add = completion::runs())]
    run: Option<String>,
    /// Data folder with the runs
    #[arg(short, long, env = "IMT_DATA", default_value = "data", value_name = "DIR", value_parser = args::folder())]
    data: PathBuf,
    /// File to write [default: RUN/report.html]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// Name or path of the first run folder.
    #[arg(value_name = "RUN", add = completion::runs())]
    first: String,
    /// Name or path of the second run folder.
    #[arg(value_name = "RUN", add = completion::runs())]
    second: String,
    /// Data folder with the runs
    #[arg(short, long, env = "IMT_DATA", default_value = "data", value_name = "DIR", value_parser = args::folder())]
    data: PathBuf,
    /// Write both runs as one HTML page with their curves, instead of the numbers
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl SimCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Run(args) => signals::block_on(run(*args, output)),
            Self::Scenarios => scenarios(output),
            Self::Report(args) => report(&args, output),
            Self::Compare(args) => compare(&args, output),
            Self::Chaos(args) => signals::block_on(super::chaos::run(*args, output)),
            Self::Front(args) => signals::block_on(front(*args, output)),
            Self::Warehouse(args) => signals::block_on(warehouse(args)),
            Self::Samples { folder } => write_samples(&folder, output),
        }
    }
}

fn write_samples(folder: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    samples::write_samples(folder)
        .map_err(|error| CliError::because(format!("cannot write samples to {}", folder.display()), error))?;
    let names = [samples::STOCKS, samples::STAT_FILE, samples::ORDERS];
    let paths = names.map(|name| folder.join(name).display().to_string());
    output::print_either(output, &paths.join("\n"), &json!({ "files": paths }))?;
    Ok(ExitCode::SUCCESS)
}

fn run_folder(data: &Path, run: Option<&str>) -> Result<RunFolder, CliError> {
    RunFolder::open(data, run).map_err(|error| {
        let runs = data.join(imt_sim::run_folder::RUNS);
        let known = imt_sim::run_folder::names(data);
        let remedy = match known.last() {
            Some(newest) => format!("the newest one is {newest}"),
            None => "imt sim run makes one, or name another data folder by --data".to_owned(),
        };
        let place = runs.display();
        let message = match run {
            Some(run) => format!("there is no run '{run}' in {place}; {remedy}"),
            None => format!("there is no run in {place} yet; {remedy}"),
        };
        let folder = run.map_or(runs.clone(), |run| runs.join(run));
        match folder.exists() {
            true => CliError::because(message, error),
            // The cause is left out, because it would only repeat that the folder does not exist.
            false => CliError::failed(message),
        }
    })
}

/// Writes the report of a run as an HTML page.
fn report(args: &ReportArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let folder = run_folder(&args.data, args.run.as_deref())?;
    let failed = |error| CliError::because("cannot draw the report", error);
    let page = imt_sim::report::render(&folder).map_err(failed)?;
    let usual = folder.path().join(imt_sim::report::FILE);
    write_page(args.out.as_ref().unwrap_or(&usual), &page, output)
}

fn write_page(path: &Path, page: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    std::fs::write(path, page)
        .map_err(|error| CliError::because(format!("cannot write {}", path.display()), error))?;
    let path = path.display().to_string();
    output::print_either(output, &path, &json!({ "report": path }))?;
    Ok(ExitCode::SUCCESS)
}

fn compare(args: &CompareArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let first = run_folder(&args.data, Some(&args.first))?;
    let second = run_folder(&args.data, Some(&args.second))?;
    let failed = |error| CliError::because("cannot compare the runs", error);
    if let Some(path) = &args.out {
        let page = imt_sim::report::render_comparison(&first, &second).map_err(failed)?;
        return write_page(path, &page, output);
    }
    let comparison = Comparison::of(&first, &second).map_err(failed)?;
    match output {
        OutputFormat::Json => output::print_json(&comparison)?,
        OutputFormat::Table => output::print_text(&comparison.to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(serde::Serialize)]
struct Listed {
    name: &'static str,
    description: String,
    duration_s: f64,
    nodes: u32,
}

fn scenarios(output: OutputFormat) -> Result<ExitCode, CliError> {
    let mut listed = Vec::new();
    for (name, _) in imt_sim::scenario::BUILT_IN {
        let scenario = Scenario::find(name)
            .map_err(|error| CliError::because("a built-in scenario is broken", error))?;
        listed.push(Listed {
            name,
            duration_s: scenario.load.duration().as_secs_f64(),
            nodes: scenario.nodes + 1,
            description: scenario.description,
        });
    }
    match output {
        OutputFormat::Json => output::print_json(&listed)?,
        OutputFormat::Table => {
            let lines: Vec<String> = listed
                .iter()
                .map(|s| {
                    format!(
                        "{:<16} {:>3.0} s, {}\n    {}",
                        s.name,
                        s.duration_s,
                        output::count(s.nodes, "node"),
                        s.description
                    )
                })
                .collect();
            output::print_text(&lines.join("\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a node, a warehouse and a shop front in this process. They call each other over loopback.
/// Further nodes of the scenario have processes of their own.
async fn run(args: RunArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let mut scenario = args.load.scenario()?;
    if let Some(profile) = args.warehouse_profile {
        scenario.warehouse.profile = profile;
    }
    let seed = args.load.seed(&scenario);
    let plan = ShopPlan {
        scenario,
        seed,
        data: args.data,
        engine: None,
        port: args.port,
        warehouse_port: args.warehouse_port,
        name: args.name.to_string(),
        stays: args.stay,
        plain: args.plain,
    };
    let limits = args.limits;
    run_shop(plan, |config| limits.apply(config), output).await
}

/// Settings of a simulated shop: its nodes, its warehouse, its shop front and its run.
pub(super) struct ShopPlan {
    pub(super) scenario: Scenario,
    pub(super) seed: u64,
    pub(super) data: PathBuf,
    /// Engine that keeps the volumes of the nodes. `None` if the data folder keeps them.
    pub(super) engine: Option<EngineUrl>,
    pub(super) port: u16,
    pub(super) warehouse_port: u16,
    pub(super) name: String,
    pub(super) stays: bool,
    pub(super) plain: bool,
}

/// Starts the nodes, the warehouse and the shop front with the settings of `plan`, and stops them
/// after the run. `tune` changes the configuration of the node in this process.
pub(super) async fn run_shop(
    plan: ShopPlan,
    tune: impl FnOnce(&mut NodeConfig),
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let signals = StopSignals::listen()?;
    // The warehouse's port is chosen before the start, because the node and the warehouse need each
    // other's address.
    let warehouse_listen = chosen_port(plan.warehouse_port)?;
    let fleet = match plan.scenario.nodes {
        0 if plan.scenario.events.is_empty() => None,
        count => Some(fleet::Fleet::start(&plan.data, plan.engine.as_ref(), count, warehouse_listen).await?),
    };
    let mut config = NodeConfig {
        listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), plan.port),
        warehouse: Some(format!("http://{warehouse_listen}")),
        engine: plan.engine.clone(),
        stat_scan_every: STAT_SCAN_EVERY,
        ..NodeConfig::new(&plan.name, &plan.data)
    };
    tune(&mut config);
    let node = Node::start(config)
        .await
        .map_err(|error| node::cannot_start(&plan.name, error, "--port"))?;
    tracing::info!("node '{}' serves http://{}", plan.name, node.address());
    let outcome = run_beside(&node, warehouse_listen, plan, fleet, signals, output).await;
    let stopped = node
        .stop()
        .await
        .map_err(|error| CliError::because("the node did not stop cleanly", error));
    let code = outcome?;
    stopped?;
    Ok(code)
}

/// Runs the warehouse and the shop front with a node that already runs.
async fn run_beside(
    node: &Node,
    warehouse_listen: SocketAddr,
    plan: ShopPlan,
    fleet: Option<fleet::Fleet>,
    signals: StopSignals,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let setup = &plan.scenario.warehouse;
    let warehouse = start_warehouse(WarehouseConfig {
        listen: warehouse_listen,
        oms: node.address().into(),
        data: plan.data.clone(),
        seed: plan.seed,
        shape: setup.shape,
        snapshot_every: setup.snapshot_every,
        stat_file_every: setup.stat_file_every,
        behaviour: setup.profile.behaviour(),
        restock: setup.restock,
        ..WarehouseConfig::default()
    })
    .await?;
    let session = Session {
        oms: node.address().into(),
        warehouse: warehouse.address().into(),
        scenario: plan.scenario,
        seed: plan.seed,
        stays: plan.stays,
        plain: plan.plain,
        warehouse_control: Some(warehouse.control()),
        own_node: Some(OwnNode {
            name: plan.name,
            cluster: Cluster::new(&plan.data, plan.engine.as_ref()),
        }),
        data: plan.data,
        fleet,
    };
    let outcome = session.conduct(signals, output).await;
    warehouse.stop().await;
    outcome.map(ExitCode::from)
}

/// Runs the shop front without starting a node or a warehouse.
async fn front(args: FrontArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let scenario = args.load.scenario("front")?;
    let seed = args.load.seed(&scenario);
    // `imt node start` also reads `IMT_WAREHOUSE`, and allows a path in this URL. The audit needs
    // an address without a path, so a path is refused here.
    let warehouse = endpoint(&args.warehouse.to_string())?;
    let signals = StopSignals::listen()?;
    let session = Session {
        oms: args.oms,
        warehouse,
        scenario,
        seed,
        data: args.data,
        stays: false,
        plain: args.plain,
        warehouse_control: None::<WarehouseControl>,
        own_node: None,
        fleet: None,
    };
    session.conduct(signals, output).await.map(ExitCode::from)
}

/// Runs the warehouse until a signal comes.
async fn warehouse(args: WarehouseArgs) -> Result<ExitCode, CliError> {
    let mut signals = StopSignals::listen()?;
    let warehouse = start_warehouse(WarehouseConfig {
        listen: args.listen,
        oms: args.oms,
        data: args.data,
        seed: args.seed,
        shape: args.stock.shape(),
        behaviour: args.profile.behaviour(),
        ..WarehouseConfig::default()
    })
    .await?;
    let signal = signals.next().await;
    tracing::info!("{signal}: finishing calls in flight (repeat the signal to exit at once)");
    signals.exit_on_next();
    let summary = warehouse.stop().await;
    tracing::info!(
        announced = summary.announced,
        delivered = summary.delivered,
        refused = summary.refused,
        "warehouse stopped"
    );
    Ok(ExitCode::SUCCESS)
}

async fn start_warehouse(config: WarehouseConfig) -> Result<Warehouse, CliError> {
    let warehouse = Warehouse::start(config).await.map_err(|error| {
        CliError::because(
            "cannot start the warehouse (--listen or --warehouse-port sets its address)",
            error,
        )
    })?;
    tracing::info!("warehouse serves http://{}", warehouse.address());
    Ok(warehouse)
}

/// Returns the loopback address with the port `port`, or with a free port if `port` is 0. Until a
/// server listens, another process may take the free port.
fn chosen_port(port: u16) -> Result<SocketAddr, CliError> {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    if port != 0 {
        return Ok(address);
    }
    std::net::TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map_err(|error| CliError::because("there is no free port on 127.0.0.1", error))
}

pub(super) fn endpoint(url: &str) -> Result<Endpoint, CliError> {
    url.parse().map_err(|error| {
        CliError::Usage(format!(
            "'{url}' is not the URL of a server, as in http://127.0.0.1:9090: {error}"
        ))
    })
}

/// Returns the setting of random events of `imt sim chaos`: one of `actions` at each interval.
pub(super) fn random_events(every: Duration, actions: &[NodeAction]) -> Option<RandomEvents> {
    Some(RandomEvents {
        every,
        actions: actions.to_vec(),
    })
}
