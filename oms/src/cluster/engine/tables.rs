//! The statements on the tables of a cluster: its state, and the rows of its nodes.
//!
//! `ClusterTables` has two implementations. `SqlTables` sends the statements to PostgreSQL. The
//! simulation has a second one, with tables in memory. The callers are `tasks`, `authority` and
//! `joining`.
//!
//! **Invariants**
//! - A call is one statement or one transaction, on one connection. It is never repeated here.
//! - The error `Unknown` means that the statement may have been executed, and that a fail-over of
//!   the engine may lose its effect.
//! - A read may come from an *old primary*, a server that still runs after a fail-over to another
//!   one. A later write that is acknowledged on the same connection proves that it does not.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::engine::beat::Beat;
use crate::cluster::engine::schema;
use crate::cluster::{ClusterState, NodeInfo};
use crate::postgres::{EngineUrl, Param, Row, Session, SessionError};

/// Maximum size of the state in bytes. With 16,384 slots it has about 400 KB.
const STATE_BYTES_MAX: usize = 64 * 1_024 * 1_024;
/// Maximum size of a node's description in bytes. A typical description has some hundred bytes.
const CARD_BYTES_MAX: usize = 64 * 1_024;

/// A state and its coordinator. They count as confirmed once a beat that was sent later is
/// acknowledged on the same connection, because an old primary acknowledges no beat.
#[derive(Clone, Debug)]
pub(crate) struct Confirmed {
    pub(crate) state: ClusterState,
    pub(crate) coordinator: String,
}

/// The decoded rows of one look.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) beats: BTreeMap<String, Beat>,
    pub(crate) cards: BTreeMap<String, NodeInfo>,
    pub(crate) version: u64,
    pub(crate) coordinator: String,
}

/// The first contents of the table with the cluster's state.
pub(crate) struct FirstState<'a> {
    pub(crate) state: &'a ClusterState,
    /// The cluster's first volume. The row of its log is created in the same transaction.
    pub(crate) volume: &'a str,
    pub(crate) coordinator: &'a str,
    pub(crate) secret: &'a str,
}

/// The future result of a statement.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionError>> + Send + 'a>>;

/// The statements on the tables of a cluster, over one connection at a time.
pub(crate) trait ClusterTables: Send {
    /// Returns the number of connections opened so far. If the number changes during a call, the
    /// engine may have failed over in the meantime.
    fn connections(&self) -> u64;

    /// Returns the server of the present connection, or of the next attempt to connect.
    fn host(&self) -> String;

    /// Closes the connection. The next call opens another one, beginning with the next server.
    fn disconnect(&mut self);

    /// Reads the cluster's state and its coordinator, or `None` if there is no state yet. If the
    /// stored version is that of `known`, the state is taken from `known`.
    fn state<'a>(&'a mut self, known: Option<&'a Confirmed>) -> Answer<'a, Option<Confirmed>>;

    /// Reads the rows of all nodes, and the version and coordinator of the state. The result is
    /// empty if there is no state.
    fn look(&mut self) -> Answer<'_, Look>;

    /// Reads the last beat and the description of one node. Returns `None` if the node has no row.
    /// The description is `None` if it is missing, too long or invalid.
    fn node<'a>(&'a mut self, name: &'a str) -> Answer<'a, Option<(Beat, Option<NodeInfo>)>>;

