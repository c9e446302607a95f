//! `imt node`: starts, lists, stops and removes the nodes of a data folder or of an engine, and
//! shows or changes their warehouse.

mod default_name;
mod other_nodes;
mod warehouse;

use super::node_args::NodeArgs;
use crate::cluster::{Cluster, ClusterArgs};
use crate::error::CliError;
use crate::otlp::{self, OtlpArgs};
use crate::output::{self, OutputFormat, TableArgs};
use crate::signals::{self, StopSignals};
use crate::{args, completion};
use bytes::Bytes;
use imt_oms::{
    CopyProgress, EngineUrl, Node, NodeClient, NodeConfig, NodeError, NodeInfo, NodeReport, WarehouseUrl,
};
use imt_ring::{NodeName, ZoneName};
use serde::Serialize;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Default address of a node that starts while no other node of its cluster runs. Otherwise a node
/// uses a free port by default.
const FIRST_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);
/// Maximum time for a node to answer a request of a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of polls while a command waits for a change of a node or of the cluster's state.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Maximum wait for the end of a process after its node has left the ring. It exceeds the default
/// of `--drain-timeout` (10 s), in which requests in progress finish.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval at which a command asks all nodes about the progress of a leave.
const ASK_AGAIN_EVERY: Duration = Duration::from_secs(5);

/// Parses an origin of web pages, such as `https://shop.example`.
fn origin(text: &str) -> Result<String, String> {
    imt_oms::check_origin(text).map(|()| text.to_owned())
}

/// Subcommands of `imt node`.
#[derive(clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// Start a node and serve until Ctrl-C or SIGTERM.
    #[command(after_help = "\
Examples:
  imt node start
  imt node start --name alpha --data /srv/imt --listen 0.0.0.0:9090
  imt node start --name beta --data /srv/imt     joins alpha, takes its share
  imt node start --name alpha --engine postgres://imt@db1,db2/shop \\
    --listen 10.0.0.1:9090                       one of several machines

The node keeps everything in DATA/volumes/NAME. With --engine, this folder is
a copy that may be deleted. Ctrl-C stops the node gracefully, a second Ctrl-C
at once. While it is stopped, another node serves its volume. A node that is
started again under its name takes its volume back.")]
    Start(Box<StartArgs>),
    /// List the nodes of a data folder or of an engine.
    #[command(after_help = "\
