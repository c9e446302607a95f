//! File descriptors: as many as the system allows, from the start.
//!
//! A node keeps a connection for each shop and one for each call to the warehouse in flight: thousands. Shells often give a
//! process 1,024 descriptors and leave it to the process to ask for what it may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors below which a node at full load would be short of them.
const WANTED: u64 = 32_768;

/// Raises the soft limit of open files to the hard one.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(
            from = limit.current,
            to = limit.maximum,
            "raised the limit of open files"
        ),
        Err(error) if limit.current.is_some_and(|current| current < WANTED) => {
            tracing::warn!(%error, limit = limit.current, "cannot raise the limit of open files");
        }
        Err(_) => {}
    }
}
