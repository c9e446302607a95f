//! The report. For each row: the figures of microdb and its rivals, the ratio to the best rival,
//! the goal, and the verdict (`yes` if the goal is reached). Further tables have processor times,
//! peaks and the machine's limits.
//!
//! A row with a missed goal is shown too, with the verdict `no`. The report lists the rows during
//! which other processes and guests used more than `DISTURBED` of the processors. The figures of
//! such a row can only be compared within that row.

use std::fmt::Write as _;

use crate::goals::{Goal, ROWS, Row, Unit};
use crate::machine::LIMITS;
use crate::run::Results;
use crate::workloads::Measurement;

/// Name of the engine of this project.
const OURS: &str = "microdb";

/// Names of the engines, in the order of the table's columns.
const COLUMNS: [&str; 7] = [OURS, "lmdb", "rocksdb", "candystore", "redb", "fjall", "sqlite"];

/// Size of the load for which `AtMostScaled` goals are stated: number of records, and bytes of a
/// record. For other loads these goals grow or shrink in proportion.
const SCALE: (f64, f64) = (2e6, 116.0);

/// Share of the processors (0 to 1) above which the work of other processes and guests is reported
/// as a disturbance.
const DISTURBED: f64 = 0.10;

/// A table of text cells, by row. The first row has the column names.
type Table = Vec<Vec<String>>;

/// Returns the report as plain text.
#[must_use]
pub fn text(results: &Results) -> String {
    let mut out = String::new();
    for (title, table) in tables(results) {
        let columns = table.first().map_or(0, Vec::len);
        let width = |column: usize| {
            table
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        line(&mut out, &title);
        for cells in &table {
            let padded = cells
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, width))| {
                    if column == 0 {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                });
            line(&mut out, padded.collect::<Vec<_>>().join("  ").trim_end());
        }
        line(&mut out, "");
    }
    notes(results, &mut out);
    out
}

/// Returns the report as Markdown.
#[must_use]
pub fn markdown(results: &Results) -> String {
    let mut out = String::new();
    for (title, table) in tables(results) {
        line(&mut out, &format!("{title}\n"));
        for (at, cells) in table.iter().enumerate() {
            line(&mut out, &format!("| {} |", cells.join(" | ")));
            if at == 0 {
                let rule = (0..cells.len()).map(|column| if column == 0 { "---" } else { "---:" });
                line(&mut out, &format!("| {} |", rule.collect::<Vec<_>>().join(" | ")));
            }
        }
        line(&mut out, "");
    }
    notes(results, &mut out);
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn tables(results: &Results) -> Vec<(String, Table)> {
    let columns = engines(results);
    let title = format!(
        "Medians, {} records, values of {} bytes",
        results.records, results.value_bytes
    );
    vec![
        (title, rows(results, &columns)),
        (
            "Processor time of one operation, microseconds, all threads of the process".to_owned(),
            by_row(results, &columns, |measured| measured.cpu_us, 2),
        ),
        (
            "Peak anonymous memory of the process, MiB".to_owned(),
            by_row(results, &columns, |measured| measured.peak_anonymous_mib, 0),
        ),
        (
            "Peak disk of the database's folder, MiB".to_owned(),
            by_row(results, &columns, |measured| measured.peak_disk_mib, 0),
        ),
        ("The machine's limits in the same run".to_owned(), limits(results)),
    ]
}

fn engines(results: &Results) -> Vec<&'static str> {
    let measured = |name: &&str| results.samples.iter().any(|sample| sample.engine == **name);
    COLUMNS.into_iter().filter(measured).collect()
}

