//! A stopwatch that also measures the use of the processors.
//!
//! On a shared machine wall time alone is not reliable. So a measurement also has the processor
//! time of all threads of this process, and the share of the processors that others used: other
//! processes, and other guests of the hypervisor. A high share means that others disturbed the
//! measurement.

use std::time::Instant;

/// Clock ticks per second in `/proc`. On x86-64 and 64-bit ARM, every kernel has this value.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running stopwatch.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    own: Own,
    all: Machine,
}

/// The kernel's counters for all processors of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Machine {
    /// Busy time in seconds, including time that the hypervisor gave to other guests ("steal").
    busy_seconds: f64,
    /// Number of processors. A process may be permitted to use only some of them.
    processors: usize,
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
            all: Machine::now(),
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
        let all = Machine::now();
        let busy_seconds = all.busy_seconds - self.all.busy_seconds;
        let others = (busy_seconds - cpu_seconds) / (seconds * all.processors.max(1) as f64);
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

impl Machine {
    /// Returns the current counters, or zeros if `/proc/stat` cannot be read.
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat");
        stat.map_or_else(|_| Self::default(), |stat| Self::of(&stat))
    }

    /// Parses the text of `/proc/stat`. Its first line has the sums over all processors, and the
    /// next lines have one processor each.
    fn of(stat: &str) -> Self {
        let mut lines = stat.lines();
        let fields: Vec<f64> = lines
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        // The fields are: user nice system idle iowait irq softirq steal.
        let busy = [0, 1, 2, 5, 6, 7];
        Self {
            busy_seconds: busy.iter().filter_map(|at| fields.get(*at)).sum::<f64>() / TICKS_PER_SECOND,
            processors: lines.take_while(|line| line.starts_with("cpu")).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_processors_of_the_machine_are_counted() {
        let stat = "cpu  100 20 30 900 9 4 5 1 7 0\ncpu0 50 10 15 450 4 2 2 1 3 0\n\
                    cpu1 50 10 15 450 5 2 3 0 4 0\nintr 12 0\nctxt 5\n";
        let expected = Machine {
            busy_seconds: 1.6,
            processors: 2,
        };
        assert_eq!(Machine::of(stat), expected);
        assert_eq!(Machine::of(""), Machine::default());
    }
}
