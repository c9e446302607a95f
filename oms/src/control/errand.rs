//! Errands: questions and commands to one volume, which this node or another node serves.
//!
//! An errand is performed in this process if the process serves the volume, and otherwise at the
//! node that does. If the volume changes its node in the meantime, the errand waits and is repeated
//! at the new node.
//!
//! **Invariants**
//! - Errands are idempotent, so an errand without an answer may be repeated.
//! - An errand fails at once if the volume's node is silent: it answers neither calls nor pings
//!   (`cluster::peer_client`). An errand also fails at once if this node must serve the volume, but
//!   the volume is missing: it has no database (with an engine: no log).
//!
//! Deliberately absent: the errands that carry requests of clients, which `api::forward` defines.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::{Epoch, NodeName};
use thiserror::Error;
use tokio::time::Instant;

use crate::cluster::channel::message::{Answer, Question, Reply};
use crate::cluster::peer_client::NoAnswer;
use crate::control::handle::ClusterHandle;
use crate::control::topology::{Topology, VolumeLocation};
use crate::volume::questions;
use crate::volume::server::VolumeServer;
use crate::volume::state::OrderError;

/// Pause after a try of an errand that was refused or had no answer. A new topology ends the pause
/// early.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A question or command to one volume.
pub(crate) trait Errand: Sync {
    /// The answer of the volume.
    type Outcome: Send;

    /// Performs the errand at a volume that this process serves.
    fn here(
        &self,
        to: &Destination<'_>,
        server: &Arc<VolumeServer>,
    ) -> impl Future<Output = Attempt<Self::Outcome>> + Send;

    /// Sends the errand to the node at this address, which performs it.
    fn there(
        &self,
        to: &Destination<'_>,
        address: SocketAddr,
    ) -> impl Future<Output = Result<Attempt<Self::Outcome>, NoAnswer>> + Send;
}

/// The volume of an errand, the topology by which the volume was chosen, and the errand's deadline.
pub(crate) struct Destination<'a> {
    pub(crate) cluster: &'a Arc<ClusterHandle>,
    pub(crate) topology: &'a Topology,
    pub(crate) volume: &'a NodeName,
    pub(crate) until: Instant,
}

impl Destination<'_> {
    /// Returns the epoch of the ring by which the volume was chosen.
    pub(crate) fn epoch(&self) -> u64 {
        self.topology.ring.epoch().0
    }

    /// Sends a request about the volume to another node, on the channel between nodes.
    pub(crate) async fn request(&self, address: SocketAddr, question: Question) -> Result<Answer, NoAnswer> {
        let peers = &self.cluster.peers;
        peers
            .request(address, self.volume, self.epoch(), question, self.until)
            .await
    }
}

/// The result of one try of an errand.
pub(crate) enum Attempt<T> {
    Done(T),
    /// The errand was refused. For example, the slot is sealed or elsewhere, or the node does not
    /// serve the volume. `epoch` is that of the refusing node's ring.
    Moved {
        epoch: u64,
    },
}

impl Attempt<Reply> {
    fn of(reply: Reply, epoch: u64) -> Attempt<Reply> {
        match reply {
            Reply::Moved => Attempt::Moved { epoch },
            reply => Attempt::Done(reply),
        }
    }
}

/// The reason why one try of an errand had no result.
pub(crate) struct Unanswered {
    pub(crate) reason: String,
    /// `true` if the node answers neither calls nor pings, or if this node must serve the volume,
    /// but the volume is missing. Then the errand fails at once instead of being repeated.
    pub(crate) is_silent: bool,
    /// `true` if the errand may have been performed.
    pub(crate) was_sent: bool,
}

/// The reason why an errand was given up.
#[derive(Debug, Error)]
pub(crate) enum Undelivered {
    /// The ring no longer has the volume. The caller must choose a volume by the new ring.
    #[error("the order or store is being moved to another node; retry")]
    Gone,
    /// No node performed and answered the errand in time. Or the errand failed at once, because the
    /// volume's node is silent or the volume is missing.
    #[error("the node {node}, which serves this order or store, does not answer: {reason}")]
    Unanswered {
        /// The node that should serve the volume.
        node: String,
        reason: String,
    },
}

impl From<Undelivered> for OrderError {
    fn from(undelivered: Undelivered) -> OrderError {
        match undelivered {
            Undelivered::Gone => OrderError::Moved,
            unanswered => OrderError::Away(unanswered.to_string()),
        }
    }
}

impl Errand for Question {
    type Outcome = Reply;

    async fn here(&self, to: &Destination<'_>, server: &Arc<VolumeServer>) -> Attempt<Reply> {
        let answered = questions::answer(server, Epoch(to.epoch()), self.clone()).await;
        Attempt::of(answered.reply, to.epoch())
    }

