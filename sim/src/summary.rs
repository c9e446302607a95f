//! The summary of a run: as a table for people, and as JSON for programs. The table has 80 columns,
//! except in lines with a path, a finding or its explanation, and in commands without an option to
//! break them at.
//!
//! Invariants:
//! - Counts include this run only, except for those in the report of the audit. Totals that include
//!   earlier runs have a separate field, `data_folder`.
//! - Rates are averages over the sending window, the time in which orders and statistics requests
//!   start. The time after the window is reported as the drain.
//! - A summary has exactly one verdict. A run with a large lag is invalid, unless the audit has
//!   findings or could not be done.
//!
//! This module formats results and measures nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::audit::{AuditReport, Finding};
use crate::front::{FrontReport, RouteReport, RoutingCounts};
use crate::latency::Latency;
use crate::node_events::{NodeEvents, RunningNode};
use crate::telemetry::{NodeState, RunState};
use crate::thresholds::ThresholdResult;
use crate::warehouse::Fault;
use crate::wire::WarehouseSummary;

/// Verdict on a run as a whole. If several apply, the verdict is the first one of `Findings`,
/// `Unaudited`, `Invalid` and `ThresholdMissed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The audit has no finding, the lag was small enough, and no threshold was missed.
    Clean,
    /// The audit has at least one finding.
    Findings,
    /// At least one threshold was missed: its condition, such as `p99(order) > 5ms`, is true or
    /// cannot be checked.
    ThresholdMissed,
    /// The lag of the shop front was too large, so the latencies are not those of the server.
    Invalid,
    /// The audit could not be done.
    Unaudited,
}

impl Verdict {
    /// Returns the verdict as one or two words in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "CLEAN",
            Self::Findings => "FINDINGS",
            Self::ThresholdMissed => "THRESHOLD MISSED",
            Self::Invalid => "INVALID",
            Self::Unaudited => "NO VERDICT",
        }
    }
}

/// Totals of the order management and the warehouse, including earlier runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FolderTotals {
    /// Number of orders by state.
    pub orders: BTreeMap<String, u64>,
    /// Number of stock snapshots that the order management has applied.
    pub stock_snapshots: u64,
    /// Number of statistics files that the order management has applied.
    pub stat_files: u64,
    /// Counts in the last answer of the warehouse; `None` if the warehouse never answered.
    pub warehouse: Option<WarehouseSummary>,
}

/// Identity of a run. The table shows the scenario in its first line, and uses the other fields in
/// the suggested next steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RunIdentity {
    /// Name of the scenario.
    pub scenario: String,
    /// Command line that repeats the run.
    pub repeat: String,
    /// Path of the run folder; `None` if the run keeps no records.
    pub run_folder: Option<PathBuf>,
}

