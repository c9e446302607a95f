//! Tests for clients that call owners directly: `GET /ring` and the header `X-Imt-Owner`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use imt_ring::Ring;
use serde::Deserialize;

use crate::common::{Reply, Shop, World, until};
use crate::pair::{Pair, stock};

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

impl RingDocument {
    async fn read(shop: &Shop) -> RingDocument {
        serde_json::from_slice(&shop.get("/ring").await.body).unwrap()
    }

    fn owner_of(&self, key: &str) -> SocketAddr {
        let owner = self.ring.locate(key.as_bytes()).unwrap().owner;
        self.owners[owner.as_str()].address
    }
}

fn named_owner(reply: &Reply) -> Option<SocketAddr> {
    let value = reply.headers.get("x-imt-owner")?;
    Some(value.to_str().unwrap().parse().unwrap())
}

fn tag(reply: &Reply) -> &str {
    reply.headers["etag"].to_str().unwrap()
}

#[tokio::test]
async fn every_node_names_the_owner_that_the_ring_gives() {
    let pair = Pair::start().await;
    assert_eq!(pair.alpha.stocks(&stock(100), None).await.status, 200);
    let document = RingDocument::read(&pair.alpha).await;
    let mut used = BTreeMap::<SocketAddr, u32>::new();
    for number in 0..20 {
        let id = format!("direct-{number}");
        let owner = document.owner_of(&id);
        *used.entry(owner).or_default() += 1;
        let at_owner = Shop::at(owner).order(&id, &[(1, 1)]).await;
        assert_eq!((at_owner.status, named_owner(&at_owner)), (200, Some(owner)));
        for shop in pair.shops() {
            for path in [format!("/order/{id}"), format!("/order/{id}/history")] {
                let reply = shop.get(&path).await;
                assert_eq!((reply.status, named_owner(&reply)), (200, Some(owner)), "{path}");
            }
            let again = shop.order(&id, &[(1, 1)]).await;
            assert_eq!((&again.body, named_owner(&again)), (&at_owner.body, Some(owner)));
            let other = shop.order(&id, &[(1, 2)]).await;
            assert_eq!((other.status, named_owner(&other)), (409, Some(owner)));
            let paid = shop.pay(&id, 7).await;
            assert_eq!((paid.status, named_owner(&paid)), (200, Some(owner)));
        }
    }
    assert_eq!(used.len(), 2, "both nodes own some orders: {used:?}");
    for shop in pair.shops() {
        for (path, key) in [
            ("/stores/5", "store/5"),
            ("/aggregate-stats/1", "statistics/"),
            ("/aggregate-stats?top=2", "statistics/"),
            ("/order/never-placed", "never-placed"),
        ] {
            let owner = document.owner_of(key);
            assert_eq!(named_owner(&shop.get(path).await), Some(owner), "{path}");
        }
        for path in [
            "/orders",
            "/stocks/1",
            "/ring",
            "/health",
            "/nothing",
            "/order/%ff",
        ] {
            assert_eq!(named_owner(&shop.get(path).await), None, "{path}");
        }
    }
    pair.stop().await;
}

#[tokio::test]
async fn the_ring_document_has_a_tag_that_changes_with_the_servers() {
    let pair = Pair::start().await;
    let first = pair.alpha.get("/ring").await;
    until("both nodes to have the same view", async || {
        tag(&pair.beta.get("/ring").await) == tag(&pair.alpha.get("/ring").await)
    })
    .await;
    let current = pair.beta.get("/ring").await;
    assert_eq!(first.status, 200);
    let known = [("if-none-match", tag(&current))];
    for shop in pair.shops() {
        let same = shop.send("GET", "/ring", &known, "").await;
        assert_eq!((same.status, same.body.len()), (304, 0));
        assert_eq!(tag(&same), tag(&current));
        let other = shop.send("GET", "/ring", &[("if-none-match", "\"x\"")], "").await;
        assert_eq!((other.status, &other.body), (200, &current.body));
    }
    // When beta stops, alpha serves both volumes. The ring stays unchanged, but the tag must
    // change, because the document contains the address of each volume's server.
    let before = RingDocument::read(&pair.alpha).await;
    pair.beta_node.stop().await;
    until("alpha to serve both volumes", async || {
        let document = RingDocument::read(&pair.alpha).await;
        document.owners.len() == 2 && document.owners["alpha"].address == document.owners["beta"].address
    })
    .await;
    let after = pair.alpha.send("GET", "/ring", &known, "").await;
    assert_eq!(after.status, 200);
    assert_ne!(tag(&after), tag(&current));
    assert_eq!(RingDocument::read(&pair.alpha).await.ring, before.ring);
}

#[tokio::test]
async fn a_node_alone_names_no_owner_and_serves_its_ring() {
    let world = World::start().await;
    let reply = world.shop.get("/order/17").await;
    assert_eq!((reply.status, named_owner(&reply)), (404, None));
    let document = RingDocument::read(&world.shop).await;
    let owner = document.owner_of("17");
    assert_eq!(Shop::at(owner).get("/order/17").await.status, 404);
    world.node.stop().await.unwrap();
}
