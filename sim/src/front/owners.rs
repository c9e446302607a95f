//! Sends each request to the node that owns its order or the statistics (the owner), as
//! `docs/clients.md` advises clients to do.
//!
//! The routes are the ring and the addresses of the owners, from `GET /ring`. The crate `imt-ring`
//! finds the owner of a key. The entry node is the node at the address `FrontConfig::oms`.
//!
//! Invariants:
//! - The routes are read again if an answer names an owner other than the called node, or if the
//!   connection is refused or closed. At most one read is in progress.
//! - If the connection is refused or closed, the request is sent once more, to another node, if one
//!   is known. This is safe, because all requests are idempotent. A request that timed out is not
//!   sent again, because its customer has waited long enough.
//! - If the routes have no owner for a key, the request goes to the entry node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use imt_ring::Ring;
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::client::{Answer, Client, Endpoint, Failure, FailureKind};
use crate::wire::RingDocument;
use crate::workload::Request;
use crate::{Error, Result};

/// Maximum time to read the routes again from one node. Afterwards the next node is tried.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Key of the statistics, as in `docs/clients.md`. The owner of its slot in the ring answers
/// requests for statistics.
const STATISTICS: &[u8] = b"statistics/";

/// Counts of a run that sends each request to the owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RoutingCounts {
    /// Number of requests with an answer from the first called node that named no other node as the
    /// owner.
    pub direct: u64,
    /// Number of requests with an answer from the first called node that named another node as the
    /// owner, for example because the owner had changed.
    pub forwarded: u64,
    /// Number of requests that were sent once more, to another node, because the first connection
    /// was refused or closed.
    pub resent: u64,
    /// Number of successful reads of the routes, the first read included.
    pub reads: u64,
}

#[derive(Default)]
struct Counters {
    direct: AtomicU64,
    forwarded: AtomicU64,
    resent: AtomicU64,
    reads: AtomicU64,
}

/// The routes as read at one time: the ring and the addresses of the owners.
struct Routes {
    ring: Ring,
    /// Client of the node that serves each volume, by the volume's name.
    owners: BTreeMap<String, Client>,
    tag: Option<String>,
}

impl Routes {
    fn owner_of(&self, key: &[u8]) -> Option<&Client> {
        let location = self.ring.locate(key).ok()?;
        self.owners.get(location.owner.as_str())
    }
}

struct State {
    routes: Routes,
    /// Number of times that the routes were read again with success, changed or not.
    generation: u64,
}

/// Client that sends each request to the node that owns its order or the statistics.
pub(super) struct Owners {
    entry: Client,
    state: RwLock<State>,
    reading: Mutex<()>,
    counters: Counters,
}

impl Owners {
    /// Reads the routes from the entry node.
    ///
    /// # Errors
    /// If the entry node does not answer, if the status of its answer to `GET /ring` is not 200, or
    /// if the body of that answer is not a [`RingDocument`] with valid addresses of the owners.
    pub(super) async fn read(entry: Client) -> Result<Arc<Owners>> {
        let Some(routes) = read_routes(&entry, None).await? else {
            return Err(Error::Answer {
                route: format!("GET {}/ring", entry.endpoint()),
                problem: "304 to a request without a tag".to_owned(),
            });
        };
        let owners = Owners {
            entry,
            state: RwLock::new(State {
                routes,
                generation: 0,
            }),
            reading: Mutex::default(),
            counters: Counters::default(),
        };
        owners.counters.reads.store(1, Ordering::Relaxed);
        Ok(Arc::new(owners))
    }

