//! A node in a child process. The child joins its cpu group (module `group`) before it starts any
//! other thread.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use imt_benches::Outcome;
use imt_oms::NodeConfig;

use crate::group::Group;

/// A node's settings, as arguments of the child.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    #[arg(long)]
    name: String,
    #[arg(long)]
    data: PathBuf,
    /// Borrow no units of stores with many orders in advance.
    #[arg(long)]
    no_allotments: bool,
    /// Files of the cpu group, to which the child writes its process id.
    #[arg(long, value_delimiter = ',')]
    groups: Vec<PathBuf>,
}

/// Runs a node until the standard input is closed.
pub(crate) fn serve(serve: &Serve) -> Outcome<()> {
    for entrance in &serve.groups {
        std::fs::write(entrance, std::process::id().to_string())?;
    }
    let mut config = NodeConfig::new(&serve.name, &serve.data);
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    // No process listens at this address, because the benchmark has no warehouse.
    config.warehouse = Some("http://127.0.0.1:1".to_owned());
    config.stat_scan_every = std::time::Duration::ZERO;
    config.allotments = !serve.no_allotments;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let node = imt_oms::Node::start(config).await?;
        println!("{}", node.address());
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        ended.await??;
        node.stop().await?;
        Ok(())
    })
}

/// A node in a child process.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: SocketAddr,
    group: Option<Group>,
}

impl Node {
    /// Starts a node, and waits until it prints its address.
    pub(crate) fn start(number: usize, data: &Path, allotments: bool, group: Option<Group>) -> Outcome<Node> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", "--name", &format!("n{number}"), "--data"])
            .arg(data);
        if !allotments {
            command.arg("--no-allotments");
        }
        for entrance in group.iter().flat_map(Group::entrances) {
            command.arg("--groups").arg(entrance);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("a node has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line
            .trim()
            .parse()
            .map_err(|_| format!("node {number} did not start"))?;
        Ok(Node {
            child,
            address,
            group,
        })
    }

    /// Returns the processor time that the node has used, in seconds. `None` without a cpu group,
    /// or if the time cannot be read.
    pub(crate) fn processor_seconds(&self) -> Option<f64> {
        self.group.as_ref().and_then(Group::processor_seconds)
    }

    /// Stops the node gracefully.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("a node ended with {status}").into())
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Kills a child that was not stopped, because it must not outlive the run. After a stop the
        // kill has no effect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
