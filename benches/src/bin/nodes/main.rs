//! Measures how many orders several nodes process, each with a fixed share of a processor.
//!
//! ```text
//! cargo run --profile dist -p imt-benches --bin nodes
//! cargo run --profile dist -p imt-benches --bin nodes -- --nodes 2,4,8 --share 0.1 --mix
//! cargo run --profile dist -p imt-benches --bin nodes -- --route
//! cargo run --profile dist -p imt-benches --bin nodes -- --route --apart
//! ```
//!
//! Each node is a process in a cpu group (module `group`) of its own. Clients are spread evenly
//! over the nodes, or send each request to its owner (`--route`). All rows of a table are measured
//! in one run, so compare only rows of one table. The first row of a table is always one node.
//! There is a table for orders alone and one for the full mix. If cpu groups are not permitted, the
//! program prints a message, and the nodes share the processors with each other and with the
//! clients. Their processor time is then not known.
//!
//! A closed loop has one request in flight for each client. A client has one connection, or with
//! `--route` one to each node. With several nodes an order takes longer than with one, because it
//! needs processor time of each node that it passes. So a fixed number of clients keeps several
//! nodes less busy. With `--each`, every node gets `--connections` clients of its own.
//!
//! The stock has five stores with all products in large quantities, and there is no warehouse. So
//! every order takes its units from store 1, which one node owns. This is the worst case for
//! several nodes: with `--no-allotments`, that node makes all reservations. Otherwise the other
//! nodes borrow units of store 1 in advance.

mod counters;
mod group;
#[path = "../orders/load.rs"]
#[allow(dead_code, reason = "shared with the program `orders`, which uses all of it")]
mod load;
mod node;
mod routes;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use imt_benches::{Outcome, machine};
use imt_ring::{Member, Options, Ring};

use counters::Counters;
use group::Group;
use load::{Answers, Ask, Load, Owners, Pace, Stop};
use node::Node;

/// Maximum time until every node owns slots.
const SHARE_WITHIN: Duration = Duration::from_secs(60);
/// Rate of the open loop, as a share of the throughput of the closed loop. Latencies are measured
/// at this rate.
const STEADY: f64 = 0.6;