Examples:
  imt node list
  imt node list --data /srv/imt --fields node,state,orders")]
    List {
        #[command(flatten)]
        cluster: ClusterArgs,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Stop a node. The other nodes serve its volume until it is started again.
    #[command(after_help = "Example:\n  imt node stop beta --data /srv/imt")]
    Stop {
        /// Name of the node
        #[arg(value_parser = args::node_name, add = completion::nodes())]
        name: NodeName,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Remove a node for good. Its orders and stores move to the other nodes, then its volume is
    /// removed.
    #[command(after_help = "\
Examples:
  imt node leave beta --data /srv/imt
  imt node leave beta --data /srv/imt --timeout 1h

The node continues to leave if this command ends early. Run the command again
to wait for it.")]
    Leave {
        /// Name of the node; it need not be running
        #[arg(value_parser = args::node_name, add = completion::nodes())]
        name: NodeName,
        /// Maximum time to wait until the node has left
        #[arg(long, env = "IMT_LEAVE_TIMEOUT", default_value = "10min", value_name = "TIME", value_parser = args::positive_duration)]
        timeout: Duration,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show the warehouse of a cluster, or change it for all nodes.
    #[command(after_help = "\
Examples:
  imt node warehouse
  imt node warehouse http://10.0.0.5:9091 --data /srv/imt

A change needs a running node. Messages that wait go to the new address.")]
    Warehouse {
        /// Address of the new warehouse
        #[arg(value_name = "URL")]
        url: Option<WarehouseUrl>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(clap::Args)]
pub(crate) struct StartArgs {
    /// Name of the node and of its volume [default: the host's name]
    #[arg(short, long, env = "IMT_NAME", value_parser = args::node_name)]
    name: Option<NodeName>,
    /// Data folder, created if it does not exist. With an engine, the folder holds only a cache of
    /// the engine's rows, and statistics files not counted yet
    #[arg(short, long, env = "IMT_DATA", default_value = "data", value_name = "DIR", value_parser = args::folder())]
    data: PathBuf,
    /// Engine that holds the orders of nodes on several machines, such as
    /// postgres://imt@db1,db2/shop
    #[arg(long, env = "IMT_ENGINE", value_name = "URL")]
    engine: Option<EngineUrl>,
    /// Address at which the other nodes reach this node, if it is not that of --listen
    #[arg(long, env = "IMT_ADVERTISE", value_name = "HOST:PORT", requires = "engine")]
    advertise: Option<String>,
    /// File with the nodes' secret, if it is not to be kept in the engine
    #[arg(long, env = "IMT_SECRET_FILE", value_name = "FILE", requires = "engine")]
    secret_file: Option<PathBuf>,
    /// Do not encrypt the connections between nodes of different machines. All nodes and commands
    /// need the same setting
    #[arg(long, env = "IMT_INSECURE_PLAINTEXT", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
    insecure_plaintext: bool,
    /// Address of the API; port 0 takes a free port [default: 127.0.0.1:9090 for the first node, a
    /// free port for others]
    #[arg(short, long, env = "IMT_LISTEN", value_name = "ADDR", value_parser = args::listen)]
    listen: Option<SocketAddr>,
    /// Address of the warehouse: http://HOST:PORT, followed by the path of its routes if they have
    /// one. All nodes of a cluster call the same warehouse [default: that of the running nodes,
    /// else the address stored in the data folder or the engine, else http://127.0.0.1:9091]
    #[arg(long, env = "IMT_WAREHOUSE", value_name = "URL")]
    warehouse: Option<WarehouseUrl>,
    /// Weight of the node; its share of the orders is its weight divided by the sum of all weights
    #[arg(long, env = "IMT_WEIGHT", default_value_t = 1, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(..=i64::from(imt_ring::WEIGHT_MAX)))]
    weight: u32,
    /// Failure zone of the node, such as north or rack-3
    #[arg(long, env = "IMT_ZONE", value_parser = args::zone_name)]
    zone: Option<ZoneName>,
    /// Origin of web pages that may call the API, such as `https://shop.example`; several are
    /// separated by commas [default: none]
    #[arg(long, env = "IMT_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    cors_origin: Vec<String>,
    /// Maximum rows per second copied to this node during a rebalance [default: unlimited]
    #[arg(long, env = "IMT_MOVE_ROWS_PER_SECOND", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    move_rows_per_second: Option<u64>,
    /// Lend units of stores with many orders to other nodes, and borrow such units; no effect with
    /// --engine [default: true]
    #[arg(long, env = "IMT_ALLOTMENTS", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
    allotments: bool,
    #[command(flatten)]
    otlp: OtlpArgs,
    #[command(flatten)]
    limits: NodeArgs,
}

impl NodeCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Start(args) => signals::block_on(start(*args)),
            Self::List { cluster, table } => signals::block_on(list(cluster.into(), &table, output)),
            Self::Stop { name, cluster } => signals::block_on(stop(&name, cluster.into(), output)),
            Self::Leave {
                name,
                timeout,
                cluster,
            } => signals::block_on(leave(&name, cluster.into(), timeout, output)),
            Self::Warehouse { url, cluster } => {
                signals::block_on(warehouse::show(url, cluster.into(), output))
            }
        }
    }
}

