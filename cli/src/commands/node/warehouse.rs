//! `imt node warehouse`: shows or changes the warehouse of a cluster.

use super::{LOOK_EVERY, tell_all};
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use imt_oms::WarehouseUrl;
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Maximum time to wait until the coordinator has changed the warehouse.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct WarehouseShown {
    warehouse: String,
}

/// Shows the warehouse of a cluster. If `url` is given, changes the warehouse first.
pub(super) async fn show(
    url: Option<WarehouseUrl>,
    cluster: Cluster,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let cluster = &cluster;
    if let Some(url) = url {
        let url = url.to_string();
        let advice = "a node that starts alone takes --warehouse URL";
        tell_all(cluster, &format!("/peer/warehouse?{url}"), advice).await?;
        let until = Instant::now() + CHANGE_TIMEOUT;
        while cluster.look().await?.warehouse.as_ref() != Some(&url) {
            if Instant::now() >= until {
                return Err(CliError::failed(format!(
                    "no node has made {url} the warehouse within {CHANGE_TIMEOUT:?}; see the nodes' logs, then \
                     run this again"
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    let warehouse = cluster.look().await?.warehouse.ok_or_else(|| {
        CliError::failed(format!(
            "no node has run on {cluster}; imt node start --warehouse URL names the warehouse"
        ))
    })?;
    match output {
        OutputFormat::Json => output::print_json(&WarehouseShown { warehouse })?,
        OutputFormat::Table => output::print_text(&warehouse)?,
    }
    Ok(ExitCode::SUCCESS)
}
