//! Runs nodes in separate processes and applies the node events of a scenario to them.
//!
//! Invariants:
//! - Events happen one after another. After an event other than a join, the next event waits until
//!   every volume answers requests.
//! - Each node that an event has ended is started again before the end of the run, so that the
//!   audit can read every volume.
//! - Dropping the fleet kills its processes, and so does a second Ctrl-C or SIGTERM.

use crate::cluster::Cluster;
use crate::commands::node;
use crate::error::CliError;
use crate::http;
use crate::logging;
use crate::output;
use crate::signals::Registered;
use imt_oms::EngineUrl;
use imt_sim::node_events::NodeEvents;
use imt_sim::scenario::{NodeAction, NodeEvent};
use imt_sim::telemetry::EventKind;
use imt_sim::{Endpoint, Telemetry};
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Maximum time for a node to start, for its process to end after a stop or a kill, and for every
/// volume to answer after an event. A longer time is an error, and the run fails.
const BACK_MAX: Duration = Duration::from_secs(30);
/// Maximum time for the process of a node to end after the node was asked to leave. It exceeds
/// [`BACK_MAX`], because all slots of the node move first.
const LEAVE_MAX: Duration = Duration::from_secs(120);
/// Interval of polls while waiting until a node runs, or until every volume answers.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// Interval of polls while waiting for the end of a process.
const END_POLL: Duration = Duration::from_millis(5);
/// Maximum time for all processes together to end after SIGTERM. The processes that still run are
/// then killed.
const END_MAX: Duration = Duration::from_secs(10);

/// Metric of the orders that took borrowed units, with a sample for each volume.
const BORROWED: &str = "imt_orders_from_borrowed_units_total{";

/// The process of a node. A second Ctrl-C or SIGTERM kills it together with this process.
struct NodeProcess {
    child: Child,
    registered: Registered,
}

impl NodeProcess {
    /// Kills the node's process, and waits for its end.
    fn kill(self) {
        let Self {
            mut child,
            registered,
        } = self;
        let _ = child.kill();
        drop(registered);
        let _ = child.wait();
    }
}

/// A node that runs in a separate process, or is stopped at present.
struct FleetNode {
    name: String,
    process: Option<NodeProcess>,
}

