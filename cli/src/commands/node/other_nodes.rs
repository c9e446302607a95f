//! Looks for other nodes of the cluster before a node starts.

use std::path::Path;
use std::time::{Duration, Instant};

use imt_oms::{EngineUrl, NodeConfig};

use super::LOOK_EVERY;
use crate::cluster::Cluster;
use crate::error::CliError;

/// Maximum wait for another node that uses `FIRST_LISTEN` to join the cluster. A node listens
/// before it joins, so its port is taken for a moment before the cluster lists the node.
const FIRST_NODE_WAIT: Duration = Duration::from_secs(2);

/// Returns `true` if a node of the engine runs. Without an engine, returns `true` if a running node
/// of the data folder coordinates its cluster.
pub(super) async fn others_run(engine: Option<&EngineUrl>, data: &Path) -> Result<bool, CliError> {
    match engine {
        Some(url) => {
            let cluster = Cluster::new(data, Some(url));
            Ok(cluster.look().await?.running().next().is_some())
        }
        None => Ok(imt_oms::has_coordinator(data)),
    }
}

/// Waits until another node of the cluster runs. The caller has found the port of `FIRST_LISTEN`
/// taken. Returns `false` if no node runs within [`FIRST_NODE_WAIT`]. The caller then assumes that
/// a program outside of this cluster uses the port.
pub(super) async fn another_has_begun(config: &NodeConfig) -> Result<bool, CliError> {
    let until = Instant::now() + FIRST_NODE_WAIT;
    while !others_run(config.engine.as_ref(), &config.data).await? {
        if Instant::now() >= until {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(true)
}
