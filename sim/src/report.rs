//! A run's summary: as a table that a newcomer can read, and as JSON for programs.
//!
//! It only shows what others measured. Latencies count from the intended start of each request.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::audit::{AuditReport, Finding};
use crate::front::{FrontReport, RouteReport};
use crate::wire::{Health, WarehouseSummary};

/// Findings shown in the table; JSON has them all.
const FINDINGS_SHOWN: usize = 20;

/// A run's summary. `Display` is the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The seed: the same seed gives the same requests.
    pub seed: u64,
    /// The rate asked for, payments not counted, requests a second.
    pub rate_asked: f64,
    /// From the first request to the last answer, seconds.
    pub elapsed_s: f64,
    /// True if the run was ended before its time.
    pub stopped_early: bool,
    /// Requests made, payments included.
    pub requests: u64,
    /// Requests a second over the whole run, payments included.
    pub rate: f64,
    /// Requests that could not start on time; measured from when they should have.
    pub late: u64,
    /// Payments that an early end kept from being sent.
    pub payments_not_sent: u64,
    /// Answers and latencies by route.
    pub routes: Vec<RouteReport>,
    /// All errors, by status or reason.
    pub errors: BTreeMap<String, u64>,
    /// The order management's counts at the end; none if they could not be read.
    pub oms: Option<Health>,
    /// The warehouse's counts at the end; none if they could not be read.
    pub warehouse: Option<WarehouseSummary>,
    /// The audit; none if there was none.
    pub audit: Option<AuditReport>,
    /// The audit's verdict: `clean`, `findings`, or why there is none.
    pub verdict: String,
    /// The requests' log.
    pub stats_csv: Option<std::path::PathBuf>,
    /// Why the requests' log is not whole.
    pub stats_csv_problem: Option<String>,
}

impl Summary {
    /// Puts a run's parts together. An audit that failed comes as the text of its error.
    pub fn new(
        front: &FrontReport,
        audit: Result<AuditReport, String>,
        oms: Option<Health>,
        warehouse: Option<WarehouseSummary>,
    ) -> Self {
        let mut errors = BTreeMap::new();
        for (reason, count) in front.routes.iter().flat_map(|route| &route.errors) {
            *errors.entry(reason.clone()).or_default() += count;
        }
        let elapsed_s = front.elapsed.as_secs_f64();
        let verdict = match &audit {
            Ok(report) if report.is_clean() => "clean".to_owned(),
            Ok(_) => "findings".to_owned(),
            Err(problem) => format!("none: {problem}"),
        };
        Self {
            seed: front.seed,
            rate_asked: front.rate,
            elapsed_s,
            stopped_early: front.stopped_early,
            requests: front.requests,
            rate: front.requests as f64 / elapsed_s.max(f64::MIN_POSITIVE),
            late: front.late,
            payments_not_sent: front.payments_not_sent,
            routes: front.routes.clone(),
            errors,
            oms,
            warehouse,
            audit: audit.ok(),
            verdict,
            stats_csv: front.stats_csv.clone(),
            stats_csv_problem: front.stats_csv_problem.clone(),
        }
    }

