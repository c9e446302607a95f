//! `imt`: one binary with all commands.
//!
//! This file parses the command line, calls the command's file under `commands/`, and turns the
//! outcome into an exit code (`exit.rs`). Commands parse, call the libraries and print. Decisions
//! belong to the libraries.

mod commands;
mod config;
mod descriptors;
mod error;
mod exit;
mod http;
mod logging;
mod output;
mod progress;
mod signals;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use config::ConfigFile;
use error::CliError;
use output::OutputFormat;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// IMT Order: order management over nodes, its simulators and its database, in one binary.
#[derive(Parser)]
#[command(
    name = "imt",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  imt sim run                                 a node, a warehouse and a shop for 30 s, then the audit
  imt sim run --scenario black-friday         a rush for a few products
  imt node start --name alpha                 an order management node alone, API on 127.0.0.1:9090
  imt order show 17                           state, store and products of order 17
  imt db inspect data/volumes/sim-master      tables, segments and recovery of a node's database

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check (audit, verify, diff, salvage) found something,
4 a threshold was missed, 5 a server does not answer, 130 interrupted.
Every flag that names IMT_X in its help can be set by that environment variable too, and as x = VALUE in imt.toml."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(clap::Args)]
struct Global {
    /// File of settings [default: imt.toml, if it exists]
    // `config` reads this flag before clap parses. It stands here for the help and the grammar.
    #[arg(
        long,
        global = true,
        env = "IMT_CONFIG",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: Option<PathBuf>,
    /// Format of results
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "IMT_OUTPUT",
        help_heading = "Global options"
    )]
    output: OutputFormat,
    /// Format of the log on standard error
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "IMT_LOG",
        help_heading = "Global options"
    )]
    log: logging::LogFormat,
    /// Log level (error, warn, info, debug, trace) or a filter such as `imt_oms=debug,info`
    #[arg(
        long,
        global = true,
        default_value = "info",
        env = "IMT_LOG_LEVEL",
        value_name = "FILTER",
        help_heading = "Global options"
    )]
    log_level: String,
}

#[derive(Subcommand)]
enum Command {
    /// Run an order management node.
    #[command(subcommand)]
    Node(commands::node::NodeCommand),
    /// Run the simulators: the whole shop, or the front or the warehouse alone.
    #[command(subcommand)]
    Sim(commands::sim::SimCommand),
    /// Show the orders and dead letters of a node.
    #[command(subcommand)]
    Order(commands::order::OrderCommand),
    /// Show the ring, plan changes of it, find the owners of keys.
    #[command(subcommand)]
    Ring(commands::ring::RingCommand),
    /// Show the settings in force and the source of each.
    #[command(subcommand)]
    Config(commands::config::ConfigCommand),
    /// Prepare, check or try out the engine of a cluster on many machines.
    #[command(subcommand)]
    Engine(commands::engine::EngineCommand),
    /// Inspect, read, change, check and repair a MicroDb database.
    #[command(subcommand)]
    Db(commands::db::DbCommand),
    /// Print the completion script of a shell.
    #[command(
        after_help = "Example:\n  imt completions bash > ~/.local/share/bash-completion/completions/imt"
    )]
    Completions {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match start(&args) {
        Ok(code) => code,
        Err(CliError::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            let mut stderr = std::io::stderr().lock();
            // Nothing can be done if even standard error is closed.
            let _ = writeln!(stderr, "imt: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                let _ = writeln!(stderr, "  because: {cause}");
                source = cause.source();
            }
            error.exit().into()
        }
    }
}

fn start(args: &[OsString]) -> Result<ExitCode, CliError> {
    let file = ConfigFile::find(args, &Cli::command())?;
    // For wrong usage, clap prints its message and ends the process.
    let matches = file.apply(Cli::command()).get_matches_from(args);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    logging::start(cli.global.log, &cli.global.log_level)?;
    descriptors::raise_limit();
    run(cli, &file)
}

fn run(cli: Cli, file: &ConfigFile) -> Result<ExitCode, CliError> {
    let output = cli.global.output;
    match cli.command {
        Command::Node(command) => command.run(output),
        Command::Sim(command) => command.run(output),
        Command::Order(command) => command.run(output),
        Command::Config(command) => command.run(&Cli::command(), file, output),
        Command::Ring(command) => command.run(output),
        Command::Engine(command) => command.run(output),
        Command::Db(command) => command.run(output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "imt", &mut script);
            output::print_bytes(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
