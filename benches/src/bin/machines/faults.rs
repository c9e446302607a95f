//! The parts `kills` (a node is killed), `pauses` (a node is stopped and continued), `primary` (the
//! primary of the engine is killed) and `cache` (a node starts without its local cache).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use imt_benches::Outcome;

use crate::load::{self, Ask, Load, Pace, Stop};
use crate::node::{Node, Setup};
use crate::probe::{Probe, longest_gap, send};
use crate::trio::Trio;
use crate::{Bench, CHECKPOINT_WITHIN, epochs, missing, put_stock, routes, started, wait, wait_until_home};

/// Number of nodes in the parts `kills`, `pauses` and `primary`.
const NODES: usize = 3;
/// Maximum time until a kill takes effect. The killed process answers no order that is sent after
/// this time.
const KILLED_WITHIN: Duration = Duration::from_millis(20);

/// The node that is killed.
#[derive(Clone, Copy)]
enum Victim {
    Coordinator,
    /// Another node than the coordinator.
    Other,
}

/// Starts clients that send orders of `volume` to the node at `entry`. Waits until one of these
/// orders is acknowledged.
fn probe(entry: SocketAddr, volume: &str, prefix: &str) -> Outcome<Probe> {
    let owners = routes::read(entry)?;
    let probe = Probe::start(entry, &owners.ring, volume, prefix);
    probe.wait_since(Instant::now())?;
    Ok(probe)
}

fn coordinator(trio: &Trio) -> Outcome<String> {
    let label = trio.ask("SELECT coordinator FROM imt_cluster")?;
    Ok(label.split('/').next().unwrap_or_default().to_owned())
}

/// Returns the quantile `share` (0 to 1) of sorted times in milliseconds, or 0 without times.
fn quantile_ms(times: &[Duration], share: f64) -> u128 {
    let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1));
    times.get(at - 1).map_or(0, Duration::as_millis)
}

