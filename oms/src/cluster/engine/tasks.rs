//! The task that sends beats and the task that looks. Each has a separate connection, so a beat
//! that waits for the standbys does not delay looks.
//!
//! **Invariants**
//! - A state is returned to its readers only after a later beat on the same connection is
//!   acknowledged. Only the primary that the standbys follow acknowledges beats.
//! - A beat may change no row for two reasons: this process was replaced, or an old primary that
//!   lacks this node's row has answered. Then a further commit is sent on the same connection. An
//!   old primary does not acknowledge that commit. So an acknowledgement means that this process
//!   was replaced.
//!
//! The decision which nodes are gone is in `beat`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::NodeInfo;
use crate::cluster::engine::authority::{StateTable, decoded_state};
use crate::cluster::engine::beat::{Beat, Looked};
use crate::cluster::engine::schema;
use crate::cluster::engine::shared::{Confirmed, Due, Look, Shared};
use crate::error::{NodeError, with_causes};
use crate::postgres::{Param, Row, Session, SessionError};
use crate::runtime;

/// Longest time for one statement of a beat or a look. PostgreSQL usually answers within
/// milliseconds. After a timeout the next attempt begins with another host of the URL.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size of a node's description in bytes. A typical description has some hundred bytes.
const CARD_BYTES_MAX: usize = 64 * 1_024;
/// Only one of this many consecutive failures is logged.
const FAILURES_PER_LOG: u32 = 50;

/// Logs the first of every `FAILURES_PER_LOG` failures in a series, and the end of the series.
#[derive(Default)]
struct Troubles(u32);

impl Troubles {
    fn fail(&mut self, work: &str, error: &SessionError) {
        if self.0.is_multiple_of(FAILURES_PER_LOG) {
            tracing::warn!(failures = self.0 + 1, %error, "{work} failed");
        }
        self.0 = self.0.saturating_add(1);
    }

    fn end(&mut self, work: &str) {
        if self.0 > 0 {
            tracing::info!(failures = self.0, "{work} works again");
        }
        self.0 = 0;
    }
}

/// The outcome of an attempt to send one beat.
enum Beaten {
    Acknowledged {
        /// The cluster's state, if it was read before the beat on the same connection.
        read: Option<Box<Confirmed>>,
        /// The version of the cluster's state at the time of the beat.
        version: u64,
    },
    Replaced,
    /// The connection changed between two statements of the attempt, so the beat must be repeated.
    Again,
}

/// Sends beats until this node leaves the cluster or another process has taken its name. The last
/// beat tells the other nodes that the process has ended.
pub(super) async fn beat(shared: Arc<Shared>, mut session: Session, mut number: i64) {
    let mut troubles = Troubles::default();
    let mut connections = session.connections();
    loop {
        let mut due = shared.due();
        let next = Instant::now() + shared.pace().beat;
        number += 1;
        let sent = shared.now();
        let written = if due.is_last { -1 } else { number };
        let outcome = beat_once(&shared, &mut session, &due, written).await;
        if session.connections() != connections {
            connections = session.connections();
            shared.restart();
        }
        match outcome {
            Ok(Beaten::Acknowledged { read, version }) => {
                troubles.end("beat");
                shared.acknowledge((sent, number), version, read.as_deref());
                if let Some(read) = read {
                    for reader in std::mem::take(&mut due.readers) {
                        // The send fails if the caller no longer waits.
                        let _ = reader.send(Ok((*read).clone()));
                    }
                }
                if due.is_last {
                    return;
                }
            }
            Ok(Beaten::Replaced) => {
                shared.replaced();
                return;
            }
            Ok(Beaten::Again) => {}
            Err(error) => {
                troubles.fail("beat", &error);
                if let SessionError::Invalid { .. } | SessionError::Refused { .. } = &error {
                    for reader in std::mem::take(&mut due.readers) {
                        let _ = reader.send(Err(NodeError::Engine {
                            action: "read the cluster's state",
                            url: shared.url.to_string(),
                            source: error.clone(),
                        }));
                    }
                }
                if due.is_last {
                    // The last beat is not repeated. The other nodes notice the end of this process
                    // because its beats stop.
                    return;
                }
                shared.ask_again(due.readers);
                tokio::time::sleep_until(next).await;
                continue;
            }
        }
        shared.ask_again(due.readers);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = shared.urge.notified() => {}
        }
    }
}

