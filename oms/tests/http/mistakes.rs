//! The ten mistakes of the original system, which IMT Order replaces. For each of them, a test
//! shows that IMT Order does not make it.

use serde_json::json;

use crate::common::{Mood, World, config, until};

/// Mistakes 1, 2 and 10 of the original system. Each node had one point on a circle of 360 points,
/// so the shares of the nodes were uneven. Orders were lost with each change of nodes. Only one
/// node served the API and the ring. In IMT Order, the ring assigns exact shares of the slots, and
/// each node serves the API and the ring. When the node of an order changes, the order's volume is
/// handed over or the order's slot is migrated.
#[tokio::test]
async fn the_ring_assigns_every_slot_to_a_node() {
    let world = World::start().await;
    let health = world.shop.get("/health").await.json();
    assert_eq!(health["slots"], 16_384);
    assert_eq!(health["ring"]["members"], json!({ "test": 16_384 }));
    assert_eq!(world.shop.get("/ring").await.status, 200);
}

/// Mistake 2 of the original system (lost orders), for a single node: a payment after a restart
/// still finds its order.
#[tokio::test]
async fn a_payment_finds_its_order_after_a_restart() {
    let world = World::start().await;
    world.shop.stocks("1,1,5\n", None).await;
    let first = world.shop.order("a", &[(1, 1)]).await;
    world.node.stop().await.unwrap();
    let node = imt_oms::Node::start(config(world.data.path(), &world.warehouse.url()))
        .await
        .unwrap();
    let shop = crate::common::Shop::at(node.address());
    assert_eq!(shop.pay("a", 1).await.status, 200);
    assert_eq!(shop.order("a", &[(1, 1)]).await.body, first.body);
    shop.until("a", "delivered").await;
    node.stop().await.unwrap();
}

/// Mistake 3 of the original system: stock was read but never reserved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_unit_is_never_sold_twice() {
    let world = World::start().await;
    world.shop.stocks("1,1,3\n1,2,4\n", None).await;
    let mut orders = tokio::task::JoinSet::new();
    for number in 0..40 {
        let shop = world.shop.clone();
        orders.spawn(async move {
            let id = format!("o{number}");
            let status = shop.order(&id, &[(1, 1)]).await.status;
            (id, status)
        });
    }
    let mut taken = Vec::new();
    while let Some(order) = orders.join_next().await {
        let (id, status) = order.unwrap();
        assert!(status == 200 || status == 409, "{status}");
        if status == 200 {
            taken.push(id);
        }
    }
    assert_eq!(taken.len(), 7);
    // A snapshot that still includes the sold units does not make them available again.
    world.shop.stocks("1,1,3\n1,2,4\n", Some(0)).await;
    assert_eq!(world.shop.order("late", &[(1, 1)]).await.status, 409);
    // Released units can be sold again, once.
    let cancelled = world
        .shop
        .send("POST", &format!("/order/{}/cancel", taken[0]), &[], "")
        .await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(world.shop.order("next", &[(1, 1)]).await.status, 200);
    assert_eq!(world.shop.order("after", &[(1, 1)]).await.status, 409);
}

/// Mistake 4 of the original system: an order was answered only after the warehouse had answered,
/// and a failure of the warehouse was ignored.
#[tokio::test]
async fn an_order_does_not_wait_for_the_warehouse_and_a_504_is_retried() {
    let world = World::start().await;
    world.warehouse.mood.send(Mood::TimesOut).unwrap();
    world.shop.stocks("1,1,5\n", None).await;
    assert_eq!(world.shop.order("a", &[(1, 1)]).await.status, 200);
    until("some attempts", async || {
        world.warehouse.seen.lock().unwrap().calls > 3
    })
    .await;
    assert_eq!(world.shop.state("a").await, "reserved");
    world.warehouse.mood.send(Mood::ActsAndTimesOut).unwrap();
    until("the warehouse to act", async || {
        !world.warehouse.seen.lock().unwrap().announced.is_empty()
    })
    .await;
    assert_eq!(
        world.shop.state("a").await,
        "reserved",
        "an action without an answer does not count"
    );
    world.warehouse.mood.send(Mood::Good).unwrap();
    world.shop.until("a", "announced").await;
    let keys = world.warehouse.seen.lock().unwrap().keys.clone();
    assert!(
        keys.iter().all(|key| key == "a/announce"),
        "every attempt has the same idempotency key"
    );
}

/// Mistake 4 of the original system (an order waited for the warehouse), with a warehouse that
/// cannot be reached at all.
#[tokio::test]
async fn orders_are_taken_during_an_outage_of_the_warehouse_and_delivered_after_it() {
    let world = World::start().await;
    world.shop.stocks("1,1,1000\n", None).await;
    let address = world.warehouse.address;
    drop(world.warehouse);
    for number in 0..100 {
        let id = format!("o{number}");
        assert_eq!(world.shop.order(&id, &[(1, 1)]).await.status, 200);
        assert_eq!(world.shop.pay(&id, number).await.status, 200);
    }
    until("the breaker to open", async || {
        world.shop.get("/health").await.json()["warehouse"] == "away"
    })
    .await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let back = crate::common::Warehouse::on(listener);
    for number in 0..100 {
        world.shop.until(&format!("o{number}"), "delivered").await;
    }
    assert_eq!(back.seen.lock().unwrap().delivered.len(), 100);
}

