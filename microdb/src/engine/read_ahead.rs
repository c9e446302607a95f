//! Advice to the operating system on reading the log from disk.
//!
//! - While memory can hold the log, the system's read-ahead fills the file cache soonest.
//!   Read-ahead reads 128 KiB or more for each touched page.
//! - Once memory cannot hold the log, read-ahead would read 128 KiB for each look-up of one record,
//!   and evict other pages. The maps are then marked for random access, and sequential readers
//!   request their pages themselves ([`Segment::begin_reading`], `log_order`).
//! - After slow look-ups, further look-ups of many keys (`multi_get`, batches, replay) request
//!   their pages first, so that several reads of the disk overlap ([`Lookups`]). Each request is a
//!   system call, so no pages are requested while lookups are fast.
//!
//! All of this is advice: a wrong guess costs time, nothing else.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::engine::segments::Segment;

/// Size of the log, in bytes, up to which the available memory is not determined. Such a small log
/// is read quickly in any case.
const SMALL_BYTES: u64 = 32 << 20;

/// Duration above which a look-up is assumed to have waited for a disk. A look-up that misses the
/// processor's caches takes a tenth of this time, and a read from the fastest disks takes twice
/// this time.
const SLOW: Duration = Duration::from_micros(5);
/// Number of fast rounds of look-ups, after the last slow round, in which pages are requested
/// ahead.
const ASKING_ROUNDS: u32 = 64;

/// State of an engine that decides if look-ups request their pages ahead.
#[derive(Default)]
pub(crate) struct DiskReads {
    /// `true` if the log is larger than memory can hold.
    scattered: AtomicBool,
    /// Number of further fast rounds of lookups that request their pages. A slow round sets it to
    /// [`ASKING_ROUNDS`].
    asking: AtomicU32,
}

/// A round of lookups: a batch of lookups that are timed together. If `asking` is `true`, the pages
/// of these lookups are requested before the lookups need them.
pub(crate) struct Lookups<'a> {
    reads: &'a DiskReads,
    /// Start time of the round. `None` while memory can hold the log, because then lookups are not
    /// timed and request no pages.
    started: Option<Instant>,
    asking: bool,
    done: u32,
}

impl DiskReads {
    /// Begins a round of lookups.
    #[inline]
    pub(crate) fn lookups(&self) -> Lookups<'_> {
        Lookups {
            reads: self,
            started: self.scattered.load(Ordering::Relaxed).then(Instant::now),
            asking: self.is_asking(),
            done: 0,
        }
    }

    fn is_asking(&self) -> bool {
        self.scattered.load(Ordering::Relaxed) && self.asking.load(Ordering::Relaxed) > 0
    }

    /// Records the result of a round. `asked` is `true` if its pages were requested, and `took` is
    /// the time per lookup.
    fn note(&self, asked: bool, took: Duration) {
        if took > SLOW {
            self.asking.store(ASKING_ROUNDS, Ordering::Relaxed);
        } else if asked {
            // Concurrent threads may lose an update of this counter. Then some rounds request pages
            // in vain, or do not request them. No result depends on it.
            let left = self.asking.load(Ordering::Relaxed).saturating_sub(1);
            self.asking.store(left, Ordering::Relaxed);
        }
    }
}

impl Lookups<'_> {
    /// Announces one more lookup. Returns `true` if its page should be requested
    /// ([`Segment::will_look`]).
    #[inline]
    pub(crate) fn ask_for_next(&mut self) -> bool {
        self.done += 1;
        self.asking
    }
}

impl Drop for Lookups<'_> {
    #[inline]
    fn drop(&mut self) {
        let Some(started) = self.started.filter(|_| self.done > 0) else {
            return;
        };
        self.reads.note(self.asking, started.elapsed() / self.done);
    }
}

