//! The rows of the table that the program `orders` prints. Each row starts its servers, puts a load
//! on them and prints the result. The measured servers are a bare server, a durable ceiling and the
//! node (see the module `servers`).
//!
//! **Invariants**
//! - Servers that are compared get the same load, one after the other within one row.
//! - A node starts with an empty folder, and gets a stock of the usual size. The row `stored` also
//!   starts nodes on a stored volume, and on an empty folder without a stock, to measure their
//!   openings.
//!
//! Deliberately absent: a failure of the program if a goal is missed. The goals are printed beside
//! the figures.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imt_benches::Outcome;

use crate::Arguments;
use crate::child::Server;
use crate::load::{self, Answers, Ask, Load, Pace, Stop};

/// The heading of the table.
pub(crate) const HEAD: &str = "what                                         a second   p50 ms   p99 ms p99.9 ms   max ms  server us  other";

/// Number of products of the usual stock.
const PRODUCTS: u32 = 10_000;
/// Number of stores of the usual stock.
const STORES: u32 = 200;
/// Quantity of a product in each store that has it. No run uses this many units.
const PLENTY: u32 = 1_000_000;
/// Number of connections of an open loop. While the server keeps up with the rate, some of them
/// have no request in flight, so no request waits for a connection.
const OPEN_CONNECTIONS: usize = 512;
/// Address of a warehouse that does not exist: no process listens on this port.
const NOWHERE: &str = "http://127.0.0.1:9";

fn print(label: &str, answers: &Answers, server_us: f64) {
    println!(
        "{label:<44} {:>8.0} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {server_us:>10.1} {:>6}",
        answers.per_second(),
        answers.quantile_ms(0.5),
        answers.quantile_ms(0.99),
        answers.quantile_ms(0.999),
        answers.quantile_ms(1.0),
        answers.other,
    );
}

/// Prints the times at which an open loop had latencies of 10 ms or more.
fn print_pauses(answers: &Answers) {
    println!("  over 10 ms: {}", answers.pauses(10));
}

/// Puts a load on a server and prints the row of the table.
fn measure(label: &str, server: &Server, load: &Load) -> Outcome<Answers> {
    let before = server.processor_seconds();
    let answers = load::put(load, &Stop::default())?;
    let used = server.processor_seconds() - before;
    let requests = (answers.ok + answers.other).max(1) as f64;
    print(label, &answers, used * 1e6 / requests);
    if let Pace::Open(_) = load.pace {
        print_pauses(&answers);
    }
    Ok(answers)
}

