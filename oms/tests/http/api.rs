//! Tests of the routes over real HTTP, with bodies as in the system that IMT Order replaces. They
//! place, pay, cancel and list orders, repeat requests, upload stock, add statistics files, retry
//! dead letters and read probes. Some requests are rejected, and some orders expire.

use crate::common::{Mood, World, until};
use serde_json::json;

#[tokio::test]
async fn an_order_runs_from_stock_to_delivery() {
    let world = World::start().await;
    let shop = &world.shop;
    let taken = shop.stocks("812,4,5\n812,5,5\n44,5,1\n44,4,0\n", None).await;
    assert_eq!(
        (taken.status, taken.json()),
        (200, json!({ "lines": 4, "stores": 2, "applied": true }))
    );

    let first = shop.order("17", &[(812, 3), (44, 1)]).await;
    assert_eq!(first.status, 200, "{:?}", first.body);
    let order = first.json();
    assert_eq!(
        (&order["id"], &order["store_id"], &order["state"]),
        (&json!("17"), &json!(5), &json!("reserved"))
    );
    assert_eq!(
        order["products"],
        json!([{ "id": 812, "quantity": 3 }, { "id": 44, "quantity": 1 }])
    );

    shop.until("17", "announced").await;
    let paid = shop.pay("17", 4711).await;
    assert_eq!(paid.status, 200);
    assert_eq!(
        (&paid.json()["state"], &paid.json()["transaction_id"]),
        (&json!("paid"), &json!(4711))
    );
    shop.until("17", "delivered").await;

    // A repeated request gets the same bytes, even after the order has progressed.
    let again = shop.order("17", &[(812, 3), (44, 1)]).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    let paid_again = shop.pay("17", 4711).await;
    assert_eq!((paid_again.status, &paid_again.body), (200, &paid.body));
    assert_eq!(shop.order("17", &[(812, 2), (44, 1)]).await.status, 409);
    assert_eq!(shop.pay("17", 4712).await.status, 409);

    let history = shop.get("/order/17/history").await.json();
    let events: Vec<&str> = history["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        [
            "received",
            "reserved",
            "announced",
            "paid",
            "delivery_started",
            "delivered",
            // The second payment, which must be refunded.
            "refund_wanted"
        ]
    );
    let seen = world.warehouse.seen.lock().unwrap();
    assert_eq!(
        seen.announced["17"].1,
        json!({ "id": "17", "products": order["products"], "store_id": 5 })
    );
    assert_eq!(seen.delivered["17"].1["transaction_id"], 4711);
    assert_eq!(seen.keys, ["17/announce", "17/deliver"]);
}

#[tokio::test]
async fn a_payment_before_the_announcement_is_accepted_and_delivery_follows() {
    let world = World::start().await;
    world.warehouse.mood.send(Mood::TimesOut).unwrap();
    world.shop.stocks("1,1,5\n", None).await;
    world.shop.order("a", &[(1, 1)]).await;
    assert_eq!(world.shop.pay("a", 9).await.status, 200);
    assert_eq!(world.shop.state("a").await, "paid");
    world.warehouse.mood.send(Mood::Good).unwrap();
    world.shop.until("a", "delivered").await;
    assert_eq!(world.warehouse.deliveries_of("a"), 1);
}

#[tokio::test]
async fn an_order_that_no_store_can_fill_is_rejected_for_good() {
    let world = World::start().await;
    world.shop.stocks("1,1,5\n2,2,5\n", None).await;
    let first = world.shop.order("a", &[(1, 1), (2, 1)]).await;
    assert_eq!(
        (first.status, first.headers["content-type"].to_str().unwrap()),
        (409, "application/problem+json")
    );
    let problem = first.json();
    assert_eq!(problem["type"], "urn:imt-order:problem:insufficient-stock");
    assert_eq!(problem["title"], "Insufficient stock");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("1 of product 1 and 1 of product 2 for order a"),
        "{detail}"
    );
    world.shop.stocks("1,1,5\n2,1,5\n", None).await;
    let again = world.shop.order("a", &[(1, 1), (2, 1)]).await;
    assert_eq!((again.status, &again.body), (409, &first.body));
    assert_eq!(world.shop.state("a").await, "rejected");
    assert_eq!(world.shop.order("b", &[(1, 1), (2, 1)]).await.status, 200);
}

