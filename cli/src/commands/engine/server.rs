//! One PostgreSQL server of `imt engine demo`: its folder, its settings and its process.
//!
//! Invariants:
//! - A server listens on a loopback port and not on a socket file. Linux limits the path of a
//!   socket file to 107 bytes, and the path of the server's folder may be longer.
//! - If `setpriv` is installed, a server ends whenever this process ends, even by a kill.

use super::binaries::Binaries;
use crate::error::CliError;
use imt_oms::EngineUrl;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Role that connects to the servers of the demonstration. It is their superuser.
const ROLE: &str = "imt";
/// Name of the database that the demonstration uses. Each PostgreSQL server has a database of this
/// name.
const DATABASE: &str = "postgres";
/// Maximum time for a server to stop after SIGINT. Then its process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of polls while waiting for the end of a process.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A server of the demonstration, running or not.
pub(super) struct Server {
    pub(super) name: String,
    pub(super) port: u16,
    folder: PathBuf,
    password: String,
    /// Keeps the port from other processes until the server starts.
    reserved: Option<TcpListener>,
    child: Option<Child>,
}

fn failed<E>(action: &'static str, path: &Path) -> impl FnOnce(E) -> CliError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let path = path.display().to_string();
    move |error| CliError::because(format!("cannot {action} {path}"), error)
}

/// Creates a folder, readable by its owner alone, and makes the user who runs the servers its
/// owner. A folder that exists keeps its permissions.
pub(super) fn create_folder(binaries: &Binaries, path: &Path) -> Result<(), CliError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))?;
    binaries.give(path).map_err(failed("give away", path))
}

