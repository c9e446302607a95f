//! `imt engine add` and `imt engine list`: add an engine to a cluster, and list the engines over
//! which its volumes are spread.

use crate::cluster::{Cluster, ClusterArgs};
use crate::error::CliError;
use crate::output::{self, OutputFormat, TableArgs};
use imt_oms::{EngineUrl, EngineView};
use imt_ring::NodeName;
use serde::Serialize;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Name in the list for the cluster's first engine, which keeps the cluster's state.
const FIRST: &str = "(first)";
/// Maximum time to wait until the coordinator has added the engine.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of polls of the cluster's state.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A row of `imt engine list`.
#[derive(Serialize)]
struct Listed {
    name: String,
    url: String,
    state: &'static str,
    volumes: Vec<String>,
}

fn first_of(cluster: &Cluster) -> Result<&EngineUrl, CliError> {
    match cluster {
        Cluster::Engine { url, .. } => Ok(url),
        Cluster::Folder(_) => Err(CliError::Usage(
            "the engine of the cluster is missing: name it with --engine URL".to_owned(),
        )),
    }
}

async fn view(first: &EngineUrl) -> Result<EngineView, CliError> {
    let viewed = imt_oms::view_engine(first).await;
    viewed.map_err(|error| CliError::because(format!("the engines of {first} are not known"), error))
}

/// Asks the coordinator, by a request to all running nodes, to add an engine. Waits until the
/// cluster's state has the engine. Sends no request if the state already has an engine with this
/// name and URL.
pub(super) async fn add(
    name: &NodeName,
    url: &EngineUrl,
    cluster: ClusterArgs,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let cluster = Cluster::from(cluster);
    let first = first_of(&cluster)?;
    let (name, text) = (name.to_string(), url.to_string());
    let is_known = |view: &EngineView| {
        let mut known = view.further.iter();
        known.any(|engine| engine.name == name && engine.url == text)
    };
    let view_now = view(first).await?;
    if let Some(other) = view_now.further.iter().find(|engine| engine.name == name)
        && other.url != text
        && !other.volumes.is_empty()
    {
        return Err(CliError::failed(format!(
            "'{name}' is {} already, with volumes on it; choose another name",
            other.url
        )));
    }
    if !is_known(&view_now) {
        imt_oms::check_further_engine(first, url)
            .await
            .map_err(|error| CliError::because(format!("'{name}' was not added"), error))?;
        let path = format!(
            "/peer/engine/{name}?{}",
            super::super::order::percent_encode(&text)
        );
        super::super::node::tell_all(&cluster, &path, "start a node first: imt node start --engine URL")
            .await?;
        let until = Instant::now() + CHANGE_TIMEOUT;
        while !is_known(&view(first).await?) {
            if Instant::now() >= until {
                return Err(CliError::failed(format!(
                    "no node has added '{name}' within {CHANGE_TIMEOUT:?}; see the nodes' logs, then run this again"
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    let said = format!("engine '{name}' is added; the volumes of further nodes spread over all engines");
    output::print_either(output, &said, &json!({ "name": name, "url": text }))?;
    Ok(ExitCode::SUCCESS)
}

/// Lists the engines of a cluster with the volumes on each.
pub(super) async fn list(
    cluster: ClusterArgs,
    table: &TableArgs,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let cluster = Cluster::from(cluster);
    let first = first_of(&cluster)?;
    let view = view(first).await?;
    let mut engines = vec![Listed {
        name: FIRST.to_owned(),
        url: first.to_string(),
        state: "answers",
        volumes: view.volumes,
    }];
    for engine in view.further {
        let state = match imt_oms::engine_answers(first, &engine.url).await {
            true => "answers",
            false => "away",
        };
        engines.push(Listed {
            name: engine.name,
            url: engine.url,
            state,
            volumes: engine.volumes,
        });
    }
    if output == OutputFormat::Json {
        output::print_json(&engines)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["engine", "state", "volumes", "url"].map(str::to_owned).to_vec()];
    rows.extend(engines.into_iter().map(|engine| {
        let volumes = match engine.volumes.is_empty() {
            true => "-".to_owned(),
            false => engine.volumes.join(","),
        };
        vec![engine.name, engine.state.to_owned(), volumes, engine.url]
    }));
    output::print_text(&table.render(rows)?)?;
    Ok(ExitCode::SUCCESS)
}
