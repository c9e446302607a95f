//! The start of a node in a cluster that keeps its state in an engine.
//!
//! **Invariants**
//! - Tables and settings of the engine are checked before anything is written.
//! - A node takes over its name only from a process that does not beat. If the former process was
//!   only paused, its lease ended before its name was taken. The next beat of the paused process
//!   fails, and so the process notices that it was replaced.
//!
//! Tables are created by `imt engine init`, not here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::Member;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::NodeInfo;
use crate::cluster::engine::EngineCluster;
use crate::cluster::engine::authority::{StateTable, decoded_state};
use crate::cluster::engine::beat::Pace;
use crate::cluster::engine::schema;
use crate::cluster::engine::shared::{Shared, label};
use crate::cluster::engine::tasks;
use crate::error::NodeError;
use crate::postgres::{EngineUrl, Param, Session, SessionError};
use crate::runtime;
use crate::storage::follow::Followers;

/// Longest time for one statement during the start.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to take the name while the engine does not respond or other processes try to take
/// the name.
const NAME_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum permitted `statement_timeout` and `lock_timeout` of the role. A delayed append of a
/// former owner of a volume is refused because newer log entries have its number. It must end
/// before these entries are removed from the log, which happens 60 s after their checkpoint at the
/// earliest.
const SERVER_TIMEOUT_MAX_MS: u64 = 30_000;

/// The settings of a node that joins.
pub(crate) struct Joining {
    pub(crate) url: Arc<EngineUrl>,
    /// The data folder, which contains the local copies of volumes.
    pub(crate) data: PathBuf,
    /// The name, weight and zone of the node.
    pub(crate) member: Member,
    /// The cluster's secret, if it comes from a file instead of the engine.
    pub(crate) secret: Option<String>,
}

