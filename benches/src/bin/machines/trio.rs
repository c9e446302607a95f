//! A PostgreSQL primary with two synchronous standbys, started by `imt engine demo`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use imt_benches::Outcome;
use serde::Deserialize;

use crate::processor;

/// Maximum wait for each line of [`Trio::log`], while the promotion of a standby is awaited.
const PROMOTED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Described {
    url: String,
    servers: Vec<Server>,
}

#[derive(Deserialize)]
struct Server {
    name: String,
    process: u32,
}

/// The three running servers. They are stopped when this value is dropped.
pub(crate) struct Trio {
    child: Child,
    pub(crate) url: String,
    servers: Vec<Server>,
    /// Lines that `imt engine demo` printed to its standard error, each with the time at which it
    /// was read.
    log: Receiver<(Instant, String)>,
}

impl Trio {
    pub(crate) fn start(imt: &Path) -> Outcome<Trio> {
        let mut child = Command::new(imt)
            .args(["engine", "demo", "--output", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stderr.take().ok_or("no standard error")?).lines();
        let (send, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Sending fails without a receiver. The pipe is still read to its end, so that the
                // child never blocks on a full pipe.
                let _ = send.send((Instant::now(), line));
            }
        });
        let mut output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut text = String::new();
        let described = loop {
            let read = output.read_line(&mut text)?;
            if let Ok(described) = serde_json::from_str::<Described>(&text) {
                break described;
            }
            if read == 0 {
                let lines: Vec<String> = log.try_iter().map(|(_, line)| line).collect();
                return Err(format!("the engine did not start: {}", lines.join(" / ")).into());
            }
        };
        Ok(Trio {
            child,
            url: described.url,
            servers: described.servers,
            log,
        })
    }

    fn process(&self, name: &str) -> Outcome<u32> {
        let found = self.servers.iter().find(|server| server.name == name);
        Ok(found.ok_or("no such server")?.process)
    }

    /// Kills the primary with `kill -9` and waits for the promotion of a standby. Returns the time
    /// of the kill and the time at which the log line about the promotion was read.
    pub(crate) fn kill_primary(&self) -> Outcome<(Instant, Instant)> {
        let killed = Instant::now();
        signal(self.process("primary")?, "KILL")?;
        loop {
            let (at, line) = self.log.recv_timeout(PROMOTED_WITHIN)?;
            if line.contains("standby promoted") {
                return Ok((killed, at));
            }
        }
    }

    /// Returns the processor time of the servers with these names in seconds. The time includes
    /// their sessions, which are child processes. After a fail-over, "primary" is still the name of
    /// the process that was the first primary.
    pub(crate) fn processor_seconds(&self, names: &[&str]) -> Outcome<f64> {
        let processes: Outcome<Vec<u32>> = names.iter().map(|name| self.process(name)).collect();
        Ok(processor::seconds(&processes?)?)
    }

    /// Runs an SQL statement on the primary. Returns each row of the result as a line, with `|`
    /// between the values.
    pub(crate) fn ask(&self, sql: &str) -> Outcome<String> {
        let url = format!("{}?target_session_attrs=read-write&connect_timeout=5", self.url);
        let asked = Command::new("psql").args([&url, "-XAtc", sql]).output()?;
        if !asked.status.success() {
            return Err(String::from_utf8_lossy(&asked.stderr).into_owned().into());
        }
        Ok(String::from_utf8_lossy(&asked.stdout).trim().to_owned())
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        let _ = signal(self.child.id(), "TERM");
        let _ = self.child.wait();
        // `Trio::start` has taken the standard output and closed it, so nothing remains to be read
        // here.
        if let Some(mut output) = self.child.stdout.take() {
            let _ = output.read_to_string(&mut String::new());
        }
    }
}

/// Sends a signal, such as `KILL`, to a process.
pub(crate) fn signal(process: u32, name: &str) -> Outcome<()> {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status()?;
    match sent.success() {
        true => Ok(()),
        false => Err(format!("process {process} has ended").into()),
    }
}