    async fn there(&self, to: &Destination<'_>, address: SocketAddr) -> Result<Attempt<Reply>, NoAnswer> {
        let answer = to.request(address, self.clone()).await?;
        Ok(Attempt::of(answer.reply, answer.epoch))
    }
}

impl ClusterHandle {
    /// Asks a question of the volume that `volume` chooses, on this node or another. Also returns
    /// the name of the volume that answered. The replies `Busy` and `Failed` become errors.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        volume: impl Fn(&Topology) -> Option<NodeName>,
        question: &Question,
        until: Instant,
    ) -> Result<(Reply, NodeName), OrderError> {
        match self.perform(volume, question, until).await? {
            (Reply::Busy(reason) | Reply::Failed(reason), _) => Err(OrderError::Away(reason)),
            answered => Ok(answered),
        }
    }

    /// Performs an errand at the volume that `volume` chooses. If the volume changes its node in
    /// the meantime, performs the errand at the new node. Also returns the name of the volume that
    /// answered. Fails if `volume` chooses none, if no try has succeeded by `until`, or at once if
    /// the chosen volume's node is silent or the volume is missing (`Unanswered::is_silent`).
    pub(crate) async fn perform<E: Errand>(
        self: &Arc<Self>,
        volume: impl Fn(&Topology) -> Option<NodeName>,
        errand: &E,
        until: Instant,
    ) -> Result<(E::Outcome, NodeName), Undelivered> {
        loop {
            let changed = self.topology_changed();
            let topology = self.topology();
            let chosen = volume(&topology).ok_or(Undelivered::Gone)?;
            let mut is_silent = false;
            let reason = match self.try_errand(&topology, &chosen, errand, until).await {
                Ok(Attempt::Done(outcome)) => return Ok((outcome, chosen)),
                Ok(Attempt::Moved { epoch }) if epoch > topology.ring.epoch().0 => {
                    "it has another place by a newer ring".to_owned()
                }
                Ok(Attempt::Moved { .. }) => "it is changing its place".to_owned(),
                Err(unanswered) => {
                    is_silent = unanswered.is_silent;
                    unanswered.reason
                }
            };
            if is_silent || Instant::now() >= until {
                let node = topology.state.serving.get(&chosen);
                let node = node.map_or_else(|| "(none)".to_owned(), ToString::to_string);
                return Err(Undelivered::Unanswered { node, reason });
            }
            drop(topology);
            self.look.notify_one();
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep(TRY_AGAIN) => {}
            }
        }
    }

    /// Tries an errand once, at the node that serves the volume according to `topology`.
    pub(crate) async fn try_errand<E: Errand>(
        self: &Arc<Self>,
        topology: &Topology,
        volume: &NodeName,
        errand: &E,
        until: Instant,
    ) -> Result<Attempt<E::Outcome>, Unanswered> {
        let to = Destination {
            cluster: self,
            topology,
            volume,
            until,
        };
        match topology.locate(volume) {
            VolumeLocation::Here(server) => Ok(errand.here(&to, server).await),
            VolumeLocation::There { node, address } => {
                let answered = tokio::select! {
                    biased;
                    answered = errand.there(&to, address) => answered,
                    // A paused process does not answer. So the try also ends when the state gives
                    // the volume to another node.
                    () = self.served_elsewhere(volume, node) => {
                        return Err(Unanswered {
                            reason: format!("{node} does not serve {volume} any more"),
                            is_silent: false,
                            was_sent: true,
                        });
                    }
                };
                answered.map_err(|NoAnswer(reason)| Unanswered {
                    reason: format!("{node}: {reason}"),
                    is_silent: self.peers.is_silent(address),
                    was_sent: true,
                })
            }
            VolumeLocation::Nowhere(node) => Err(self.nowhere(volume, node)),
        }
    }

    /// Waits until the state in this node's topology no longer assigns a volume to `node`.
    async fn served_elsewhere(&self, volume: &NodeName, node: &NodeName) {
        loop {
            let changed = self.topology_changed();
            if self.topology().state.serving.get(volume) != Some(node) {
                return;
            }
            changed.await;
        }
    }

    fn nowhere(&self, volume: &NodeName, node: Option<&NodeName>) -> Unanswered {
        let missing = self.missing().get(volume).cloned();
        let is_silent = missing.is_some();
        let reason = match missing {
            Some(reason) => format!("volume {volume}: {reason}"),
            None => {
                let node = node.map_or("nobody yet", NodeName::as_str);
                format!("{volume} is to be served by {node}")
            }
        };
        Unanswered {
            reason,
            is_silent,
            was_sent: false,
        }
    }
}
