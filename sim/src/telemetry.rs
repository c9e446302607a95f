//! Live state of a run: the parts of a simulation write it, and every view reads it.
//!
//! Writers are for example the shop front, the monitor of both servers (order management and
//! warehouse) and the driver of node events. A view (a progress line or the live view) reads a
//! copy.
//!
//! Invariants:
//! - A view holds the lock only while it copies the state, never while it draws.
//! - Each second is published once, after it has ended; the last second is published when all
//!   requests have ended. A published second never changes.
//! - The newest [`SECONDS_MAX`] seconds and [`EVENTS_MAX`] events stay in memory. The run folder
//!   has all seconds, and the events that are in memory at the end.
//!
//! This module calculates no percentiles, because percentiles of single seconds cannot be combined
//! into those of a longer time. The recorder calculates the percentiles of each second and of the
//! whole run from its histograms.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::cluster_detail::ClusterDetail;
use crate::latency::Latency;
use crate::warehouse::unix_ms;
use crate::wire::WarehouseSummary;

/// Maximum number of [`SecondPoint`]s kept in memory: one hour, more than a view can draw.
pub const SECONDS_MAX: usize = 3_600;
/// Maximum number of events kept in memory. The number is enough for 16 events a second during 10
/// minutes, for example if all nodes restart again and again.
pub const EVENTS_MAX: usize = 10_000;

/// A route of the order management that the shop front calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// `GET /aggregate-stats/{product}`.
    Stats,
    /// `POST /order`.
    Order,
    /// `POST /order/{id}/payment-callback`.
    Payment,
    /// `POST /order/{id}/cancel`.
    Cancel,
}

impl Route {
    /// Number of routes.
    pub const COUNT: usize = 4;
    /// All routes, in the order in which reports list them.
    pub const ALL: [Self; Self::COUNT] = [Self::Stats, Self::Order, Self::Payment, Self::Cancel];

    /// Returns the position of the route in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Returns the short name of the route, as in thresholds and in the columns of `series.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stats => "stats",
            Self::Order => "order",
            Self::Payment => "payment",
            Self::Cancel => "cancel",
        }
    }

    /// Returns the method and the path template of the route.
    pub fn template(self) -> &'static str {
        match self {
            Self::Stats => "GET /aggregate-stats/{product}",
            Self::Order => "POST /order",
            Self::Payment => "POST /order/{id}/payment-callback",
            Self::Cancel => "POST /order/{id}/cancel",
        }
    }
}

/// Stage of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No request was started yet. The shop front waits for the order management and for the stock
    /// of all stores.
    #[default]
    Waiting,
    /// The shop front starts requests.
    Sending,
    /// The sending window, in which orders and statistics requests start, is over or was stopped.
    /// Requests in flight are completed. Unless the run was stopped, the requests that are planned
    /// after the window, such as payments, are still sent.
    Draining,
    /// The audit compares the order management with the warehouse and the shop front's record.
    Auditing,
    /// The run has ended.
    Done,
}

impl Phase {
    /// Returns the stage as one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Sending => "sending",
            Self::Draining => "draining",
            Self::Auditing => "auditing",
            Self::Done => "done",
        }
    }
}

/// Counts of one route since the start of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteState {
    /// Number of requests that ended, with or without an answer.
    pub requests: u64,
    /// Number of requests answered with a status below 400.
    pub ok: u64,
    /// Number of failed requests, by status and problem (RFC 9457), or by the reason of a missing
    /// answer.
    pub errors: BTreeMap<String, u64>,
    /// Percentiles of the latency, without the requests of the warm-up.
    pub latency: Latency,
}

impl RouteState {
    /// Returns the number of requests that failed: a status of 400 or above, or no answer.
    pub fn failed(&self) -> u64 {
        self.requests - self.ok
    }
}

/// Results of one route in one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSecond {
    /// Number of requests that ended in this second.
    pub requests: u64,
    /// Number of failed requests: a status of 400 or above, or no answer.
    pub failed: u64,
    /// Median latency, microseconds.
    pub p50_us: u64,
    /// 99th percentile of the latency, microseconds.
    pub p99_us: u64,
    /// Largest latency, microseconds.
    pub max_us: u64,
}

