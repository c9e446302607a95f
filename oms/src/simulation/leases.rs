//! Checks in each run behind an engine that at most one process may answer reads of a volume.
//!
//! **Violations**
//! - A process takes a volume over while another process that serves this volume has a valid lease.
//!   The other process may be stopped: it could resume at any moment and answer a read.
//! - Two processes serve one volume, and both have a valid lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::simulation::world::World;

/// Pause between two checks of all leases.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Checks all leases repeatedly until the caller aborts this task. Returns at once without an
/// engine.
pub(super) async fn watch(world: Arc<World>) {
    while world.has_engine() {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut holders: BTreeMap<String, usize> = BTreeMap::new();
        for (id, volume) in leased(&world) {
            let other = holders.insert(volume.clone(), id);
            if let Some(other) = other.filter(|other| *other != id) {
                world.violated(format!("processes {other} and {id} may answer reads of {volume}"));
            }
        }
    }
}

/// Records a violation if another process than `id` may answer reads of a volume at its takeover.
/// The statement of a dead process may take effect late, when another process serves the volume
/// already. The dead process can neither answer nor commit, so that is no violation.
pub(super) fn check_takeover(world: &World, volume: &str, id: usize) {
    world.count("takeovers");
    if world.inside().incarnations[id].process.is_dead() {
        return;
    }
    for (other, leased) in leased(world) {
        if other != id && leased == volume {
            world.violated(format!(
                "process {id} takes {volume} over while process {other} may answer reads"
            ));
        }
    }
}

/// Returns each volume of which a process may answer reads, with the number of this process.
fn leased(world: &World) -> Vec<(usize, String)> {
    let clusters: Vec<_> = {
        let inside = world.inside();
        let all = inside.incarnations.iter().enumerate();
        let alive = all.filter(|(_, one)| !one.process.is_dead());
        alive
            .filter_map(|(id, one)| Some((id, one.cluster.clone()?)))
            .collect()
    };
    let mut leased = Vec::new();
    for (id, cluster) in clusters {
        for server in cluster.topology().servers.values() {
            if server.app.state().storage.is_ours() {
                leased.push((id, server.volume.to_string()));
            }
        }
    }
    leased
}
