//! The access of a node to its engines and to its local copies of volumes.
//!
//! `Backend` has two implementations. `Postgres` uses PostgreSQL servers and folders. The
//! simulation has a second one, with servers and disks in memory. So the simulation runs the
//! modules `authority`, `beat`, `shared`, `tasks` and `volumes`, and the joining of a node,
//! unchanged.
//!
//! **Invariant**: a *further engine*, which does not store the cluster's state, affects only the
//! volumes that it stores if it cannot be used.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cluster::engine::joining::check_fitness;
use crate::cluster::engine::restored::Complaints;
use crate::cluster::engine::tables::{ClusterTables, SqlTables};
use crate::cluster::{Soon, VolumeLog};
use crate::error::{NodeError, StorageError, with_causes};
use crate::postgres::{EngineUrl, Session};
use crate::storage::log::Log;
use crate::storage::log::cache::Cache;
use crate::storage::log::engine::EngineLog;

/// Longest time for one statement of a task on the cluster's tables, such as a beat or a look.
/// PostgreSQL usually answers within milliseconds. After a timeout the next attempt begins with the
/// next host of the URL.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time for one statement through `start_tables`, such as one that takes a node's name. The
/// first look of a node has `STATEMENT_TIMEOUT`.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// The engines and local copies that a node uses.
pub(crate) trait Backend: Send + Sync {
    /// Fails unless the first engine has the tables and settings that a node needs.
    fn check(&self) -> Soon<'_, ()>;

    /// Creates an access to the cluster's tables, for the start of a node.
    fn start_tables(&self) -> Box<dyn ClusterTables>;

