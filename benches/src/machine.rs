//! The limits of this machine, measured in the same run as the engines.
//!
//! A goal such as "0.9 of the disk's syncs per second" needs a limit that was measured at about the
//! same time. One disk had between 100 and 9,000 syncs per second within an hour. So the disk's
//! syncs are measured directly before and after the row that is compared with them. All other
//! limits are measured once in every repetition.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::data::mix;

/// Size in bytes of the block that is written before each measured sync. Engines write to the disk
/// in blocks of about this size.
const BLOCK_BYTES: usize = 4096;

/// Size in bytes of a record of the default workloads: a key of 16 bytes, a value of 100 bytes
/// and a small header.
const RECORD_BYTES: usize = 128;

/// Size in bytes of the memory for the measurement of cache misses. This size exceeds the caches of
/// most machines and is about that of 2,000,000 records.
const MISS_BYTES: usize = 256 << 20;

/// Size in bytes of one measured copy. Source and target together exceed the caches of most
/// machines.
const COPY_BYTES: usize = 64 << 20;

/// The measured limits of the machine: name, description and unit.
pub const LIMITS: [(&str, &str, &str); 9] = [
    ("sync-append", "fdatasync after appending 4 KiB", "/s"),
    ("sync-in-place", "fdatasync after writing 4 KiB in place", "/s"),
    ("pwrite", "pwrite of 128 bytes to the page cache", "/s"),
    ("copy-record", "copy of 128 bytes into a buffer", "/s"),
    ("write-cached", "writes of 1 MiB to the page cache", "MB/s"),
    (
        "write-synced",
        "writes of 1 MiB to the page cache, synced at the end",
        "MB/s",
    ),
    ("copy", "copy from memory to memory", "MB/s"),
    ("miss-dependent", "dependent random read of memory", "ns"),
    ("miss-independent", "independent random read of memory", "ns"),
];

/// The measured figure of one limit.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Limit {
    /// Name of the limit, as in [`LIMITS`].
    pub name: String,
    /// Measured figure, in the unit that [`LIMITS`] gives.
    pub value: f64,
}

/// The description of a machine.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Description {
    /// Model of the processor.
    pub processor: String,
    /// Number of processors that this process may use.
    pub processors: usize,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// Operating system and kernel.
    pub system: String,
    /// Type of the file system that contains the databases.
    pub file_system: String,
}

/// Describes this machine. `folder` contains the databases.
#[must_use]
pub fn describe(folder: &Path) -> Description {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or_default();
    Description {
        processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
        processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_gib: memory_kib / f64::from(1 << 20),
        system: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        file_system: file_system(&read("/proc/mounts"), folder),
    }
}

/// Returns the type of the file system that contains `folder`. Of all mounts above `folder`, the
/// one with the longest path is used.
fn file_system(mounts: &str, folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let holding = mounts.filter(|(path, _)| folder.starts_with(path));
    holding
        .max_by_key(|(path, _)| path.len())
        .map_or_else(String::new, |(_, kind)| kind.to_owned())
}

/// Measures the syncs per second of the disk: first with appended blocks, then with blocks that
/// overwrite existing blocks. Each of the two measurements takes about `seconds`.
///
/// # Errors
/// Returns an error if a file in `folder` cannot be written.
pub fn measure_syncs(folder: &Path, seconds: f64) -> Outcome<Vec<Limit>> {
    let path = folder.join("limits");
    let append = syncs(&path, seconds, false)?;
    let in_place = syncs(&path, seconds, true)?;
    std::fs::remove_file(&path)?;
    Ok(vec![
        limit("sync-append", append),
        limit("sync-in-place", in_place),
    ])
}

/// Measures all limits except for the syncs. The measurement of sequential writes takes as long as
/// 256 MiB take, and each other measurement takes about `seconds`.
///
/// # Errors
/// Returns an error if a file in `folder` cannot be written.
pub fn measure(folder: &Path, seconds: f64) -> Outcome<Vec<Limit>> {
    let mut limits = Vec::new();
    let mut add = |name: &str, value: f64| limits.push(limit(name, value));
    let path = folder.join("limits");
    let (cached, synced) = sequential(&path)?;
    add("write-cached", cached);
    add("write-synced", synced);
    add("pwrite", small_writes(&path, seconds)?);
    std::fs::remove_file(&path)?;
    add("copy-record", small_copies(seconds));
    add("copy", copies(seconds));
    let (dependent, independent) = misses(seconds);
    add("miss-dependent", dependent);
    add("miss-independent", independent);
    Ok(limits)
}

fn limit(name: &str, value: f64) -> Limit {
    Limit {
        name: name.to_owned(),
        value,
    }
}