    /// True if both sides were audited and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.audit.as_ref().is_some_and(AuditReport::is_clean)
    }

    /// What the audit found.
    pub fn findings(&self) -> &[Finding] {
        self.audit
            .as_ref()
            .map(|audit| audit.findings.as_slice())
            .unwrap_or_default()
    }

    /// The summary as JSON, indented.
    pub fn to_json(&self) -> String {
        // Numbers, text, lists and maps keyed by text, into memory: this has no way to fail.
        serde_json::to_string_pretty(self).expect("a summary is plain data")
    }

    fn write_routes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n  {:<34}{:>10}{:>10}{:>11}{:>11}{:>11}",
            "route", "requests", "errors", "p50", "p99", "max"
        )?;
        for route in &self.routes {
            writeln!(
                f,
                "  {:<34}{:>10}{:>10}{:>11}{:>11}{:>11}",
                route.route,
                thousands(route.requests),
                thousands(route.requests - route.ok),
                millis(route.latency.p50_us),
                millis(route.latency.p99_us),
                millis(route.latency.max_us)
            )?;
        }
        writeln!(f, "  (latency from the moment each request was due)\n")
    }

    fn write_oms(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(oms) = &self.oms else {
            return line(f, "orders", "not known: the order management did not tell");
        };
        let by_state = oms.orders.iter().filter(|(_, count)| **count > 0);
        line(f, "orders", &counts(by_state))?;
        line(
            f,
            "taken in",
            &format!(
                "{} stock snapshots, {} stat files",
                thousands(oms.stock_snapshots),
                thousands(oms.stat_files)
            ),
        )
    }

    fn write_warehouse(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(warehouse) = &self.warehouse else {
            return line(f, "warehouse", "not known: it did not tell");
        };
        line(
            f,
            "warehouse",
            &format!(
                "{} announced, {} delivered, {} refused, {} gateway time-outs, {} asked again",
                thousands(warehouse.announced),
                thousands(warehouse.delivered),
                thousands(warehouse.refused),
                thousands(warehouse.gateway_timeouts),
                thousands(warehouse.duplicates_after_answer)
            ),
        )
    }

    fn write_audit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(audit) = &self.audit else {
            return line(f, "audit", &self.verdict);
        };
        let checked = format!(
            "{} orders, {} deliveries and {} reservations checked, {} messages waiting, {} given up",
            thousands(audit.orders),
            thousands(audit.deliveries),
            thousands(audit.reservations),
            thousands(audit.outbox_waiting),
            thousands(audit.outbox_dead)
        );
        if audit.is_clean() {
            return line(f, "audit", &format!("clean: {checked}"));
        }
        let found = audit.findings.len();
        line(
            f,
            "audit",
            &format!("{} WRONG: {checked}", thousands(found as u64)),
        )?;
        for finding in audit.findings.iter().take(FINDINGS_SHOWN) {
            writeln!(f, "    - {finding}")?;
        }
        match found.saturating_sub(FINDINGS_SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "    - and {} more", thousands(more as u64)),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let early = if self.stopped_early { ", ended early" } else { "" };
        line(
            f,
            "run",
            &format!(
                "{:.1} s at {} requests/s, seed {}{early}",
                self.elapsed_s, self.rate_asked, self.seed
            ),
        )?;
        line(
            f,
            "requests",
            &format!(
                "{} with payments ({:.1}/s), {} started late",
                thousands(self.requests),
                self.rate,
                thousands(self.late)
            ),
        )?;
        self.write_routes(f)?;
        let errors = match self.errors.is_empty() {
            true => "none".to_owned(),
            false => counts(self.errors.iter()),
        };
        line(f, "errors", &errors)?;
        if self.payments_not_sent > 0 {
            line(
                f,
                "not paid",
                &format!(
                    "{} orders, for the end came first",
                    thousands(self.payments_not_sent)
                ),
            )?;
        }
        self.write_oms(f)?;
        self.write_warehouse(f)?;
        match (&self.stats_csv_problem, &self.stats_csv) {
            (Some(problem), _) => line(f, "log", &format!("not whole: {problem}"))?,
            (None, Some(path)) => line(f, "log", &path.display().to_string())?,
            (None, None) => {}
        }
        self.write_audit(f)
    }
}

/// A line of the table.
fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {name:<11}{text}")
}

/// `3 delivered, 1 paid`.
fn counts<'a>(counts: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    let parts: Vec<String> = counts
        .map(|(name, count)| format!("{} {}", thousands(*count), spelled(name)))
        .collect();
    match parts.is_empty() {
        true => "none".to_owned(),
        false => parts.join(", "),
    }
}