/// One second of a run. Except in `sent`, a request is counted in the second in which it ended. The
/// counts are taken at least 0.1 s after the end of the second, or when all requests have ended. So
/// they may include the beginning of the next second. The fields from `orders` on are those of the
/// last answered polls of the order management and the warehouse.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondPoint {
    /// Seconds from the start of the sending window to the start of this second.
    pub second: u64,
    /// Number of requests started in this second.
    pub sent: u64,
    /// Number of requests answered with a status below 400.
    pub ok: u64,
    /// Number of failed requests: a status of 400 or above, or no answer.
    pub failed: u64,
    /// Number of requests that started more than 10 ms after their intended start.
    pub late: u64,
    /// Number of requests that were never sent, because their lag, or the lag of the order for
    /// which they waited, exceeded the shop front's limit `drop_after`.
    pub dropped: u64,
    /// Number of requests in flight when the counts were taken.
    pub in_flight: u64,
    /// 99th percentile of the lag of the requests that ended, microseconds.
    pub lag_p99_us: u64,
    /// Results of each route, in the order of [`Route::ALL`].
    pub routes: [RouteSecond; Route::COUNT],
    /// Number of orders of this run by state.
    pub orders: BTreeMap<String, u64>,
    /// Number of messages in the outbox that the warehouse has not confirmed, dead letters
    /// included.
    pub outbox: u64,
    /// Number of dead letters in the outbox.
    pub outbox_dead: u64,
    /// `true` while a circuit breaker of the calls to the warehouse is open in at least one volume.
    pub warehouse_away: bool,
    /// Number of orders that the warehouse has accepted for preparation since the start of this
    /// run.
    pub announced: u64,
    /// Number of deliveries that the warehouse has made since the start of this run.
    pub delivered: u64,
    /// Number of members of the ring.
    pub nodes: u64,
    /// Epoch of the ring.
    pub epoch: u64,
}

/// A member of the ring, as the order management describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The node's name.
    pub name: String,
    /// Number of slots of the node's volume.
    pub slots: u64,
    /// `true` if this node or another one serves this node's volume, and the volume answered.
    pub is_served: bool,
}

/// State of the order management at the last poll that it answered, except for `is_reachable`,
/// `detail` and `orders_before`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// `true` if the order management answered the last poll.
    pub is_reachable: bool,
    /// Name of the node that answers the polls.
    pub answered_by: String,
    /// Epoch of the ring.
    pub epoch: u64,
    /// Members of the ring, ordered by name.
    pub nodes: Vec<NodeState>,
    /// Names of the volumes that are served by the node that answers the polls.
    pub volumes: Vec<String>,
    /// The ring and the nodes in detail, as read from the node's web console; empty if the console
    /// did not answer the last read.
    #[serde(default)]
    pub detail: ClusterDetail,
    /// Number of orders by state in the order management, earlier runs included.
    pub orders_total: BTreeMap<String, u64>,
    /// Number of orders by state before the first request of this run; empty if the order
    /// management did not answer the first poll.
    pub orders_before: BTreeMap<String, u64>,
    /// Number of messages in the outbox that the warehouse has not confirmed, dead letters
    /// included.
    pub outbox: u64,
    /// Number of dead letters in the outbox.
    pub outbox_dead: u64,
    /// Number of calls to the warehouse in flight.
    pub outbox_in_flight: u64,
    /// `true` while a circuit breaker of the calls to the warehouse is open in at least one volume.
    pub warehouse_away: bool,
    /// Number of stock snapshots that the order management has applied, earlier runs included.
    pub stock_snapshots: u64,
    /// Number of statistics files that the order management has applied, earlier runs included.
    pub stat_files: u64,
}

impl ClusterState {
    /// Returns the number of orders of this run by state: the total minus the number before the
    /// run. An order of an earlier run that changes its state during this run distorts the numbers
    /// of its old and its new state, but no number is below 0.
    pub fn orders_of_run(&self) -> BTreeMap<String, u64> {
        let before = |state: &String| self.orders_before.get(state).copied().unwrap_or_default();
        let total = self.orders_total.iter();
        total
            .map(|(state, count)| (state.clone(), count.saturating_sub(before(state))))
            .collect()
    }
}

/// Kind of an event of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A phase of the load began.
    Load,
    /// A node was started.
    Join,
    /// A node was asked to stop.
    Stop,
    /// A node was killed.
    Kill,
    /// A node's process was paused.
    Pause,
    /// The process of a paused node continues.
    Resume,
    /// A node was asked to leave the cluster for good.
    Leave,
    /// A member appeared in or disappeared from the ring.
    Ring,
    /// All volumes answer again after a node was stopped, killed or paused, or has left.
    Recovered,
    /// The behaviour of the warehouse changed.
    Warehouse,
    /// The first circuit breaker of the calls to the warehouse opened, or the last open one closed.
    Breaker,
    /// The order management stopped or resumed answering.
    Warning,
}

