//! The monitor: polls the order management and the warehouse during a run, and publishes their
//! state as telemetry.
//!
//! Invariants:
//! - The first poll is the baseline: the counts of a run are the present counts less those of the
//!   first poll.
//! - If a server does not answer, its last counts stay published. If the web console does not
//!   answer, the detail of the ring and the nodes is empty. An order management that does not
//!   answer is marked as unreachable. A failed poll never ends a run.
//! - Members that join or leave the ring, changes of `warehouse_away` (a circuit breaker is open),
//!   and an order management that stops or resumes answering are recorded as events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::client::{Client, Endpoint};
use crate::cluster_detail::{self, ClusterDetail, Known};
use crate::telemetry::{ClusterState, EventKind, NodeState, Telemetry};
use crate::wire::{Health, WarehouseStatus, WarehouseSummary};

/// Time between two polls. `series.csv` has one line for each second. With two polls a second, each
/// line has recent results.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// Number of polls from one read of the detail of ring and nodes to the next. A node counts its
/// requests by whole seconds, so one read of the detail per second is enough.
const DETAIL_EVERY: u64 = 2;
/// Maximum time of each request of a poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(2);

/// A running monitor; dropping it ends the polls.
pub struct Monitor {
    poller: Arc<Poller>,
    polls: JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.polls.abort();
    }
}

impl Monitor {
    /// Polls once for the baseline, then starts to poll periodically. If a server does not answer
    /// the first poll, its baseline is zero.
    pub async fn start(oms: Endpoint, warehouse: Endpoint, telemetry: Telemetry) -> Self {
        let poller = Arc::new(Poller {
            oms: Client::new(oms, POLL_TIMEOUT),
            warehouse: Client::new(warehouse, POLL_TIMEOUT),
            telemetry,
            detail: tokio::sync::Mutex::default(),
        });
        let answers = poller.ask(true).await;
        poller.telemetry.update(|state| {
            if let Some(health) = &answers.health {
                state.cluster.orders_before = health.orders.clone();
            }
            state.warehouse_before = answers.warehouse.clone().unwrap_or_default();
        });
        poller.publish(answers);
        let polling = Arc::clone(&poller);
        let polls = tokio::spawn(async move {
            let mut beat = tokio::time::interval(POLL_EVERY);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for poll in 0_u64.. {
                beat.tick().await;
                let answers = polling.ask(poll % DETAIL_EVERY == 0).await;
                polling.publish(answers);
            }
        });
        Self { poller, polls }
    }

    /// Polls once, immediately, so that the published counts are up to date.
    pub async fn poll_once(&self) {
        let answers = self.poller.ask(true).await;
        self.poller.publish(answers);
    }
}

/// Answers of one poll. A field is `None` or empty if its server did not answer. `detail` is that
/// of an earlier poll if this poll did not read it.
struct Answers {
    health: Option<Health>,
    warehouse: Option<WarehouseSummary>,
    detail: ClusterDetail,
}

struct Poller {
    oms: Client,
    warehouse: Client,
    telemetry: Telemetry,
    detail: tokio::sync::Mutex<Known>,
}

impl Poller {
    async fn ask(&self, with_detail: bool) -> Answers {
        let (health, warehouse, detail) = tokio::join!(
            self.oms.get_json::<Health>("the order management", "/health"),
            self.warehouse
                .get_json::<WarehouseSummary>("the warehouse", "/summary"),
            self.ask_detail(with_detail),
        );
        Answers {
            health: health.ok(),
            warehouse: warehouse.ok(),
            detail,
        }
    }

    /// Returns the detail of the ring and the nodes. Reads it from the order management if `is_due`
    /// is `true`, and otherwise returns the detail of the last read.
    async fn ask_detail(&self, is_due: bool) -> ClusterDetail {
        let mut known = self.detail.lock().await;
        if is_due {
            cluster_detail::ask(&self.oms, &mut known).await;
        }
        known.detail()
    }

