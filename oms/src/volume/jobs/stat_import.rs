//! Imports the warehouse's statistics files: each file is added to the statistics exactly once.
//!
//! The name of a file is committed together with the new sums, and only then is the file deleted. A
//! process that dies in between finds both the file and its name, and deletes the file without
//! adding it.
//!
//! **Invariants**
//! - A file is added once two scans in a row saw it unchanged and its last line is complete
//!   (`watched`).
//! - A file that cannot be added is renamed to `NAME.rejected`, and the reason is logged. No file
//!   is lost.
//! - Only regular files are opened, so no scan blocks on a FIFO or a device (`regular_file`).
//!
//! Deliberately absent: changes to files of any other name.

mod folder;
pub(crate) mod name;
#[cfg(test)]
mod tests;
mod watched;

use std::io::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::sales::{self, Statistics};
use crate::error::{StorageError, with_causes};
use crate::runtime;
use crate::runtime::metrics::VolumeCounters;
use crate::storage::write_batch::WriteBatch;
use crate::volume::jobs::stat_import::folder::{Content, Found, Stamp};
use crate::volume::jobs::stat_import::watched::{Step, Watched};
use crate::volume::state::VolumeState;

/// Time after which a file operation is reported as hanging.
const SCAN_TIMEOUT: Duration = Duration::from_secs(60);

/// Scans the data folder for statistics files.
pub(crate) struct Scanner {
    folder: PathBuf,
    state: Arc<VolumeState>,
    statistics: Arc<RwLock<Statistics>>,
    counters: Arc<VolumeCounters>,
    watched: Watched,
}

impl Scanner {
    /// Returns a scanner that has seen no file yet.
    pub(crate) fn new(
        folder: PathBuf,
        state: Arc<VolumeState>,
        statistics: Arc<RwLock<Statistics>>,
        counters: Arc<VolumeCounters>,
    ) -> Scanner {
        Scanner {
            folder,
            state,
            statistics,
            counters,
            watched: Watched::default(),
        }
    }

    /// Scans until `stop` becomes true.
    pub(crate) async fn run(mut self, every: Duration, mut stop: watch::Receiver<bool>) {
        loop {
            if self.state.slots.has_statistics() {
                self.scan().await;
            } else {
                self.counters.stat_files_waiting.store(0, Ordering::Relaxed);
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(every) => {}
            }
        }
    }