#[tokio::test]
async fn rejected_requests_name_the_wrong_field() {
    let world = World::start().await;
    let shop = &world.shop;
    assert_eq!(shop.pay("nobody", 1).await.status, 404);
    assert_eq!(shop.get("/order/nobody").await.status, 404);
    assert_eq!(shop.get("/nowhere").await.status, 404);
    assert_eq!(shop.send("DELETE", "/order", &[], "").await.status, 405);
    assert_eq!(shop.get("/orders?limit=0").await.json()["field"], "limit");
    assert_eq!(shop.get("/orders?limit=10001").await.json()["field"], "limit");
    assert_eq!(shop.get("/orders?state=lost").await.json()["field"], "state");
    assert_eq!(shop.get("/orders?cursor=x").await.json()["field"], "cursor");
    assert_eq!(shop.get("/aggregate-stats/zero").await.json()["field"], "product");
    let reply = shop
        .send(
            "POST",
            "/order",
            &[],
            r#"{"id":"1","products":[{"id":1,"quantity":1},{"id":2}]}"#,
        )
        .await;
    assert_eq!(
        (reply.status, &reply.json()["field"]),
        (400, &json!("products[1].quantity"))
    );
    let reply = shop.send("POST", "/order/1/payment-callback", &[], "{}").await;
    assert_eq!(
        (reply.status, &reply.json()["field"]),
        (400, &json!("transaction_id"))
    );
    for path in [
        "/order/a%2Fb",
        "/order/%2e%2e",
        "/order/%ff",
        "/order/..%2f..%2fetc",
    ] {
        let reply = shop.get(path).await;
        assert_eq!(
            reply.headers["content-type"], "application/problem+json",
            "{path}"
        );
        let status = reply.status;
        assert!((400..500).contains(&status), "{path}: {status}");
    }
    let large = "x".repeat(70_000);
    assert_eq!(shop.send("POST", "/order", &[], large).await.status, 413);
}

#[tokio::test]
async fn a_snapshot_is_applied_as_a_whole_or_not_at_all() {
    let world = World::start().await;
    let shop = &world.shop;
    shop.stocks("1,1,5\n", Some(10)).await;
    let bad = shop.stocks("1,1,9\n2,1,9\n2,1\n", Some(11)).await;
    assert_eq!(
        (bad.status, &bad.json()["line"], &bad.json()["column"]),
        (400, &json!(3), &json!(4))
    );
    assert_eq!(shop.stocks("1,1,9\n", Some(9)).await.status, 409);
    assert_eq!(shop.stocks("", None).await.status, 400);
    let reply = shop
        .send("PUT", "/stocks", &[("x-stock-as-of", "soon")], "1,1,1\n")
        .await;
    assert_eq!(
        (reply.status, &reply.json()["field"]),
        (400, &json!("X-Stock-As-Of"))
    );
    let stock = shop.get("/stocks/1").await.json();
    assert_eq!(stock["stores"][0]["on_hand"], 5);
    assert_eq!(shop.get("/stocks/2").await.status, 404);
    // A snapshot replaces the whole stock, including products that it omits.
    assert_eq!(shop.stocks("2,7,3\n", Some(11)).await.status, 200);
    assert_eq!(shop.order("a", &[(1, 1)]).await.status, 409);
    assert_eq!(shop.order("b", &[(2, 3)]).await.json()["store_id"], 7);
    assert_eq!(shop.get("/health").await.json()["stock_snapshots"], 2);
}