    /// Writes a beat and the description of a node. Returns the version of the state at that time,
    /// or a later version that another node demanded with `demand`. Returns `None` if the answering
    /// server has no row with this name and incarnation: another process has taken the name, the
    /// row was removed, or an old primary has answered.
    fn beat<'a>(
        &'a mut self,
        name: &'a str,
        beat: &'a Beat,
        card: Option<&'a NodeInfo>,
    ) -> Answer<'a, Option<u64>>;

    /// Demands that the process with the last beat `last` knows the state of this version before a
    /// later beat extends its lease. Returns `false` and changes nothing unless `last` is still the
    /// last beat of the name.
    fn demand<'a>(&'a mut self, name: &'a str, last: &'a Beat, version: u64) -> Answer<'a, bool>;

    /// Adds a node with this incarnation. Returns `false` if a node has the name already.
    fn add_node<'a>(&'a mut self, name: &'a str, incarnation: i64) -> Answer<'a, bool>;

    /// Gives a name to another incarnation. Returns `false` unless `former` is the last beat of the
    /// name.
    fn replace_node<'a>(&'a mut self, name: &'a str, former: &'a Beat, incarnation: i64) -> Answer<'a, bool>;

    /// Removes the row of a node, if `last` is its last beat.
    fn remove_node<'a>(&'a mut self, name: &'a str, last: &'a Beat) -> Answer<'a, ()>;

    /// Commits without a change of data. Only the primary that the standbys follow acknowledges
    /// this commit.
    fn probe(&mut self) -> Answer<'_, ()>;

    /// Reads the cluster's secret. The result is empty if no node was ever started, or if the nodes
    /// read the secret from a file.
    fn secret(&mut self) -> Answer<'_, String>;

    /// Writes the cluster's first state. Returns `false` if there is a state already.
    fn write_first<'a>(&'a mut self, first: FirstState<'a>) -> Answer<'a, bool>;

    /// Replaces the state, and makes `coordinator` the coordinator. Returns `false` and changes
    /// nothing unless the stored version is the one before `next`, and the stored coordinator is
    /// `former`.
    fn replace_state<'a>(
        &'a mut self,
        next: &'a ClusterState,
        coordinator: &'a str,
        former: &'a str,
    ) -> Answer<'a, bool>;
}

/// The tables of a cluster in PostgreSQL.
pub(super) struct SqlTables {
    session: Session,
    /// Longest time to wait for one statement.
    timeout: Duration,
}

impl SqlTables {
    /// Creates the access without connecting. `purpose` is shown in `pg_stat_activity`.
    pub(super) fn new(url: Arc<EngineUrl>, purpose: &'static str, timeout: Duration) -> SqlTables {
        SqlTables {
            session: Session::new(url, purpose),
            timeout,
        }
    }

