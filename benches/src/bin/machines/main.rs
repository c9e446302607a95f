//! Measures nodes on a PostgreSQL engine, on a real primary with two synchronous standbys.
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
//! | `life` | processor time of the primary for a whole order life, checkpoint included |
//! | `kills` | time until the volume of a killed coordinator is served again |
//! | `pauses` | nodes paused for 1 s and for 4 s |
//! | `primary` | the primary killed, and a standby promoted at once |
//! | `cache` | the first answer of a node without its cache, and of a follower |
//!
//! Nodes and servers are processes of the program `imt`, which is measured as it is. All of them
//! and the clients share the processors of this machine. In `rate`, each node has a share of a
//! processor, as if it had a machine of its own.
//!
//! Deliberately absent: several machines, and a disk for each server.

#[path = "../nodes/group.rs"]
mod group;
#[path = "../orders/load.rs"]
#[allow(dead_code, reason = "shared with the program `orders`, which uses all of it")]
mod load;
mod node;
mod probe;
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
use probe::{Probe, longest_gap, send};
use trio::Trio;

/// Time within which nodes have their shares, and a node has its volume back.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// Nobody listens there.
const NO_WAREHOUSE: &str = "http://127.0.0.1:1";
/// Time in which a checkpoint of every log is made: one is made every 30 s.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(33);
const PARTS: [&str; 6] = ["rate", "life", "kills", "pauses", "primary", "cache"];

