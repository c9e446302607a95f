//! Imports the warehouse's statistics files. No file is added to the statistics twice.
//!
//! Without an engine, the volume that has the slot of the statistics scans the data folder. With an
//! engine, each node scans its own folder and sends the files to that volume (`api::stat_files`).
//!
//! The name of a file is committed together with the new sums, and only then is the file deleted.
//! If the process dies between these steps, a later scan finds both the file and its stored name,
//! and deletes the file without adding it.
//!
//! **Invariants**
//! - A file is added only after two scans in a row saw it unchanged, and only if its last line is
//!   complete (`watched`).
//! - A file that can never be added is renamed to `NAME.rejected`, and the reason is logged. A file
//!   with the stored name of an added file is deleted.
//! - Only regular files are opened, so no scan blocks on a FIFO or a device (`regular_file`).
//!
//! Deliberately absent: changes to files that do not have the name of a statistics file.

pub(crate) mod folder;
pub(crate) mod folder_id;
pub(crate) mod importer;
pub(crate) mod name;
#[cfg(test)]
mod tests;
mod watched;

use std::io::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{StorageError, with_causes};
use crate::runtime;
use crate::runtime::clock::Clock;
use crate::runtime::metrics::VolumeCounters;
use crate::runtime::watch;
use crate::volume::jobs::stat_import::folder::{Content, Found, Stamp};
use crate::volume::jobs::stat_import::importer::{Imported, Importer};
use crate::volume::jobs::stat_import::watched::{Step, Watched};

/// Time after which a file operation that has not returned is logged.
const SCAN_TIMEOUT: Duration = Duration::from_secs(60);

/// The reason why a file was not added now. A later scan tries again.
#[derive(Debug)]
pub(crate) enum Unadded {
    /// The file was not added, because the slot of the statistics is sealed or in another volume,
    /// because the ring changed during the import, or because the volume is closing.
    Elsewhere,
    /// The file was not added, because the volume with the statistics cannot be reached or does not
    /// accept the file now. The text is the reason.
    Later(String),
    /// The file was not added, because the volume could not be read or written.
    Failed(StorageError),
}

impl From<StorageError> for Unadded {
    fn from(error: StorageError) -> Unadded {
        match error {
            StorageError::Closed | StorageError::Stale => Unadded::Elsewhere,
            error => Unadded::Failed(error),
        }
    }
}

/// Passes the files of a folder to the volume with the statistics.
pub(crate) trait FileTarget: Send + Sync {
    /// Returns `true` if files can be added now.
    fn is_ready(&self) -> bool;

    /// Returns the outcome for a file if the name alone decides it. Returns `None` if the content
    /// of the file must be read.
    fn foreseen(&self, name: &str) -> Result<Option<Imported>, Unadded>;

    /// Adds the content of a whole file to the statistics.
    fn add(&self, name: &str, body: Vec<u8>) -> impl Future<Output = Result<Imported, Unadded>> + Send;
}

impl FileTarget for Importer {
    fn is_ready(&self) -> bool {
        self.state.slots.has_statistics()
    }

    fn foreseen(&self, name: &str) -> Result<Option<Imported>, Unadded> {
        Ok(Importer::foreseen(self, name, name)?)
    }

    async fn add(&self, name: &str, body: Vec<u8>) -> Result<Imported, Unadded> {
        Ok(Importer::add(self, name, name, &body).await?)
    }
}

/// Scans a folder for statistics files.
pub(crate) struct Scanner<T> {
    folder: PathBuf,
    target: Arc<T>,
    counters: Arc<VolumeCounters>,
    clock: Clock,
    watched: Watched,
}

impl<T: FileTarget> Scanner<T> {
    /// Creates a scanner that has seen no file yet.
    pub(crate) fn new(
        folder: PathBuf,
        target: Arc<T>,
        counters: Arc<VolumeCounters>,
        clock: Clock,
    ) -> Scanner<T> {
        Scanner {
            folder,
            target,
            counters,
            clock,
            watched: Watched::default(),
        }
    }