impl EventKind {
    /// Returns the kind as one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Join => "join",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Leave => "leave",
            Self::Ring => "ring",
            Self::Recovered => "recovered",
            Self::Warehouse => "warehouse",
            Self::Breaker => "breaker",
            Self::Warning => "warning",
        }
    }
}

/// An event of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEvent {
    /// Time of the event, unix milliseconds.
    pub at_ms: u64,
    /// Milliseconds since the start of the sending window; 0 for events before it.
    pub offset_ms: u64,
    /// The kind of the event.
    pub kind: EventKind,
    /// Name of the subject of the event: a node, a load phase, a warehouse profile, or a server.
    pub subject: String,
    /// Description of the event for people.
    pub text: String,
}

/// Live state of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Current stage of the run.
    pub phase: Phase,
    /// Name of the scenario.
    pub scenario: String,
    /// Seed of all random choices.
    pub seed: u64,
    /// Start of the sending window, unix milliseconds; 0 before it.
    pub started_at_ms: u64,
    /// Time from the start of the sending window to the last publication of the counts.
    pub elapsed: Duration,
    /// Configured length of the sending window, the time in which orders and statistics requests
    /// start.
    pub sending_window: Duration,
    /// Number of requests started.
    pub sent: u64,
    /// Number of requests that ended, with or without an answer.
    pub answered: u64,
    /// Number of failed requests: a status of 400 or above, or no answer.
    pub failed: u64,
    /// Number of requests that started more than 10 ms after their intended start.
    pub late: u64,
    /// Number of requests that were never sent, because their lag, or the lag of the order for
    /// which they waited, exceeded the shop front's limit `drop_after`.
    pub dropped: u64,
    /// Lag of the sent requests without the warm-up: actual start minus intended start.
    pub lag: Latency,
    /// Counts of each route, in the order of [`Route::ALL`].
    pub routes: [RouteState; Route::COUNT],
    /// The newest seconds of the run, oldest first.
    pub seconds: VecDeque<SecondPoint>,
    /// The newest events of the run, oldest first.
    pub events: VecDeque<RunEvent>,
    /// State of the order management.
    pub cluster: ClusterState,
    /// The latest counts of the warehouse; `None` before its first answer.
    pub warehouse: Option<WarehouseSummary>,
    /// `true` if the warehouse has not answered the last poll, so that its counts are older.
    #[serde(default)]
    pub warehouse_is_silent: bool,
    /// Counts of the warehouse before the first request of this run; 0 if the warehouse did not
    /// answer the first poll.
    pub warehouse_before: WarehouseSummary,
    /// Progress of the audit, as a text for people.
    pub audit: String,
}

impl RunState {
    /// Returns the counts of a route.
    pub fn route(&self, route: Route) -> &RouteState {
        &self.routes[route.index()]
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.answered)
    }

    /// Returns the counts of the warehouse since the start of this run; `None` before its first
    /// answer.
    pub fn warehouse_of_run(&self) -> Option<WarehouseSummary> {
        self.warehouse
            .as_ref()
            .map(|now| now.since(&self.warehouse_before))
    }

    /// Adds the current state of the order management and the warehouse to the counts of a second,
    /// and appends the second to `seconds`. If `seconds` is full, its oldest second is removed.
    pub fn push_second(&mut self, mut point: SecondPoint) {
        point.in_flight = self.in_flight();
        point.orders = self.cluster.orders_of_run();
        point.outbox = self.cluster.outbox;
        point.outbox_dead = self.cluster.outbox_dead;
        point.warehouse_away = self.cluster.warehouse_away;
        point.nodes = self.cluster.nodes.len() as u64;
        point.epoch = self.cluster.epoch;
        let warehouse = self.warehouse_of_run().unwrap_or_default();
        (point.announced, point.delivered) = (warehouse.announced, warehouse.delivered);
        if self.seconds.len() == SECONDS_MAX {
            self.seconds.pop_front();
        }
        self.seconds.push_back(point);
    }

    /// Returns a copy of the state with only the newest `seconds` seconds and `events` events.
    fn tail(&self, seconds: usize, events: usize) -> Self {
        let newest = |len: usize, wanted: usize| len.saturating_sub(wanted);
        Self {
            phase: self.phase,
            scenario: self.scenario.clone(),
            seed: self.seed,
            started_at_ms: self.started_at_ms,
            elapsed: self.elapsed,
            sending_window: self.sending_window,
            sent: self.sent,
            answered: self.answered,
            failed: self.failed,
            late: self.late,
            dropped: self.dropped,
            lag: self.lag,
            routes: self.routes.clone(),
            seconds: self
                .seconds
                .range(newest(self.seconds.len(), seconds)..)
                .cloned()
                .collect(),
            events: self
                .events
                .range(newest(self.events.len(), events)..)
                .cloned()
                .collect(),
            cluster: self.cluster.clone(),
            warehouse: self.warehouse.clone(),
            warehouse_is_silent: self.warehouse_is_silent,
            warehouse_before: self.warehouse_before.clone(),
            audit: self.audit.clone(),
        }
    }
}

