//! Tests of refunds: each payment for an order that ends without a delivery, and each further
//! payment of a paid order, is listed and counted. Of the warehouse's answers, only a final refusal
//! ends an order without a delivery.

use serde_json::json;

use crate::common::{Mood, Shop, World, config, until};

/// Returns the refund list, sorted by order: the order ids and the transactions to refund.
async fn refunds(shop: &Shop) -> Vec<(String, serde_json::Value)> {
    let page = shop.get("/orders?state=refund_wanted").await.json();
    let orders = page["orders"].as_array().unwrap().iter();
    let mut found: Vec<_> = orders
        .map(|order| {
            let id = order["id"].as_str().unwrap().to_owned();
            (id, order["refund_transaction_ids"].clone())
        })
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// Returns the number of payments to be refunded, as the metrics show it.
async fn gauge(shop: &Shop) -> u64 {
    let metrics = shop.get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    let line = text.lines().find(|line| line.starts_with("imt_refunds_wanted"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

fn assert_refund_wanted(reply: &crate::common::Reply) {
    assert_eq!(reply.status, 409);
    let problem = reply.json();
    assert!(
        problem["type"].as_str().unwrap().ends_with("refund-wanted"),
        "{problem}"
    );
}

#[tokio::test]
async fn every_payment_without_a_delivery_is_in_the_refund_list_and_the_gauge() {
    let World {
        data,
        warehouse,
        node,
        shop,
    } = World::start().await;
    shop.stocks("1,1,3\n", None).await;
    for id in ["cancelled", "refused", "twice"] {
        assert_eq!(shop.order(id, &[(1, 1)]).await.status, 200);
        shop.until(id, "announced").await;
    }
    assert_eq!(shop.order("rejected", &[(1, 1)]).await.status, 409);
    assert_eq!((refunds(&shop).await.len(), gauge(&shop).await), (0, 0));

    shop.send("POST", "/order/cancelled/cancel", &[], "").await;
    assert_refund_wanted(&shop.pay("cancelled", 1).await);
    assert_refund_wanted(&shop.pay("rejected", 2).await);
    warehouse.mood.send(Mood::Refuses).unwrap();
    assert_eq!(shop.pay("refused", 3).await.status, 200);
    shop.until("refused", "refund_wanted").await;
    warehouse.mood.send(Mood::Good).unwrap();
    assert_eq!(shop.pay("twice", 4).await.status, 200);
    let second = shop.pay("twice", 5).await;
    assert_refund_wanted(&second);
    let again = shop.pay("twice", 5).await;
    assert_eq!((again.status, &again.body), (409, &second.body));
    shop.until("twice", "delivered").await;
    assert_eq!(
        shop.pay("twice", 4).await.status,
        200,
        "the first payment remains the one that counts"
    );
    assert_refund_wanted(&shop.pay("twice", 6).await);

    let expected = vec![
        ("cancelled".to_owned(), json!([1])),
        ("refused".to_owned(), json!([3])),
        ("rejected".to_owned(), json!([2])),
        ("twice".to_owned(), json!([5, 6])),
    ];
    assert_eq!(refunds(&shop).await, expected);
    assert_eq!(gauge(&shop).await, 5);
    assert_eq!(shop.get("/health").await.json()["refunds_wanted"], 5);
    node.stop().await.unwrap();

    let node = imt_oms::Node::start(config(data.path(), &warehouse.url()))
        .await
        .unwrap();
    let shop = Shop::at(node.address());
    assert_eq!(refunds(&shop).await, expected, "after a restart");
    assert_eq!(gauge(&shop).await, 5, "after a restart");
    node.stop().await.unwrap();
}

#[tokio::test]
async fn a_409_without_a_final_refusal_is_retried_and_ends_no_order() {
    for mood in [Mood::Conflicts, Mood::IsAtWork] {
        let world = World::start().await;
        world.shop.stocks("1,1,1\n", None).await;
        world.warehouse.mood.send(mood).unwrap();
        world.shop.order("a", &[(1, 1)]).await;
        world.shop.pay("a", 1).await;
        until("the announcement to be retried", async || {
            let outbox = world.shop.get("/outbox").await.json();
            outbox["messages"][0]["attempts"].as_u64() >= Some(2)
        })
        .await;
        assert_eq!(world.shop.state("a").await, "paid", "{mood:?}");
        assert_eq!(
            world.shop.order("b", &[(1, 1)]).await.status,
            409,
            "the unit is reserved"
        );
        world.warehouse.mood.send(Mood::Good).unwrap();
        world.shop.until("a", "delivered").await;
        assert_eq!(world.warehouse.deliveries_of("a"), 1);
    }
}

#[tokio::test]
async fn messages_that_the_warehouse_cannot_process_do_not_delay_other_orders() {
    let world = World::start_with(|config| {
        config.outbox.tries_max = 8;
        config.outbox.retries_per_second = 20;
    })
    .await;
    world.shop.stocks("1,1,1000\n", None).await;
    world.warehouse.mood.send(Mood::Poisoned).unwrap();
    for number in 0..40 {
        world.shop.order(&format!("poison{number}"), &[(1, 1)]).await;
    }
    for number in 0..20 {
        let id = format!("healthy{number}");
        world.shop.order(&id, &[(1, 1)]).await;
        world.shop.pay(&id, number).await;
    }
    for number in 0..20 {
        world.shop.until(&format!("healthy{number}"), "delivered").await;
    }
    // While the circuit breaker is open, a message becomes a dead letter only if the warehouse has
    // answered another message since its last attempt. So each round also sends a healthy order.
    let mut more = 0..;
    until("the poisoned messages to be dead", async || {
        let id = format!("more{}", more.next().unwrap());
        world.shop.order(&id, &[(1, 1)]).await;
        world.shop.until(&id, "announced").await;
        world.shop.get("/health").await.json()["outbox_dead"] == 40
    })
    .await;
}
