//! Ensures that all nodes of a data folder send messages to the same warehouse.
//!
//! **Invariants**
//! - The URL of the warehouse is part of the cluster's state, and every node uses that URL.
//! - If a starting node is the coordinator and no other running node has published its description,
//!   the starting node decides: its setting, if there is one, replaces the stored URL.
//! - Any other starting node uses the stored URL, and refuses to start with another URL in its
//!   setting.
//!
//! Changes of the URL while nodes run are in `control::coordinator`.

use std::path::Path;
use std::time::Instant;

use crate::cluster::agreed_warehouse;
use crate::cluster::local::files::{COORDINATOR, node_infos, read_state};
use crate::cluster::local::locks::{is_held, lock};
use crate::cluster::local::{LocalCluster, RETRY_INTERVAL, STATE_TIMEOUT, lock_path};
use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::NodeError;

/// Checks that a node with the setting `asked` may join the running nodes of a data folder. If no
/// running node is the coordinator, every setting passes. The function changes nothing.
///
/// # Errors
/// `NodeError::OtherWarehouse` if the running nodes call another warehouse, or the error of reading
/// the state.
pub fn check_warehouse(data: &Path, asked: Option<&WarehouseUrl>) -> Result<(), NodeError> {
    if !is_held(&data.join(COORDINATOR)) {
        return Ok(());
    }
    match read_state(data)?.and_then(|state| state.warehouse) {
        Some(known) => agreed_warehouse(asked, known).map(drop),
        None => Ok(()),
    }
}

impl LocalCluster {
    /// Returns the URL of the cluster's warehouse. If this node is the coordinator and no other
    /// running node has published its description, the URL is `asked` (the setting of this node),
    /// or else the stored URL, or else `usual`, and the function stores it. Otherwise the function
    /// waits for a stored URL. It fails if `asked` is another URL, or if no URL is stored within
    /// `STATE_TIMEOUT`.
    pub(crate) fn agree_on_warehouse(
        &self,
        asked: Option<&WarehouseUrl>,
        usual: &str,
    ) -> Result<String, NodeError> {
        let begun = Instant::now();
        loop {
            let coordinates = self.coordinates()?;
            let state = self.state()?;
            if coordinates && self.is_alone()? {
                let stored = || state.warehouse.clone().unwrap_or_else(|| usual.to_owned());
                let wanted = asked.map_or_else(stored, ToString::to_string);
                if let Some(next) = state.with_warehouse(&wanted) {
                    self.replace_state(&next)?;
                }
                return Ok(wanted);
            }
            if let Some(known) = state.warehouse {
                return agreed_warehouse(asked, known);
            }
            // The first node stores the URL right after it has written the first state.
            if begun.elapsed() > STATE_TIMEOUT {
                return Err(NodeError::Config {
                    setting: "warehouse",
                    reason: "is not known: the running nodes have not stored a URL; restart one of them with --warehouse URL"
                        .to_owned(),
                });
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Returns `true` if this node holds the coordinator's lock. If the lock is free, this node
    /// takes it.
    fn coordinates(&self) -> Result<bool, NodeError> {
        let is_needed = self.held().coordinator.is_none();
        if is_needed && let Some(free) = lock(&self.data.join(COORDINATOR))? {
            self.held().coordinator = Some(free);
        }
        Ok(self.held().coordinator.is_some())
    }

    /// Returns `true` if no other node of the data folder runs. Nodes without a published
    /// description do not count.
    fn is_alone(&self) -> Result<bool, NodeError> {
        let node_infos = node_infos(&self.data)?;
        let mut others = node_infos.iter().filter(|node_info| node_info.name != self.name);
        Ok(!others.any(|node_info| is_held(&lock_path(&self.data, &node_info.name))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::local::files::read_warehouse;
    use crate::cluster::{Membership, NodeInfo};
    use imt_ring::NodeName;

    const USUAL: &str = "http://127.0.0.1:9091";

    fn url(text: &str) -> WarehouseUrl {
        text.parse().unwrap()
    }

    /// Returns a node that has joined and has published its description.
    fn joined(data: &Path, name: &str) -> LocalCluster {
        let cluster = LocalCluster::join(data, name).unwrap();
        let node_info = NodeInfo {
            name: NodeName::new(name).unwrap(),
            address: "127.0.0.1:4711".parse().unwrap(),
            process: 1,
            started_at_ms: 5,
            weight: 1,
            zone: None,
        };
        cluster.announce(&node_info).unwrap();
        cluster
    }

    #[test]
    fn a_node_that_joins_takes_the_warehouse_of_the_first_one_and_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        let (one, other) = (url("http://wms:1/api/"), url("http://wms:2"));
        check_warehouse(data, Some(&other)).unwrap();
        let paris = joined(data, "paris");
        assert_eq!(
            paris.agree_on_warehouse(Some(&one), USUAL).unwrap(),
            "http://wms:1/api"
        );
        let lyon = joined(data, "lyon");
        assert_eq!(lyon.agree_on_warehouse(None, USUAL).unwrap(), "http://wms:1/api");
        lyon.agree_on_warehouse(Some(&one), USUAL).unwrap();
        for refused in [
            lyon.agree_on_warehouse(Some(&other), USUAL).map(drop),
            check_warehouse(data, Some(&other)),
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(
                ["http://wms:1/api", "http://wms:2", "imt node warehouse"]
                    .iter()
                    .all(|part| error.contains(part)),
                "{error}"
            );
        }
        check_warehouse(data, None).unwrap();
        assert_eq!(read_warehouse(data).unwrap().as_deref(), Some("http://wms:1/api"));
    }

    #[test]
    fn a_node_that_runs_alone_decides_and_keeps_the_stored_one_without_a_setting() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        for (asked, expected) in [
            (None, USUAL),
            (Some("http://wms:1"), "http://wms:1"),
            (None, "http://wms:1"),
            (Some("http://wms:2"), "http://wms:2"),
        ] {
            let asked = asked.map(url);
            let paris = joined(data, "paris");
            assert_eq!(paris.agree_on_warehouse(asked.as_ref(), USUAL).unwrap(), expected);
            assert_eq!(read_warehouse(data).unwrap().as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_node_with_the_free_lock_beside_a_running_node_does_not_decide() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        let paris = joined(data, "paris");
        paris.agree_on_warehouse(None, USUAL).unwrap();
        // The node paris still runs, but it is no longer the coordinator.
        paris.held().coordinator = None;
        let lyon = joined(data, "lyon");
        let error = lyon.agree_on_warehouse(Some(&url("http://wms:2")), USUAL);
        assert!(matches!(error, Err(NodeError::OtherWarehouse { .. })));
    }
}
