//! Opens a damaged database in a child process, and judges the result.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use imt_benches::Outcome;
use imt_benches::engines::EngineName;
use serde::Serialize;

use crate::work::{self, Expected, Reading, Task};

/// Time limit of an open with all reads, which usually take milliseconds. A child that exceeds the
/// limit is killed and counts as hanging.
const TIME_LIMIT: Duration = Duration::from_secs(20);
/// Interval at which the end of a child is checked.
const CHECK_EVERY: Duration = Duration::from_micros(200);
/// Maximum length of a recorded message of a child, in characters.
const MESSAGE_MAX: usize = 300;
/// Exit status of a Rust program after a panic.
const PANIC_STATUS: i32 = 101;

/// The result of one try. If several apply, the last one in this order counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Every sure record has its value, and no range of [`Expected::unsure`] is present in part.
    Right,
    /// The engine returned an error before the first read.
    Refused,
    /// A read returned an error, and no worse verdict applies to the other records.
    ReadError,
    /// A record is absent, and the engine says that its open dropped data.
    Told,
    /// Some but not all records of a range of [`Expected::unsure`] were read with their value.
    Partial,
    /// A record is absent, and the engine says nothing.
    Absent,
    /// A read returned a wrong value.
    Wrong,
    /// The engine panicked.
    Panic,
    /// A signal ended the process: an abort or an invalid access to memory.
    Crash,
    /// The process did not end within the time limit.
    Hang,
}

impl Verdict {
    /// Judges a reading.
    pub(crate) fn of(reading: &Reading) -> Self {
        if reading.refused.is_some() {
            Self::Refused
        } else if reading.wrong > 0 {
            Self::Wrong
        } else if reading.absent > 0 && reading.dropped.is_none() {
            Self::Absent
        } else if reading.partial > 0 {
            Self::Partial
        } else if reading.absent > 0 {
            Self::Told
        } else if reading.errors > 0 {
            Self::ReadError
        } else {
            Self::Right
        }
    }
}

/// Opens the database of a folder in a child and reads the expected records. Returns the verdict,
/// and a text about it: a message of the engine, or a number of records. The text may be empty.
pub(crate) fn judge(engine: EngineName, folder: &Path, expected: &Expected) -> Outcome<(Verdict, String)> {
    let task = Task::Read {
        engine,
        folder: folder.to_path_buf(),
        expected: expected.clone(),
    };
    // The reading fits into the pipe's buffer. So the child can end before the pipe is read.
    let messages = folder.with_extension("messages");
    let mut child = work::command(&task)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&messages)?)
        .spawn()?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > TIME_LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok((Verdict::Hang, String::new()));
        }
        std::thread::sleep(CHECK_EVERY);
    };
    let message = || -> String {
        let text = std::fs::read_to_string(&messages).unwrap_or_default();
        text.chars().take(MESSAGE_MAX).collect()
    };
    if status.signal().is_some() {
        return Ok((Verdict::Crash, format!("{status}: {}", message())));
    }
    if status.code() == Some(PANIC_STATUS) {
        return Ok((Verdict::Panic, message()));
    }
    if !status.success() {
        return Err(format!("the reading process ended with {status}: {}", message()).into());
    }
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text)?;
    }
    let reading: Reading = serde_json::from_str(text.trim())?;
    let verdict = Verdict::of(&reading);
    let example = match verdict {
        Verdict::Told => reading.dropped,
        Verdict::Wrong => Some(format!("{} wrong values", reading.wrong)),
        Verdict::Absent => Some(format!("{} of the records absent", reading.absent)),
        _ => reading.refused.or(reading.first_error),
    };
    Ok((verdict, example.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_of_a_reading_counts() {
        let mut reading = Reading {
            right: 7,
            ..Reading::default()
        };
        assert_eq!(Verdict::of(&reading), Verdict::Right);
        reading.errors = 1;
        assert_eq!(Verdict::of(&reading), Verdict::ReadError);
        reading.absent = 1;
        assert_eq!(Verdict::of(&reading), Verdict::Absent);
        reading.dropped = Some("the tail".to_owned());
        assert_eq!(Verdict::of(&reading), Verdict::Told);
        reading.wrong = 1;
        assert_eq!(Verdict::of(&reading), Verdict::Wrong);
    }
}