/// A status with its meaning here; anything else as it is.
fn spelled(reason: &str) -> String {
    let meaning = match reason {
        "409" => "no store has it",
        "404" => "unknown order",
        "503" => "not now",
        _ => return reason.to_owned(),
    };
    format!("x {reason} ({meaning})")
}

/// Microseconds as milliseconds, with digits that fit the size.
fn millis(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1000.0),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1000.0),
        _ => format!("{} ms", thousands(us / 1000)),
    }
}

/// `1234567` as `1,234,567`.
fn thousands(number: u64) -> String {
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
mod tests {
    use super::*;
    use crate::front::{Latency, OrderRecord};
    use std::time::Duration;

    fn front() -> FrontReport {
        FrontReport {
            seed: 7,
            rate: 200.0,
            started_at_ms: 0,
            elapsed: Duration::from_millis(33_500),
            stopped_early: false,
            requests: 7_012,
            late: 3,
            payments_not_sent: 0,
            routes: vec![RouteReport {
                route: "POST /order",
                requests: 1_012,
                ok: 1_000,
                errors: BTreeMap::from([("409".to_owned(), 12)]),
                latency: Latency {
                    p50_us: 480,
                    p90_us: 900,
                    p99_us: 12_340,
                    p999_us: 140_000,
                    max_us: 1_234_567,
                },
            }],
            stats_csv: Some("data/stats.csv".into()),
            stats_csv_problem: None,
            record: OrderRecord::default(),
        }
    }

    fn audit(findings: Vec<Finding>) -> AuditReport {
        AuditReport {
            findings,
            orders: 1_012,
            orders_acknowledged: 1_000,
            payments_acknowledged: 1_000,
            deliveries: 1_000,
            reservations: 0,
            outbox_waiting: 0,
            outbox_dead: 0,
            waited_ms: 900,
        }
    }

    #[test]
    fn the_table_shows_the_run_its_routes_and_the_verdict() {
        let oms = Health {
            orders: BTreeMap::from([("delivered".to_owned(), 1_000), ("paid".to_owned(), 0)]),
            stock_snapshots: 3,
            stat_files: 3,
            ..Health::default()
        };
        let summary = Summary::new(&front(), Ok(audit(vec![])), Some(oms), None);
        assert!(summary.is_clean());
        let table = summary.to_string();
        for expected in [
            "33.5 s at 200 requests/s, seed 7",
            "7,012 with payments (209.3/s), 3 started late",
            "     1,012        12    0.48 ms    12.3 ms   1,234 ms",
            "12 x 409 (no store has it)",
            "1,000 delivered\n",
            "3 stock snapshots, 3 stat files",
            "data/stats.csv",
            "clean: 1,012 orders",
        ] {
            assert!(table.contains(expected), "{expected:?} is not in\n{table}");
        }
        let json: serde_json::Value = serde_json::from_str(&summary.to_json()).unwrap();
        assert_eq!(json["verdict"], "clean");
        assert_eq!(json["errors"]["409"], 12);
        assert_eq!(json["routes"][0]["latency"]["p99_us"], 12_340);
    }

    #[test]
    fn findings_are_named_and_too_many_are_counted() {
        let finding = |n: usize| Finding::OrderMissing { order: n.to_string() };
        let summary = Summary::new(&front(), Ok(audit((1..=25).map(finding).collect())), None, None);
        assert!(!summary.is_clean());
        let table = summary.to_string();
        assert!(
            table.contains("25 WRONG") && table.contains("and 5 more"),
            "{table}"
        );
        assert!(table.contains("order 1: acknowledged, but it is gone"), "{table}");
        assert_eq!(summary.findings().len(), 25);
        assert!(summary.to_json().contains("\"finding\": \"order_missing\""));
    }

    #[test]
    fn without_an_audit_there_is_no_clean_verdict() {
        let summary = Summary::new(&front(), Err("the warehouse does not answer".into()), None, None);
        assert!(!summary.is_clean());
        assert!(
            summary
                .to_string()
                .contains("none: the warehouse does not answer")
        );
    }
}
