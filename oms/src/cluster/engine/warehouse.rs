//! Ensures that all nodes of an engine's cluster send messages to the same warehouse.
//!
//! **Invariants**
//! - A starting node decides if it sees no other running node and is the coordinator. Then its
//!   setting `--warehouse`, if there is one, replaces the stored URL.
//! - Any other starting node uses the stored URL. It refuses to start with another URL in its
//!   setting.
//!
//! Changes of the URL while nodes run are in `control::coordinator`.

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::engine::EngineCluster;
use crate::cluster::{ClusterState, Membership, agreed_warehouse};
use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::NodeError;

/// Longest wait until the cluster's first node has stored a URL. The first node stores the URL
/// right after it has written the first state.
const NAMED_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two reads of the cluster's state.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

impl EngineCluster {
    /// Returns the URL of the cluster's warehouse. If this node sees no other running node and is
    /// the coordinator, the URL is `asked` (the setting of this node), or else the stored URL, or
    /// else `usual`, and the function stores it. Otherwise the function waits until a URL is
    /// stored, and fails if `asked` is another URL.
    pub(crate) async fn agree_on_warehouse(
        &self,
        asked: Option<&WarehouseUrl>,
        usual: &str,
    ) -> Result<String, NodeError> {
        let until = Instant::now() + NAMED_TIMEOUT;
        loop {
            let others = self.alive()?;
            let is_alone = others.iter().all(|node_info| node_info.name == self.name);
            let decides = is_alone && self.table.take_coordination(&self.shared).await?;
            let state = self.shared.read_state().await?.state;
            match agreement(&state, decides, asked, usual)? {
                Agreement::Named(warehouse) => return Ok(warehouse),
                Agreement::Change(next, warehouse) => {
                    self.table.replace(&self.shared, &next).await?;
                    return Ok(warehouse);
                }
                Agreement::Unnamed => {}
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

/// The action that follows from one read of the cluster's state.
#[derive(Debug, PartialEq, Eq)]
enum Agreement {
    /// Use this URL, which is stored in the state.
    Named(String),
    /// Replace the state by this one, which stores this URL.
    Change(Box<ClusterState>, String),
    /// Wait, because another node is about to store a URL.
    Unnamed,
}

/// Determines the warehouse from a state. If `decides` is `true`, because this node is the
/// coordinator and sees no other running node, the setting `asked` replaces the stored URL.
fn agreement(
    state: &ClusterState,
    decides: bool,
    asked: Option<&WarehouseUrl>,
    usual: &str,
) -> Result<Agreement, NodeError> {
    let stored = state.warehouse.clone();
    if decides {
        let wanted = asked.map(ToString::to_string).or(stored);
        let wanted = wanted.unwrap_or_else(|| usual.to_owned());
        return Ok(match state.with_warehouse(&wanted) {
            Some(next) => Agreement::Change(Box::new(next), wanted),
            None => Agreement::Named(wanted),
        });
    }
    match stored {
        Some(known) => agreed_warehouse(asked, known).map(Agreement::Named),
        None => Ok(Agreement::Unnamed),
    }
}

#[cfg(test)]
mod tests {
    use imt_ring::Member;

    use super::*;

    const USUAL: &str = "http://127.0.0.1:9091";

    fn url(text: &str) -> WarehouseUrl {
        text.parse().unwrap()
    }

    fn state(warehouse: Option<&str>) -> ClusterState {
        let first = ClusterState::first(Member::new("ada").unwrap()).unwrap();
        warehouse
            .and_then(|url| first.with_warehouse(url))
            .unwrap_or(first)
    }

    #[test]
    fn a_node_that_decides_writes_its_setting_else_the_stored_url_else_the_usual_one() {
        for (stored, asked, expected, is_change) in [
            (None, None, USUAL, true),
            (None, Some("http://wms:1"), "http://wms:1", true),
            (Some("http://wms:1"), None, "http://wms:1", false),
            (Some("http://wms:1"), Some("http://wms:1"), "http://wms:1", false),
            (Some("http://wms:1"), Some("http://wms:2"), "http://wms:2", true),
        ] {
            let (state, asked) = (state(stored), asked.map(url));
            match agreement(&state, true, asked.as_ref(), USUAL).unwrap() {
                Agreement::Change(next, named) => {
                    assert!(is_change, "{stored:?} {asked:?}");
                    assert_eq!(named, expected);
                    assert_eq!(next.warehouse.as_deref(), Some(expected));
                    assert_eq!(next.version, state.version + 1);
                }
                Agreement::Named(named) => {
                    assert!(!is_change, "{stored:?} {asked:?}");
                    assert_eq!(named, expected);
                }
                Agreement::Unnamed => panic!("{stored:?} {asked:?}"),
            }
        }
    }

    #[test]
    fn a_node_that_joins_takes_the_stored_url_and_is_refused_with_another_setting() {
        let (one, other) = (url("http://wms:1"), url("http://wms:2"));
        let state = state(Some("http://wms:1"));
        for asked in [None, Some(&one)] {
            let named = agreement(&state, false, asked, USUAL).unwrap();
            assert_eq!(named, Agreement::Named("http://wms:1".to_owned()));
        }
        let refused = agreement(&state, false, Some(&other), USUAL);
        assert!(
            matches!(refused, Err(NodeError::OtherWarehouse { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_node_that_joins_waits_until_the_first_one_has_named_the_warehouse() {
        let unnamed = state(None);
        for asked in [None, Some(url("http://wms:1"))] {
            let waits = agreement(&unnamed, false, asked.as_ref(), USUAL).unwrap();
            assert_eq!(waits, Agreement::Unnamed);
        }
    }
}
