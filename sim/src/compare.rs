//! Compares two runs side by side, from their run folders.
//!
//! Invariants:
//! - Each row is a number that both summaries have, with the relative change from the first run to
//!   the second. A run without an audit counts as one with 0 findings.
//! - Differences of scenario, seed, version or machine are listed above the table, because the
//!   numbers of such runs may not be comparable.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::latency::PERCENTILE_SAMPLES_MIN;
use crate::run_folder::{RunFacts, RunFolder};
use crate::summary::{millis, thousands};
use crate::{Error, Result};

/// Unit of a compared number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Unit {
    Count,
    PerSecond,
    Microseconds,
}

/// A number that both runs have, with its name and unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: String,
    unit: Unit,
    first: f64,
    second: f64,
    /// One flag for the first and one for the second run: `true` if its number is a percentile of
    /// too few samples. The table does not show such a number.
    #[serde(skip)]
    is_hidden: [bool; 2],
}

impl Row {
    /// Returns the numbers of both runs as texts.
    fn texts(&self) -> [String; 2] {
        let [first, second] = self.is_hidden;
        [(self.first, first), (self.second, second)].map(|(value, is_hidden)| match is_hidden {
            true => "-".to_owned(),
            false => self.text(value),
        })
    }

    fn text(&self, value: f64) -> String {
        match self.unit {
            Unit::Count => thousands(value as u64),
            Unit::PerSecond => format!("{value:.1}/s"),
            Unit::Microseconds => millis(value as u64),
        }
    }

    fn better(&self) -> Option<Better> {
        if self.is_hidden != [false; 2] {
            return None;
        }
        let is_fault = ["errors", "findings", "late", "dropped"]
            .iter()
            .any(|fault| self.name.ends_with(fault));
        let noise = match self.unit {
            Unit::Microseconds => self.first * NOISE,
            Unit::Count if is_fault => 0.0,
            Unit::Count | Unit::PerSecond => return None,
        };
        match self.second - self.first {
            change if change > noise => Some(Better::First),
            change if change < -noise => Some(Better::Second),
            _ => None,
        }
    }

    fn change(&self) -> String {
        if self.is_hidden != [false; 2] {
            return "-".to_owned();
        }
        match self.first == 0.0 {
            true if self.second == 0.0 => "=".to_owned(),
            true => "new".to_owned(),
            false => format!("{:+.1} %", (self.second / self.first - 1.0) * 100.0),
        }
    }
}

/// The run of the two that has the better number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    First,
    Second,
}

/// The texts of a row of the table: the name, the numbers of both runs and the change.
pub(crate) struct RowText<'a> {
    pub(crate) name: &'a str,
    pub(crate) first: String,
    pub(crate) second: String,
    pub(crate) change: String,
    /// The run with the better number. `None` for rates and counts of requests, for equal counts of
    /// faults, for changes of a latency or lag by at most [`NOISE`], and for percentiles that are
    /// not shown.
    pub(crate) better: Option<Better>,
}

/// Change of a latency or lag, relative to the first run, above which it is shown as better or
/// worse. Two runs of the same program often differ by up to this much.
const NOISE: f64 = 0.05;

/// The comparison of two runs. `Display` prints it as a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Descriptions of the facts (scenario, seed, version or machine) in which the runs differ.
    differences: Vec<String>,
    /// Verdicts of the first and the second run.
    verdicts: [String; 2],
    rows: Vec<Row>,
}

impl Comparison {
    /// Reads both run folders and compares the runs.
    ///
    /// # Errors
    /// If a file of a run folder cannot be read or parsed, or one of the runs has no summary.
    pub fn of(first: &RunFolder, second: &RunFolder) -> Result<Self> {
        let facts = [first.facts()?, second.facts()?];
        let summaries = [whole(first)?, whole(second)?];
        let verdicts = [0, 1].map(|place: usize| {
            let verdict = summaries[place]["verdict"].as_str().unwrap_or("unknown");
            verdict.replace('_', " ")
        });
        Ok(Self {
            differences: differences(&facts),
            verdicts,
            rows: rows(&summaries),
        })
    }

    /// Returns descriptions of the facts (scenario, seed, version or machine) in which the runs
    /// differ.
    pub(crate) fn differences(&self) -> &[String] {
        &self.differences
    }

    /// Returns the rows of the table as texts.
    pub(crate) fn rows(&self) -> impl Iterator<Item = RowText<'_>> {
        self.rows.iter().map(|row| {
            let [first, second] = row.texts();
            RowText {
                name: &row.name,
                first,
                second,
                change: row.change(),
                better: row.better(),
            }
        })
    }
}

fn whole(folder: &RunFolder) -> Result<Value> {
    folder.summary()?.ok_or_else(|| Error::NoSummary {
        path: folder.path().to_owned(),
    })
}

fn differences([first, second]: &[RunFacts; 2]) -> Vec<String> {
    let pairs = [
        ("scenario", first.scenario.clone(), second.scenario.clone()),
        ("seed", first.seed.to_string(), second.seed.to_string()),
        ("version", first.version.clone(), second.version.clone()),
        ("platform", first.platform.clone(), second.platform.clone()),
        (
            "processors",
            first.processors.to_string(),
            second.processors.to_string(),
        ),
    ];
    pairs
        .into_iter()
        .filter(|(_, one, other)| one != other)
        .map(|(name, one, other)| format!("{name}: {one} and {other}"))
        .collect()
}