impl Engine {
    /// Advises the system on reading the segments `fresh` of a log of `bytes` in total, and on all
    /// other segments if the advice has changed. Returns `true` for random access.
    pub(crate) fn advise_reads<'a>(&self, bytes: u64, fresh: impl Iterator<Item = &'a Segment>) -> bool {
        let limit = match self.options.memory_bytes {
            Some(limit) => limit,
            None if bytes <= SMALL_BYTES => SMALL_BYTES,
            None => available_bytes() / 2,
        };
        let scattered = bytes > limit;
        fresh.for_each(|segment| segment.advise(scattered));
        if self.reads.scattered.swap(scattered, Ordering::Relaxed) != scattered {
            let guard = crate::raw::epoch::pin();
            let segments = self.segments.load(&guard);
            segments.iter().for_each(|segment| segment.advise(scattered));
        }
        scattered
    }
}

/// Returns the memory that the system could use for caching files: free memory and file cache,
/// limited by the control group of the process. Returns `u64::MAX` if neither the memory nor the
/// limit is known.
fn available_bytes() -> u64 {
    let free = std::fs::read_to_string("/proc/meminfo").ok();
    let free = free.and_then(|text| mem_available(&text));
    let allowed = std::fs::read_to_string("/proc/self/cgroup").ok();
    let allowed = allowed.and_then(|text| group_limit(&text, Path::new("/sys/fs/cgroup")));
    free.unwrap_or(u64::MAX).min(allowed.unwrap_or(u64::MAX))
}

/// Returns the value of the line `MemAvailable` of `/proc/meminfo`, in bytes, if there is a valid
/// one.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Returns the lowest memory limit of the control groups in `groups` and of their ancestors, or
/// `None` if no limit can be read. `groups` is the text of `/proc/self/cgroup`, and `root` the
/// mount point of the control groups.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        // Control groups of version 2 have one unnamed hierarchy. Version 1 has several
        // hierarchies, and one of them has the controller `memory`.
        let (tree, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let group = Path::new(path.trim_start_matches('/'));
        let limit = |group: &Path| {
            let text = std::fs::read_to_string(tree.join(group).join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        group.ancestors().filter_map(limit).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_what_the_system_says() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    8192 kB\nBuffers: 2 kB\n";
        assert_eq!(mem_available(text), Some(8192 * 1024));
        for bad in [
            "",
            "MemTotal: 3 kB",
            "MemAvailable: much kB",
            "MemAvailable: 12 MB",
        ] {
            assert_eq!(mem_available(bad), None, "{bad}");
        }
        if cfg!(target_os = "linux") {
            assert!(available_bytes() < u64::MAX);
        }
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("memory.max", "max\n");
        write("shop/memory.max", "1000000\n");
        write("shop/node/memory.max", "max\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/small/memory.limit_in_bytes", "268435456\n");
        let limit = |groups: &str| group_limit(groups, root.path());
        assert_eq!(limit("0::/shop/node\n"), Some(1_000_000));
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("0::/gone/away\n"), None);
        assert_eq!(
            limit("5:cpu,memory:/small\n4:cpuset:/x\n0::/\n"),
            Some(268_435_456)
        );
        assert_eq!(limit("5:memory:/other\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(limit("5:memory:/small\n0::/shop\n"), Some(1_000_000));
        assert_eq!(limit("nonsense\n\n7:\n"), None);
    }

    #[test]
    fn lookups_that_wait_make_the_next_ones_ask_until_they_are_fast_again() {
        let reads = DiskReads::default();
        let round = |slow: bool| {
            let asked = reads.is_asking();
            reads.note(asked, if slow { SLOW * 2 } else { SLOW / 2 });
            asked
        };
        assert!(!round(true) && !round(true), "memory holds the log");
        reads.asking.store(0, Ordering::Relaxed);
        reads.scattered.store(true, Ordering::Relaxed);
        assert!(!round(false) && !round(true));
        for _ in 0..ASKING_ROUNDS {
            assert!(round(false));
        }
        assert!(!round(false), "fast long enough");
        assert!(!round(true) && round(true) && round(false));
    }
}
