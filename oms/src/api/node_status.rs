//! Health probes and metrics of this node. They cover all volumes that the node serves.
//!
//! **Invariants**
//! - A health probe or a scrape of metrics is answered by the node that receives it and never
//!   forwarded.
//! - Each time series of a volume has the label `volume`. So serving a further volume adds time
//!   series and does not change the existing series.
//! - Counters count from the start of the process and never decrease (`metrics::VolumeCounters`).
//!
//! The state of other nodes is not reported here. It is part of `GET /health`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::orders::json;
use crate::api::problem::Problem;
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::domain::order::State as OrderState;
use crate::runtime::exposition::{self, Family, Value};
use crate::runtime::metrics::VolumeCounters;
use crate::runtime::process_metrics;
use crate::volume::server::VolumeServer;

/// The answer to a probe.
#[derive(Serialize, ToSchema)]
#[schema(as = Probe)]
pub(super) struct Alive {
    /// Always `ok`.
    status: &'static str,
}

/// Handles `GET /health/live`: 200 while the process runs.
pub(crate) fn live() -> Response {
    json(&Alive { status: "ok" })
}

/// Handles `GET /health/ready`: 200 if every volume that is assigned to the node or open in it
/// accepts orders, otherwise (also without any volume) 503 with the reasons.
pub(crate) fn ready(cluster: &ClusterHandle) -> Result<Response, Problem> {
    let topology = cluster.topology();
    if topology.servers.is_empty() && topology.to_serve().next().is_none() {
        return Err(Problem::busy("this node serves no volume"));
    }
    let closed = topology
        .to_serve()
        .filter(|volume| !topology.servers.contains_key(volume));
    let mut faults: Vec<String> = closed
        .map(|volume| {
            let missing = cluster.missing().get(volume).cloned();
            let reason = missing.unwrap_or_else(|| "it is not open yet".to_owned());
            format!("volume {volume}: {reason}")
        })
        .collect();
    for server in topology.servers.values() {
        if let Some(fault) = fault_of(server) {
            faults.push(format!("volume {}: {fault}", server.volume));
        }
    }
    if faults.is_empty() {
        Ok(json(&Alive { status: "ok" }))
    } else {
        Err(Problem::busy(faults.join("; ")))
    }
}

/// Returns the reason why a volume does not accept orders now, or `None` if it accepts orders.
pub(crate) fn fault_of(server: &VolumeServer) -> Option<String> {
    let storage = &server.app.state().storage;
    if storage.has_failed() {
        return Some("it takes no more writes because a commit failed".to_owned());
    }
    if !storage.is_ours() {
        return Some("another process serves it".to_owned());
    }
    storage.try_permit().err().map(|error| error.to_string())
}

/// The state of one volume at the moment of a scrape of metrics.
struct Sample {
    volume: String,
    slots: u64,
    orders: [u64; OrderState::ALL.len()],
    refunds_wanted: u64,
    outbox_messages: u64,
    outbox_dead: u64,
    outbox_in_flight: u64,
    is_warehouse_away: bool,
    stock_lent: u64,
    stock_borrowed: u64,
    commit_queue: u64,
    transactors: u64,
    is_ready: bool,
    /// `true` if this volume has the statistics, or if `counters` has the end of a scan for
    /// statistics files. Otherwise the metrics of the scan are left out.
    scans_files: bool,
    counters: Arc<VolumeCounters>,
}

