//! `imt engine demo`: runs a PostgreSQL primary and its synchronous standbys on this machine.
//!
//! Invariants:
//! - Nothing outside the demonstration's folder is written.
//! - If there are standbys, an acknowledged commit is on the primary and on at least one of them.
//!   When the primary's process has ended, the standby with the newest log is promoted. This
//!   standby has every acknowledged commit, unless a standby with a newer log has ended too.
//!
//! Deliberately absent: a second start on the same folder, and a restart of a failed primary.

use super::binaries::Binaries;
use super::server::{Server, create_folder, url_of};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::signals::StopSignals;
use imt_oms::EngineUrl;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Maximum time for which a call to a server is repeated, for example after its start.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of polls of the servers' state.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Number of synchronous standbys. Each commit waits for one standby
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5))]
    standbys: u8,
    /// Folder of the servers; it must be empty, and remains at the end [default: a temporary
    /// folder, removed at the end]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Folder with the data of all servers. A temporary folder is removed at the end.
struct Base {
    path: PathBuf,
    is_temporary: bool,
}

impl Drop for Base {
    fn drop(&mut self) {
        if self.is_temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

struct Demo {
    // Fields are dropped in this order. So the servers stop before `base` removes their folder.
    servers: Vec<Server>,
    primary: usize,
    base: Base,
    binaries: Binaries,
    password: String,
}

/// Starts the servers, promotes a standby when the primary ends, and stops all servers at a signal.
pub(super) async fn run(args: DemoArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let mut signals = StopSignals::listen()?;
    let mut demo = Demo::new(&args)?;
    let started = tokio::select! {
        signal = signals.next() => Err(CliError::Interrupted(format!("{signal} during the start"))),
        started = demo.start() => started,
    };
    started?;
    demo.print(output)?;
    loop {
        tokio::select! {
            _ = signals.next() => break,
            () = tokio::time::sleep(LOOK_EVERY) => demo.look().await?,
        }
    }
    signals.exit_on_next();
    tracing::info!("stopping the servers");
    Ok(ExitCode::SUCCESS)
}

fn base_of(args: &DemoArgs) -> Result<Base, CliError> {
    let Some(data) = &args.data else {
        let name = format!("imt-engine-{}-{}", std::process::id(), random_text());
        return Ok(Base {
            path: std::env::temp_dir().join(name),
            is_temporary: true,
        });
    };
    let is_used = std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        return Err(CliError::failed(format!(
            "{} is not empty; choose another --data",
            data.display()
        )));
    }
    let path = std::path::absolute(data)
        .map_err(|error| CliError::because(format!("cannot use {}", data.display()), error))?;
    Ok(Base {
        path,
        is_temporary: false,
    })
}

fn random_text() -> String {
    use std::hash::{BuildHasher, RandomState};
    // The keys of a `RandomState` come from the system's source of randomness, so the hash is
    // random.
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}

impl Demo {
    fn new(args: &DemoArgs) -> Result<Self, CliError> {
        let binaries = Binaries::find()?;
        let base = base_of(args)?;
        create_folder(&binaries, &base.path)?;
        check_reach(&binaries, &base.path)?;
        let password = random_text();
        let names = (0..=args.standbys).map(|at| match at {
            0 => "primary".to_owned(),
            at => format!("standby{at}"),
        });
        let servers = names.map(|name| Server::new(&base.path, &name, &password));
        Ok(Self {
            servers: servers.collect::<Result<_, _>>()?,
            primary: 0,
            base,
            binaries,
            password,
        })
    }

    async fn start(&mut self) -> Result<(), CliError> {
        let standbys: Vec<String> = self
            .servers
            .iter()
            .skip(1)
            .map(|server| server.name.clone())
            .collect();
        let Some((primary, others)) = self.servers.split_first_mut() else {
            return Ok(());
        };
        tracing::info!(folder = %self.base.path.display(), "creating the primary");
        primary.create(&self.binaries)?;
        if !standbys.is_empty() {
            // Each standby is a copy of the primary with this setting, so that its commits wait for
            // another standby as soon as it is promoted. If the setting were added at the
            // promotion, it would take effect only some time after its reload.
            primary.append_settings(&synchronous(&standbys))?;
        }
        primary.start(&self.binaries)?;
        let url = primary.url()?;
        wait_for(primary, || imt_oms::standby_position(&url)).await?;
        for standby in others {
            tracing::info!("creating {}", standby.name);
            standby.copy(&self.binaries, primary)?;
            standby.start(&self.binaries)?;
            let url = standby.url()?;
            wait_for(standby, || imt_oms::standby_position(&url)).await?;
        }
        let engine = self.url()?;
        let primary = self.servers.first_mut();
        if let Some(primary) = primary {
            wait_for(primary, || imt_oms::init_engine(&engine)).await?;
        }
        Ok(())
    }

    fn url(&self) -> Result<EngineUrl, CliError> {
        self.url_text()
            .parse()
            .map_err(|error| CliError::because("the URL of the servers is not valid", error))
    }

    fn url_text(&self) -> String {
        let servers: Vec<&Server> = self.servers.iter().collect();
        url_of(&servers, &self.password)
    }

