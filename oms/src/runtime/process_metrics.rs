//! Metrics of this process, under the names that are usual in Prometheus, and of the program.
//!
//! The values of the process are read from `/proc`. On a system without `/proc` they are left out.

use std::sync::OnceLock;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use crate::runtime::exposition::{Family, Value};

/// Positions of the used fields of `/proc/self/stat`, counted from the first field after the
/// program's name. A position is the field's number in `proc(5)` less 3.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const THREADS: usize = 17;
const START_TICKS: usize = 19;
const VIRTUAL_BYTES: usize = 20;
const RESIDENT_PAGES: usize = 21;

/// Values of a process from `/proc/PID/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: u64,
    /// Seconds from the start of the machine to the start of the process.
    started_after: f64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// Parses the text of `/proc/PID/stat`. `None` if a used field is missing or not a number.
    fn parse(text: &str, ticks_per_second: u64) -> Option<Stat> {
        // The name of the program may have spaces and parentheses in it. So the fields begin after
        // the last parenthesis of the text.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second.max(1) as f64;
        Some(Stat {
            cpu_seconds: seconds(number(USER_TICKS)? + number(SYSTEM_TICKS)?),
            threads: number(THREADS)?,
            started_after: seconds(number(START_TICKS)?),
            virtual_bytes: number(VIRTUAL_BYTES)?,
            resident_pages: number(RESIDENT_PAGES)?,
        })
    }
}

/// Returns the start of the machine as seconds since 1970. `None` if `/proc/stat` does not state
/// it.
fn machine_started_at() -> Option<f64> {
    static STARTED_AT: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED_AT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
        line.trim().parse().ok()
    })
}

/// Returns the metric families of this process and of the program.
pub(crate) fn families() -> Vec<Family> {
    let mut families = vec![Family {
        name: "imt_build_info",
        help: "Version and platform of the program.",
        samples: vec![(
            vec![
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("os", std::env::consts::OS.to_owned()),
                ("arch", std::env::consts::ARCH.to_owned()),
            ],
            Value::Info,
        )],
    }];
    let mut gauge = |name, help, value: f64| families.push(Family::single(name, help, Value::Gauge(value)));
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // Reading the folder opens one more descriptor, which is not counted.
        let open = open.count().saturating_sub(1) as f64;
        gauge("process_open_fds", "Number of open file descriptors.", open);
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.map_or(f64::INFINITY, |limit| limit as f64);
        gauge(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            limit,
        );
    }
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let Some(stat) = Stat::parse(&text, clock_ticks_per_second()) else {
        return families;
    };
    let resident_bytes = stat.resident_pages as f64 * page_size() as f64;
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        resident_bytes,
    );
    gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        stat.virtual_bytes as f64,
    );
    gauge("process_threads", "Number of threads.", stat.threads as f64);
    if let Some(machine) = machine_started_at() {
        let started_at = machine + stat.started_after;
        gauge(
            "process_start_time_seconds",
            "Start of the process in seconds since 1970.",
            started_at,
        );
    }
    families.push(Family::single(
        "process_cpu_seconds_total",
        "User and system processor time in seconds.",
        Value::Counter(stat.cpu_seconds),
    ));
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_whatever_the_name_of_the_program() {
        let line = "4711 (imt) (x y) S 1 4711 4711 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 5000 \
                    123456789 321 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n";
        let expected = Stat {
            cpu_seconds: 4.0,
            threads: 9,
            started_after: 50.0,
            virtual_bytes: 123_456_789,
            resident_pages: 321,
        };
        assert_eq!(Stat::parse(line, 100), Some(expected));
        for broken in ["", "4711 (imt", "4711 (imt) S 1 2 3", "4711 (imt) S a b c"] {
            assert_eq!(Stat::parse(broken, 100), None, "{broken}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_every_figure() {
        let families = families();
        let names: Vec<&str> = families.iter().map(|family| family.name).collect();
        assert_eq!(
            names,
            [
                "imt_build_info",
                "process_open_fds",
                "process_max_fds",
                "process_resident_memory_bytes",
                "process_virtual_memory_bytes",
                "process_threads",
                "process_start_time_seconds",
                "process_cpu_seconds_total",
            ]
        );
        for family in &families[1..] {
            let value = match family.samples[0].1 {
                Value::Gauge(value) | Value::Counter(value) => value,
                _ => f64::NAN,
            };
            assert!(value >= 0.0, "{}: {value}", family.name);
        }
    }
}
