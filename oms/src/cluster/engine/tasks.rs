//! The task that sends beats and the task that looks. Each has a separate connection, so a beat
//! that waits for the standbys does not delay looks.
//!
//! **Invariants**
//! - A state is returned to its readers only after a later beat on the same connection is
//!   acknowledged. Only the primary that the standbys follow acknowledges beats.
//! - A beat may change no row for three reasons: another process has taken the name of this node,
//!   another node has removed the row while this process was silent, or an *old primary*, which
//!   still runs after a fail-over to another server, has answered without the row. Then a further
//!   commit is sent on the same connection. An old primary does not acknowledge that commit. So
//!   after an acknowledgement this process counts as replaced.
//!
//! The decision which nodes are gone is in `beat`. The statements are in `tables`.

use std::sync::Arc;

use tokio::time::Instant;

use crate::cluster::engine::authority::StateTable;
use crate::cluster::engine::beat::{Beat, Looked};
use crate::cluster::engine::shared::{Due, Shared};
use crate::cluster::engine::tables::{ClusterTables, Confirmed};
use crate::error::{NodeError, with_causes};
use crate::postgres::SessionError;
use crate::runtime;
use crate::runtime::seeded::seeded;

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
        /// The version of the state at the beat, or a later one that another node demanded.
        version: u64,
    },
    Replaced,
    /// The connection changed after the state was read. Or the beat changed no row, and the
    /// connection changed before the further commit was acknowledged. So the attempt confirms
    /// neither the state nor a replacement, and is repeated.
    Again,
}

/// Sends beats until this node withdraws (`Membership::withdraw`) or is replaced. After a
/// withdrawal, the last beat tells the other nodes that the process has ended.
pub(super) async fn beat(shared: Arc<Shared>, mut tables: Box<dyn ClusterTables>, mut number: i64) {
    let mut troubles = Troubles::default();
    let mut connections = tables.connections();
    loop {
        let mut due = shared.due();
        let next = Instant::now() + shared.pace().beat;
        number += 1;
        let sent = shared.now();
        let written = if due.is_last { -1 } else { number };
        let outcome = beat_once(&shared, &mut *tables, &due, written).await;
        if tables.connections() != connections {
            connections = tables.connections();
            shared.restart();
        }
        match outcome {
            Ok(Beaten::Acknowledged { read, version }) => {
                troubles.end("beat");
                let is_late = seeded("engine-lease-from-answer");
                let sent = if is_late { shared.now() } else { sent };
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
            biased;
            () = tokio::time::sleep_until(next) => {}
            () = shared.urge.notified() => {}
        }
    }
}

async fn beat_once(
    shared: &Shared,
    tables: &mut dyn ClusterTables,
    due: &Due,
    number: i64,
) -> Result<Beaten, SessionError> {
    let mut read = None;
    if due.is_behind || due.readers.iter().any(|reader| !reader.is_closed()) {
        read = tables.state(due.cached.as_ref()).await?;
    }
    let connections = tables.connections();
    let beat = Beat {
        incarnation: shared.incarnation,
        number,
    };
    let written = tables
        .beat(shared.name.as_str(), &beat, due.card.as_ref())
        .await?;
    if written.is_none() {
        tables.probe().await?;
    }
    if tables.connections() != connections && (read.is_some() || written.is_none()) {
        return Ok(Beaten::Again);
    }
    Ok(written.map_or(Beaten::Replaced, |version| Beaten::Acknowledged {
        read: read.map(Box::new),
        version,
    }))
}

/// Looks at all nodes until this node withdraws (`Membership::withdraw`).
pub(super) async fn look(shared: Arc<Shared>, table: Arc<StateTable>, mut tables: Box<dyn ClusterTables>) {
    let mut troubles = Troubles::default();
    let mut connections = tables.connections();
    while !shared.is_withdrawn() {
        let next = Instant::now() + shared.pace().beat;
        match look_once(&shared, &mut *tables, &mut connections).await {
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
            biased;
            () = tokio::time::sleep_until(next) => {}
            () = shared.urge_look.notified() => {}
        }
    }
}

/// Looks once. Returns `true` if the coordinator is gone and this process must try to become the
/// coordinator.
pub(super) async fn look_once(
    shared: &Shared,
    tables: &mut dyn ClusterTables,
    connections: &mut u64,
) -> Result<bool, SessionError> {
    let (sent, own) = (shared.now(), shared.own_beat());
    let look = tables.look().await?;
    if tables.connections() != *connections {
        *connections = tables.connections();
        shared.restart();
    }
    let outcome = shared.looked(sent, own, look);
    if outcome.looked == Looked::OldPrimary {
        tracing::debug!(
            host = tables.host(),
            "connection closed: the host answers with old rows"
        );
        tables.disconnect();
    }
    Ok(outcome.is_vacant)
}