    fn publish(&self, answers: Answers) {
        let before = self.telemetry.read(|state| state.cluster.clone());
        let mut after = match answers.health {
            Some(health) => cluster_of(health, &before),
            None => ClusterState {
                is_reachable: false,
                ..before.clone()
            },
        };
        after.detail = answers.detail;
        let events = changes(&before, &after);
        self.telemetry.update(|state| {
            state.cluster = after;
            state.warehouse_is_silent = answers.warehouse.is_none();
            if answers.warehouse.is_some() {
                state.warehouse = answers.warehouse;
            }
        });
        for (kind, subject, text) in events {
            self.telemetry.event(kind, subject, text);
        }
    }
}

fn cluster_of(health: Health, before: &ClusterState) -> ClusterState {
    let is_served = |name: &String| !health.unreachable.contains(name);
    let nodes = health.ring.members.iter().map(|(name, slots)| NodeState {
        name: name.clone(),
        slots: *slots,
        is_served: is_served(name),
    });
    ClusterState {
        is_reachable: true,
        nodes: nodes.collect(),
        answered_by: health.node,
        epoch: health.epoch,
        volumes: health.volumes,
        detail: ClusterDetail::default(),
        orders_total: health.orders,
        orders_before: before.orders_before.clone(),
        outbox: health.outbox,
        outbox_dead: health.outbox_dead,
        outbox_in_flight: health.outbox_in_flight,
        warehouse_away: health.warehouse == WarehouseStatus::Away,
        stock_snapshots: health.stock_snapshots,
        stat_files: health.stat_files,
    }
}

type Change = (EventKind, String, String);

/// Returns the events that describe the changes from one poll to the next.
fn changes(before: &ClusterState, after: &ClusterState) -> Vec<Change> {
    let mut events = Vec::new();
    let names = |cluster: &ClusterState| -> BTreeSet<String> {
        cluster.nodes.iter().map(|node| node.name.clone()).collect()
    };
    let (old, new) = (names(before), names(after));
    // Epoch 0 means that there was no successful poll before. The members that the first poll finds
    // did not join during the run, so they cause no events.
    if before.epoch > 0 {
        for name in new.difference(&old) {
            events.push((EventKind::Ring, name.clone(), format!("{name} joined the ring")));
        }
        for name in old.difference(&new) {
            events.push((EventKind::Ring, name.clone(), format!("{name} left the ring")));
        }
        if before.is_reachable != after.is_reachable {
            let text = match after.is_reachable {
                true => "the order management answers again",
                false => "the order management does not answer",
            };
            events.push((EventKind::Warning, "order management".to_owned(), text.to_owned()));
        }
    }
    if before.warehouse_away != after.warehouse_away {
        let text = match after.warehouse_away {
            true => "circuit breaker opened: the warehouse is away",
            false => "circuit breaker closed: the warehouse answers again",
        };
        events.push((EventKind::Breaker, "warehouse".to_owned(), text.to_owned()));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(names: &[&str], away: bool) -> ClusterState {
        let nodes = names.iter().map(|name| NodeState {
            name: (*name).to_owned(),
            slots: 1,
            is_served: true,
        });
        ClusterState {
            is_reachable: true,
            epoch: 1,
            nodes: nodes.collect(),
            warehouse_away: away,
            ..ClusterState::default()
        }
    }

    #[test]
    fn members_and_the_breaker_make_events_and_the_first_poll_makes_none() {
        let texts = |before: &ClusterState, after: &ClusterState| -> Vec<String> {
            changes(before, after)
                .into_iter()
                .map(|(_, _, text)| text)
                .collect()
        };
        let first = cluster(&["a"], false);
        assert!(changes(&ClusterState::default(), &first).is_empty());
        assert_eq!(
            texts(&first, &cluster(&["b"], true)),
            [
                "b joined the ring",
                "a left the ring",
                "circuit breaker opened: the warehouse is away",
            ]
        );
        let gone = ClusterState {
            is_reachable: false,
            ..first.clone()
        };
        assert_eq!(texts(&first, &gone), ["the order management does not answer"]);
        assert_eq!(texts(&gone, &first), ["the order management answers again"]);
    }
}
