//! `imt sim`: the whole shop in one process, or each simulator alone.

use super::tuning::Tuning;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use crate::signals::{self, StopSignals};
use imt_oms::{Node, NodeConfig, WarehouseUrl};
use imt_sim::audit::AuditProgress;
use imt_sim::client::Client;
use imt_sim::front::Phase;
use imt_sim::workload::Arrivals;
use imt_sim::{AuditConfig, Endpoint, FrontConfig, Progress, Summary, Warehouse, WarehouseConfig, samples};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// Exit code of a run whose audit found something.
const AUDIT_FOUND: u8 = 3;
/// A display is drawn anew at most this often.
const REDRAW_EVERY: Duration = Duration::from_millis(100);

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
    /// Run a shop while nodes are killed, stopped and taken away, then audit.
    #[command(after_help = "\
Examples:
  imt sim chaos --rate 500 --duration 1m --data /tmp/chaos
  imt sim chaos --nodes 7 --every 3s --harm graceful --rate 500 --duration 2m --data /tmp/chaos

Exit code 3 when the audit finds anything.")]
    Chaos(super::chaos::ChaosArgs),
    /// Run the shop front alone, against a node and a warehouse that run already, then audit them.
    #[command(after_help = "Example:\n  imt sim front --oms http://127.0.0.1:9090 --rate 50 --duration 1m")]
    Front(FrontArgs),
    /// Run the warehouse alone until Ctrl-C or SIGTERM.
    #[command(
        after_help = "Example:\n  imt sim warehouse --listen 127.0.0.1:9091 --oms http://127.0.0.1:9090"
    )]
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
    pub(super) seed: u64,
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
    #[command(flatten)]
    tuning: Tuning,
}

#[derive(clap::Args)]
pub(crate) struct FrontArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// The order management to send requests to.
    #[arg(
        long,
        env = "IMT_OMS",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL"
    )]
    oms: Endpoint,
    /// The warehouse to compare with at the end.
    #[arg(
        long,
        env = "IMT_WAREHOUSE",
        default_value = "http://127.0.0.1:9091",
        value_name = "URL"
    )]
    warehouse: WarehouseUrl,
    /// The folder for stats.csv and the front's own notes.
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct WarehouseArgs {
    /// Where to serve.
    #[arg(
        long,
        env = "IMT_WAREHOUSE_LISTEN",
        default_value = "127.0.0.1:9091",
        value_name = "ADDR"
    )]
    listen: SocketAddr,
    /// The order management to send stock to.
    #[arg(
        long,
        env = "IMT_OMS",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL"
    )]
    oms: Endpoint,
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
            Self::Chaos(args) => signals::block_on(super::chaos::run(args, output)),
            Self::Front(args) => signals::block_on(front(args, output)),
            Self::Warehouse(args) => signals::block_on(warehouse(args)),
            Self::Samples { folder } => {
                samples::write_samples(&folder).map_err(|error| {
                    CliError::because(format!("cannot write samples to {}", folder.display()), error)
                })?;
                let names = [samples::STOCKS, samples::STAT_FILE, samples::ORDERS];
                output::print_text(
                    &names
                        .map(|name| folder.join(name).display().to_string())
                        .join("\n"),
                )?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// A node, a warehouse and a front in this process, over loopback.
async fn run(args: RunArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let signals = StopSignals::listen()?;
    // Each of the two must know the other's address before it starts, so a free port is chosen
    // here.
    let warehouse_listen = chosen_port(args.warehouse_port)?;
    let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.port);
    let mut config = NodeConfig {
        listen,
        warehouse: format!("http://{warehouse_listen}"),
        ..NodeConfig::new(&args.name, &args.data)
    };
    args.tuning.apply(&mut config);
    let node = Node::start(config)
        .await
        .map_err(|error| CliError::because(format!("cannot start node '{}'", args.name), error))?;
    tracing::info!("node '{}' serves http://{}", args.name, node.address());
    let outcome = run_beside(&node, warehouse_listen, args, signals, output).await;
    let stopped = node
        .stop()
        .await
        .map_err(|error| CliError::because("the node did not stop cleanly", error));
    let code = outcome?;
    stopped?;
    Ok(code)
}

/// The warehouse and the front beside a node that runs.
async fn run_beside(
    node: &Node,
    warehouse_listen: SocketAddr,
    args: RunArgs,
    signals: StopSignals,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let warehouse = start_warehouse(WarehouseConfig {
        listen: warehouse_listen,
        oms: node.address().into(),
        data: args.data.clone(),
        seed: args.load.seed,
        ..WarehouseConfig::default()
    })
    .await?;
    let config = args
        .load
        .front_config(node.address().into(), warehouse.address().into(), args.data);
    let outcome = run_front(config, signals, output, node.overview()).await;
    warehouse.stop().await;
    outcome
}

/// The front alone.
async fn front(args: FrontArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let signals = StopSignals::listen()?;
    // The setting is shared with `imt node start`, where it may have a path.
    let warehouse = endpoint(&args.warehouse.to_string())?;
    let config = args.load.front_config(args.oms, warehouse, args.data);
    run_front(config, signals, output, String::new).await
}