/// The results of a run. `Display` prints them as a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Scenario, command and run folder.
    #[serde(flatten)]
    pub identity: RunIdentity,
    /// The verdict on the run.
    pub verdict: Verdict,
    /// Reason for which the audit could not be done; `None` if it was done.
    pub audit_problem: Option<String>,
    /// Seed of all random choices.
    pub seed: u64,
    /// Actual length of the sending window, seconds; shorter than configured if the run was stopped
    /// in it.
    pub window_s: f64,
    /// Time from the end of the sending window to the end of the last request, seconds; 0 if the
    /// last request ended in the window.
    pub drain_s: f64,
    /// `true` if the run was stopped before its last planned request.
    pub stopped_early: bool,
    /// Number of requests sent on all routes, payments and cancellations included.
    pub requests: u64,
    /// Requests per second in the sending window.
    pub rate: f64,
    /// Number of requests that started more than 10 ms after their intended start.
    pub late: u64,
    /// Number of requests that were never sent, because their lag, or the lag of the order for
    /// which they waited, exceeded the shop front's limit `drop_after`.
    pub dropped: u64,
    /// Lag of the sent requests without the warm-up: actual start minus intended start.
    pub lag: Latency,
    /// Number of orders that were sent without any of their planned payments, because the run was
    /// stopped early or requests were dropped.
    pub payments_not_sent: u64,
    /// Results of each route.
    pub routes: Vec<RouteReport>,
    /// Number of errors on all routes, by status and problem (RFC 9457), or by the reason of a
    /// missing answer.
    pub errors: BTreeMap<String, u64>,
    /// Number of orders of this run by state at the end; `None` without an audit.
    pub orders: Option<BTreeMap<String, u64>>,
    /// Counts of the warehouse in this run; `None` if the warehouse never answered.
    pub warehouse: Option<WarehouseSummary>,
    /// `true` if the warehouse did not answer at the end, so that its counts are older.
    pub warehouse_is_silent: bool,
    /// Members of the ring at the last poll that the order management answered.
    pub nodes: Vec<NodeState>,
    /// Node events of the run by kind, with the times until every volume answered again. Empty for
    /// a run without events that end or pause a node.
    pub node_events: Vec<NodeEvents>,
    /// Nodes that run at the end and were not started by the run, in the cluster of the node that
    /// the run started. Empty if the run started no node, or if the nodes cannot be listed.
    pub still_up: Vec<RunningNode>,
    /// Number of orders that took units that one node lends to another. The run sums up the
    /// counters of its nodes at its end, and before each event that ends a node. So the orders of a
    /// node's last moments are missing. `None` if the run started no node.
    pub orders_from_borrowed_units: Option<u64>,
    /// Totals of the order management and the warehouse, including earlier runs.
    pub data_folder: FolderTotals,
    /// Report of the audit; `None` if the audit could not be done.
    pub audit: Option<AuditReport>,
    /// Result of each threshold of the run.
    pub thresholds: Vec<ThresholdResult>,
    /// Path of the log of requests; `None` if the run writes no log.
    pub stats_csv: Option<PathBuf>,
    /// Reason for which `stats.csv` (the log of requests) or `series.csv` is incomplete; `None` if
    /// both are complete.
    pub log_problem: Option<String>,
    /// Counts of the routing of requests to owners; `None` if the setting `route` was `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingCounts>,
}

impl Summary {
    /// Builds the summary from the results of a run. If the audit failed, `audit` is `Err` with the
    /// text of its error. The fields `node_events`, `still_up` and `orders_from_borrowed_units`
    /// stay empty.
    pub fn new(
        identity: RunIdentity,
        front: &FrontReport,
        audit: Result<AuditReport, String>,
        state: &RunState,
        thresholds: Vec<ThresholdResult>,
    ) -> Self {
        let mut errors = BTreeMap::new();
        for (reason, count) in front.routes.iter().flat_map(|route| &route.errors) {
            *errors.entry(reason.clone()).or_default() += count;
        }
        let verdict = match &audit {
            Ok(report) if !report.is_clean() => Verdict::Findings,
            Err(_) => Verdict::Unaudited,
            Ok(_) if !front.is_valid() => Verdict::Invalid,
            Ok(_) if thresholds.iter().any(|result| result.is_missed) => Verdict::ThresholdMissed,
            Ok(_) => Verdict::Clean,
        };
        let (audit, audit_problem) = match audit {
            Ok(report) => (Some(report), None),
            Err(problem) => (None, Some(problem)),
        };
        let cluster = &state.cluster;
        Self {
            identity,
            verdict,
            audit_problem,
            seed: front.seed,
            window_s: front.window.as_secs_f64(),
            drain_s: front.drain.as_secs_f64(),
            stopped_early: front.stopped_early,
            requests: front.requests,
            rate: front.rate(),
            late: front.late,
            dropped: front.dropped,
            lag: front.lag,
            payments_not_sent: front.payments_not_sent,
            routes: front.routes.clone(),
            errors,
            orders: audit.as_ref().map(|audit| audit.orders_of_run.clone()),
            warehouse: state.warehouse_of_run(),
            warehouse_is_silent: state.warehouse_is_silent,
            nodes: cluster.nodes.clone(),
            node_events: Vec::new(),
            still_up: Vec::new(),
            orders_from_borrowed_units: None,
            data_folder: FolderTotals {
                orders: cluster.orders_total.clone(),
                stock_snapshots: cluster.stock_snapshots,
                stat_files: cluster.stat_files,
                warehouse: state.warehouse.clone(),
            },
            audit,
            thresholds,
            stats_csv: front.stats_csv.clone(),
            log_problem: front.log_problem.clone(),
            routing: front.routing,
        }
    }

    /// Returns the findings of the audit.
    pub fn findings(&self) -> &[Finding] {
        self.audit
            .as_ref()
            .map(|audit| audit.findings.as_slice())
            .unwrap_or_default()
    }