async fn start(args: StartArgs) -> Result<ExitCode, CliError> {
    let name = args
        .name
        .map_or_else(default_name::of_host, |name| name.to_string());
    if args.engine.is_none() {
        imt_oms::check_weight(&args.data, &name, args.weight)
            .and_then(|()| imt_oms::check_warehouse(&args.data, args.warehouse.as_ref()))
            .map_err(|error| cannot_start(&name, error, "--listen"))?;
    }
    otlp::start(&args.otlp, &name)?;
    let mut signals = StopSignals::listen()?;
    let others_port = SocketAddr::new(FIRST_LISTEN.ip(), 0);
    let is_first =
        args.listen.is_none() && !other_nodes::others_run(args.engine.as_ref(), &args.data).await?;
    let mut config = NodeConfig {
        listen: args
            .listen
            .unwrap_or(if is_first { FIRST_LISTEN } else { others_port }),
        warehouse: args.warehouse.as_ref().map(ToString::to_string),
        weight: args.weight,
        zone: args.zone.map(|zone| zone.to_string()),
        cors_origins: args.cors_origin,
        move_rows_per_second: args.move_rows_per_second,
        allotments: args.allotments,
        engine: args.engine,
        advertise: args.advertise,
        secret_file: args.secret_file,
        peer_encryption: crate::cluster::encryption(args.insecure_plaintext),
        ..NodeConfig::new(&name, args.data)
    };
    args.limits.apply(&mut config);
    crate::rlimit::fit(&mut config);
    let mut started = Node::start(config.clone()).await;
    // Two nodes of a new cluster that start at the same moment both try the address `FIRST_LISTEN`.
    // The node that finds this port taken by the other node tries again with a free port.
    let is_taken = matches!(started, Err(NodeError::AddressInUse { .. }));
    if is_first && is_taken && other_nodes::another_has_begun(&config).await? {
        config.listen = others_port;
        started = Node::start(config).await;
    }
    let node = started.map_err(|error| cannot_start(&name, error, "--listen"))?;
    tracing::info!("node '{name}' serves http://{}", node.address());
    tokio::select! {
        signal = signals.next() => {
            tracing::info!("{signal}: finishing requests in progress (repeat the signal to exit at once)");
        }
        () = node.asked_to_stop() => tracing::info!("stop requested: finishing requests in progress"),
    }
    signals.exit_on_next();
    node.stop()
        .await
        .map_err(|error| CliError::because(format!("node '{name}' did not stop cleanly"), error))?;
    tracing::info!("node '{name}' has stopped");
    Ok(ExitCode::SUCCESS)
}

/// Returns the error to print for a node that does not start. If the node cannot listen at its
/// address, the message names `flag`, the flag that sets the address.
pub(super) fn cannot_start(name: &str, error: NodeError, flag: &str) -> CliError {
    let advice = match error {
        // A setting that contradicts the state of the cluster is an error of usage, like a wrong
        // flag.
        NodeError::Config {
            setting: "weight", ..
        }
        | NodeError::OtherWarehouse { .. } => {
            return CliError::Usage(format!("cannot start node '{name}': {error}"));
        }
        NodeError::Listen { .. } | NodeError::AddressInUse { .. } => format!(" ({flag} sets its address)"),
        _ => String::new(),
    };
    CliError::because(format!("cannot start node '{name}'{advice}"), error)
}

/// State of a node in the output of `imt node list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeState {
    Serving,
    Leaving,
    Degraded,
    NotAnswering,
    /// The node has published a description and does not run.
    Gone,
    /// The ring has the node as a member, and no description of the node exists.
    Stopped,
}

impl NodeState {
    fn name(self) -> &'static str {
        match self {
            NodeState::Serving => "serving",
            NodeState::Leaving => "leaving",
            NodeState::Degraded => "degraded",
            NodeState::NotAnswering => "not answering",
            NodeState::Gone => "gone",
            NodeState::Stopped => "stopped",
        }
    }
}

