//! Conducts one run, from the wait for the order management to the exit code.
//!
//! Steps of a run: wait for the order management, create the run folder, send requests while faults
//! and node events happen, audit, check the thresholds, write the results, print the summary.

use super::fleet::{self, Fleet};
use super::progress::{Display, DisplayConfig};
use crate::cluster::Cluster;
use crate::colour::Paint;
use crate::error::CliError;
use crate::exit::Exit;
use crate::http;
use crate::output::{self, OutputFormat};
use crate::signals::StopSignals;
use imt_live::state::Outcome;
use imt_sim::audit::AuditProgress;
use imt_sim::monitor::Monitor;
use imt_sim::node_events::RunningNode;
use imt_sim::run_folder::{RunFacts, RunFolder};
use imt_sim::scenario::{Scenario, WarehouseFault};
use imt_sim::summary::{RunIdentity, Verdict};
use imt_sim::telemetry::{EventKind, Phase};
use imt_sim::thresholds::Measured;
use imt_sim::warehouse::{Profile, WarehouseControl};
use imt_sim::wire::Health;
use imt_sim::{AuditConfig, AuditReport, Endpoint, Error, FrontConfig, FrontReport, Summary, Telemetry};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Maximum number of characters of an answer in an error message.
const EXCERPT_CHARS_MAX: usize = 80;

/// Servers and settings of a run.
pub(super) struct Session {
    pub(super) oms: Endpoint,
    pub(super) warehouse: Endpoint,
    pub(super) scenario: Scenario,
    pub(super) seed: u64,
    pub(super) data: PathBuf,
    /// `true` if the servers keep running after the run, until a signal comes.
    pub(super) stays: bool,
    pub(super) plain: bool,
    /// Control of the warehouse's faults. `None` if the warehouse runs in another process.
    pub(super) warehouse_control: Option<WarehouseControl>,
    /// The node in this process, and the cluster to which it belongs. `None` if the run starts no
    /// node.
    pub(super) own_node: Option<OwnNode>,
    /// Nodes in separate processes, to which the node events of the scenario apply.
    pub(super) fleet: Option<Fleet>,
}

/// A node that runs in this process.
pub(super) struct OwnNode {
    pub(super) name: String,
    pub(super) cluster: Cluster,
}

/// Results of the part of a run that sends requests.
struct Sent {
    report: FrontReport,
    fleet: Option<Fleet>,
}

impl Session {
    /// Conducts the run from the wait for the order management to the printed summary. Then stops
    /// the fleet, with `--stay` only after a signal. Returns the exit code.
    pub(super) async fn conduct(
        mut self,
        signals: StopSignals,
        output: OutputFormat,
    ) -> Result<Exit, CliError> {
        let telemetry = Telemetry::default();
        telemetry.update(|state| {
            state.scenario.clone_from(&self.scenario.name);
            state.seed = self.seed;
        });
        let stop = stop_on_signal(signals);
        let display = self.show(&telemetry, output, stop.clone());
        let config = self.front_config();
        imt_sim::front::wait_until_ready(&config, stop.clone())
            .await
            .map_err(front_failure)?;
        check_is_node(&self.oms).await?;
        let identity = RunIdentity {
            scenario: self.scenario.name.clone(),
            repeat: repeat_command(std::env::args(), self.seed),
            run_folder: None,
        };
        let facts = RunFacts::new(
            &identity.scenario,
            &self.scenario.toml,
            self.seed,
            &identity.repeat,
        );
        let folder = RunFolder::create(&self.data, &facts)
            .map_err(|error| CliError::because("the run cannot be recorded", error))?;
        display.set_folder(folder.path());
        let config = FrontConfig {
            run_folder: Some(folder.path().to_owned()),
            ..config
        };
        let identity = RunIdentity {
            run_folder: Some(folder.path().to_owned()),
            ..identity
        };
        let monitor = Monitor::start(self.oms.clone(), self.warehouse.clone(), telemetry.clone()).await;
        let sent = self.send(config, &telemetry, stop.clone()).await;
        let Sent { report, fleet } = sent?;
        let audited = self.audit(&report, &telemetry).await;
        monitor.poll_once().await;

        let unreachable = matches!(&audited, Err(Error::Unreachable { .. }));
        let audited = audited.map_err(|error| described(&error));
        let thresholds = self.judge(&report, audited.as_ref().ok());
        let state = telemetry.snapshot(0, usize::MAX);
        let summary = Summary {
            node_events: fleet.as_ref().map_or_else(Vec::new, Fleet::node_events),
            still_up: self.still_up(fleet.as_ref()).await,
            orders_from_borrowed_units: self.borrowed(fleet.as_ref()).await,
            ..Summary::new(identity, &report, audited, &state, thresholds)
        };
        telemetry.update(|state| state.phase = Phase::Done);
        let events: Vec<_> = state.events.iter().cloned().collect();
        folder
            .write_results(&report, &events, &summary)
            .map_err(|error| CliError::because("the results cannot be written", error))?;
        display.set_outcome(outcome_of(&summary));
        if display.is_live() {
            self.stay(stop.clone()).await;
        }
        drop(monitor);
        display.close();
        match output {
            OutputFormat::Json => output::print_json(&summary)?,
            OutputFormat::Table => {
                let paint = Paint::of_stdout(self.plain);
                output::print_text(&paint.verdict(&summary.to_string()))?;
            }
        }
        self.stay(stop).await;
        if let Some(fleet) = fleet {
            fleet.stop().await;
        }
        Ok(exit_of(&summary, unreachable))
    }

