//! The monitor: polls the order management and the warehouse during a run, and publishes their
//! state as telemetry.
//!
//! Invariants:
//! - The first poll is the baseline: the counts of a run are the present counts less those of the
//!   first poll.
//! - Polls do not overlap. An older answer that is published after a newer one would record one
//!   change as two events.
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
            known: tokio::sync::Mutex::default(),
        });
        poller.poll_baseline().await;
        let polling = Arc::clone(&poller);
        let polls = tokio::spawn(async move {
            let mut beat = tokio::time::interval(POLL_EVERY);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for poll in 0_u64.. {
                beat.tick().await;
                polling.poll(poll % DETAIL_EVERY == 0).await;
            }
        });
        Self { poller, polls }
    }

    /// Polls once, after a poll that is under way, so that the published counts are up to date.
    pub async fn poll_once(&self) {
        self.poller.poll(true).await;
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
    /// The newest detail. A poll holds this lock from its first request until its answers are
    /// published.
    known: tokio::sync::Mutex<Known>,
}

impl Poller {
    /// Polls and publishes the answers, with the present counts as the baseline.
    async fn poll_baseline(&self) {
        let mut known = self.known.lock().await;
        let answers = self.ask(&mut known, true).await;
        self.telemetry.update(|state| {
            if let Some(health) = &answers.health {
                state.cluster.orders_before = health.orders.clone();
            }
            state.warehouse_before = answers.warehouse.clone().unwrap_or_default();
        });
        self.publish(answers);
    }

    /// Polls and publishes the answers. Reads the detail of the ring and the nodes if `with_detail`
    /// is `true`.
    async fn poll(&self, with_detail: bool) {
        let mut known = self.known.lock().await;
        let answers = self.ask(&mut known, with_detail).await;
        self.publish(answers);
    }

    async fn ask(&self, known: &mut Known, with_detail: bool) -> Answers {
        let (health, warehouse, detail) = tokio::join!(
            self.oms.get_json::<Health>("the order management", "/health"),
            self.warehouse
                .get_json::<WarehouseSummary>("the warehouse", "/summary"),
            self.ask_detail(known, with_detail),
        );
        Answers {
            health: health.ok(),
            warehouse: warehouse.ok(),
            detail,
        }
    }

    /// Returns the detail of the ring and the nodes. Reads it from the order management if `is_due`
    /// is `true`, and otherwise returns the detail of the last read.
    async fn ask_detail(&self, known: &mut Known, is_due: bool) -> ClusterDetail {
        if is_due {
            cluster_detail::ask(&self.oms, known).await;
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
    use axum::http::StatusCode;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Number of `GET /health` in progress at [`health`], and the highest number so far.
    static NOW: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);

    async fn health() -> StatusCode {
        MOST.fetch_max(NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // The request of a poll that overlaps arrives in these turns of the runtime.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        NOW.fetch_sub(1, Ordering::SeqCst);
        StatusCode::NOT_FOUND
    }

    #[tokio::test]
    async fn polls_happen_one_after_another() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().route("/health", axum::routing::get(health));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let poller = Poller {
            oms: Client::new(address.into(), POLL_TIMEOUT),
            warehouse: Client::new(address.into(), POLL_TIMEOUT),
            telemetry: Telemetry::default(),
            known: tokio::sync::Mutex::default(),
        };
        tokio::join!(poller.poll(true), poller.poll(false), poller.poll_baseline());
        assert_eq!(MOST.load(Ordering::SeqCst), 1);
    }

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
