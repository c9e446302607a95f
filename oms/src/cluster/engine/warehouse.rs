//! The agreement of all nodes of an engine on one warehouse.
//!
//! **Invariants**
//! - A node that runs alone decides: its setting replaces the stored URL. A node that joins others
//!   takes the stored URL over, and is refused with another setting.
//!
//! Deliberately absent: a change while nodes run, which the coordinator makes
//! (`control::coordinator`).

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::engine::EngineCluster;
use crate::cluster::{Membership, agreed_warehouse};
use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::NodeError;

/// Longest wait for the first node, which names the warehouse right after it wrote the state.
const NAMED_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at the state.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

impl EngineCluster {
    /// Returns the URL of the cluster's warehouse. Writes it into the state if this node runs
    /// alone. `usual` counts if neither the node nor the cluster has named one.
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
                    reason: "is not named by the running nodes; restart one of them with --warehouse"
                        .to_owned(),
                });
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
}