fn folder(arguments: &Arguments, name: &str) -> Outcome<PathBuf> {
    let folder = arguments.dir.join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn text(folder: &std::path::Path) -> Outcome<&str> {
    folder
        .to_str()
        .ok_or_else(|| "the folder's name is not UTF-8".into())
}

/// A node and, unless `--warehouse` is `away`, a simulated warehouse.
struct Shop {
    node: Server,
    _warehouse: Option<Server>,
}

impl Shop {
    fn open(arguments: &Arguments, name: &str) -> Outcome<Shop> {
        let shop = Shop::reopen(arguments, &folder(arguments, name)?)?;
        let (status, _) = put_stock(shop.node.address, &stock_lines(Quantities::Plenty))?;
        if status != 200 {
            return Err(format!("the first stock was answered {status}").into());
        }
        Ok(shop)
    }

    fn reopen(arguments: &Arguments, folder: &std::path::Path) -> Outcome<Shop> {
        let warehouse = match arguments.warehouse.as_str() {
            "away" => None,
            delay => {
                let delay = delay.trim_end_matches("ms");
                delay
                    .parse::<u64>()
                    .map_err(|_| "--warehouse is `away` or milliseconds, as in 3000ms")?;
                Some(Server::start(&["warehouse", delay])?)
            }
        };
        let url = warehouse
            .as_ref()
            .map_or(NOWHERE.to_owned(), |server| format!("http://{}", server.address));
        let node = Server::start(&["node", text(folder)?, &url])?;
        Ok(Shop {
            node,
            _warehouse: warehouse,
        })
    }
}

impl Arguments {
    fn load(&self, address: SocketAddr, ask: Ask, pace: Pace) -> Load {
        Load {
            address,
            owners: None,
            ask,
            pace,
            connections: match pace {
                Pace::Closed => self.connections,
                Pace::Open(_) => OPEN_CONNECTIONS,
            },
            lasting: Duration::from_secs_f64(self.seconds),
        }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// Measures orders in a closed loop, on the bare server, the ceiling and the node.
pub(crate) fn closed(arguments: &Arguments) -> Outcome<()> {
    let (mut bare, mut ceiling, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.repeat {
        let orders =
            |server: &Server| arguments.load(server.address, Ask::Order(format!("r{round}o")), Pace::Closed);
        let server = Server::start(&["bare"])?;
        bare.push(measure("POST /order, bare server", &server, &orders(&server))?.per_second());
        server.stop()?;
        let log = folder(arguments, "ceiling")?;
        let server = Server::start(&["durable", text(&log)?])?;
        ceiling.push(measure("POST /order, durable ceiling", &server, &orders(&server))?.per_second());
        server.stop()?;
        let shop = Shop::open(arguments, "closed")?;
        ours.push(measure("POST /order, ours", &shop.node, &orders(&shop.node))?.per_second());
        shop.node.stop()?;
    }
    let (bare, ceiling, ours) = (median(bare), median(ceiling), median(ours));
    println!(
        "  medians: bare {bare:.0}, ceiling {ceiling:.0}, ours {ours:.0}; ours / ceiling {:.2} (goal 0.6)",
        ours / ceiling
    );
    Ok(())
}

/// Measures orders at a fixed rate, on the ceiling and the node. Latencies are measured from the
/// intended start.
pub(crate) fn open(arguments: &Arguments) -> Outcome<()> {
    let pace = Pace::Open(arguments.rate);
    let log = folder(arguments, "ceiling")?;
    let server = Server::start(&["durable", text(&log)?])?;
    let load = arguments.load(server.address, Ask::Order("open".to_owned()), pace);
    measure(
        &format!("open loop, {}/s, ceiling", arguments.rate),
        &server,
        &load,
    )?;
    server.stop()?;
    let shop = Shop::open(arguments, "open")?;
    let load = arguments.load(shop.node.address, Ask::Order("open".to_owned()), pace);
    measure(
        &format!("open loop, {}/s, ours", arguments.rate),
        &shop.node,
        &load,
    )?;
    shop.node.stop()
}

/// Measures reads of the statistics of a product in a closed loop, on the bare server and the node.
pub(crate) fn statistics(arguments: &Arguments) -> Outcome<()> {
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..arguments.repeat {
        let load = |server: &Server| arguments.load(server.address, Ask::Statistics, Pace::Closed);
        let server = Server::start(&["bare"])?;
        bare.push(measure("GET /aggregate-stats/N, bare server", &server, &load(&server))?.per_second());
        server.stop()?;
        let shop = Shop::open(arguments, "statistics")?;
        ours.push(measure("GET /aggregate-stats/N, ours", &shop.node, &load(&shop.node))?.per_second());
        shop.node.stop()?;
    }
    let (bare, ours) = (median(bare), median(ours));
    println!(
        "  medians: bare {bare:.0}, ours {ours:.0}; ours / bare {:.2} (goal 0.8)",
        ours / bare
    );
    Ok(())
}

/// Measures repeated uploads of the whole stock, alone and beside a stream of orders.
pub(crate) fn stock(arguments: &Arguments) -> Outcome<()> {
    let shop = Shop::open(arguments, "stock")?;
    let lines = stock_lines(Quantities::Usual);
    let snapshots = |count: usize| -> Outcome<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..count {
            let (status, ms) = put_stock(shop.node.address, &lines)?;
            if status != 200 {
                return Err(format!("a stock was answered {status}").into());
            }
            took.push(ms);
            // A real warehouse also pauses between two snapshots of its stock, but for longer.
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(took)
    };
    let alone = median(snapshots(7)?);
    let megabytes = lines.len() as f64 / 1e6;
    println!("PUT /stocks, 2,000,000 lines, {megabytes:.0} MB, alone: median {alone:.0} ms (goal 100)");
    let load = Load {
        lasting: Duration::from_secs(3_600),
        ..arguments.load(
            shop.node.address,
            Ask::Order("beside".to_owned()),
            Pace::Open(2_000.0),
        )
    };
    let stop = Stop::default();
    let before = shop.node.processor_seconds();
    let (answers, took) = std::thread::scope(|scope| -> Outcome<_> {
        let orders = scope.spawn(|| load::put(&load, &stop));
        let took = snapshots(11);
        stop.now();
        let answers = orders.join().map_err(|_| "the load generator panicked")??;
        Ok((answers, took?))
    })?;
    let used = shop.node.processor_seconds() - before;
    print(
        "orders, 2000/s, beside snapshots",
        &answers,
        used * 1e6 / answers.ok.max(1) as f64,
    );
    print_pauses(&answers);
    let largest = took.iter().copied().fold(0.0, f64::max);
    println!(
        "PUT /stocks beside them: median {:.0} ms, longest {largest:.0} ms",
        median(took)
    );
    shop.node.stop()
}

/// Measures the memory of the node for each open order. The orders are placed and never paid, so
/// all of them are open, if the measurement ends before the payment timeout (15 minutes).
pub(crate) fn memory(arguments: &Arguments) -> Outcome<()> {
    let shop = Shop::open(arguments, "memory")?;
    let before = shop.node.memory_bytes();
    let stored = fill(arguments, &shop, "m", arguments.orders)?;
    let outbox = wait_for_outbox(&shop)?;
    let after = shop.node.memory_bytes();
    println!(
        "memory: {:.0} bytes an open order ({stored} orders, {outbox} still in the outbox; goal 300)",
        after.saturating_sub(before) as f64 / stored as f64
    );
    shop.node.stop()
}

/// Places orders until at least `orders` are stored. Returns the number of stored orders.
fn fill(arguments: &Arguments, shop: &Shop, prefix: &str, orders: u64) -> Outcome<u64> {
    let mut stored = 0;
    let mut round = 0;
    while stored < orders {
        let load = arguments.load(
            shop.node.address,
            Ask::Order(format!("{prefix}{round}o")),
            Pace::Closed,
        );
        let answers = load::put(&load, &Stop::default())?;
        stored += answers.ok;
        round += 1;
        if answers.ok == 0 {
            return Err("no order was taken".into());
        }
    }
    Ok(stored)
}

/// Waits until the outbox is empty or has not shrunk within two seconds. Returns the number of
/// remaining messages.
fn wait_for_outbox(shop: &Shop) -> Outcome<u64> {
    let mut left = u64::MAX;
    loop {
        let now = health(shop.node.address, "\"outbox\":")?;
        if now == 0 || now >= left {
            return Ok(now);
        }
        left = now;
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Measures throughput and opening time of a node with many stored orders, and of a node with an
/// empty volume. The opening time lasts from the start of the process until it prints its address.
pub(crate) fn stored(arguments: &Arguments) -> Outcome<()> {
    let shop = Shop::open(arguments, "stored")?;
    let load = |shop: &Shop, prefix: &str| {
        arguments.load(shop.node.address, Ask::Order(prefix.to_owned()), Pace::Closed)
    };
    let empty = measure("POST /order, empty volume", &shop.node, &load(&shop, "e"))?.per_second();
    let stored = fill(arguments, &shop, "s", arguments.orders)?;
    wait_for_outbox(&shop)?;
    let full = measure(
        &format!("POST /order, {stored} orders stored"),
        &shop.node,
        &load(&shop, "f"),
    )?
    .per_second();
    println!("  {:.2} of the empty volume's (goal 0.8)", full / empty);
    shop.node.stop()?;
    let again = Shop::reopen(arguments, &arguments.dir.join("stored"))?;
    let opened = again.node.started_in;
    again.node.stop()?;
    let fresh = Shop::reopen(arguments, &folder(arguments, "fresh")?)?;
    println!(
        "opening: {:.0} ms with {stored} orders, {:.0} ms with none",
        opened.as_secs_f64() * 1e3,
        fresh.node.started_in.as_secs_f64() * 1e3
    );
    fresh.node.stop()
}

/// Measures a load of a thousand orders per second while the warehouse is unreachable for a minute.
/// Also measures the time from the return of the warehouse until the outbox is empty (at most 600
/// s).
pub(crate) fn away(arguments: &Arguments) -> Outcome<()> {
    let folder = folder(arguments, "away")?;
    // The address of a stopped warehouse is unreachable until a warehouse starts there again.
    let gone = Server::start(&["warehouse", "3000"])?;
    let address = gone.address;
    gone.stop()?;
    let node = Server::start(&["node", text(&folder)?, &format!("http://{address}")])?;
    put_stock(node.address, &stock_lines(Quantities::Plenty))?;
    let load = Load {
        lasting: Duration::from_secs(60),
        ..arguments.load(node.address, Ask::Order("away".to_owned()), Pace::Open(1_000.0))
    };
    measure("orders, 1000/s, warehouse away", &node, &load)?;
    let waiting = health(node.address, "\"outbox\":")?;
    let _back = Server::start(&["warehouse", "3000", &address.port().to_string()])?;
    let begun = Instant::now();
    while health(node.address, "\"outbox\":")? > 0 && begun.elapsed() < Duration::from_secs(600) {
        std::thread::sleep(Duration::from_millis(200));
    }
    println!(
        "outbox: {waiting} messages, empty {:.0} s after the warehouse's return, at 3 s a call (goal 120 s), {} dead",
        begun.elapsed().as_secs_f64(),
        health(node.address, "\"outbox_dead\":")?
    );
    node.stop()
}

/// Measures orders in a closed loop with 1, 10 and 100 times the connections, and the memory of the
/// node during each load.
pub(crate) fn flood(arguments: &Arguments) -> Outcome<()> {
    let shop = Shop::open(arguments, "flood")?;
    println!("  memory before: {} MB", shop.node.memory_bytes() >> 20);
    for (round, times) in [1, 10, 100].into_iter().enumerate() {
        let load = Load {
            connections: arguments.connections * times,
            ..arguments.load(shop.node.address, Ask::Order(format!("f{round}o")), Pace::Closed)
        };
        let stored = health(shop.node.address, "\"outbox\":")?;
        let ended = AtomicBool::new(false);
        let most = std::thread::scope(|scope| -> Outcome<u64> {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while !ended.load(Ordering::Relaxed) {
                    most = shop.node.memory_bytes().max(most);
                    std::thread::sleep(Duration::from_millis(20));
                }
                most
            });
            let label = format!("POST /order, {} connections", load.connections);
            let measured = measure(&label, &shop.node, &load);
            ended.store(true, Ordering::Relaxed);
            measured?;
            watch
                .join()
                .map_err(|_| "the watch over the memory panicked".into())
        })?;
        let added = health(shop.node.address, "\"outbox\":")?.saturating_sub(stored);
        println!(
            "  memory at most {} MB, while {added} orders were added",
            most >> 20
        );
    }
    shop.node.stop()
}

/// The quantities of the stock. A cell is a pair of product and store, and about half of the cells
/// have the quantity 0. The variant determines the quantity in the other cells.
#[derive(Clone, Copy)]
enum Quantities {
    /// Quantities from 1 to 15, computed from product and store.
    Usual,
    /// Quantities of `PLENTY` units, more than any run uses.
    Plenty,
}

/// Returns the CSV lines of a stock of the usual size. About half of the lines have the quantity 0.
fn stock_lines(quantities: Quantities) -> Vec<u8> {
    let mut lines = Vec::with_capacity(32 << 20);
    for product in 1..=PRODUCTS {
        for store in 1..=STORES {
            let random = mixed(u64::from(product) << 20 | u64::from(store));
            let quantity = match quantities {
                _ if random >> 63 == 1 => 0,
                Quantities::Usual => random as u32 % 15 + 1,
                Quantities::Plenty => PLENTY,
            };
            // Writing to a Vec cannot fail.
            let _ = writeln!(lines, "{product},{store},{quantity}");
        }
    }
    lines
}

/// Returns bits that look random. The same value gives the same bits in every run.
fn mixed(mut value: u64) -> u64 {
    for _ in 0..2 {
        value = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    value ^ value >> 31
}

fn put_stock(address: SocketAddr, lines: &[u8]) -> Outcome<(u16, f64)> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "PUT /stocks HTTP/1.1\r\nhost: imt\r\ncontent-type: text/csv\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        lines.len()
    )?;
    stream.write_all(lines)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.get(9..12).unwrap_or("0").parse().unwrap_or(0);
    Ok((status, begun.elapsed().as_secs_f64() * 1e3))
}

/// Returns the number in the response of `/health` that follows the text `name`.
fn health(address: SocketAddr, name: &str) -> Outcome<u64> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET /health HTTP/1.1\r\nhost: imt\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let digits = answer.split(name).nth(1).ok_or("the health has no such number")?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    Ok(digits[..end].parse()?)
}
