//! Operations on an engine for the command line: creating the tables, checking the engine, listing
//! the nodes, and controlling standbys.
//!
//! **Invariants**
//! - `init_engine` may be repeated, and deletes nothing.
//! - `check_engine` deletes its test entries, unless the connection fails before. The entries
//!   belong to a volume with a name that no node can have, so nodes never read them.
//!
//! The commands' output is in the crate `cli`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::Ring;
use tokio::time::Instant;

use crate::cluster::engine::backend::further_engine;
use crate::cluster::engine::beat::Pace;
use crate::cluster::engine::joining::{check_fitness, unfit_setting};
use crate::cluster::engine::schema;
use crate::cluster::engine::tables::{decoded_look, decoded_state, read_secret};
use crate::cluster::{ClusterState, NodeInfo};
use crate::error::NodeError;
use crate::postgres::{EngineUrl, Param, Session, SessionError};
use crate::runtime;

/// Longest time to wait for one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Oldest version of PostgreSQL that was tested, in the form of `server_version_num`.
const SERVER_VERSION_MIN: i32 = 150_000;
/// Number of test commits from which `check_engine` computes the latency of a commit.
const TEST_COMMITS: usize = 50;
/// PostgreSQL's error codes for a statement that `lock_timeout` or `statement_timeout` cancelled.
const CANCELLED: [&str; 2] = ["55P03", "57014"];
/// Content of a test entry. Its size is roughly that of the entry of a commit with one order.
const TEST_BODY: [u8; 400] = [0; 400];
/// Median duration of the test commits above which the check warns.
const SLOW_COMMIT: Duration = Duration::from_millis(20);

fn failed(url: &EngineUrl, action: &'static str) -> impl Fn(SessionError) -> NodeError + use<> {
    let url = url.to_string();
    move |source| NodeError::Engine {
        action,
        url: url.clone(),
        source,
    }
}

/// Creates the missing tables and the views, and sets the settings of the role in this database.
///
/// # Errors
/// `NodeError::Engine` if the engine cannot be reached or refuses a statement, for example because
/// the role may not create tables.
pub async fn init_engine(url: &EngineUrl) -> Result<(), NodeError> {
    let failed = failed(url, "create the tables");
    let mut session = Session::new(Arc::new(url.clone()), "init");
    let rows = session
        .query(
            "SELECT quote_ident(current_database()), current_setting('synchronous_commit')",
            &[],
            STATEMENT_TIMEOUT,
        )
        .await
        .map_err(&failed)?;
    let Some(row) = rows.first() else {
        return Err(failed(SessionError::Invalid {
            reason: "the engine did not return the name of the database".to_owned(),
        }));
    };
    let database = row.text(0).map_err(&failed)?;
    session
        .batch(schema::CREATE, STATEMENT_TIMEOUT)
        .await
        .map_err(&failed)?;
    session
        .batch(schema::VIEWS, STATEMENT_TIMEOUT)
        .await
        .map_err(&failed)?;
    for (name, value) in schema::ROLE_SETTINGS {
        // `remote_apply` is stricter than the required setting, so it is not overwritten.
        let is_stricter = name == "synchronous_commit" && row.text(1).map_err(&failed)? == "remote_apply";
        if !is_stricter {
            let sql = format!("ALTER ROLE CURRENT_USER IN DATABASE {database} SET {name} = '{value}'");
            session.batch(&sql, STATEMENT_TIMEOUT).await.map_err(&failed)?;
        }
    }
    Ok(())
}

/// Returns the position in the primary's WAL, in bytes, up to which a standby has received the WAL.
/// Returns 0 for a server that has received none, such as one that has never been a standby.
///
/// # Errors
/// `NodeError::Engine` if the standby cannot be reached or refuses the statement.
pub async fn standby_position(url: &EngineUrl) -> Result<u64, NodeError> {
    let failed = failed(url, "read a standby's position");
    let mut session = Session::to_any(Arc::new(url.clone()), "standby");
    let sql = "SELECT coalesce(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0'), 0)::bigint";
    let rows = session.query(sql, &[], STATEMENT_TIMEOUT).await;
    let rows = rows.map_err(&failed)?;
    let position = rows.first().map_or(Ok(0), |row| row.int8(0));
    Ok(u64::try_from(position.map_err(&failed)?).unwrap_or(0))
}