    fn print(&mut self, output: OutputFormat) -> Result<(), CliError> {
        let url = self.url_text();
        let mut rows = Vec::new();
        for server in &mut self.servers {
            let process = server.process();
            rows.push((server.name.clone(), server.port, process));
        }
        if output == OutputFormat::Json {
            let servers: Vec<_> = rows
                .iter()
                .map(|(name, port, process)| json!({ "name": name, "port": port, "process": process }))
                .collect();
            return output::print_json(&json!({ "url": url, "servers": servers }));
        }
        let mut text = String::new();
        for (name, port, process) in rows {
            let process = process.map_or_else(|| "ended".to_owned(), |process| format!("process {process}"));
            text.push_str(&format!("{name:<9} 127.0.0.1:{port:<5}  {process}\n"));
        }
        let remains = if self.base.is_temporary {
            ", and removes their data"
        } else {
            ""
        };
        text.push_str(&format!(
            "\nThe engine is ready: {url}\n\nIn other terminals:\n  export IMT_ENGINE='{url}'\n  imt node start --name alpha --data alpha\n  imt node start --name beta --data beta\n\nCtrl-C stops the servers{remains}."
        ));
        output::print_text(&text)
    }

    /// Logs which servers have ended since the last call. If the primary has ended, promotes a
    /// standby.
    async fn look(&mut self) -> Result<(), CliError> {
        for at in 0..self.servers.len() {
            let Some(server) = self.servers.get_mut(at) else {
                continue;
            };
            if !server.has_ended() {
                continue;
            }
            tracing::warn!(server = server.name, log = server.last_words(), "server ended");
            if at == self.primary {
                self.promote().await?;
            }
        }
        Ok(())
    }

    /// Returns the position of the log's end, and the index of the running standby with the newest
    /// log. Fails if no standby runs.
    async fn newest_standby(&mut self) -> Result<(u64, usize), CliError> {
        let mut newest: Option<(u64, usize)> = None;
        for (at, server) in self.servers.iter_mut().enumerate() {
            if server.process().is_none() {
                continue;
            }
            let url = server.url()?;
            let position = wait_unless_ended(server, || imt_oms::standby_position(&url)).await?;
            let Some(position) = position else {
                continue;
            };
            if newest.is_none_or(|(known, _)| position > known) {
                newest = Some((position, at));
            }
        }
        newest.ok_or_else(|| {
            CliError::failed("the primary ended, and no standby runs; start the demonstration again")
        })
    }

    async fn promote(&mut self) -> Result<(), CliError> {
        let began = Instant::now();
        let (position, next, name) = loop {
            let (position, next) = self.newest_standby().await?;
            self.primary = next;
            let Some(primary) = self.servers.get_mut(next) else {
                return Ok(());
            };
            let url = primary.url()?;
            let promoted = wait_unless_ended(primary, || imt_oms::promote_standby(&url)).await?;
            // If this standby has ended, too, the next round chooses another one.
            if promoted.is_some() {
                break (position, next, primary.name.clone());
            }
        };
        for at in 0..self.servers.len() {
            let [server, primary] = match self.servers.get_disjoint_mut([at, next]) {
                Ok(both) => both,
                // The indexes are equal: the server at `at` is the new primary, which follows no
                // server.
                Err(_) => continue,
            };
            if server.process().is_some() {
                server.follow(primary)?;
                let url = server.url()?;
                wait_unless_ended(server, || imt_oms::reload_standby(&url)).await?;
            }
        }
        tracing::info!(
            server = name,
            position,
            took_ms = began.elapsed().as_millis() as u64,
            "standby promoted"
        );
        Ok(())
    }
}

fn synchronous(standbys: &[String]) -> String {
    format!("synchronous_standby_names = 'ANY 1 ({})'\n", standbys.join(", "))
}

/// Checks if the user of the servers can reach the folder, if this is not the user of this process.
/// Fails if a folder above it is not open to every user, or if no program can be started there.
fn check_reach(binaries: &Binaries, path: &Path) -> Result<(), CliError> {
    let Some(user) = binaries.user() else {
        return Ok(());
    };
    let reached = binaries
        .command("postgres", false)
        .arg("--version")
        .current_dir(path)
        .output();
    let is_open = path.ancestors().skip(1).all(|folder| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(folder).is_ok_and(|about| about.permissions().mode() & 0o001 != 0)
    });
    if reached.is_ok() && is_open {
        return Ok(());
    }
    Err(CliError::failed(format!(
        "the user {user}, which runs PostgreSQL here, cannot enter {}; choose another --data, such as one below /tmp",
        path.display()
    )))
}

/// Repeats a call until it succeeds. Fails if the server has ended, or after [`ANSWER_TIMEOUT`].
async fn wait_for<T, F>(server: &mut Server, question: impl Fn() -> F) -> Result<T, CliError>
where
    F: Future<Output = Result<T, imt_oms::NodeError>>,
{
    let until = Instant::now() + ANSWER_TIMEOUT;
    loop {
        let error = match question().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if server.process().is_none() {
            return Err(CliError::failed(format!(
                "{} ended: {}",
                server.name,
                server.last_words()
            )));
        }
        if Instant::now() >= until {
            return Err(CliError::because(
                format!("{} does not answer", server.name),
                error,
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Repeats a call as `wait_for` does, but returns `None` if the server has ended. `Demo::look` logs
/// the end of that server.
async fn wait_unless_ended<T, F>(server: &mut Server, question: impl Fn() -> F) -> Result<Option<T>, CliError>
where
    F: Future<Output = Result<T, imt_oms::NodeError>>,
{
    match wait_for(server, question).await {
        Ok(answer) => Ok(Some(answer)),
        Err(_) if server.process().is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_standby_that_has_ended_is_left_out_of_a_promotion() {
        let folder = tempfile::tempdir().unwrap();
        // A server without a process is like one that has ended.
        let mut server = Server::new(folder.path(), "standby1", "password").unwrap();
        let question = || async { Err::<u64, _>(imt_oms::NodeError::Drain { requests: 1 }) };
        assert!(wait_for(&mut server, question).await.is_err());
        assert!(wait_unless_ended(&mut server, question).await.unwrap().is_none());
    }
}
