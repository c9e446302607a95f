//! The other volumes, reached through the handle: see `remote_stock` for what is asked of them and
//! why it may be repeated.

use std::sync::{Arc, Weak};
use std::time::Duration;

use imt_ring::NodeName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::Problem;
use crate::api::internal::{Find, Keeps, Reserve, Settle, ask_volume};
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::domain::order::{Line, OrderId};
use crate::domain::routing_key::RoutingKey;
use crate::domain::settlement::Settlement;
use crate::runtime;
use crate::volume::remote_stock::{Answer, RemoteVolumes};
use crate::volume::state::OrderError;

/// How long another volume is waited for; less than the caller waits for the order.
const REMOTE_CALL_TIMEOUT: Duration = Duration::from_millis(4_500);

/// All volumes but one.
pub(crate) struct RemoteVolumeClient {
    /// Weak, since the gate's view holds the rooms that hold this.
    cluster: Weak<ClusterHandle>,
    volume: NodeName,
}

impl RemoteVolumeClient {
    /// All volumes but this.
    pub(crate) fn of(cluster: &Arc<ClusterHandle>, volume: &NodeName) -> Arc<dyn RemoteVolumes> {
        Arc::new(RemoteVolumeClient {
            cluster: Arc::downgrade(cluster),
            volume: volume.clone(),
        })
    }

    fn cluster(&self) -> Result<Arc<ClusterHandle>, OrderError> {
        self.cluster.upgrade().ok_or(OrderError::Moved)
    }
}

fn away(problem: Problem) -> OrderError {
    if problem.is_moved() {
        return OrderError::Moved;
    }
    OrderError::Away(problem.detail().to_owned())
}

impl RemoteVolumes for RemoteVolumeClient {
    fn find<'a>(&'a self, lines: &'a [Line], below: Option<u32>) -> Answer<'a, Option<u32>> {
        Box::pin(async move {
            // No store comes before the first.
            if below == Some(1) {
                return Ok(None);
            }
            let cluster = self.cluster()?;
            let others: Vec<NodeName> = cluster
                .topology()
                .volumes()
                .filter(|volume| **volume != self.volume)
                .cloned()
                .collect();
            let until = Instant::now() + REMOTE_CALL_TIMEOUT;
            let mut asked = JoinSet::new();
            for volume in others {
                let (cluster, lines) = (Arc::clone(&cluster), lines.to_vec());
                asked.spawn(runtime::within(async move {
                    let find = Find { lines };
                    let volume = |topology: &Topology| topology.known(&volume);
                    ask_volume::<Option<u32>>(&cluster, volume, "find", &find, until).await
                }));
            }
            let mut first = None;
            for found in asked.join_all().await {
                let store = found.map_err(away)?;
                first = [first, store].into_iter().flatten().min();
            }
            Ok(first.filter(|store| below.is_none_or(|below| *store < below)))
        })
    }

    fn reserve<'a>(
        &'a self,
        order: &'a OrderId,
        nonce: u64,
        store: u32,
        lines: &'a [Line],
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let cluster = self.cluster()?;
            let ask = Reserve {
                order: order.to_string(),
                nonce,
                store,
                lines: lines.to_vec(),
            };
            let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Store(store));
            let until = Instant::now() + REMOTE_CALL_TIMEOUT;
            ask_volume(&cluster, volume, "reserve", &ask, until)
                .await
                .map_err(away)
        })
    }

    fn settle<'a>(&'a self, order: &'a OrderId, settlement: &'a Settlement) -> Answer<'a, ()> {
        Box::pin(async move {
            let cluster = self.cluster()?;
            let ask = Settle {
                order: order.to_string(),
                settlement: settlement.clone(),
            };
            let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Store(settlement.store));
            let until = Instant::now() + REMOTE_CALL_TIMEOUT;
            let done = ask_volume::<bool>(&cluster, volume, "settle", &ask, until).await;
            done.map(drop).map_err(away)
        })
    }

    fn keeps<'a>(&'a self, order: &'a OrderId, store: u32) -> Answer<'a, bool> {
        Box::pin(async move {
            let cluster = self.cluster()?;
            let ask = Keeps {
                order: order.to_string(),
                store,
            };
            let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Order(order.clone()));
            let until = Instant::now() + REMOTE_CALL_TIMEOUT;
            ask_volume(&cluster, volume, "keeps", &ask, until)
                .await
                .map_err(away)
        })
    }
}