/// Runs a program, waits for its end, and fails if the program fails.
fn run(mut command: Command) -> Result<(), CliError> {
    let program = format!("{:?}", command.get_program());
    let done = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| CliError::because(format!("cannot run {program}"), error))?;
    if done.status.success() {
        return Ok(());
    }
    Err(CliError::failed(format!(
        "{program} failed: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    )))
}

impl Server {
    /// Returns a server with a free port. Its data is created later, by `create` or `copy`.
    pub(super) fn new(base: &Path, name: &str, password: &str) -> Result<Self, CliError> {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (port, reserved) = bound.map_err(|error| CliError::because("no port is free", error))?;
        Ok(Self {
            folder: base.join(name),
            name: name.to_owned(),
            port,
            password: password.to_owned(),
            reserved: Some(reserved),
            child: None,
        })
    }

    /// Returns an engine URL that names only this server.
    pub(super) fn url(&self) -> Result<EngineUrl, CliError> {
        url_of(&[self], &self.password)
            .parse()
            .map_err(|error| CliError::because("the URL of a server is not valid", error))
    }

    /// Creates the data folder of a primary with `initdb`.
    pub(super) fn create(&self, binaries: &Binaries) -> Result<(), CliError> {
        let passwords = self.folder.with_extension("password");
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&passwords)
            .map_err(failed("create", &passwords))?;
        writeln!(file, "{}", self.password).map_err(failed("write", &passwords))?;
        binaries
            .give(&passwords)
            .map_err(failed("give away", &passwords))?;
        let mut initdb = binaries.command("initdb", false);
        initdb
            .args([
                "--username",
                ROLE,
                "--auth",
                "scram-sha-256",
                "--encoding",
                "UTF8",
            ])
            .args(["--locale", "C", "--pwfile"])
            .arg(&passwords)
            .arg("--pgdata")
            .arg(&self.folder);
        run(initdb)?;
        std::fs::remove_file(&passwords).map_err(failed("remove", &passwords))?;
        self.append_settings(&format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 300\n\
             max_wal_senders = 20\nwal_keep_size = '1GB'\nport = {}\n",
            self.port
        ))
    }

    /// Creates the data folder of a standby as a copy of a running primary.
    pub(super) fn copy(&self, binaries: &Binaries, primary: &Server) -> Result<(), CliError> {
        let mut backup = binaries.command("pg_basebackup", false);
        backup
            .args(["--host", "127.0.0.1", "--port", &primary.port.to_string()])
            .args(["--username", ROLE, "--no-password", "--checkpoint", "fast"])
            .arg("--pgdata")
            .arg(&self.folder)
            .env("PGPASSWORD", &self.password);
        run(backup)?;
        self.append_settings(&format!("port = {}\n", self.port))?;
        self.follow(primary)?;
        let signal = self.folder.join("standby.signal");
        std::fs::write(&signal, "").map_err(failed("write", &signal))?;
        binaries.give(&signal).map_err(failed("give away", &signal))
    }

    /// Makes the server a standby of `primary`. The setting takes effect when the server starts or
    /// reads its settings again.
    pub(super) fn follow(&self, primary: &Server) -> Result<(), CliError> {
        self.append_settings(&format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user={ROLE} password={} application_name={}'\n",
            primary.port, self.password, self.name
        ))
    }

    /// Appends lines to the server's settings. If a name occurs twice, PostgreSQL uses the last
    /// line.
    pub(super) fn append_settings(&self, lines: &str) -> Result<(), CliError> {
        let path = self.folder.join("postgresql.conf");
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .map_err(failed("write", &path))
    }

    /// Starts the server's process. Its log is written to a file beside its data folder.
    pub(super) fn start(&mut self, binaries: &Binaries) -> Result<(), CliError> {
        let path = self.folder.with_extension("log");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed("create", &path))?;
        let errors = log.try_clone().map_err(failed("open", &path))?;
        let mut postgres = binaries.command("postgres", true);
        postgres
            .arg("-D")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // A process group of its own keeps Ctrl-C away from the server. This process stops the
            // servers in order.
            .process_group(0);
        self.reserved = None;
        let child = postgres
            .spawn()
            .map_err(|error| CliError::because(format!("cannot start {}", self.name), error))?;
        self.child = Some(child);
        Ok(())
    }

    /// Returns the id of the server's process, or `None` if the server does not run.
    pub(super) fn process(&mut self) -> Option<u32> {
        // An ended process stays in `child`, so that `has_ended` can report its end later.
        let child = self.child.as_mut()?;
        let is_running = matches!(child.try_wait(), Ok(None));
        is_running.then(|| child.id())
    }

    /// Returns `true` at the first call after the server has ended without `stop`, and `false` at
    /// later calls. Calls of `process` do not change that.
    pub(super) fn has_ended(&mut self) -> bool {
        let has_ended = self.child.is_some() && self.process().is_none();
        if has_ended {
            self.child = None;
        }
        has_ended
    }

    /// Returns the last three lines of the server's log, in one line.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Stops the server. Kills its process after [`STOP_TIMEOUT`].
    pub(super) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // No signal is sent if the process has ended, because its id may belong to another process
        // by now.
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        if let Some(process) = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            // PostgreSQL answers SIGINT by a fast shutdown, which ends all sessions.
            let _ = rustix::process::kill_process(process, rustix::process::Signal::INT);
        }
        let until = Instant::now() + STOP_TIMEOUT;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the URL of an engine that consists of these servers.
pub(super) fn url_of(servers: &[&Server], password: &str) -> String {
    let hosts: Vec<String> = servers
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port))
        .collect();
    format!("postgres://{ROLE}:{password}@{}/{DATABASE}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_server_is_reported_once_even_if_its_process_was_asked_for_before() {
        let mut server = Server::new(Path::new("/nowhere"), "primary", "secret").unwrap();
        assert!(!server.has_ended(), "it has not started");
        server.child = Some(Command::new("sleep").arg("60").spawn().unwrap());
        assert!(server.process().is_some() && !server.has_ended());
        if let Some(child) = &mut server.child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(server.process(), None);
        assert!(server.has_ended());
        assert!(!server.has_ended());
    }
}
