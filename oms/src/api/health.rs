//! The response to `GET /health`.
//!
//! **Invariants**
//! - The health of a cluster is the sum of the health of its volumes. Each volume reports only its
//!   own health.
//! - A volume that is missing or does not answer makes the status "degraded", and its name is
//!   listed.
//!
//! Health probes and metrics are in `node_status`.

use std::collections::BTreeMap;

use imt_ring::{Member, NodeName, Ring};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::topology::Topology;
use crate::domain::order::State as OrderState;
use crate::outbox::CallHealth;
use crate::volume::app::App;

/// The ring as shown in the health report.
#[derive(Serialize, ToSchema)]
pub(super) struct RingHealth {
    /// Epoch of the ring.
    epoch: u64,
    /// Number of slots of each member, by name.
    members: BTreeMap<String, usize>,
}

impl RingHealth {
    fn of(ring: &Ring) -> RingHealth {
        let slots = |member: &Member| (member.name().to_string(), ring.slots_of(member.name()).count());
        RingHealth {
            epoch: ring.epoch().0,
            members: ring.members().iter().map(slots).collect(),
        }
    }
}

/// Counts and states of one volume, or the sum over several volumes.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct VolumeHealth {
    orders: BTreeMap<String, u64>,
    refunds_wanted: u64,
    outbox: usize,
    pub(super) outbox_dead: usize,
    outbox_in_flight: usize,
    pub(super) warehouse_away: bool,
    /// `true` if the calls to the warehouse are in the condition `CallHealth::Failing`.
    pub(super) warehouse_failing: bool,
    stock_snapshots: u64,
    stat_files: u64,
    stores: usize,
    transactors: usize,
    transactor_panics: u64,
    up_since_ms: u64,
    /// `true` if the local database failed in the last commit, or rejects rows now because the disk
    /// is full.
    has_failed: bool,
}

impl VolumeHealth {
    /// Returns the health of a volume that this process serves.
    pub(super) fn of(app: &App) -> VolumeHealth {
        let state = app.state();
        let counters = state.storage.counters();
        let (stock_snapshots, stores) = {
            let stock = state.stock();
            (stock.head().snapshots, stock.stores().len())
        };
        let (outbox, outbox_dead, outbox_in_flight, warehouse) = {
            let outbox = state.outbox();
            (
                outbox.len(),
                outbox.dead(),
                outbox.in_flight(),
                outbox.warehouse_health(),
            )
        };
        VolumeHealth {
            orders: OrderState::ALL
                .iter()
                .map(|state| (state.name().to_owned(), counters.orders[*state as usize]))
                .collect(),
            refunds_wanted: counters.refunds_wanted(),
            outbox,
            outbox_dead,
            outbox_in_flight,
            warehouse_away: warehouse == CallHealth::Away,
            warehouse_failing: warehouse == CallHealth::Failing,
            stock_snapshots,
            stat_files: counters.stat_files,
            stores,
            transactors: app.transactors.at_work(),
            transactor_panics: app.transactors.panics(),
            up_since_ms: app.up_since_ms,
            has_failed: state.storage.has_failed(),
        }
    }

    /// Adds the health of another volume. Counts are added, but the number of stock snapshots is
    /// the maximum, because each snapshot is applied to all volumes. A flag is `true` if it is
    /// `true` for one of the volumes, and the earlier start is kept.
    pub(super) fn add(&mut self, other: VolumeHealth) {
        for (state, count) in other.orders {
            *self.orders.entry(state).or_default() += count;
        }
        self.refunds_wanted += other.refunds_wanted;
        self.outbox += other.outbox;
        self.outbox_dead += other.outbox_dead;
        self.outbox_in_flight += other.outbox_in_flight;
        self.warehouse_away |= other.warehouse_away;
        self.warehouse_failing |= other.warehouse_failing;
        self.stock_snapshots = self.stock_snapshots.max(other.stock_snapshots);
        self.stat_files += other.stat_files;
        self.stores += other.stores;
        self.transactors += other.transactors;
        self.transactor_panics += other.transactor_panics;
        self.up_since_ms = self.up_since_ms.min(other.up_since_ms);
        self.has_failed |= other.has_failed;
    }
}

