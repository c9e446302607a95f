//! Imports statistics files in a cluster on an engine, where nodes may run on several machines.
//! Each node scans its data folder for such files, unless another process scans that folder, and
//! sends the files to the volume that owns the statistics.
//!
//! **Invariants**
//! - A file is identified by the id of its folder and its name. So files with one name in the
//!   folders of two nodes are both counted, and a file that is sent twice is counted once.
//! - A node deletes a file only after the volume has confirmed that the sums of this file, or of an
//!   earlier file with the same name in this folder, are durable.
//! - An import that has begun at the volume is finished, even if the sending node no longer waits.
//!
//! The module `volume::jobs::stat_import` decides when a file is complete.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use tokio::time::Instant;

use crate::api::content;
use crate::api::forward::{VolumeErrand, call_volume};
use crate::api::problem::Problem;
use crate::cluster::peer_call::VolumeCall;
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::domain::routing_key::RoutingKey;
use crate::error::with_causes;
use crate::runtime;
use crate::runtime::clock::Clock;
use crate::runtime::watch;
use crate::volume::app::App;
use crate::volume::jobs::stat_import::folder::FILE_BYTES_MAX;
use crate::volume::jobs::stat_import::folder_id::{FolderId, is_id};
use crate::volume::jobs::stat_import::importer::Imported;
use crate::volume::jobs::stat_import::name::stamp_of;
use crate::volume::jobs::stat_import::{FileTarget, Scanner, Unadded};

/// Longest wait for the import of one file, which has at most 64 MiB.
const ADD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size in bytes of the response of the volume that owns the statistics.
const REFUSAL_BYTES_MAX: usize = 4_096;

/// Scans `folder`, the data folder of this node, at intervals of `every` until `stop` becomes true.
pub(crate) async fn run(
    cluster: Arc<ClusterHandle>,
    folder: PathBuf,
    every: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let Some(id) = claim(&cluster, &folder, every, &mut stop).await else {
        return;
    };
    let counters = cluster.metrics.of_volume(cluster.me.as_str());
    let target = Arc::new(StatisticsOwner { cluster, id });
    Scanner::new(folder, target, counters, Clock::System)
        .run(every, stop)
        .await;
}

/// Waits until the folder can be used and no other process scans it, and claims the folder. Returns
/// `None` if the node stops before the claim.
async fn claim(
    cluster: &ClusterHandle,
    folder: &std::path::Path,
    every: Duration,
    stop: &mut watch::Receiver<bool>,
) -> Option<FolderId> {
    let mut is_logged = false;
    loop {
        let (path, node) = (folder.to_owned(), cluster.me.to_string());
        let claimed = runtime::blocking(move || {
            std::fs::create_dir_all(&path)?;
            FolderId::claim(&path, &node)
        });
        match claimed.await {
            Ok(Ok(Some(id))) => return Some(id),
            Ok(Ok(None)) if !is_logged => {
                tracing::info!(folder = %folder.display(), "another process scans for statistics files");
            }
            Ok(Err(error)) if !is_logged => {
                let folder = folder.display();
                tracing::warn!(%folder, %error, "no scan for statistics files");
            }
            _ => {}
        }
        is_logged = true;
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return None,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// The volume that owns the statistics, on this node or another node.
struct StatisticsOwner {
    cluster: Arc<ClusterHandle>,
    id: FolderId,
}

impl FileTarget for StatisticsOwner {
    fn is_ready(&self) -> bool {
        true
    }

    fn foreseen(&self, _name: &str) -> Result<Option<Imported>, Unadded> {
        Ok(None)
    }

    async fn add(&self, name: &str, body: Vec<u8>) -> Result<Imported, Unadded> {
        let query = format!("{}/{name}", self.id.as_str());
        let errand = VolumeErrand::new(VolumeCall::StatFile, body.into()).with_query(query);
        let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Statistics);
        let response = call_volume(&self.cluster, volume, errand, Instant::now() + ADD_TIMEOUT)
            .await
            .map_err(|problem| Unadded::Later(problem.detail().to_owned()))?;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), REFUSAL_BYTES_MAX)
            .await
            .map_err(|error| Unadded::Later(with_causes(&error)))?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            return Err(Unadded::Later(format!("{status}: {text}")));
        }
        serde_json::from_slice(&body).map_err(|error| Unadded::Later(error.to_string()))
    }
}

/// Imports a statistics file that a node has sent. `query` is `FOLDER/NAME`, with the id of the
/// folder and the name of the file.
pub(crate) async fn take(app: &Arc<App>, query: &str, body: Body) -> Result<Imported, Problem> {
    let known_by = query.split_once('/');
    let Some((folder, name)) = known_by.filter(|(folder, name)| is_id(folder) && stamp_of(name).is_some())
    else {
        return Err(Problem::field(
            "query",
            "must be the id of a folder and the name of a statistics file",
        ));
    };
    let (key, name) = (format!("{folder}/{name}"), name.to_owned());
    let mut whole = Vec::new();
    content::read(&HeaderMap::new(), body, FILE_BYTES_MAX as usize, |piece| {
        whole.extend_from_slice(piece);
        Ok(())
    })
    .await?;
    let app = Arc::clone(app);
    // The import runs in a separate task. So a disconnected sender cannot cancel it between the
    // commit and the update of the sums in memory.
    let adding = runtime::spawn(async move { app.stat_files.add(&key, &name, &whole).await });
    match adding.await {
        Ok(added) => Ok(added?),
        Err(error) => Err(Problem::internal(error.to_string())),
    }
}
