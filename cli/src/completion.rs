//! Shell completion of names: nodes, simulation runs, scenarios and contexts.
//!
//! The script that `imt completions` prints makes the shell call this binary for each completion.
//! The crate `clap_complete` completes commands, flags and paths. For names, it uses the candidates
//! of the functions below.
//!
//! Invariants:
//! - A completion changes nothing. A file that cannot be read is ignored without a message.
//! - The data folder comes from the command line, else from the environment, the context or the
//!   file of settings, in this order. Without any of them it is `data`. For commands that ignore
//!   contexts, the context is left out.

use crate::config::{ConfigFile, flag_value, follows_context};
use crate::contexts::Contexts;
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{EnvCompleter, Shells};
use std::ffi::OsString;
use std::path::PathBuf;

/// Environment variable by which a shell asks for completions.
const VARIABLE: &str = "IMT_COMPLETE";

/// A shell with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shell {
    /// The Bourne Again Shell
    Bash,
    /// Elvish
    Elvish,
    /// fish
    Fish,
    /// PowerShell
    Powershell,
    /// The Z Shell
    Zsh,
}

/// Prints completions and ends the process if a shell asked for them with [`VARIABLE`]. Otherwise
/// does nothing.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(<crate::Cli as clap::CommandFactory>::command)
        .var(VARIABLE)
        .complete();
}

/// Returns the script that makes a shell call this binary for completions.
pub(crate) fn script(shell: Shell) -> std::io::Result<Vec<u8>> {
    let name = match shell {
        Shell::Bash => "bash",
        Shell::Elvish => "elvish",
        Shell::Fish => "fish",
        Shell::Powershell => "powershell",
        Shell::Zsh => "zsh",
    };
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer: Option<&dyn EnvCompleter> = shells.completer(name);
    let completer = completer.ok_or_else(|| std::io::Error::other("unknown shell"))?;
    completer.write_registration(VARIABLE, "imt", "imt", "imt", &mut script)?;
    Ok(script)
}

/// Completes a node's name with the names of the ring's members and of all nodes of the data
/// folder.
pub(crate) fn nodes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let data = data_folder();
        let ring = imt_oms::read_ring(&data).ok().flatten();
        let members = ring.iter().flat_map(imt_ring::Ring::members);
        let mut names: Vec<String> = members.map(|member| member.name().to_string()).collect();
        let infos = imt_oms::node_infos(&data).unwrap_or_default();
        names.extend(infos.into_iter().map(|info| info.name.to_string()));
        names.sort();
        names.dedup();
        candidates(names)
    })
}

/// Completes the name of a simulation run with the names of the runs in the data folder.
pub(crate) fn runs() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let folder = data_folder().join(imt_sim::run_folder::RUNS);
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> = folders
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        candidates(names)
    })
}

/// Completes a scenario's name with the names of the built-in scenarios.
pub(crate) fn scenarios() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(imt_sim::scenario::BUILT_IN.map(|(name, _)| name.to_owned())))
}

/// Completes a context's name with the names of the user's contexts.
pub(crate) fn contexts() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Contexts::read().unwrap_or_default().contexts.into_keys()))
}

fn candidates(names: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// Returns the data folder of the command line that is being completed.
fn data_folder() -> PathBuf {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The shell passes the line to complete after two dashes: `imt -- imt node stop al`.
    let line = args.split(|arg| arg == "--").nth(1).unwrap_or_default();
    let of_line = flag_value(line, "data", Some('d'));
    let of_context = || {
        if !follows_context(&crate::command_path(line)) {
            return None;
        }
        let context = Contexts::chosen(line).ok().flatten()?;
        context.value("data").map(OsString::from)
    };
    let of_file = || {
        let file = ConfigFile::find(line, &<crate::Cli as clap::CommandFactory>::command()).ok()?;
        file.value("data").map(|value| OsString::from(&value.text))
    };
    let data = of_line.or_else(|| std::env::var_os("IMT_DATA"));
    let data = data.or_else(of_context).or_else(of_file);
    data.map_or_else(|| PathBuf::from("data"), PathBuf::from)
}
