//! The cluster's state, stored in the engine.
//!
//! **Invariants**
//! - A replacement succeeds only if the stored version and coordinator are the expected ones. So a
//!   former coordinator cannot change the state, and only one of two concurrent replacements
//!   succeeds.
//! - A replacement with an unknown result is repeated for up to `REPLACE_TIMEOUT`. If the
//!   repetition changes no row, the stored state is read (`Shared::read_state`). The replacement
//!   succeeded if the stored state is the new one, and this process is its coordinator.
//!
//! The decision which node may become the coordinator is in `shared`.

use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::time::Instant;

use crate::cluster::ClusterState;
use crate::cluster::engine::beat::Beat;
use crate::cluster::engine::shared::Shared;
use crate::cluster::engine::tables::ClusterTables;
use crate::error::NodeError;
use crate::postgres::{EngineUrl, SessionError};
use crate::runtime::seeded::seeded;

/// Time after which a failed replacement of the cluster's state is not repeated any more.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a failed replacement of the cluster's state is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Returns `true` for the code of a statement that had no effect because of another transaction.
/// The repetition of such a statement may succeed.
/// - 55P03: the row is locked, for example by an earlier attempt.
/// - 40001 and 40P01: the transaction conflicts with another transaction.
fn is_conflict(code: &str) -> bool {
    matches!(code, "55P03" | "40P01") || (code == "40001" && !seeded("engine-conflict-not-repeated"))
}

/// Access to the tables with the cluster's state and its nodes, over one connection.
pub(super) struct StateTable {
    url: Arc<EngineUrl>,
    tables: tokio::sync::Mutex<Box<dyn ClusterTables>>,
}

impl StateTable {
    /// Creates the access. `url` is for error messages.
    pub(super) fn new(tables: Box<dyn ClusterTables>, url: Arc<EngineUrl>) -> StateTable {
        StateTable {
            tables: tokio::sync::Mutex::new(tables),
            url,
        }
    }

    fn failed(&self, action: &'static str) -> impl Fn(SessionError) -> NodeError {
        let url = self.url.to_string();
        move |source| NodeError::Engine {
            action,
            url: url.clone(),
            source,
        }
    }

    /// Replaces the state. Fails unless this process is still the coordinator and `next` has the
    /// version after the stored one.
    pub(super) async fn replace(&self, shared: &Shared, next: &ClusterState) -> Result<(), NodeError> {
        let me = shared.label();
        if self.swap(shared, next, &me).await? {
            return Ok(());
        }
        Err(NodeError::EngineUnfit {
            url: self.url.to_string(),
            reason: format!(
                "version {} of the state was not written: another node has become the coordinator",
                next.version
            ),
        })
    }

    /// Makes this process the coordinator if the present one is gone. Returns `true` also if this
    /// process was the coordinator already. Returns `false` if the coordinator is not gone, or if
    /// another process replaced the state first.
    pub(super) async fn take_coordination(&self, shared: &Shared) -> Result<bool, NodeError> {
        let now = shared.read_state().await?;
        if now.coordinator == shared.label() {
            return Ok(true);
        }
        if !shared.is_vacant(&now.coordinator) {
            return Ok(false);
        }
        self.swap(shared, &now.state.renewed(), &now.coordinator).await
    }

    /// Replaces the state and makes this process the coordinator. Returns `false` without a change
    /// unless the stored version is the one before `next` and the stored coordinator is
    /// `coordinator`. Returns `false` also if a try with an unknown result did replace the state,
    /// but another process has replaced the state again since.
    async fn swap(&self, shared: &Shared, next: &ClusterState, coordinator: &str) -> Result<bool, NodeError> {
        let failed = self.failed("replace the cluster's state");
        let until = Instant::now() + REPLACE_TIMEOUT;
        let me = shared.label();
        let mut is_repetition = false;
        let mut tables = self.tables.lock().await;
        loop {
            match tables.replace_state(next, &me, coordinator).await {
                Ok(false) if is_repetition => {
                    let now = shared.read_state().await?;
                    return Ok(now.coordinator == me && now.state == *next);
                }
                Ok(is_replaced) => return Ok(is_replaced),
                Err(error @ (SessionError::Away { .. } | SessionError::Unknown { .. })) => {
                    is_repetition |= matches!(error, SessionError::Unknown { .. });
                    if Instant::now() >= until {
                        return Err(failed(error));
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(SessionError::Refused { code, .. }) if is_conflict(&code) && Instant::now() < until => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Makes a silent node unable to extend its lease until it knows the state of this version.
    /// Returns `false` and changes nothing unless `last` is still the node's last beat.
    pub(super) async fn demand(&self, node: &str, last: &Beat, version: u64) -> Result<bool, NodeError> {
        let demanded = self.tables.lock().await.demand(node, last, version).await;
        demanded.map_err(self.failed("end the lease of a silent node"))
    }

    /// Deletes the row of a node, if `last` is still its last beat.
    pub(super) async fn remove_node(&self, node: &NodeName, last: &Beat) -> Result<(), NodeError> {
        let removed = self.tables.lock().await.remove_node(node.as_str(), last).await;
        removed.map_err(self.failed("remove a node"))
    }
}