#[tokio::test]
async fn the_pages_of_a_list_contain_each_entry_once() {
    let world = World::start().await;
    world.warehouse.mood.send(Mood::TimesOut).unwrap();
    world.shop.stocks("1,1,1000\n", None).await;
    for number in 0..25 {
        assert_eq!(
            world.shop.order(&format!("o{number}"), &[(1, 1)]).await.status,
            200
        );
    }
    for (path, list) in [
        ("/orders?limit=7", "orders"),
        ("/reservations?limit=7", "reservations"),
        ("/outbox?limit=7", "messages"),
    ] {
        let mut seen = Vec::new();
        let mut next = path.to_owned();
        loop {
            let page = world.shop.get(&next).await.json();
            for entry in page[list].as_array().unwrap() {
                let id = entry.get("id").or(entry.get("order")).unwrap();
                seen.push(id.as_str().unwrap().to_owned());
            }
            match page["next"].as_str() {
                Some(cursor) => next = format!("{path}&cursor={cursor}"),
                None => break,
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 25, "{path}");
    }
    assert_eq!(
        world.shop.get("/orders?state=reserved&limit=100").await.json()["orders"]
            .as_array()
            .unwrap()
            .len(),
        25
    );
    assert_eq!(
        world.shop.get("/orders?state=delivered").await.json()["orders"],
        json!([])
    );
}

#[tokio::test]
async fn a_cancelled_order_releases_its_units() {
    let world = World::start().await;
    world.shop.stocks("1,1,1\n", None).await;
    world.shop.order("a", &[(1, 1)]).await;
    assert_eq!(world.shop.order("b", &[(1, 1)]).await.status, 409);
    for _ in 0..2 {
        let reply = world.shop.send("POST", "/order/a/cancel", &[], "").await;
        assert_eq!((reply.status, &reply.json()["state"]), (200, &json!("cancelled")));
    }
    assert_eq!(world.shop.order("c", &[(1, 1)]).await.status, 200);
    let late = world.shop.pay("a", 5).await;
    assert_eq!(late.status, 409);
    assert!(late.json()["type"].as_str().unwrap().ends_with("refund-wanted"));
    assert_eq!(world.shop.state("a").await, "refund_wanted");
    world.shop.pay("c", 6).await;
    world.shop.until("c", "delivered").await;
    assert_eq!(
        world.shop.send("POST", "/order/c/cancel", &[], "").await.status,
        409
    );
    assert_eq!(world.warehouse.deliveries_of("a"), 0);
}

#[tokio::test]
async fn an_unpaid_order_expires_and_releases_its_units() {
    let world =
        World::start_with(|config| config.payment_timeout = std::time::Duration::from_millis(1)).await;
    world.shop.stocks("1,1,1\n", None).await;
    world.shop.order("a", &[(1, 1)]).await;
    world.shop.until("a", "expired").await;
    until("the unit to be free", async || {
        world.shop.get("/reservations").await.json()["reservations"] == json!([])
    })
    .await;
    assert_eq!(world.shop.order("b", &[(1, 1)]).await.status, 200);
    assert_eq!(world.shop.pay("a", 1).await.status, 409);
    let refunds = world.shop.get("/orders?state=refund_wanted").await.json();
    assert_eq!(refunds["orders"][0]["id"], "a");
}

#[tokio::test]
async fn a_delivery_rejected_for_good_wants_a_refund_and_releases_its_units() {
    let world = World::start().await;
    world.shop.stocks("1,1,1\n", None).await;
    world.shop.order("a", &[(1, 1)]).await;
    world.shop.until("a", "announced").await;
    world.warehouse.mood.send(Mood::Refuses).unwrap();
    world.shop.pay("a", 1).await;
    world.shop.until("a", "refund_wanted").await;
    assert_eq!(world.shop.get("/outbox").await.json()["messages"], json!([]));
    assert_eq!(world.shop.order("b", &[(1, 1)]).await.status, 200);
}

#[tokio::test]
async fn a_dead_letter_is_listed_and_can_be_retried() {
    let world = World::start_with(|config| config.outbox.tries_max = 3).await;
    world.warehouse.mood.send(Mood::Poisoned).unwrap();
    world.shop.stocks("1,1,1\n", None).await;
    world.shop.order("poison", &[(1, 1)]).await;
    until("the message to be dead", async || {
        world.shop.get("/outbox").await.json()["messages"][0]["state"] == "dead"
    })
    .await;
    let message = &world.shop.get("/outbox").await.json()["messages"][0];
    assert_eq!(
        (&message["attempts"], &message["kind"]),
        (&json!(3), &json!("announce"))
    );
    assert!(message["last_error"].as_str().unwrap().contains("500"));
    world.warehouse.mood.send(Mood::Good).unwrap();
    assert_eq!(
        world
            .shop
            .send("POST", "/outbox/poison/announce/retry", &[], "")
            .await
            .status,
        200
    );
    world.shop.until("poison", "announced").await;
    for (order, detail) in [
        ("poison", "the order has no such message"),
        ("unknown", "there is no such order"),
    ] {
        let path = format!("/outbox/{order}/announce/retry");
        let reply = world.shop.send("POST", &path, &[], "").await;
        assert_eq!(reply.status, 404);
        assert_eq!(reply.json()["detail"], detail);
    }
}

#[tokio::test]
async fn statistics_files_are_added_once_and_malformed_ones_are_set_aside() {
    let world = World::start().await;
    let good = world.data.path().join("stat_000001700000000.csv");
    std::fs::write(&good, "812,2,10\n812,1,40\n").unwrap();
    let bad = world.data.path().join("stat_000001700000001.csv");
    std::fs::write(&bad, "812,2,10\n812,2\n").unwrap();
    until("both files to be gone", async || !good.exists() && !bad.exists()).await;
    let stats = world.shop.get("/aggregate-stats/812").await.json();
    assert_eq!(stats, json!({ "ca": 60, "total_qty": 3, "mean_price": 20.0 }));
    assert!(
        world
            .data
            .path()
            .join("stat_000001700000001.csv.rejected")
            .exists()
    );
    assert_eq!(
        world.shop.get("/aggregate-stats/1").await.json(),
        json!({ "ca": 0, "total_qty": 0, "mean_price": 0.0 })
    );
    // The file appears again, as after a crash between the import of the file and its deletion.
    std::fs::write(&good, "812,2,10\n812,1,40\n").unwrap();
    until("the file to be gone", async || !good.exists()).await;
    assert_eq!(
        world.shop.get("/aggregate-stats/812").await.json()["total_qty"],
        3
    );
    assert_eq!(world.shop.get("/health").await.json()["stat_files"], 1);
    assert_eq!(
        world.shop.get("/aggregate-stats?top=1").await.json()["products"][0]["product"],
        812
    );
    for path in [
        "/aggregate-stats?top=",
        "/orders?limit=",
        "/orders?since=",
        "/orders?store=",
    ] {
        let refused = world.shop.get(path).await;
        assert_eq!(refused.status, 400, "{path}: an empty number is rejected");
    }
}

#[tokio::test]
async fn a_change_of_stock_changes_only_its_rows_and_no_reservation() {
    let world = World::start().await;
    let shop = &world.shop;
    shop.stocks("1,1,5\n1,2,7\n2,1,9\n", Some(0)).await;
    shop.order("a", &[(1, 1)]).await;
    shop.pay("a", 1).await;
    shop.until("a", "delivered").await;
    shop.order("b", &[(1, 2)]).await;
    let changed = shop.send("PATCH", "/stocks", &[], "1,1,10\n3,1,4\n").await;
    assert_eq!(
        (changed.status, changed.json()["lines"].clone()),
        (200, json!(2)),
        "{:?}",
        changed.body
    );
    let products = shop.get("/stores/1").await.json();
    let row = |product: u32, on_hand: i64, reserved: u32| json!({ "product": product, "on_hand": on_hand, "reserved": reserved, "available": on_hand - i64::from(reserved) });
    assert_eq!(
        products["products"],
        json!([row(1, 10, 2), row(2, 9, 0), row(3, 4, 0)])
    );
    let bad = shop.send("PATCH", "/stocks", &[], "1,1,11\n1,0,1\n").await;
    assert_eq!(
        (bad.status, &bad.json()["line"], &bad.json()["column"]),
        (400, &json!(2), &json!(3))
    );
    // The change must survive a restart. The later snapshot replaces all quantities. It was taken
    // before the delivery of order a (`X-Stock-As-Of` is 0), so the delivered unit is subtracted.
    world.node.stop().await.unwrap();
    let node = imt_oms::Node::start(crate::common::config(world.data.path(), &world.warehouse.url()))
        .await
        .unwrap();
    let shop = crate::common::Shop::at(node.address());
    assert_eq!(shop.get("/stores/1").await.json(), products);
    assert_eq!(
        shop.get("/stocks/1").await.json()["stores"][1],
        json!({ "store_id": 2, "on_hand": 7, "reserved": 0, "available": 7 })
    );
    shop.stocks("1,1,5\n", Some(0)).await;
    assert_eq!(
        shop.get("/stores/1").await.json()["products"],
        json!([row(1, 4, 2)])
    );
    assert_eq!(shop.get("/stores/7").await.status, 404);
    node.stop().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_accepted_in_gzip() {
    use std::io::Write;
    let world = World::start().await;
    let mut lines = String::new();
    for product in 1..=2_000 {
        lines.push_str(&format!("{product},1,3\n{product},2,4\n"));
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(lines.as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let gzip = [("content-encoding", "gzip")];
    let taken = world.shop.send("PUT", "/stocks", &gzip, packed.clone()).await;
    assert_eq!(
        (taken.status, taken.json()),
        (200, json!({ "lines": 4_000, "stores": 2, "applied": true }))
    );
    for broken in [packed[..packed.len() - 9].to_vec(), lines.into_bytes()] {
        assert_eq!(world.shop.send("PUT", "/stocks", &gzip, broken).await.status, 400);
    }
    assert_eq!(
        world
            .shop
            .send("PUT", "/stocks", &[("content-encoding", "br")], "1,1,1\n")
            .await
            .status,
        415
    );
    assert_eq!(
        world.shop.get("/stocks/2000").await.json()["stores"][1]["on_hand"],
        4
    );
}

#[tokio::test]
async fn probes_and_metrics_report_the_state_of_the_node() {
    let world = World::start().await;
    world.shop.stocks("1,1,5\n", None).await;
    world.shop.order("a", &[(1, 1)]).await;
    assert_eq!(world.shop.get("/health/live").await.status, 200);
    assert_eq!(world.shop.get("/health/ready").await.status, 200);
    let named = world
        .shop
        .send("GET", "/health", &[("x-request-id", "r-7")], "")
        .await;
    assert_eq!(named.headers["x-request-id"], "r-7");
    let unnamed = [world.shop.get("/health").await, world.shop.get("/health").await];
    let [one, other] = unnamed.map(|answer| answer.headers["x-request-id"].clone());
    assert_ne!(one, other, "each request without an id gets its own");
    let metrics = world.shop.get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for expected in [
        "imt_requests_total{route=\"POST /order\",status=\"2xx\"} 1",
        "imt_stock_snapshots_total{volume=\"test\"} 1",
    ] {
        assert!(
            text.lines().any(|line| line == expected),
            "{expected} not in\n{text}"
        );
    }
}