/// Mistake 5 of the original system: an order or payment sent twice was an error or was executed
/// twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_order_or_payment_is_executed_once() {
    let world = World::start().await;
    world.shop.stocks("1,1,100\n", None).await;
    let mut sends = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let shop = world.shop.clone();
        sends.spawn(async move {
            let order = shop.order("a", &[(1, 1)]).await;
            let paid = shop.pay("a", 5).await;
            (order.status, order.body, paid.status, paid.body)
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = sends.join_next().await {
        answers.push(answer.unwrap());
    }
    assert!(
        answers
            .iter()
            .all(|answer| *answer == answers[0] && answer.0 == 200 && answer.2 == 200)
    );
    world.shop.until("a", "delivered").await;
    let stock = world.shop.get("/stocks/1").await.json();
    assert_eq!(
        (&stock["stores"][0]["on_hand"], &stock["stores"][0]["reserved"]),
        (&json!(99), &json!(0))
    );
    assert_eq!(world.warehouse.deliveries_of("a"), 1);
}

/// Mistake 6 of the original system: a crash lost the state of a transactor (actor). The module
/// `restart` tests a crash by SIGKILL. This test stops the node in an orderly way, at several
/// points of an order's life.
#[tokio::test]
async fn a_stop_at_any_point_of_an_order_loses_nothing() {
    let mut world = World::start().await;
    world.shop.stocks("1,1,100\n", None).await;
    let mut expected = Vec::new();
    for round in 0..6u64 {
        let id = format!("o{round}");
        world.shop.order(&id, &[(1, 1)]).await;
        if round % 3 > 0 {
            world.shop.pay(&id, round).await;
        }
        if round % 3 > 1 {
            world.shop.until(&id, "delivered").await;
        }
        expected.push(id);
        world.node.stop().await.unwrap();
        world.node = imt_oms::Node::start(config(world.data.path(), &world.warehouse.url()))
            .await
            .unwrap();
        world.shop = crate::common::Shop::at(world.node.address());
        for (at, id) in expected.iter().enumerate() {
            let state = if at % 3 > 0 { "delivered" } else { "announced" };
            world.shop.until(id, state).await;
        }
    }
    let stock = world.shop.get("/stocks/1").await.json();
    assert_eq!(
        (&stock["stores"][0]["on_hand"], &stock["stores"][0]["reserved"]),
        (&json!(96), &json!(2))
    );
}

/// Mistake 7 of the original system: a malformed line, id or body crashed the request (500).
#[tokio::test]
async fn malformed_bodies_are_answered_with_400() {
    let world = World::start().await;
    let bodies: [&[u8]; 8] = [
        b"",
        b"{",
        b"null",
        b"[1]",
        b"\xff\xfe",
        b"{\"id\":{}}",
        b"{\"id\":\"1\",\"products\":\"x\"}",
        &[b'['; 5_000],
    ];
    for body in bodies {
        for path in ["/order", "/order/1/payment-callback"] {
            let reply = world.shop.send("POST", path, &[], body.to_vec()).await;
            assert_eq!(
                (reply.status, &reply.json()["status"]),
                (400, &json!(400)),
                "{path} {body:?}"
            );
        }
        let reply = world.shop.send("PUT", "/stocks", &[], body.to_vec()).await;
        assert_eq!(reply.status, 400, "{body:?}");
    }
    assert_eq!(world.shop.get("/health").await.status, 200);
}

/// Mistake 8 of the original system: an order that no store could fill was stored without a store
/// and sent to the warehouse.
#[tokio::test]
async fn an_order_without_a_store_never_reaches_the_warehouse() {
    let world = World::start().await;
    world.shop.stocks("1,1,1\n", None).await;
    assert_eq!(world.shop.order("none", &[(2, 1)]).await.status, 409);
    assert_eq!(world.shop.order("some", &[(1, 1)]).await.status, 200);
    world.shop.until("some", "announced").await;
    assert_eq!(world.warehouse.seen.lock().unwrap().keys, ["some/announce"]);
}

/// Mistake 9 of the original system: a statistics file was counted twice or lost if the process
/// died between adding the file to the sums and deleting the file.
#[tokio::test]
async fn a_statistics_file_counts_once_after_a_crash_at_any_point() {
    let mut world = World::start().await;
    let file = world.data.path().join("stat_000001700000000.csv");
    let mut sold = 0;
    for _ in 0..3 {
        // In the first round the file is new. In later rounds the file was added before, and only
        // its deletion is missing. The node finds the file when it starts.
        world.node.stop().await.unwrap();
        std::fs::write(&file, "812,2,10\n").unwrap();
        world.node = imt_oms::Node::start(config(world.data.path(), &world.warehouse.url()))
            .await
            .unwrap();
        world.shop = crate::common::Shop::at(world.node.address());
        until("the file to be gone", async || !file.exists()).await;
        sold = world.shop.get("/aggregate-stats/812").await.json()["total_qty"]
            .as_u64()
            .unwrap();
    }
    assert_eq!(sold, 2);
}
