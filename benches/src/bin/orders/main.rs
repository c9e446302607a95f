//! Measures order management end to end over HTTP, beside two reference servers. The bare server
//! only parses a request and answers. The durable ceiling also syncs the request's body to a log
//! before it answers. The module `servers` has both.
//!
//! ```text
//! cargo run --profile dist -p imt-benches --bin orders
//! cargo run --profile dist -p imt-benches --bin orders -- --rows closed,open --seconds 5
//! ```
//!
//! Each server runs in a child process. The load generator runs in this process, on the same
//! processors. All rows of a table are measured in one run, so compare rows of one table and not
//! rows of different days.

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

    /// Rows to measure, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Row::Closed, Row::Open, Row::Statistics, Row::Stock])]
    rows: Vec<Row>,

    /// Duration of each load in seconds, except in the row `away` and beside the uploads of the row
    /// `stock`.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,

    /// Number of connections of the closed loop.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Orders per second in the row `open`.
    #[arg(long, default_value_t = 10_000.0)]
    rate: f64,

    /// Number of orders to store, for the rows `memory` and `stored`.
    #[arg(long, default_value_t = 1_000_000)]
    orders: u64,

    /// Number of repetitions of the rows `closed` and `statistics`; their medians are printed too.
    #[arg(long, default_value_t = 3)]
    repeat: usize,

    /// Response time of the warehouse, such as `3000ms`, or `away` to run no warehouse. Orders
    /// never wait for the warehouse.
    #[arg(long, default_value = "away")]
    warehouse: String,

    /// Folder for logs and volumes, on the disk to be measured. Data of earlier runs is deleted.
    #[arg(long, default_value = "target/benchmarks/orders")]
    dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Internal {
    /// Run one server in this process; used by this program to start a child.
    #[command(hide = true)]
    Serve {
        #[command(subcommand)]
        role: servers::Role,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    /// Orders in a closed loop, on the bare server, the durable ceiling and the node.
    Closed,
    /// Orders at a fixed rate, on the durable ceiling and the node.
    Open,
    /// Reads of the statistics of a product, on the bare server and the node.
    Statistics,
    /// Uploads of a whole stock, alone and beside a stream of orders.
    Stock,
    /// Memory of the node for each order that waits for its payment.
    Memory,
    /// Throughput and opening time of a node with many stored orders, compared with an empty node.
    Stored,
    /// Orders at 1,000 per second while the warehouse is unreachable for a minute.
    Away,
    /// Orders in a closed loop with 1, 10 and 100 times the connections, and the node's memory.
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