async fn beat_once(
    shared: &Shared,
    session: &mut Session,
    due: &Due,
    number: i64,
) -> Result<Beaten, SessionError> {
    let mut read = None;
    if due.is_behind || due.readers.iter().any(|reader| !reader.is_closed()) {
        let known = due
            .cached
            .as_ref()
            .map_or(-1, |cached| cached.state.version as i64);
        let rows = session
            .query(schema::STATE, &[Param::Int8(known)], STATEMENT_TIMEOUT)
            .await?;
        read = decoded_state(&rows, due.cached.as_ref())?;
    }
    let connections = session.connections();
    let card = due
        .card
        .as_ref()
        .and_then(|card| serde_json::to_string(card).ok());
    let name = shared.name.as_str();
    let params = [
        Param::Text(name),
        Param::Int8(shared.incarnation),
        Param::Int8(number),
        Param::OptText(card.as_deref()),
    ];
    let written = session.query(schema::BEAT, &params, STATEMENT_TIMEOUT).await?;
    let row = written.first();
    if row.is_none() {
        session.execute(schema::PROBE, &[], STATEMENT_TIMEOUT).await?;
    }
    if session.connections() != connections && (read.is_some() || row.is_none()) {
        return Ok(Beaten::Again);
    }
    let Some(row) = row else {
        return Ok(Beaten::Replaced);
    };
    Ok(Beaten::Acknowledged {
        read: read.map(Box::new),
        version: u64::try_from(row.int8(0)?).unwrap_or(0),
    })
}

/// Looks at all nodes until this node leaves the cluster.
pub(super) async fn look(shared: Arc<Shared>, table: Arc<StateTable>, mut session: Session) {
    let mut troubles = Troubles::default();
    let mut connections = session.connections();
    while !shared.is_withdrawn() {
        let next = Instant::now() + shared.pace().beat;
        match look_once(&shared, &mut session, &mut connections).await {
            Ok(is_vacant) => {
                troubles.end("look");
                if is_vacant {
                    let (shared, table) = (Arc::clone(&shared), Arc::clone(&table));
                    runtime::spawn(async move {
                        let taken = table.take_coordination(&shared).await;
                        if let Err(error) = &taken {
                            let error = with_causes(error);
                            tracing::warn!(error, "taking over as coordinator failed");
                        }
                        shared.took(taken.unwrap_or(false));
                    });
                }
            }
            Err(error) => troubles.fail("look", &error),
        }
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = shared.urge_look.notified() => {}
        }
    }
}

/// Looks once. Returns `true` if the coordinator is gone and this process must try to become the
/// coordinator.
pub(super) async fn look_once(
    shared: &Shared,
    session: &mut Session,
    connections: &mut u64,
) -> Result<bool, SessionError> {
    let (sent, own) = (shared.now(), shared.own_beat());
    let rows = session.query(schema::LOOK, &[], STATEMENT_TIMEOUT).await?;
    if session.connections() != *connections {
        *connections = session.connections();
        shared.restart();
    }
    let outcome = shared.looked(sent, own, decoded_look(&rows)?);
    if outcome.looked == Looked::OldPrimary {
        tracing::debug!(
            host = session.host(),
            "connection closed: the host answers with old rows"
        );
        session.disconnect();
    }
    Ok(outcome.is_vacant)
}

pub(super) fn decoded_look(rows: &[Row]) -> Result<Look, SessionError> {
    let mut look = Look::default();
    let mut beats = BTreeMap::new();
    for row in rows {
        let name = row.text(0)?.to_owned();
        let beat = Beat {
            incarnation: row.int8(1)?,
            number: row.int8(2)?,
        };
        // A description that cannot be decoded, or that names another node, is ignored.
        let card = row.opt_text(3)?.filter(|card| card.len() <= CARD_BYTES_MAX);
        let card = card.and_then(|card| serde_json::from_str::<NodeInfo>(card).ok());
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
