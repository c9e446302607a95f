//! The figures that one node reports to the console: its volumes (served and missing), its requests
//! per second, and the events of its volumes.
//!
//! While a browser shows the console, the node that it is connected to requests the figures of
//! every other running node about once a second (`POST /peer/console`). The request names the
//! newest second and the newest event that were already received. So the first response contains
//! the whole kept history, and each later response contains only the seconds and events since the
//! previous response.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::events::{Event, VolumeScene};
use super::samples::Sample;
use crate::api::health::VolumeHealth;
use crate::api::internal::CopyProgress;
use crate::api::node_status::fault_of;
use crate::control::topology::Topology;
use crate::volume::server::VolumeServer;

/// A request for the figures of a node.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct AskFigures {
    /// Random number of the process that sent the previous response; 0 before the first response.
    pub(super) incarnation: u64,
    /// The last second in the latest response that contained seconds, in seconds since 1970; 0
    /// before that response.
    pub(super) second: u64,
    /// The id of the newest event received from the process with this `incarnation`; 0 if no event
    /// was received from it.
    pub(super) event: u64,
}

/// The response of a node to [`AskFigures`].
#[derive(Serialize, Deserialize)]
pub(crate) struct NodeFigures {
    pub(super) incarnation: u64,
    pub(super) volumes: Vec<VolumeFigures>,
    /// Volumes that are assigned to the node and have no database (with an engine: no log in the
    /// engine), each with the reason as text.
    pub(super) missing: BTreeMap<String, String>,
    pub(super) samples: Vec<Sample>,
    pub(super) events: Vec<Event>,
}

/// The figures of one volume that the node serves.
#[derive(Serialize, Deserialize)]
pub(super) struct VolumeFigures {
    pub(super) volume: String,
    /// The reason why the volume accepts no orders; `None` while it accepts them.
    pub(super) fault: Option<String>,
    /// Number of write batches that wait for their commit, and of permits that are not used yet.
    pub(super) commit_queue: u64,
    /// Progress of the migration of slots to the volume; all 0 if there is none.
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

    /// Returns the figures of all volumes that this node serves.
    pub(super) fn of_all(topology: &Topology) -> Vec<VolumeFigures> {
        topology
            .servers
            .values()
            .map(|server| VolumeFigures::of(server))
            .collect()
    }

    /// Returns the figures that produce events in the console's log when they change.
    pub(super) fn scene(&self) -> VolumeScene {
        VolumeScene {
            is_warehouse_away: self.health.warehouse_away,
            dead_letters: self.health.outbox_dead as u64,
            fault: self.fault.clone(),
        }
    }
}
