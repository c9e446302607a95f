//! The files that scans have found and not added yet, and the decision about each file. This module
//! does no IO.
//!
//! **Invariants**
//! - A file is added only after two scans in a row saw the same stamp.
//! - A file is incomplete if it is empty, cannot be read, or ends within a line. An incomplete file
//!   is logged once for each stamp, and renamed to `NAME.rejected` after `INCOMPLETE_TIMEOUT`.
//! - Waiting times are measured by the monotonic clock.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::volume::jobs::stat_import::folder::{FILE_BYTES_MAX, Found, Stamp};

/// Longest wait for an incomplete file, measured from the scan that first saw its present stamp.
/// Writers finish within seconds, and ten minutes also cover a copy over a network that stalls.
/// After that time the file is renamed, so that an operator can inspect it.
pub(crate) const INCOMPLETE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// A file that a scan has found and not added yet.
struct Waiting {
    stamp: Stamp,
    since: Instant,
    is_reported: bool,
}

/// The next step for an entry of the folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the file and add it, or delete it if its name is stored.
    Take(Stamp),
    /// Check again at the next scan.
    Wait,
    /// Rename the entry to `NAME.rejected`. The text is the reason.
    SetAside(String),
}

/// The waiting files, by name.
#[derive(Default)]
pub(crate) struct Watched(HashMap<String, Waiting>);

impl Watched {
    /// Removes from the waiting files those that no longer exist in the folder.
    pub(crate) fn retain(&mut self, found: &[Found]) {
        self.0.retain(|name, _| {
            let at = found.binary_search_by(|entry| entry.name.as_str().cmp(name));
            at.is_ok()
        });
    }

    /// Returns the number of waiting files.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Decides the next step for an entry that the current scan found.
    pub(crate) fn step(&mut self, found: &Found, now: Instant) -> Step {
        let stamp = match found.kind {
            Ok(stamp) => stamp,
            Err(type_name) => {
                return Step::SetAside(format!("it is {type_name}, not a regular file"));
            }
        };
        if stamp.bytes > FILE_BYTES_MAX {
            return Step::SetAside(format!(
                "it has {} bytes, more than {FILE_BYTES_MAX}",
                stamp.bytes
            ));
        }
        let waiting = self.0.entry(found.name.clone());
        let mut is_new = false;
        let waiting = waiting.or_insert_with(|| {
            is_new = true;
            Waiting::new(stamp, now)
        });
        if waiting.stamp != stamp {
            *waiting = Waiting::new(stamp, now);
            return Step::Wait;
        }
        if is_new {
            return Step::Wait;
        }
        if stamp.bytes == 0 {
            return self.incomplete(&found.name, "it is empty", now);
        }
        Step::Take(stamp)
    }

    /// Decides the next step for an incomplete file. Logs the file once for each stamp.
    pub(crate) fn incomplete(&mut self, name: &str, reason: &str, now: Instant) -> Step {
        let Some(waiting) = self.0.get_mut(name) else {
            return Step::Wait;
        };
        if now.duration_since(waiting.since) >= INCOMPLETE_TIMEOUT {
            let minutes = INCOMPLETE_TIMEOUT.as_secs() / 60;
            return Step::SetAside(format!("{reason}, unchanged for {minutes} minutes"));
        }
        if !waiting.is_reported {
            waiting.is_reported = true;
            tracing::warn!(file = name, reason, "statistics file incomplete");
        }
        Step::Wait
    }

    /// Removes a file from the waiting ones because it changed during the scan. So the next scan
    /// treats it as new.
    pub(crate) fn changed(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Removes a file from the waiting ones after it was deleted or renamed.
    pub(crate) fn done(&mut self, name: &str) {
        self.0.remove(name);
    }
}

impl Waiting {
    fn new(stamp: Stamp, since: Instant) -> Waiting {
        Waiting {
            stamp,
            since,
            is_reported: false,
        }
    }
}