    /// Returns commands for the next steps of a user, each with its purpose: they show more about
    /// this run, repeat it, or start a harder one.
    pub fn next_steps(&self) -> Vec<(String, &'static str)> {
        let mut steps = Vec::new();
        if let Some(folder) = &self.identity.run_folder {
            steps.push((
                format!("imt sim report {}", folder.display()),
                "draw it as a page",
            ));
        }
        if let Some(order) = self.findings().iter().find_map(Finding::order) {
            steps.push((format!("imt order show {order}"), "the first order found"));
        }
        steps.push((self.identity.repeat.clone(), "run it again"));
        if self.verdict == Verdict::Clean {
            let other = match self.identity.scenario.as_str() {
                "node-kill" => "chaos",
                "black-friday" => "node-kill",
                _ => "black-friday",
            };
            steps.push((format!("imt sim run --scenario {other}"), "a harder run"));
        }
        steps
    }

    fn write_routes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n  {:<33}{:>8}{:>7}{:>10}{:>10}{:>10}",
            "route", "requests", "errors", "p50", "p99", "max"
        )?;
        for route in self.routes.iter().filter(|route| route.requests > 0) {
            let max = match route.latency.count {
                0 => "-".to_owned(),
                _ => millis(route.latency.max_us),
            };
            writeln!(
                f,
                "  {:<33}{:>8}{:>7}{:>10}{:>10}{:>10}",
                route.route,
                thousands(route.requests),
                thousands(route.requests - route.ok),
                percentile(&route.latency, route.latency.p50_us),
                percentile(&route.latency, route.latency.p99_us),
                max
            )?;
        }
        writeln!(f, "  (latency from the intended start, without the warm-up)\n")
    }

    fn write_errors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errors.is_empty() {
            return line(f, "errors", "none");
        }
        for (place, route) in self
            .routes
            .iter()
            .filter(|route| !route.errors.is_empty())
            .enumerate()
        {
            let name = if place == 0 { "errors" } else { "" };
            let parts = route
                .errors
                .iter()
                .map(|(reason, count)| format!("{} x {reason}", thousands(*count)));
            wrapped(
                f,
                name,
                &format!("{}: {}", route.name, parts.collect::<Vec<_>>().join(", ")),
            )?;
        }
        Ok(())
    }

    fn write_orders(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.orders {
            None => line(f, "orders", "unknown: the order management was not audited")?,
            Some(orders) => wrapped(f, "orders", &counts(orders))?,
        }
        if self.payments_not_sent > 0 {
            let count = plural(self.payments_not_sent, "order");
            let reason = match self.stopped_early {
                true => "of the early end",
                false => "their requests were dropped",
            };
            line(f, "not paid", &format!("{count}, because {reason}"))?;
        }
        if let Some(count) = self.orders_from_borrowed_units.filter(|count| *count > 0) {
            let text = format!("{} took units of another node's stores", plural(count, "order"));
            line(f, "borrowed", &text)?;
        }
        let totals = &self.data_folder;
        wrapped(
            f,
            "folder",
            &format!(
                "{}, {} and {} since it was made",
                plural(totals.orders.values().sum(), "order"),
                plural(totals.stock_snapshots, "stock snapshot"),
                plural(totals.stat_files, "statistics file")
            ),
        )
    }

    fn write_warehouse(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(warehouse) = &self.warehouse else {
            return line(f, "warehouse", "unknown: it does not answer");
        };
        let since = match self.warehouse_is_silent {
            true => "does not answer; its last counts: ",
            false => "",
        };
        wrapped(
            f,
            "warehouse",
            &format!(
                "{since}{} announced, {} delivered, {} refused; {} repeated after an answer",
                thousands(warehouse.announced),
                thousands(warehouse.delivered),
                thousands(warehouse.refused),
                thousands(warehouse.duplicates_after_answer)
            ),
        )?;
        let faults: BTreeMap<String, u64> = warehouse
            .faults
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| (name.clone(), *count))
            .collect();
        if faults.is_empty() {
            return Ok(());
        }
        let mut text = format!("made on purpose: {}", counts(&faults));
        let retried = Fault::RETRIED.iter().filter_map(|fault| faults.get(fault.name()));
        let retried: u64 = retried.sum();
        if retried > 0 {
            let calls = match retried {
                1 => "this call".to_owned(),
                more => format!("these {} calls", thousands(more)),
            };
            text.push_str(&format!("; the node retries {calls}"));
        }
        if let Some(audit) = self.audit.as_ref().filter(|_| retried > 0) {
            let verb = if audit.outbox_waiting == 1 {
                "waits"
            } else {
                "wait"
            };
            let messages = plural(audit.outbox_waiting, "message");
            text.push_str(&format!(", and {messages} still {verb}"));
        }
        wrapped(f, "faults", &text)
    }

    /// Writes the results of the node events, and the nodes that still run after the run.
    fn write_nodes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, events) in self.node_events.iter().enumerate() {
            let name = if place == 0 { "events" } else { "" };
            wrapped(f, name, &events.to_string())?;
        }
        for (place, node) in self.still_up.iter().enumerate() {
            let name = if place == 0 { "still up" } else { "" };
            let RunningNode {
                name: node,
                address,
                stop,
            } = node;
            let row = format!("{node} at {address}; stop it with {stop}");
            if INDENT + row.chars().count() <= COMMAND_COLUMNS {
                line(f, name, &row)?;
                continue;
            }
            line(f, name, &format!("{node} at {address}; stop it with"))?;
            for row in command_rows(stop) {
                line(f, "", &row)?;
            }
        }
        Ok(())
    }

    fn write_audit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(audit) = &self.audit else {
            let problem = self.audit_problem.as_deref().unwrap_or("not made");
            return wrapped(f, "audit", &format!("no verdict: {problem}"));
        };
        audit.write(f)
    }

    fn write_schedule(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lag = &self.lag;
        wrapped(
            f,
            "schedule",
            &format!(
                "lag p50 {}, p99 {}, max {}; {} late (over 10 ms), {} dropped",
                percentile(lag, lag.p50_us),
                percentile(lag, lag.p99_us),
                millis(lag.max_us),
                thousands(self.late),
                thousands(self.dropped)
            ),
        )
    }

    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for result in &self.thresholds {
            let (mark, name) = match result.is_missed {
                true => ("MISSED", "threshold"),
                false => ("kept", "threshold"),
            };
            let measured = result.measured.as_deref().unwrap_or("unknown");
            wrapped(
                f,
                name,
                &format!("{mark}: fail if {}: measured {measured}", result.condition),
            )?;
        }
        let reason = match self.verdict {
            Verdict::Clean => "nothing lost, nothing twice, nothing oversold".to_owned(),
            Verdict::Findings => format!("{} of the audit", plural(self.findings().len() as u64, "finding")),
            Verdict::ThresholdMissed => "see above".to_owned(),
            Verdict::Invalid => {
                "requests started late (lag p99 over 5 ms), because the machine was busy; lower the \
                 rate, or end other programs"
                    .to_owned()
            }
            Verdict::Unaudited => "one side could not be audited".to_owned(),
        };
        let mut name = self.verdict.name().to_owned();
        // Unless the run was stopped early, a missed threshold decides about the exit code of an
        // invalid run. So it is named too.
        if self.verdict == Verdict::Invalid && self.thresholds.iter().any(|result| result.is_missed) {
            name.push_str(" and ");
            name.push_str(Verdict::ThresholdMissed.name());
        }
        wrapped(f, "verdict", &format!("{name}: {reason}"))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let early = if self.stopped_early { ", ended early" } else { "" };
        wrapped(
            f,
            "run",
            &format!(
                "{}, seed {}: {:.1} s of requests, {:.1} s of drain{early}",
                self.identity.scenario, self.seed, self.window_s, self.drain_s
            ),
        )?;
        let requests = thousands(self.requests);
        line(
            f,
            "requests",
            &format!("{requests} with payments, {:.1}/s", self.rate),
        )?;
        self.write_schedule(f)?;
        self.write_routes(f)?;
        self.write_errors(f)?;
        if let Some(routing) = &self.routing {
            let (direct, forwarded) = (thousands(routing.direct), thousands(routing.forwarded));
            let resent = thousands(routing.resent);
            let reads = plural(routing.reads, "read");
            let text =
                format!("{direct} direct, {forwarded} forwarded, {resent} sent again; {reads} of the ring");
            wrapped(f, "routing", &text)?;
        }
        self.write_orders(f)?;
        self.write_warehouse(f)?;
        self.write_nodes(f)?;
        match (&self.log_problem, &self.stats_csv) {
            (Some(problem), _) => wrapped(f, "log", &format!("incomplete: {problem}"))?,
            (None, Some(path)) => line(f, "log", &path.display().to_string())?,
            (None, None) => {}
        }
        self.write_audit(f)?;
        self.write_verdict(f)?;
        write_steps(f, self.next_steps())
    }
}