/// Promotes a standby to the primary. The function does not wait until the new primary accepts
/// writes.
///
/// # Errors
/// `NodeError::Engine` if the standby cannot be reached or refuses the statement.
pub async fn promote_standby(url: &EngineUrl) -> Result<(), NodeError> {
    run_on_standby(url, "SELECT pg_promote(false)").await
}

/// Makes a standby reload its configuration files.
///
/// # Errors
/// `NodeError::Engine` if the standby cannot be reached or refuses the statement.
pub async fn reload_standby(url: &EngineUrl) -> Result<(), NodeError> {
    run_on_standby(url, "SELECT pg_reload_conf()").await
}

async fn run_on_standby(url: &EngineUrl, sql: &str) -> Result<(), NodeError> {
    let mut session = Session::to_any(Arc::new(url.clone()), "standby");
    let done = session.query(sql, &[], STATEMENT_TIMEOUT).await;
    done.map(drop).map_err(failed(url, "change a standby"))
}

/// The severity of the result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The check found no fault.
    Good,
    /// Nodes can start. The check found a risk for acknowledged orders, for commits or for the
    /// latency, or could not rule one out.
    Warning,
    /// Nodes would refuse to start or could not commit, or a setting or a missing fence could lose
    /// acknowledged orders.
    Bad,
}

/// The result of one check of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineCheck {
    /// The checked subject in one or two words.
    pub subject: &'static str,
    /// The severity of the result.
    pub verdict: Verdict,
    /// The result as text, with a remedy if there is one.
    pub finding: String,
}

/// Checks if an engine can store a cluster without losing an acknowledged order.
///
/// # Errors
/// `NodeError::Engine` if the engine cannot be reached or refuses a statement. A fault that a check
/// finds is a result, not an error. Missing tables, commits without an answer, and a list of
/// standbys that the role may not read are such faults.
pub async fn check_engine(url: &EngineUrl) -> Result<Vec<EngineCheck>, NodeError> {
    let failed = failed(url, "run the checks");
    let mut session = Session::new(Arc::new(url.clone()), "check");
    let mut checks = Checks::default();
    version(&mut session, &mut checks).await.map_err(&failed)?;
    pooler(&mut session, url, &mut checks).await.map_err(&failed)?;
    standbys(&mut session, &mut checks).await.map_err(&failed)?;
    settings(&mut session, &mut checks).await.map_err(&failed)?;
    let has_tables = tables(&mut session, &mut checks).await.map_err(&failed)?;
    if has_tables && commits(&mut session, &mut checks).await.map_err(&failed)? {
        fence(&mut session, &mut checks).await.map_err(&failed)?;
    }
    Ok(checks.0)
}

#[derive(Default)]
struct Checks(Vec<EngineCheck>);

impl Checks {
    fn add(&mut self, subject: &'static str, verdict: Verdict, finding: impl Into<String>) {
        self.0.push(EngineCheck {
            subject,
            verdict,
            finding: finding.into(),
        });
    }
}

async fn version(session: &mut Session, checks: &mut Checks) -> Result<(), SessionError> {
    let sql = "SELECT current_setting('server_version_num')::int, version(), pg_is_in_recovery()";
    let rows = session.query(sql, &[], STATEMENT_TIMEOUT).await?;
    for row in &rows {
        let text = row.text(1)?;
        let short = text.split(" on ").next().unwrap_or(text).to_owned();
        if row.int4(0)? >= SERVER_VERSION_MIN {
            checks.add("version", Verdict::Good, short);
        } else {
            let finding = format!("{short}; versions before 15 were not tried");
            checks.add("version", Verdict::Warning, finding);
        }
        let host = session.host();
        if row.bool(2)? {
            let finding = format!("{host} is a standby; add the primary to the URL");
            checks.add("primary", Verdict::Bad, finding);
        } else {
            checks.add("primary", Verdict::Good, host);
        }
    }
    Ok(())
}

