//! The record of a run: the folder `DATA/runs/TIME/`, one for each run. No run overwrites the
//! folder of another run.
//!
//! | file | content |
//! | --- | --- |
//! | `run.json` | [`RunFacts`]; written at the start, so that a killed run has it |
//! | `series.csv` | a line for each second |
//! | `stats.csv` | a line for each request, in the format of the original system, if configured |
//! | `events.csv` | the newest events of the run; written at the end |
//! | `histograms.csv` | latencies of each route without the warm-up; written at the end |
//! | `run.log` | log lines written while a live view used the terminal |
//! | `view-N.svg`, `view-N.json` | saved pictures of the live view, and the state that each shows |
//! | `summary.json` | the results, the audit and the thresholds; written at the end |
//! | `report.html` | the run as a page, if `imt sim report` has drawn it |

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::front::FrontReport;
use crate::latency::Bucket;
use crate::summary::Summary;
use crate::telemetry::{Route, RunEvent};
use crate::warehouse::unix_ms;
use crate::{Error, Result};

/// Name of the folder of all runs, inside the data folder.
pub const RUNS: &str = "runs";
/// Maximum number of names that are tried for a new run folder. Runs that start in the same second
/// have the same time in their name, so a number is appended.
const NAMES_MAX: u32 = 1_000;

const RUN_JSON: &str = "run.json";
const SUMMARY_JSON: &str = "summary.json";
const EVENTS_CSV: &str = "events.csv";
const HISTOGRAMS_CSV: &str = "histograms.csv";

/// Facts about a run that are known at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    /// Version of the program.
    pub version: String,
    /// Name of the scenario.
    pub scenario: String,
    /// The scenario as TOML text; empty for a scenario from command line flags.
    pub scenario_toml: String,
    /// Seed of all random choices.
    pub seed: u64,
    /// Command line that repeats the run.
    pub repeat: String,
    /// Time at which the run began, before its first request, unix milliseconds.
    pub begun_at_ms: u64,
    /// Number of logical processors that this process may use, or 1 if the number is not known.
    pub processors: usize,
    /// Operating system and architecture.
    pub platform: String,
}

impl RunFacts {
    /// Returns the facts of a run that begins now on this machine.
    pub fn new(scenario: &str, scenario_toml: &str, seed: u64, repeat: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            scenario: scenario.to_owned(),
            scenario_toml: scenario_toml.to_owned(),
            seed,
            repeat: repeat.to_owned(),
            begun_at_ms: unix_ms(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The folder of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Creates the folder of a new run and writes the facts into it.
    ///
    /// # Errors
    /// If the folder or the file cannot be written, or all tried names are used.
    pub fn create(data: &Path, facts: &RunFacts) -> Result<Self> {
        let runs = data.join(RUNS);
        fs::create_dir_all(&runs).map_err(Error::io("create", &runs))?;
        let name = time_name(facts.begun_at_ms);
        for number in 1..=NAMES_MAX {
            let path = match number {
                1 => runs.join(&name),
                _ => runs.join(format!("{name}-{number}")),
            };
            match fs::create_dir(&path) {
                Ok(()) => {
                    let folder = Self { path };
                    folder.write_json(RUN_JSON, facts)?;
                    return Ok(folder);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &path)(error)),
            }
        }
        Err(Error::Io {
            action: "find a free name in",
            path: runs,
            source: std::io::ErrorKind::AlreadyExists.into(),
        })
    }

    /// Opens the folder of an earlier run. `run` is the path of the folder, or its name in the
    /// folder [`RUNS`] of the data folder; `None` for the newest run.
    ///
    /// # Errors
    /// If there is no such run, or the folder of all runs cannot be read.
    pub fn open(data: &Path, run: Option<&str>) -> Result<Self> {
        let runs = data.join(RUNS);
        let path = match run {
            Some(run) if Path::new(run).join(RUN_JSON).is_file() => PathBuf::from(run),
            Some(run) => runs.join(run),
            None => newest(&runs)?,
        };
        let facts = path.join(RUN_JSON);
        fs::metadata(&facts).map_err(Error::io("find the run", &facts))?;
        Ok(Self { path })
    }

    /// Returns the path of the run folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the results of a run: histograms, events and summary.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_results(&self, front: &FrontReport, events: &[RunEvent], summary: &Summary) -> Result<()> {
        self.write(HISTOGRAMS_CSV, histograms_csv(front).as_bytes())?;
        self.write(EVENTS_CSV, events_csv(events).as_bytes())?;
        self.write_json(SUMMARY_JSON, summary)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        // The value has only texts, numbers, lists and maps with text keys, so its serialization
        // cannot fail.
        let mut json = serde_json::to_vec_pretty(value).expect("plain data");
        json.push(b'\n');
        self.write(name, &json)
    }

