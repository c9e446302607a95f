//! `imt`: one binary with all commands.
//!
//! This file parses the command line, calls the command's file under `commands/`, and turns the
//! outcome into an exit code (`exit.rs`). A command parses its arguments, calls the libraries and
//! prints the results. The libraries have all rules of orders, nodes and databases.
//!
//! The first parse of the command line needs no files of settings and contexts, so help, the
//! version and most errors of usage work without these files. If a command is to run, a second
//! parse uses the values of the files as defaults of flags.

mod args;
mod cluster;
mod colour;
mod commands;
mod completion;
mod config;
mod contexts;
mod error;
mod exit;
mod help;
mod http;
mod logging;
mod otlp;
mod output;
mod progress;
mod rlimit;
mod signals;
mod suggest;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use config::{ConfigFile, Defaults, flag_value};
use contexts::Contexts;
use error::CliError;
use output::{ColorChoice, OutputFormat};
use serde_json::json;
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
  imt sim run                           a node, a warehouse, a shop: 30 s
  imt sim run --scenario black-friday   a rush for a few products
  imt node start --name alpha           a node alone, API on 127.0.0.1:9090
  imt order show 17                     state, store and products of order 17
  imt db inspect data/volumes/alpha     tables and segments of a database

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check found something,
4 a threshold was missed, 5 a server does not answer, 130 interrupted.

-h is short, --help has everything. A flag with [env: IMT_X] in its --help can
be set by that variable, and as x = VALUE in imt.toml. A context sets the
addresses and the data folder. imt config show lists all settings with their
sources."
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
    // `config` reads this flag from the unparsed arguments. The field only makes clap accept and
    // document the flag.
    #[arg(
        long,
        global = true,
        env = "IMT_CONFIG",
        hide_short_help = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: Option<PathBuf>,
    /// Context to use, see `imt context` [default: the one in use]
    // `Contexts` reads this flag from the unparsed arguments. The field only makes clap accept and
    // document the flag.
    #[arg(
        long,
        global = true,
        env = "IMT_CONTEXT",
        hide_short_help = true,
        value_name = "NAME",
        help_heading = "Global options",
        add = completion::contexts()
    )]
    context: Option<String>,
    /// Format of results and errors
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "IMT_OUTPUT",
        hide_possible_values = true,
        value_name = "table|json",
        help_heading = "Global options"
    )]
    output: OutputFormat,
    /// Use of colour
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "IMT_COLOR",
        hide_short_help = true,
        hide_possible_values = true,
        value_name = "auto|always|never",
        help_heading = "Global options"
    )]
    color: ColorChoice,
    /// Format of the log on standard error
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "IMT_LOG",
        hide_short_help = true,
        hide_possible_values = true,
        value_name = "text|json",
        help_heading = "Global options"
    )]
    log: logging::LogFormat,
    /// Minimum log level, or a filter such as imt_oms=debug,info
    #[arg(
        long,
        global = true,
        default_value = "info",
        env = "IMT_LOG_LEVEL",
        hide_short_help = true,
        value_name = "FILTER",
        help_heading = "Global options"
    )]
    log_level: String,
    /// Log errors only, and show no progress
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        help_heading = "Global options"
    )]
    quiet: bool,
    /// Log more: -v for debug, -vv for trace
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    verbose: u8,
}

