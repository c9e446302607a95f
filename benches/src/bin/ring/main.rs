//! Measures the ring in comparison with common crates and simple reference structures: look-up,
//! build time, memory, balance, and the keys that move when a node joins or leaves.
//!
//!     # Our ring and the references, then the rivals too:
//!     cargo run --profile dist -p imt-benches --bin ring
//!     cargo run --profile dist -p imt-benches --bin ring --features ring-rivals
//!
//! A look-up time is the tenth percentile of short measurements within a second. Other times are
//! medians. Memory is the growth of the resident set per copy, in a new process that builds many
//! copies of a structure.

mod candidates;
mod history;

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Parser;

use candidates::{Candidate, Key};

/// Time after which a measurement is no longer repeated, because some rivals need seconds to build.
/// The limit does not apply to the first three repetitions.
const TIME_MAX: Duration = Duration::from_secs(4);
/// Number of keys for look-ups. The keys (80 KiB) and the largest table of owners of our ring (128
/// KiB) together fit into a second-level cache of 512 KiB, for any placement of their pages. So the
/// look-up is measured and not the memory.
const KEYS_TIMED: usize = 4_096;

#[derive(Parser)]
#[command(about = "Measures the ring beside its rivals")]
struct Arguments {
    /// Numbers of nodes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "8,100,1000")]
    nodes: Vec<u32>,
    /// Measure only candidates with this text in their name. `plan` and `history` are the names of
    /// the last two tables.
    #[arg(long)]
    only: Option<String>,
    /// Maximum number of repetitions of each measurement of time except for look-ups; the table
    /// shows medians.
    #[arg(long, default_value_t = 21)]
    repeat: usize,
    /// Number of keys with which balance and moves are measured.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Print the tables as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Print the bytes of one structure of `--only`; used by this program in its own process.
    #[arg(long, hide = true)]
    memory: bool,
}

/// Returns keys of 20 bytes, like order ids with a prefix. Every run has the same keys.
fn keys(count: usize) -> Vec<Key> {
    let key = |index: usize| {
        let mixed = (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        let mut key = *b"order-00000000000000";
        for (digit, byte) in key[6..].iter_mut().enumerate() {
            *byte = b'a' + ((mixed >> (digit * 4)) & 15) as u8;
        }
        key
    };
    (0..count).map(key).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the median time of `work` in nanoseconds. Runs `work` up to `repeat` times; no further
/// run starts after [`TIME_MAX`] once there are three.
fn time(repeat: usize, mut work: impl FnMut()) -> f64 {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < repeat && (times.len() < 3 || begin.elapsed() < TIME_MAX) {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_nanos() as f64);
    }
    median(times)
}

/// Returns the time of a short piece of work on an otherwise idle core, in nanoseconds. The result
/// is the tenth percentile of all repetitions within a second. Slower repetitions may be disturbed
/// by other work on the core, which can double their time for seconds.
fn undisturbed(mut work: impl FnMut()) -> f64 {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < Duration::from_secs(1) {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_nanos() as f64);
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 10).copied().unwrap_or(f64::NAN)
}

struct Row {
    lookup_ns: f64,
    build_us: f64,
    bytes: u64,
    fullest: f64,
    join: f64,
    leave: f64,
}

/// Returns the share of keys that have different owners in two rings.
fn moved(before: &[u32], after: &[u32]) -> f64 {
    let differ = before.iter().zip(after).filter(|(before, after)| before != after);
    differ.count() as f64 / before.len() as f64
}

fn measure(candidate: &dyn Candidate, nodes: u32, keys: &[Key], repeat: usize, bytes: u64) -> Row {
    let members: Vec<u32> = (0..nodes).collect();
    let ring = candidate.build(&members);
    let timed = &keys[..KEYS_TIMED];
    let stretch = if candidate.is_slow() { 64 } else { KEYS_TIMED / 4 };
    let mut stretches = timed.chunks_exact(stretch).cycle();
    let mut next = || ring.look_up_all(black_box(stretches.next().unwrap_or_default()));
    (0..16).for_each(|_| next());
    let lookup = undisturbed(next);
    let build = time(repeat, || drop(black_box(candidate.build(black_box(&members)))));
    let owners = ring.owners(keys);
    let mut counts = vec![0u32; nodes as usize];
    owners.iter().for_each(|&owner| counts[owner as usize] += 1);
    let most = counts.iter().max().copied().unwrap_or(0);
    let joined = candidate.join(&members, nodes).owners(keys);
    let left = candidate.leave(&members, nodes / 2).owners(keys);
    Row {
        lookup_ns: lookup / stretch as f64,
        build_us: build / 1e3,
        bytes,
        fullest: f64::from(most) * f64::from(nodes) / keys.len() as f64,
        join: moved(&owners, &joined) * f64::from(nodes + 1),
        leave: moved(&owners, &left) * f64::from(nodes),
    }
}

