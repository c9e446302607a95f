//! Measures microdb and, with feature `rivals`, six other embedded stores, and prints one table.
//!
//! ```text
//! cargo run --release -p imt-benches --bin engine --features rivals -- --output markdown
//! cargo run --release -p imt-benches --bin engine -- --quick
//! ```
//!
//! Without feature `rivals` only microdb is built and measured; that needs no C++ toolchain and no
//! minutes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use imt_benches::engines::EngineName;
use imt_benches::run::{Plan, Results};
use imt_benches::workloads::{self, Task, Workload};
use imt_benches::{Outcome, report, run};

/// Runs every workload of the engine table, each (engine, workload) in a process of its own.
#[derive(Debug, Parser)]
#[command(name = "engine", version)]
struct Arguments {
    /// Engines to measure, separated by commas [default: all of this build].
    #[arg(long, value_enum, value_delimiter = ',')]
    engines: Vec<EngineName>,

    /// Workloads to run, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,

    /// Records to load.
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,

    /// Bytes of a value.
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,

    /// Repetitions; the table shows medians.
    #[arg(long, default_value_t = 3)]
    repeat: u64,

    /// Seconds after which a rate has been measured long enough.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// Folder for the databases, on the disk to be measured; a folder of memory makes the durable
    /// rows worthless.
    #[arg(long, default_value = "target/benchmarks")]
    dir: PathBuf,

    /// How to print the results.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    /// A smoke of a few seconds an engine: 20,000 records, one repetition. Shows that all works,
    /// not how fast.
    #[arg(long)]
    quick: bool,

    /// Measure nothing: print the results of earlier runs (JSON). Rows of later files replace those
    /// of earlier ones.
    #[arg(long, value_delimiter = ',')]
    from: Vec<PathBuf>,

    /// Leaves the machine's own limits out: measuring them takes more memory than a small cgroup
    /// has
    #[arg(long)]
    no_limits: bool,

    /// Runs one task in this process; the parent's way to start a child.
    #[arg(long, hide = true)]
    child: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Markdown,
    Json,
}

fn main() -> ExitCode {
    match work(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("engine: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: Arguments) -> Outcome<ExitCode> {
    if let Some(task) = &arguments.child {
        let task: Task = serde_json::from_str(task)?;
        println!("{}", serde_json::to_string(&workloads::run(&task)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    let output = arguments.output;
    let results = if arguments.from.is_empty() {
        run::run(&plan(arguments))?
    } else {
        read(&arguments.from)?
    };
    match output {
        Output::Text => print!("{}", report::text(&results)),
        Output::Markdown => print!("{}", report::markdown(&results)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&results)?),
    }
    Ok(if results.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn plan(arguments: Arguments) -> Plan {
    let or_all = |chosen: Vec<EngineName>| {
        if chosen.is_empty() {
            EngineName::all()
        } else {
            chosen
        }
    };
    let mut workloads = if arguments.workloads.is_empty() {
        Workload::value_variants().to_vec()
    } else {
        arguments.workloads
    };
    // Some read what loading leaves, so that comes before them in whatever order they were asked
    // for.
    workloads.sort_unstable();
    workloads.dedup();
    let quick = arguments.quick;
    Plan {
        engines: or_all(arguments.engines),
        workloads,
        records: if quick { 20_000 } else { arguments.records },
        value_bytes: arguments.value_bytes,
        repeat: if quick { 1 } else { arguments.repeat },
        seconds: if quick { 0.1 } else { arguments.seconds },
        folder: arguments.dir,
        limits: !arguments.no_limits,
    }
}

fn read(files: &[PathBuf]) -> Outcome<Results> {
    let mut merged = Results::default();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let results = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        merged.merge(results);
    }
    Ok(merged)
}
