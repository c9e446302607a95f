//! Measures order management end to end over HTTP, beside a bare server and beside the durable
//! ceiling, in one run.
//!
//! ```text
//! cargo run --release -p imt-benches --bin orders
//! cargo run --release -p imt-benches --bin orders -- --rows closed,open --seconds 5
//! ```
//!
//! Servers are processes of their own; the load generator is this one, on the same processors. What
//! stands in one table was measured within the same minutes: compare rows, not days.

mod child;
#[allow(
    dead_code,
    reason = "shared with the program `nodes`, which uses the rest of it"
)]
mod load;
mod rows;
mod servers;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use imt_benches::{Outcome, machine};

/// Measures orders, statistics and stock over HTTP.
#[derive(Debug, Parser)]
#[command(name = "orders", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Internal>,

    /// What to measure, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Row::Closed, Row::Open, Row::Statistics, Row::Stock])]
    rows: Vec<Row>,

    /// Seconds of each load.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,

    /// Connections of the closed loop.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Orders a second of the open loop.
    #[arg(long, default_value_t = 10_000.0)]
    rate: f64,

    /// Orders to store, for `memory` and `stored`.
    #[arg(long, default_value_t = 1_000_000)]
    orders: u64,

    /// Repetitions of the closed loop; the table shows medians.
    #[arg(long, default_value_t = 3)]
    repeat: usize,

    /// How long the warehouse takes to answer; the node's orders never wait for it. `away`: there
    /// is none.
    #[arg(long, default_value = "away")]
    warehouse: String,

    /// Folder for the logs and volumes, on the disk to be measured; emptied before.
    #[arg(long, default_value = "target/benchmarks/orders")]
    dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Internal {
    /// Runs one server in this process; the program's way to start a child.
    #[command(hide = true)]
    Serve {
        #[command(subcommand)]
        role: servers::Role,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    /// Orders, as fast as they are answered: bare, ceiling, ours.
    Closed,
    /// Orders at a fixed rate: ceiling, ours.
    Open,
    /// Statistics of a product: bare, ours.
    Statistics,
    /// A whole stock beside a stream of orders.
    Stock,
    /// What an open order at rest takes in memory.
    Memory,
    /// A volume with many orders against an empty one: opening, throughput.
    Stored,
    /// The warehouse away for a minute at 1,000 orders a second.
    Away,
    /// Ten and a hundred times as many clients as are served without waiting, and the memory that
    /// they take.
    Flood,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Internal::Serve { role }) => servers::serve(role),
        None => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orders: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    std::fs::create_dir_all(&arguments.dir)?;
    let machine = machine::describe(&arguments.dir);
    println!(
        "{} processors, {}, {}",
        machine.processors, machine.processor, machine.file_system
    );
    println!("{}", rows::HEAD);
    for row in &arguments.rows {
        match row {
            Row::Closed => rows::closed(arguments)?,
            Row::Open => rows::open(arguments)?,
            Row::Statistics => rows::statistics(arguments)?,
            Row::Stock => rows::stock(arguments)?,
            Row::Memory => rows::memory(arguments)?,
            Row::Stored => rows::stored(arguments)?,
            Row::Away => rows::away(arguments)?,
            Row::Flood => rows::flood(arguments)?,
        }
    }
    Ok(())
}
