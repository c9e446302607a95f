//! Which volume a request is for, and where that volume is: here, on another node, or not known
//! yet.
//!
//! A view is one moment of the cluster as this node sees it: the state in force, the posts that it
//! serves itself, where the other nodes answer. Requests hold the view that they were routed by
//! until they end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use imt_ring::{NodeName, Ring};

use crate::cluster::{Card, ClusterState};
use crate::domain::routing_key::Subject;
use crate::storage::owned_slots;
use crate::volume::server::Post;

/// Where a volume is.
pub(crate) enum Place<'a> {
    Here(&'a Arc<Post>),
    There {
        node: &'a NodeName,
        address: SocketAddr,
    },
    /// Whoever should serve it is not known to answer anywhere.
    Nowhere(Option<&'a NodeName>),
}

/// The cluster as this node sees it.
pub(crate) struct View {
    pub(crate) me: NodeName,
    pub(crate) state: ClusterState,
    pub(crate) ring: Arc<Ring>,
    pub(crate) posts: BTreeMap<NodeName, Arc<Post>>,
    pub(crate) cards: BTreeMap<NodeName, Card>,
    /// The one post there is, if there is no other volume in the cluster.
    pub(crate) alone: Option<Arc<Post>>,
}

impl View {
    /// The view of these parts.
    pub(crate) fn new(
        me: NodeName,
        state: ClusterState,
        ring: Arc<Ring>,
        posts: BTreeMap<NodeName, Arc<Post>>,
        cards: Vec<Card>,
    ) -> View {
        let is_alone = state.serving.len() == 1 && ring.members().len() == 1 && state.moving.is_none();
        let only = ring.members().first().filter(|_| is_alone);
        let alone = only.and_then(|member| posts.get(member.name())).cloned();
        View {
            me,
            ring,
            alone,
            posts,
            cards: cards.into_iter().map(|card| (card.name.clone(), card)).collect(),
            state,
        }
    }

    /// The volume of a subject.
    pub(crate) fn volume_of(&self, subject: &Subject) -> Option<NodeName> {
        let slot = match subject {
            Subject::Order(order) => owned_slots::of_order(&self.ring, order),
            Subject::Store(store) => owned_slots::of_store(&self.ring, *store),
            Subject::Statistics => owned_slots::of_statistics(&self.ring),
        };
        self.ring.owner(slot).ok().cloned()
    }

    /// The volumes that have slots, by name.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = &NodeName> {
        self.ring.members().iter().map(imt_ring::Member::name)
    }

    /// The volumes that this node is to serve, open or not.
    pub(crate) fn to_serve(&self) -> impl Iterator<Item = &NodeName> {
        let serving = self.state.serving.iter();
        serving
            .filter(|(_, node)| **node == self.me)
            .map(|(volume, _)| volume)
    }

    /// That volume, if the ring still has it.
    pub(crate) fn known(&self, volume: &NodeName) -> Option<NodeName> {
        self.ring.member(volume).map(|member| member.name().clone())
    }

    /// Where a volume is.
    pub(crate) fn place(&self, volume: &NodeName) -> Place<'_> {
        if let Some(post) = self.posts.get(volume) {
            return Place::Here(post);
        }
        match self.state.serving.get(volume) {
            Some(node) if *node != self.me => match self.cards.get(node) {
                Some(card) => Place::There {
                    node,
                    address: card.address,
                },
                None => Place::Nowhere(Some(node)),
            },
            other => Place::Nowhere(other),
        }
    }
}