    async fn changed(&mut self, sql: &str, params: &[Param<'_>]) -> Result<bool, SessionError> {
        let rows = self.session.execute(sql, params, self.timeout).await?;
        Ok(rows == 1)
    }
}

/// Decodes the rows of `schema::STATE`. Returns `None` if the table has no state. If the stored
/// version is that of `known`, the engine omits the text, and the state is taken from `known`.
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

/// Decodes the rows of `schema::LOOK`.
pub(super) fn decoded_look(rows: &[Row]) -> Result<Look, SessionError> {
    let mut look = Look::default();
    let mut beats = BTreeMap::new();
    for row in rows {
        let name = row.text(0)?.to_owned();
        let beat = Beat {
            incarnation: row.int8(1)?,
            number: row.int8(2)?,
        };
        // A description that names another node is ignored.
        let card = decoded_card(row.opt_text(3)?);
        if let Some(card) = card.filter(|card| card.name.as_str() == name) {
            look.cards.insert(name.clone(), card);
        }
        beats.insert(name, beat);
        look.version = u64::try_from(row.int8(4)?).unwrap_or(0);
        row.text(5)?.clone_into(&mut look.coordinator);
    }
    look.beats = beats;
    Ok(look)
}

/// Decodes the description of a node. Returns `None` if it is missing, too long or invalid.
fn decoded_card(card: Option<&str>) -> Option<NodeInfo> {
    let card = card.filter(|card| card.len() <= CARD_BYTES_MAX)?;
    serde_json::from_str(card).ok()
}

fn encoded(state: &ClusterState) -> Result<String, SessionError> {
    serde_json::to_string(state).map_err(|error| SessionError::Invalid {
        reason: error.to_string(),
    })
}

/// Converts a version to the engine's signed type. Versions grow far too slowly to reach its limit.
fn version_of(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

/// Reads the cluster's secret. It is empty if no node was ever started, or if the nodes read it
/// from a file.
pub(super) async fn read_secret(session: &mut Session, timeout: Duration) -> Result<String, SessionError> {
    let rows = session.query(schema::SECRET, &[], timeout).await?;
    match rows.first() {
        Some(row) => Ok(row.text(0)?.to_owned()),
        None => Ok(String::new()),
    }
}

impl ClusterTables for SqlTables {
    fn connections(&self) -> u64 {
        self.session.connections()
    }

    fn host(&self) -> String {
        self.session.host()
    }

    fn disconnect(&mut self) {
        self.session.disconnect();
    }

    fn state<'a>(&'a mut self, known: Option<&'a Confirmed>) -> Answer<'a, Option<Confirmed>> {
        Box::pin(async move {
            let version = known.map_or(-1, |known| version_of(known.state.version));
            let params = [Param::Int8(version)];
            let rows = self.session.query(schema::STATE, &params, self.timeout).await?;
            decoded_state(&rows, known)
        })
    }

    fn look(&mut self) -> Answer<'_, Look> {
        Box::pin(async move {
            let rows = self.session.query(schema::LOOK, &[], self.timeout).await?;
            decoded_look(&rows)
        })
    }

    fn node<'a>(&'a mut self, name: &'a str) -> Answer<'a, Option<(Beat, Option<NodeInfo>)>> {
        Box::pin(async move {
            let params = [Param::Text(name)];
            let rows = self.session.query(schema::NODE, &params, self.timeout).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let beat = Beat {
                incarnation: row.int8(0)?,
                number: row.int8(1)?,
            };
            Ok(Some((beat, decoded_card(row.opt_text(2)?))))
        })
    }

    fn beat<'a>(
        &'a mut self,
        name: &'a str,
        beat: &'a Beat,
        card: Option<&'a NodeInfo>,
    ) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            let card = card.and_then(|card| serde_json::to_string(card).ok());
            let params = [
                Param::Text(name),
                Param::Int8(beat.incarnation),
                Param::Int8(beat.number),
                Param::OptText(card.as_deref()),
            ];
            let rows = self.session.query(schema::BEAT, &params, self.timeout).await?;
            let version = rows.first().map(|row| row.int8(0)).transpose()?;
            Ok(version.map(|version| u64::try_from(version).unwrap_or(0)))
        })
    }

    fn demand<'a>(&'a mut self, name: &'a str, last: &'a Beat, version: u64) -> Answer<'a, bool> {
        Box::pin(async move {
            let params = [
                Param::Text(name),
                Param::Int8(last.incarnation),
                Param::Int8(last.number),
                Param::Int8(version_of(version)),
            ];
            self.changed(schema::DEMAND, &params).await
        })
    }

    fn add_node<'a>(&'a mut self, name: &'a str, incarnation: i64) -> Answer<'a, bool> {
        Box::pin(async move {
            let params = [Param::Text(name), Param::Int8(incarnation)];
            self.changed(schema::ADD_NODE, &params).await
        })
    }

    fn replace_node<'a>(&'a mut self, name: &'a str, former: &'a Beat, incarnation: i64) -> Answer<'a, bool> {
        Box::pin(async move {
            let params = [
                Param::Text(name),
                Param::Int8(incarnation),
                Param::Int8(former.incarnation),
                Param::Int8(former.number),
            ];
            self.changed(schema::REPLACE_NODE, &params).await
        })
    }

    fn remove_node<'a>(&'a mut self, name: &'a str, last: &'a Beat) -> Answer<'a, ()> {
        Box::pin(async move {
            let params = [
                Param::Text(name),
                Param::Int8(last.incarnation),
                Param::Int8(last.number),
            ];
            self.changed(schema::REMOVE_NODE, &params).await.map(drop)
        })
    }

    fn probe(&mut self) -> Answer<'_, ()> {
        Box::pin(async move { self.changed(schema::PROBE, &[]).await.map(drop) })
    }

    fn secret(&mut self) -> Answer<'_, String> {
        Box::pin(read_secret(&mut self.session, self.timeout))
    }

    fn write_first<'a>(&'a mut self, first: FirstState<'a>) -> Answer<'a, bool> {
        Box::pin(async move {
            let state = encoded(first.state)?;
            let params = [
                Param::Int8(version_of(first.state.version)),
                Param::Text(&state),
                Param::Text(first.coordinator),
                Param::Text(first.secret),
            ];
            // The state and the log's row are created in one transaction. So a log that is missing
            // later must have been lost.
            let volume = [Param::Text(first.volume)];
            let statements = [(schema::FIRST_VOLUME, &volume[..])];
            let state = (schema::FIRST_STATE, &params[..]);
            self.session.guarded(&statements, state, self.timeout).await
        })
    }

    fn replace_state<'a>(
        &'a mut self,
        next: &'a ClusterState,
        coordinator: &'a str,
        former: &'a str,
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let (state, version) = (encoded(next)?, version_of(next.version));
            let params = [
                Param::Int8(version),
                Param::Text(&state),
                Param::Text(coordinator),
                Param::Int8(version - 1),
                Param::Text(former),
            ];
            self.changed(schema::NEXT_STATE, &params).await
        })
    }
}
