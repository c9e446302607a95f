//! Which volume a request is for, and where that volume is: here, on another node, or not known yet.
//!
//! A view is one moment of the cluster as this node sees it: the state in force, the posts that it serves itself, where the other
//! nodes answer. Requests hold the view that they were routed by until they end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::Method;
use imt_ring::{NodeName, Ring};
use serde::Deserialize;

use crate::cluster::{Card, ClusterState};
use crate::order::OrderId;
use crate::post::Post;
use crate::slots;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The order that the body names.
    OrderInBody,
    /// An order.
    Order(OrderId),
    /// A store.
    Store(u32),
    /// The statistics.
    Statistics,
    /// All stores: their stock is replaced or changed.
    AllStores,
    /// A list over all volumes.
    List(List),
    /// The ring.
    Ring,
    /// Nothing that has a place: any post may answer.
    Nothing,
}

/// Lists that are put together from those of all volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    Orders,
    Reservations,
    Outbox,
    Health,
    Product,
}

impl Subject {
    /// What a request is about, by its method and path. Faults are left to the route that names them.
    pub(crate) fn of(method: &Method, path: &str) -> Subject {
        let mut parts = path.trim_start_matches('/').split('/');
        let (first, second) = (parts.next().unwrap_or(""), parts.next());
        let order = |id: &str| OrderId::parse(id).map_or(Subject::Nothing, Subject::Order);
        match (first, second) {
            ("order", None) if method == Method::POST => Subject::OrderInBody,
            ("order", Some(id)) => order(id),
            ("outbox", Some(id)) => order(id),
            ("stores", Some(store)) => store.parse().map_or(Subject::Nothing, Subject::Store),
            ("aggregate-stats", _) => Subject::Statistics,
            ("stocks", None) if matches!(*method, Method::PUT | Method::PATCH) => Subject::AllStores,
            ("orders", None) => Subject::List(List::Orders),
            ("reservations", None) => Subject::List(List::Reservations),
            ("outbox", None) => Subject::List(List::Outbox),
            ("health", None) => Subject::List(List::Health),
            ("stocks", Some(_)) => Subject::List(List::Product),
            ("ring", None) if method == Method::GET => Subject::Ring,
            _ => Subject::Nothing,
        }
    }
}

/// The only part of an order's body that says where it belongs.
#[derive(Deserialize)]
struct OnlyId<'a> {
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
}

/// The order that a body names, if it names one.
pub(crate) fn order_in(body: &[u8]) -> Option<OrderId> {
    let only: OnlyId<'_> = serde_json::from_slice(body).ok()?;
    OrderId::parse(&only.id).ok()
}

/// The order that a request is about, kept as method, path and body (`rows::KeptAnswer`).
pub(crate) fn order_of(request: &[u8]) -> Option<OrderId> {
    let end = request.iter().position(|byte| *byte == b'\n')?;
    let (method, path) = std::str::from_utf8(&request[..end]).ok()?.split_once(' ')?;
    match Subject::of(&method.parse().ok()?, path) {
        Subject::Order(order) => Some(order),
        Subject::OrderInBody => order_in(&request[end + 1..]),
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

    /// The volume of a subject that has one.
    pub(crate) fn volume_of(&self, subject: &Subject) -> Option<NodeName> {
        let slot = match subject {
            Subject::Order(order) => slots::of_order(&self.ring, order),
            Subject::Store(store) => slots::of_store(&self.ring, *store),
            Subject::Statistics => slots::of_statistics(&self.ring),
            _ => {
                return self
                    .posts
                    .keys()
                    .next()
                    .or_else(|| self.volumes().next())
                    .cloned();
            }
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
    fn every_route_is_about_what_it_names() {
        let order = |id: &str| Subject::Order(OrderId::parse(id).unwrap());
        for (method, path, subject) in [
            (Method::POST, "/order", Subject::OrderInBody),
            (Method::GET, "/order", Subject::Nothing),
            (Method::GET, "/order/17", order("17")),
            (Method::POST, "/order/17/payment-callback", order("17")),
            (Method::POST, "/outbox/17/announce/retry", order("17")),
            (Method::GET, "/order/a b", Subject::Nothing),
            (Method::GET, "/stores/4", Subject::Store(4)),
            (Method::GET, "/stocks/4", Subject::List(List::Product)),
            (Method::PUT, "/stocks", Subject::AllStores),
            (Method::GET, "/aggregate-stats/5", Subject::Statistics),
            (Method::GET, "/health", Subject::List(List::Health)),
            (Method::GET, "/health/live", Subject::Nothing),
            (Method::GET, "/metrics", Subject::Nothing),
        ] {
            assert_eq!(Subject::of(&method, path), subject, "{method} {path}");
        }
    }

    #[test]
    fn a_kept_request_says_which_order_it_is_about() {
        let of = |request: &[u8]| order_of(request).map(|order| order.to_string());
        assert_eq!(
            of(b"POST /order\n{\"id\":\"17\",\"products\":[]}").as_deref(),
            Some("17")
        );
        assert_eq!(of(b"POST /order/4/payment-callback\n{}").as_deref(), Some("4"));
        assert_eq!(of(b"POST /outbox/5/announce/retry\n").as_deref(), Some("5"));
        for request in [&b"POST /order\nrubbish"[..], b"POST /stocks\n", b"no line", b""] {
            assert_eq!(of(request), None);
        }
    }
}
