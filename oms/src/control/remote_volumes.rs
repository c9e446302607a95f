//! A volume's client for all other volumes, which this process or another one serves.
//!
//! `volume::remote_stock` lists the questions to other volumes, and says why a question may be
//! repeated. The search for the store with the lowest id that has an order's units looks in the
//! volumes of this process and in the copies of `stock_copies`, and asks the volumes without a
//! usable copy. If neither the volumes of this process nor the usable copies have such a store, a
//! search without an upper bound asks all other volumes. A search for a repeated request uses no
//! copies (`volume::store_search`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use imt_ring::{Epoch, NodeName};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::channel::message::{Confirm, Question, Reply, Reserve};
use crate::control::handle::ClusterHandle;
use crate::control::stock_copies::{Found, StockCopies};
use crate::control::topology::{Topology, VolumeLocation};
use crate::domain::loans::{AllotRequest, Recall};
use crate::domain::order::{Line, OrderId};
use crate::domain::routing_key::RoutingKey;
use crate::domain::settlement::Settlement;
use crate::domain::stock::summed;
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::volume::remote_stock::{Answer, RemoteVolumes};
use crate::volume::state::OrderError;
use crate::volume::store_search::Search;

/// Timeout of a question to another volume, except for a borrower's request. Shorter than
/// `ROUTING_TIMEOUT`, the timeout of the client's request that created the order, so that the
/// client still gets a response.
const REMOTE_CALL_TIMEOUT: Duration = Duration::from_millis(4_500);

/// Timeout of a borrower's request about units of a store (`Question::Allot`). It may be short,
/// because the borrower repeats each request until it is answered.
const ALLOT_TIMEOUT: Duration = Duration::from_secs(1);

/// The client through which one volume reaches all other volumes.
pub(crate) struct RemoteVolumeClient {
    /// Weak, to break the reference cycle `ClusterHandle` -> `Topology` -> `VolumeServer` ->
    /// `RemoteVolumes`.
    cluster: Weak<ClusterHandle>,
    volume: NodeName,
}

impl RemoteVolumeClient {
    /// Returns the client through which `volume` reaches all other volumes.
    pub(crate) fn of(cluster: &Arc<ClusterHandle>, volume: &NodeName) -> Arc<dyn RemoteVolumes> {
        Arc::new(RemoteVolumeClient {
            cluster: Arc::downgrade(cluster),
            volume: volume.clone(),
        })
    }

    fn cluster(&self) -> Result<Arc<ClusterHandle>, OrderError> {
        self.cluster.upgrade().ok_or(OrderError::Moved)
    }

    /// Asks a volume for its store with the lowest id that has the units of all lines. `None` if no
    /// store of the volume has them.
    async fn find_at(
        cluster: Arc<ClusterHandle>,
        volume: NodeName,
        question: Question,
        until: Instant,
    ) -> Result<Option<u32>, OrderError> {
        let known = |topology: &Topology| topology.known(&volume);
        match cluster.ask(known, &question, until).await? {
            (Reply::FoundStore(store), _) => Ok(store),
            _ => Err(unexpected_answer()),
        }
    }

    /// Returns the store with the lowest id, over these volumes, that has the units of all lines.
    /// `None` if no store has them. Asks the volumes at the same time, and fails if one of them
    /// does not answer.
    async fn find_by_asking(
        cluster: &Arc<ClusterHandle>,
        volumes: Vec<NodeName>,
        search: Search<'_>,
    ) -> Result<Option<u32>, OrderError> {
        let until = Instant::now() + REMOTE_CALL_TIMEOUT;
        let mut asked = JoinSet::new();
        for volume in volumes {
            let finding = RemoteVolumeClient::find_at(
                Arc::clone(cluster),
                volume,
                Question::FindStore {
                    order: search.order.clone(),
                    lines: search.lines.into(),
                },
                until,
            );
            asked.spawn(runtime::within(finding));
        }
        let mut first = None;
        for found in asked.join_all().await {
            first = earlier(first, found?);
        }
        Ok(first)
    }
}

/// Fails if the epoch of this node's topology differs from `epoch`, under which the search began.
fn check_epoch(topology: &Topology, epoch: Epoch) -> Result<(), OrderError> {
    if topology.ring.epoch() == epoch || seeded("epochs-mixed") {
        Ok(())
    } else {
        Err(OrderError::Moved)
    }
}

fn unexpected_answer() -> OrderError {
    OrderError::Away("another node gave an answer of another kind".to_owned())
}

fn earlier(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    [one, other].into_iter().flatten().min()
}

