//! The start of a node in a cluster that keeps its state in an engine.
//!
//! **Invariants**
//! - Tables and settings of the engine are checked before anything is written.
//! - A node takes over its name only from a process that does not beat. If the former process was
//!   only paused, its lease ended before its name was taken. The next beat of the paused process
//!   changes no row, and so the process notices that it was replaced.
//!
//! Tables are created by `imt engine init`, not here.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use imt_ring::Member;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::ClusterState;
use crate::cluster::engine::EngineCluster;
use crate::cluster::engine::authority::StateTable;
use crate::cluster::engine::backend::{Backend, Postgres};
use crate::cluster::engine::beat::{Beat, Pace};
use crate::cluster::engine::restored::Complaints;
use crate::cluster::engine::schema;
use crate::cluster::engine::shared::{Shared, label};
use crate::cluster::engine::tables::{ClusterTables, FirstState};
use crate::cluster::engine::tasks;
use crate::error::NodeError;
use crate::postgres::{EngineUrl, Session, SessionError};
use crate::runtime;
use crate::storage::follow::Followers;

/// Longest time for one statement of the check of an engine.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to take the name while the engine does not respond, or while another process has or
/// takes the name and has not published its address.
const NAME_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum permitted `statement_timeout` and `lock_timeout` of the role. A delayed append of a
/// former owner of a volume is refused because a newer log entry has its number. The append must
/// end before this entry is removed from the log, which happens 60 s after the entry's
/// acknowledgement at the earliest (`KEPT_FOR`).
const SERVER_TIMEOUT_MAX_MS: u64 = 30_000;

/// The settings of a node that joins.
pub(crate) struct Joining {
    /// The URL of the first engine, for error messages.
    url: Arc<EngineUrl>,
    backend: Arc<dyn Backend>,
    /// The name, weight and zone of the node.
    member: Member,
    /// The cluster's secret, if it comes from a file instead of the engine.
    secret: Option<String>,
}

impl Joining {
    /// Returns the settings of a node with its engines and local copies in `backend`.
    pub(crate) fn new(
        url: Arc<EngineUrl>,
        backend: Arc<dyn Backend>,
        member: Member,
        secret: Option<String>,
    ) -> Joining {
        Joining {
            url,
            backend,
            member,
            secret,
        }
    }

    /// Returns the settings of a node on PostgreSQL, with its local copies in the folder `data`.
    pub(crate) fn on_postgres(
        url: Arc<EngineUrl>,
        data: PathBuf,
        member: Member,
        secret: Option<String>,
    ) -> Joining {
        let backend = Postgres::new(Arc::clone(&url), data, member.name().as_str());
        Joining::new(url, Arc::new(backend), member, secret)
    }

    fn failed(&self, action: &'static str) -> impl Fn(SessionError) -> NodeError {
        let url = self.url.to_string();
        move |source| NodeError::Engine {
            action,
            url: url.clone(),
            source,
        }
    }

    /// Checks the engine, takes the node's name, writes the first state if there is none, and
    /// starts the tasks of beats and looks.
    pub(crate) async fn join(self) -> Result<EngineCluster, NodeError> {
        self.backend.check().await?;
        let mut tables = self.backend.start_tables();
        let name = self.member.name().clone();
        // The random number distinguishes successive processes of one node. The shift clears the
        // sign bit.
        let incarnation = (runtime::random_u64() >> 1) as i64;
        self.check_weight(&mut *tables).await?;
        self.take_name(&mut *tables, incarnation).await?;
        let secret = self
            .ensure_state(&mut *tables, &label(&name, incarnation))
            .await?;
        let shared = Arc::new(Shared::new(Arc::clone(&self.url), name.clone(), incarnation));
        let mut looks = self.backend.tables("look");
        // The caller needs the list of nodes right after the start, so the first look happens here.
        tasks::look_once(&shared, &mut *looks, &mut 0)
            .await
            .map_err(self.failed("read the nodes"))?;
        let table = Arc::new(StateTable::new(
            self.backend.tables("state"),
            Arc::clone(&self.url),
        ));
        let beats = self.backend.tables("beat");
        let beating = runtime::spawn(tasks::beat(Arc::clone(&shared), beats, 1));
        runtime::spawn(tasks::look(Arc::clone(&shared), Arc::clone(&table), looks));
        Ok(EngineCluster {
            backend: self.backend,
            name,
            secret,
            shared,
            table,
            beating: Mutex::new(Some(beating)),
            followers: Followers::default(),
            waiting: Mutex::default(),
            epochs: Mutex::default(),
            complaints: Complaints::default(),
            unopened: AtomicUsize::new(0),
        })
    }

