//! File descriptors: as many as the system allows, from the start.
//!
//! A node keeps a connection for each shop and one for each call to the warehouse in flight:
//! thousands. Shells often give a process 1,024 descriptors and leave it to the process to ask for
//! what it may have.

use imt_oms::NodeConfig;
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

/// Descriptors that a node needs beside its connections: the database's files, listeners, other
/// nodes.
const FOR_FILES: u64 = 512;

/// Bounds a node's connections by the descriptors that there are for them: a call that finds none
/// left is a failed call, and a client that finds none waits, so both are better counted
/// beforehand.
pub(crate) fn fit(config: &mut NodeConfig) {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return;
    };
    let (connections, calls) = (config.server.connections_max, config.outbox.in_flight_max);
    let (fewer_connections, fewer_calls) = fitting(limit, connections, calls);
    if (fewer_connections, fewer_calls) != (connections, calls) {
        tracing::warn!(
            limit,
            connections = fewer_connections,
            warehouse_calls = fewer_calls,
            "too few open files are allowed for {connections} connections and {calls} calls of each kind to the warehouse"
        );
        config.server.connections_max = fewer_connections;
        config.outbox.in_flight_max = fewer_calls;
    }
}

/// Returns the number of requests that a shop front may have in flight: a request to a node of the
/// same process has two descriptors, and most of them are left to that node.
pub(crate) fn front_in_flight_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 8).unwrap_or(usize::MAX).clamp(64, 2_048)
}

/// Connections, and calls of each of the two kinds, that fit into a limit of open files: all that
/// were asked for, or half of what is left for clients and a quarter for either kind.
fn fitting(limit: u64, connections: usize, calls: usize) -> (usize, usize) {
    let left = usize::try_from(limit.saturating_sub(FOR_FILES)).unwrap_or(usize::MAX);
    if calls.saturating_mul(2).saturating_add(connections) <= left {
        return (connections, calls);
    }
    let for_calls = left.saturating_sub(connections).max(left / 2) / 2;
    let calls = calls.min(for_calls).max(1);
    let connections = connections.min(left.saturating_sub(calls * 2)).max(1);
    (connections, calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_calls_fit_into_any_limit_and_are_left_alone_where_they_do() {
        assert_eq!(fitting(32_768, 8_192, 6_400), (8_192, 6_400));
        assert_eq!(fitting(1_024, 8_192, 6_400), (256, 128));
        assert_eq!(fitting(1_024, 100, 6_400), (100, 206));
        assert_eq!(fitting(1_024, 8_192, 10), (492, 10));
        assert_eq!(fitting(0, 8_192, 6_400), (1, 1), "as little as can be");
        for limit in (600..40_000).step_by(37) {
            let (connections, calls) = fitting(limit, 8_192, 6_400);
            assert!(connections as u64 + 2 * calls as u64 + FOR_FILES <= limit);
        }
    }
}
