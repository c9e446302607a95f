//! Limits of a node in time and number, and the interval of its search for statistics files, shared
//! by `imt node start` and `imt sim run`.

use std::time::Duration;

use crate::args;
use imt_oms::NodeConfig;

/// Limits of a node.
#[derive(clap::Args)]
#[command(next_help_heading = "Limits of the node")]
pub(crate) struct NodeArgs {
    /// Maximum time that an order may stay unpaid before it expires
    #[arg(long, hide_short_help = true, env = "IMT_PAYMENT_TIMEOUT", default_value = "15min", value_name = "TIME", value_parser = args::duration)]
    payment_timeout: Duration,
    /// Maximum time for requests in progress to finish at a stop
    #[arg(long, hide_short_help = true, env = "IMT_DRAIN_TIMEOUT", default_value = "10s", value_name = "TIME", value_parser = args::duration)]
    drain_timeout: Duration,
    /// Maximum time for the warehouse to answer an announcement
    #[arg(long, hide_short_help = true, env = "IMT_ANNOUNCE_TIMEOUT", default_value = "10s", value_name = "TIME", value_parser = args::duration)]
    announce_timeout: Duration,
    /// Maximum time for the warehouse to answer a delivery
    #[arg(long, hide_short_help = true, env = "IMT_DELIVER_TIMEOUT", default_value = "5s", value_name = "TIME", value_parser = args::duration)]
    deliver_timeout: Duration,
    /// Maximum number of tries of a message to the warehouse before it becomes a dead letter
    #[arg(long, hide_short_help = true, env = "IMT_WAREHOUSE_TRIES", default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    warehouse_tries: u32,
    /// Maximum number of announcements in flight to the warehouse, and of deliveries
    #[arg(long, hide_short_help = true, env = "IMT_WAREHOUSE_CALLS", default_value_t = 6_400, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    warehouse_calls: u32,
    /// Maximum number of messages to the warehouse, dead letters included; beyond it, new orders
    /// are rejected
    #[arg(long, hide_short_help = true, env = "IMT_OUTBOX_MESSAGES", default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    outbox_messages: u32,
    /// Maximum number of open connections; further connections wait
    #[arg(long, hide_short_help = true, env = "IMT_CONNECTIONS", default_value_t = 8_192, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Maximum number of requests in progress; further requests are answered with 503
    #[arg(long, hide_short_help = true, env = "IMT_REQUESTS", default_value_t = 8_192, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Interval of the search for statistics files in the data folder, at least 50ms [default: 5s,
    /// or 500ms for `imt sim run`]
    #[arg(long, hide_short_help = true, env = "IMT_STAT_SCAN", value_name = "TIME", value_parser = args::interval)]
    stat_scan: Option<Duration>,
}

impl NodeArgs {
    /// Copies these settings to a node's configuration. Without `--stat-scan`, the configuration
    /// keeps its interval of the search for statistics files.
    pub(crate) fn apply(&self, config: &mut NodeConfig) {
        config.payment_timeout = self.payment_timeout;
        config.drain_timeout = self.drain_timeout;
        config.announce_timeout = self.announce_timeout;
        config.deliver_timeout = self.deliver_timeout;
        config.stat_scan_every = self.stat_scan.unwrap_or(config.stat_scan_every);
        config.outbox.tries_max = self.warehouse_tries;
        config.outbox.in_flight_max = self.warehouse_calls as usize;
        config.outbox.messages_max = self.outbox_messages as usize;
        config.server.connections_max = self.connections as usize;
        config.server.requests_max = self.requests as usize;
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    #[test]
    fn the_flags_defaults_are_the_nodes_own() {
        let command = NodeArgs::augment_args(clap::Command::new("imt")).mut_args(|arg| arg.env(None::<&str>));
        let limits = NodeArgs::from_arg_matches(&command.get_matches_from(["imt"])).unwrap();
        let (usual, mut limited) = (NodeConfig::new("n", "d"), NodeConfig::new("n", "d"));
        limits.apply(&mut limited);
        assert_eq!(format!("{limited:?}"), format!("{usual:?}"));
    }

    #[test]
    fn only_a_given_interval_replaces_that_of_the_configuration() {
        for (args, expected) in [(&["imt"][..], 500), (&["imt", "--stat-scan", "5s"][..], 5_000)] {
            let command =
                NodeArgs::augment_args(clap::Command::new("imt")).mut_args(|arg| arg.env(None::<&str>));
            let limits = NodeArgs::from_arg_matches(&command.get_matches_from(args)).unwrap();
            let mut config = NodeConfig::new("n", "d");
            config.stat_scan_every = Duration::from_millis(500);
            limits.apply(&mut config);
            assert_eq!(config.stat_scan_every, Duration::from_millis(expected));
        }
    }
}