    /// Creates an access to the cluster's tables for a task. `purpose` names the task for
    /// operators.
    fn tables(&self, purpose: &'static str) -> Box<dyn ClusterTables>;

    /// Returns `true` if the engine that stores a log has passed the check of its tables and
    /// settings. The engine can be unreachable all the same.
    fn is_usable<'a>(&'a self, place: &'a VolumeLog) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

    /// Creates an access to the log of a volume. Fails if the URL of its engine is invalid.
    fn log(&self, place: &VolumeLog, volume: &str, purpose: &'static str) -> Result<Box<dyn Log>, NodeError>;

    /// Returns the URL of the engine that stores a log, for error messages.
    fn url_of(&self, place: &VolumeLog) -> String;

    /// Opens or creates the local copy of a volume.
    fn open_copy(&self, volume: &str) -> Result<Cache, StorageError>;

    /// Removes the local copy of a volume.
    fn remove_copy(&self, volume: &str) -> io::Result<()>;

    /// Returns the folder of the local copy of a volume, for error messages.
    fn folder_of_copy(&self, volume: &str) -> PathBuf;
}

/// PostgreSQL servers, and folders with copies of volumes.
pub(super) struct Postgres {
    url: Arc<EngineUrl>,
    /// The data folder, which contains the local copies of volumes.
    data: PathBuf,
    /// The name of this node.
    node: String,
    /// URLs of the further engines that have passed the check of their tables and settings.
    fit: Mutex<BTreeSet<String>>,
    /// The last logged fault of each further engine that may not be used.
    faults: Complaints,
}

impl Postgres {
    pub(super) fn new(url: Arc<EngineUrl>, data: PathBuf, node: &str) -> Postgres {
        Postgres {
            url,
            data,
            node: node.to_owned(),
            fit: Mutex::default(),
            faults: Complaints::default(),
        }
    }

    /// Returns the URL of the engine that stores a log.
    fn engine_of(&self, place: &VolumeLog) -> Result<Arc<EngineUrl>, NodeError> {
        match &place.engine {
            None => Ok(Arc::clone(&self.url)),
            Some(text) => further_engine(text, &self.url).map(Arc::new),
        }
    }

    /// Returns `true` if an engine may be used: the first engine, or a further engine that has
    /// passed the check of its tables and settings. A further engine is checked at each call until
    /// it passes once. Returns `false` if it fails the check, or does not respond to the check.
    async fn is_fit(&self, url: &Arc<EngineUrl>) -> bool {
        let text = url.to_string();
        let fit = || self.fit.lock();
        if Arc::ptr_eq(url, &self.url) || fit().contains(&text) {
            return true;
        }
        match check_fitness(&mut Session::new(Arc::clone(url), "node"), url).await {
            Ok(()) => {
                self.faults.clear(&text);
                fit().insert(text);
                true
            }
            Err(error) if error.is_engine_away() => {
                tracing::debug!(error = with_causes(&error), "engine of a volume does not answer");
                false
            }
            Err(error) => {
                self.complain(&text, &error);
                false
            }
        }
    }

    /// Logs the fault of an engine, unless it is the last one that was logged for this engine.
    fn complain(&self, url: &str, error: &NodeError) {
        let error = with_causes(error);
        if self.faults.is_new(url, &error) {
            tracing::error!(error, "engine of a volume cannot be used");
        }
    }

    fn tables_within(&self, purpose: &'static str, timeout: Duration) -> Box<dyn ClusterTables> {
        Box::new(SqlTables::new(Arc::clone(&self.url), purpose, timeout))
    }
}

impl Backend for Postgres {
    fn check(&self) -> Soon<'_, ()> {
        Box::pin(async move {
            let mut session = Session::new(Arc::clone(&self.url), "node");
            check_fitness(&mut session, &self.url).await
        })
    }

    fn start_tables(&self) -> Box<dyn ClusterTables> {
        self.tables_within("node", START_TIMEOUT)
    }

    fn tables(&self, purpose: &'static str) -> Box<dyn ClusterTables> {
        self.tables_within(purpose, STATEMENT_TIMEOUT)
    }

    fn is_usable<'a>(&'a self, place: &'a VolumeLog) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move {
            match self.engine_of(place) {
                Ok(url) => self.is_fit(&url).await,
                Err(error) => {
                    self.complain(place.engine.as_deref().unwrap_or_default(), &error);
                    false
                }
            }
        })
    }

    fn log(&self, place: &VolumeLog, volume: &str, purpose: &'static str) -> Result<Box<dyn Log>, NodeError> {
        let url = self.engine_of(place)?;
        Ok(Box::new(EngineLog::new(url, volume, purpose)))
    }

    fn url_of(&self, place: &VolumeLog) -> String {
        place.engine.clone().unwrap_or_else(|| self.url.to_string())
    }

    fn open_copy(&self, volume: &str) -> Result<Cache, StorageError> {
        open_copy(&self.folder_of_copy(volume))
    }

    fn remove_copy(&self, volume: &str) -> io::Result<()> {
        std::fs::remove_dir_all(self.folder_of_copy(volume))
    }

    fn folder_of_copy(&self, volume: &str) -> PathBuf {
        copy_folder(&self.data, &self.node, volume)
    }
}

/// Returns the folder with a node's local copy of a volume.
pub(super) fn copy_folder(data: &Path, node: &str, volume: &str) -> PathBuf {
    data.join("cache").join(node).join(volume)
}

/// Parses the URL of a further engine, which is stored without a password. Each node takes the
/// password from its environment or password file, or else from the URL of the first engine.
pub(super) fn further_engine(text: &str, first: &EngineUrl) -> Result<EngineUrl, NodeError> {
    let parsed: Result<EngineUrl, _> = text.parse();
    parsed
        .map(|url| url.or_password_of(first))
        .map_err(|error| NodeError::EngineUnfit {
            url: text.to_owned(),
            reason: error.to_string(),
        })
}

/// Opens or creates the local copy of a volume. An unreadable copy is deleted and created again,
/// because the engine stores all its rows. If another process has locked the copy, or the disk is
/// full, the copy is kept and the result is the error.
pub(super) fn open_copy(folder: &Path) -> Result<Cache, StorageError> {
    // Mode 0700 of a new folder keeps other users of the machine from reading orders.
    let _ = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    match Cache::open_in(folder) {
        Err(error) if !error.is_locked() && !error.is_full_disk() => {
            tracing::error!(
                folder = %folder.display(),
                error = with_causes(&error),
                "local copy of a volume is unreadable; deleting it and copying the volume again",
            );
            let _ = std::fs::remove_dir_all(folder);
            let _ = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder);
            Cache::open_in(folder)
        }
        opened => opened,
    }
}
