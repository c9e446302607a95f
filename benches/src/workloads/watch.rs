//! A stopwatch that also measures the use of the processors.
//!
//! On a shared machine wall time alone is not reliable. So a measurement also has the processor
//! time of all threads of this process, and the share of the processors that others used: other
//! processes, and other guests of the hypervisor. A high share means that others disturbed the
//! measurement.

use std::time::Instant;

/// Clock ticks per second in `/proc`. For user space this value is the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running stopwatch.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    own: Own,
    all: f64,
}

/// The kernel's counters for this process, summed over all threads.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    cpu_seconds: f64,
    major_faults: f64,
    read_bytes: f64,
}

/// The resources that were used while a stopwatch ran.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Wall time in seconds.
    pub seconds: f64,
    /// Processor time of all threads of this process, in seconds.
    pub cpu_seconds: f64,
    /// Share of the machine's processors that other processes, or other guests of the hypervisor,
    /// used, from 0 to 1.
    pub others: f64,
    /// Number of page faults that needed a read from the disk.
    pub major_faults: f64,
    /// Number of bytes read from the disk for this process, by page faults or system calls.
    pub read_bytes: f64,
}

impl Watch {
    /// Starts a stopwatch.
    #[must_use]
    pub fn start() -> Self {
        Self {
            all: busy_seconds(),
            own: Own::now(),
            began: Instant::now(),
        }
    }

    /// Returns the wall time since the start, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Returns the resources used since the start.
    #[must_use]
    pub fn spent(&self) -> Spent {
        let seconds = self.seconds();
        let own = Own::now();
        let cpu_seconds = own.cpu_seconds - self.own.cpu_seconds;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let others = (busy_seconds() - self.all - cpu_seconds) / (seconds * processors);
        Spent {
            seconds,
            cpu_seconds,
            others: others.clamp(0.0, 1.0),
            major_faults: own.major_faults - self.own.major_faults,
            read_bytes: own.read_bytes - self.own.read_bytes,
        }
    }
}

impl Own {
    /// Returns the current counters. A counter that `/proc` does not have is 0.
    fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (stat, io) = (read("/proc/self/stat"), read("/proc/self/io"));
        // The program's name may contain spaces, so the fields are counted from the closing
        // parenthesis after the name.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let fields: Vec<f64> = fields
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or(0.0);
        let read_bytes = io
            .lines()
            .find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok());
        Self {
            cpu_seconds: (field(11) + field(12)) / TICKS_PER_SECOND,
            major_faults: field(9),
            read_bytes: read_bytes.unwrap_or(0.0),
        }
    }
}

/// Returns the busy time of all processors of the machine in seconds, including time that the
/// hypervisor gave to other guests ("steal").
fn busy_seconds() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/stat") else {
        return 0.0;
    };
    let Some(line) = stat.lines().next() else {
        return 0.0;
    };
    let fields: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // The fields are: user nice system idle iowait irq softirq steal.
    let busy = [0, 1, 2, 5, 6, 7];
    busy.iter().filter_map(|at| fields.get(*at)).sum::<f64>() / TICKS_PER_SECOND
}