/// Looks for a connection pooler that may give each statement another connection to the server.
async fn pooler(session: &mut Session, url: &EngineUrl, checks: &mut Checks) -> Result<(), SessionError> {
    let mut other = Session::new(Arc::new(url.clone()), "check");
    let before = session.connections();
    let own = [backend(session).await?, backend(session).await?];
    let its = backend(&mut other).await?;
    // The numbers of processes of two servers are not comparable.
    if session.connections() == before && session.host() == other.host() && is_pooled(own, its) {
        let finding = "a connection pooler in transaction mode is between this program and the server; name the servers themselves in the URL, or use session mode (docs/scale-out.md)";
        checks.add("pooler", Verdict::Warning, finding);
    } else {
        checks.add("pooler", Verdict::Good, "none in transaction mode was found");
    }
    Ok(())
}

/// Returns the process of the server that executes the statements of a session now.
async fn backend(session: &mut Session) -> Result<i32, SessionError> {
    let sql = "SELECT pg_backend_pid()";
    let rows = session.query(sql, &[], STATEMENT_TIMEOUT).await?;
    rows.first().map_or(Ok(0), |row| row.int4(0))
}

/// Returns `true` if two statements of one connection, `own`, and one statement of another
/// connection that is open at the same time, `its`, were not executed by exactly two processes. A
/// server has a process for each connection. A pooler in transaction mode may give its connection
/// to the server that became idle last to the next statement, so that one process executes all
/// three. Or it may take turns, so that the process of the first two statements changes.
fn is_pooled(own: [i32; 2], its: i32) -> bool {
    own[0] != own[1] || own.contains(&its)
}

