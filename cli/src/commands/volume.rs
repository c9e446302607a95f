//! `imt volume`: exports a volume from an engine, and fills a node's local copy of a volume again.

use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::signals;
use imt_oms::{EngineUrl, NodeError, VolumeCopy};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Subcommands of `imt volume`.
#[derive(clap::Subcommand)]
pub(crate) enum VolumeCommand {
    /// Copy a volume from the engine to a new MicroDb folder. Nodes may run.
    #[command(after_help = "\
Examples:
  imt volume export alpha /backup/alpha --engine postgres://imt@db1,db2/shop
  imt db inspect /backup/alpha

The copy has every order that was answered before the command began.")]
    Export {
        #[command(flatten)]
        source: Source,
        /// Folder of the copy. It must not exist.
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Delete a node's local copy of a volume and fill it again from the engine.
    #[command(after_help = "\
Example:
  imt volume rebuild alpha --node beta --engine postgres://imt@db1,db2/shop

The node must not run. A node does the same by itself when a local copy is
missing or differs from the engine.")]
    Rebuild {
        #[command(flatten)]
        source: Source,
        /// Name of the node that keeps the copy
        #[arg(long, value_name = "NAME")]
        node: String,
        /// Data folder of that node
        #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
        data: PathBuf,
    },
}

/// Arguments that name a volume in an engine.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// Name of the volume: the name of the node for which it was created
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// URL of the engine, with all its hosts
    #[arg(long, env = "IMT_ENGINE", value_name = "URL")]
    engine: EngineUrl,
}

impl VolumeCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        signals::block_on(async {
            match self {
                Self::Export { source, folder } => {
                    let Source { volume, engine } = source;
                    let copied = imt_oms::export_volume(&engine, &volume, &folder).await;
                    shown("export", &volume, copied, output)
                }
                Self::Rebuild { source, node, data } => {
                    let Source { volume, engine } = source;
                    let copied = imt_oms::rebuild_volume(&engine, &volume, &node, &data).await;
                    shown("rebuild", &volume, copied, output)
                }
            }
        })
    }
}

fn shown(
    action: &str,
    volume: &str,
    copied: Result<VolumeCopy, NodeError>,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let copied =
        copied.map_err(|error| CliError::because(format!("cannot {action} the volume {volume}"), error))?;
    let VolumeCopy { entry, rows } = copied;
    match output {
        OutputFormat::Json => {
            output::print_json(&json!({ "volume": volume, "entry": entry, "rows": rows }))?;
        }
        OutputFormat::Table => output::print_text(&format!(
            "volume {volume}: {}, up to entry {entry} of its log",
            output::count(rows, "row")
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