    /// Writes a file into the run folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, content).map_err(Error::io("write", &path))
    }

    /// Reads the facts that were written at the start of the run.
    ///
    /// # Errors
    /// If the file cannot be read or parsed.
    pub fn facts(&self) -> Result<RunFacts> {
        self.read_json(RUN_JSON)
    }

    /// Reads the summary; `None` if the run has none, for example because it was killed or is not
    /// over.
    ///
    /// # Errors
    /// If the file exists and cannot be read or parsed.
    pub fn summary(&self) -> Result<Option<serde_json::Value>> {
        match self.path.join(SUMMARY_JSON).exists() {
            true => self.read_json(SUMMARY_JSON).map(Some),
            false => Ok(None),
        }
    }

    /// Reads the events. Returns an empty list if there is no file of events, for example because
    /// the run was killed or is not over.
    ///
    /// # Errors
    /// If the file exists and cannot be read or parsed.
    pub fn events(&self) -> Result<Vec<RunEvent>> {
        let path = self.path.join(EVENTS_CSV);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let lines = (2..).zip(text.lines().skip(1));
        lines
            .map(|(line, text)| {
                event_of(text).ok_or_else(|| Error::Malformed {
                    path: path.clone(),
                    line,
                    problem: "expected AT_MS,OFFSET_MS,KIND,SUBJECT,TEXT".to_owned(),
                })
            })
            .collect()
    }

    /// Reads the latencies of each route, in the order of the file. Returns an empty list if there
    /// is no such file, for example because the run was killed or is not over.
    ///
    /// # Errors
    /// If the file exists and cannot be read or parsed.
    pub fn histograms(&self) -> Result<Vec<(String, Vec<Bucket>)>> {
        let path = self.path.join(HISTOGRAMS_CSV);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let mut routes: Vec<(String, Vec<Bucket>)> = Vec::new();
        for (line, text) in (2..).zip(text.lines().skip(1)) {
            let fields: Vec<&str> = text.split(',').collect();
            let bucket = match fields[..] {
                [_, upto, count] => upto.parse().ok().zip(count.parse().ok()),
                _ => None,
            };
            let (upto_us, count) = bucket.ok_or_else(|| Error::Malformed {
                path: path.clone(),
                line,
                problem: "expected ROUTE,UPTO_US,COUNT".to_owned(),
            })?;
            if routes.last().is_none_or(|(route, _)| route != fields[0]) {
                routes.push((fields[0].to_owned(), Vec::new()));
            }
            if let Some((_, buckets)) = routes.last_mut() {
                buckets.push(Bucket { upto_us, count });
            }
        }
        Ok(routes)
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.path.join(name);
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|error| Error::Malformed {
            path,
            line: error.line() as u64,
            problem: error.to_string(),
        })
    }
}

/// Returns the names of the runs of a data folder, the oldest first. Folders without readable facts
/// are left out. The list is empty if the folder of all runs cannot be read.
pub fn names(data: &Path) -> Vec<String> {
    let entries = fs::read_dir(data.join(RUNS)).into_iter().flatten().flatten();
    let mut runs: Vec<(u64, String)> = entries
        .filter_map(|entry| {
            let folder = RunFolder { path: entry.path() };
            let facts = folder.facts().ok()?;
            Some((
                facts.begun_at_ms,
                entry.file_name().to_string_lossy().into_owned(),
            ))
        })
        .collect();
    runs.sort();
    runs.into_iter().map(|(_, name)| name).collect()
}

