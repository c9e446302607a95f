//! Statistics files of nodes with a folder each: every node scans its own folder and hands the
//! files to the volume with the statistics.
//!
//! **Invariants**
//! - A file is known by the id of its folder and its name. So files of one name in the folders of
//!   two nodes both count, and a file that is sent again counts once.
//! - A file is deleted after the volume has answered that its sums are durable.
//! - An addition that has begun is finished, also if its sender no longer waits.
//!
//! Deliberately absent: the decision when a file is whole (`volume::jobs::stat_import`).

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

/// Longest time for the addition of a file. The largest one has 64 MiB.
const ADD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest refusal of another node that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 4_096;

/// Scans the folder of this node until `stop` becomes true.
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

/// Waits until this process may scan the folder. `None` if the node stops before.
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

/// The volume with the statistics, on this node or another.
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

/// Adds a file that a node sends.
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
    // A task of its own: the sums in memory must follow the durable ones.
    let adding = runtime::spawn(async move { app.stat_files.add(&key, &name, &whole).await });
    match adding.await {
        Ok(added) => Ok(added?),
        Err(error) => Err(Problem::internal(error.to_string())),
    }
}
