//! `imt ring`: shows the ring, plans changes of it, and finds the owners of keys.

use crate::cluster::{Cluster, ClusterArgs};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::{args, completion, signals};
use imt_ring::{Member, NodeName, Ring, render};
use std::process::ExitCode;

/// Width of a drawing in columns, if the width of the terminal is unknown.
const WIDTH: usize = 80;

/// Subcommands of `imt ring`.
#[derive(clap::Subcommand)]
pub(crate) enum RingCommand {
    /// Draw the shares of the ring by node and zone.
    #[command(after_help = "Examples:\n  imt ring show\n  imt ring show --data /srv/imt --output json")]
    Show {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show the moves that a change of members would cause, and the smallest number of moves that
    /// any ring with these members would need, without changing the ring
    #[command(after_help = "\
Examples:
  imt ring plan --add beta
  imt ring plan --add beta:2@north --add gamma --remove alpha
  imt ring plan --add sim-master:3      a member gets another weight")]
    Plan {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Member to add, or member with a new weight or zone; may be repeated
        #[arg(long, value_name = "NAME[:WEIGHT[@ZONE]]", value_parser = member)]
        add: Vec<Member>,
        /// Member to remove; may be repeated
        #[arg(long, value_name = "NAME", value_parser = args::node_name, add = completion::nodes())]
        remove: Vec<NodeName>,
    },
    /// Show the owners of keys (order ids, store ids).
    #[command(after_help = "Example:\n  imt ring check 17 18 19")]
    Check {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Keys to look up
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// Parses a member of the ring: `NAME`, `NAME:WEIGHT` or `NAME:WEIGHT@ZONE`.
fn member(text: &str) -> Result<Member, String> {
    let parsed = text.parse();
    parsed.map_err(|error: imt_ring::Error| format!("{error}; for example beta, beta:2 or beta:2@north"))
}

/// Returns the ring that the nodes use. No node has to run.
async fn ring_of(cluster: ClusterArgs) -> Result<Ring, CliError> {
    let cluster = Cluster::from(cluster);
    cluster.ring().await?.ok_or_else(|| {
        CliError::failed(format!(
            "there is no ring in {cluster}; start a node first (imt node start, or imt sim run)"
        ))
    })
}

impl RingCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Show { cluster } => {
                let ring = signals::block_on(ring_of(cluster))?;
                match output {
                    OutputFormat::Json => output::print_json(&ring)?,
                    OutputFormat::Table => output::print_text(&render::show(&ring, style()))?,
                }
            }
            Self::Plan { cluster, add, remove } => {
                let ring = signals::block_on(ring_of(cluster))?;
                let target = target(&ring, add, &remove)?;
                let plan = ring
                    .plan(&target)
                    .map_err(|error| CliError::because("cannot plan this change", error))?;
                match output {
                    OutputFormat::Json => output::print_json(&plan)?,
                    OutputFormat::Table => output::print_text(&render::plan(&plan, style()))?,
                }
            }
            Self::Check { cluster, keys } => {
                let ring = signals::block_on(ring_of(cluster))?;
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                let places = ring.places(&keys);
                match output {
                    OutputFormat::Json => output::print_json(&places)?,
                    OutputFormat::Table => output::print_text(&render::places(&places))?,
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the members of the ring after the planned change.
fn target(ring: &Ring, add: Vec<Member>, remove: &[NodeName]) -> Result<Vec<Member>, CliError> {
    if add.is_empty() && remove.is_empty() {
        return Err(CliError::Usage(
            "nothing to plan: name members with --add or --remove".to_owned(),
        ));
    }
    if let Some(name) = remove.iter().find(|name| ring.member(name).is_none()) {
        return Err(CliError::Usage(format!(
            "'{name}' is not a member of the ring, so it cannot be removed"
        )));
    }
    let stays = |member: &&Member| {
        !remove.contains(member.name()) && !add.iter().any(|new| new.name() == member.name())
    };
    let mut target: Vec<Member> = ring.members().iter().filter(stays).cloned().collect();
    target.extend(add);
    Ok(target)
}

/// Returns the style of a drawing: the width of the terminal, and colour if the output is coloured.
fn style() -> render::Style {
    render::Style {
        width: output::width().unwrap_or(WIDTH),
        colour: output::is_coloured(&std::io::stdout()),
    }
}
