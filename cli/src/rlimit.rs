//! Adapts the process to the system's limit of open files.
//!
//! A node needs one descriptor for each connection of a client and one for each warehouse call in
//! flight. Both numbers can be thousands. Shells often start a process with a soft limit of 1,024
//! descriptors, and the process may raise this limit up to the hard limit.

use imt_oms::NodeConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Number of descriptors that is enough for a node with default settings under full load. If an
/// attempt to raise a lower limit fails, a warning is logged.
const WANTED: u64 = 32_768;

/// Raises the soft limit of open files to the hard limit.
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

/// Number of descriptors reserved for database files, listeners and connections to other nodes.
const FOR_FILES: u64 = 512;

/// Lowers the maximum numbers of connections and of warehouse calls to fit the limit of open files.
/// Without a free descriptor, a call to the warehouse would fail and a client would wait.
pub(crate) fn fit(config: &mut NodeConfig) {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return;
    };
    let (connections, calls) = (config.server.connections_max, config.outbox.in_flight_max);
    let (fewer_connections, fewer_calls) = fitting(limit, connections, calls);
    if (fewer_connections, fewer_calls) == (connections, calls) {
        return;
    }
    // The defaults are upper bounds, so lowering them needs no warning. If one of the two numbers
    // differs from its default, the user has set it, and a warning is logged.
    if is_usual(config) {
        tracing::debug!(
            limit,
            connections = fewer_connections,
            warehouse_calls = fewer_calls,
            "connections and calls bounded by the limit of open files"
        );
    } else {
        tracing::warn!(
            limit,
            connections = fewer_connections,
            warehouse_calls = fewer_calls,
            "too few open files are allowed for {connections} connections and {calls} calls of each kind to the warehouse"
        );
    }
    config.server.connections_max = fewer_connections;
    config.outbox.in_flight_max = fewer_calls;
}

/// Returns `true` if both maximum numbers have their default values.
fn is_usual(config: &NodeConfig) -> bool {
    let usual = NodeConfig::new("", "");
    config.server.connections_max == usual.server.connections_max
        && config.outbox.in_flight_max == usual.outbox.in_flight_max
}

/// Returns the maximum number of requests in flight of a shop front. If the node runs in the same
/// process, each request takes two descriptors, one of the front and one of the node. The result is
/// an eighth of the limit of open files, but at least 64 and at most 2,048, because the node needs
/// most descriptors for other purposes.
pub(crate) fn front_in_flight_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 8).unwrap_or(usize::MAX).clamp(64, 2_048)
}

/// Returns the numbers of connections and of warehouse calls that fit into a limit of open files.
/// The number of calls applies to each of the two kinds: announcements and deliveries. `FOR_FILES`
/// descriptors are set aside first. If `connections` and `calls` do not fit into the rest,
/// connections get half of the rest and each kind of call gets a quarter. Descriptors that
/// connections do not need are used for calls, and the other way round. Each number is at least 1.
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
    fn only_the_defaults_are_usual() {
        let mut config = NodeConfig::new("a", "data");
        assert!(is_usual(&config));
        config.outbox.in_flight_max += 1;
        assert!(!is_usual(&config));
    }

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