async fn standbys(session: &mut Session, checks: &mut Checks) -> Result<(), SessionError> {
    let sql = "SELECT current_setting('synchronous_standby_names'),
        (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
        (SELECT count(*) FROM pg_stat_replication),
        (SELECT count(*) FROM pg_stat_replication WHERE sync_state IS NULL)";
    let rows = match session.query(sql, &[], STATEMENT_TIMEOUT).await {
        Ok(rows) => rows,
        Err(SessionError::Refused { message, .. }) => {
            let finding = format!(
                "the list of standbys is not readable ({message}); without a synchronous standby, the loss of one machine loses orders"
            );
            checks.add("standbys", Verdict::Warning, finding);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for row in &rows {
        let (names, synchronous, all) = (row.text(0)?, row.int8(1)?, row.int8(2)?);
        let hidden = row.int8(3)?;
        let (verdict, finding) = match (names.is_empty(), synchronous, all) {
            (false, 0, _) if hidden > 0 => (
                Verdict::Warning,
                format!("'{names}' is set, and the state of {hidden} standbys is hidden from this role; grant it pg_monitor, then check again"),
            ),
            (true, _, _) => (
                Verdict::Warning,
                "synchronous_standby_names is empty: the loss of this machine loses acknowledged orders, unless its storage is replicated (as with Aurora or Neon, where this cannot be seen)".to_owned(),
            ),
            (false, 0, 0) => (
                Verdict::Warning,
                format!("'{names}' is set and no standby is connected, or this role may not see them (grant pg_monitor); without one, commits wait"),
            ),
            (false, 0, all) => (
                Verdict::Bad,
                format!("'{names}' names none of the {all} connected standbys that this role can see: commits wait"),
            ),
            (false, synchronous, _) => (
                Verdict::Good,
                format!("{synchronous} synchronous now ('{names}')"),
            ),
        };
        checks.add("standbys", verdict, finding);
    }
    Ok(())
}

async fn settings(session: &mut Session, checks: &mut Checks) -> Result<(), SessionError> {
    let sql = "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes')";
    for row in &session.query(sql, &[], STATEMENT_TIMEOUT).await? {
        let (name, is_on) = (row.text(0)?, row.text(1)? == "on");
        let subject = if name == "fsync" { "fsync" } else { "full pages" };
        if is_on {
            checks.add(subject, Verdict::Good, format!("{name} is on"));
        } else {
            let finding = format!("{name} is off: a crash of the machine loses or damages orders");
            checks.add(subject, Verdict::Bad, finding);
        }
    }
    for row in &session.query(schema::SETTINGS, &[], STATEMENT_TIMEOUT).await? {
        let [commit, lock, statement, isolation] = [row.text(0)?, row.text(1)?, row.text(2)?, row.text(3)?];
        match unfit_setting(commit, lock, statement, isolation) {
            Some(fault) => checks.add("role", Verdict::Bad, format!("{fault}; run imt engine init")),
            None => checks.add(
                "role",
                Verdict::Good,
                format!(
                    "synchronous_commit {commit}, lock_timeout {lock} ms, statement_timeout {statement} ms"
                ),
            ),
        }
    }
    Ok(())
}

async fn tables(session: &mut Session, checks: &mut Checks) -> Result<bool, SessionError> {
    match session.query(schema::VERSION, &[], STATEMENT_TIMEOUT).await {
        Ok(rows) => {
            let version = rows.first().map_or(Ok(0), |row| row.int4(0))?;
            let is_known = version == schema::SCHEMA_VERSION;
            if is_known {
                checks.add("tables", Verdict::Good, format!("layout {version}"));
            } else {
                let finding = format!(
                    "layout {version}, and this program knows {}",
                    schema::SCHEMA_VERSION
                );
                checks.add("tables", Verdict::Bad, finding);
            }
            Ok(is_known)
        }
        Err(SessionError::Refused { code, .. }) if code == schema::UNDEFINED_TABLE => {
            checks.add("tables", Verdict::Bad, "there are none; run imt engine init");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Returns `true` if the engine acknowledges a commit. Without a standby that acknowledges it, a
/// commit has no answer in time. The test entries of `fence` would then have none either, and could
/// not be deleted. A waiting commit keeps the row of `PROBE` locked, so the next one is cancelled.
async fn commits(session: &mut Session, checks: &mut Checks) -> Result<bool, SessionError> {
    let reason = match session.execute(schema::PROBE, &[], STATEMENT_TIMEOUT).await {
        Ok(_) => return Ok(true),
        Err(SessionError::Unknown { reason }) => reason,
        Err(SessionError::Refused { code, message }) if CANCELLED.contains(&code.as_str()) => message,
        Err(error) => return Err(error),
    };
    let finding =
        format!("a test commit was not acknowledged ({reason}): nodes cannot commit; see the line standbys");
    checks.add("commits", Verdict::Bad, finding);
    Ok(false)
}

/// Checks that the engine refuses log entries of a former owner of a volume, and measures the
/// latency of commits.
async fn fence(session: &mut Session, checks: &mut Checks) -> Result<(), SessionError> {
    // The name of a node cannot contain a space. So no node has a volume with this name.
    let volume = format!("check {:016x}", runtime::random_u64());
    let outcome = test_entries(session, &volume).await;
    let name = [Param::Text(&volume)];
    for sql in [
        "DELETE FROM imt_log WHERE volume = $1",
        "DELETE FROM imt_volume WHERE volume = $1",
    ] {
        session.execute(sql, &name, STATEMENT_TIMEOUT).await?;
    }
    let Tested { added, mut times } = outcome?;
    if added == [1, 1, 0, 0, 1] {
        checks.add("fence", Verdict::Good, "entries of a former owner are refused");
    } else {
        let finding = format!(
            "five test entries added {added:?} rows, and must add [1, 1, 0, 0, 1]: the engine lets a former owner commit"
        );
        checks.add("fence", Verdict::Bad, finding);
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let (median, worst) = (at(50), at(99));
    let text = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1_000.0);
    let finding = format!("{} (median), {} (p99) a commit", text(median), text(worst));
    if median > SLOW_COMMIT {
        let finding = format!("{finding}; an order waits for at least one");
        checks.add("latency", Verdict::Warning, finding);
    } else {
        checks.add("latency", Verdict::Good, finding);
    }
    Ok(())
}

/// The results of the test entries.
struct Tested {
    /// Number of rows that each of the first five test entries added: 1, or 0 if the engine refused
    /// the entry.
    added: Vec<u64>,
    /// Durations of the `TEST_COMMITS` further commits.
    times: Vec<Duration>,
}

/// Appends five entries. The engine must refuse the third entry, because a former owner appends it,
/// and the fourth entry, because the log has an entry with its number already. Then appends
/// `TEST_COMMITS` entries to measure the latency.
async fn test_entries(session: &mut Session, volume: &str) -> Result<Tested, SessionError> {
    let name = Param::Text(volume);
    session
        .execute(
            "INSERT INTO imt_volume (volume, epoch, owner, kept_from) VALUES ($1, 1, 'check', 1)",
            &[name],
            STATEMENT_TIMEOUT,
        )
        .await?;
    let mut added = Vec::new();
    let mut times = Vec::new();
    for (seq, epoch) in [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)] {
        if added.len() == 2 {
            let raise = "UPDATE imt_volume SET epoch = 2 WHERE volume = $1";
            session.execute(raise, &[name], STATEMENT_TIMEOUT).await?;
        }
        added.push(append(session, name, seq, epoch).await?);
    }
    for seq in 0..TEST_COMMITS {
        let started = Instant::now();
        append(session, name, seq as i64 + 10, 2).await?;
        times.push(started.elapsed());
    }
    Ok(Tested { added, times })
}

async fn append(session: &mut Session, volume: Param<'_>, seq: i64, epoch: i64) -> Result<u64, SessionError> {
    let params = [
        volume,
        Param::Int8(seq),
        Param::Int8(epoch),
        Param::Bytes(&TEST_BODY),
    ];
    session.execute(schema::APPEND, &params, STATEMENT_TIMEOUT).await
}

/// A cluster as its engine describes it.
#[derive(Clone, Debug)]
pub struct EngineView {
    /// The published description of each node, with `true` if its process beats.
    pub nodes: Vec<(NodeInfo, bool)>,
    /// The ring; `None` if no node has ever been started.
    pub ring: Option<Ring>,
    /// The URL of the cluster's warehouse, if one is set.
    pub warehouse: Option<String>,
    /// The volumes that this engine stores.
    pub volumes: Vec<String>,
    /// The further engines, which store other volumes of the cluster.
    pub further: Vec<FurtherEngine>,
}

/// A further engine: one beside the cluster's first engine. It may store the logs of volumes.
#[derive(Clone, Debug)]
pub struct FurtherEngine {
    /// The engine's name in the cluster.
    pub name: String,
    /// The engine's URL without a password.
    pub url: String,
    /// The volumes that the engine stores.
    pub volumes: Vec<String>,
}

/// Checks if an engine can store volumes of a cluster that has its state in the engine `first`. The
/// checked engine must have the tables and settings that `init_engine` creates, and must not
/// contain the state of a cluster.
///
/// # Errors
/// `NodeError::EngineUnfit` with the reason, or `NodeError::Engine` if the engine does not respond
/// or refuses a statement.
pub async fn check_further_engine(first: &EngineUrl, url: &EngineUrl) -> Result<(), NodeError> {
    let url = url.clone().or_password_of(first);
    check_fitness(&mut Session::new(Arc::new(url.clone()), "check"), &url).await?;
    match state_in(&url).await? {
        None => Ok(()),
        Some(_) => Err(NodeError::EngineUnfit {
            url: url.to_string(),
            reason: "it has a cluster of its own; use an empty database".to_owned(),
        }),
    }
}

/// Returns `true` if the engine at `further` acknowledges a commit now. This engine stores volumes
/// of a cluster that has its state in the engine `first`.
pub async fn engine_answers(first: &EngineUrl, further: &str) -> bool {
    let Ok(url) = further_engine(further, first) else {
        return false;
    };
    let mut session = Session::new(Arc::new(url), "check");
    session
        .execute(schema::PROBE, &[], STATEMENT_TIMEOUT)
        .await
        .is_ok()
}

/// Reads the cluster's state from an engine. Returns `None` if the engine stores no state.
pub(super) async fn state_in(url: &EngineUrl) -> Result<Option<ClusterState>, NodeError> {
    let failed = failed(url, "read the cluster's state");
    let mut session = Session::new(Arc::new(url.clone()), "view");
    let rows = session
        .query(schema::STATE, &[Param::Int8(-1)], STATEMENT_TIMEOUT)
        .await;
    let confirmed = decoded_state(&rows.map_err(&failed)?, None).map_err(&failed)?;
    Ok(confirmed.map(|confirmed| confirmed.state))
}

fn further_engines(state: &ClusterState) -> Vec<FurtherEngine> {
    let further = |(name, url): (&String, &String)| FurtherEngine {
        name: name.clone(),
        url: url.clone(),
        volumes: volumes_on(state, Some(name)),
    };
    state.engines.iter().map(further).collect()
}

fn volumes_on(state: &ClusterState, engine: Option<&String>) -> Vec<String> {
    let volumes = state.serving.keys();
    let volumes = volumes.filter(|volume| state.placed.get(*volume) == engine);
    volumes.map(ToString::to_string).collect()
}

/// Reads the nodes and the ring from an engine. To tell which nodes run, the function looks
/// repeatedly for up to `Pace::gone`: a node runs if its beat changes.
///
/// # Errors
/// `NodeError::Engine` if the engine cannot be reached or its tables cannot be read.
pub async fn view_engine(url: &EngineUrl) -> Result<EngineView, NodeError> {
    let failed = failed(url, "read the nodes");
    let mut session = Session::new(Arc::new(url.clone()), "view");
    let rows = session
        .query(schema::STATE, &[Param::Int8(-1)], STATEMENT_TIMEOUT)
        .await;
    let rows = rows.map_err(&failed)?;
    let state = decoded_state(&rows, None)
        .map_err(&failed)?
        .map(|confirmed| confirmed.state);
    let warehouse = state.as_ref().and_then(|state| state.warehouse.clone());
    let further = state.as_ref().map(further_engines).unwrap_or_default();
    let volumes = state
        .as_ref()
        .map(|state| volumes_on(state, None))
        .unwrap_or_default();
    let ring = state.map(|state| state.ring);
    let pace = Pace::of(usize::MAX);
    let until = Instant::now() + pace.gone;
    let rows = session.query(schema::LOOK, &[], STATEMENT_TIMEOUT).await;
    let first = decoded_look(&rows.map_err(&failed)?).map_err(&failed)?;
    let mut running: BTreeMap<String, bool> = first
        .beats
        .iter()
        .filter(|(_, beat)| beat.number >= 0)
        .map(|(name, _)| (name.clone(), false))
        .collect();
    let mut last = first;
    while running.values().any(|runs| !runs) && Instant::now() < until {
        tokio::time::sleep(pace.beat / 2).await;
        let rows = session.query(schema::LOOK, &[], STATEMENT_TIMEOUT).await;
        let look = decoded_look(&rows.map_err(&failed)?).map_err(&failed)?;
        for (name, beat) in &look.beats {
            if last.beats.get(name) != Some(beat) {
                running.insert(name.clone(), beat.number >= 0);
            }
        }
        running.retain(|name, _| look.beats.contains_key(name));
        last.cards = look.cards;
        last.beats = look.beats;
    }
    let runs = |card: &NodeInfo| running.get(card.name.as_str()).copied().unwrap_or(false);
    let nodes = last.cards.values().map(|card| (card.clone(), runs(card)));
    Ok(EngineView {
        nodes: nodes.collect(),
        ring,
        warehouse,
        volumes,
        further,
    })
}

/// Reads the cluster's secret from an engine. Returns `None` if no node has ever been started, or
/// if the nodes read the secret from a file.
///
/// # Errors
/// `NodeError::Engine` if the engine cannot be reached, has no tables, or refuses to show the
/// secret to the role.
pub async fn engine_secret(url: &EngineUrl) -> Result<Option<String>, NodeError> {
    let mut session = Session::new(Arc::new(url.clone()), "view");
    let secret = read_secret(&mut session, STATEMENT_TIMEOUT).await;
    let secret = secret.map_err(failed(url, "read the secret"))?;
    Ok(Some(secret).filter(|secret| !secret.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::is_pooled;

    #[test]
    fn a_pooler_shows_itself_by_the_processes_of_three_statements() {
        for (own, its, expected) in [
            ([7, 7], 8, false),
            ([7, 7], 7, true),
            ([7, 8], 7, true),
            ([7, 8], 9, true),
        ] {
            assert_eq!(is_pooled(own, its), expected, "{own:?} {its}");
        }
    }
}