/// Returns the resident set of this process in bytes, or 0 if it cannot be read. Assumes pages of 4
/// KiB.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * 4096)
}

/// Prints the size in bytes of one structure. Many copies are built and kept, because the resident
/// set grows in whole pages.
fn print_memory(candidate: &dyn Candidate, nodes: u32) {
    let members: Vec<u32> = (0..nodes).collect();
    // The first copy is built before the measurement, so that one-time allocations (tables,
    // generators) are not included.
    drop(black_box(candidate.build(&members)));
    let before = resident();
    // The resident set can shrink below `before` if the kernel swaps pages out.
    let growth = || resident().saturating_sub(before);
    let mut kept = Vec::new();
    while kept.len() < 1000 && growth() < 64 << 20 {
        kept.push(candidate.build(&members));
    }
    println!("{}", growth() / kept.len().max(1) as u64);
}

fn memory_of(candidate: &dyn Candidate, nodes: u32) -> u64 {
    let program = std::env::current_exe().unwrap_or_else(|_| "ring".into());
    let nodes = nodes.to_string();
    let arguments = ["--memory", "--only", candidate.name(), "--nodes", &nodes];
    let output = std::process::Command::new(program).args(arguments).output();
    output
        .ok()
        .and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok())
        .unwrap_or(0)
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn print_row(markdown: bool, cells: &[String]) {
    if markdown {
        println!("| {} |", cells.join(" | "));
    } else {
        let cells: Vec<String> = cells
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:<w$}", w = if column == 0 { 34 } else { 22 }))
            .collect();
        println!("{}", cells.join(" ").trim_end());
    }
}

/// Returns one figure of each row as text, with `digits` digits after the decimal point.
fn figures(rows: &[Row], digits: usize, of: impl Fn(&Row) -> f64) -> String {
    rows.iter()
        .map(|row| format!("{:.digits$}", of(row)))
        .collect::<Vec<_>>()
        .join(" / ")
}

fn main() {
    let arguments = Arguments::parse();
    let candidates = candidates::all();
    if arguments.memory {
        let named = |name: &str| Some(name) == arguments.only.as_deref();
        if let (Some(candidate), Some(&nodes)) = (
            candidates.iter().find(|candidate| named(candidate.name())),
            arguments.nodes.first(),
        ) {
            print_memory(candidate.as_ref(), nodes);
        }
        return;
    }
    let keys = keys(arguments.keys.max(KEYS_TIMED));
    let markdown = arguments.markdown;
    let nodes: Vec<String> = arguments.nodes.iter().map(u32::to_string).collect();
    println!(
        "{} nodes, 20-byte keys, one thread; moves are multiples of the fair minimum\n",
        nodes.join(" / ")
    );
    let heads = [
        "",
        "look-up ns",
        "build us",
        "memory",
        "fullest / mean",
        "join moves",
        "leave moves",
    ];
    print_row(markdown, &heads.map(String::from));
    if markdown {
        print_row(markdown, &["---"; 7].map(String::from));
    }
    let wanted = |name: &str| arguments.only.as_deref().is_none_or(|only| name.contains(only));
    for candidate in candidates.iter().filter(|candidate| wanted(candidate.name())) {
        let row = |&nodes: &u32| {
            let bytes = memory_of(candidate.as_ref(), nodes);
            measure(candidate.as_ref(), nodes, &keys, arguments.repeat, bytes)
        };
        let rows: Vec<Row> = arguments.nodes.iter().map(row).collect();
        if candidate.name() == candidates::HASH_ALONE {
            let lookup = figures(&rows, 1, |row| row.lookup_ns);
            print_row(
                markdown,
                &[candidate.name(), &lookup, "", "", "", "", ""].map(String::from),
            );
            continue;
        }
        let memory: Vec<String> = rows.iter().map(|row| bytes(row.bytes)).collect();
        let cells = [
            candidate.name().to_string(),
            figures(&rows, 1, |row| row.lookup_ns),
            figures(&rows, 0, |row| row.build_us),
            memory.join(" / "),
            figures(&rows, 3, |row| row.fullest),
            figures(&rows, 2, |row| row.join),
            figures(&rows, 2, |row| row.leave),
        ];
        print_row(markdown, &cells);
    }
    if wanted("plan") {
        history::print_plans(markdown, arguments.repeat);
    }
    if wanted("history") {
        history::print_histories(markdown);
    }
}