/// The status of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ClusterStatus)]
enum Status {
    /// Every volume answers, and the local database of each volume works.
    Ok,
    /// A volume is missing or does not answer, or its local database failed in the last commit or
    /// rejects rows because the disk is full.
    Degraded,
}

/// The status of the warehouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum WarehouseStatus {
    /// The calls to the warehouse are answered, or no call was made yet.
    Ok,
    /// A retry failed, at least three calls of its kind failed in a row, and none was answered
    /// since. The calls are tried again.
    Failing,
    /// The circuit breaker to the warehouse is open.
    Away,
}

/// The health of the cluster, as one node sees it.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// The status of the cluster.
    status: Status,
    /// Name of the node that answers.
    node: String,
    /// Epoch of the ring.
    epoch: u64,
    /// Number of orders by state.
    orders: BTreeMap<String, u64>,
    /// Number of payments to be refunded.
    refunds_wanted: u64,
    /// Number of messages that the warehouse has not confirmed yet, dead letters included.
    outbox: usize,
    /// Number of messages in the outbox that are dead letters.
    outbox_dead: usize,
    /// Number of calls to the warehouse in flight.
    outbox_in_flight: usize,
    /// `ok`, `failing` once a retry fails and at least three calls in a row have failed, until a
    /// call is answered, or `away` while the circuit breaker to the warehouse is open. The worst
    /// state of all volumes.
    warehouse: WarehouseStatus,
    /// Number of stock snapshots applied.
    stock_snapshots: u64,
    /// Number of statistics files added.
    stat_files: u64,
    /// Number of stores.
    stores: usize,
    /// Number of slots of the volumes that this node serves.
    slots: usize,
    /// Number of transactors that are running now.
    transactors: usize,
    /// Number of transactors that ended in a panic.
    transactor_panics: u64,
    /// Time at which this node's process started, in UTC milliseconds since 1970.
    up_since_ms: u64,
    /// The ring: its epoch and the slots of its members.
    ring: RingHealth,
    /// Volumes that this node serves.
    volumes: Vec<String>,
    /// Volumes that are assigned to this node and cannot be served, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    missing_volumes: BTreeMap<String, String>,
    /// Volumes that are missing or did not answer this node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unreachable: Vec<String>,
}

impl Health {
    /// Builds the report from the sum over all volumes that answered, and from this node's view of
    /// the cluster.
    pub(super) fn of(
        topology: &Topology,
        whole: VolumeHealth,
        missing: &BTreeMap<NodeName, String>,
        unreachable: Vec<String>,
    ) -> Health {
        let ring = &topology.ring;
        let is_degraded = whole.has_failed || !missing.is_empty() || !unreachable.is_empty();
        let own_info = topology.node_infos.get(&topology.me);
        Health {
            status: if is_degraded { Status::Degraded } else { Status::Ok },
            node: topology.me.to_string(),
            epoch: ring.epoch().0,
            orders: whole.orders,
            refunds_wanted: whole.refunds_wanted,
            outbox: whole.outbox,
            outbox_dead: whole.outbox_dead,
            outbox_in_flight: whole.outbox_in_flight,
            warehouse: match (whole.warehouse_away, whole.warehouse_failing) {
                (true, _) => WarehouseStatus::Away,
                (false, true) => WarehouseStatus::Failing,
                (false, false) => WarehouseStatus::Ok,
            },
            stock_snapshots: whole.stock_snapshots,
            stat_files: whole.stat_files,
            stores: whole.stores,
            slots: topology
                .servers
                .keys()
                .map(|volume| ring.slots_of(volume).count())
                .sum(),
            transactors: whole.transactors,
            transactor_panics: whole.transactor_panics,
            up_since_ms: own_info.map_or(whole.up_since_ms, |node_info| node_info.started_at_ms),
            ring: RingHealth::of(ring),
            volumes: topology.servers.keys().map(ToString::to_string).collect(),
            missing_volumes: missing
                .iter()
                .map(|(volume, reason)| (volume.to_string(), reason.clone()))
                .collect(),
            unreachable,
        }
    }
}