    fn show(&self, telemetry: &Telemetry, output: OutputFormat, stop: watch::Receiver<bool>) -> Display {
        Display::start(DisplayConfig {
            telemetry: telemetry.clone(),
            is_plain: self.plain,
            output,
            console: format!("{}/", self.oms),
            stop,
        })
    }

    fn front_config(&self) -> FrontConfig {
        FrontConfig {
            oms: self.oms.clone(),
            warehouse: self.warehouse.clone(),
            data: self.data.clone(),
            seed: self.seed,
            load: self.scenario.load.clone(),
            customers: self.scenario.customers.clone(),
            warm_up: self.scenario.warm_up,
            in_flight_max: crate::rlimit::front_in_flight_max(),
            route: self.scenario.route,
            ..FrontConfig::default()
        }
    }

    /// Sends the requests of the scenario. Faults of the warehouse and node events happen at the
    /// same time.
    async fn send(
        &mut self,
        config: FrontConfig,
        telemetry: &Telemetry,
        stop: watch::Receiver<bool>,
    ) -> Result<Sent, CliError> {
        let (over, is_over) = watch::channel(false);
        let faults = self.warehouse_control.clone().map(|control| {
            let plan = &self.scenario.warehouse;
            let driver = FaultDriver {
                control,
                usual: plan.profile,
                faults: plan.faults.clone(),
                telemetry: telemetry.clone(),
            };
            tokio::spawn(driver.drive(is_over.clone()))
        });
        let events = self.scenario.node_events(self.seed);
        let suffering: Option<JoinHandle<Result<Fleet, CliError>>> = self.fleet.take().map(|fleet| {
            let entry = self.oms.clone();
            tokio::spawn(fleet.suffer(events, entry, telemetry.clone(), is_over))
        });
        let report = imt_sim::run_front(config, telemetry, stop).await;
        over.send_replace(true);
        if let Some(faults) = faults {
            // A panic of the task that drives the faults is ignored. The latest fault of the
            // warehouse may then remain, and the audit waits longer for an empty outbox.
            let _ = faults.await;
        }
        let fleet = match suffering {
            None => None,
            Some(suffering) => Some(suffering.await.map_err(|error| {
                CliError::because("the task that applies the node events ended early", error)
            })??),
        };
        let report = report.map_err(front_failure)?;
        Ok(Sent { report, fleet })
    }

    async fn audit(&self, report: &FrontReport, telemetry: &Telemetry) -> Result<AuditReport, Error> {
        telemetry.update(|state| state.phase = Phase::Auditing);
        let config = AuditConfig {
            // The audit cannot check an incomplete log. The summary reports the incomplete log
            // itself.
            log: report.stats_csv.clone().filter(|_| report.log_problem.is_none()),
            log_is_of_node: !self.scenario.route,
            ..AuditConfig::new(self.oms.clone(), self.warehouse.clone())
        };
        let (progress, mut steps) = watch::channel(AuditProgress::default());
        let shown = telemetry.clone();
        let showing = tokio::spawn(async move {
            while steps.changed().await.is_ok() {
                let text = steps.borrow_and_update().to_string();
                shown.update(|state| state.audit = text);
            }
        });
        let audited = imt_sim::audit(&config, &report.record, &progress).await;
        drop(progress);
        let _ = showing.await;
        audited
    }

