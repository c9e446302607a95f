//! A node as a process of the program `imt`. If the node has a cpu group (module `group`), its
//! process joins the group before it starts any further thread.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use imt_benches::Outcome;

use crate::group::Group;
use crate::processor;
use crate::trio::signal;

/// A shell script that writes its process id to the files of its cpu group, and then executes the
/// node in the same process.
const ENTER: &str = r#"for group in $BENCH_GROUPS; do echo $$ > "$group"; done; exec "$@""#;

/// Period of the cpu groups in microseconds. A node that has used up its share pauses until the end
/// of the period.
const PERIOD_US: u64 = 20_000;

/// Settings of a node.
pub(crate) struct Setup {
    pub(crate) imt: PathBuf,
    /// Without an engine, the data folder that all nodes share. With an engine, a folder with a
    /// subfolder for the local cache of each node.
    pub(crate) dir: PathBuf,
    /// PostgreSQL URL of the engine. `None` if the nodes share the data folder `dir`.
    pub(crate) engine: Option<String>,
    pub(crate) warehouse: String,
    pub(crate) weight: u32,
    /// Share of one processor for the node. `None` is unlimited. If the cpu group cannot be
    /// created, the node is also unlimited.
    pub(crate) share: Option<f64>,
}

pub(crate) struct Node {
    child: Child,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    group: Option<Group>,
}

impl Node {
    /// Starts the node `n{number}`, and waits until it prints its address.
    pub(crate) fn start(setup: &Setup, number: usize) -> Outcome<Node> {
        let name = format!("n{number}");
        let group = match setup.share.map(|share| Group::create(number, share, PERIOD_US)) {
            Some(Ok(group)) => Some(group),
            Some(Err(reason)) => {
                eprintln!("{name} has no cpu group of its own: {reason}");
                None
            }
            None => None,
        };
        let entrances: Vec<String> = group
            .iter()
            .flat_map(Group::entrances)
            .map(|entrance| entrance.display().to_string())
            .collect();
        let data = match setup.engine {
            Some(_) => setup.dir.join(&name),
            None => setup.dir.clone(),
        };
        let log = setup.dir.join(format!("{name}.log"));
        let mut command = Command::new("sh");
        command
            .args(["-c", ENTER, "sh"])
            .arg(&setup.imt)
            .args(["node", "start", "--name", &name, "--listen", "127.0.0.1:0"])
            .args(["--warehouse", &setup.warehouse])
            .args(["--weight", &setup.weight.to_string()])
            .arg("--data")
            .arg(data)
            .env("BENCH_GROUPS", entrances.join(" "))
            .env_remove("IMT_ENGINE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(engine) = &setup.engine {
            command.env("IMT_ENGINE", engine);
        }
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no standard error")?).lines();
        let mut seen = Vec::new();
        let address = loop {
            let Some(line) = lines.next().transpose()? else {
                return Err(format!("{name} did not start: {}", seen.join(" / ")).into());
            };
            match line.split_once("serves http://") {
                Some((_, address)) => break address.trim().parse()?,
                None => seen.push(line),
            }
        };
        let mut log = File::options().append(true).create(true).open(log)?;
        std::thread::spawn(move || {
            for line in seen.into_iter().chain(lines.map_while(Result::ok)) {
                // If the log file cannot be written, the node's output is still read to its end, so
                // that the node never blocks on a full pipe.
                let _ = writeln!(log, "{line}");
            }
        });
        Ok(Node {
            child,
            name,
            address,
            group,
        })
    }

    /// Returns the processor time that the node has used, in seconds, or 0 if it cannot be read.
    pub(crate) fn processor_seconds(&self) -> f64 {
        match &self.group {
            Some(group) => group.processor_seconds().unwrap_or(0.0),
            None => processor::seconds(&[self.child.id()]).unwrap_or(0.0),
        }
    }

    pub(crate) fn signal(&self, name: &str) -> Outcome<()> {
        signal(self.child.id(), name)
    }

    /// Kills the node with `kill -9`.
    pub(crate) fn kill(mut self) -> Outcome<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops the node gracefully, with SIGTERM.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        self.signal("TERM")?;
        let status = self.child.wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("{} ended with {status}", self.name).into()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Deletes the content of a folder. Creates the folder if it does not exist. Returns its path.
pub(crate) fn emptied(path: &Path) -> Outcome<PathBuf> {
    if path.exists() {
        std::fs::remove_dir_all(path)?;
    }
    std::fs::create_dir_all(path)?;
    Ok(path.to_owned())
}
