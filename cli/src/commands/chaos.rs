//! `imt sim chaos`: nodes come, go and are killed while a shop runs; the audit says whether anybody
//! lost anything.
//!
//! The nodes that suffer are processes of their own. The first of them is started first, so that it
//! coordinates; this process joins after it with a node that stays, through which the shop orders,
//! so that every failed request is one that the cluster failed, not one that died with its
//! connection. What happens to whom follows from the seed. After each death the time is taken until
//! every volume answers again.

use super::node;
use super::sim::{self, LoadArgs};
use crate::error::CliError;
use crate::http;
use crate::output::OutputFormat;
use crate::signals::StopSignals;
use imt_oms::{Node, NodeConfig};
use imt_sim::WarehouseConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The node of this process.
const ENTRY: &str = "chaos-entry";
/// How long a volume may take to answer again before it counts as lost.
const BACK_MAX: Duration = Duration::from_secs(30);
/// Between two questions whether every volume answers.
const PROBE_EVERY: Duration = Duration::from_millis(5);

#[derive(clap::Args)]
pub(crate) struct ChaosArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// The data folder, made if it is not there.
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
    /// Nodes that suffer, beside the one that the shop orders through.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: u32,
    /// Time from one event to the next.
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = humantime::parse_duration)]
    every: Duration,
    /// What happens to the nodes.
    #[arg(long, value_enum, default_value_t = Harm::All)]
    harm: Harm,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Harm {
    /// They are killed, stopped, and leave for good, in turns by chance.
    All,
    /// They are killed (kill -9) and started again.
    Kill,
    /// They stop gracefully and are started again, or leave for good and join anew.
    Graceful,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Kill,
    Stop,
    Leave,
}

/// A node in a process of its own.
struct Sufferer {
    name: String,
    process: Option<Child>,
}

impl Drop for Sufferer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Splitmix64: what happens to whom must be the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }
}

/// What was done, and how long it took until all was well again.
#[derive(Default)]
struct Tally {
    kills: u32,
    stops: u32,
    leaves: u32,
    back_ms: Vec<f64>,
}

struct Chaos {
    data: PathBuf,
    warehouse: SocketAddr,
    entry: String,
    sufferers: Vec<Sufferer>,
    chance: Chance,
    harm: Harm,
    tally: Tally,
}

/// Runs the shop among nodes that suffer.
pub(super) async fn run(args: ChaosArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let signals = StopSignals::listen()?;
    let warehouse_listen = sim::chosen_port(0)?;
    let mut sufferers: Vec<Sufferer> = Vec::new();
    for number in 1..=args.nodes {
        let name = format!("chaos-{number}");
        let process = spawn(&args.data, &name, warehouse_listen)?;
        sufferers.push(Sufferer {
            name: name.clone(),
            process: Some(process),
        });
        if number == 1 {
            wait_until_running(&args.data, &name).await?;
        }
    }
    let config = NodeConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        warehouse: format!("http://{warehouse_listen}"),
        ..NodeConfig::new(ENTRY, &args.data)
    };
    let entry = Node::start(config)
        .await
        .map_err(|error| CliError::because("cannot start the node that the shop orders through", error))?;
    let warehouse = sim::start_warehouse(WarehouseConfig {
        listen: warehouse_listen,
        oms: entry.address().into(),
        data: args.data.clone(),
        seed: args.load.seed,
        ..WarehouseConfig::default()
    })
    .await?;
    let chaos = Chaos {
        data: args.data.clone(),
        warehouse: warehouse_listen,
        entry: format!("http://{}", entry.address()),
        sufferers,
        chance: Chance(args.load.seed),
        harm: args.harm,
        tally: Tally::default(),
    };
    let (over, is_over) = watch::channel(false);
    let until = Instant::now() + args.load.duration();
    let suffering = tokio::spawn(chaos.rage(args.every, until, is_over));
    let front = args
        .load
        .front_config(entry.address().into(), warehouse.address().into(), args.data);
    let outcome = sim::run_front(front, signals, output, entry.overview()).await;
    over.send_replace(true);
    let suffered = suffering
        .await
        .map_err(|error| CliError::because("the events ended early", error))?;
    warehouse.stop().await;
    let mut chaos = suffered?;
    chaos.sufferers.clear();
    let stopped = entry.stop().await;
    chaos.tally.show();
    let code = outcome?;
    stopped.map_err(|error| CliError::because("the node did not stop cleanly", error))?;
    Ok(code)
}

