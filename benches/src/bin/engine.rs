//! Measures microdb and, with feature `rivals`, six other embedded stores, and prints tables.
//!
//! ```text
//! cargo run --profile dist -p imt-benches --bin engine --features rivals -- --output markdown
//! cargo run --profile dist -p imt-benches --bin engine -- --quick
//! ```
//!
//! Each of the six stores also has a feature of its own. Without `rivals` and these features, only
//! microdb is built and measured. Such a build is fast and needs no C++ toolchain.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use imt_benches::engines::EngineName;
use imt_benches::run::{Plan, Results};
use imt_benches::workloads::{self, Task, Workload};
use imt_benches::{Outcome, report, run};

/// Measures microdb and other embedded stores, each pair of engine and workload in its own process.
#[derive(Debug, Parser)]
#[command(name = "engine", version)]
struct Arguments {
    /// Engines to measure, separated by commas [default: all of this build].
    #[arg(long, value_enum, value_delimiter = ',')]
    engines: Vec<EngineName>,

    /// Workloads to run, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,

    /// Number of records to load.
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,

    /// Size of a value in bytes.
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,

    /// Number of repetitions; the table shows medians.
    #[arg(long, default_value_t = 3)]
    repeat: u64,

    /// Time for which operations are repeated to measure their rate, in seconds; puts end earlier
    /// if all records are stored.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// Folder for the databases, on the disk to be measured. A folder in memory makes the durable
    /// rows meaningless.
    #[arg(long, default_value = "target/benchmarks")]
    dir: PathBuf,

    /// Format of the results.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    /// Run a smoke test of a few seconds per engine: 20,000 records, one repetition. Its figures
    /// are not reliable.
    #[arg(long)]
    quick: bool,

    /// Print the results of earlier runs (JSON) instead of measuring. Rows of later files replace
    /// those of earlier files.
    #[arg(long, value_delimiter = ',')]
    from: Vec<PathBuf>,

    /// Skip the measurement of the machine's own limits (syncs, writes, copies of memory). This
    /// measurement needs more memory than a small cgroup has.
    #[arg(long)]
    no_limits: bool,

    /// Run one task in this process; used by the parent to start a child.
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
    // The workloads are sorted, so that `Load` comes first in any order of the arguments: other
    // workloads read the loaded database.
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
