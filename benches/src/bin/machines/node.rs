//! A node as a process of the program `imt`, in its cpu group from its first thread on.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use imt_benches::Outcome;

use crate::group::Group;
use crate::processor;
use crate::trio::signal;

/// Enters the groups, then becomes the node.
const ENTER: &str = r#"for group in $BENCH_GROUPS; do echo $$ > "$group"; done; exec "$@""#;

/// Period of the cpu groups in microseconds.
const PERIOD_US: u64 = 20_000;

/// Settings of a node.
pub(crate) struct Setup {
    pub(crate) imt: PathBuf,
    /// Folder of the data of all nodes, or of the caches of each.
    pub(crate) dir: PathBuf,
    /// The engine. Without one, the nodes share the folder.
    pub(crate) engine: Option<String>,
    pub(crate) warehouse: String,
    pub(crate) weight: u32,
    /// Share of one processor. `None` is unlimited.
    pub(crate) share: Option<f64>,
}

pub(crate) struct Node {
    child: Child,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    group: Option<Group>,
}

impl Node {
    /// Starts a node, and waits for its address.
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
                // The log is read to its end even on a full disk, so that the node never waits.
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

    /// Returns the processor seconds that it has used.
    pub(crate) fn processor_seconds(&self) -> f64 {
        match &self.group {
            Some(group) => group.processor_seconds(),
            None => processor::seconds(&[self.child.id()]).unwrap_or(0.0),
        }
    }

    pub(crate) fn signal(&self, name: &str) -> Outcome<()> {
        signal(self.child.id(), name)
    }

    /// Kills it with `kill -9`.
    pub(crate) fn kill(mut self) -> Outcome<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it gracefully.
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

/// Empties a folder.
pub(crate) fn emptied(path: &Path) -> Outcome<PathBuf> {
    if path.exists() {
        std::fs::remove_dir_all(path)?;
    }
    std::fs::create_dir_all(path)?;
    Ok(path.to_owned())
}
