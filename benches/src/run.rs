//! The parent process: prepares folders, starts one child for each (engine, workload, repetition),
//! collects samples.
//!
//! Repetitions are the outermost loop and engines the innermost, so that a change of the machine's
//! mood during the run meets all engines of a row alike. Before each child all dirty pages are
//! written back, so that no engine pays for what another one left.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::engines::EngineName;
use crate::goals::{ROWS, Row};
use crate::machine::{self, Description, Limit};
use crate::peaks::Peaks;
use crate::workloads::{Answer, Measurement, Start, Task, Workload};

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Engines, in the table's order.
    pub engines: Vec<EngineName>,
    /// Workloads, in the order of running.
    pub workloads: Vec<Workload>,
    /// Records loaded.
    pub records: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Repetitions.
    pub repeat: u64,
    /// Seconds after which a rate has been measured long enough.
    pub seconds: f64,
    /// Where the databases go: a folder on the disk to be measured.
    pub folder: PathBuf,
    /// Whether to measure the machine's own limits too.
    pub limits: bool,
}

/// What came out: everything that the report needs, as it is written with `--output json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Results {
    /// The machine.
    pub machine: Description,
    /// Package versions by engine.
    pub versions: BTreeMap<String, String>,
    /// The command line.
    pub command: String,
    /// Records loaded.
    pub records: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// The machine's limits, one measurement for each repetition.
    pub limits: Vec<Limit>,
    /// All samples.
    pub samples: Vec<Sample>,
    /// Engines that cannot do a workload, and why.
    pub unsupported: Vec<Absence>,
    /// Children that failed, and how.
    pub failures: Vec<Absence>,
}

/// One figure of one engine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sample {
    /// The engine's name.
    pub engine: String,
    /// The figure.
    #[serde(flatten)]
    pub measurement: Measurement,
}

/// Why there is no figure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Absence {
    /// The engine's name.
    pub engine: String,
    /// The workload's name.
    pub workload: String,
    /// The reason.
    pub reason: String,
}

impl Results {
    /// The median of a row's samples for an engine, if there are any.
    #[must_use]
    pub fn median(&self, row: &str, engine: &str) -> Option<f64> {
        self.median_of(row, engine, |measurement| Some(measurement.value))
    }

    /// The median of something in a row's samples for an engine.
    pub fn median_of(
        &self,
        row: &str,
        engine: &str,
        of: impl Fn(&Measurement) -> Option<f64>,
    ) -> Option<f64> {
        let samples = self
            .samples
            .iter()
            .filter(|sample| sample.engine == engine && sample.measurement.row == row);
        median(samples.filter_map(|sample| of(&sample.measurement)))
    }

    /// The median of a limit, if it was measured.
    #[must_use]
    pub fn limit(&self, name: &str) -> Option<f64> {
        median(
            self.limits
                .iter()
                .filter(|limit| limit.name == name)
                .map(|limit| limit.value),
        )
    }

    /// Takes over a later run: its rows replace ours for the engines that it measured, its limits
    /// replace ours.
    pub fn merge(&mut self, later: Self) {
        let (mut samples, mut limits) = (
            std::mem::take(&mut self.samples),
            std::mem::take(&mut self.limits),
        );
        samples.retain(|old| {
            let again = |new: &Sample| new.engine == old.engine && new.measurement.row == old.measurement.row;
            !later.samples.iter().any(again)
        });
        samples.extend(later.samples);
        if !later.limits.is_empty() {
            limits = later.limits;
        }
        let mut versions = std::mem::take(&mut self.versions);
        versions.extend(later.versions);
        for absences in [&mut self.unsupported, &mut self.failures] {
            absences.retain(|absence| !samples.iter().any(|sample| absence.is_answered_by(sample)));
        }
        self.unsupported.extend(later.unsupported);
        self.failures.extend(later.failures);
        self.unsupported
            .dedup_by(|a, b| a.engine == b.engine && a.workload == b.workload);
        (self.samples, self.limits, self.versions) = (samples, limits, versions);
        (self.machine, self.command) = (later.machine, later.command);
        (self.records, self.value_bytes) = (later.records, later.value_bytes);
    }
}