    /// Returns the current counts.
    pub(super) fn counts(&self) -> RoutingCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RoutingCounts {
            direct: load(&self.counters.direct),
            forwarded: load(&self.counters.forwarded),
            resent: load(&self.counters.resent),
            reads: load(&self.counters.reads),
        }
    }

    /// Sends a request to its owner. If the owner refuses or closes the connection, reads the
    /// routes again and sends the request to another node, if one is known.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        request: &Request,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, Failure> {
        let key = key_of(request);
        let (owner, generation) = self.owner_of(&key);
        let failure = match owner.exchange(path, body.clone()).await {
            Ok(answer) => {
                self.note_owner(&owner, &answer, generation);
                return Ok(answer);
            }
            Err(failure) => failure,
        };
        if !matches!(failure.kind, FailureKind::Refused | FailureKind::Closed) {
            return Err(failure);
        }
        self.read_again(self.others(&owner), generation).await;
        let Some(other) = self.owner_other_than(&key, &owner) else {
            return Err(failure);
        };
        self.counters.resent.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(from = %owner.endpoint(), to = %other.endpoint(), %failure, "request sent again");
        other.exchange(path, body).await
    }

    fn state(&self) -> parking_lot::RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// Returns the owner of a key and [`State::generation`]. If the routes have no owner, returns
    /// the entry node.
    fn owner_of(&self, key: &[u8]) -> (Client, u64) {
        let state = self.state();
        let owner = state.routes.owner_of(key).unwrap_or(&self.entry);
        (owner.clone(), state.generation)
    }

    /// Returns a node other than `away`: preferably the owner of the key, otherwise the entry node,
    /// otherwise any known node. Returns `None` if no other node is known.
    fn owner_other_than(&self, key: &[u8], away: &Client) -> Option<Client> {
        let state = self.state();
        let owner = state.routes.owner_of(key).into_iter();
        let candidates = owner.chain([&self.entry]).chain(state.routes.owners.values());
        let mut others = candidates.filter(|client| client.endpoint() != away.endpoint());
        others.next().cloned()
    }

    /// Returns every known node except for `away`. Each node appears once, and the entry node, if
    /// it is included, is the first.
    fn others(&self, away: &Client) -> Vec<Client> {
        let state = self.state();
        let mut others: Vec<Client> = Vec::new();
        for client in [&self.entry].into_iter().chain(state.routes.owners.values()) {
            let is_known = |known: &Client| known.endpoint() == client.endpoint();
            if !is_known(away) && !others.iter().any(is_known) {
                others.push(client.clone());
            }
        }
        others
    }

    /// Compares the owner in the header of an answer with the called node, and counts the request
    /// as direct or forwarded. If the two differ, a task reads the routes again from the named
    /// owner.
    fn note_owner(self: &Arc<Self>, called: &Client, answer: &Answer, generation: u64) {
        let Some(owner) = answer.owner().filter(|owner| owner != called.endpoint()) else {
            self.counters.direct.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
        let (owners, named) = (Arc::clone(self), self.entry.at(owner));
        tokio::spawn(async move { owners.read_again(vec![named], generation).await });
    }

    /// Reads the routes from the first of these nodes that returns them in time. If none does, the
    /// present routes stay. Does nothing if another task has read the routes since
    /// [`State::generation`] was `generation`.
    async fn read_again(&self, nodes: Vec<Client>, generation: u64) {
        let _turn = self.reading.lock().await;
        if self.state().generation != generation {
            return;
        }
        let tag = self.state().routes.tag.clone();
        for node in nodes {
            let reading = tokio::time::timeout(READ_TIMEOUT, read_routes(&node, tag.as_deref()));
            match reading.await {
                Ok(Ok(routes)) => {
                    self.counters.reads.fetch_add(1, Ordering::Relaxed);
                    let mut state = self.state.write();
                    state.generation += 1;
                    if let Some(routes) = routes {
                        state.routes = routes;
                    }
                    return;
                }
                Ok(Err(error)) => tracing::debug!(node = %node.endpoint(), %error, "routes cannot be read"),
                Err(_) => tracing::debug!(node = %node.endpoint(), "routes not read in time"),
            }
        }
    }
}

/// Reads the routes from a node; `None` if they have not changed since the entity tag `tag`.
async fn read_routes(node: &Client, tag: Option<&str>) -> Result<Option<Routes>> {
    let Some((document, tag)) = node.get_unless::<RingDocument>("/ring", tag).await? else {
        return Ok(None);
    };
    let mut owners = BTreeMap::new();
    for (volume, owner) in document.owners {
        let endpoint: Endpoint = format!("http://{}", owner.address).parse()?;
        owners.insert(volume, node.at(endpoint));
    }
    Ok(Some(Routes {
        ring: document.ring,
        owners,
        tag,
    }))
}

/// Returns the key that locates the owner of a request in the ring.
fn key_of(request: &Request) -> Vec<u8> {
    match request {
        Request::Stats { .. } => STATISTICS.to_vec(),
        Request::Order(order) => order.id.to_string().into_bytes(),
        Request::Payment { order, .. } | Request::Cancel { order } => order.to_string().into_bytes(),
    }
}

#[cfg(test)]
#[path = "owners_tests.rs"]
mod tests;