/// Writes suggested commands, each with its purpose. A command that is too wide with its purpose is
/// printed without it. A command that is too wide by itself takes several rows.
pub(crate) fn write_steps(f: &mut fmt::Formatter<'_>, steps: Vec<(String, &'static str)>) -> fmt::Result {
    for (place, (command, purpose)) in steps.into_iter().enumerate() {
        let mut name = if place == 0 { "next" } else { "" };
        let row = format!("{command}   # {purpose}");
        if INDENT + row.chars().count() <= COMMAND_COLUMNS {
            line(f, name, &row)?;
            continue;
        }
        for row in command_rows(&command) {
            line(f, name, &row)?;
            name = "";
        }
    }
    Ok(())
}

/// Breaks a command before its options, so that it can still be copied to a shell: each row except
/// the last ends with a backslash. A row is wider than [`COMMAND_COLUMNS`] only if it has no option
/// at which it can be broken.
fn command_rows(command: &str) -> Vec<String> {
    let width = COMMAND_COLUMNS - INDENT - " \\".len();
    let mut rows: Vec<String> = Vec::new();
    for part in option_parts(command) {
        match rows.last_mut() {
            Some(row) if row.chars().count() + 1 + part.chars().count() <= width => {
                row.push(' ');
                row.push_str(part);
            }
            Some(row) => {
                row.push_str(" \\");
                rows.push(format!("  {part}"));
            }
            None => rows.push(part.to_owned()),
        }
    }
    rows
}