/// Measures how many orders several nodes process.
#[derive(Debug, Parser)]
#[command(name = "nodes", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Internal>,

    /// Numbers of nodes, separated by commas. One node is always measured first, and the report
    /// compares the throughput of each number with that of one node.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    nodes: Vec<usize>,

    /// Share of one processor (0 to 1) for each node.
    #[arg(long, default_value_t = 0.25)]
    share: f64,

    /// Duration of each measured load in seconds.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,

    /// Number of connections for all nodes together; several numbers give several rows.
    #[arg(long, value_delimiter = ',', default_values_t = [64])]
    connections: Vec<usize>,

    /// Open `--connections` to each node, instead of dividing them among all nodes.
    #[arg(long)]
    each: bool,

    /// Period of the cpu groups in milliseconds: a node that has used up its share pauses for the
    /// rest of the period.
    #[arg(long, default_value_t = 20.0)]
    period_ms: f64,

    /// Start nodes that borrow no units of stores with many orders in advance.
    #[arg(long)]
    no_allotments: bool,

    /// Measure only the full mix: orders, payments, reads and statistics [default: the full mix
    /// after orders alone].
    #[arg(long)]
    mix: bool,

    /// Measure only orders alone.
    #[arg(long, conflicts_with = "mix")]
    orders: bool,

    /// Send each request to the node that owns its order or the statistics according to GET /ring.
    #[arg(long)]
    route: bool,

    /// Start nodes that know nothing of each other, each with all slots and a stock of its own. The
    /// load is unchanged: with `--route`, each request goes to the owner that a ring of these nodes
    /// names. The rows show the costs of the machine and of the load, without those of a cluster.
    #[arg(long)]
    apart: bool,

    /// Folder for the volumes, on the disk to be measured; data of earlier runs is deleted.
    #[arg(long, default_value = "target/benchmarks/nodes")]
    dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Internal {
    /// Runs one node in this process; used by this program to start a child.
    #[command(hide = true)]
    Serve(node::Serve),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Some(Internal::Serve(serve)) => node::serve(serve),
        None => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodes: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The requests of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Requests {
    Orders,
    Mix,
}

impl Arguments {
    /// Returns the loads to measure, one table each.
    fn loads(&self) -> Vec<Requests> {
        match (self.orders, self.mix) {
            (true, _) => vec![Requests::Orders],
            (false, true) => vec![Requests::Mix],
            (false, false) => vec![Requests::Orders, Requests::Mix],
        }
    }

    /// Returns the numbers of nodes to measure: one node, and then the other given numbers.
    fn counts(&self) -> Vec<usize> {
        let others = self.nodes.iter().copied().filter(|count| *count != 1);
        std::iter::once(1).chain(others).collect()
    }
}

/// One row of the table.
struct Row {
    nodes: usize,
    per_second: f64,
    failed: u64,
    used: Used,
    /// Messages, frames and commits of all nodes together during the closed loop.
    work: Counters,
    answered: u64,
    steady: Answers,
}

/// Processor time that each node used during the closed loop, in seconds. `None` if it is not known
/// for every node.
struct Used(Option<Vec<f64>>);

impl Used {
    /// Returns the difference of two readings of all nodes.
    fn between(before: Option<Vec<f64>>, after: Option<Vec<f64>>) -> Used {
        let (Some(before), Some(after)) = (before, after) else {
            return Used(None);
        };
        let nodes = after.iter().zip(&before);
        Used(Some(nodes.map(|(after, before)| after - before).collect()))
    }

    /// Returns the processor time of all nodes together for one of `answered` requests.
    fn of_request(&self, answered: u64) -> String {
        let us = |used: &Vec<f64>| used.iter().sum::<f64>() / answered.max(1) as f64 * 1e6;
        self.0
            .as_ref()
            .map_or("-".to_owned(), |used| format!("{:.0} us", us(used)))
    }

    /// Returns the processor time of each node for one of `answered` requests. The requests are
    /// those of all nodes together, so the sum of the list is `of_request`.
    fn of_each_node(&self, answered: u64) -> String {
        let Some(used) = &self.0 else {
            return "-".to_owned();
        };
        let us = used.iter().map(|used| used / answered.max(1) as f64 * 1e6);
        let us: Vec<String> = us.map(|us| format!("{us:.0}")).collect();
        format!("{} us", us.join("+"))
    }

    /// Returns the share of a processor that the busiest node used in `seconds`.
    fn busiest(&self, seconds: f64) -> String {
        let most = |used: &Vec<f64>| used.iter().copied().fold(0.0, f64::max) / seconds;
        self.0
            .as_ref()
            .map_or("-".to_owned(), |used| format!("{:.3}", most(used)))
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    std::fs::create_dir_all(&arguments.dir)?;
    let machine = machine::describe(&arguments.dir);
    println!(
        "{} processors, {}, {}; {} of a processor a node in periods of {} ms, {}",
        machine.processors,
        machine.processor,
        machine.file_system,
        arguments.share,
        arguments.period_ms,
        match (arguments.route, arguments.apart) {
            (true, false) => "sent to their owners",
            (true, true) => "sent to the owners of a ring, nodes without a cluster",
            (false, false) => "sent to any node",
            (false, true) => "sent to any node, nodes without a cluster",
        }
    );
    for load in arguments.loads() {
        let name = match load {
            Requests::Orders => "orders alone",
            Requests::Mix => "the full mix",
        };
        println!("\n{name}:\n");
        println!(
            "| connections | nodes | requests/s | against one node | failed | processor time a request | of each node | busiest node | messages / frames / commits a request | p50 / p99 / p99.9 at 60 % |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for connections in &arguments.connections {
            let mut one_node = None;
            for nodes in arguments.counts() {
                let row = measure(arguments, load, nodes, *connections)?;
                let base = *one_node.get_or_insert(row.per_second);
                print(&row, base, arguments, *connections);
            }
        }
    }
    Ok(())
}

/// Prints a row. `base` is the throughput of one node with that number of connections.
fn print(row: &Row, base: f64, arguments: &Arguments, connections: usize) {
    let a_request = |count: u64| count as f64 / row.answered.max(1) as f64;
    println!(
        "| {connections}{} | {} | {:.0} | {:.2} | {} | {} | {} | {} | {:.2} / {:.3} / {:.3} | {:.1} / {:.1} / {:.1} ms |",
        if arguments.each { " each" } else { "" },
        row.nodes,
        row.per_second,
        row.per_second / base,
        row.failed,
        row.used.of_request(row.answered),
        row.used.of_each_node(row.answered),
        row.used.busiest(arguments.seconds),
        a_request(row.work.messages),
        a_request(row.work.frames),
        a_request(row.work.commits),
        row.steady.quantile_ms(0.5),
        row.steady.quantile_ms(0.99),
        row.steady.quantile_ms(0.999),
    );
}

fn measure(arguments: &Arguments, load: Requests, count: usize, connections: usize) -> Outcome<Row> {
    let data = arguments.dir.join(format!("{count}"));
    if data.exists() {
        std::fs::remove_dir_all(&data)?;
    }
    let mut nodes = Vec::new();
    for number in 0..count {
        let group = match Group::create(number, arguments.share, (arguments.period_ms * 1_000.0) as u64) {
            Ok(group) => Some(group),
            Err(reason) => {
                eprintln!("node {number} has no cpu group of its own: {reason}");
                None
            }
        };
        let data = match arguments.apart {
            true => data.join(format!("n{number}")),
            false => data.clone(),
        };
        nodes.push(Node::start(number, &data, !arguments.no_allotments, group)?);
    }
    let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    if arguments.apart {
        addresses.iter().try_for_each(|address| put_stock(*address))?;
    } else {
        wait_for_shares(&data, count)?;
        put_stock(addresses[0])?;
    }
    let owners = match (arguments.route, arguments.apart) {
        (true, true) => Some(Arc::new(owners_of_ring(&addresses)?)),
        (true, false) => Some(Arc::new(routes::read(addresses[0])?)),
        (false, _) => None,
    };
    let targets = Targets {
        addresses,
        owners,
        connections: match arguments.each {
            true => connections,
            false => (connections / count).max(1),
        },
    };
    let ask = |round: &str| {
        let prefix = format!("{round}{}-", std::process::id());
        match load {
            Requests::Mix => Ask::Mix(prefix),
            Requests::Orders => Ask::Order(prefix),
        }
    };
    let lasting = Duration::from_secs_f64(arguments.seconds);
    // A warm-up: it opens the connections between nodes, copies the stock to other nodes and fills
    // caches.
    put_all(
        &targets,
        ask("w"),
        Pace::Closed,
        lasting.min(Duration::from_secs(2)),
    )?;
    let processor_seconds = || nodes.iter().map(Node::processor_seconds).collect();
    let before = processor_seconds();
    let counted = counters::read_all(&targets.addresses)?;
    let answers = put_all(&targets, ask("c"), Pace::Closed, lasting)?;
    let work = counters::read_all(&targets.addresses)?.since(&counted);
    let used = Used::between(before, processor_seconds());
    let answered: u64 = answers.iter().map(|answers| answers.ok).sum();
    let per_second: f64 = answers.iter().map(Answers::per_second).sum();
    let failed = answers.iter().map(|answers| answers.other).sum();
    let rate = per_second * STEADY / count as f64;
    let steady = put_all(&targets, ask("o"), Pace::Open(rate), lasting)?;
    for node in nodes {
        node.stop()?;
    }
    Ok(Row {
        nodes: count,
        per_second,
        failed,
        used,
        work,
        answered,
        steady: Answers::together(steady)?,
    })
}

/// The nodes under load, and the settings of the clients.
struct Targets {
    addresses: Vec<SocketAddr>,
    /// The owners of keys, if clients send each request to its owner. `None` if each client sends
    /// all requests to one node.
    owners: Option<Arc<Owners>>,
    /// Number of clients for each node. A client has one connection, or one to each owner if there
    /// are `owners`.
    connections: usize,
}

/// Puts a load on all nodes at the same time.
fn put_all(targets: &Targets, ask: Ask, pace: Pace, lasting: Duration) -> Outcome<Vec<Answers>> {
    let addresses = &targets.addresses;
    let threads: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| {
            let load = Load {
                address: *address,
                owners: targets.owners.clone(),
                ask: ask.of_client(number),
                pace,
                connections: targets.connections,
                lasting,
            };
            std::thread::spawn(move || load::put(&load, &Stop::default()).map_err(|error| error.to_string()))
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        all.push(thread.join().map_err(|_| "a load generator panicked")??);
    }
    Ok(all)
}

fn wait_for_shares(data: &std::path::Path, count: usize) -> Outcome<()> {
    let until = Instant::now() + SHARE_WITHIN;
    loop {
        if let Some(ring) = imt_oms::read_ring(data)? {
            let members = ring.members().iter();
            let with_slots = members
                .filter(|member| ring.slots_of(member.name()).count() > 0)
                .count();
            if with_slots == count {
                return Ok(());
            }
        }
        if Instant::now() >= until {
            return Err("the nodes did not get their shares of the slots in time".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Uploads the stock: 10,000 products in five stores.
fn put_stock(address: SocketAddr) -> Outcome<()> {
    let mut csv = String::new();
    for product in 1..=10_000 {
        for store in 1..=5 {
            csv.push_str(&format!("{product},{store},1000000000\n"));
        }
    }
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "PUT /stocks HTTP/1.1\r\nhost: imt\r\nconnection: close\r\ncontent-type: text/csv\r\ncontent-length: {}\r\n\r\n{csv}",
        csv.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(format!(
            "the stock was refused: {}",
            answer.lines().next().unwrap_or_default()
        )
        .into())
    }
}

/// Returns a ring in which each address is a member, for nodes that know nothing of each other.
fn owners_of_ring(addresses: &[SocketAddr]) -> Outcome<Owners> {
    let members: Result<Vec<Member>, _> = (0..addresses.len())
        .map(|number| Member::new(format!("n{number:03}")))
        .collect();
    Ok(Owners {
        ring: Ring::bootstrap(members?, Options::default())?,
        addresses: addresses.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(flags: &[&str]) -> Arguments {
        Arguments::try_parse_from([&["nodes"], flags].concat()).unwrap()
    }

    #[test]
    fn one_node_is_measured_first_and_once() {
        for (flags, counts) in [
            (&[][..], &[1, 2, 4][..]),
            (&["--nodes", "2,4"], &[1, 2, 4]),
            (&["--nodes", "4,1,2"], &[1, 4, 2]),
            (&["--nodes", "1"], &[1]),
        ] {
            assert_eq!(arguments(flags).counts(), counts, "{flags:?}");
        }
    }

    #[test]
    fn both_loads_are_measured_unless_a_flag_names_one() {
        assert_eq!(arguments(&[]).loads(), [Requests::Orders, Requests::Mix]);
        assert_eq!(arguments(&["--orders"]).loads(), [Requests::Orders]);
        assert_eq!(arguments(&["--mix"]).loads(), [Requests::Mix]);
        assert!(Arguments::try_parse_from(["nodes", "--mix", "--orders"]).is_err());
    }

    #[test]
    fn processor_time_is_that_of_each_node_and_unknown_without_a_cpu_group() {
        let used = Used::between(Some(vec![1.0, 2.0]), Some(vec![1.5, 2.25]));
        assert_eq!(used.of_request(10_000), "75 us");
        assert_eq!(used.of_each_node(10_000), "50+25 us");
        assert_eq!(used.busiest(2.0), "0.250");
        let unknown = Used::between(Some(vec![1.0]), None);
        let texts = [
            unknown.of_request(1),
            unknown.of_each_node(1),
            unknown.busiest(1.0),
        ];
        assert_eq!(texts, ["-", "-", "-"]);
    }
}