impl Bench<'_> {
    pub(crate) fn kills(&self) -> Outcome<()> {
        println!("### A node killed: the time until its volume is served again\n");
        println!("| killed | kills | p50 | p99 | longest | acknowledged orders lost |");
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        let trio = Trio::start(&self.imt)?;
        let setup = self.setup(Some(&trio))?;
        let mut nodes = started(&setup, NODES)?;
        put_stock(nodes[0].address)?;
        for (victim, name) in [
            (Victim::Other, "a node"),
            (Victim::Coordinator, "the coordinator"),
        ] {
            let (mut times, mut placed, mut lost) = (Vec::new(), 0, 0);
            for round in 0..self.arguments.kills {
                let prefix = format!("{}{round}-", name.replace(' ', "-"));
                let coordinator = coordinator(&trio)?;
                let is_it = |node: &Node| match victim {
                    Victim::Coordinator => node.name == coordinator,
                    Victim::Other => node.name != coordinator,
                };
                let mut candidates = (0..NODES).map(|at| (at + round) % NODES);
                let at = candidates.find(|at| is_it(&nodes[*at]));
                let at = at.ok_or("no node is the coordinator")?;
                let entry = nodes[(at + 1) % NODES].address;
                let probe = probe(entry, &nodes[at].name, &prefix)?;
                let killed = Instant::now();
                nodes.remove(at).kill()?;
                let (_, sent_after) = probe.wait_since(killed + KILLED_WITHIN)?;
                let took = KILLED_WITHIN + sent_after;
                self.note(&format!(
                    "killed {name}, served again after {} ms",
                    took.as_millis()
                ));
                times.push(took);
                let orders = probe.stop()?;
                nodes.insert(at, Node::start(&setup, at)?);
                wait_until_home(&nodes)?;
                placed += orders.len();
                lost += missing(entry, &orders);
            }
            times.sort();
            println!(
                "| {name} | {} | {} ms | {} ms | {} ms | {lost} of {placed} |",
                times.len(),
                quantile_ms(&times, 0.5),
                quantile_ms(&times, 0.99),
                quantile_ms(&times, 1.0)
            );
        }
        Ok(())
    }

    pub(crate) fn pauses(&self) -> Outcome<()> {
        println!("### A node paused\n");
        println!(
            "| pause | longest time without an acknowledged order of its volume | volume moved | lost |"
        );
        println!("| ---: | ---: | --- | ---: |");
        let trio = Trio::start(&self.imt)?;
        let setup = self.setup(Some(&trio))?;
        let nodes = started(&setup, NODES)?;
        put_stock(nodes[0].address)?;
        for seconds in [1, 4] {
            for round in 0..self.arguments.rounds {
                let (node, entry) = (&nodes[1 + round % (NODES - 1)], nodes[0].address);
                let probe = probe(entry, &node.name, &format!("p{seconds}-{round}-"))?;
                let before = epochs(&trio)?;
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
                    if epochs(&trio)? == before { "no" } else { "yes" },
                    missing(entry, &orders),
                    orders.len()
                );
            }
        }
        let stale = trio.ask(
            "SELECT count(*) FROM (SELECT epoch < lag(epoch) OVER (PARTITION BY volume ORDER BY seq) AS stale \
             FROM imt_log) entries WHERE stale",
        )?;
        println!("\nEntries of a former owner behind one of its successor: {stale}.");
        Ok(())
    }

    pub(crate) fn primary(&self) -> Outcome<()> {
        println!("### The primary killed\n");
        println!("| promoted after | served again after the promotion | epochs | lost |");
        println!("| ---: | ---: | --- | ---: |");
        for _ in 0..self.arguments.rounds {
            let trio = Trio::start(&self.imt)?;
            let setup = self.setup(Some(&trio))?;
            let nodes = started(&setup, NODES)?;
            let entry = nodes[0].address;
            put_stock(entry)?;
            let mut probes = Vec::new();
            for node in &nodes {
                probes.push(probe(entry, &node.name, &format!("{}-", node.name))?);
            }
            let before = epochs(&trio)?;
            let (killed, promoted) = trio.kill_primary()?;
            let mut served = Duration::ZERO;
            for probe in &probes {
                served = served.max(probe.wait_since(promoted)?.0);
            }
            let (mut lost, mut placed) = (0, 0);
            for probe in probes {
                let orders = probe.stop()?;
                placed += orders.len();
                lost += missing(entry, &orders);
            }
            println!(
                "| {} ms | {} ms | {} | {lost} of {placed} |",
                (promoted - killed).as_millis(),
                served.as_millis(),
                if epochs(&trio)? == before {
                    "unchanged"
                } else {
                    "changed"
                },
            );
        }
        Ok(())
    }

    pub(crate) fn cache(&self) -> Outcome<()> {
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
            lasting: Duration::from_secs(10),
        };
        let (mut placed, begun) = (0, Instant::now());
        for round in 0.. {
            let load = Load {
                ask: Ask::Order(format!("c{round}-")),
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
        let is_read = |address: SocketAddr| {
            let answer = send(address, "GET", "/order/c0-0", "");
            Ok(answer.is_some_and(|(status, _)| status == 200))
        };
        wait("an order is read", || is_read(node.address))?;
        println!(
            "First answer without the cache: {:.2} s after the start.",
            started.elapsed().as_secs_f64()
        );
        // A node of weight 0 owns no slots. This node becomes the follower of volume n0.
        let follower = Node::start(&Setup { weight: 0, ..setup }, 1)?;
        let last = trio.ask("SELECT max(seq) FROM imt_log WHERE volume = 'n0'")?;
        std::thread::sleep(CHECKPOINT_WITHIN);
        let killed = Instant::now();
        node.kill()?;
        wait("the follower answers", || is_read(follower.address))?;
        println!(
            "First answer of its follower: {:.2} s after the kill (entry {last} of the log).",
            killed.elapsed().as_secs_f64()
        );
        Ok(())
    }
}
