//! The figures of one node: its volumes, its requests by second, the events of its volumes.
//!
//! The node that a page is connected to asks every other node for them once a second while a page
//! is open (`POST /peer/console`). The question names the newest second and event that are known.
//! So the first answer holds the whole history, and each later one a second or two.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::events::{Event, VolumeScene};
use super::samples::Sample;
use crate::api::health::VolumeHealth;
use crate::api::internal::CopyProgress;
use crate::api::node_status::fault_of;
use crate::control::topology::Topology;
use crate::volume::server::VolumeServer;

/// The question to a node.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct AskFigures {
    /// The process that the last answer came from, 0 before the first one.
    pub(super) incarnation: u64,
    /// The newest second that was heard of.
    pub(super) second: u64,
    /// The newest event of that process.
    pub(super) event: u64,
}

/// The answer of a node.
#[derive(Serialize, Deserialize)]
pub(crate) struct NodeFigures {
    pub(super) incarnation: u64,
    pub(super) volumes: Vec<VolumeFigures>,
    /// Volumes that the node is to serve and cannot, with the reason in words.
    pub(super) missing: BTreeMap<String, String>,
    pub(super) samples: Vec<Sample>,
    pub(super) events: Vec<Event>,
}

/// One volume that the node serves.
#[derive(Serialize, Deserialize)]
pub(super) struct VolumeFigures {
    pub(super) volume: String,
    /// The reason why the volume takes no orders.
    pub(super) fault: Option<String>,
    /// Changes that wait to become durable.
    pub(super) commit_queue: u64,
    /// Progress of a migration to the volume.
    pub(super) copy: CopyProgress,
    #[serde(flatten)]
    pub(super) health: VolumeHealth,
}

impl VolumeFigures {
    fn of(server: &VolumeServer) -> VolumeFigures {
        VolumeFigures {
            volume: server.volume.to_string(),
            fault: fault_of(server),
            commit_queue: server.app.state().storage.waiting() as u64,
            copy: CopyProgress::of(server),
            health: VolumeHealth::of(&server.app),
        }
    }

    /// The figures of all volumes that are served here.
    pub(super) fn of_all(topology: &Topology) -> Vec<VolumeFigures> {
        topology
            .servers
            .values()
            .map(|server| VolumeFigures::of(server))
            .collect()
    }

    /// Returns the figures that become events of the console when they change.
    pub(super) fn scene(&self) -> VolumeScene {
        VolumeScene {
            is_warehouse_away: self.health.warehouse_away,
            dead_letters: self.health.outbox_dead as u64,
            fault: self.fault.clone(),
        }
    }
}