impl Global {
    /// Returns the filter of the log. `--quiet` and `--verbose` override `--log-level`.
    fn filter(&self) -> &str {
        match (self.quiet, self.verbose) {
            (true, _) => "error",
            (false, 0) => &self.log_level,
            (false, 1) => "debug",
            (false, _) => "trace",
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run an order management node.
    #[command(subcommand)]
    Node(commands::node::NodeCommand),
    /// Run the simulators: the whole shop, or the front or the warehouse alone.
    #[command(subcommand)]
    Sim(commands::sim::SimCommand),
    /// Compare an order management with its warehouse; explain each contradiction.
    #[command(after_help = "\
Examples:
  imt audit
  imt audit --oms http://127.0.0.1:9090 --warehouse http://127.0.0.1:9091
  imt audit --output json

Both sides must answer. Messages that still wait after --wait are listed, and
are no finding.
Exit codes: 0 clean, 1 failure, 3 something is wrong, 5 no answer of a server.")]
    Audit(commands::audit::AuditArgs),
    /// List, show, pay, cancel and watch orders.
    #[command(subcommand)]
    Order(commands::order::OrderCommand),
    /// Show the ring, plan changes of it, find the owners of keys.
    #[command(subcommand)]
    Ring(commands::ring::RingCommand),
    /// Store the addresses of clusters under names.
    #[command(subcommand)]
    Context(commands::context::ContextCommand),
    /// Show the settings in force and the source of each.
    #[command(subcommand)]
    Config(commands::config::ConfigCommand),
    /// Prepare, check or try out the engine of a cluster on many machines.
    #[command(subcommand)]
    Engine(commands::engine::EngineCommand),
    /// Export a volume from an engine, or fill a node's local copy of a volume again.
    #[command(subcommand)]
    Volume(commands::volume::VolumeCommand),
    /// Inspect, read, change, check and repair a MicroDb database.
    #[command(subcommand)]
    Db(commands::db::DbCommand),
    /// Print the completion script of a shell.
    #[command(after_help = "\
Examples:
  imt completions bash > ~/.local/share/bash-completion/completions/imt
  imt completions fish > ~/.config/fish/completions/imt.fish

The script asks imt for each completion, so that it knows the nodes, runs,
scenarios and contexts of this machine. Renew it after an update of imt.")]
    Completions {
        /// Shell to complete for
        shell: completion::Shell,
    },
    /// Print a manual page, or write all of them to a folder.
    #[command(after_help = "\
Examples:
  imt man | man -l -
  imt man sim run | man -l -
  imt man --to ~/.local/share/man/man1")]
    Man(commands::man::ManArgs),
}

impl Command {
    /// Returns `true` if the files of settings and contexts are not read for the command.
    fn needs_no_files(&self) -> bool {
        matches!(self, Self::Completions { .. } | Self::Man(_))
    }
}

fn main() -> ExitCode {
    completion::answer_shell();
    let args: Vec<OsString> = std::env::args_os().collect();
    let mut defaults = Defaults::default();
    match start(&args, &mut defaults) {
        Ok(code) => code,
        Err(CliError::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, wants_json(&args, &defaults));
            error.exit().into()
        }
    }
}

/// Prints an error to standard error, as text or as a JSON document.
fn report(error: &CliError, is_json: bool) {
    let mut text = String::new();
    if is_json {
        text = error.to_json().to_string() + "\n";
    } else {
        text.push_str(&format!("imt: {error}\n"));
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(&format!("  because: {cause}\n"));
            source = cause.source();
        }
    }
    // An error is ignored, because a closed standard error leaves no way to report it.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Returns `true` if `--output`, `IMT_OUTPUT` or a setting in `defaults` asks for errors as JSON.
/// Reads the unparsed arguments, because an error may occur before clap has parsed them.
fn wants_json(args: &[OsString], defaults: &Defaults) -> bool {
    let named = flag_value(args, "output", Some('o')).or_else(|| std::env::var_os("IMT_OUTPUT"));
    let named = named.or_else(|| defaults.value("", "output").map(OsString::from));
    named.is_some_and(|format| format == "json")
}

/// Prints an error of clap, which may also be a help text or the version, and returns the exit
/// code.
fn refuse(error: clap::Error, args: &[OsString], defaults: &Defaults) -> ExitCode {
    let code = u8::try_from(error.exit_code()).unwrap_or(exit::Exit::Usage as u8);
    let error = suggest::improve(error, &Cli::command(), args);
    if error.use_stderr() && wants_json(args, defaults) {
        let text = error.to_string();
        let mut parts = text.trim_start_matches("error: ").split("\n\n");
        let message = parts.next().unwrap_or_default().trim();
        let tip = parts.find_map(|part| part.trim().strip_prefix("tip: "));
        let mut object = json!({ "message": message, "causes": [], "exit_code": code });
        if let Some(tip) = tip {
            object["tip"] = json!(tip);
        }
        let _ = writeln!(std::io::stderr().lock(), "{}", json!({ "error": object }));
    } else {
        // The reader of a help text may close the pipe early. This is no failure.
        let _ = error.print();
    }
    ExitCode::from(code)
}

/// Returns the definition of the command line. `--color` or `IMT_COLOR` decides if its help texts
/// and errors are coloured.
fn definition(args: &[OsString]) -> clap::Command {
    let color = flag_value(args, "color", None).or_else(|| std::env::var_os("IMT_COLOR"));
    let color = match color.as_ref().and_then(|color| color.to_str()) {
        Some("always") => clap::ColorChoice::Always,
        Some("never") => clap::ColorChoice::Never,
        _ => clap::ColorChoice::Auto,
    };
    help::shaped(Cli::command(), args).color(color)
}

/// Returns the path of the command, such as `node start`, even if required arguments are missing.
fn command_path(args: &[OsString]) -> String {
    let matches = definition(args).ignore_errors(true).try_get_matches_from(args);
    let mut names = Vec::new();
    let mut below = matches.as_ref().ok().and_then(ArgMatches::subcommand);
    while let Some((name, inner)) = below {
        names.push(name);
        below = inner.subcommand();
    }
    names.join(" ")
}

/// Runs the command that `args` name. Stores the settings of the files in `defaults`, which also
/// decide the format of an error.
fn start(args: &[OsString], defaults: &mut Defaults) -> Result<ExitCode, CliError> {
    let first = definition(args).try_get_matches_from(args);
    let first = first.and_then(|matches| Cli::from_arg_matches(&matches));
    let mut broken = None;
    match &first {
        // An error of the first parse is printed at once, except a missing argument: a file may set
        // this argument. The file may also set the format of the error. A broken file is ignored
        // here, because the error of the first parse is the one to print.
        Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => {
            if error.use_stderr() {
                defaults.file = ConfigFile::find(args, &Cli::command()).unwrap_or_default();
            }
        }
        Ok(cli) if cli.command.needs_no_files() => {}
        _ => {
            let command = first.as_ref().ok().map(|cli| &cli.command);
            // `imt config` shows the settings without a broken file, and reports the error of the
            // file last.
            let shows_config = matches!(command, Some(Command::Config(_)));
            match ConfigFile::find(args, &Cli::command()) {
                Ok(file) => defaults.file = file,
                Err(error) if shows_config => broken = Some(error),
                Err(error) => return Err(error),
            }
            let is_context = matches!(command, Some(Command::Context(_)));
            if !is_context && config::follows_context(&command_path(args)) {
                match Contexts::chosen(args) {
                    Ok(context) => defaults.context = context,
                    Err(error) if shows_config => broken = broken.or(Some(error)),
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let cli = match first {
        Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => Err(error),
        _ => {
            let matches = defaults.apply(definition(args)).try_get_matches_from(args);
            matches.and_then(|matches| Cli::from_arg_matches(&matches))
        }
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => return Ok(refuse(error, args, defaults)),
    };
    output::set_up(cli.global.color, cli.global.quiet);
    logging::start(cli.global.log, cli.global.filter())?;
    config::warn_of_unknown_variables(&Cli::command());
    rlimit::raise_limit();
    let code = run(cli, defaults)?;
    broken.map_or(Ok(code), Err)
}

fn run(cli: Cli, defaults: &Defaults) -> Result<ExitCode, CliError> {
    let output = cli.global.output;
    match cli.command {
        Command::Node(command) => command.run(output),
        Command::Sim(command) => command.run(output),
        Command::Audit(args) => commands::audit::run(args, output),
        Command::Order(command) => command.run(output),
        Command::Context(command) => command.run(output),
        Command::Config(command) => command.run(&Cli::command(), defaults, output),
        Command::Ring(command) => command.run(output),
        Command::Engine(command) => command.run(output),
        Command::Volume(command) => command.run(output),
        Command::Db(command) => command.run(output),
        Command::Man(args) => args.run(help::shaped(Cli::command(), &[]), output),
        Command::Completions { shell } => {
            let script = completion::script(shell)
                .map_err(|error| CliError::because("cannot write the script", error))?;
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
