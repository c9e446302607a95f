//! The copies of a migration, as the coordinator directs them: rounds of copies while the sources
//! serve the slots, and a last round with sealed slots.
//!
//! **Invariants**
//! - Slots are sealed only in the last round.
//! - A round ends with an error if a target's process hangs or does not know of its copy.
//!
//! Deliberately absent: the decision about a migration and its commit point (`coordinator`), and
//! the transfer of rows (`volume::migration`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::peer_client::NoAnswer;
use crate::cluster::state::Handover;
use crate::cluster::{ClusterState, NodeInfo, ranges};
use crate::control::handle::ClusterHandle;
use crate::runtime;
use crate::volume::migration::target::{AskProgress, ImportRequest, Imported, Progress};

/// Timeout of a copy round between a source and a target. It may be this long, because the source
/// serves the slots during the round.
const COPY_TIMEOUT: Duration = Duration::from_secs(6 * 3_600);
/// Timeout of the last copy round, in which the slots are sealed. Commands for orders and stores in
/// these slots wait during the round.
const SEALED_COPY_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest duration of a copy round after which the slots are sealed. After a round this short, few
/// changes are left to copy.
const SHORT_ROUND: Duration = Duration::from_millis(100);
/// Maximum number of copy rounds before the slots are sealed. If no round was short by then, rows
/// change as fast as they are copied, and more rounds would not help.
const COPY_ROUNDS_MAX: u32 = 20;
/// Pause before each progress read, which asks one or all targets for the progress of a migration.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a progress read of one target.
const PROGRESS_TIMEOUT: Duration = Duration::from_millis(500);
/// Number of progress reads from one log line about the progress to the next.
const PROGRESS_READS_PER_LOG: u32 = 5;
/// Maximum number of consecutive progress reads in which at least one target does not answer. After
/// more, the migration fails: a target's process is assumed to hang, because its end would have
/// been reported as `Event::Gone`.
const SILENT_READS_MAX: u32 = 10;
/// Number of consecutive progress reads that find a target idle, after which the coordinator treats
/// the copy request to this target as lost.
const IDLE_READS_MAX: u32 = 3;

/// The result of a copy that is complete: the slots are sealed and all rows are at the targets.
pub(super) struct Moved {
    pub(super) rows: u64,
    /// The moment just before the round that seals the slots. Once a slot is sealed, commands to
    /// the slot wait until the migration is committed.
    pub(super) sealed_at: Instant,
}

/// One copy of a migration, from one source volume to one target volume.
#[derive(Clone)]
struct Copying {
    target: SocketAddr,
    handover: Handover,
    request: ImportRequest,
}

/// Makes every target copy its slots. The first round copies all rows, and each further round
/// copies the changes since the round before. The sources serve the slots during these rounds.
/// After a round of at most `SHORT_ROUND`, or after `COPY_ROUNDS_MAX` rounds, the slots are sealed
/// and the last changes are copied.
pub(super) async fn copy_all(
    cluster: &Arc<ClusterHandle>,
    state: &ClusterState,
    node_infos: &BTreeMap<NodeName, NodeInfo>,
) -> Result<Moved, String> {
    let id = state.moving.as_ref().map_or(0, |moving| moving.id);
    let address = |volume: &NodeName| {
        let node = state.serving.get(volume).and_then(|node| node_infos.get(node));
        node.map(|node_info| node_info.address)
            .ok_or_else(|| format!("no running node serves volume {volume}"))
    };
    let mut copying = Vec::new();
    for (source, handover) in state.handovers().into_iter().enumerate() {
        let request = ImportRequest {
            address: address(&handover.from)?,
            volume: handover.from.clone(),
            source: u8::try_from(source)
                .map_err(|_| "a migration has at most 256 pairs of source and target".to_owned())?,
            id,
            slots: ranges(&handover.slots),
            seal: false,
        };
        copying.push(Copying {
            target: address(&handover.to)?,
            handover,
            request,
        });
    }
    for _ in 0..COPY_ROUNDS_MAX {
        let start = Instant::now();
        let round = round(cluster, &copying, COPY_TIMEOUT);
        tokio::pin!(round);
        let (mut reads, mut silent) = (0, 0);
        loop {
            tokio::select! {
                biased;
                done = &mut round => {
                    done?;
                    break;
                }
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                    reads += 1;
                    let all_answer = show_progress(cluster, &copying, reads % PROGRESS_READS_PER_LOG == 1).await;
                    silent = if all_answer { 0 } else { silent + 1 };
                    if silent > SILENT_READS_MAX {
                        return Err("a target of the migration does not answer".to_owned());
                    }
                }
            }
        }
        if start.elapsed() <= SHORT_ROUND {
            break;
        }
    }
    let sealed_at = Instant::now();
    for copy in &mut copying {
        copy.request.seal = true;
    }
    let rows = round(cluster, &copying, SEALED_COPY_TIMEOUT).await?;
    Ok(Moved { rows, sealed_at })
}

