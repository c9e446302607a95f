//! `imt context`: stores the addresses of a cluster under a name.

use crate::args;
use crate::completion;
use crate::contexts::{self, Contexts};
use crate::error::CliError;
use crate::output::{self, OutputFormat, TableArgs};
use imt_oms::WarehouseUrl;
use imt_sim::Endpoint;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Subcommands of `imt context`.
#[derive(clap::Subcommand)]
pub(crate) enum ContextCommand {
    /// Add a context, or change one with --replace.
    #[command(after_help = "\
Examples:
  imt context add prod --oms http://10.0.0.7:9090 --use
  imt context add local --data /srv/imt --oms http://127.0.0.1:9090

A context applies to every command but `imt sim` and `imt node start`, which
start servers or send orders. A flag overrides the environment, the
environment overrides the context, and the context overrides imt.toml.")]
    Add(AddArgs),
    /// List all contexts. A star marks the one in use.
    #[command(after_help = "Examples:\n  imt context list\n  imt context list --output json")]
    List {
        #[command(flatten)]
        table: TableArgs,
    },
    /// Use a context from now on.
    #[command(after_help = "\
Examples:
  imt context use prod
  imt context use --none
  imt order list --context prod       one command alone")]
    Use {
        /// Name of the context
        #[arg(required_unless_present = "none", add = completion::contexts())]
        name: Option<String>,
        /// Use no context
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// Remove a context.
    #[command(after_help = "Example:\n  imt context remove prod")]
    Remove {
        /// Name of the context
        #[arg(add = completion::contexts())]
        name: String,
    },
}

#[derive(clap::Args)]
pub(crate) struct AddArgs {
    /// Name of the context
    #[arg(value_parser = args::context_name)]
    name: String,
    /// Address of a node
    #[arg(long, value_name = "URL", required_unless_present_any = ["warehouse", "data"])]
    oms: Option<Endpoint>,
    /// Address of the warehouse
    #[arg(long, value_name = "URL")]
    warehouse: Option<WarehouseUrl>,
    /// Data folder that the nodes share, if they are on this machine
    #[arg(short, long, value_name = "DIR", value_parser = args::folder())]
    data: Option<PathBuf>,
    /// Replace a context of this name
    #[arg(long)]
    replace: bool,
    /// Use the context from now on
    #[arg(long = "use")]
    is_used: bool,
}

impl ContextCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Add(args) => add(args, output)?,
            Self::List { table } => list(&table, output)?,
            Self::Use { name, .. } => choose(name, output)?,
            Self::Remove { name } => remove(&name, output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn add(args: AddArgs, output: OutputFormat) -> Result<(), CliError> {
    let mut contexts = Contexts::read()?;
    let name = args.name;
    if contexts.contexts.contains_key(&name) && !args.replace {
        return Err(CliError::Usage(format!(
            "there is a context {name:?} already; --replace changes it"
        )));
    }
    let data = args.data.map(|data| {
        // The absolute path is stored. A relative path would name another folder when the user
        // works in another directory.
        let absolute = std::path::absolute(&data).unwrap_or(data);
        absolute.display().to_string()
    });
    let values = [
        ("oms", args.oms.map(|oms| oms.to_string())),
        ("warehouse", args.warehouse.map(|warehouse| warehouse.to_string())),
        ("data", data),
    ];
    let values: BTreeMap<String, String> = values
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect();
    contexts.contexts.insert(name.clone(), values.clone());
    if args.is_used {
        contexts.current = Some(name.clone());
    }
    contexts.write()?;
    let is_used = contexts.current.as_ref() == Some(&name);
    let advice = match is_used {
        true => "and used from now on".to_owned(),
        false => format!("imt context use {name} uses it"),
    };
    output::print_either(
        output,
        &format!("context {name} is kept; {advice}"),
        &json!({ "name": name, "in_use": is_used, "values": values }),
    )
}

fn list(table: &TableArgs, output: OutputFormat) -> Result<(), CliError> {
    let contexts = Contexts::read()?;
    let is_used = |name: &String| contexts.current.as_ref() == Some(name);
    if output == OutputFormat::Json {
        let listed: Vec<_> = contexts
            .contexts
            .iter()
            .map(|(name, values)| json!({ "name": name, "in_use": is_used(name), "values": values }))
            .collect();
        return output::print_json(&listed);
    }
    if contexts.contexts.is_empty() {
        output::remark("there are no contexts; imt context add makes one");
    }
    let mut rows = vec![
        ["use", "context", "oms", "warehouse", "data"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, values) in &contexts.contexts {
        let value = |key: &str| values.get(key).map_or("-", String::as_str).to_owned();
        let star = if is_used(name) { "*" } else { "" };
        rows.push(vec![
            star.to_owned(),
            name.clone(),
            value("oms"),
            value("warehouse"),
            value("data"),
        ]);
    }
    output::print_text(&table.render(rows)?)
}

fn choose(name: Option<String>, output: OutputFormat) -> Result<(), CliError> {
    let mut contexts = Contexts::read()?;
    if let Some(name) = &name {
        contexts.get(name)?;
    }
    contexts.current = name;
    contexts.write()?;
    let text = match &contexts.current {
        Some(name) => format!("context {name} is used from now on"),
        None => "no context is used from now on".to_owned(),
    };
    output::print_either(output, &text, &json!({ "current": contexts.current }))
}

fn remove(name: &str, output: OutputFormat) -> Result<(), CliError> {
    let mut contexts = Contexts::read()?;
    contexts.get(name)?;
    contexts.contexts.remove(name);
    if contexts.current.as_deref() == Some(name) {
        contexts.current = None;
    }
    contexts.write()?;
    let file = contexts::path().map(|path| path.display().to_string());
    output::print_either(
        output,
        &format!("context {name} is removed"),
        &json!({ "name": name, "removed": true, "file": file }),
    )
}