/// The warehouse alone.
async fn warehouse(args: WarehouseArgs) -> Result<ExitCode, CliError> {
    let mut signals = StopSignals::listen()?;
    let warehouse = start_warehouse(WarehouseConfig {
        listen: args.listen,
        oms: args.oms,
        data: args.data,
        seed: args.seed,
        ..WarehouseConfig::default()
    })
    .await?;
    let signal = signals.next().await;
    tracing::info!("{signal}: finishing what is in flight (once more to leave at once)");
    signals.exit_on_next();
    let summary = warehouse.stop().await;
    tracing::info!(
        "the warehouse has stopped: {} announced, {} delivered, {} refused",
        summary.announced,
        summary.delivered,
        summary.refused
    );
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn start_warehouse(config: WarehouseConfig) -> Result<Warehouse, CliError> {
    let warehouse = Warehouse::start(config)
        .await
        .map_err(|error| CliError::because("cannot start the warehouse", error))?;
    tracing::info!("warehouse serves http://{}", warehouse.address());
    Ok(warehouse)
}

/// The port asked for on loopback, or a free one.
pub(super) fn chosen_port(port: u16) -> Result<SocketAddr, CliError> {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    if port != 0 {
        return Ok(address);
    }
    std::net::TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map_err(|error| CliError::because("there is no free port on 127.0.0.1", error))
}

fn endpoint(url: &str) -> Result<Endpoint, CliError> {
    url.parse().map_err(|error| {
        CliError::Usage(format!(
            "'{url}' is not the URL of a server, as in http://127.0.0.1:9090: {error}"
        ))
    })
}

impl LoadArgs {
    /// How long requests are started.
    pub(super) fn duration(&self) -> Duration {
        self.duration
    }

    pub(super) fn front_config(&self, oms: Endpoint, warehouse: Endpoint, data: PathBuf) -> FrontConfig {
        FrontConfig {
            oms,
            warehouse,
            data,
            rate: self.rate,
            duration: self.duration,
            seed: self.seed,
            arrivals: match self.arrivals {
                ArrivalsArg::Fixed => Arrivals::Fixed,
                ArrivalsArg::Poisson => Arrivals::Poisson,
            },
            ..FrontConfig::default()
        }
    }
}

/// Runs the front to its end, audits both sides, prints the summary.
/// `nodes` says who shares the orders, for the display.
pub(super) async fn run_front(
    config: FrontConfig,
    mut signals: StopSignals,
    output: OutputFormat,
    nodes: impl Fn() -> String + Send + 'static,
) -> Result<ExitCode, CliError> {
    let audit_config = AuditConfig::new(config.oms.clone(), config.warehouse.clone());
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        let signal = signals.next().await;
        tracing::info!(
            "{signal}: no new requests; finishing and auditing what was sent (once more to leave at once)"
        );
        stop.send_replace(true);
        signals.exit_on_next();
    });

    let (progress, display) = shown(Progress::default(), move |display, progress| {
        show_front(display, progress, &nodes());
    });
    let report = imt_sim::run_front(config, progress, stopping).await;
    display.await;
    let report = report.map_err(|error| CliError::because("the shop front could not run", error))?;

    let (progress, display) = shown(AuditProgress::default(), show_audit);
    let audited = imt_sim::audit(&audit_config, &report.record, &progress)
        .await
        .map_err(|error| described(&error));
    drop(progress);
    display.await;

    let unaudited = audited.as_ref().err().cloned();
    let health = Client::new(audit_config.oms, audit_config.request_timeout)
        .get_json("order management", "/health")
        .await;
    let stores = Client::new(audit_config.warehouse, audit_config.request_timeout)
        .get_json("warehouse", "/summary")
        .await;
    let summary = Summary::new(&report, audited, health.ok(), stores.ok());
    match output {
        OutputFormat::Json => output::print_json(&summary)?,
        OutputFormat::Table => output::print_text(&summary.to_string())?,
    }
    match unaudited {
        Some(problem) => Err(CliError::failed(format!(
            "there is no verdict, the audit could not read both sides: {problem}"
        ))),
        None if summary.is_clean() => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::from(AUDIT_FOUND)),
    }
}

/// An error with its causes, on one line.
fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// A channel whose values are shown while they change; the future ends once the sender is gone.
fn shown<T: Clone + Send + Sync + 'static>(
    first: T,
    show: impl Fn(&mut Display, &T) + Send + 'static,
) -> (watch::Sender<T>, impl Future<Output = ()>) {
    let (sender, mut receiver) = watch::channel(first);
    let task = tokio::spawn(async move {
        let mut display = Display::new(1);
        let mut redraw = tokio::time::interval(REDRAW_EVERY);
        while receiver.changed().await.is_ok() {
            let value = receiver.borrow_and_update().clone();
            show(&mut display, &value);
            redraw.tick().await;
        }
    });
    (sender, async move {
        // A display that panicked shows nothing; the run goes on.
        let _ = task.await;
    })
}

fn show_front(display: &mut Display, progress: &Progress, nodes: &str) {
    let (elapsed, duration) = (progress.elapsed.as_secs_f64(), progress.duration.as_secs_f64());
    let text = match progress.phase {
        Phase::Waiting => "waiting for the order management and its first stock".to_owned(),
        _ => format!(
            "{:.0} of {duration:.0} s, {} sent, {} answered, {} failed, {} late; {} orders, {} payments{nodes}",
            elapsed.min(duration),
            progress.sent,
            progress.answered,
            progress.ko,
            progress.late,
            progress.orders,
            progress.payments,
        ),
    };
    display.show(
        progress.elapsed.as_millis() as u64,
        progress.duration.as_millis() as u64,
        &text,
    );
}

fn show_audit(display: &mut Display, progress: &AuditProgress) {
    match progress {
        AuditProgress::Begun => display.show(0, 2, "audit: begun"),
        AuditProgress::Draining { waiting } => {
            display.show(
                0,
                2,
                &format!("audit: {waiting} messages for the warehouse are still under way"),
            );
        }
        AuditProgress::Comparing { look } => {
            display.show(1, 2, &format!("audit: comparing both sides, look {look}"));
        }
    }
}