impl Joining {
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
        let mut session = Session::new(Arc::clone(&self.url), "node");
        check_fitness(&mut session, &self.url).await?;
        let name = self.member.name().clone();
        // The random number distinguishes successive processes of one node. The shift makes the
        // number positive.
        let incarnation = (runtime::random_u64() >> 1) as i64;
        let table = Arc::new(StateTable::new(Arc::clone(&self.url)));
        self.check_weight(&mut session).await?;
        self.take_name(&mut session, incarnation).await?;
        let secret = self
            .ensure_state(&mut session, &table, &label(&name, incarnation))
            .await?;
        let shared = Arc::new(Shared::new(Arc::clone(&self.url), name.clone(), incarnation));
        let mut looks = Session::new(Arc::clone(&self.url), "look");
        // The caller needs the list of nodes right after the start, so the first look happens here.
        tasks::look_once(&shared, &mut looks, &mut 0)
            .await
            .map_err(self.failed("read the nodes"))?;
        let beats = Session::new(Arc::clone(&self.url), "beat");
        let beating = runtime::spawn(tasks::beat(Arc::clone(&shared), beats, 1));
        runtime::spawn(tasks::look(Arc::clone(&shared), Arc::clone(&table), looks));
        Ok(EngineCluster {
            url: self.url,
            data: self.data,
            name,
            secret,
            shared,
            table,
            beating: Mutex::new(Some(beating)),
            followers: Followers::default(),
            fit: Mutex::default(),
            waiting: Mutex::default(),
        })
    }

    /// Refuses a weight of 0 if no other member has a weight above 0. Without a positive weight no
    /// node could own slots.
    async fn check_weight(&self, session: &mut Session) -> Result<(), NodeError> {
        if self.member.weight() > 0 {
            return Ok(());
        }
        let failed = self.failed("read the cluster's state");
        let rows = session
            .query(schema::STATE, &[Param::Int8(-1)], STATEMENT_TIMEOUT)
            .await;
        let state = decoded_state(&rows.map_err(&failed)?, None).map_err(&failed)?;
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

    /// Takes the node's name. If another process has the name, observes the beats of that process
    /// first, and fails if it still beats.
    async fn take_name(&self, session: &mut Session, incarnation: i64) -> Result<(), NodeError> {
        let failed = self.failed("take the node's name");
        let until = Instant::now() + NAME_TIMEOUT;
        let name = self.member.name().as_str();
        loop {
            match self.try_name(session, incarnation).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    if let Some(holder) = self.holder(session).await? {
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
    /// if another process took the name first.
    async fn try_name(&self, session: &mut Session, incarnation: i64) -> Result<bool, SessionError> {
        let name = self.member.name().as_str();
        let mine = [Param::Text(name), Param::Int8(incarnation)];
        let rows = session.query(schema::NODE, &mine[..1], STATEMENT_TIMEOUT).await?;
        let Some(row) = rows.first() else {
            let added = session
                .execute(schema::ADD_NODE, &mine, STATEMENT_TIMEOUT)
                .await?;
            return Ok(added == 1);
        };
        let (old, beat) = (row.int8(0)?, row.int8(1)?);
        if old == incarnation {
            // An earlier attempt with an unknown result has succeeded. The following commit is
            // acknowledged only after the standbys have received the commit of that attempt too.
            session.execute(schema::PROBE, &[], STATEMENT_TIMEOUT).await?;
            return Ok(true);
        }
        if beat >= 0 && !has_stopped(session, name, old, beat).await? {
            return Ok(false);
        }
        let params = [mine[0], mine[1], Param::Int8(old), Param::Int8(beat)];
        let taken = session
            .execute(schema::REPLACE_NODE, &params, STATEMENT_TIMEOUT)
            .await?;
        Ok(taken == 1)
    }

    /// Returns a text that describes the process with this name, or `None` if that process has not
    /// published its address yet.
    async fn holder(&self, session: &mut Session) -> Result<Option<String>, NodeError> {
        let failed = self.failed("take the node's name");
        let name = [Param::Text(self.member.name().as_str())];
        let rows = session.query(schema::NODE, &name, STATEMENT_TIMEOUT).await;
        let rows = rows.map_err(&failed)?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let card = row.opt_text(2).map_err(&failed)?;
        let card = card.and_then(|card| serde_json::from_str::<NodeInfo>(card).ok());
        Ok(card.map(|card| format!("process {}, answering on {}", card.process, card.address)))
    }

    /// Writes the cluster's first state if there is none, and returns the cluster's secret.
    async fn ensure_state(
        &self,
        session: &mut Session,
        table: &StateTable,
        label: &str,
    ) -> Result<String, NodeError> {
        let failed = self.failed("read the cluster's state");
        loop {
            let rows = session
                .query(schema::STATE, &[Param::Int8(-1)], STATEMENT_TIMEOUT)
                .await
                .map_err(&failed)?;
            if decoded_state(&rows, None).map_err(&failed)?.is_some() {
                let kept = read_secret(session).await.map_err(&failed)?;
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
            table.write_first(self.member.clone(), label, kept).await?;
        }
    }
}

/// Reads the cluster's secret. The result is empty if no node was ever started, or if the nodes
/// read the secret from a file.
pub(super) async fn read_secret(session: &mut Session) -> Result<String, SessionError> {
    let rows = session.query(schema::SECRET, &[], STATEMENT_TIMEOUT).await?;
    match rows.first() {
        Some(row) => Ok(row.text(0)?.to_owned()),
        None => Ok(String::new()),
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
/// that time, or if its row was deleted. Returns `false` as soon as the process beats. Time in
/// which the statements of this session wait is not counted.
async fn has_stopped(
    session: &mut Session,
    name: &str,
    incarnation: i64,
    beat: i64,
) -> Result<bool, SessionError> {
    let name = [Param::Text(name)];
    let pace = Pace::of(usize::MAX);
    let mut until = Instant::now() + pace.gone;
    let mut connections = session.connections();
    loop {
        tokio::time::sleep(pace.beat).await;
        let started = Instant::now();
        // A beat is a commit. While this commit waits, the other process may be unable to beat, so
        // the time of the wait is not counted.
        session.execute(schema::PROBE, &[], STATEMENT_TIMEOUT).await?;
        let rows = session.query(schema::NODE, &name, STATEMENT_TIMEOUT).await?;
        let is_same = match rows.first() {
            Some(row) => row.int8(0)? == incarnation && row.int8(1)? == beat,
            None => return Ok(true),
        };
        if !is_same {
            return Ok(false);
        }
        until += started.elapsed();
        if session.connections() != connections {
            connections = session.connections();
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