/// Splits a command before each option, except at blanks between single quotes or after a
/// backslash. An option keeps its value.
fn option_parts(command: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut begin, mut is_quoted, mut is_escaped) = (0, false, false);
    for (at, c) in command.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if !is_quoted => is_escaped = true,
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted && command[at + 1..].starts_with('-') => {
                parts.push(&command[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&command[begin..]);
    parts
}

/// Width of the table in columns.
const COLUMNS: usize = 80;
/// Maximum width of a row with a command, in columns: the width of help texts.
const COMMAND_COLUMNS: usize = 78;
/// Column at which the text of a line begins, after the line's name.
const INDENT: usize = 13;

/// Writes a line of the table without wrapping, for short texts, paths and commands.
pub(crate) fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {name:<11}{text}")
}

/// Writes a line of the table, wrapped between words.
pub(crate) fn wrapped(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    let mut name = name;
    let mut row = String::new();
    for word in text.split(' ') {
        if !row.is_empty() && INDENT + row.chars().count() + 1 + word.chars().count() > COLUMNS {
            line(f, name, &row)?;
            (name, row) = ("", String::new());
        }
        if !row.is_empty() {
            row.push(' ');
        }
        row.push_str(word);
    }
    line(f, name, &row)
}

/// Returns the counts above 0 as a text such as `3 delivered, 1 paid`, or `none`.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{} {name}", thousands(*count)))
        .collect();
    match parts.is_empty() {
        true => "none".to_owned(),
        false => parts.join(", "),
    }
}

/// Returns count and noun as a text such as `1 order`, `2 orders` or `2 deliveries`.
pub(crate) fn plural(count: u64, noun: &str) -> String {
    let number = thousands(count);
    match (count, noun.strip_suffix('y')) {
        (1, _) => format!("{number} {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

/// Returns a percentile of these latencies as a text, or `-` if there are too few latencies.
fn percentile(latency: &Latency, us: u64) -> String {
    match latency.has_percentiles() {
        true => millis(us),
        false => "-".to_owned(),
    }
}

/// Returns microseconds as a text in milliseconds. Larger values have fewer decimals.
pub(crate) fn millis(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1000.0),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1000.0),
        _ => format!("{} ms", thousands(us / 1000)),
    }
}

/// Returns a number with commas between thousands: `1234567` becomes `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