impl Serialize for NodeState {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A row of `imt node list`.
#[derive(Serialize)]
struct Listed {
    name: String,
    state: NodeState,
    address: Option<SocketAddr>,
    /// Id of the node's process on its machine. `None` if the node does not run.
    process: Option<u32>,
    zone: Option<String>,
    weight: u32,
    slots: usize,
    volumes: Vec<String>,
    orders: Option<u64>,
    requests_per_second: Option<f64>,
    up_since_ms: Option<u64>,
}

async fn list(cluster: Cluster, args: &TableArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let look = cluster.look().await?;
    // If the cluster's secret cannot be read, the command fails. Otherwise it would list every node
    // as not answering.
    let client = match look.running().next() {
        Some(_) => Some(cluster.client().await?),
        None => None,
    };
    let mut reports = Vec::new();
    for card in &look.cards {
        let is_running = look.runs(&card.name);
        let report = match client.as_ref().filter(|_| is_running) {
            Some(client) => report(client, card).await.ok(),
            None => None,
        };
        reports.push((card, is_running, report));
    }
    let ring = &look.ring;
    let slots = |name: &NodeName| ring.as_ref().map_or(0, |ring| ring.slots_of(name).count());
    let mut nodes: Vec<Listed> = Vec::new();
    for (card, is_running, report) in &reports {
        let report = report.as_ref();
        let is_leaving = report.is_some_and(|report| report.leaving.contains(&card.name.to_string()));
        nodes.push(Listed {
            name: card.name.to_string(),
            state: match (is_running, report.is_some()) {
                (true, true) if is_leaving => NodeState::Leaving,
                (true, true) if report.is_some_and(|report| !report.missing.is_empty()) => {
                    NodeState::Degraded
                }
                (true, true) => NodeState::Serving,
                (true, false) if ring.is_some() && slots(&card.name) == 0 => NodeState::Leaving,
                (true, false) => NodeState::NotAnswering,
                (false, _) => NodeState::Gone,
            },
            address: is_running.then_some(card.address),
            process: is_running.then_some(card.process),
            zone: card.zone.clone(),
            weight: card.weight,
            slots: slots(&card.name),
            volumes: report.map_or_else(Vec::new, |report| report.volumes.keys().cloned().collect()),
            orders: report.map(|report| report.orders),
            requests_per_second: report.map(|report| report.requests_per_second),
            up_since_ms: is_running.then_some(card.started_at_ms),
        });
    }
    for member in ring.iter().flat_map(imt_ring::Ring::members) {
        if !look.cards.iter().any(|card| card.name == *member.name()) {
            nodes.push(Listed {
                name: member.name().to_string(),
                state: NodeState::Stopped,
                address: None,
                process: None,
                zone: member.zone().map(ToString::to_string),
                weight: member.weight(),
                slots: slots(member.name()),
                volumes: Vec::new(),
                orders: None,
                requests_per_second: None,
                up_since_ms: None,
            });
        }
    }
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    let known = reports.iter().filter_map(|(_, _, report)| report.as_ref());
    let is_moving = known.clone().any(|report| report.moving);
    let CopyProgress { rows, rows_expected } = known.map(|report| report.copy).sum();
    match output {
        OutputFormat::Json => output::print_json(&nodes)?,
        OutputFormat::Table => {
            let mut text = args.render(table(&nodes))?;
            if is_moving {
                text.push_str(&format!(
                    "\nslots are moving: {rows} of about {} copied\n",
                    output::count(rows_expected, "row")
                ));
            }
            let reports = reports.iter().filter_map(|(_, _, report)| report.as_ref());
            for reason in reports.flat_map(|report| report.missing.values()) {
                text.push_str(&format!("\n{reason}\n"));
            }
            output::print_text(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn seconds_since(at_ms: u64) -> f64 {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    now_ms.saturating_sub(at_ms) as f64 / 1_000.0
}

fn table(nodes: &[Listed]) -> Vec<Vec<String>> {
    let dash = || "-".to_owned();
    let columns = [
        "node",
        "state",
        "address",
        "zone",
        "weight",
        "slots",
        "serves",
        "orders",
        "requests/s",
        "process",
        "up",
    ];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    rows.extend(nodes.iter().map(|node| {
        let up = node.up_since_ms.map(|at_ms| {
            humantime::format_duration(Duration::from_secs(seconds_since(at_ms) as u64)).to_string()
        });
        vec![
            node.name.clone(),
            node.state.name().to_owned(),
            node.address.map_or_else(dash, |address| address.to_string()),
            node.zone.clone().unwrap_or_else(dash),
            node.weight.to_string(),
            node.slots.to_string(),
            if node.volumes.is_empty() {
                dash()
            } else {
                node.volumes.join(",")
            },
            node.orders.map_or_else(dash, |orders| orders.to_string()),
            node.requests_per_second
                .map_or_else(dash, |rate| format!("{rate:.1}")),
            node.process.map_or_else(dash, |process| process.to_string()),
            up.unwrap_or_else(dash),
        ]
    }));
    rows
}

async fn report(client: &NodeClient, card: &NodeInfo) -> Result<NodeReport, CliError> {
    let body = ask(client, card, "/peer/node").await?;
    serde_json::from_slice(&body)
        .map_err(|error| CliError::because(format!("node '{}' is of another version", card.name), error))
}

/// Sends `POST path` of the internal API to a running node. Returns the body of the response.
pub(super) async fn ask(client: &NodeClient, card: &NodeInfo, path: &str) -> Result<Bytes, CliError> {
    let answer = client.post(card.address, path, ANSWER_TIMEOUT).await;
    let (status, body) = answer.map_err(|error| CliError::Unreachable {
        message: format!(
            "node '{}' (process {}) does not answer at {}, although its process is there; is it paused?",
            card.name, card.process, card.address
        ),
        source: Box::new(error),
    })?;
    if status.is_success() {
        return Ok(body);
    }
    Err(CliError::failed(format!(
        "node '{}' answers {status}: {}",
        card.name,
        String::from_utf8_lossy(&body)
    )))
}

/// Returns the description of the running node `name`. Fails if that node does not run.
pub(super) async fn running(cluster: &Cluster, name: &str) -> Result<NodeInfo, CliError> {
    let look = cluster.look().await?;
    let card = look.running().find(|card| card.name == *name).cloned();
    if let Some(card) = card {
        return Ok(card);
    }
    let others: Vec<&str> = look.running().map(|card| card.name.as_str()).collect();
    let there = match others.is_empty() {
        true => "no node runs there".to_owned(),
        false => format!("running are {}", others.join(", ")),
    };
    Err(CliError::failed(format!(
        "no node '{name}' runs on {cluster}; {there}"
    )))
}

async fn stop(name: &NodeName, cluster: Cluster, output: OutputFormat) -> Result<ExitCode, CliError> {
    let card = running(&cluster, name.as_str()).await?;
    ask(&cluster.client().await?, &card, "/peer/stop").await?;
    while cluster.look().await?.runs(name) || cluster.has_process(name) == Some(true) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // A node removes its description before it hands its volume over and finishes its requests.
    let (state, said) = match cluster.has_process(name) {
        Some(_) => ("stopped", "has stopped"),
        None => (
            "stopping",
            "stops; its process ends once its volume is handed over and its requests are finished",
        ),
    };
    output::print_either(
        output,
        &format!("node '{name}' {said}"),
        &json!({ "node": name.as_str(), "state": state }),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Removes a node from the ring, and waits until its slots have moved, at most for `timeout`. Then
/// waits for the end of its process, at most for [`END_TIMEOUT`]. On an engine, waits only until
/// the node is no longer listed. Once the coordinator has recorded the request, the nodes complete
/// the removal even if this command is stopped.
async fn leave(
    node: &NodeName,
    cluster: Cluster,
    timeout: Duration,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let (cluster, name) = (&cluster, node.as_str());
    check_leaving(cluster, node).await?;
    tell_to_leave(cluster, name).await?;
    let begun = Instant::now();
    let mut asked = begun;
    while is_member(cluster, node).await? {
        if begun.elapsed() >= timeout {
            let waited = humantime::format_duration(timeout);
            let reason = why_not_left(cluster, name).await;
            return Err(CliError::failed(format!(
                "node '{name}' has not left within {waited}: {reason}; it continues to leave; run this again to wait"
            )));
        }
        if asked.elapsed() >= ASK_AGAIN_EVERY {
            asked = Instant::now();
            remind(cluster, name).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // The process of a node that has left ends by itself. The wait has a limit, because a paused
    // process does not end. On an engine, the end of the process stays unknown.
    let has_ended = async {
        loop {
            let look = cluster.look().await?;
            let process_ended = cluster.has_process(node).map(|has_process| !has_process);
            if process_ended != Some(false) && !look.cards.iter().any(|card| card.name == *node) {
                return Ok::<_, CliError>(process_ended);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let process_ended = match tokio::time::timeout(END_TIMEOUT, has_ended).await {
        Ok(process_ended) => process_ended?,
        Err(_) => Some(false),
    };
    let rest = match process_ended {
        Some(false) => "; its process has not ended yet",
        _ => "",
    };
    output::print_either(
        output,
        &format!("node '{name}' has left; its orders and stores are with the others{rest}"),
        &json!({ "node": name, "state": "left", "process_ended": process_ended }),
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn is_member(cluster: &Cluster, node: &NodeName) -> Result<bool, CliError> {
    let ring = cluster.ring().await?;
    Ok(ring.is_some_and(|ring| ring.member(node).is_some()))
}

/// Refuses a leave that the present members could not complete. The node must be a member of the
/// ring, and another member must have a weight above 0, so that the orders can move to that member.
async fn check_leaving(cluster: &Cluster, name: &NodeName) -> Result<(), CliError> {
    // Unlike `Cluster::ring`, `Cluster::look` fails if the data folder does not exist, with a
    // message that names the folder.
    let ring = cluster.look().await?.ring;
    if ring.as_ref().is_none_or(|ring| ring.member(name).is_none()) {
        return Err(CliError::failed(format!(
            "'{name}' is no node of the ring in {cluster}"
        )));
    }
    let members = ring.iter().flat_map(imt_ring::Ring::members);
    let others: Vec<_> = members.filter(|member| member.name() != name).collect();
    if others.is_empty() {
        return Err(CliError::failed(format!(
            "'{name}' is the only node; another one must be there to take its orders"
        )));
    }
    if others.iter().all(|member| member.weight() == 0) {
        return Err(CliError::failed(format!(
            "'{name}' cannot leave: every other node has weight 0 and takes no orders; start one with a weight"
        )));
    }
    Ok(())
}

/// Returns the status reports of all nodes that answer. Returns none if the state or the secret of
/// the cluster cannot be read.
async fn reports(cluster: &Cluster) -> Vec<NodeReport> {
    let mut found = Vec::new();
    let Ok(look) = cluster.look().await else {
        return found;
    };
    let Ok(client) = cluster.client().await else {
        return found;
    };
    for card in look.running() {
        found.extend(report(&client, card).await.ok());
    }
    found
}

/// Logs the progress of a leave, or the trouble that a node reports. Sends the request to leave
/// again if nodes answer and none of them reports the leave, because the nodes that received the
/// request may have died.
async fn remind(cluster: &Cluster, name: &str) {
    let reports = reports(cluster).await;
    if !reports.is_empty()
        && !reports
            .iter()
            .any(|report| report.leaving.iter().any(|known| known == name))
    {
        // The error is ignored, because `why_not_left` reports unreachable nodes at the timeout.
        let _ = tell_to_leave(cluster, name).await;
    }
    if let Some(reason) = reports.iter().find_map(|report| report.trouble.as_ref()) {
        tracing::warn!(node = name, reason, "node still leaving");
    } else if reports.iter().any(|report| report.moving) {
        let CopyProgress { rows, rows_expected } = reports.iter().map(|report| report.copy).sum();
        tracing::info!(node = name, rows, rows_expected, "node still leaving");
    }
}

/// Returns the reason why the node `name` has not left the ring yet.
async fn why_not_left(cluster: &Cluster, name: &str) -> String {
    let reports = reports(cluster).await;
    if reports.is_empty() {
        return "no node answers".to_owned();
    }
    let missing = reports.iter().flat_map(|report| report.missing.values()).next();
    if let Some(missing) = missing {
        return missing.clone();
    }
    if let Some(reason) = reports.iter().find_map(|report| report.trouble.clone()) {
        return reason;
    }
    if !reports
        .iter()
        .any(|report| report.leaving.iter().any(|known| known == name))
    {
        return "no other node stays that could take its orders, or no node coordinates".to_owned();
    }
    let CopyProgress { rows, rows_expected } = reports.iter().map(|report| report.copy).sum();
    format!("its rows are being copied, {rows} of about {rows_expected}")
}

/// Asks all running nodes to remove a node from the ring. The coordinator acts on the request, and
/// the other nodes ignore it.
pub(super) async fn tell_to_leave(cluster: &Cluster, name: &str) -> Result<(), CliError> {
    let advice = format!("another one must be there to take the orders of '{name}'");
    tell_all(cluster, &format!("/peer/leave/{name}"), &advice).await
}

/// Sends an operator's request to all running nodes. The coordinator acts on the request. Fails if
/// no node accepts the request. `advice` is the end of the error message if no node runs.
pub(super) async fn tell_all(cluster: &Cluster, path: &str, advice: &str) -> Result<(), CliError> {
    let look = cluster.look().await?;
    if look.running().next().is_none() {
        return Err(CliError::failed(format!("no node runs on {cluster}; {advice}")));
    }
    let client = cluster.client().await?;
    let (mut is_told, mut refused) = (false, None);
    for card in look.running() {
        match ask(&client, card, path).await {
            Ok(_) => is_told = true,
            Err(error) => refused = Some(error),
        }
    }
    match refused.filter(|_| !is_told) {
        Some(error) => Err(CliError::because(
            format!("no node of {cluster} has accepted the request"),
            error,
        )),
        None => Ok(()),
    }
}
