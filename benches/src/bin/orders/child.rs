//! A measured server as a child process: start, resource usage, stop.
//!
//! Every server runs in its own process. So its processor time and memory do not include those of
//! the load generator.
//!
//! **Invariant**: no server outlives the run. A `Server` that is dropped kills its process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imt_benches::Outcome;

/// Clock ticks per second of the processor times that Linux reports.
const TICKS_PER_SECOND: f64 = 100.0;

/// A server in its own process.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Time from the start of the process until it printed its address.
    pub(crate) started_in: Duration,
}

impl Server {
    /// Starts this program again as a child that runs the server `role`, and waits until the child
    /// prints its address.
    pub(crate) fn start(role: &[&str]) -> Outcome<Server> {
        let begun = Instant::now();
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .args(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("the server has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line
            .trim()
            .parse()
            .map_err(|_| format!("the server {role:?} did not start"))?;
        Ok(Server {
            child,
            address,
            started_in: begun.elapsed(),
        })
    }

    /// Returns the processor time of the server in seconds, or 0 if it cannot be read.
    pub(crate) fn processor_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The program's name in parentheses may contain spaces. After the name, user time is the
        // 12th field and system time the 13th.
        let ticks: f64 = stat
            .rsplit(") ")
            .next()
            .into_iter()
            .flat_map(|rest| rest.split(' ').skip(11).take(2))
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum();
        ticks / TICKS_PER_SECOND
    }

    /// Returns the anonymous memory of the server in bytes, without mapped files. Returns 0 if it
    /// cannot be read.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix("RssAnon:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0)
            * 1_024
    }

    /// Stops the server gracefully.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("a server ended with {status}").into())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A running server must not outlive the run. After a stop, these calls have no effect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
