//! Measures nodes on a PostgreSQL engine: a primary with two synchronous standbys.
//!
//! ```text
//! cargo build --release
//! cargo run --release -p imt-benches --bin machines
//! cargo run --release -p imt-benches --bin machines -- --only rate,life --seconds 20
//! ```
//!
//! | part | measured |
//! | --- | --- |
//! | `rate` | orders a second of 1 and 4 nodes, on a data folder and on the engine |
//! | `life` | processor time and log bytes of the primary for an order life, with a checkpoint |
//! | `kills` | time from the kill of a node (or of the coordinator) until its volume is served |
//! | `pauses` | longest time without an acknowledged order, if a node pauses for 1 s or 4 s |
//! | `primary` | times from a kill of the primary to a promotion, then to an order of each volume |
//! | `cache` | time to the first answer of a node without its cache, and of a follower |
//!
//! An order life is four steps: placed, announced, paid, delivered. The nodes are processes of the
//! program `imt`. The servers are PostgreSQL processes that `imt engine demo` starts. All these
//! processes and the clients share the processors of this machine. In `rate`, each node has a fixed
//! share of a processor by default, as if it had a machine of its own.
//!
//! Deliberately absent: several machines, and a disk for each server.

#[path = "../nodes/counters.rs"]
#[allow(dead_code, reason = "shared with the program `nodes`, which uses all of it")]
mod counters;
mod faults;
#[path = "../nodes/group.rs"]
mod group;
#[path = "../orders/load.rs"]
#[allow(dead_code, reason = "shared with the program `orders`, which uses all of it")]
mod load;
mod node;
mod probe;
mod processor;
#[path = "../nodes/routes.rs"]
mod routes;
#[path = "../orders/servers.rs"]
#[allow(dead_code, reason = "shared with the program `orders`, which uses all of it")]
mod servers;
mod trio;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use imt_benches::{Outcome, machine};

use load::{Answers, Ask, Load, Owners, Pace, Stop};
use node::{Node, Setup, emptied};
use probe::{Acknowledged, send};
use trio::Trio;

/// Maximum wait for a condition, such as every node serving its own volume. Also the maximum
/// duration of the payments in the part `life`.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// Address of the warehouse in parts without a warehouse: no server listens on this port.
const NO_WAREHOUSE: &str = "http://127.0.0.1:1";
/// Time to wait until the log of every volume with new entries has a new checkpoint. Nodes begin
/// such a checkpoint at most 31 s after the one before.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(33);
const PARTS: [&str; 6] = ["rate", "life", "kills", "pauses", "primary", "cache"];