impl Absence {
    fn is_answered_by(&self, sample: &Sample) -> bool {
        let fed_by = |row: &&Row| row.id == sample.measurement.row && row.workload.name() == self.workload;
        self.engine == sample.engine && ROWS.iter().any(|row| fed_by(&row))
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Runs the plan.
///
/// # Errors
/// A folder that cannot be written. What was measured until then lies in `results.json` there. A
/// child that fails is recorded in the results instead.
pub fn run(plan: &Plan) -> Outcome<Results> {
    std::fs::create_dir_all(&plan.folder)?;
    let mut results = Results {
        machine: machine::describe(&plan.folder),
        versions: plan
            .engines
            .iter()
            .map(|engine| (engine.name().to_owned(), versions(*engine)))
            .collect(),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        records: plan.records,
        value_bytes: plan.value_bytes,
        ..Results::default()
    };
    let loaded_needed = plan
        .workloads
        .iter()
        .any(|workload| workload.start() != Start::Empty);
    for repetition in 0..plan.repeat {
        eprintln!("repetition {} of {}", repetition + 1, plan.repeat);
        write_back();
        if plan.limits {
            let limits = machine::measure(&plan.folder, (plan.seconds / 4.0).min(1.0))?;
            results.limits.extend(limits);
        }
        if repetition == 0 && loaded_needed && !plan.workloads.contains(&Workload::Load) {
            each_engine(plan, Workload::Load, repetition, &mut Results::default())?;
        }
        for workload in &plan.workloads {
            let held_against_the_disk = plan.limits && *workload == Workload::Durable1;
            if held_against_the_disk {
                results.limits.extend(machine::measure_syncs(&plan.folder, 1.0)?);
            }
            each_engine(plan, *workload, repetition, &mut results)?;
            if held_against_the_disk {
                results.limits.extend(machine::measure_syncs(&plan.folder, 1.0)?);
            }
            // A run takes long: what was measured outlives whatever ends it early.
            std::fs::write(
                plan.folder.join("results.json"),
                serde_json::to_vec_pretty(&results)?,
            )?;
        }
    }
    for engine in &plan.engines {
        std::fs::remove_dir_all(plan.folder.join(engine.name()))?;
    }
    Ok(results)
}

fn each_engine(plan: &Plan, workload: Workload, repetition: u64, results: &mut Results) -> Outcome<()> {
    for engine in &plan.engines {
        let absent = |reason: String| Absence {
            engine: engine.name().to_owned(),
            workload: workload.name(),
            reason,
        };
        let folder = plan.folder.join(engine.name());
        match one(plan, *engine, workload, repetition, &folder) {
            Ok(Answer::Measured(measurements)) => {
                for measurement in measurements {
                    eprintln!("  {engine}: {} {:.6}", measurement.row, measurement.value);
                    results.samples.push(Sample {
                        engine: engine.name().to_owned(),
                        measurement,
                    });
                }
            }
            Ok(Answer::Unsupported(reason)) if repetition == 0 => results.unsupported.push(absent(reason)),
            Ok(Answer::Unsupported(_)) => (),
            Err(error) => {
                eprintln!("  {engine}: {} failed: {error}", workload.name());
                results.failures.push(absent(error.to_string()));
            }
        }
    }
    Ok(())
}

/// Prepares the database that the workload wants, and runs it in a process of its own.
fn one(
    plan: &Plan,
    engine: EngineName,
    workload: Workload,
    repetition: u64,
    folder: &Path,
) -> Outcome<Answer> {
    let (loaded, scratch) = (folder.join("loaded"), folder.join("scratch"));
    let mut task = Task {
        engine,
        workload,
        until_killed: false,
        folder: if workload == Workload::Load {
            loaded.clone()
        } else {
            scratch.clone()
        },
        records: plan.records,
        value_bytes: plan.value_bytes,
        seconds: plan.seconds,
        repetition,
    };
    remove(&task.folder)?;
    std::fs::create_dir_all(folder)?;
    match workload.start() {
        Start::Empty => (),
        Start::Loaded => task.folder = loaded,
        Start::Copy => copy(&loaded, &scratch)?,
    }
    if workload == Workload::OpenKilled {
        kill_while_writing(&Task {
            until_killed: true,
            ..task.clone()
        })?;
    }
    write_back();
    // An answer fits into the pipe, so the child ends before anybody reads it.
    let mut child = child(&task)?.stdout(Stdio::piped()).spawn()?;
    let peaks = Peaks::until_end(&mut child, &task.folder)?;
    let output = child.wait_with_output()?;
    remove(&scratch)?;
    if !output.status.success() {
        return Err(format!("the process ended with {}", output.status).into());
    }
    let mut answer = serde_json::from_slice(&output.stdout)?;
    if let Answer::Measured(measurements) = &mut answer {
        peaks.note_in(measurements);
    }
    Ok(answer)
}

fn child(task: &Task) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--child")
        .arg(serde_json::to_string(task)?)
        .stdin(Stdio::null());
    Ok(command)
}

/// Starts a child that writes, waits for it to say that it has written, and kills it.
fn kill_while_writing(task: &Task) -> Outcome<()> {
    let mut child = child(task)?.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    child.kill()?;
    child.wait()?;
    if line.trim() == "written" {
        Ok(())
    } else {
        Err("the writing process ended before it was killed".into())
    }
}

fn remove(folder: &Path) -> Outcome<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Copies a folder with `cp`, which keeps the holes of sparse files.
fn copy(from: &Path, to: &Path) -> Outcome<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cp ended with {status}").into())
    }
}

/// Writes dirty pages back. Where `sync` cannot be run, figures are noisier, not wrong.
fn write_back() {
    drop(Command::new("sync").status());
}

/// The versions of an engine's packages, from the lock file that this program was built with.
fn versions(engine: EngineName) -> String {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let version = |package: &&str| {
        let (_, rest) = LOCK.split_once(&format!("name = \"{package}\"\nversion = \""))?;
        Some(format!("{package} {}", rest.split_once('"')?.0))
    };
    engine
        .packages()
        .iter()
        .filter_map(version)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
    }

    #[test]
    fn a_later_run_replaces_the_rows_that_it_measured() {
        let sample = |engine: &str, row: &str, value| Sample {
            engine: engine.to_owned(),
            measurement: Measurement {
                row: row.to_owned(),
                value,
                cpu_us: None,
                others: None,
                peak_anonymous_mib: None,
                peak_disk_mib: None,
            },
        };
        let mut results = Results {
            samples: vec![
                sample("a", "load", 1.0),
                sample("a", "get-1", 2.0),
                sample("b", "load", 3.0),
            ],
            ..Results::default()
        };
        results.merge(Results {
            samples: vec![sample("a", "load", 9.0)],
            ..Results::default()
        });
        assert_eq!(results.median("load", "a"), Some(9.0));
        assert_eq!(results.median("get-1", "a"), Some(2.0));
        assert_eq!(results.median("load", "b"), Some(3.0));
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        assert!(versions(EngineName::Microdb).starts_with("microdb "));
    }
}
