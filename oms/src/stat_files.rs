//! Takes the warehouse's statistics files in, each exactly once.
//!
//! A file is read whole, its name is committed together with the sums that it leads to, and only then is it deleted.
//! A process that dies in between finds the file again and its name in the volume: it is deleted and not added. A
//! file with a malformed line adds nothing and is set aside as `NAME.rejected`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use crate::changes::Changes;
use crate::desk::Desk;
use crate::error::{StoreError, with_reasons};
use crate::stats::{self, Statistics};

/// Largest file read: the usual one has 10,000 lines and 70 KB.
const FILE_BYTES_MAX: u64 = 64 * 1_024 * 1_024;

/// Scans the folder again and again until told to stop.
pub(crate) async fn scan_always(
    folder: PathBuf,
    every: Duration,
    desk: Arc<Desk>,
    statistics: Arc<RwLock<Statistics>>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        if desk.slots.has_statistics() {
            scan_once(&folder, &desk, &statistics).await;
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Takes in every file that is there now, oldest first.
pub(crate) async fn scan_once(folder: &Path, desk: &Desk, statistics: &RwLock<Statistics>) {
    let mut names = match names_in(folder).await {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "cannot look for statistics files");
            return;
        }
    };
    names.sort_unstable();
    for name in names {
        let path = folder.join(&name);
        match take_in(&path, &name, desk, statistics).await {
            Ok(()) => {}
            Err(StoreError::Closed | StoreError::Stale) => return,
            Err(error) => {
                tracing::error!(file = %path.display(), error = with_reasons(&error), "cannot add a statistics file");
                return;
            }
        }
    }
}

async fn names_in(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut entries = tokio::fs::read_dir(folder).await?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        if let Ok(name) = entry.file_name().into_string()
            && is_stat_file(&name)
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// `stat_`, fifteen digits of milliseconds, `.csv`.
fn is_stat_file(name: &str) -> bool {
    let stamp = name
        .strip_prefix("stat_")
        .and_then(|rest| rest.strip_suffix(".csv"));
    stamp.is_some_and(|stamp| stamp.len() == 15 && stamp.bytes().all(|byte| byte.is_ascii_digit()))
}

async fn take_in(
    path: &Path,
    name: &str,
    desk: &Desk,
    statistics: &RwLock<Statistics>,
) -> Result<(), StoreError> {
    if desk.store.knows_stat_file(name)? {
        delete(path).await;
        return Ok(());
    }
    if desk
        .store
        .stat_files_forgotten()?
        .is_some_and(|newest| name <= newest.as_str())
    {
        let fault =
            "it is older than what is remembered, so that nobody can tell whether it was added before";
        set_aside(path, fault).await;
        return Ok(());
    }
    let body = match read(path).await {
        Ok(body) => body,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "cannot read a statistics file");
            return Ok(());
        }
    };
    let file = match stats::read_file(&body) {
        Ok(file) => file,
        Err(fault) => {
            set_aside(path, &fault.to_string()).await;
            return Ok(());
        }
    };
    // Only this task changes the statistics while they are here, so what is read is still true when it is replaced.
    let version = desk.slots.version();
    let sums = statistics
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .with(&file);
    let mut changes = Changes::default();
    changes.stat_file(name, desk.clock.now_ms(), &sums);
    let permit = desk.store.permit().await?;
    let ticket = {
        let _stock = desk.stock();
        // The statistics are on their way to another volume: whoever has them then takes the file.
        desk.slots.check_statistics().map_err(|_| StoreError::Closed)?;
        if desk.slots.version() != version {
            return Err(StoreError::Closed);
        }
        changes.fence(desk.slots.fence_of_statistics());
        permit.send(changes)
    };
    ticket.durable().await?;
    statistics
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .replace(sums);
    delete(path).await;
    Ok(())
}

async fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let bytes = tokio::fs::metadata(path).await?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "it has {bytes} bytes, more than {FILE_BYTES_MAX}"
        )));
    }
    tokio::fs::read(path).await
}

async fn delete(path: &Path) {
    // A file that stays is known by its name and tried again with the next scan.
    if let Err(error) = tokio::fs::remove_file(path).await {
        tracing::warn!(file = %path.display(), %error, "cannot delete a statistics file that was added");
    }
}

async fn set_aside(path: &Path, fault: &str) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".rejected");
    tracing::error!(file = %path.display(), fault, "a statistics file is set aside");
    if let Err(error) = tokio::fs::rename(path, &aside).await {
        tracing::warn!(file = %path.display(), %error, "cannot set a statistics file aside");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_warehouses_names_are_taken() {
        assert!(is_stat_file("stat_000001700000000.csv"));
        for name in [
            "stat_1700000000.csv",
            "stat_000001700000000.csv.tmp",
            "stats.csv",
            "stat_00000170000000x.csv",
        ] {
            assert!(!is_stat_file(name), "{name}");
        }
    }
}