/// Runs one copy round: every target copies until its source has no more changes for the moment.
/// Returns the number of rows that all targets together have copied so far.
async fn round(cluster: &Arc<ClusterHandle>, copying: &[Copying], timeout: Duration) -> Result<u64, String> {
    let mut copies = JoinSet::new();
    for copy in copying.iter().cloned() {
        let cluster = Arc::clone(cluster);
        copies.spawn(runtime::within(async move {
            let Handover { from, to, slots } = &copy.handover;
            let asked = cluster.peers.ask_volume(copy.target, to, &copy.request, timeout);
            let answer = tokio::select! {
                biased;
                answer = asked => answer,
                () = until_target_is_idle(&cluster, &copy) => Err(NoAnswer("the request to copy, or its answer, was lost".to_owned())),
            };
            match answer {
                Ok(Imported { rows, bytes, .. }) => {
                    let slots = slots.len();
                    tracing::debug!(%from, %to, slots, rows, bytes, sealed = copy.request.seal, "copy round finished");
                    Ok(rows)
                }
                Err(NoAnswer(reason)) => Err(format!("{from} to {to}: {reason}")),
            }
        }));
    }
    let mut rows = 0;
    while let Some(copied) = copies.join_next().await {
        rows += copied.map_err(|error| error.to_string())??;
    }
    Ok(rows)
}

/// Returns once a target has answered in `IDLE_READS_MAX` consecutive reads that it is not copying
/// the requested slots.
async fn until_target_is_idle(cluster: &ClusterHandle, copy: &Copying) {
    let mut idle = 0;
    while idle < IDLE_READS_MAX {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        let answer = ask_progress(cluster, copy).await;
        // A target that does not answer is not idle. Its silence ends the migration: in the last
        // round by `SEALED_COPY_TIMEOUT`, before that after more than `SILENT_READS_MAX` reads.
        let is_idle = answer.is_ok_and(|progress| !progress.importing.contains(&copy.request.source));
        idle = if is_idle { idle + 1 } else { 0 };
    }
}

/// Asks a target for the progress of all its copies.
async fn ask_progress(cluster: &ClusterHandle, copy: &Copying) -> Result<Progress, NoAnswer> {
    let (peers, target) = (&cluster.peers, &copy.handover.to);
    peers
        .ask_volume(copy.target, target, &AskProgress, PROGRESS_TIMEOUT)
        .await
}

/// Publishes the progress of a migration, summed over the targets that answer. Returns `false` if a
/// target does not answer.
async fn show_progress(cluster: &Arc<ClusterHandle>, copying: &[Copying], log: bool) -> bool {
    let mut sum = Imported::default();
    let mut all_answer = true;
    let mut asked = BTreeSet::new();
    for copy in copying
        .iter()
        .filter(|copy| asked.insert(copy.handover.to.clone()))
    {
        match ask_progress(cluster, copy).await {
            Ok(Progress { copied, .. }) => {
                sum.rows += copied.rows;
                sum.about += copied.about;
                sum.bytes += copied.bytes;
            }
            Err(_) => all_answer = false,
        }
    }
    if log {
        tracing::info!(rows = sum.rows, about = sum.about, "slots being copied");
    }
    *cluster.progress() = Some(sum);
    all_answer
}