impl FleetNode {
    fn signal(&self, signal: Signal) {
        let id = self
            .process
            .as_ref()
            .and_then(|process| i32::try_from(process.child.id()).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            // The error is ignored, because the process may have ended already.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for FleetNode {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}

/// The nodes that run in separate processes, and the results of their events.
pub(super) struct Fleet {
    data: PathBuf,
    cluster: Cluster,
    warehouse: SocketAddr,
    nodes: Vec<FleetNode>,
    /// The node events other than joins, each with its action and a time: from the start of the
    /// event, or from the end of a pause, until every volume answered again.
    events: Vec<(NodeAction, Duration)>,
    /// Number of orders of ended processes that took borrowed units.
    borrowed: u64,
}

impl Fleet {
    /// Starts `count` nodes, from `node-1` on, each in a process of its own. Returns once all of
    /// them run, because an event needs a running node. `node-1` runs before the others start, so
    /// it becomes the coordinator.
    pub(super) async fn start(
        data: &Path,
        engine: Option<&EngineUrl>,
        count: u32,
        warehouse: SocketAddr,
    ) -> Result<Self, CliError> {
        let mut fleet = Self {
            cluster: Cluster::new(data, engine),
            data: data.to_owned(),
            warehouse,
            nodes: Vec::new(),
            events: Vec::new(),
            borrowed: 0,
        };
        for number in 1..=count {
            fleet.add(number)?;
            if number == 1 {
                fleet.wait_until_running(0).await?;
            }
        }
        for place in 1..fleet.nodes.len() {
            fleet.wait_until_running(place).await?;
        }
        Ok(fleet)
    }

    /// Starts the process of a node.
    fn spawn(&self, name: &str) -> Result<NodeProcess, CliError> {
        let program =
            std::env::current_exe().map_err(|error| CliError::because("cannot find this program", error))?;
        let mut command = Command::new(program);
        if let Cluster::Engine { url, .. } = &self.cluster {
            // The URL may have a password. Other users of the machine can see arguments, but not
            // the environment.
            command.env("IMT_ENGINE", url.with_password());
        }
        let mut process = command
            .args(["--log-level", log_level(output::is_quiet()), "node", "start"])
            .args(["--listen", "127.0.0.1:0", "--name", name])
            .arg("--data")
            .arg(&self.data)
            .args(["--warehouse", &format!("http://{}", self.warehouse)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| CliError::because(format!("cannot start node '{name}'"), error))?;
        if let Some(log) = process.stderr.take() {
            // Log lines of the node go through the log of this process. Direct output to the
            // terminal would damage the live view.
            logging::forward(log, name.to_owned())
                .map_err(|error| CliError::because(format!("cannot read the log of node '{name}'"), error))?;
        }
        Ok(NodeProcess {
            registered: Registered::new(&process),
            child: process,
        })
    }

    fn add(&mut self, number: u32) -> Result<(), CliError> {
        let name = format!("node-{number}");
        let process = Some(self.spawn(&name)?);
        self.nodes.push(FleetNode { name, process });
        Ok(())
    }

    /// Applies the events one after another, each at its time after the start of the load, but not
    /// before the previous event is complete. Returns after the last event. If `is_over` becomes
    /// `true`, begins no further event.
    pub(super) async fn suffer(
        mut self,
        events: Vec<NodeEvent>,
        entry: Endpoint,
        telemetry: Telemetry,
        mut is_over: watch::Receiver<bool>,
    ) -> Result<Self, CliError> {
        let mut state = telemetry.subscribe();
        tokio::select! {
            _ = state.wait_for(|state| state.started_at_ms > 0) => {}
            _ = is_over.wait_for(|over| *over) => return Ok(self),
        }
        let begun = Instant::now();
        for event in events {
            tokio::select! {
                () = tokio::time::sleep_until(begun + event.at) => {}
                _ = is_over.wait_for(|over| *over) => return Ok(self),
            }
            self.apply(event, &entry, &telemetry).await?;
        }
        Ok(self)
    }

    async fn apply(
        &mut self,
        event: NodeEvent,
        entry: &Endpoint,
        telemetry: &Telemetry,
    ) -> Result<(), CliError> {
        let place = event.node as usize - 1;
        while self.nodes.len() <= place {
            let added = self.nodes.len();
            let number = added as u32 + 1;
            telemetry.event(
                EventKind::Join,
                format!("node-{number}"),
                format!("node-{number} started"),
            );
            self.add(number)?;
            self.wait_until_running(added).await?;
        }
        let name = self.nodes[place].name.clone();
        if matches!(
            event.action,
            NodeAction::Kill | NodeAction::Stop | NodeAction::Leave
        ) {
            self.borrowed += self.borrowed_of(&name).await;
        }
        let begun = Instant::now();
        match event.action {
            NodeAction::Join => {}
            NodeAction::Pause => return self.pause(place, event.lasts, entry, telemetry).await,
            NodeAction::Kill => {
                telemetry.event(EventKind::Kill, &name, format!("{name} killed"));
                self.nodes[place].signal(Signal::KILL);
            }
            NodeAction::Stop => {
                telemetry.event(EventKind::Stop, &name, format!("{name} asked to stop"));
                let card = node::running(&self.cluster, &name).await?;
                node::ask(&self.cluster.client().await?, &card, "/peer/stop").await?;
            }
            NodeAction::Leave => {
                telemetry.event(EventKind::Leave, &name, format!("{name} asked to leave for good"));
                node::tell_to_leave(&self.cluster, &name).await?;
            }
        }
        if event.action != NodeAction::Join {
            let limit = match event.action {
                NodeAction::Leave => LEAVE_MAX,
                _ => BACK_MAX,
            };
            self.wait_for_end(place, event.action, limit).await?;
            self.recovered(event.action, begun, &name, entry, telemetry)
                .await?;
            tokio::time::sleep(event.lasts).await;
        }
        if self.nodes[place].process.is_none() {
            telemetry.event(EventKind::Join, &name, format!("{name} started again"));
            self.nodes[place].process = Some(self.spawn(&name)?);
            self.wait_until_running(place).await?;
        }
        Ok(())
    }

    /// Pauses the process of a node for the duration `lasts`. If the nodes share a data folder, the
    /// volume of this node does not answer during the pause: the paused process still holds the
    /// volume's lock, so no other node can serve the volume.
    async fn pause(
        &mut self,
        place: usize,
        lasts: Duration,
        entry: &Endpoint,
        telemetry: &Telemetry,
    ) -> Result<(), CliError> {
        let name = self.nodes[place].name.clone();
        telemetry.event(EventKind::Pause, &name, format!("{name} paused"));
        self.nodes[place].signal(Signal::STOP);
        tokio::time::sleep(lasts).await;
        self.nodes[place].signal(Signal::CONT);
        telemetry.event(EventKind::Resume, &name, format!("{name} goes on"));
        self.recovered(NodeAction::Pause, Instant::now(), &name, entry, telemetry)
            .await
    }

    /// Waits for the end of the process of the node at index `place` after an event. Fails if the
    /// process still runs after `limit`.
    async fn wait_for_end(
        &mut self,
        place: usize,
        action: NodeAction,
        limit: Duration,
    ) -> Result<(), CliError> {
        let until = Instant::now() + limit;
        let node = &mut self.nodes[place];
        // The exit code is ignored, because the audit at the end of the run finds lost and changed
        // orders.
        while let Some(process) = &mut node.process
            && matches!(process.child.try_wait(), Ok(None))
        {
            if Instant::now() >= until {
                return Err(CliError::failed(format!(
                    "node '{}' did not end: its process {} still runs {limit:?} after the {}; see its lines \
                     in the log",
                    node.name,
                    process.child.id(),
                    action.name()
                )));
            }
            tokio::time::sleep(END_POLL).await;
        }
        node.process = None;
        Ok(())
    }

    /// Waits until a request that needs every volume succeeds, at most until [`BACK_MAX`] after
    /// `begun`. Records the time since `begun`.
    async fn recovered(
        &mut self,
        action: NodeAction,
        begun: Instant,
        name: &str,
        entry: &Endpoint,
        telemetry: &Telemetry,
    ) -> Result<(), CliError> {
        loop {
            match http::get(entry, "/reservations?limit=1").await {
                Ok(answer) if answer.is_success() => break,
                _ if begun.elapsed() > BACK_MAX => {
                    let action = action.name();
                    return Err(CliError::failed(format!(
                        "not every volume answers {BACK_MAX:?} after the {action} of {name}"
                    )));
                }
                _ => tokio::time::sleep(PROBE_EVERY).await,
            }
        }
        let took = begun.elapsed();
        let took_ms = took.as_secs_f64() * 1_000.0;
        let text = format!(
            "every volume answers {took_ms:.0} ms after the {} of {name}",
            action.name()
        );
        telemetry.event(EventKind::Recovered, name, text);
        self.events.push((action, took));
        Ok(())
    }

    /// Waits until the cluster lists the node at index `place` as running, at most for
    /// [`BACK_MAX`].
    async fn wait_until_running(&self, place: usize) -> Result<(), CliError> {
        let node = &self.nodes[place];
        let until = Instant::now() + BACK_MAX;
        while node::running(&self.cluster, &node.name).await.is_err() {
            if Instant::now() > until {
                return Err(CliError::failed(format!(
                    "node '{}' did not start within {BACK_MAX:?}; see its lines in the log",
                    node.name
                )));
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        Ok(())
    }

    /// Returns the number of orders that took borrowed units in the running process of a node, or 0
    /// if the node does not answer.
    async fn borrowed_of(&self, name: &str) -> u64 {
        match node::running(&self.cluster, name).await {
            Ok(card) => borrowed_orders(&card.address.into()).await,
            Err(_) => 0,
        }
    }

    /// Returns the number of orders of all processes so far that took borrowed units. The orders
    /// of a process after the count before its end are missing.
    pub(super) async fn orders_from_borrowed_units(&self) -> u64 {
        let mut sum = self.borrowed;
        for node in &self.nodes {
            sum += self.borrowed_of(&node.name).await;
        }
        sum
    }

    /// Returns the results of the node events, by kind. Joins are left out.
    pub(super) fn node_events(&self) -> Vec<NodeEvents> {
        NodeEvents::group(&self.events)
    }

    /// Returns the names of the nodes of this fleet.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    /// Stops the processes of all nodes gracefully (SIGTERM). Kills those that still run after
    /// [`END_MAX`].
    pub(super) async fn stop(mut self) {
        for node in &self.nodes {
            node.signal(Signal::TERM);
        }
        let processes: Vec<NodeProcess> = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.process.take())
            .collect();
        let ended = tokio::task::spawn_blocking(move || {
            let until = std::time::Instant::now() + END_MAX;
            for mut process in processes {
                while matches!(process.child.try_wait(), Ok(None)) && std::time::Instant::now() < until {
                    std::thread::sleep(END_POLL);
                }
                process.kill();
            }
        });
        let _ = ended.await;
    }
}

/// Returns the number of orders that took borrowed units in the process of a node, as the metrics
/// of the node say. Returns 0 if the node does not answer.
pub(super) async fn borrowed_orders(node: &Endpoint) -> u64 {
    let Ok(answer) = http::get(node, "/metrics").await else {
        return 0;
    };
    let text = String::from_utf8_lossy(&answer.body);
    let counts = text.lines().filter(|line| line.starts_with(BORROWED));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// Returns the log level of a node's process. With `--quiet`, a node logs errors only.
fn log_level(is_quiet: bool) -> &'static str {
    if is_quiet { "error" } else { "warn" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty_fleet(data: &Path) -> Fleet {
        Fleet {
            cluster: Cluster::new(data, None),
            data: data.to_owned(),
            warehouse: "127.0.0.1:9".parse().unwrap(),
            nodes: Vec::new(),
            events: Vec::new(),
            borrowed: 0,
        }
    }

    #[tokio::test]
    async fn a_process_that_does_not_end_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = empty_fleet(folder.path());
        // A test of `signals` kills all registered processes. So another process is registered.
        let mut other = Command::new("true").spawn().unwrap();
        let process = NodeProcess {
            child: Command::new("sleep").arg("600").spawn().unwrap(),
            registered: Registered::new(&other),
        };
        fleet.nodes.push(FleetNode {
            name: "node-1".to_owned(),
            process: Some(process),
        });
        let still_running = fleet.wait_for_end(0, NodeAction::Stop, Duration::ZERO).await;
        let error = still_running.unwrap_err().to_string();
        assert!(
            error.contains("node 'node-1' did not end") && error.contains("after the stop"),
            "{error}"
        );
        fleet.nodes[0].signal(Signal::KILL);
        fleet.wait_for_end(0, NodeAction::Kill, BACK_MAX).await.unwrap();
        assert!(fleet.nodes[0].process.is_none());
        other.wait().unwrap();
    }

    /// The fleet starts each node as a process of the current program, which is the test binary
    /// here. This binary refuses the arguments of a node and ends, so no node ever runs. A join of
    /// node 3 must therefore still wait for node 1 at the timeout.
    #[tokio::test]
    async fn a_join_awaits_each_node_that_it_adds() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = empty_fleet(folder.path());
        let event = NodeEvent {
            at: Duration::ZERO,
            node: 3,
            action: NodeAction::Join,
            lasts: Duration::ZERO,
        };
        let (entry, telemetry) = ("http://127.0.0.1:9".parse().unwrap(), Telemetry::default());
        let applied = fleet.apply(event, &entry, &telemetry);
        let applied = tokio::time::timeout(Duration::from_millis(300), applied).await;
        assert!(applied.is_err(), "the event ended although no node runs");
        assert_eq!(fleet.nodes.len(), 1, "node-2 was started before node-1 ran");
    }
}