/// Calls `step` until `seconds` have passed. Reads the clock after every `look` calls, because
/// reading the clock takes time. Returns the calls per second.
fn rate(seconds: f64, look: u64, mut step: impl FnMut(u64) -> Outcome<()>) -> Outcome<f64> {
    let began = Instant::now();
    let mut calls = 0;
    loop {
        for _ in 0..look {
            step(calls)?;
            calls += 1;
        }
        let passed = began.elapsed().as_secs_f64();
        if passed >= seconds {
            return Ok(calls as f64 / passed);
        }
    }
}

fn fresh(path: &Path) -> Outcome<File> {
    Ok(OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(path)?)
}

/// Returns the number per second of writes of a block that are each followed by fdatasync. The
/// blocks are appended to the file or, with `in_place`, overwrite existing blocks.
fn syncs(path: &Path, seconds: f64, in_place: bool) -> Outcome<f64> {
    const BLOCKS: u64 = 1024;
    let file = fresh(path)?;
    let block = [0x5a; BLOCK_BYTES];
    if in_place {
        (&file).write_all(&vec![0x33; BLOCK_BYTES * BLOCKS as usize])?;
        file.sync_all()?;
    }
    rate(seconds, 1, |call| {
        let at = if in_place { call % BLOCKS } else { call };
        file.write_all_at(&block, at * BLOCK_BYTES as u64)?;
        Ok(file.sync_data()?)
    })
}

/// Returns the MB/s of sequential writes to the page cache: without the final sync, and with it.
fn sequential(path: &Path) -> Outcome<(f64, f64)> {
    const WRITES: usize = 256;
    let mut file = fresh(path)?;
    let block = vec![0x5a; 1 << 20];
    let began = Instant::now();
    for _ in 0..WRITES {
        file.write_all(&block)?;
    }
    let cached = began.elapsed().as_secs_f64();
    file.sync_data()?;
    let synced = began.elapsed().as_secs_f64();
    let megabytes = (WRITES * block.len()) as f64 / 1e6;
    Ok((megabytes / cached, megabytes / synced))
}

fn small_writes(path: &Path, seconds: f64) -> Outcome<f64> {
    let file = fresh(path)?;
    let record = [0x5a; RECORD_BYTES];
    rate(seconds, 256, |call| {
        Ok(file.write_all_at(&record, call % (1 << 20) * RECORD_BYTES as u64)?)
    })
}

fn small_copies(seconds: f64) -> f64 {
    let record = [0x5a_u8; RECORD_BYTES];
    let mut buffer = vec![0_u8; 16 << 20];
    let slots = (buffer.len() / RECORD_BYTES) as u64;
    let copied = rate(seconds, 4096, |call| {
        let at = (call % slots) as usize * RECORD_BYTES;
        buffer[at..at + RECORD_BYTES].copy_from_slice(black_box(&record));
        Ok(())
    });
    black_box(&buffer);
    copied.unwrap_or_default()
}

fn copies(seconds: f64) -> f64 {
    let from = vec![0x5a_u8; COPY_BYTES];
    let mut to = vec![0x33_u8; COPY_BYTES];
    let copied = rate(seconds, 1, |_| {
        to.copy_from_slice(black_box(&from));
        black_box(&to);
        Ok(())
    });
    copied.unwrap_or_default() * COPY_BYTES as f64 / 1e6
}

/// Returns the nanoseconds of a random read of memory: first of reads that each depend on the
/// previous read, then of independent reads.
fn misses(seconds: f64) -> (f64, f64) {
    // Every value is 1, but the processor does not know this. So the position of each read depends
    // on the value of the previous read.
    let memory = vec![1_u64; MISS_BYTES / size_of::<u64>()];
    let mask = memory.len() - 1;
    let mut place = 0;
    let dependent = rate(seconds, 4096, |_| {
        place = mix(place + memory[place as usize & mask]);
        Ok(())
    });
    black_box(place);
    let mut sum = 0;
    let independent = rate(seconds, 4096, |call| {
        sum += memory[mix(call) as usize & mask];
        Ok(())
    });
    black_box(sum);
    (
        1e9 / dependent.unwrap_or(f64::NAN),
        1e9 / independent.unwrap_or(f64::NAN),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let mut measured = measure(folder.path(), 0.001).unwrap();
        measured.extend(measure_syncs(folder.path(), 0.001).unwrap());
        for (name, _, _) in LIMITS {
            let limit = measured.iter().find(|limit| limit.name == name);
            assert!(limit.is_some_and(|limit| limit.value > 0.0), "{name}");
        }
        assert_eq!(measured.len(), LIMITS.len());
    }

    #[test]
    fn the_mount_with_the_longest_path_determines_the_file_system() {
        let mounts = "a / ext4 rw\nb /does-not-exist tmpfs rw\nc /does-not-exist/deeper xfs rw\n";
        assert_eq!(
            file_system(mounts, Path::new("/does-not-exist/deeper/still")),
            "xfs"
        );
        assert_eq!(file_system(mounts, Path::new("/elsewhere")), "ext4");
    }
}
