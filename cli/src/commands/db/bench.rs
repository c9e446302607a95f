//! `imt db bench`: measures a disk in a few seconds, by syncs after appends, syncs after
//! overwrites, and puts and gets of a database.

use super::open;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::{Durability, Options};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Minimum duration of each measurement. A disk that needs 10 ms for a sync makes 70 syncs in this
/// time.
const EACH: Duration = Duration::from_millis(700);
/// Bytes that are written before each measured `fdatasync`.
const BLOCK: [u8; 4096] = [0x5a; 4096];
/// Size of each value that is put into the database, in bytes.
const VALUE_BYTES: usize = 100;
/// Number of buffered puts, or of gets, between two readings of the clock. A buffered put takes
/// about a microsecond, so a reading after each put would distort the rate.
const STRIDE: u64 = 256;

/// Temporary folder with the files of the measurement. The folder is removed when this value is
/// dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn run(folder: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    let scratch = folder.join(format!(".imt-bench-{}", std::process::id()));
    fs::create_dir(&scratch).map_err(|error| {
        CliError::because(
            format!(
                "cannot make a folder in {}; name one that exists and that you may write",
                folder.display()
            ),
            error,
        )
    })?;
    let scratch = Scratch(scratch);
    let (append, in_place) = syncs(&scratch.0).map_err(|error| {
        CliError::because(format!("cannot measure fdatasync in {}", folder.display()), error)
    })?;
    let [durable, buffered, gets] =
        engine(&scratch.0.join("db")).map_err(|error| open::refused(folder, error))?;
    drop(scratch);
    if output == OutputFormat::Json {
        output::print_json(&json!({
            "folder": folder, "fdatasync_append_per_second": append, "fdatasync_in_place_per_second": in_place,
            "durable_puts_per_second": durable, "buffered_puts_per_second": buffered, "gets_per_second": gets,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |what: &str, rate: f64, meaning: &str| {
        vec![what.to_owned(), format!("{rate:.0}"), meaning.to_owned()]
    };
    output::print_text(&output::table(&[
        row("measurement", 0.0, "meaning")
            .into_iter()
            .enumerate()
            .map(|(at, cell)| if at == 1 { "per second".to_owned() } else { cell })
            .collect(),
        row("fdatasync, growing file", append, "4 KiB appended before each"),
        row(
            "fdatasync, in place",
            in_place,
            "4 KiB overwritten before each: the maximum for a single writer",
        ),
        row(
            "durable puts, one thread",
            durable,
            "each acknowledged after its sync; more threads share syncs",
        ),
        row(
            "buffered puts, one thread",
            buffered,
            "a sync at the end, included",
        ),
        row("gets, one thread", gets, "from memory, random order, verified"),
    ]))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the syncs per second after appends, and those after overwrites of existing blocks.
fn syncs(folder: &Path) -> std::io::Result<(f64, f64)> {
    let file = File::create_new(folder.join("disk"))?;
    let mut blocks = 0;
    let append = rate(1, || {
        file.write_all_at(&BLOCK, blocks * BLOCK.len() as u64)?;
        blocks += 1;
        file.sync_data()
    })?;
    let mut next = 0;
    let in_place = rate(1, || {
        file.write_all_at(&BLOCK, (next % blocks) * BLOCK.len() as u64)?;
        next += 1;
        file.sync_data()
    })?;
    Ok((append, in_place))
}

fn engine(folder: &Path) -> microdb::Result<[f64; 3]> {
    let db = Options::new().open(folder)?;
    let table = db.table("bench")?;
    let (mut number, value) = (0u64, [7; VALUE_BYTES]);
    let durable = rate(1, || {
        number += 1;
        table.put(key(number), value)
    })?;
    let started = Instant::now();
    let mut count = 0;
    rate(STRIDE, || {
        (number, count) = (number + 1, count + 1);
        table.put_with(key(number), value, Durability::Buffered)
    })?;
    db.sync()?;
    let buffered = f64::from(count) / started.elapsed().as_secs_f64();
    let mut state = 1u64;
    let gets = rate(STRIDE, || {
        // Keys are read in pseudo-random order, so that reads do not follow the order of the
        // writes.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        table.get(key(1 + (state >> 33) % number)).map(drop)
    })?;
    db.close()?;
    Ok([durable, buffered, gets])
}

fn key(number: u64) -> [u8; 16] {
    u128::from(number)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
        .to_le_bytes()
}

/// Returns the number of calls of `work` per second. The clock is read once per `stride` calls.
fn rate<E>(stride: u64, mut work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < EACH {
        for _ in 0..stride {
            work()?;
        }
        count += stride;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}
