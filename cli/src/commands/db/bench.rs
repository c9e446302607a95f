//! `imt db bench`: what this disk gives, in a few seconds: syncs of a growing file and in place,
//! and the engine's puts and gets on it.

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

/// Time for each figure: short enough to wait for, long enough for some hundred syncs of a slow
/// disk.
const EACH: Duration = Duration::from_millis(700);
/// What is written before each sync.
const BLOCK: [u8; 4096] = [0x5a; 4096];
/// Size of the values.
const VALUE_BYTES: usize = 100;
/// Writes between two looks at the clock where a write takes a microsecond.
const STRIDE: u64 = 256;

/// The folder that is made for the measurement; removed when dropped.
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
    let (append, in_place) = syncs(&scratch.0)
        .map_err(|error| CliError::because(format!("cannot measure in {}", folder.display()), error))?;
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
        row("what", 0.0, "what it means")
            .into_iter()
            .enumerate()
            .map(|(at, cell)| if at == 1 { "per second".to_owned() } else { cell })
            .collect(),
        row("fdatasync, growing file", append, "4 KiB appended before each"),
        row(
            "fdatasync, in place",
            in_place,
            "4 KiB over what was there: the most that one writer at a time can have",
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

/// Syncs a second after appends, and after writes in place.
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
        // Any permutation that is not the order of writing will do.
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

/// How often in a second `work` can be done; the clock is read every `stride` times.
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
