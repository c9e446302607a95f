//! Tries faults on microdb and, with feature `rivals`, on other embedded stores: flipped bits,
//! power cuts and failed syncs.
//!
//! ```text
//! cargo run --release -p imt-benches --bin faults                       # microdb alone
//! cargo run --release -p imt-benches --bin faults --features rivals     # beside the rivals
//! ```
//!
//! - [`flips`], [`cuts`], [`syncs`]: the three kinds of faults
//! - [`work`]: the child processes in which the engines run
//! - [`verdict`]: opens a damaged database in a child, and judges the result
//! - [`power`]: a traced engine on the modelled disk
//! - [`disk`]: the model of a disk on which writes are durable only after a sync
//! - [`traced`]: a child that asks its parent before each write and each sync
//! - [`report`]: the results as tables and JSON

mod cuts;
mod disk;
mod flips;
mod power;
mod report;
mod syncs;
mod traced;
mod verdict;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use imt_benches::Outcome;
use imt_benches::engines::EngineName;

use crate::flips::End;
use crate::report::Results;
use crate::syncs::Life;

/// Number of records of a prepared database.
const RECORDS: u64 = 1_000;

/// Tries faults on each engine, each open in its own process.
#[derive(Debug, Parser)]
#[command(name = "faults", version)]
struct Arguments {
    /// Engines to try, separated by commas [default: all of this build].
    #[arg(long, value_enum, value_delimiter = ',')]
    engines: Vec<EngineName>,

    /// Faults to try, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "flips,cuts,syncs")]
    faults: Vec<Fault>,

    /// Number of flipped bits for each engine, in a closed and in a killed database each.
    #[arg(long, default_value_t = 2_000)]
    flips: u64,

    /// Number of commits during which the power is cut.
    #[arg(long, default_value_t = 300)]
    commits: u64,

    /// Number of power cuts before each sync and after each durable write.
    #[arg(long, default_value_t = 3)]
    tries: u64,

    /// Number of scenarios with a failed sync for each engine, with and without a restart of its
    /// process each.
    #[arg(long, default_value_t = 60)]
    scenarios: u64,

    /// Seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Folder for the databases. No fault needs a real disk, so a folder in memory is faster.
    #[arg(long, default_value = "target/faults")]
    dir: PathBuf,

    /// Format of the results.
    #[arg(long, value_enum, default_value_t = Output::Markdown)]
    output: Output,

    /// Run one task in this process; used by the parent to start a child.
    #[arg(long, hide = true)]
    child: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Fault {
    Flips,
    Cuts,
    Syncs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Markdown,
    Json,
}

/// The settings of all tries on one engine.
struct Plan {
    flips: u64,
    commits: u64,
    tries: u64,
    scenarios: u64,
    seed: u64,
    folder: PathBuf,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faults: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Outcome<()> {
    if let Some(task) = &arguments.child {
        return work::run(serde_json::from_str(task)?);
    }
    let engines = if arguments.engines.is_empty() {
        EngineName::all()
    } else {
        arguments.engines
    };
    let mut results = Results::default();
    for engine in engines {
        let plan = Plan {
            flips: arguments.flips,
            commits: arguments.commits,
            tries: arguments.tries,
            scenarios: arguments.scenarios,
            seed: arguments.seed,
            folder: arguments.dir.join(engine.name()),
        };
        std::fs::create_dir_all(&plan.folder)?;
        for fault in &arguments.faults {
            eprintln!("{engine}: {fault:?}");
            if let Err(error) = one(&plan, engine, *fault, &mut results) {
                eprintln!("{engine}: {fault:?} failed: {error}");
                results
                    .failures
                    .push((engine.name().to_owned(), format!("{fault:?}: {error}")));
            }
        }
    }
    match arguments.output {
        Output::Markdown => print!("{}", results.markdown()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&results)?),
    }
    if results.failures.is_empty() {
        Ok(())
    } else {
        Err("a fault could not be tried on an engine".into())
    }
}

fn one(plan: &Plan, engine: EngineName, fault: Fault, results: &mut Results) -> Outcome<()> {
    let name = engine.name().to_owned();
    match fault {
        Fault::Flips => {
            let closed = flips::run(plan, engine, End::Closed)?;
            results.flips_closed.push((name.clone(), closed));
            let killed = flips::run(plan, engine, End::Killed)?;
            results.flips_killed.push((name, killed));
        }
        Fault::Cuts => results.cuts.push((name, cuts::run(plan, engine)?)),
        Fault::Syncs => {
            let going_on = syncs::run(plan, engine, Life::GoesOn)?;
            results.syncs.push((name.clone(), going_on));
            let restarted = syncs::run(plan, engine, Life::StartsAgain)?;
            results.syncs_restarted.push((name, restarted));
        }
    }
    Ok(())
}