impl RemoteVolumes for RemoteVolumeClient {
    fn find<'a>(&'a self, search: Search<'a>) -> Answer<'a, Option<u32>> {
        Box::pin(async move {
            let Search {
                order,
                lines,
                is_repeated,
                below,
                epoch,
            } = search;
            // No store has an id below 1, so the search cannot find a store below store 1.
            if below == Some(1) {
                return Ok(None);
            }
            let cluster = self.cluster()?;
            let topology = cluster.topology();
            check_epoch(&topology, epoch)?;
            let demands = summed(lines);
            let others = || topology.volumes().filter(|volume| **volume != self.volume);
            let (mut first, mut not_known) = (None, Vec::new());
            for volume in others() {
                let found = match topology.servers.get(volume) {
                    Some(server) => Found::First(server.app.state().find_store(order, lines, epoch)?),
                    None if is_repeated => Found::NotKnown,
                    None => {
                        let below = earlier(first, below);
                        StockCopies::first_store(&cluster, volume, epoch.0, &demands, below)
                    }
                };
                match found {
                    Found::First(store) => first = earlier(first, store),
                    Found::NotKnown => not_known.push(volume.clone()),
                }
            }
            if first.is_none() && below.is_none() {
                // Neither the volumes of this process nor the usable copies have a store with the
                // units. A copy may be outdated, so only answers of all owners may reject an order.
                not_known = others().cloned().collect();
            }
            drop(topology);
            if !not_known.is_empty() {
                first = earlier(
                    first,
                    RemoteVolumeClient::find_by_asking(&cluster, not_known, search).await?,
                );
                // A newer topology may have routed some of the questions, so the epoch is checked
                // again.
                check_epoch(&cluster.topology(), epoch)?;
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
            let question = Question::Reserve(Reserve {
                order: order.clone(),
                nonce,
                store,
                lines: lines.into(),
            });
            if seeded("copy-trusted") {
                return Ok(true);
            }
            let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Store(store));
            let until = Instant::now() + REMOTE_CALL_TIMEOUT;
            match cluster.ask(volume, &question, until).await? {
                (Reply::Reserved, _) => Ok(true),
                (Reply::Short(cells), volume) => {
                    cluster.stock_copies.correct(&volume, store, &cells);
                    Ok(false)
                }
                _ => Err(unexpected_answer()),
            }
        })
    }

    fn confirm(&self, order: &OrderId, nonce: u64, store: u32) {
        let Ok(cluster) = self.cluster() else { return };
        let topology = cluster.topology();
        let Some(volume) = topology.volume_of(&RoutingKey::Store(store)) else {
            return;
        };
        let confirm = Confirm {
            order: order.clone(),
            nonce,
            store,
        };
        match topology.locate(&volume) {
            VolumeLocation::Here(server) => server.app.state().confirm(&confirm),
            VolumeLocation::There { address, .. } => {
                let epoch = topology.ring.epoch().0;
                cluster
                    .peers
                    .tell(address, &volume, epoch, Question::Confirm(confirm));
            }
            VolumeLocation::Nowhere(_) => {}
        }
    }

    fn allot<'a>(&'a self, request: &'a AllotRequest) -> Answer<'a, Reply> {
        Box::pin(async move {
            let cluster = self.cluster()?;
            let question = Question::Allot(request.clone());
            let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Store(request.store));
            let until = Instant::now() + ALLOT_TIMEOUT;
            Ok(cluster.ask(volume, &question, until).await?.0)
        })
    }

    fn recall(&self, borrower: &NodeName, recall: Recall) {
        let Ok(cluster) = self.cluster() else { return };
        let topology = cluster.topology();
        match topology.locate(borrower) {
            VolumeLocation::Here(server) => server.app.state().recall(&recall),
            VolumeLocation::There { address, .. } => {
                let epoch = topology.ring.epoch().0;
                cluster
                    .peers
                    .tell_now(address, borrower, epoch, Question::Recall(recall));
            }
            VolumeLocation::Nowhere(_) => {}
        }
    }

    fn settle<'a>(&'a self, order: &'a OrderId, settlement: &'a Settlement) -> Answer<'a, ()> {
        Box::pin(async move {
            let cluster = self.cluster()?;
            let question = Question::Settle {
                order: order.clone(),
                settlement: settlement.clone(),
            };
            let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Store(settlement.store));
            let until = Instant::now() + REMOTE_CALL_TIMEOUT;
            match cluster.ask(volume, &question, until).await? {
                (Reply::Settled, _) => Ok(()),
                _ => Err(unexpected_answer()),
            }
        })
    }

    fn keeps<'a>(&'a self, order: &'a OrderId, store: u32) -> Answer<'a, bool> {
        Box::pin(async move {
            let cluster = self.cluster()?;
            let question = Question::Keeps {
                order: order.clone(),
                store,
            };
            let volume = |topology: &Topology| topology.volume_of(&RoutingKey::Order(order.clone()));
            let until = Instant::now() + REMOTE_CALL_TIMEOUT;
            match cluster.ask(volume, &question, until).await? {
                (Reply::Kept(is_kept), _) => Ok(is_kept),
                _ => Err(unexpected_answer()),
            }
        })
    }
}