/// The numbers that both runs have, in the order of the table.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    /// Adds a number, unless one of the runs does not have it.
    fn push(&mut self, name: String, unit: Unit, [first, second]: [&Value; 2]) {
        if let Some((first, second)) = first.as_f64().zip(second.as_f64()) {
            self.0.push(Row {
                name,
                unit,
                first,
                second,
                is_hidden: [false; 2],
            });
        }
    }

    /// Adds the field `field` of two sets of latencies, unless one of the two does not have it.
    fn push_latency(&mut self, name: String, field: &str, latencies: [&Value; 2]) {
        let before = self.0.len();
        self.push(name, Unit::Microseconds, latencies.map(|latency| &latency[field]));
        // The largest latency is no percentile.
        let is_percentile = field != "max_us";
        for row in &mut self.0[before..] {
            row.is_hidden = latencies.map(|latency| {
                let count = latency["count"].as_u64();
                is_percentile && count.is_some_and(|count| count < PERCENTILE_SAMPLES_MIN)
            });
        }
    }
}

fn rows([first, second]: &[Value; 2]) -> Vec<Row> {
    let mut rows = Rows::default();
    for (name, unit) in [
        ("requests", Unit::Count),
        ("rate", Unit::PerSecond),
        ("late", Unit::Count),
        ("dropped", Unit::Count),
    ] {
        rows.push(name.to_owned(), unit, [&first[name], &second[name]]);
    }
    rows.push_latency("lag p99".to_owned(), "p99_us", [&first["lag"], &second["lag"]]);
    let routes = first["routes"].as_array().into_iter().flatten();
    for (one, other) in routes.zip(second["routes"].as_array().into_iter().flatten()) {
        let (Some(name), true) = (one["name"].as_str(), one["name"] == other["name"]) else {
            continue;
        };
        if one["requests"] == 0 && other["requests"] == 0 {
            continue;
        }
        let requests = [&one["requests"], &other["requests"]];
        rows.push(format!("{name} requests"), Unit::Count, requests);
        let failed = |route: &Value| {
            let count = |field: &str| route[field].as_u64().unwrap_or_default();
            Value::from(count("requests").saturating_sub(count("ok")))
        };
        let errors = [&failed(one), &failed(other)];
        rows.push(format!("{name} errors"), Unit::Count, errors);
        for percentile in ["p50", "p99", "p999", "max"] {
            rows.push_latency(
                format!("{name} {percentile}"),
                &format!("{percentile}_us"),
                [&one["latency"], &other["latency"]],
            );
        }
    }
    let found = |summary: &Value| Value::from(summary["audit"]["findings"].as_array().map_or(0, Vec::len));
    rows.push(
        "findings".to_owned(),
        Unit::Count,
        [&found(first), &found(second)],
    );
    rows.0
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "  differs in {difference}")?;
        }
        writeln!(f, "  {:<20}{:>16}{:>16}{:>12}", "", "first", "second", "change")?;
        let [first, second] = &self.verdicts;
        writeln!(f, "  {:<20}{first:>16}{second:>16}", "verdict")?;
        for row in self.rows() {
            writeln!(
                f,
                "  {:<20}{:>16}{:>16}{:>12}",
                row.name, row.first, row.second, row.change
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_two_runs_stand_side_by_side_with_their_change() {
        let data = tempfile::tempdir().unwrap();
        let run = |seed, p99_us: u64, errors: u64| {
            let facts = RunFacts::new("calm", "", seed, "");
            let folder = RunFolder::create(data.path(), &facts).unwrap();
            let summary = serde_json::json!({
                "verdict": "clean", "requests": 1_000, "rate": 99.5, "late": 0, "dropped": 0,
                "lag": {"p99_us": 300},
                "routes": [
                    {"name": "order", "requests": 200, "ok": 200 - errors,
                     "latency": {"count": 200, "p50_us": 500, "p99_us": p99_us, "p999_us": 9_000, "max_us": 9_500}},
                    {"name": "cancel", "requests": 0, "ok": 0, "latency": {}},
                    {"name": "stats", "requests": 19, "ok": 19,
                     "latency": {"count": if seed == 1 { 19 } else { 20 }, "p99_us": 700, "max_us": 800}},
                ],
                "audit": {"findings": []},
            });
            folder
                .write("summary.json", summary.to_string().as_bytes())
                .unwrap();
            folder
        };
        let comparison = Comparison::of(&run(1, 4_000, 0), &run(2, 5_000, 3)).unwrap();
        let table = comparison.to_string();
        for expected in [
            "differs in seed: 1 and 2",
            "order p99                    4.00 ms         5.00 ms     +25.0 %",
            "order errors                       0               3         new",
            "findings                           0               0           =",
            "rate                          99.5/s          99.5/s      +0.0 %",
            // The first run has fewer samples than a percentile needs.
            "stats p99                          -         0.70 ms           -",
            "stats max                    0.80 ms         0.80 ms      +0.0 %",
        ] {
            assert!(table.contains(expected), "{expected:?} is not in\n{table}");
        }
        assert!(!table.contains("cancel"), "{table}");
        let better = |name: &str| comparison.rows().find(|row| row.name == name).unwrap().better;
        assert_eq!(better("order p99"), Some(Better::First));
        assert_eq!(better("order errors"), Some(Better::First));
        assert_eq!(better("order requests"), None);
        assert!(table.lines().all(|line| line.chars().count() <= 80));
        let killed = RunFolder::create(data.path(), &RunFacts::new("calm", "", 1, "")).unwrap();
        let error = Comparison::of(&killed, &killed).unwrap_err().to_string();
        assert!(error.contains("killed before its end"), "{error}");
        assert!(!error.contains("line"), "{error}");
    }
}
