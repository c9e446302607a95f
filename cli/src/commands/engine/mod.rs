//! `imt engine`: prepares and checks the PostgreSQL servers of a cluster on many machines, and runs
//! such servers on this machine as a demonstration.

mod binaries;
mod demo;
mod further;
mod server;

use crate::cluster::ClusterArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{self, OutputFormat, TableArgs};
use crate::{args, signals};
use imt_oms::{EngineCheck, EngineUrl, Verdict};
use imt_ring::NodeName;
use serde_json::json;
use std::process::ExitCode;

/// Subcommands of `imt engine`.
#[derive(clap::Subcommand)]
pub(crate) enum EngineCommand {
    /// Create the tables of a cluster and the settings of the role. Can be repeated.
    #[command(after_help = "\
Examples:
  imt engine init postgres://imt@db1,db2,db3/shop
  PGPASSWORD=... imt engine init postgres://imt@db1/shop?sslrootcert=ca.pem

A database holds one cluster. The role must own the database, or may create
tables in it.")]
    Init {
        /// URL of the engine, with all its hosts
        #[arg(value_name = "URL")]
        url: EngineUrl,
    },
    /// Check if an engine can hold a cluster without losing an acknowledged order.
    #[command(after_help = "\
Example:
  imt engine check postgres://imt@db1,db2,db3/shop

Writes test entries to measure commits, and deletes them at the end. Changes
nothing else.")]
    Check {
        /// URL of the engine, with all its hosts
        #[arg(value_name = "URL")]
        url: EngineUrl,
    },
    /// Add an engine to a cluster. The volumes of nodes that start later spread over all engines.
    #[command(after_help = "\
Example:
  imt engine init postgres://imt@db4,db5,db6/shop
  imt engine add east postgres://imt@db4,db5,db6/shop \\
    --engine postgres://imt@db1,db2,db3/shop

A volume stays on its engine. The first engine keeps the state of the cluster:
without it nothing is served. Without another one, only its volumes are not.")]
    Add {
        /// Name of the engine in the cluster
        #[arg(value_parser = args::node_name)]
        name: NodeName,
        /// URL of the engine, with all its hosts. Each node needs the password
        #[arg(value_name = "URL")]
        url: EngineUrl,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the engines of a cluster, with their volumes.
    #[command(after_help = "Example:\n  imt engine list --engine postgres://imt@db1,db2,db3/shop")]
    List {
        #[command(flatten)]
        cluster: ClusterArgs,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Run a primary and synchronous standbys on this machine until Ctrl-C, to try a cluster out.
    #[command(after_help = "\
Examples:
  imt engine demo
  imt engine demo --standbys 1 --data /srv/demo

Needs the programs of a PostgreSQL server, such as those of Debian's package
postgresql. If the primary ends, the standby with the newest log is promoted.
Ctrl-C stops all servers.")]
    Demo(demo::DemoArgs),
}

impl EngineCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Init { url } => signals::block_on(init(url, output)),
            Self::Check { url } => signals::block_on(check(url, output)),
            Self::Add { name, url, cluster } => signals::block_on(further::add(&name, &url, cluster, output)),
            Self::List { cluster, table } => signals::block_on(further::list(cluster, &table, output)),
            Self::Demo(args) => signals::block_on(demo::run(args, output)),
        }
    }
}

async fn init(url: EngineUrl, output: OutputFormat) -> Result<ExitCode, CliError> {
    imt_oms::init_engine(&url)
        .await
        .map_err(|error| CliError::because("the engine was not prepared", error))?;
    match output {
        OutputFormat::Json => output::print_json(&json!({ "engine": url.to_string() }))?,
        OutputFormat::Table => output::print_text(&format!(
            "the engine {url} is ready; next: imt engine check URL, then imt node start --engine URL"
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(url: EngineUrl, output: OutputFormat) -> Result<ExitCode, CliError> {
    let checks = imt_oms::check_engine(&url)
        .await
        .map_err(|error| CliError::because("the engine was not checked", error))?;
    let worst = checks.iter().map(|check| check.verdict).max();
    match output {
        OutputFormat::Json => {
            let rows: Vec<_> = checks
                .iter()
                .map(|check| {
                    json!({
                        "subject": check.subject,
                        "verdict": word(check.verdict),
                        "finding": check.finding,
                    })
                })
                .collect();
            output::print_json(&rows)?;
        }
        OutputFormat::Table => output::print_text(&text(&checks))?,
    }
    match worst {
        Some(Verdict::Bad) => Ok(Exit::Found.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "ok",
        Verdict::Warning => "warning",
        Verdict::Bad => "BAD",
    }
}

fn text(checks: &[EngineCheck]) -> String {
    let line = |check: &EngineCheck| {
        format!(
            "{:<8} {:<11} {}",
            word(check.verdict),
            check.subject,
            check.finding
        )
    };
    checks.iter().map(line).collect::<Vec<_>>().join("\n")
}
