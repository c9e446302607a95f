//! This node's view of the cluster at one moment: the cluster's state, the volumes that this node
//! serves, and the addresses of the other nodes.
//!
//! **Invariants**
//! - A topology never changes. `handle` publishes a new topology instead.
//! - Each try to execute a request uses one topology from its beginning to its end.
//!
//! Deliberately absent: calls to volumes (`errand`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::HeaderValue;
use imt_ring::{NodeName, Ring};

use crate::cluster::{ClusterState, NodeInfo};
use crate::domain::routing_key::RoutingKey;
use crate::storage::owned_slots;
use crate::volume::server::VolumeServer;

/// The place where a volume is served, as this node sees it.
pub(crate) enum VolumeLocation<'a> {
    Here(&'a Arc<VolumeServer>),
    There {
        node: &'a NodeName,
        address: SocketAddr,
    },
    /// The volume cannot be reached: no node is assigned to it, the address of the assigned node is
    /// unknown, or this node is assigned and does not have the volume open. Contains the assigned
    /// node.
    Nowhere(Option<&'a NodeName>),
}

/// The cluster as this node sees it.
pub(crate) struct Topology {
    pub(crate) me: NodeName,
    pub(crate) state: ClusterState,
    pub(crate) ring: Arc<Ring>,
    pub(crate) servers: BTreeMap<NodeName, Arc<VolumeServer>>,
    pub(crate) node_infos: BTreeMap<NodeName, NodeInfo>,
    /// The server of the cluster's only volume. `None` if the cluster has several volumes, a
    /// migration is under way, or this node does not serve the volume.
    pub(crate) alone: Option<Arc<VolumeServer>>,
    /// Address of the node to which each volume of the ring is assigned, as a header value that is
    /// rendered once for all responses. Volumes without a known address are absent.
    addresses: BTreeMap<NodeName, HeaderValue>,
}

impl Topology {
    /// Builds a topology from its parts.
    pub(crate) fn new(
        me: NodeName,
        state: ClusterState,
        ring: Arc<Ring>,
        servers: BTreeMap<NodeName, Arc<VolumeServer>>,
        node_infos: Vec<NodeInfo>,
    ) -> Topology {
        let is_alone = state.serving.len() == 1 && ring.members().len() == 1 && state.moving.is_none();
        let only = ring.members().first().filter(|_| is_alone);
        let alone = only.and_then(|member| servers.get(member.name())).cloned();
        let mut topology = Topology {
            me,
            ring,
            alone,
            servers,
            node_infos: node_infos
                .into_iter()
                .map(|node_info| (node_info.name.clone(), node_info))
                .collect(),
            state,
            addresses: BTreeMap::new(),
        };
        let rendered = |volume: &NodeName| {
            let (_, address) = topology.server_of(volume)?;
            Some((volume.clone(), HeaderValue::try_from(address.to_string()).ok()?))
        };
        topology.addresses = topology.volumes().filter_map(rendered).collect();
        topology
    }

    /// Returns `true` if the other topology of this node has the same state, addresses and servers.
    pub(crate) fn is_same(&self, other: &Topology) -> bool {
        let mut servers = self.servers.iter().zip(&other.servers);
        self.servers.len() == other.servers.len()
            && servers
                .all(|((volume, server), (other, theirs))| volume == other && Arc::ptr_eq(server, theirs))
            && Arc::ptr_eq(&self.ring, &other.ring)
            && self.state == other.state
            && self.node_infos == other.node_infos
    }

    /// Returns the node to which a volume is assigned, and the node's address. `None` if no node
    /// with a known address is assigned.
    pub(crate) fn server_of(&self, volume: &NodeName) -> Option<(&NodeName, SocketAddr)> {
        let node = self.state.serving.get(volume)?;
        let node_info = self.node_infos.get(node)?;
        Some((node, node_info.address))
    }

    /// Returns the address of the node to which a volume is assigned, as the value of the header
    /// `X-Imt-Owner`. `None` if the address is unknown or the volume is no member of the ring.
    pub(crate) fn owner_header(&self, volume: &NodeName) -> Option<&HeaderValue> {
        self.addresses.get(volume)
    }

    /// Returns the volume that owns the slot of a key. `None` if the ring has no owner of the slot.
    pub(crate) fn volume_of(&self, key: &RoutingKey) -> Option<NodeName> {
        let slot = match key {
            RoutingKey::Order(order) => owned_slots::of_order(&self.ring, order),
            RoutingKey::Store(store) => owned_slots::of_store(&self.ring, *store),
            RoutingKey::Statistics => owned_slots::of_statistics(&self.ring),
        };
        self.ring.owner(slot).ok().cloned()
    }

    /// Returns the names of the volumes that are members of the ring.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = &NodeName> {
        self.ring.members().iter().map(imt_ring::Member::name)
    }

    /// Returns the volumes that are assigned to this node, including those that are not open.
    pub(crate) fn to_serve(&self) -> impl Iterator<Item = &NodeName> {
        let serving = self.state.serving.iter();
        serving
            .filter(|(_, node)| **node == self.me)
            .map(|(volume, _)| volume)
    }

    /// Returns the name of the volume if the volume is still a member of the ring, or else `None`.
    pub(crate) fn known(&self, volume: &NodeName) -> Option<NodeName> {
        self.ring.member(volume).map(|member| member.name().clone())
    }

    /// Returns the place where a volume is served.
    pub(crate) fn locate(&self, volume: &NodeName) -> VolumeLocation<'_> {
        if let Some(server) = self.servers.get(volume) {
            return VolumeLocation::Here(server);
        }
        match self.state.serving.get(volume) {
            Some(node) if *node != self.me => match self.node_infos.get(node) {
                Some(node_info) => VolumeLocation::There {
                    node,
                    address: node_info.address,
                },
                None => VolumeLocation::Nowhere(Some(node)),
            },
            other => VolumeLocation::Nowhere(other),
        }
    }
}
