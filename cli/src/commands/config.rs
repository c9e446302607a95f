//! `imt config`: shows each setting with the value that commands use if no flag sets it, and the
//! source of that value. Commands that ignore contexts do not use a value of the context.

use std::process::ExitCode;

use clap::Command;
use serde::Serialize;

use crate::config::{self, Defaults};
use crate::error::CliError;
use crate::output::{self, OutputFormat, TableArgs};

/// Subcommands of `imt config`.
#[derive(clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting with its value and the source of the value.
    #[command(after_help = "\
Examples:
  imt config show
  imt config show --config /etc/imt.toml --output json

A flag overrides the environment (IMT_...), the environment overrides the
context (imt context), the context overrides the file (imt.toml, or the file
of --config or IMT_CONFIG), and the file overrides the default.")]
    Show {
        #[command(flatten)]
        table: TableArgs,
    },
}

/// A row of `imt config show`: a setting with its value, and the source of the value.
#[derive(Serialize)]
struct Shown {
    setting: String,
    value: Option<String>,
    source: String,
}

impl ConfigCommand {
    pub(crate) fn run(
        self,
        command: &Command,
        defaults: &Defaults,
        output: OutputFormat,
    ) -> Result<ExitCode, CliError> {
        let Self::Show { table } = self;
        let shown: Vec<Shown> = config::settings(command)
            .iter()
            .map(|setting| show(setting, defaults))
            .collect();
        match output {
            OutputFormat::Json => output::print_json(&shown)?,
            OutputFormat::Table => {
                let mut rows = vec![["setting", "value", "from"].map(str::to_owned).to_vec()];
                rows.extend(shown.into_iter().map(|shown| {
                    let value = shown.value.unwrap_or_else(|| "-".to_owned());
                    vec![shown.setting, value, shown.source]
                }));
                output::print_text(&table.render(rows)?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(setting: &config::Setting, defaults: &Defaults) -> Shown {
    let file = &defaults.file;
    let is_followed = setting
        .args
        .iter()
        .any(|(command, _)| config::follows_context(command));
    let context = defaults.context.as_ref().filter(|_| is_followed);
    let (value, source) = if let Some(value) = std::env::var_os(&setting.variable) {
        (
            Some(value.to_string_lossy().into_owned()),
            format!("environment {}", setting.variable),
        )
    } else if let Some((context, value)) =
        context.and_then(|context| Some((context, context.value(&setting.key)?)))
    {
        (Some(value.to_owned()), format!("context {}", context.name))
    } else if let (Some(value), Some(path)) = (file.value(&setting.key), &file.path) {
        (
            Some(value.text.clone()),
            format!("{} line {}", path.display(), value.line),
        )
    } else {
        default(setting)
    };
    Shown {
        setting: setting.key.clone(),
        value,
        source,
    }
}

/// Returns the default of a setting as its value and source. If commands have different defaults,
/// the value lists each default with its commands. The value is `None` if no command has a default.
fn default(setting: &config::Setting) -> (Option<String>, String) {
    let mut seen: Vec<(String, Vec<&str>)> = Vec::new();
    for (command, arg) in &setting.args {
        let value = arg
            .get_default_values()
            .first()
            .map_or("-".to_owned(), |value| value.to_string_lossy().into_owned());
        match seen.iter_mut().find(|(known, _)| *known == value) {
            Some((_, commands)) => commands.push(command),
            None => seen.push((value, vec![command])),
        }
    }
    match seen.as_slice() {
        [(value, _)] => ((value != "-").then(|| value.clone()), "default".to_owned()),
        several => {
            let words: Vec<String> = several
                .iter()
                .map(|(value, commands)| format!("{value} ({})", commands.join(", ")))
                .collect();
            (Some(words.join("; ")), "default".to_owned())
        }
    }
}
