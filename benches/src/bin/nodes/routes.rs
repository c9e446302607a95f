//! Reads the owners of orders and statistics from a node, as direct clients do.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use imt_benches::Outcome;
use imt_ring::{Member, Ring};
use serde::Deserialize;

use crate::load::Owners;

/// The response to `GET /ring`.
#[derive(Deserialize)]
struct RingDocument {
    #[serde(flatten)]
    ring: Ring,
    owners: BTreeMap<String, Owner>,
}

#[derive(Deserialize)]
struct Owner {
    address: SocketAddr,
}

/// Reads the ring and the addresses of its members from a node. Fails if a member is served by no
/// node.
pub(crate) fn read(node: SocketAddr) -> Outcome<Owners> {
    let mut stream = TcpStream::connect(node)?;
    stream.write_all(b"GET /ring HTTP/1.1\r\nhost: imt\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("GET /ring has no answer")?;
    let document: RingDocument =
        serde_json::from_str(body).map_err(|error| format!("GET /ring of {node}: {error}"))?;
    let address = |member: &Member| {
        let owner = document.owners.get(member.name().as_str());
        let owner = owner.ok_or_else(|| format!("nobody serves {}", member.name()))?;
        Ok(owner.address)
    };
    let addresses: Result<Vec<SocketAddr>, String> = document.ring.members().iter().map(address).collect();
    Ok(Owners {
        addresses: addresses?,
        ring: document.ring,
    })
}
