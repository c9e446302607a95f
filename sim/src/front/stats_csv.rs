//! The log of requests of the shop front, `stats.csv`, in the format of the original system, from
//! which this project grew: `REQUEST_ID,TIMESTAMP_MS,PATH,DURATION_MS,ok|ko,STATUS_OR_REASON`.
//!
//! Invariants:
//! - `TIMESTAMP_MS` is the intended start of a request, and `DURATION_MS` is measured from the
//!   intended start. The id of a payment is the id of its order plus 900,000,000, and that of a
//!   cancellation is the id of its order plus 1,800,000,000.
//! - `DATA/stats.csv` is the log of the latest run that wrote one. With a run folder, it is a hard
//!   link to the log in that folder. A later run replaces only the link, and the log in the earlier
//!   run folder stays.
//! - After a failed write, nothing more is written to the file. The failure is logged once, and
//!   `close` returns it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::recorder::{Sample, Target};
use super::{FrontConfig, Outcome};
use crate::{Error, Result};

/// Offset between an order's id and the request id of its payments in `stats.csv`.
const PAYMENT_ID: u64 = 900_000_000;
/// Offset between an order's id and the request id of its cancellation. The original system had no
/// cancellations.
const CANCEL_ID: u64 = 1_800_000_000;
/// Size in bytes from which `write_piece` writes the text in memory to the file.
const PIECE_BYTES: usize = 64 * 1024;

/// A file to which text is appended. The text is collected in memory until a write is requested.
pub(super) struct TextLog {
    path: PathBuf,
    file: File,
    text: Vec<u8>,
    problem: Option<String>,
}

impl TextLog {
    /// Creates an empty file at `path`.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self {
            path,
            file,
            text: Vec::with_capacity(2 * PIECE_BYTES),
            problem: None,
        })
    }

    /// Appends text in memory. After a failed write, does nothing.
    pub(super) fn add(&mut self, text: &str) {
        if self.problem.is_none() {
            self.text.extend_from_slice(text.as_bytes());
        }
    }

    /// Writes the text in memory if it has at least [`PIECE_BYTES`] bytes.
    pub(super) fn write_piece(&mut self) {
        if self.text.len() >= PIECE_BYTES {
            self.write_all();
        }
    }

    /// Writes the text in memory. A failure is logged, and kept for `close`.
    pub(super) fn write_all(&mut self) {
        if self.text.is_empty() {
            return;
        }
        if let Err(error) = self.file.write_all(&self.text) {
            tracing::error!(path = %self.path.display(), %error, "log cannot be written");
            self.problem = Some(format!("cannot write {}: {error}", self.path.display()));
        }
        self.text.clear();
    }

    /// Writes the remaining text. Returns the reason for which the log is incomplete; `None` for a
    /// complete log.
    pub(super) fn close(mut self) -> Option<String> {
        self.write_all();
        self.problem
    }
}

/// Creates the log of requests. Returns the log and its path in the data folder.
pub(super) fn create(config: &FrontConfig) -> Result<(TextLog, PathBuf)> {
    let usual = config.data.join("stats.csv");
    let Some(run_folder) = &config.run_folder else {
        remove_link(&usual)?;
        return Ok((TextLog::create(usual.clone())?, usual));
    };
    let kept = run_folder.join("stats.csv");
    let log = TextLog::create(kept.clone())?;
    keep_earlier(&usual)?;
    fs::hard_link(&kept, &usual).map_err(Error::io("link", &usual))?;
    Ok((log, usual))
}

/// Removes the file `usual` if it has further hard links, because writing to it would overwrite the
/// log in an earlier run folder.
fn remove_link(usual: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    match fs::symlink_metadata(usual) {
        Ok(metadata) if metadata.is_file() && metadata.nlink() > 1 => {
            fs::remove_file(usual).map_err(Error::io("remove", usual))
        }
        // A missing file, a file with one link, or a symbolic link stays as it is. Any other error
        // of this look-up also makes the creation of the file fail, which reports it.
        _ => Ok(()),
    }
}

/// Frees the path `usual` of the latest log. An empty file, a symbolic link or one of several hard
/// links is removed, because no log is lost by this. Any other file is the only copy of a log and
/// is renamed.
fn keep_earlier(usual: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let metadata = match fs::symlink_metadata(usual) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", usual)(error)),
    };
    if metadata.nlink() > 1 || metadata.is_symlink() || metadata.len() == 0 {
        return fs::remove_file(usual).map_err(Error::io("remove", usual));
    }
    let kept = usual.with_file_name(format!("stats-until-{}.csv", metadata.mtime()));
    tracing::info!(kept = %kept.display(), "earlier log of requests renamed");
    fs::rename(usual, &kept).map_err(Error::io("rename", usual))
}

/// Returns the line of `stats.csv` for a sample.
pub(super) fn line(sample: &Sample) -> String {
    let (at_ms, took_ms) = (sample.at_ms, (sample.took.as_micros() + 500) / 1000);
    let mut line = String::with_capacity(80);
    // Writing to a String cannot fail.
    let _ = match sample.target {
        Target::Stats { id, product } => {
            write!(line, "{id},{at_ms},/aggregate-stats/{product},{took_ms}")
        }
        Target::Order(order) => write!(line, "{},{at_ms},/order,{took_ms}", order.id),
        Target::Payment { order } => {
            let id = PAYMENT_ID + order;
            write!(line, "{id},{at_ms},/order/{order}/payment-callback,{took_ms}")
        }
        Target::Cancel { order } => {
            let id = CANCEL_ID + order;
            write!(line, "{id},{at_ms},/order/{order}/cancel,{took_ms}")
        }
    };
    let _ = match (sample.outcome, sample.outcome.is_ok()) {
        (Outcome::Status(status), true) => writeln!(line, ",ok,{status}"),
        (Outcome::Status(status), false) => writeln!(line, ",ko,{status}"),
        (outcome, _) => writeln!(line, ",ko,{}", outcome.text()),
    };
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_replaces_the_link_and_keeps_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_owned();
        let usual = data.join("stats.csv");
        fs::write(&usual, "of an older version\n").unwrap();
        for run in ["one", "two"] {
            let run_folder = data.join(run);
            fs::create_dir(&run_folder).unwrap();
            let config = FrontConfig {
                data: data.clone(),
                run_folder: Some(run_folder),
                ..FrontConfig::default()
            };
            let (mut log, path) = create(&config).unwrap();
            assert_eq!(path, usual);
            log.add(run);
            assert_eq!(log.close(), None);
        }
        let read = |path: &str| fs::read_to_string(data.join(path)).unwrap();
        assert_eq!(
            (read("one/stats.csv"), read("two/stats.csv")),
            ("one".into(), "two".into())
        );
        assert_eq!(read("stats.csv"), "two");
        // A run without a run folder replaces the link, too.
        let config = FrontConfig {
            data: data.clone(),
            run_folder: None,
            ..FrontConfig::default()
        };
        let (mut log, _) = create(&config).unwrap();
        log.add("three");
        assert_eq!(log.close(), None);
        assert_eq!(
            (read("two/stats.csv"), read("stats.csv")),
            ("two".into(), "three".into())
        );
        let names = fs::read_dir(&data)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let older = names.filter(|name| name.to_string_lossy().starts_with("stats-until-"));
        assert_eq!(older.count(), 1, "a log with one name only is renamed");
    }
}