/// Measures nodes on a PostgreSQL engine.
#[derive(Debug, Parser)]
#[command(name = "machines", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Internal>,

    /// The program to measure [default: imt beside this program]
    #[arg(long)]
    imt: Option<PathBuf>,

    /// Parts to measure, separated by commas.
    #[arg(long, value_delimiter = ',', default_values = PARTS)]
    only: Vec<String>,

    /// Seconds of each load.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,

    /// Connections of the closed loop, all nodes together.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Share of one processor for each node of `rate`.
    #[arg(long, default_value_t = 0.25)]
    share: f64,

    /// Number of kills of `kills`.
    #[arg(long, default_value_t = 20)]
    kills: usize,

    /// Number of pauses of each length, and of kills of a primary.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Number of orders of `cache`.
    #[arg(long, default_value_t = 1_000_000)]
    orders: u64,

    /// Folder for the nodes' data, on the disk to be measured; emptied before.
    #[arg(long, default_value = "target/benchmarks/machines")]
    dir: PathBuf,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Internal {
    /// Runs a warehouse in this process; the program's way to start a child.
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

/// A warehouse in a process of its own, ended when dropped.
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

    fn lasting(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.seconds)
    }

    /// Puts an even load on all nodes.
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
            "| nodes | orders in | orders/s | of the data folder | failed | nodes' processor an order | primary's | p50 / p99 |"
        );
        println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for count in [1, 4] {
            let mut of_folder = None;
            for is_on_engine in [false, true] {
                let trio = is_on_engine.then(|| Trio::start(&self.imt)).transpose()?;
                let setup = Setup {
                    share: Some(self.arguments.share),
                    ..self.setup(trio.as_ref())?
                };
                let nodes = started(&setup, count)?;
                put_stock(nodes[0].address)?;
                self.put(&nodes, &Ask::Order("w".to_owned()), Duration::from_secs(3))?;
                let of_primary = || trio.as_ref().map_or(Ok(0.0), Trio::primary_seconds);
                let of_nodes = || nodes.iter().map(Node::processor_seconds).sum::<f64>();
                let (primary, own) = (of_primary()?, of_nodes());
                let answers = self.put(&nodes, &Ask::Order("r".to_owned()), self.lasting())?;
                let us = |seconds: f64| seconds / answers.ok.max(1) as f64 * 1e6;
                let (primary, own) = (us(of_primary()? - primary), us(of_nodes() - own));
                let base = *of_folder.get_or_insert(answers.per_second());
                println!(
                    "| {count} | {} | {:.0} | {:.2} | {} | {own:.0} us | {primary:.0} us | {:.1} / {:.1} ms |",
                    if is_on_engine {
                        "the engine"
                    } else {
                        "a data folder"
                    },
                    answers.per_second(),
                    answers.per_second() / base,
                    answers.other,
                    answers.quantile_ms(0.5),
                    answers.quantile_ms(0.99),
                );
                for node in nodes {
                    node.stop()?;
                }
            }
        }
        Ok(())
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
        let idle = trio.primary_seconds()?;
        std::thread::sleep(Duration::from_secs(5));
        let idle = (trio.primary_seconds()? - idle) / 5.0;
        let (begun, before) = (Instant::now(), trio.primary_seconds()?);
        let entries = entries(&trio)?;
        let load = |ask| Load {
            address: nodes[0].address,
            owners: None,
            ask,
            pace: Pace::Closed,
            connections: self.arguments.connections,
            lasting: self.lasting(),
        };
        let placed = load::put(&load(Ask::Order("l".to_owned())), &Stop::default())?;
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
        let used = trio.primary_seconds()? - before;
        let lives = paid.ok.max(1) as f64;
        let beats = idle * begun.elapsed().as_secs_f64();
        println!("| | |\n| --- | ---: |");
        println!("| lives (placed, announced, paid, delivered) | {} |", paid.ok);
        println!("| failed requests | {} |", placed.other + paid.other);
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
        Ok(())
    }

    fn kills(&self) -> Outcome<()> {
        println!("### The coordinator killed\n");
        let trio = Trio::start(&self.imt)?;
        let setup = self.setup(Some(&trio))?;
        let mut nodes = started(&setup, 3)?;
        put_stock(nodes[0].address)?;
        let mut times = Vec::new();
        let (mut placed, mut lost) = (0, 0);
        for round in 0..self.arguments.kills {
            let label = trio.ask("SELECT coordinator FROM imt_cluster")?;
            let name = label.split('/').next().unwrap_or_default().to_owned();
            let at = position(&nodes, &name)?;
            let other = nodes[(at + 1) % nodes.len()].address;
            let owners = routes::read(other)?;
            let probe = Probe::start(other, &owners.ring, &name, &format!("k{round}-"));
            probe.wait_since(Instant::now())?;
            let killed = Instant::now();
            nodes.remove(at).kill()?;
            let (first, sent_after) = probe.wait_since(killed + Duration::from_millis(20))?;
            times.push(first.max(sent_after));
            let orders = probe.stop()?;
            nodes.insert(at, Node::start(&setup, at)?);
            wait_until_home(&nodes)?;
            placed += orders.len();
            lost += missing(other, &orders);
        }
        times.sort();
        let ms = |share: f64| {
            let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len());
            times[at - 1].as_millis()
        };
        println!(
            "{} kills: served again after p50 {} ms, p99 {} ms, longest {} ms; {lost} of {placed} acknowledged orders lost",
            times.len(),
            ms(0.5),
            ms(0.99),
            ms(1.0)
        );
        Ok(())
    }

    fn pauses(&self) -> Outcome<()> {
        println!("### A node paused\n");
        println!(
            "| pause | longest time without an acknowledged order of its volume | volume moved | lost |"
        );
        println!("| ---: | ---: | --- | ---: |");
        let trio = Trio::start(&self.imt)?;
        let setup = self.setup(Some(&trio))?;
        let nodes = started(&setup, 3)?;
        put_stock(nodes[0].address)?;
        for seconds in [1, 4] {
            for round in 0..self.arguments.rounds {
                let (node, other) = (&nodes[1 + round % 2], nodes[0].address);
                let owners = routes::read(other)?;
                let prefix = format!("p{seconds}-{round}-");
                let probe = Probe::start(other, &owners.ring, &node.name, &prefix);
                probe.wait_since(Instant::now())?;
                let epochs = epochs(&trio)?;
                let paused = Instant::now();
                node.signal("STOP")?;
                std::thread::sleep(Duration::from_secs(seconds));
                node.signal("CONT")?;
                probe.wait_since(Instant::now())?;
                wait_until_home(&nodes)?;
                let orders = probe.stop()?;
                println!(
                    "| {seconds} s | {} ms | {} | {} of {} |",
                    longest_gap(&orders, paused).as_millis(),
                    if self::epochs(&trio)? == epochs {
                        "no"
                    } else {
                        "yes"
                    },
                    missing(other, &orders),
                    orders.len()
                );
            }
        }
        let stale = trio.ask(
            "SELECT count(*) FROM (SELECT epoch < lag(epoch) OVER (PARTITION BY volume ORDER BY seq) AS stale \
             FROM imt_log) entries WHERE stale",
        )?;
        println!("\n{stale} entries of a former owner behind one of its successor");
        Ok(())
    }

    fn primary(&self) -> Outcome<()> {
        println!("### The primary killed\n");
        println!("| promoted after | served again after the promotion | epochs | lost |");
        println!("| ---: | ---: | --- | ---: |");
        for _ in 0..self.arguments.rounds {
            let trio = Trio::start(&self.imt)?;
            let setup = self.setup(Some(&trio))?;
            let nodes = started(&setup, 3)?;
            put_stock(nodes[0].address)?;
            let owners = routes::read(nodes[0].address)?;
            let probes: Vec<Probe> = nodes
                .iter()
                .map(|node| {
                    Probe::start(
                        nodes[0].address,
                        &owners.ring,
                        &node.name,
                        &format!("{}-", node.name),
                    )
                })
                .collect();
            for probe in &probes {
                probe.wait_since(Instant::now())?;
            }
            let epochs = epochs(&trio)?;
            let (killed, promoted) = trio.kill_primary()?;
            let mut served = Duration::ZERO;
            for probe in &probes {
                served = served.max(probe.wait_since(promoted)?.0);
            }
            let (mut lost, mut placed) = (0, 0);
            for probe in probes {
                let orders = probe.stop()?;
                placed += orders.len();
                lost += missing(nodes[0].address, &orders);
            }
            println!(
                "| {} ms | {} ms | {} | {lost} of {placed} |",
                (promoted - killed).as_millis(),
                served.as_millis(),
                if self::epochs(&trio)? == epochs {
                    "the same"
                } else {
                    "changed"
                },
            );
        }
        Ok(())
    }

    fn cache(&self) -> Outcome<()> {
        println!("### A node without its cache\n");
        let trio = Trio::start(&self.imt)?;
        let setup = self.setup(Some(&trio))?;
        let mut nodes = started(&setup, 1)?;
        put_stock(nodes[0].address)?;
        let load = Load {
            address: nodes[0].address,
            owners: None,
            ask: Ask::Order("c".to_owned()),
            pace: Pace::Closed,
            connections: 4 * self.arguments.connections,
            lasting: Duration::from_secs(1),
        };
        let (mut placed, begun) = (0, Instant::now());
        for round in 0.. {
            let load = Load {
                ask: Ask::Order(format!("c{round}-")),
                lasting: Duration::from_secs(10),
                ..load.clone()
            };
            placed += load::put(&load, &Stop::default())?.ok;
            if placed >= self.arguments.orders {
                break;
            }
        }
        println!(
            "{placed} orders were placed in {:.0} s.",
            begun.elapsed().as_secs_f64()
        );
        let node = nodes.remove(0);
        node.stop()?;
        std::fs::remove_dir_all(setup.dir.join("n0"))?;
        let started = Instant::now();
        let node = Node::start(&setup, 0)?;
        let address = node.address;
        wait("an order is read", || {
            Ok(send(address, "GET", "/order/c0-0", "").is_some_and(|(status, _)| status == 200))
        })?;
        println!(
            "First answer without the cache: {:.2} s after the start.",
            started.elapsed().as_secs_f64()
        );
        // A node without slots follows the volume.
        let follower = Node::start(&Setup { weight: 0, ..setup }, 1)?;
        let last = trio.ask("SELECT max(seq) FROM imt_log WHERE volume = 'n0'")?;
        std::thread::sleep(CHECKPOINT_WITHIN);
        let killed = Instant::now();
        node.kill()?;
        wait("the follower answers", || {
            let answer = send(follower.address, "GET", "/order/c0-0", "");
            Ok(answer.is_some_and(|(status, _)| status == 200))
        })?;
        println!(
            "First answer of its follower: {:.2} s after the kill (entry {last} of the log).",
            killed.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

/// Starts nodes one after the other, and waits until each has its share.
fn started(setup: &Setup, count: usize) -> Outcome<Vec<Node>> {
    let mut nodes = Vec::new();
    for number in 0..count {
        nodes.push(Node::start(setup, number)?);
    }
    wait_until_home(&nodes)?;
    Ok(nodes)
}

fn position(nodes: &[Node], name: &str) -> Outcome<usize> {
    let at = nodes.iter().position(|node| node.name == name);
    Ok(at.ok_or_else(|| format!("no node is called {name}"))?)
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

/// Waits until each node serves its own volume and has slots, as every node sees it.
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
        // A volume may have no server for a moment.
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

/// Returns the number of acknowledged orders that a node does not have.
fn missing(address: SocketAddr, orders: &[probe::Acknowledged]) -> usize {
    let is_there = |id: &str| {
        (0..20).any(|_| {
            let answer = send(address, "GET", &format!("/order/{id}"), "");
            answer.is_some_and(|(status, _)| status == 200)
        })
    };
    orders.iter().filter(|order| !is_there(&order.id)).count()
}

/// Returns the number of messages to the warehouse that wait.
fn waiting_messages(address: SocketAddr) -> Option<u64> {
    let (_, text) = send(address, "GET", "/metrics", "")?;
    let series = text
        .lines()
        .filter(|line| line.starts_with("imt_outbox_messages"));
    let values = series.map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.map(|value| value.map(|value| value as u64)).sum()
}

/// Sends the stock: 10,000 products in five stores.
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