    /// Refuses a weight of 0 if no other member has a weight above 0. Without a positive weight no
    /// node could own slots.
    async fn check_weight(&self, tables: &mut dyn ClusterTables) -> Result<(), NodeError> {
        if self.member.weight() > 0 {
            return Ok(());
        }
        let state = tables.state(None).await;
        let state = state.map_err(self.failed("read the cluster's state"))?;
        let members = state.iter().flat_map(|confirmed| confirmed.state.ring.members());
        let mut others = members.filter(|member| member.name() != self.member.name());
        if others.any(|member| member.weight() > 0) {
            return Ok(());
        }
        Err(NodeError::Config {
            setting: "weight",
            reason:
                "cannot be 0: no other node could own the orders; give the first node a weight of 1 or more"
                    .to_owned(),
        })
    }

    /// Takes the node's name. Fails if the process that has the name beats and has published its
    /// address. While that address is not published, or the engine does not respond, tries again
    /// for up to `NAME_TIMEOUT`.
    async fn take_name(&self, tables: &mut dyn ClusterTables, incarnation: i64) -> Result<(), NodeError> {
        let failed = self.failed("take the node's name");
        let until = Instant::now() + NAME_TIMEOUT;
        let name = self.member.name().as_str();
        loop {
            match self.try_name(tables, incarnation).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    if let Some(holder) = self.holder(tables).await? {
                        return Err(NodeError::NameInEngine {
                            name: name.to_owned(),
                            url: self.url.to_string(),
                            holder: Some(holder),
                        });
                    }
                }
                Err(SessionError::Unknown { .. } | SessionError::Away { .. }) if Instant::now() < until => {}
                Err(error) => return Err(failed(error)),
            }
            if Instant::now() >= until {
                return Err(NodeError::NameInEngine {
                    name: name.to_owned(),
                    url: self.url.to_string(),
                    holder: None,
                });
            }
            tokio::time::sleep(Pace::of(0).beat).await;
        }
    }

    /// Tries once to take the node's name. Returns `false` if the process with the name beats, or
    /// if another process was faster.
    async fn try_name(&self, tables: &mut dyn ClusterTables, incarnation: i64) -> Result<bool, SessionError> {
        let name = self.member.name().as_str();
        let Some((former, _)) = tables.node(name).await? else {
            return tables.add_node(name, incarnation).await;
        };
        // The row has the own incarnation if an earlier attempt with an unknown result has
        // succeeded at this server, which may be an old primary. The replacement by itself is
        // acknowledged only by a server that has the row, after its standbys have it.
        let is_own = former.incarnation == incarnation;
        if !is_own && former.number >= 0 && !has_stopped(tables, name, &former).await? {
            return Ok(false);
        }
        tables.replace_node(name, &former, incarnation).await
    }

    /// Returns a text that describes the process with this name, or `None` if no process has the
    /// name or that process has not published its address yet.
    async fn holder(&self, tables: &mut dyn ClusterTables) -> Result<Option<String>, NodeError> {
        let node = tables.node(self.member.name().as_str()).await;
        let node = node.map_err(self.failed("take the node's name"))?;
        let card = node.and_then(|(_, card)| card);
        Ok(card.map(|card| format!("process {}, answering on {}", card.process, card.address)))
    }

    /// Writes the cluster's first state if there is none, and returns the cluster's secret. If the
    /// engine stores no secret, the result is that of this node's secret file, and the function
    /// fails without such a file. If the engine stores a secret, the function fails if a secret
    /// file has another one.
    async fn ensure_state(&self, tables: &mut dyn ClusterTables, label: &str) -> Result<String, NodeError> {
        let failed = self.failed("read the cluster's state");
        loop {
            if tables.state(None).await.map_err(&failed)?.is_some() {
                let kept = tables.secret().await.map_err(&failed)?;
                return match (&self.secret, kept.as_str()) {
                    (Some(given), "") => Ok(given.clone()),
                    (Some(given), kept) if given == kept => Ok(given.clone()),
                    (None, "") => Err(NodeError::Config {
                        setting: "secret file",
                        reason: "is missing: the first node of this cluster was started with --secret-file, and each node needs the same file".to_owned(),
                    }),
                    (None, _) => Ok(kept),
                    (Some(_), _) => Err(NodeError::Config {
                        setting: "secret file",
                        reason: "has another secret than the cluster; use the file of the other nodes, or none".to_owned(),
                    }),
                };
            }
            let fresh: String = (0..4)
                .map(|_| format!("{:016x}", runtime::random_u64()))
                .collect();
            let kept = if self.secret.is_some() { "" } else { fresh.as_str() };
            self.write_first(tables, label, kept).await?;
        }
    }

    /// Writes the cluster's first state, and the row of the first volume's log. Has no effect if a
    /// state exists already.
    async fn write_first(
        &self,
        tables: &mut dyn ClusterTables,
        coordinator: &str,
        secret: &str,
    ) -> Result<(), NodeError> {
        let first = ClusterState::first(self.member.clone()).map_err(|error| NodeError::EngineUnfit {
            url: self.url.to_string(),
            reason: error.to_string(),
        })?;
        let first = FirstState {
            state: &first,
            volume: self.member.name().as_str(),
            coordinator,
            secret,
        };
        let written = tables.write_first(first).await;
        written.map(drop).map_err(self.failed("write the first state"))
    }
}