    fn judge(
        &self,
        report: &FrontReport,
        audit: Option<&AuditReport>,
    ) -> Vec<imt_sim::thresholds::ThresholdResult> {
        let measured = Measured { front: report, audit };
        let thresholds = self.scenario.thresholds.iter();
        thresholds.map(|threshold| threshold.evaluate(measured)).collect()
    }

    /// Returns the running nodes of the cluster that the run did not start. Returns none if the run
    /// started no node, or if the list of nodes cannot be read.
    async fn still_up(&self, fleet: Option<&Fleet>) -> Vec<RunningNode> {
        let Some(own) = &self.own_node else {
            return Vec::new();
        };
        let look = match own.cluster.look().await {
            Ok(look) => look,
            Err(error) => {
                tracing::warn!("cannot list the nodes that are still up: {}", described(&error));
                return Vec::new();
            }
        };
        let is_own = |name: &str| {
            name == own.name || fleet.is_some_and(|fleet| fleet.names().any(|known| known == name))
        };
        let others = look.running().filter(|card| !is_own(card.name.as_str()));
        let running = others.map(|card| RunningNode {
            name: card.name.to_string(),
            address: card.address.to_string(),
            stop: stop_command(card.name.as_str(), &own.cluster),
        });
        running.collect()
    }

    /// Returns the number of orders that took units that one node of this run lent to another.
    /// Returns `None` if the run started no node.
    async fn borrowed(&self, fleet: Option<&Fleet>) -> Option<u64> {
        self.own_node.as_ref()?;
        let own = fleet::borrowed_orders(&self.oms).await;
        let others = match fleet {
            Some(fleet) => fleet.orders_from_borrowed_units().await,
            None => 0,
        };
        Some(own + others)
    }

    /// With `--stay`, keeps the servers running until a signal comes. Returns at once without
    /// `--stay`, or if a signal has come before.
    async fn stay(&self, mut stop: watch::Receiver<bool>) {
        if self.stays && !*stop.borrow() {
            tracing::info!(
                "node {} and warehouse {} stay up; Ctrl-C ends them",
                self.oms,
                self.warehouse
            );
            // An error is impossible, because the task that owns the sender never ends.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    }
}

/// Returns a receiver that becomes `true` at the first signal. A second signal ends the process at
/// once.
fn stop_on_signal(mut signals: StopSignals) -> watch::Receiver<bool> {
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        let signal = signals.next().await;
        tracing::info!(
            "{signal}: no new requests; finishing and auditing (repeat the signal to exit at once)"
        );
        stop.send_replace(true);
        signals.exit_on_next();
        // This task keeps the sender alive. `Session::stay` would take a closed channel for a
        // signal.
        std::future::pending::<()>().await;
    });
    stopping
}

/// Returns an error unless a node answers at the address.
async fn check_is_node(oms: &Endpoint) -> Result<(), CliError> {
    let answer = http::get(oms, "/health").await?;
    let health: Option<Health> = serde_json::from_slice(&answer.body).ok();
    if health.is_some_and(|health| !health.node.is_empty()) {
        return Ok(());
    }
    let excerpt: String = answer.excerpt().chars().take(EXCERPT_CHARS_MAX).collect();
    Err(CliError::failed(format!(
        "{oms} is not a node: GET /health answered {} {excerpt}. No order was sent. Give the address of a \
         node with --oms, or start a node with imt node start",
        answer.status
    )))
}

/// Returns the command that stops a node of a cluster.
fn stop_command(name: &str, cluster: &Cluster) -> String {
    match cluster {
        Cluster::Folder(data) => {
            format!(
                "imt node stop {name} --data {}",
                quoted(&data.display().to_string())
            )
        }
        Cluster::Engine { url, .. } => {
            format!("imt node stop {name} --engine {}", quoted(&url.to_string()))
        }
    }
}

/// Returns the error to print if the shop front could not send its requests.
fn front_failure(error: Error) -> CliError {
    match error {
        Error::Interrupted { .. } => CliError::Interrupted(error.to_string()),
        Error::Unreachable { .. } => CliError::Unreachable {
            message: "the shop front could not run; is the node up? (imt node start, or imt sim run)"
                .to_owned(),
            source: Box::new(error),
        },
        error => CliError::because("the shop front could not run", error),
    }
}