fn spawn(data: &Path, name: &str, warehouse: SocketAddr) -> Result<Child, CliError> {
    let program =
        std::env::current_exe().map_err(|error| CliError::because("cannot find this program", error))?;
    Command::new(program)
        .args([
            "--log-level",
            "warn",
            "node",
            "start",
            "--listen",
            "127.0.0.1:0",
            "--name",
            name,
        ])
        .arg("--data")
        .arg(data)
        .args(["--warehouse", &format!("http://{warehouse}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| CliError::because(format!("cannot start node '{name}'"), error))
}

async fn wait_until_running(data: &Path, name: &str) -> Result<(), CliError> {
    let until = Instant::now() + BACK_MAX;
    while node::running(data, name).is_err() {
        if Instant::now() > until {
            return Err(CliError::failed(format!("node '{name}' did not start")));
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
    Ok(())
}

impl Chaos {
    /// Lets something happen again and again; ends with every node there.
    async fn rage(
        mut self,
        every: Duration,
        until: Instant,
        mut is_over: watch::Receiver<bool>,
    ) -> Result<Chaos, CliError> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                _ = is_over.wait_for(|over| *over) => return Ok(self),
            }
            if Instant::now() + every > until {
                // The rest of the time is for what is in flight; the nodes stay until the audit is
                // over.
                let _ = is_over.wait_for(|over| *over).await;
                return Ok(self);
            }
            self.one_event().await?;
        }
    }

    async fn one_event(&mut self) -> Result<(), CliError> {
        let at = self.chance.below(self.sufferers.len());
        let kinds: &[Event] = match self.harm {
            Harm::All => &[Event::Kill, Event::Kill, Event::Stop, Event::Leave],
            Harm::Kill => &[Event::Kill],
            Harm::Graceful => &[Event::Stop, Event::Leave],
        };
        let event = kinds[self.chance.below(kinds.len())];
        let name = self.sufferers[at].name.clone();
        let Some(mut process) = self.sufferers[at].process.take() else {
            return Ok(());
        };
        tracing::info!("{event:?} {name}");
        let begun = Instant::now();
        match event {
            Event::Kill => {
                self.tally.kills += 1;
                let _ = process.kill();
            }
            Event::Stop => {
                self.tally.stops += 1;
                let card = node::running(&self.data, &name)?;
                node::ask(&self.data, &card, "/peer/stop").await?;
            }
            Event::Leave => {
                self.tally.leaves += 1;
                node::tell_to_leave(&self.data, &name).await?;
            }
        }
        let ended = tokio::task::spawn_blocking(move || process.wait()).await;
        drop(ended);
        self.all_answer(&name).await?;
        if event == Event::Kill {
            self.tally.back_ms.push(begun.elapsed().as_secs_f64() * 1_000.0);
        }
        self.sufferers[at].process = Some(spawn(&self.data, &name, self.warehouse)?);
        wait_until_running(&self.data, &name).await
    }

    /// Waits until a list that needs every volume is answered.
    async fn all_answer(&self, after: &str) -> Result<(), CliError> {
        let until = Instant::now() + BACK_MAX;
        loop {
            match http::get(&self.entry, "/reservations?limit=1").await {
                Ok((status, _)) if status.is_success() => return Ok(()),
                _ if Instant::now() > until => {
                    return Err(CliError::failed(format!(
                        "not every volume answers {BACK_MAX:?} after {after} went away"
                    )));
                }
                _ => tokio::time::sleep(PROBE_EVERY).await,
            }
        }
    }
}

impl Tally {
    fn show(&self) {
        let mut back_ms = self.back_ms.clone();
        back_ms.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = back_ms.len().saturating_sub(1);
            back_ms
                .get((last as f64 * share) as usize)
                .copied()
                .unwrap_or(0.0)
        };
        tracing::info!(
            "{} killed, {} stopped, {} left for good; after a kill every volume answered in {:.0} ms (median), {:.0} ms (longest)",
            self.kills,
            self.stops,
            self.leaves,
            at(0.5),
            at(1.0)
        );
    }
}
