//! The files that a scan found and left alone, and the decision which of them to take. Pure.
//!
//! A file is taken once two scans in a row saw the same stamp. A file that stays empty, whose last
//! line stays without an end, or that cannot be read waits; it is reported once, and set aside
//! after `PATIENCE`. Time is monotonic.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::volume::jobs::stat_import::folder::{FILE_BYTES_MAX, Found, Stamp};

/// Longest time that an incomplete file is waited for, counted from its last change. Writers finish
/// within seconds; ten minutes outlast a stalled network copy, and leave an operator a file to look
/// at within the same shift.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// A file that waits.
struct Waiting {
    stamp: Stamp,
    since: Instant,
    is_reported: bool,
}

/// The next step for an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the file and add it.
    Take(Stamp),
    /// Look again at the next scan.
    Wait,
    /// Rename the entry, for this reason.
    SetAside(String),
}

/// The files that wait, by name.
#[derive(Default)]
pub(crate) struct Watched(HashMap<String, Waiting>);

impl Watched {
    /// Forgets the files that are no longer there.
    pub(crate) fn retain(&mut self, found: &[Found]) {
        self.0.retain(|name, _| {
            let at = found.binary_search_by(|entry| entry.name.as_str().cmp(name));
            at.is_ok()
        });
    }

    /// Number of files that wait.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Decides about an entry that the scan of this moment found.
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

    /// Decides about a file that was to be taken and is not complete. Reports the reason once.
    pub(crate) fn incomplete(&mut self, name: &str, reason: &str, now: Instant) -> Step {
        let Some(waiting) = self.0.get_mut(name) else {
            return Step::Wait;
        };
        if now.duration_since(waiting.since) >= PATIENCE {
            let minutes = PATIENCE.as_secs() / 60;
            return Step::SetAside(format!("{reason}, unchanged for {minutes} minutes"));
        }
        if !waiting.is_reported {
            waiting.is_reported = true;
            tracing::warn!(file = name, reason, "statistics file waits");
        }
        Step::Wait
    }

    /// Begins to watch a file anew: it has changed since the scan looked at it.
    pub(crate) fn changed(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Forgets a file that was added or set aside.
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
