//! `GET /ring`: the ring and the addresses of the owners, for clients that send requests directly
//! to the owners.
//!
//! The document is the ring in the JSON form of `imt-ring`, with an additional member `owners`. A
//! client finds the volume of a key in the ring, and the address of the node that serves the volume
//! in `owners`.
//!
//! **Invariants**
//! - Document and `ETag` are built from one topology. Nodes with equal topologies return equal
//!   documents and tags.
//! - The tag changes whenever the document changes, also if only the node that serves a volume
//!   changes.
//!
//! Nodes that serve no volume and moves that are not committed are not part of the document.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use imt_ring::{NodeName, Ring};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::api::orders;
use crate::control::topology::Topology;

/// The node that serves a volume.
#[derive(Serialize)]
struct Owner<'a> {
    node: &'a NodeName,
    address: SocketAddr,
}

/// The body of the response to `GET /ring`.
#[derive(Serialize)]
struct RingDocument<'a> {
    #[serde(flatten)]
    ring: &'a Ring,
    /// The node that is assigned to serve each volume. A volume is left out if no node is assigned,
    /// or if the address of its node is not known.
    owners: BTreeMap<&'a NodeName, Owner<'a>>,
}

/// Returns the ring document, or 304 if `If-None-Match` names its current tag or `*`.
pub(crate) fn answer(topology: &Topology, headers: &HeaderMap) -> Response {
    let owners = owners(topology);
    let tag = tag(&topology.ring, &owners);
    let mut response = if is_known(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        orders::json(&RingDocument {
            ring: &topology.ring,
            owners,
        })
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(ETAG, tag);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn owners(topology: &Topology) -> BTreeMap<&NodeName, Owner<'_>> {
    let owner = |volume| {
        let (node, address) = topology.server_of(volume)?;
        Some((volume, Owner { node, address }))
    };
    topology.volumes().filter_map(owner).collect()
}

/// Returns the `ETag` of a document. The tag is weak, because compressed and uncompressed responses
/// share it.
fn tag(ring: &Ring, owners: &BTreeMap<&NodeName, Owner<'_>>) -> String {
    let mut hash = Xxh3::new();
    hash.update(&ring.digest().0.to_le_bytes());
    for (volume, owner) in owners {
        // Names contain no spaces, so different owners give different texts to be hashed.
        let line = format!("{volume} {} {}\n", owner.node, owner.address);
        hash.update(line.as_bytes());
    }
    format!("W/\"{}-{:016x}\"", ring.epoch(), hash.digest())
}

/// Returns `true` if `If-None-Match` contains the tag or `*`, by the weak comparison of RFC 9110.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let given = headers.get_all(IF_NONE_MATCH).iter();
    let mut given = given
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    let opaque = tag.trim_start_matches("W/");
    given.any(|known| known == "*" || known.trim_start_matches("W/") == opaque)
}

#[cfg(test)]
mod tests {
    use imt_ring::{Member, Options};
    use serde::Deserialize;

    use super::*;
    use crate::cluster::{ClusterState, NodeInfo};

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    /// Returns a topology with the volumes `ada` and `bob`, served by the named nodes.
    fn topology(servers: [&str; 2]) -> Topology {
        let members = ["ada", "bob"].map(|name| Member::new(name).unwrap());
        let mut state = ClusterState::of_ring(Ring::bootstrap(members, Options::new()).unwrap());
        state.serving = [name("ada"), name("bob")]
            .into_iter()
            .zip(servers.map(name))
            .collect();
        let node_infos = ["ada", "bob"].into_iter().zip(1u16..);
        let node_infos = node_infos.map(|(node, number)| NodeInfo {
            name: name(node),
            address: SocketAddr::from(([127, 0, 0, 1], 9_000 + number)),
            process: 1,
            started_at_ms: 0,
            weight: 1,
            zone: None,
        });
        let ring = std::sync::Arc::new(state.ring.clone());
        Topology::new(name("ada"), state, ring, BTreeMap::new(), node_infos.collect())
    }

    fn with_tag(tag: &str) -> HeaderMap {
        HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::try_from(tag).unwrap())])
    }

    /// The ring document in the form in which a client reads it (`docs/clients.md`).
    #[derive(Deserialize)]
    struct Known {
        #[serde(flatten)]
        ring: Ring,
        owners: BTreeMap<String, KnownOwner>,
    }

    #[derive(Deserialize)]
    struct KnownOwner {
        address: SocketAddr,
    }

    #[tokio::test]
    async fn a_client_finds_the_address_of_every_order_with_the_ring_library() {
        let topology = topology(["ada", "bob"]);
        let response = answer(&topology, &HeaderMap::new());
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        let known: Known = serde_json::from_slice(&body).unwrap();
        assert_eq!(known.ring, *topology.ring);
        for order in ["1", "17", "shop:5"] {
            let location = known.ring.locate(order.as_bytes()).unwrap();
            let volume = topology.ring.locate(order.as_bytes()).unwrap().owner;
            let (_, address) = topology.server_of(volume).unwrap();
            assert_eq!(known.owners[location.owner.as_str()].address, address);
        }
    }

    #[test]
    fn the_tag_is_that_of_the_view_and_a_new_server_changes_it() {
        let tag_of = |servers| {
            let topology = topology(servers);
            let response = answer(&topology, &HeaderMap::new());
            response.headers()[ETAG].to_str().unwrap().to_owned()
        };
        let tag = tag_of(["ada", "bob"]);
        assert_eq!(tag, tag_of(["ada", "bob"]));
        let after_a_death = tag_of(["ada", "ada"]);
        assert_ne!(tag, after_a_death);
        let strong = tag.trim_start_matches("W/").to_owned();
        for (given, status) in [
            (tag.clone(), StatusCode::NOT_MODIFIED),
            (strong, StatusCode::NOT_MODIFIED),
            (format!("\"other\", {tag}"), StatusCode::NOT_MODIFIED),
            ("*".to_owned(), StatusCode::NOT_MODIFIED),
            (after_a_death, StatusCode::OK),
            ("\"other\"".to_owned(), StatusCode::OK),
        ] {
            let response = answer(&topology(["ada", "bob"]), &with_tag(&given));
            assert_eq!(response.status(), status, "{given}");
            assert_eq!(response.headers()[ETAG].to_str().unwrap(), tag, "{given}");
        }
    }
}
