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
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use crate::cluster::{Card, ClusterState};
use crate::order::OrderId;
use crate::post::Post;
use crate::slots;

/// The part of a request that decides which volume answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// An order.
    Order(OrderId),
    /// A store.
    Store(u32),
    /// The statistics.
    Statistics,
}

/// The only part of an order's body that says where it belongs.
#[derive(Deserialize)]
struct OnlyId<'a> {
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
}

/// The order that a body names, if it names one.
fn order_in(body: &[u8]) -> Option<OrderId> {
    let only: OnlyId<'_> = serde_json::from_slice(body).ok()?;
    OrderId::parse(&only.id).ok()
}

/// The order of a kept request: method, path and body (`rows::KeptAnswer`).
///
/// Earlier versions kept the path as the client had encoded it.
pub(crate) fn order_of(request: &[u8]) -> Option<OrderId> {
    let end = request.iter().position(|byte| *byte == b'\n')?;
    let (method, path) = std::str::from_utf8(&request[..end]).ok()?.split_once(' ')?;
    if method != "POST" {
        return None;
    }
    let path = path.split('?').next()?;
    let mut segments = path.strip_prefix('/')?.split('/');
    match (segments.next()?, segments.next()) {
        ("order", None) => order_in(&request[end + 1..]),
        ("order" | "outbox", Some(id)) => {
            let id = percent_decode_str(id).decode_utf8().ok()?;
            OrderId::parse(&id).ok()
        }
        _ => None,
    }
}

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
            Subject::Order(order) => slots::of_order(&self.ring, order),
            Subject::Store(store) => slots::of_store(&self.ring, *store),
            Subject::Statistics => slots::of_statistics(&self.ring),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_request_says_which_order_it_is_about() {
        let of = |request: &[u8]| order_of(request).map(|order| order.to_string());
        assert_eq!(
            of(b"POST /order\n{\"id\":\"17\",\"products\":[]}").as_deref(),
            Some("17")
        );
        assert_eq!(of(b"POST /order/4/payment-callback\n{}").as_deref(), Some("4"));
        assert_eq!(of(b"POST /outbox/5/announce/retry\n").as_deref(), Some("5"));
        assert_eq!(
            of(b"POST /order/shop%3A1/cancel?x=y\n").as_deref(),
            Some("shop:1")
        );
        assert_eq!(of(b"POST /order/shop:1/cancel\n").as_deref(), Some("shop:1"));
        for request in [&b"POST /order\nrubbish"[..], b"POST /stocks\n", b"no line", b""] {
            assert_eq!(of(request), None);
        }
    }
}