/// Fails unless the engine has the tables that `imt engine init` creates, and the settings of the
/// role that `unfit_setting` requires.
pub(super) async fn check_fitness(session: &mut Session, url: &EngineUrl) -> Result<(), NodeError> {
    let unfit = |reason: String| NodeError::EngineUnfit {
        url: url.to_string(),
        reason,
    };
    let failed = |source| NodeError::Engine {
        action: "read the layout of the tables",
        url: url.to_string(),
        source,
    };
    let no_tables = || unfit(format!("it has no tables of imt; run imt engine init {url}"));
    let rows = match session.query(schema::VERSION, &[], STATEMENT_TIMEOUT).await {
        Ok(rows) => rows,
        Err(SessionError::Refused { code, .. }) if code == schema::UNDEFINED_TABLE => {
            return Err(no_tables());
        }
        Err(error) => return Err(failed(error)),
    };
    let version = rows.first().ok_or_else(no_tables)?.int4(0).map_err(failed)?;
    if version != schema::SCHEMA_VERSION {
        return Err(unfit(format!(
            "its tables have layout {version}, and this program needs {}; run the same version of imt on all nodes",
            schema::SCHEMA_VERSION
        )));
    }
    let rows = session.query(schema::SETTINGS, &[], STATEMENT_TIMEOUT).await;
    let rows = rows.map_err(failed)?;
    let Some(row) = rows.first() else {
        return Err(unfit("it did not return its settings".to_owned()));
    };
    let text = |column| row.text(column).map_err(failed);
    match unfit_setting(text(0)?, text(1)?, text(2)?, text(3)?) {
        Some(fault) => Err(unfit(format!("{fault}; run imt engine init {url}"))),
        None => Ok(()),
    }
}

/// Waits for `Pace::gone`. Returns `true` if the process that has the name `name` did not beat in
/// that time, or if its row was deleted. Returns `false` as soon as the row has another beat. Time
/// in which the statements of this session wait is not counted. After a new connection, the wait
/// begins again.
async fn has_stopped(
    tables: &mut dyn ClusterTables,
    name: &str,
    former: &Beat,
) -> Result<bool, SessionError> {
    let pace = Pace::of(usize::MAX);
    let mut until = Instant::now() + pace.gone;
    let mut connections = tables.connections();
    loop {
        tokio::time::sleep(pace.beat).await;
        let started = Instant::now();
        // A beat is a commit. While this commit waits, the other process may be unable to beat, so
        // the time of the wait is not counted.
        tables.probe().await?;
        let is_same = match tables.node(name).await? {
            Some((beat, _)) => beat == *former,
            None => return Ok(true),
        };
        if !is_same {
            return Ok(false);
        }
        until += started.elapsed();
        if tables.connections() != connections {
            connections = tables.connections();
            until = Instant::now() + pace.gone;
        }
        if Instant::now() >= until {
            return Ok(true);
        }
    }
}

/// Returns the reason why a node cannot work with these settings of the role, or `None` if it can.
pub(super) fn unfit_setting(commit: &str, lock: &str, statement: &str, isolation: &str) -> Option<String> {
    if !["on", "remote_apply"].contains(&commit) {
        return Some(format!(
            "synchronous_commit is {commit}, so an acknowledged order could be lost"
        ));
    }
    for (name, value) in [("lock_timeout", lock), ("statement_timeout", statement)] {
        let is_bounded = value
            .parse::<u64>()
            .is_ok_and(|ms| (1..=SERVER_TIMEOUT_MAX_MS).contains(&ms));
        if !is_bounded {
            return Some(format!(
                "{name} is {value} ms, and must be 1 to {SERVER_TIMEOUT_MAX_MS} ms, so that a delayed statement cannot write to a trimmed log"
            ));
        }
    }
    if isolation != "read committed" {
        return Some(format!(
            "the default isolation is {isolation}, not read committed"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::unfit_setting;

    #[test]
    fn settings_that_could_lose_an_order_are_refused() {
        let good = ["on", "2000", "5000", "read committed"];
        let fault = |at: usize, value: &str| {
            let mut settings = good;
            settings[at] = value;
            let [commit, lock, statement, isolation] = settings;
            unfit_setting(commit, lock, statement, isolation)
        };
        assert_eq!(fault(0, "on"), None);
        assert_eq!(fault(0, "remote_apply"), None);
        for (at, value, named) in [
            (0, "off", "synchronous_commit is off"),
            (0, "local", "synchronous_commit is local"),
            (0, "remote_write", "synchronous_commit is remote_write"),
            (1, "0", "lock_timeout is 0 ms"),
            (2, "0", "statement_timeout is 0 ms"),
            (2, "60000", "statement_timeout is 60000 ms"),
            (3, "serializable", "isolation is serializable"),
        ] {
            let found = fault(at, value).unwrap_or_default();
            assert!(found.contains(named), "{value}: {found}");
        }
    }
}