/// Returns the exit code of a run. Findings of the audit take precedence over all other outcomes,
/// because they may mean lost or doubled orders.
fn exit_of(summary: &Summary, unreachable: bool) -> Exit {
    match summary.verdict {
        Verdict::Findings => Exit::Found,
        Verdict::Unaudited if unreachable => Exit::Unreachable,
        Verdict::Unaudited => Exit::Failed,
        _ if summary.stopped_early => Exit::Interrupted,
        _ if summary.thresholds.iter().any(|result| result.is_missed) => Exit::ThresholdMissed,
        Verdict::Clean | Verdict::Invalid | Verdict::ThresholdMissed => Exit::Done,
    }
}

/// Returns the result of a run in the form that the live view shows.
fn outcome_of(summary: &Summary) -> Outcome {
    let missed = summary.thresholds.iter().filter(|result| result.is_missed);
    Outcome {
        verdict: summary.verdict,
        findings: summary.audit.as_ref().map_or(0, |audit| audit.findings.len()),
        thresholds_missed: missed.count(),
    }
}

/// Returns an error and its causes in one line.
fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Returns the command that repeats this run: the same arguments, and the seed if they do not name
/// it. Settings from the environment or from a file are left out.
fn repeat_command(args: impl Iterator<Item = String>, seed: u64) -> String {
    let mut words: Vec<String> = vec!["imt".to_owned()];
    let mut has_seed = false;
    for arg in args.skip(1) {
        has_seed |= arg == "--seed" || arg.starts_with("--seed=");
        words.push(quoted(&arg));
    }
    if !has_seed {
        words.push(format!("--seed {seed}"));
    }
    words.join(" ")
}

/// Returns a word as a shell reads it, in quotes if it has special characters.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,%+@".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Task that changes the warehouse's behaviour at the times in a scenario.
struct FaultDriver {
    control: WarehouseControl,
    usual: Profile,
    faults: Vec<WarehouseFault>,
    telemetry: Telemetry,
}

/// A change of the warehouse's behaviour. The time `at` is measured from the start of the load.
struct Switch {
    at: Duration,
    profile: Profile,
}

impl FaultDriver {
    /// Returns the changes of behaviour in order of time. If two faults overlap, the later fault
    /// replaces the earlier one.
    fn switches(&self) -> Vec<Switch> {
        let mut switches = Vec::new();
        for (place, fault) in self.faults.iter().enumerate() {
            switches.push(Switch {
                at: fault.at,
                profile: fault.profile,
            });
            let ends = fault.at + fault.lasts;
            let next = self.faults.get(place + 1);
            if next.is_none_or(|next| next.at > ends) {
                switches.push(Switch {
                    at: ends,
                    profile: self.usual,
                });
            }
        }
        switches
    }

    /// Changes the behaviour of the warehouse as `switches` says. At the end, restores the
    /// behaviour without a fault (`usual`), even if the run ends early.
    async fn drive(self, mut is_over: watch::Receiver<bool>) {
        let mut state = self.telemetry.subscribe();
        tokio::select! {
            _ = state.wait_for(|state| state.started_at_ms > 0) => {}
            _ = is_over.wait_for(|over| *over) => return,
        }
        let begun = Instant::now();
        for switch in self.switches() {
            tokio::select! {
                () = tokio::time::sleep_until(begun + switch.at) => {}
                _ = is_over.wait_for(|over| *over) => break,
            }
            let name = switch.profile.name();
            self.telemetry
                .event(EventKind::Warehouse, name, format!("warehouse behaves as {name}"));
            self.control.set_behaviour(switch.profile.behaviour());
        }
        let usual = self.usual.behaviour();
        if self.control.behaviour_name() != usual.name {
            self.control.set_behaviour(usual);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repeating_command_names_the_seed_and_quotes_its_words() {
        let args = |text: &[&str]| {
            text.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .into_iter()
        };
        assert_eq!(
            repeat_command(
                args(&["target/imt", "sim", "run", "--fail-if", "p99(order) > 5ms"]),
                7
            ),
            "imt sim run --fail-if 'p99(order) > 5ms' --seed 7"
        );
        assert_eq!(
            repeat_command(args(&["imt", "sim", "run", "--seed", "3", "--data", "it's"]), 3),
            "imt sim run --seed 3 --data 'it'\\''s'"
        );
    }

    #[test]
    fn the_command_that_stops_a_node_names_a_folder_other_than_the_default() {
        let command = |data: &str| stop_command("w", &Cluster::Folder(data.into()));
        assert_eq!(command("data"), "imt node stop w --data data");
        assert_eq!(command("/tmp/my shop"), "imt node stop w --data '/tmp/my shop'");
    }
}