    /// Scans the folder at each interval `every`, if the target is ready, until `stop` becomes
    /// `true`.
    pub(crate) async fn run(mut self, every: Duration, mut stop: watch::Receiver<bool>) {
        loop {
            if self.target.is_ready() {
                self.scan().await;
            } else {
                self.counters.stat_files_waiting.store(0, Ordering::Relaxed);
                self.counters.stat_scan_ended_ms.store(0, Ordering::Relaxed);
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(every) => {}
            }
        }
    }

    /// Visits every statistics file in the folder, oldest name first, and adds those that are
    /// complete and unchanged since the last scan. Stops at the first file for which the target
    /// returns an error (`Unadded`).
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
                Err(Unadded::Elsewhere) => return,
                Err(Unadded::Later(reason)) => {
                    tracing::warn!(file = entry.name, reason, "statistics file not added yet");
                    return;
                }
                Err(Unadded::Failed(error)) => {
                    let error = with_causes(&error);
                    tracing::error!(file = entry.name, error, "statistics file not added");
                    return;
                }
            }
        }
        let waiting = self.watched.len() as u64;
        self.counters.stat_files_waiting.store(waiting, Ordering::Relaxed);
        let now_ms = self.clock.now_ms();
        self.counters.stat_scan_ended_ms.store(now_ms, Ordering::Relaxed);
    }

    async fn process(&mut self, entry: &Found) -> Result<(), Unadded> {
        let name = entry.name.as_str();
        let foreseen = self.target.foreseen(name)?;
        if let Some(Imported::Refused(reason)) = foreseen {
            self.set_aside(name, &reason).await;
            return Ok(());
        }
        match self.watched.step(entry, Instant::now()) {
            Step::Wait => {}
            Step::SetAside(reason) => self.set_aside(name, &reason).await,
            Step::Take(stamp) if foreseen.is_some() => self.delete_known(name, stamp).await,
            Step::Take(stamp) => self.take(name, stamp).await?,
        }
        Ok(())
    }

    async fn take(&mut self, name: &str, stamp: Stamp) -> Result<(), Unadded> {
        let path = self.folder.join(name);
        let incomplete = match blocking("read a file", move || folder::read(&path, &stamp)).await {
            Ok(Content::Whole(body)) => return self.add(name, stamp, body).await,
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

    /// Passes a whole file to the target. Then deletes the file if its lines were added now or its
    /// name was added before, or renames it to `NAME.rejected` if the target refuses it.
    async fn add(&mut self, name: &str, stamp: Stamp, body: Vec<u8>) -> Result<(), Unadded> {
        match self.target.add(name, body).await? {
            Imported::Added => self.delete(name, stamp).await,
            Imported::Known => self.delete_known(name, stamp).await,
            Imported::Refused(reason) => self.set_aside(name, &reason).await,
        }
        Ok(())
    }

    async fn delete_known(&mut self, name: &str, stamp: Stamp) {
        tracing::warn!(file = name, "statistics file deleted: its name was added before");
        self.delete(name, stamp).await;
    }

    /// Deletes a file that was added. Renames the file to `NAME.rejected` instead if its stamp
    /// (identity, size and times) has changed, because another program has written to the file.
    async fn delete(&mut self, name: &str, stamp: Stamp) {
        let path = self.folder.join(name);
        match blocking("delete a file", move || folder::delete(&path, &stamp)).await {
            Ok(true) => self.watched.done(name),
            Ok(false) => {
                let reason = "it was changed after it was added; the later lines are not counted";
                self.set_aside(name, reason).await;
            }
            // The name of the file is stored, so the next scan deletes the file.
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

/// Runs disk work on a blocking thread, and logs an error if the work takes longer than
/// `SCAN_TIMEOUT`.
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