/// Handle of a run's live state. Clones of the handle share the state.
#[derive(Debug, Clone, Default)]
pub struct Telemetry(watch::Sender<RunState>);

impl Telemetry {
    /// Returns a copy of the state with only the newest `seconds` seconds and `events` events.
    pub fn snapshot(&self, seconds: usize, events: usize) -> RunState {
        self.0.borrow().tail(seconds, events)
    }

    /// Calls `read` with the state. `read` must be short, because writers wait until it returns.
    pub fn read<T>(&self, read: impl FnOnce(&RunState) -> T) -> T {
        read(&self.0.borrow())
    }

    /// Changes the state and wakes every subscriber.
    pub fn update(&self, change: impl FnOnce(&mut RunState)) {
        self.0.send_modify(change);
    }

    /// Returns a receiver that is woken by each change.
    pub fn subscribe(&self) -> watch::Receiver<RunState> {
        self.0.subscribe()
    }

    /// Appends an event with the current time, and logs it.
    pub fn event(&self, kind: EventKind, subject: impl Into<String>, text: impl Into<String>) {
        let at_ms = unix_ms();
        let (subject, text) = (subject.into(), text.into());
        tracing::info!(kind = kind.name(), subject, "{text}");
        self.update(|state| {
            if state.events.len() == EVENTS_MAX {
                state.events.pop_front();
            }
            let offset_ms = match state.started_at_ms {
                0 => 0,
                started_at_ms => at_ms.saturating_sub(started_at_ms),
            };
            state.events.push_back(RunEvent {
                at_ms,
                offset_ms,
                kind,
                subject,
                text,
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_the_newest_seconds_and_events_that_were_asked_for() {
        let telemetry = Telemetry::default();
        telemetry.update(|state| {
            for second in 0..10 {
                state.push_second(SecondPoint {
                    second,
                    ..SecondPoint::default()
                });
            }
        });
        telemetry.event(EventKind::Kill, "chaos-1", "killed chaos-1");
        telemetry.event(EventKind::Join, "chaos-1", "started chaos-1");
        let snapshot = telemetry.snapshot(3, 1);
        let seconds: Vec<u64> = snapshot.seconds.iter().map(|point| point.second).collect();
        assert_eq!(seconds, [7, 8, 9]);
        let kinds: Vec<EventKind> = snapshot.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Join]);
        assert_eq!(
            telemetry.snapshot(usize::MAX, usize::MAX),
            telemetry.read(Clone::clone)
        );
    }

    #[test]
    fn memory_is_bounded_by_the_number_of_seconds_and_events() {
        let mut state = RunState::default();
        for second in 0..SECONDS_MAX as u64 + 5 {
            state.push_second(SecondPoint {
                second,
                ..SecondPoint::default()
            });
        }
        assert_eq!(state.seconds.len(), SECONDS_MAX);
        assert_eq!(state.seconds.front().map(|point| point.second), Some(5));
        let telemetry = Telemetry::default();
        for number in 0..=EVENTS_MAX {
            telemetry.event(EventKind::Load, number.to_string(), "");
        }
        assert_eq!(telemetry.read(|state| state.events.len()), EVENTS_MAX);
        assert_eq!(telemetry.read(|state| state.events[0].subject.clone()), "1");
    }

    #[test]
    fn orders_of_a_run_are_the_difference_to_the_counts_before_it() {
        let counts = |delivered, paid| {
            BTreeMap::from([("delivered".to_owned(), delivered), ("paid".to_owned(), paid)])
        };
        let cluster = ClusterState {
            orders_before: counts(160, 3),
            orders_total: counts(174, 1),
            ..ClusterState::default()
        };
        assert_eq!(cluster.orders_of_run(), counts(14, 0));
    }

    #[tokio::test]
    async fn a_subscriber_waits_for_a_state() {
        let telemetry = Telemetry::default();
        let mut receiver = telemetry.subscribe();
        let writer = telemetry.clone();
        tokio::spawn(async move { writer.update(|state| state.sent = 7) });
        let sent = receiver.wait_for(|state| state.sent > 0).await.unwrap().sent;
        assert_eq!(sent, 7);
    }
}
