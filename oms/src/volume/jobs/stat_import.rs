//! Adds the warehouse's statistics files to the statistics, each exactly once.
//!
//! The name of a file is committed together with the sums that the file leads to; only then is the
//! file deleted. A process that dies in between finds the file again and its name in the volume:
//! the file is deleted and not added.
//!
//! - A file is taken when two scans in a row saw it unchanged and its last line has an end
//!   (`watched`).
//! - A file that cannot be added is renamed to `NAME.rejected`, with the reason in the log. Nothing
//!   is lost.
//! - Nothing but a regular file is ever opened, so no scan waits for a FIFO or a device
//!   (`regular_file`).

mod folder;
pub(crate) mod name;
#[cfg(test)]
mod tests;
mod watched;

use std::io::Error;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::sales::{self, Statistics};
use crate::error::{StorageError, with_reasons};
use crate::runtime;
use crate::runtime::metrics::VolumeCounters;
use crate::storage::write_batch::WriteBatch;
use crate::volume::jobs::stat_import::folder::{Content, Found, Stamp};
use crate::volume::jobs::stat_import::watched::{Step, Watched};
use crate::volume::state::VolumeState;

/// Time after which a scan that does not come back is reported: the file system hangs.
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
    /// A scanner that has seen no file yet.
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

    /// Scans again and again until told to stop.
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

    /// Looks at every file that is there now, oldest name first, and adds those that are complete.
    pub(crate) async fn scan(&mut self) {
        let path = self.folder.clone();
        let found = match blocking("look for files", move || folder::look(&path)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "cannot look for statistics files");
                return;
            }
        };
        self.watched.retain(&found);
        for entry in &found {
            match self.one(entry).await {
                Ok(()) => {}
                Err(StorageError::Closed | StorageError::Stale) => return,
                Err(error) => {
                    tracing::error!(
                        file = entry.name,
                        error = with_reasons(&error),
                        "cannot add a statistics file"
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

    async fn one(&mut self, entry: &Found) -> Result<(), StorageError> {
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

    /// Returns the reason why a file of this name, which is not known, is never added; `None` if
    /// there is no reason.
    fn refusal(&self, name: &str, now_ms: u64) -> Result<Option<&'static str>, StorageError> {
        if name::is_implausible(name, now_ms) {
            return Ok(Some("its name is more than a day ahead of this node's clock"));
        }
        let mark = self.state.storage.stat_files_forgotten()?;
        let reason = "it is older than the names that are remembered; it may have been added before";
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
            Ok(Content::Unfinished) => "its last line has no end".to_owned(),
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
        // Only this task changes the statistics while they are here, so the sums are still true
        // when they are replaced.
        let version = state.slots.version();
        let sums = self
            .statistics
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .with(&file);
        let mut batch = WriteBatch::default();
        batch.stat_file(name, state.clock.now_ms(), &sums);
        let permit = state.storage.permit().await?;
        let ticket = {
            let _stock = state.stock();
            // Statistics on their way to another volume take no file; their next volume adds it.
            state.slots.check_statistics().map_err(|_| StorageError::Closed)?;
            if state.slots.version() != version {
                return Err(StorageError::Closed);
            }
            batch.fence(state.slots.fence_of_statistics());
            permit.send(batch)
        };
        ticket.durable().await?;
        self.statistics
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(sums);
        self.counters.stat_files.fetch_add(1, Ordering::Relaxed);
        self.delete(name, stamp).await;
        Ok(())
    }

    /// Deletes a file that was added; sets it aside if somebody wrote to it since.
    async fn delete(&mut self, name: &str, stamp: Stamp) {
        let path = self.folder.join(name);
        match blocking("delete a file", move || folder::delete(&path, &stamp)).await {
            Ok(true) => self.watched.done(name),
            Ok(false) => {
                let reason = "it was written to after it was added; the later lines are not counted";
                self.set_aside(name, reason).await;
            }
            // The file is known by its name, and the next scan tries again.
            Err(error) => {
                tracing::warn!(file = name, %error, "cannot delete a statistics file that was added");
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
                tracing::warn!(file = name, reason, %error, "cannot set a statistics file aside");
            }
        }
    }
}

/// Does work that may wait for the disk in a thread of its own. Reports work that does not come
/// back.
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
                "the file system of the data folder does not {work_name}"
            );
            working.await
        }
    };
    done.unwrap_or_else(|error| Err(Error::other(error)))
}