impl Sample {
    fn of(server: &VolumeServer) -> Sample {
        let state = server.app.state();
        let counters = state.storage.counters();
        let outbox = state.outbox();
        let mut sample = Sample {
            volume: server.volume.to_string(),
            slots: 0,
            orders: counters.orders,
            refunds_wanted: counters.refunds_wanted(),
            outbox_messages: outbox.len() as u64,
            outbox_dead: outbox.dead() as u64,
            outbox_in_flight: outbox.in_flight() as u64,
            is_warehouse_away: outbox.is_warehouse_away(),
            stock_lent: 0,
            stock_borrowed: state.allotments().usable(),
            commit_queue: state.storage.waiting() as u64,
            transactors: 0,
            is_ready: false,
            scans_files: state.slots.has_statistics()
                || server.app.counters.stat_scan_ended_ms.load(Ordering::Relaxed) > 0,
            counters: Arc::clone(&server.app.counters),
        };
        drop(outbox);
        sample.stock_lent = state.stock().loans().units();
        sample.slots = state.slots.ring().slots_of(&server.volume).count() as u64;
        sample.transactors = server.app.transactors.at_work() as u64;
        sample.is_ready = fault_of(server).is_none();
        sample
    }
}

/// The Prometheus type of a volume's metric.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// A metric family with at most one sample for each volume.
struct VolumeFamily {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&Sample) -> Option<u64>,
}

fn load(counter: &AtomicU64) -> Option<u64> {
    Some(counter.load(Ordering::Relaxed))
}

const FAMILIES: [VolumeFamily; 19] = [
    VolumeFamily {
        name: "imt_volume_slots",
        kind: Kind::Gauge,
        help: "Slots of the volume.",
        value: |sample| Some(sample.slots),
    },
    VolumeFamily {
        name: "imt_refunds_wanted",
        kind: Kind::Gauge,
        help: "Payments to be refunded.",
        value: |sample| Some(sample.refunds_wanted),
    },
    VolumeFamily {
        name: "imt_outbox_messages",
        kind: Kind::Gauge,
        help: "Messages that the warehouse has not confirmed, dead letters included.",
        value: |sample| Some(sample.outbox_messages),
    },
    VolumeFamily {
        name: "imt_outbox_dead",
        kind: Kind::Gauge,
        help: "Dead letters.",
        value: |sample| Some(sample.outbox_dead),
    },
    VolumeFamily {
        name: "imt_outbox_in_flight",
        kind: Kind::Gauge,
        help: "Calls to the warehouse in flight.",
        value: |sample| Some(sample.outbox_in_flight),
    },
    VolumeFamily {
        name: "imt_warehouse_away",
        kind: Kind::Gauge,
        help: "1 while the circuit breaker to the warehouse is open.",
        value: |sample| Some(u64::from(sample.is_warehouse_away)),
    },
    VolumeFamily {
        name: "imt_stock_lent_units",
        kind: Kind::Gauge,
        help: "Units of the volume's stores that are lent to other volumes.",
        value: |sample| Some(sample.stock_lent),
    },
    VolumeFamily {
        name: "imt_stock_borrowed_units",
        kind: Kind::Gauge,
        help: "Units of other volumes' stores that the next orders of the volume can take.",
        value: |sample| Some(sample.stock_borrowed),
    },
    VolumeFamily {
        name: "imt_orders_from_borrowed_units_total",
        kind: Kind::Counter,
        help: "Orders that took borrowed units, without a message to the store's volume.",
        value: |sample| load(&sample.counters.orders_from_borrowed_units),
    },
    VolumeFamily {
        name: "imt_commit_queue",
        kind: Kind::Gauge,
        help: "Write batches that wait for their commit.",
        value: |sample| Some(sample.commit_queue),
    },
    VolumeFamily {
        name: "imt_transactors",
        kind: Kind::Gauge,
        help: "Transactors that are running now.",
        value: |sample| Some(sample.transactors),
    },
    VolumeFamily {
        name: "imt_stat_files_waiting",
        kind: Kind::Gauge,
        help: "Statistics files that the last scan left to wait: new, being written, or incomplete.",
        value: |sample| load(&sample.counters.stat_files_waiting).filter(|_| sample.scans_files),
    },
    VolumeFamily {
        name: "imt_stat_scan_timestamp_seconds",
        kind: Kind::Gauge,
        help: "Unix time at which the last scan for statistics files ended.",
        value: |sample| {
            let ended_ms = load(&sample.counters.stat_scan_ended_ms)?;
            (sample.scans_files && ended_ms > 0).then_some(ended_ms / 1_000)
        },
    },
    VolumeFamily {
        name: "imt_transactor_panics_total",
        kind: Kind::Counter,
        help: "Transactors that ended in a panic.",
        value: |sample| load(&sample.counters.transactor_panics),
    },
    VolumeFamily {
        name: "imt_commits_total",
        kind: Kind::Counter,
        help: "Group commits, each with one sync.",
        value: |sample| load(&sample.counters.commits),
    },
    VolumeFamily {
        name: "imt_commit_batches_total",
        kind: Kind::Counter,
        help: "Write batches made durable by group commits.",
        value: |sample| load(&sample.counters.batches),
    },
    VolumeFamily {
        name: "imt_stock_snapshots_total",
        kind: Kind::Counter,
        help: "Stock snapshots applied.",
        value: |sample| load(&sample.counters.stock_snapshots),
    },
    VolumeFamily {
        name: "imt_stat_files_total",
        kind: Kind::Counter,
        help: "Statistics files added.",
        value: |sample| load(&sample.counters.stat_files),
    },
    VolumeFamily {
        name: "imt_stat_files_set_aside_total",
        kind: Kind::Counter,
        help: "Statistics files renamed to NAME.rejected.",
        value: |sample| load(&sample.counters.stat_files_set_aside),
    },
];

