//! Ensures that all nodes of an engine send to the same warehouse.
//!
//! **Invariants**
//! - If no other node runs, the setting of the starting node replaces the stored URL.
//! - If other nodes run, the starting node uses the stored URL. A setting with another URL is an
//!   error.
//!
//! Deliberately absent: a change of the URL while nodes run (`control::coordinator`).

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::engine::EngineCluster;
use crate::cluster::{Membership, agreed_warehouse};
use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::NodeError;

/// Longest wait until the first node has stored a URL, which it does right after the first state.
const NAMED_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two reads of the state.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

impl EngineCluster {
    /// Returns the URL of the cluster's warehouse, and stores it if no other node runs. `asked` is
    /// the setting of this node. `usual` is used if there is neither a setting nor a stored URL.
    pub(crate) async fn agree_on_warehouse(
        &self,
        asked: Option<&WarehouseUrl>,
        usual: &str,
    ) -> Result<String, NodeError> {
        let until = Instant::now() + NAMED_TIMEOUT;
        loop {
            let others = self.alive()?;
            let is_alone = others.iter().all(|node_info| node_info.name == self.name);
            if is_alone && self.table.take_coordination(&self.shared).await? {
                let state = self.shared.read_state().await?.state;
                let stored = || state.warehouse.clone().unwrap_or_else(|| usual.to_owned());
                let wanted = asked.map_or_else(stored, ToString::to_string);
                if let Some(next) = state.with_warehouse(&wanted) {
                    self.table.replace(&self.shared, &next).await?;
                }
                return Ok(wanted);
            }
            if let Some(known) = self.shared.read_state().await?.state.warehouse {
                return agreed_warehouse(asked, known);
            }
            if Instant::now() >= until {
                return Err(NodeError::Config {
                    setting: "warehouse",
                    reason: "is not known: the running nodes have not stored a URL; restart one of them with --warehouse URL"
                        .to_owned(),
                });
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
}