fn newest(runs: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(runs).map_err(Error::io("read", runs))?;
    let mut paths: Vec<(u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", runs))?.path();
        let folder = RunFolder { path };
        if let Ok(facts) = folder.facts() {
            paths.push((facts.begun_at_ms, folder.path));
        }
    }
    let newest = paths.into_iter().max().map(|(_, path)| path);
    newest.ok_or_else(|| Error::Io {
        action: "find a run in",
        path: runs.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

fn histograms_csv(front: &FrontReport) -> String {
    let mut text = String::from("route,upto_us,count\n");
    for route in Route::ALL {
        for Bucket { upto_us, count } in front.histograms[route.index()].buckets() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{},{upto_us},{count}", route.name());
        }
    }
    text
}

fn events_csv(events: &[RunEvent]) -> String {
    let mut text = String::from("at_ms,offset_ms,kind,subject,text\n");
    for event in events {
        // A reader splits a line at its first four commas. So only the text, the last column, may
        // contain commas, and no column may contain a line end.
        let subject = event.subject.replace([',', '\n'], " ");
        let sentence = event.text.replace('\n', " ");
        let kind = event.kind.name();
        let _ = writeln!(
            text,
            "{},{},{kind},{subject},{sentence}",
            event.at_ms, event.offset_ms
        );
    }
    text
}

fn event_of(line: &str) -> Option<RunEvent> {
    let mut fields = line.splitn(5, ',');
    let at_ms = fields.next()?.parse().ok()?;
    let offset_ms = fields.next()?.parse().ok()?;
    let kind = serde_json::from_value(fields.next()?.into()).ok()?;
    Some(RunEvent {
        at_ms,
        offset_ms,
        kind,
        subject: fields.next()?.to_owned(),
        text: fields.next()?.to_owned(),
    })
}

/// Returns the name of a run folder for a point in time, such as `20260131-174502`, in UTC.
fn time_name(unix_ms: u64) -> String {
    let moment = UNIX_EPOCH + Duration::from_secs(unix_ms / 1_000);
    let text = humantime::format_rfc3339_seconds(moment).to_string();
    text.replace(['-', ':', 'Z'], "").replace('T', "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::EventKind;

    fn facts(begun_at_ms: u64) -> RunFacts {
        RunFacts {
            begun_at_ms,
            ..RunFacts::new("calm", "", 7, "imt sim run --seed 7")
        }
    }

    #[test]
    fn moments_are_named_by_their_date() {
        for (unix_s, name) in [
            (0, "19700101-000000"),
            (951_782_399, "20000228-235959"),
            (951_782_400, "20000229-000000"),
            (1_795_893_049, "20261128-191049"),
            (4_107_542_399, "21000228-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(time_name(unix_s * 1_000), name);
        }
    }

    #[test]
    fn runs_of_the_same_second_get_folders_of_their_own() {
        let data = tempfile::tempdir().unwrap();
        let one = RunFolder::create(data.path(), &facts(5_000)).unwrap();
        let two = RunFolder::create(data.path(), &facts(5_400)).unwrap();
        assert_ne!(one.path(), two.path());
        assert_eq!(RunFolder::open(data.path(), None).unwrap(), two);
        assert_eq!(names(data.path()).len(), 2);
        let name = one.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(names(data.path())[0], name);
        assert_eq!(RunFolder::open(data.path(), Some(name)).unwrap(), one);
        let path = two.path().to_str().unwrap();
        assert_eq!(RunFolder::open(data.path(), Some(path)).unwrap(), two);
        assert_eq!(one.facts().unwrap(), facts(5_000));
        assert_eq!(
            (one.summary().unwrap(), one.events().unwrap()),
            (None, Vec::new())
        );
        let error = RunFolder::open(data.path(), Some("never"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("never"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(RunFolder::open(empty.path(), None).is_err());
    }

    #[test]
    fn events_are_read_as_they_were_written() {
        let data = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(data.path(), &facts(5_000)).unwrap();
        let events = vec![RunEvent {
            at_ms: 1_700,
            offset_ms: 700,
            kind: EventKind::Kill,
            subject: "node-2".to_owned(),
            text: "killed node-2, which serves 3 volumes".to_owned(),
        }];
        folder.write(EVENTS_CSV, events_csv(&events).as_bytes()).unwrap();
        assert_eq!(folder.events().unwrap(), events);
        folder.write(EVENTS_CSV, b"head\n1,2,dance,x,y\n").unwrap();
        let error = folder.events().unwrap_err().to_string();
        assert!(error.contains("events.csv, line 2"), "{error}");
    }
}