/// Handles `GET /metrics` in the text format of Prometheus.
pub(crate) fn metrics(cluster: &ClusterHandle) -> Response {
    let topology = cluster.topology();
    let samples: Vec<Sample> = topology
        .servers
        .values()
        .map(|server| Sample::of(server))
        .collect();
    let mut families = cluster.metrics.families();
    families.extend(of_node(&topology, &samples));
    families.extend(of_volumes(&samples));
    families.extend(process_metrics::families());
    let text = exposition::render(families);
    ([(CONTENT_TYPE, exposition::TEXT_TYPE)], Body::from(text)).into_response()
}

fn volume_label(volume: &str) -> (&'static str, String) {
    ("volume", volume.to_owned())
}

/// Returns the metric families of the node: the ring's epoch, and the readiness of every volume
/// assigned to the node.
fn of_node(topology: &Topology, samples: &[Sample]) -> [Family; 2] {
    let ready = topology.to_serve().map(|volume| {
        let sample = samples.iter().find(|sample| sample.volume == volume.as_str());
        let is_ready = sample.is_some_and(|sample| sample.is_ready);
        let value = Value::Gauge(f64::from(u8::from(is_ready)));
        (vec![volume_label(volume.as_str())], value)
    });
    [
        Family::single(
            "imt_ring_epoch",
            "Epoch of the current ring.",
            Value::Gauge(topology.ring.epoch().0 as f64),
        ),
        Family {
            name: "imt_volume_ready",
            help: "1 while the volume takes orders, 0 while it is assigned to this node and takes none.",
            samples: ready.collect(),
        },
    ]
}

/// Returns the metric families with samples for each volume.
fn of_volumes(samples: &[Sample]) -> Vec<Family> {
    let mut orders = Vec::new();
    for sample in samples {
        for state in OrderState::ALL {
            let labels = vec![volume_label(&sample.volume), ("state", state.name().to_owned())];
            orders.push((labels, Value::Gauge(sample.orders[state as usize] as f64)));
        }
    }
    let mut families = vec![Family {
        name: "imt_orders",
        help: "Orders in each state.",
        samples: orders,
    }];
    for family in &FAMILIES {
        let value = |value: u64| match family.kind {
            Kind::Counter => Value::Counter(value as f64),
            Kind::Gauge => Value::Gauge(value as f64),
        };
        let samples = samples.iter().filter_map(|sample| {
            let labels = vec![volume_label(&sample.volume)];
            Some((labels, value((family.value)(sample)?)))
        });
        families.push(Family {
            name: family.name,
            help: family.help,
            samples: samples.collect(),
        });
    }
    families
}