    /// Visits every statistics file in the folder, oldest name first, and adds the complete ones.
    pub(crate) async fn scan(&mut self) {
        let path = self.folder.clone();
        let found = match blocking("list the folder", move || folder::look(&path)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "scan for statistics files failed");
                return;
            }
        };
        self.watched.retain(&found);
        for entry in &found {
            match self.process(entry).await {
                Ok(()) => {}
                Err(StorageError::Closed | StorageError::Stale) => return,
                Err(error) => {
                    tracing::error!(
                        file = entry.name,
                        error = with_causes(&error),
                        "statistics file not added"
                    );
                    return;
                }
            }
        }
        let waiting = self.watched.len() as u64;
        self.counters.stat_files_waiting.store(waiting, Ordering::Relaxed);
        let now_ms = self.state.clock.now_ms();
        self.counters.stat_scan_ended_ms.store(now_ms, Ordering::Relaxed);
    }

    async fn process(&mut self, entry: &Found) -> Result<(), StorageError> {
        let (name, now_ms) = (entry.name.as_str(), self.state.clock.now_ms());
        let is_known = self.state.storage.knows_stat_file(name)?;
        if !is_known && let Some(reason) = self.refusal(name, now_ms)? {
            self.set_aside(name, reason).await;
            return Ok(());
        }
        match self.watched.step(entry, Instant::now()) {
            Step::Wait => {}
            Step::SetAside(reason) => self.set_aside(name, &reason).await,
            Step::Take(stamp) if is_known => {
                tracing::warn!(file = name, "statistics file deleted: its name was added before");
                self.delete(name, stamp).await;
            }
            Step::Take(stamp) => self.take(name, stamp).await?,
        }
        Ok(())
    }

    /// Returns the reason why a file of this unknown name is never added, or `None` if it may be
    /// added.
    fn refusal(&self, name: &str, now_ms: u64) -> Result<Option<&'static str>, StorageError> {
        if name::is_implausible(name, now_ms) {
            return Ok(Some("its name is more than a day ahead of this node's clock"));
        }
        let mark = self.state.storage.stat_files_forgotten()?;
        let reason = "it is older than the stored names, so it may have been added before";
        Ok(name::may_be_forgotten(name, mark.as_deref(), now_ms).then_some(reason))
    }

    async fn take(&mut self, name: &str, stamp: Stamp) -> Result<(), StorageError> {
        let path = self.folder.join(name);
        let incomplete = match blocking("read a file", move || folder::read(&path, &stamp)).await {
            Ok(Content::Whole(body)) => return self.add(name, stamp, &body).await,
            Ok(Content::Changed) => {
                self.watched.changed(name);
                return Ok(());
            }
            Ok(Content::Unfinished) => "its last line is not complete".to_owned(),
            Err(error) => format!("it cannot be read: {error}"),
        };
        if let Step::SetAside(reason) = self.watched.incomplete(name, &incomplete, Instant::now()) {
            self.set_aside(name, &reason).await;
        }
        Ok(())
    }

    /// Adds a file to the statistics, then deletes the file.
    async fn add(&mut self, name: &str, stamp: Stamp, body: &[u8]) -> Result<(), StorageError> {
        let file = match sales::read_file(body) {
            Ok(file) => file,
            Err(fault) => {
                self.set_aside(name, &fault.to_string()).await;
                return Ok(());
            }
        };
        let state = &self.state;
        // Only this task changes the statistics while this volume owns them, so the sums are still
        // current when they replace the old ones.
        let version = state.slots.version();
        let sums = self.statistics.read().with(&file);
        let mut batch = WriteBatch::default();
        batch.stat_file(name, state.clock.now_ms(), &sums);
        let permit = state.storage.permit().await?;
        let ticket = {
            let _stock = state.stock();
            // Statistics that are being migrated accept no file. Their next volume adds it.
            state.slots.check_statistics()?;
            if state.slots.version() != version {
                return Err(StorageError::Closed);
            }
            batch.fence(state.slots.fence_of_statistics());
            permit.send(batch)
        };
        ticket.durable().await?;
        self.statistics.write().replace(sums);
        self.counters.stat_files.fetch_add(1, Ordering::Relaxed);
        self.delete(name, stamp).await;
        Ok(())
    }

    /// Deletes a file that was added, or sets it aside if another program has written to it since.
    async fn delete(&mut self, name: &str, stamp: Stamp) {
        let path = self.folder.join(name);
        match blocking("delete a file", move || folder::delete(&path, &stamp)).await {
            Ok(true) => self.watched.done(name),
            Ok(false) => {
                let reason = "it was changed after it was added; the later lines are not counted";
                self.set_aside(name, reason).await;
            }
            // The name of the file is stored, so the next scan deletes it.
            Err(error) => {
                tracing::warn!(file = name, %error, "added statistics file not deleted");
            }
        }
    }

    async fn set_aside(&mut self, name: &str, reason: &str) {
        let path = self.folder.join(name);
        match blocking("rename a file", move || folder::set_aside(&path)).await {
            Ok(aside) => {
                tracing::error!(file = name, reason, aside = %aside.display(), "statistics file set aside");
                self.counters.stat_files_set_aside.fetch_add(1, Ordering::Relaxed);
                self.watched.done(name);
            }
            Err(error) => {
                tracing::warn!(file = name, reason, %error, "statistics file not set aside");
            }
        }
    }
}

/// Runs disk work on a blocking thread, and reports work that does not return.
async fn blocking<T: Send + 'static>(
    work_name: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let mut working = runtime::blocking(work);
    let done = match tokio::time::timeout(SCAN_TIMEOUT, &mut working).await {
        Ok(done) => done,
        Err(_) => {
            let waited_s = SCAN_TIMEOUT.as_secs();
            tracing::error!(
                waited_s,
                "the file system of the data folder hangs: cannot {work_name}"
            );
            working.await
        }
    };
    done.unwrap_or_else(|error| Err(Error::other(error)))
}