/// Measures nodes on a PostgreSQL engine.
#[derive(Debug, Parser)]
#[command(name = "machines", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Internal>,

    /// Path of the program `imt` to measure [default: imt in the folder of this program]
    #[arg(long)]
    imt: Option<PathBuf>,

    /// Parts to measure, separated by commas.
    #[arg(long, value_delimiter = ',', default_values = PARTS)]
    only: Vec<String>,

    /// Duration of the measured loads of the part `rate` and of the orders of the part `life`, in
    /// seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,

    /// Number of connections of the closed loop, for all nodes together; the part `cache` has four
    /// times as many.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Numbers of nodes in the part `rate`, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4])]
    nodes: Vec<usize>,

    /// Share of one processor for each node in the part `rate`; 0 is unlimited.
    #[arg(long, default_value_t = 0.25)]
    share: f64,

    /// Number of kills of nodes other than the coordinator, and of kills of the coordinator.
    #[arg(long, default_value_t = 20)]
    kills: usize,

    /// Number of pauses of each length, and of kills of the primary.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Minimum number of orders that the part `cache` places.
    #[arg(long, default_value_t = 1_000_000)]
    orders: u64,

    /// Also print the time after each kill, not only the quantiles.
    #[arg(long)]
    verbose: bool,

    /// Folder for the nodes' data and logs, on the disk to be measured; data of earlier runs is
    /// deleted.
    #[arg(long, default_value = "target/benchmarks/machines")]
    dir: PathBuf,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Internal {
    /// Runs a warehouse in this process; used by this program to start a child.
    #[command(hide = true, subcommand)]
    Serve(servers::Role),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command.clone() {
        Some(Internal::Serve(role)) => servers::serve(role),
        None => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("machines: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    std::fs::create_dir_all(&arguments.dir)?;
    let bench = Bench::new(arguments)?;
    let machine = machine::describe(&arguments.dir);
    println!(
        "{} processors, {}, {}\n",
        machine.processors, machine.processor, machine.file_system
    );
    for part in &arguments.only {
        match part.as_str() {
            "rate" => bench.rate()?,
            "life" => bench.life()?,
            "kills" => bench.kills()?,
            "pauses" => bench.pauses()?,
            "primary" => bench.primary()?,
            "cache" => bench.cache()?,
            other => return Err(format!("no part is called {other}; there are {}", PARTS.join(", ")).into()),
        }
        println!();
    }
    Ok(())
}

/// A warehouse in a process of its own. The process is killed when this value is dropped.
struct Warehouse {
    child: Child,
    url: String,
}

impl Warehouse {
    fn start() -> Outcome<Warehouse> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "warehouse", "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().ok_or("no standard output")?).read_line(&mut address)?;
        Ok(Warehouse {
            child,
            url: format!("http://{}", address.trim()),
        })
    }
}

impl Drop for Warehouse {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A row of the table of the part `rate`.
struct Rate {
    per_second: f64,
    /// Number of group commits per order.
    commits: f64,
    /// Processor time per order in microseconds: of all nodes, of the primary, of both standbys.
    processor_us: [f64; 3],
    answers: Answers,
}

impl Rate {
    /// Returns the row from its column "orders/s" to its last column, as Markdown. `base` is the
    /// number of orders per second that the same number of nodes had on a data folder.
    fn row(&self, base: f64) -> String {
        let [nodes, primary, standbys] = self.processor_us;
        format!(
            "{:.0} | {:.2} | {} | {:.3} | {nodes:.0} us | {primary:.0} us | {standbys:.0} us | {:.1} / {:.1} ms |",
            self.per_second,
            self.per_second / base,
            self.answers.other,
            self.commits,
            self.answers.quantile_ms(0.5),
            self.answers.quantile_ms(0.99),
        )
    }
}

/// The arguments of a run, and the path of the program `imt` that is measured.
struct Bench<'a> {
    arguments: &'a Arguments,
    imt: PathBuf,
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a Arguments) -> Outcome<Bench<'a>> {
        let beside = std::env::current_exe()?.with_file_name("imt");
        let imt = arguments.imt.clone().unwrap_or(beside);
        if !imt.is_file() {
            return Err(format!("{} is missing; cargo build --release makes it", imt.display()).into());
        }
        Ok(Bench { arguments, imt })
    }

    fn setup(&self, trio: Option<&Trio>) -> Outcome<Setup> {
        Ok(Setup {
            imt: self.imt.clone(),
            dir: emptied(&self.arguments.dir.join("nodes"))?,
            engine: trio.map(|trio| trio.url.clone()),
            warehouse: NO_WAREHOUSE.to_owned(),
            weight: 1,
            share: None,
        })
    }

    /// Prints the result of one kill if `--verbose` is given.
    fn note(&self, text: &str) {
        if self.arguments.verbose {
            eprintln!("{text}");
        }
    }

    fn lasting(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.seconds)
    }

    /// Puts the same closed loop on every node at the same time. Returns the combined outcome.
    fn put(&self, nodes: &[Node], ask: &Ask, lasting: Duration) -> Outcome<Answers> {
        let threads: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(number, node)| {
                let load = Load {
                    address: node.address,
                    owners: None,
                    ask: ask.of_client(number),
                    pace: Pace::Closed,
                    connections: (self.arguments.connections / nodes.len()).max(1),
                    lasting,
                };
                std::thread::spawn(move || {
                    load::put(&load, &Stop::default()).map_err(|error| error.to_string())
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.push(thread.join().map_err(|_| "a load generator panicked")??);
        }
        Answers::together(all)
    }

    fn rate(&self) -> Outcome<()> {
        println!(
            "### Orders a second\n\n{} of a processor a node, {} connections, {} s, sent to any node\n",
            self.arguments.share, self.arguments.connections, self.arguments.seconds
        );
        println!(
            "| nodes | orders in | orders/s | of the data folder | failed | commits an order | nodes' processor an order | primary's | standbys' | p50 / p99 |"
        );
        println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for count in &self.arguments.nodes {
            let folder = self.rate_of(*count, None)?;
            println!("| {count} | a data folder | {}", folder.row(folder.per_second));
            let trio = Trio::start(&self.imt)?;
            let engine = self.rate_of(*count, Some(&trio))?;
            println!("| {count} | the engine | {}", engine.row(folder.per_second));
        }
        Ok(())
    }

    /// Measures the orders per second of `count` nodes: on the engine `trio`, or on a data folder
    /// if `trio` is `None`.
    fn rate_of(&self, count: usize, trio: Option<&Trio>) -> Outcome<Rate> {
        let share = Some(self.arguments.share).filter(|share| *share > 0.0);
        let setup = Setup {
            share,
            ..self.setup(trio)?
        };
        let nodes = started(&setup, count)?;
        put_stock(nodes[0].address)?;
        self.put(&nodes, &Ask::Order("w".to_owned()), Duration::from_secs(3))?;
        let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
        let work = || -> Outcome<[f64; 4]> {
            let of_nodes = nodes.iter().map(Node::processor_seconds).sum::<f64>();
            let of_servers = |names: &[&str]| trio.map_or(Ok(0.0), |trio| trio.processor_seconds(names));
            let commits = counters::read_all(&addresses)?.commits;
            Ok([
                commits as f64,
                of_nodes,
                of_servers(&["primary"])?,
                of_servers(&["standby1", "standby2"])?,
            ])
        };
        let before = work()?;
        let answers = self.put(&nodes, &Ask::Order("r".to_owned()), self.lasting())?;
        let after = work()?;
        for node in nodes {
            node.stop()?;
        }
        let an_order = |at: usize| (after[at] - before[at]) / answers.ok.max(1) as f64;
        Ok(Rate {
            per_second: answers.per_second(),
            commits: an_order(0),
            processor_us: [1, 2, 3].map(|at| an_order(at) * 1e6),
            answers,
        })
    }

    fn life(&self) -> Outcome<()> {
        println!("### Processor time of the primary for an order life\n");
        let (trio, warehouse) = (Trio::start(&self.imt)?, Warehouse::start()?);
        let setup = Setup {
            warehouse: warehouse.url.clone(),
            ..self.setup(Some(&trio))?
        };
        let nodes = started(&setup, 1)?;
        put_stock(nodes[0].address)?;
        let idle = trio.processor_seconds(&["primary"])?;
        std::thread::sleep(Duration::from_secs(5));
        let idle = (trio.processor_seconds(&["primary"])? - idle) / 5.0;
        let (begun, before) = (Instant::now(), trio.processor_seconds(&["primary"])?);
        let (entries, wal) = (entries(&trio)?, wal_bytes(&trio)?);
        let load = |ask| Load {
            address: nodes[0].address,
            owners: None,
            ask,
            pace: Pace::Closed,
            connections: self.arguments.connections,
            lasting: self.lasting(),
        };
        let placed = load::put(&load(Ask::Order("l".to_owned())), &Stop::default())?;
        // The payments name the orders by consecutive numbers, and a failed request leaves a gap.
        if placed.other > 0 {
            return Err(format!("{} requests to place an order failed", placed.other).into());
        }
        let payments = Load {
            lasting: SETTLED_WITHIN,
            ..load(Ask::Payment("l".to_owned(), placed.ok))
        };
        let paid = load::put(&payments, &Stop::default())?;
        wait("all orders are delivered", || {
            Ok(waiting_messages(nodes[0].address) == Some(0))
        })?;
        let busy = begun.elapsed();
        let commits = self::entries(&trio)? - entries;
        std::thread::sleep(CHECKPOINT_WITHIN);
        let kept_from = trio.ask("SELECT kept_from FROM imt_volume")?;
        let used = trio.processor_seconds(&["primary"])? - before;
        let wal = wal_bytes(&trio)? - wal;
        let lives = paid.ok.max(1) as f64;
        let beats = idle * begun.elapsed().as_secs_f64();
        println!("| | |\n| --- | ---: |");
        println!("| lives (placed, announced, paid, delivered) | {} |", paid.ok);
        println!("| failed payments | {} |", paid.other);
        println!("| lives a second | {:.0} |", lives / busy.as_secs_f64());
        println!("| entries of the log | {commits} |");
        println!(
            "| steps of an order for each entry | {:.1} |",
            4.0 * lives / commits.max(1) as f64
        );
        println!("| first entry without a checkpoint | {kept_from} |");
        println!("| primary's processor a life | {:.0} us |", used / lives * 1e6);
        println!(
            "| of that, beats and looks of an idle node | {:.0} us |",
            beats / lives * 1e6
        );
        println!(
            "| write-ahead log a life, checkpoint and beats included | {:.0} bytes |",
            wal as f64 / lives
        );
        Ok(())
    }
}

/// Starts `count` nodes one after the other, and waits until each of them serves its own volume and
/// owns slots.
fn started(setup: &Setup, count: usize) -> Outcome<Vec<Node>> {
    let mut nodes = Vec::new();
    for number in 0..count {
        nodes.push(Node::start(setup, number)?);
    }
    wait_until_home(&nodes)?;
    Ok(nodes)
}

fn wait(condition: &str, mut holds: impl FnMut() -> Outcome<bool>) -> Outcome<()> {
    let until = Instant::now() + SETTLED_WITHIN;
    while !holds()? {
        if Instant::now() >= until {
            return Err(format!("waited in vain until {condition}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits until each node serves its own volume and owns slots. Every node must state this in its
/// response to `GET /ring`.
fn wait_until_home(nodes: &[Node]) -> Outcome<()> {
    let is_home = |owners: &Owners| {
        let ring = &owners.ring;
        ring.members().len() == nodes.len()
            && ring
                .members()
                .iter()
                .zip(&owners.addresses)
                .all(|(member, address)| {
                    let node = nodes.iter().find(|node| node.name == member.name().as_str());
                    node.is_some_and(|node| node.address == *address)
                        && ring.slots_of(member.name()).count() > 0
                })
    };
    wait("each node serves its volume", || {
        // `routes::read` fails while a volume is served by no node. The condition does not hold
        // then.
        let seen = nodes.iter().map(|node| routes::read(node.address));
        Ok(seen
            .into_iter()
            .all(|owners| owners.is_ok_and(|owners| is_home(&owners))))
    })
}

fn epochs(trio: &Trio) -> Outcome<String> {
    trio.ask("SELECT volume, epoch FROM imt_volume ORDER BY volume")
}

fn entries(trio: &Trio) -> Outcome<u64> {
    Ok(trio.ask("SELECT coalesce(max(seq), 0) FROM imt_log")?.parse()?)
}

/// Returns the number of bytes that the primary has written to its write-ahead log so far.
fn wal_bytes(trio: &Trio) -> Outcome<u64> {
    Ok(trio.ask("SELECT pg_current_wal_lsn() - '0/0'")?.parse()?)
}

/// Returns the number of acknowledged orders that cannot be read at the node at `address`. Each
/// order is tried up to 20 times.
fn missing(address: SocketAddr, orders: &[Acknowledged]) -> usize {
    let is_there = |id: &str| {
        (0..20).any(|_| {
            let answer = send(address, "GET", &format!("/order/{id}"), "");
            answer.is_some_and(|(status, _)| status == 200)
        })
    };
    orders.iter().filter(|order| !is_there(&order.id)).count()
}

/// Returns the number of messages in the node's outbox that the warehouse has not confirmed, dead
/// letters included. An answer without this metric counts as 0 messages. Returns `None` if the node
/// does not answer or a number in its answer cannot be parsed.
fn waiting_messages(address: SocketAddr) -> Option<u64> {
    let (_, text) = send(address, "GET", "/metrics", "")?;
    let series = text
        .lines()
        .filter(|line| line.starts_with("imt_outbox_messages"));
    let values = series.map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.map(|value| value.map(|value| value as u64)).sum()
}

/// Uploads the stock: 10,000 products in five stores.
fn put_stock(address: SocketAddr) -> Outcome<()> {
    let mut csv = String::new();
    for product in 1..=10_000 {
        for store in 1..=5 {
            csv.push_str(&format!("{product},{store},1000000000\n"));
        }
    }
    match send(address, "PUT", "/stocks", &csv) {
        Some((200, _)) => Ok(()),
        other => Err(format!("the stock was refused: {other:?}").into()),
    }
}
