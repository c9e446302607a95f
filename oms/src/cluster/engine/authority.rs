//! The cluster's state, stored in the engine.
//!
//! **Invariants**
//! - A replacement succeeds only if the stored version and coordinator are the expected ones. So a
//!   former coordinator cannot change the state, and only one of two concurrent replacements
//!   succeeds.
//! - A replacement with an unknown result is repeated. If the repetition changes no row, the stored
//!   state is read (`Shared::read_state`). The replacement succeeded if the stored state is the new
//!   one.
//!
//! The decision which node may become the coordinator is in `shared`.

use std::sync::Arc;
use std::time::Duration;

use imt_ring::{Member, NodeName};
use tokio::time::Instant;

use crate::cluster::ClusterState;
use crate::cluster::engine::beat::Beat;
use crate::cluster::engine::schema;
use crate::cluster::engine::shared::{Confirmed, Shared};
use crate::error::NodeError;
use crate::postgres::{EngineUrl, OnNone, Param, Row, Session, SessionError};

/// Maximum size of the state in bytes. With 16,384 slots it has about 400 KB.
const STATE_BYTES_MAX: usize = 64 * 1_024 * 1_024;
/// Longest time to wait for one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time to determine the result of a replacement of the cluster's state.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a failed replacement of the cluster's state is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Access to the tables with the cluster's state and its nodes, over one connection.
pub(super) struct StateTable {
    url: Arc<EngineUrl>,
    session: tokio::sync::Mutex<Session>,
}

/// Decodes the rows of `schema::STATE`. Returns `None` if the table has no state. If the stored
/// version is that of `known`, the engine omits the text of the state, and the function returns the
/// state in `known`.
pub(super) fn decoded_state(
    rows: &[Row],
    known: Option<&Confirmed>,
) -> Result<Option<Confirmed>, SessionError> {
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let version = row.int8(0)?;
    let coordinator = row.text(2)?.to_owned();
    let invalid = |reason: String| SessionError::Invalid {
        reason: format!("the cluster's state: {reason}"),
    };
    let state = match (row.opt_text(1)?, known) {
        (None, Some(known)) if known.state.version as i64 == version => known.state.clone(),
        (None, _) => return Err(invalid("its text is missing".to_owned())),
        (Some(text), _) if text.len() > STATE_BYTES_MAX => {
            return Err(invalid(format!("it has more than {STATE_BYTES_MAX} bytes")));
        }
        (Some(text), _) => {
            let state: ClusterState =
                serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
            if !state.is_known_format() {
                return Err(invalid(
                    "it was written by a later version of imt; upgrade this program".to_owned(),
                ));
            }
            if i64::try_from(state.version) != Ok(version) {
                return Err(invalid(format!(
                    "its version is {} in the text and {version} in the row",
                    state.version
                )));
            }
            state
        }
    };
    Ok(Some(Confirmed { state, coordinator }))
}

fn encoded(state: &ClusterState) -> Result<String, SessionError> {
    serde_json::to_string(state).map_err(|error| SessionError::Invalid {
        reason: error.to_string(),
    })
}

impl StateTable {
    pub(super) fn new(url: Arc<EngineUrl>) -> StateTable {
        StateTable {
            session: tokio::sync::Mutex::new(Session::new(Arc::clone(&url), "state")),
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

    /// Writes the cluster's first state, and the row of the first volume's log. Returns `false` if
    /// a state exists already.
    pub(super) async fn write_first(
        &self,
        member: Member,
        coordinator: &str,
        secret: &str,
    ) -> Result<bool, NodeError> {
        let failed = self.failed("write the first state");
        let volume = member.name().clone();
        let first = ClusterState::first(member).map_err(|error| NodeError::EngineUnfit {
            url: self.url.to_string(),
            reason: error.to_string(),
        })?;
        let state = encoded(&first).map_err(&failed)?;
        let version = i64::try_from(first.version).unwrap_or(i64::MAX);
        let params = [
            Param::Int8(version),
            Param::Text(&state),
            Param::Text(coordinator),
            Param::Text(secret),
        ];
        // The state and the log's row are created in one transaction. So a log that is missing
        // later must have been lost.
        let volume = [Param::Text(volume.as_str())];
        let statements = [
            (schema::FIRST_STATE, &params[..]),
            (schema::FIRST_VOLUME, &volume[..]),
        ];
        let mut session = self.session.lock().await;
        let affected = session
            .transaction(&statements, OnNone::RollBack, STATEMENT_TIMEOUT * 5)
            .await
            .map_err(&failed)?;
        Ok(affected.first() == Some(&1))
    }

    /// Replaces the state, if this process is still the coordinator.
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

    /// Makes this process the coordinator if the former coordinator is gone. Returns `false` if the
    /// former coordinator is not gone, or if another node became the coordinator first.
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
    /// `coordinator`.
    async fn swap(&self, shared: &Shared, next: &ClusterState, coordinator: &str) -> Result<bool, NodeError> {
        let failed = self.failed("replace the cluster's state");
        let until = Instant::now() + REPLACE_TIMEOUT;
        let me = shared.label();
        let state = encoded(next).map_err(&failed)?;
        let version = i64::try_from(next.version).unwrap_or(i64::MAX);
        let params = [
            Param::Int8(version),
            Param::Text(&state),
            Param::Text(&me),
            Param::Int8(version - 1),
            Param::Text(coordinator),
        ];
        let mut is_repetition = false;
        let mut session = self.session.lock().await;
        loop {
            match session
                .execute(schema::NEXT_STATE, &params, STATEMENT_TIMEOUT)
                .await
            {
                Ok(0) if is_repetition => {
                    let now = shared.read_state().await?;
                    return Ok(now.coordinator == me && now.state == *next);
                }
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(error @ (SessionError::Away { .. } | SessionError::Unknown { .. })) => {
                    is_repetition |= matches!(error, SessionError::Unknown { .. });
                    if Instant::now() >= until {
                        return Err(failed(error));
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // 55P03: the row is still locked by an earlier attempt. 40001 and 40P01: the
                // transaction conflicts with another transaction. The statement had no effect, so
                // it is repeated.
                Err(SessionError::Refused { code, .. })
                    if ["55P03", "40001", "40P01"].contains(&code.as_str()) && Instant::now() < until =>
                {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Deletes the row of a node, if `last` is still its last beat.
    pub(super) async fn remove_node(&self, node: &NodeName, last: &Beat) -> Result<(), NodeError> {
        let params = [
            Param::Text(node.as_str()),
            Param::Int8(last.incarnation),
            Param::Int8(last.number),
        ];
        let mut session = self.session.lock().await;
        let removed = session
            .execute(schema::REMOVE_NODE, &params, STATEMENT_TIMEOUT)
            .await;
        removed.map(drop).map_err(self.failed("remove a node"))
    }
}