fn rows(results: &Results, columns: &[&str]) -> Table {
    let mut head = vec!["workload".to_owned(), "unit".to_owned()];
    head.extend(columns.iter().map(|name| (*name).to_owned()));
    head.extend(["to the best rival", "goal", "met"].map(str::to_owned));
    let mut table = vec![head];
    for row in &ROWS {
        let figures: Vec<Option<f64>> = columns
            .iter()
            .map(|engine| results.median(row.id, engine))
            .collect();
        if figures.iter().all(Option::is_none) {
            continue;
        }
        let mut cells = vec![row.label.to_owned(), row.unit.name().to_owned()];
        cells.extend(
            figures
                .iter()
                .map(|figure| figure.map_or_else(|| "-".to_owned(), |value| row.unit.show(value))),
        );
        let best = best_rival(results, row, columns);
        let ratio = results
            .median(row.id, OURS)
            .zip(best)
            .map(|(ours, best)| ratio(row.unit, ours, best));
        cells.push(ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")));
        let (goal, met) = judge(results, row, best);
        cells.extend([
            goal,
            met.map_or("-", |met| if met { "yes" } else { "no" }).to_owned(),
        ]);
        table.push(cells);
    }
    table
}

fn best_rival(results: &Results, row: &Row, columns: &[&str]) -> Option<f64> {
    let rivals = columns
        .iter()
        .filter(|name| **name != OURS)
        .filter_map(|name| results.median(row.id, name));
    if row.unit.more_is_better() {
        rivals.max_by(f64::total_cmp)
    } else {
        rivals.min_by(f64::total_cmp)
    }
}

/// Returns the factor by which the figure of microdb is better than another figure.
fn ratio(unit: Unit, ours: f64, other: f64) -> f64 {
    if unit.more_is_better() {
        ours / other
    } else {
        other / ours
    }
}

/// Returns the goal as text, and `true` if microdb reached it. The second value is `None` if the
/// row has no goal, or if a figure is missing without which the goal cannot be judged.
fn judge(results: &Results, row: &Row, best: Option<f64>) -> (String, Option<bool>) {
    let ours = results.median(row.id, OURS);
    let times = |factor: f64, other: Option<f64>| ours.zip(other).map(|(ours, other)| ours >= factor * other);
    match row.goal {
        Goal::TimesBest(factor) => (format!("{factor} x best"), times(factor, best)),
        Goal::TimesRival(rival, factor) => (
            format!("{factor} x {rival}"),
            times(factor, results.median(row.id, rival)),
        ),
        Goal::TimesLimitAndBest(limit, factor) => {
            let reached = times(factor, results.limit(limit));
            let ahead = best.is_none_or(|best| ours.is_some_and(|ours| ours > best));
            (
                format!("{factor} x {limit}, ahead of all"),
                reached.map(|reached| reached && ahead),
            )
        }
        Goal::AtMost(most) => (format!("<= {most}"), ours.map(|ours| ours <= most)),
        Goal::AtMostScaled(most) => {
            let bytes = results.records as f64 * (crate::data::KEY_BYTES + results.value_bytes) as f64;
            let most = most * bytes / (SCALE.0 * SCALE.1);
            (
                format!("<= {}", row.unit.show(most)),
                ours.map(|ours| ours <= most),
            )
        }
        Goal::AtLeast(least) => (
            format!(">= {}", row.unit.show(least)),
            ours.map(|ours| ours >= least),
        ),
        Goal::None => ("-".to_owned(), None),
    }
}

/// Returns a table of medians of one value of the measurements. Rows without this value are left
/// out.
fn by_row(
    results: &Results,
    columns: &[&str],
    of: impl Fn(&Measurement) -> Option<f64>,
    decimals: usize,
) -> Table {
    let mut head = vec!["workload".to_owned()];
    head.extend(columns.iter().map(|name| (*name).to_owned()));
    let mut table = vec![head];
    for row in &ROWS {
        let times: Vec<Option<f64>> = columns
            .iter()
            .map(|engine| results.median_of(row.id, engine, &of))
            .collect();
        if times.iter().any(Option::is_some) {
            let shown = times
                .iter()
                .map(|time| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.decimals$}")));
            table.push(std::iter::once(row.label.to_owned()).chain(shown).collect());
        }
    }
    table
}

fn limits(results: &Results) -> Table {
    let mut table = vec![["limit", "median", "unit"].map(str::to_owned).to_vec()];
    for (name, label, unit) in LIMITS {
        if let Some(value) = results.limit(name) {
            table.push(vec![
                format!("{name}: {label}"),
                format!("{value:.0}"),
                unit.to_owned(),
            ]);
        }
    }
    table
}

/// Appends the machine, versions, command, missing figures and disturbed rows to the report.
fn notes(results: &Results, out: &mut String) {
    let machine = &results.machine;
    line(
        out,
        &format!(
            "Machine: {}, {} processors, {:.0} GiB, {}, {}\n",
            machine.processor, machine.processors, machine.memory_gib, machine.system, machine.file_system
        ),
    );
    line(out, &format!("Command: `engine {}`\n", results.command));
    let versions: Vec<&str> = results.versions.values().map(String::as_str).collect();
    line(out, &format!("Versions: {}\n", versions.join("; ")));
    for (kind, absences) in [("Cannot", &results.unsupported), ("Failed", &results.failures)] {
        for absence in absences {
            line(
                out,
                &format!(
                    "- {kind}: {} on {}: {}",
                    absence.engine, absence.workload, absence.reason
                ),
            );
        }
    }
    let mut disturbed = String::new();
    for row in &ROWS {
        let others = |engine| results.median_of(row.id, engine, |measured| measured.others);
        let shares: Vec<f64> = engines(results).into_iter().filter_map(others).collect();
        let least = shares.iter().copied().fold(1.0, f64::min);
        let most = shares.iter().copied().fold(0.0, f64::max);
        if most > DISTURBED {
            // Writing to a String cannot fail.
            let _ = write!(
                disturbed,
                " {} {:.0} to {:.0} %,",
                row.id,
                least * 100.0,
                most * 100.0
            );
        }
    }
    if !disturbed.is_empty() {
        let disturbed = disturbed.trim_end_matches(',');
        line(
            out,
            &format!("\nShare of the processors that others took, from engine to engine:{disturbed}."),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Limit;
    use crate::run::Sample;

    fn results() -> Results {
        let sample = |engine: &str, row: &str, value| Sample {
            engine: engine.to_owned(),
            measurement: Measurement {
                row: row.to_owned(),
                value,
                cpu_us: Some(1.5),
                others: Some(0.3),
                peak_anonymous_mib: Some(30.4),
                peak_disk_mib: Some(480.0),
            },
        };
        Results {
            records: 2_000_000,
            value_bytes: 100,
            limits: vec![Limit {
                name: "sync-in-place".to_owned(),
                value: 10_000.0,
            }],
            samples: vec![
                sample(OURS, "load", 1_500_000.0),
                sample("lmdb", "load", 400_000.0),
                sample("redb", "load", 500_000.0),
                sample(OURS, "durable-1", 8_000.0),
                sample("lmdb", "durable-1", 4_000.0),
                sample(OURS, "disk-loaded", 250.0),
            ],
            ..Results::default()
        }
    }

    #[test]
    fn ratios_compare_with_the_best_rival_and_goals_are_judged() {
        let report = markdown(&results());
        let load = report
            .lines()
            .find(|line| line.contains("| load, batches"))
            .unwrap();
        assert_eq!(
            load,
            "| load, batches of 1,000, one sync at the end | k/s | 1500 | 400 | 500 | 3.00 | 3 x best | yes |"
        );
        let durable = report
            .lines()
            .find(|line| line.contains("| durable puts, 1 thread | k/s"))
            .unwrap();
        assert!(
            durable.ends_with("| 2.00 | 0.9 x sync-in-place, ahead of all | no |"),
            "{durable}"
        );
        let disk = report
            .lines()
            .find(|line| line.contains("disk after load"))
            .unwrap();
        assert!(disk.ends_with("| - | <= 260 | yes |"), "{disk}");
    }

    #[test]
    fn each_peak_has_its_own_table() {
        let report = markdown(&results());
        for (title, figure) in [("Peak anonymous memory", "30"), ("Peak disk", "480")] {
            let (_, table) = report.split_once(title).unwrap();
            let load = table.lines().find(|line| line.starts_with("| load, batches"));
            assert!(load.unwrap().contains(&format!("| {figure} |")), "{title}");
        }
    }

    #[test]
    fn disturbed_rows_are_listed() {
        assert!(text(&results()).contains(": load 30 to 30 %,"));
    }
}
