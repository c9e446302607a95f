//! How the log is read from the disk: with the system's read-ahead while memory can hold the log,
//! page by page once it cannot.
//!
//! A system reads more of a mapped file than the page that was touched, 128 KiB as a rule and
//! megabytes on some devices. While the whole log fits into memory this is how it gets there
//! soonest. Once it does not, lookups are scattered over what is not in memory, each would read
//! megabytes for one record and drive out others, so the maps are then marked as read at random,
//! and whoever reads a segment in order asks ahead by itself ([`Segment::begin_reading`],
//! `places`).
//!
//! Many lookups at a time need not wait for the disk one by one: where the last ones were slow, the
//! next ask for their pages first ([`Lookups`]). Asking is a system call each, so it's not done
//! while they are fast. All of this is hints: a wrong one costs time, nothing else.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::engine::segments::Segment;

/// Up to here nobody asks how much memory there is: a log of so few bytes is soon read, whatever
/// the way.
const SMALL_BYTES: u64 = 32 << 20;

/// A lookup that takes longer has waited for a disk. Misses of all caches are a tenth of it, a read
/// of the fastest disks twice as long.
const SLOW: Duration = Duration::from_micros(5);
/// For so many rounds of lookups after a slow one, pages are asked for.
const ASKING_ROUNDS: u32 = 64;

/// What an engine knows of its reads.
#[derive(Default)]
pub(crate) struct DiskReads {
    /// Whether the log is more than memory can hold.
    scattered: AtomicBool,
    /// Rounds of lookups that shall ask for their pages.
    asking: AtomicU32,
}

/// A round of lookups, in which pages may be asked for before they are needed.
pub(crate) struct Lookups<'a> {
    reads: &'a DiskReads,
    /// None while memory holds the log: nothing is asked and nothing is timed then.
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

    /// Takes notice of a round: whether its pages were asked for, and how long a lookup took.
    fn note(&self, asked: bool, took: Duration) {
        if took > SLOW {
            self.asking.store(ASKING_ROUNDS, Ordering::Relaxed);
        } else if asked {
            // Not exact where threads meet, and need not be.
            let left = self.asking.load(Ordering::Relaxed).saturating_sub(1);
            self.asking.store(left, Ordering::Relaxed);
        }
    }
}

impl Lookups<'_> {
    /// One lookup more is going to be made: whether to ask for its page ([`Segment::will_look`]).
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
    /// Tells the system how `fresh` segments are going to be read, of a log of `bytes` in all; and
    /// all others, if that has changed. Whether they will be at random.
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

/// Memory that the system could use for what it reads: what is free, what holds files already, and
/// no more than the process may have. Without limit where that cannot be told.
fn available_bytes() -> u64 {
    let free = std::fs::read_to_string("/proc/meminfo").ok();
    let free = free.and_then(|text| mem_available(&text));
    let allowed = std::fs::read_to_string("/proc/self/cgroup").ok();
    let allowed = allowed.and_then(|text| group_limit(&text, Path::new("/sys/fs/cgroup")));
    free.unwrap_or(u64::MAX).min(allowed.unwrap_or(u64::MAX))
}

/// The line `MemAvailable` of `/proc/meminfo`, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The least memory limit of the control groups that `/proc/self/cgroup` lists, and of those above
/// them. `root`: where the groups are mounted.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        // Version 2 has one tree, without a name; version 1 has one for memory.
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
