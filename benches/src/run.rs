//! The parent process: prepares folders, starts a child for each engine, workload and repetition,
//! and collects samples.
//!
//! **Invariants**
//! - Repetitions are the outer loop and engines the inner one. So a change of the machine's speed
//!   during the run affects all engines of a row.
//! - All dirty pages are written back before each measured child starts, so that no engine is
//!   slowed by the writes of an earlier child.

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

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Engines to measure, in this order.
    pub engines: Vec<EngineName>,
    /// Workloads to run, in this order.
    pub workloads: Vec<Workload>,
    /// Number of records to load.
    pub records: u64,
    /// Size of a value in bytes.
    pub value_bytes: usize,
    /// Number of repetitions.
    pub repeat: u64,
    /// Time for which operations are repeated to measure their rate, in seconds. Puts end earlier
    /// if all records are stored.
    pub seconds: f64,
    /// Folder of the databases, on the disk to be measured.
    pub folder: PathBuf,
    /// `true` to measure the machine's limits too.
    pub limits: bool,
}

/// The results of a run: the input of the report, and the format of `--output json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Results {
    /// Description of the machine.
    pub machine: Description,
    /// Package versions by engine.
    pub versions: BTreeMap<String, String>,
    /// Command-line arguments of the program `engine` in the run.
    pub command: String,
    /// Number of records loaded.
    pub records: u64,
    /// Size of a value in bytes.
    pub value_bytes: usize,
    /// Measured limits of the machine. A limit may have several figures per repetition, or none.
    pub limits: Vec<Limit>,
    /// All figures of all engines and repetitions.
    pub samples: Vec<Sample>,
    /// Workloads that an engine does not support, with the reason.
    pub unsupported: Vec<Absence>,
    /// Workloads that failed on an engine, with the reason.
    pub failures: Vec<Absence>,
}

/// One figure of one engine in one repetition.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sample {
    /// The engine's name.
    pub engine: String,
    /// The figure, with its row of the table.
    #[serde(flatten)]
    pub measurement: Measurement,
}

/// A workload that an engine does not support, or that failed on the engine at least once, and the
/// reason.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Absence {
    /// Name of the engine.
    pub engine: String,
    /// The workload's name.
    pub workload: String,
    /// The reason for the missing figures.
    pub reason: String,
}

impl Results {
    /// Returns the median of the figures of an engine in a row, if there are any.
    #[must_use]
    pub fn median(&self, row: &str, engine: &str) -> Option<f64> {
        self.median_of(row, engine, |measurement| Some(measurement.value))
    }

    /// Returns the median of one value of the measurements of an engine in a row. Returns `None` if
    /// no measurement has this value.
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

    /// Returns the median of the figures of a limit, if it was measured.
    #[must_use]
    pub fn limit(&self, name: &str) -> Option<f64> {
        median(
            self.limits
                .iter()
                .filter(|limit| limit.name == name)
                .map(|limit| limit.value),
        )
    }

    /// Merges the results of a later run. If both runs measured a row on the same engine, the
    /// figures of the later run replace the existing figures. The limits of the later run, if it
    /// measured limits, replace all existing limits. Machine, command, number of records and size
    /// of a value become those of the later run. Package versions of the later run replace those
    /// of the same engines.
    ///
    /// An existing [`Absence`] is removed if its workload now has a figure on its engine, or if the
    /// later run has an absence of the same workload and engine. The absences of the later run are
    /// added.
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
            absences.retain(|old| {
                let mut later = later.unsupported.iter().chain(&later.failures);
                let is_replaced = later.any(|new| new.engine == old.engine && new.workload == old.workload);
                !is_replaced && !samples.iter().any(|sample| old.is_answered_by(sample))
            });
        }
        self.unsupported.extend(later.unsupported);
        self.failures.extend(later.failures);
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

/// Returns the median: the middle value, or the mean of the two middle values. Returns `None`
/// without values.
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

/// Runs all workloads of a plan and returns the results. Removes the databases at the end.
///
/// # Errors
/// Returns an error if a folder or a file cannot be written. `results.json` in [`Plan::folder`]
/// then has the results that were saved last: they are saved after each workload. A workload that
/// fails on an engine is recorded in the results and causes no error.
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
            let is_compared_with_syncs = plan.limits && *workload == Workload::Durable1;
            if is_compared_with_syncs {
                results.limits.extend(machine::measure_syncs(&plan.folder, 1.0)?);
            }
            each_engine(plan, *workload, repetition, &mut results)?;
            if is_compared_with_syncs {
                results.limits.extend(machine::measure_syncs(&plan.folder, 1.0)?);
            }
            // A run takes long, so the results so far are saved in case the run is aborted.
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

/// Prepares the database of a workload, and runs the workload in a child process.
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
    // The child's answer fits into the pipe's buffer. So the child can end before the pipe is read.
    let mut child = child(&task)?.stdout(Stdio::piped()).spawn()?;
    let peaks = Peaks::until_end(&mut child, &task.folder)?;
    let output = child.wait_with_output()?;
    remove(&scratch)?;
    if !output.status.success() {
        return Err(format!("the process ended with {}", output.status).into());
    }
    let mut answer = serde_json::from_slice(&output.stdout)?;
    if let Answer::Measured(measurements) = &mut answer {
        peaks.copy_to(measurements);
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

/// Starts a child that writes, waits until it reports that it has written enough, and kills it.
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

/// Writes all dirty pages back to the disk. If `sync` cannot be run, the figures vary more but are
/// not wrong.
fn write_back() {
    drop(Command::new("sync").status());
}

/// Returns the versions of an engine's packages, from the lock file of this build.
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
    fn the_median_is_the_middle_value() {
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
    fn a_later_run_replaces_the_absences_that_it_has_too() {
        let absence = |engine: &str, workload: &str, reason: &str| Absence {
            engine: engine.to_owned(),
            workload: workload.to_owned(),
            reason: reason.to_owned(),
        };
        let reasons = |absences: &[Absence]| -> Vec<String> {
            absences.iter().map(|absence| absence.reason.clone()).collect()
        };
        let mut results = Results {
            unsupported: vec![absence("a", "x", "old 1"), absence("b", "x", "kept 1")],
            failures: vec![
                absence("a", "y", "old 2"),
                absence("b", "z", "old 3"),
                absence("b", "y", "kept 2"),
            ],
            ..Results::default()
        };
        results.merge(Results {
            unsupported: vec![absence("a", "x", "new 1"), absence("b", "z", "new 2")],
            failures: vec![absence("a", "y", "new 3"), absence("a", "y", "new 4")],
            ..Results::default()
        });
        assert_eq!(reasons(&results.unsupported), ["kept 1", "new 1", "new 2"]);
        assert_eq!(reasons(&results.failures), ["kept 2", "new 3", "new 4"]);
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        assert!(versions(EngineName::Microdb).starts_with("imt-microdb "));
    }
}
