//! Tests of the header `Idempotency-Key`: a repeated request gets the stored answer, and another
//! request with the same key is rejected.

use serde_json::json;

use crate::common::{Shop, World, config, order_body};

const KEY: &str = "idempotency-key";

#[tokio::test]
async fn a_repeated_key_gets_the_first_answer_byte_for_byte_even_after_a_restart() {
    let world = World::start().await;
    world.shop.stocks("1,1,10\n", None).await;
    let place = order_body("17", &[(1, 2)]);
    let first = world
        .shop
        .send("POST", "/order", &[(KEY, "k-1")], place.clone())
        .await;
    assert_eq!(first.status, 200);
    assert!(first.headers.get("idempotent-replayed").is_none());
    let check = async |shop: &Shop| {
        let again = shop.send("POST", "/order", &[(KEY, "k-1")], place.clone()).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
        assert_eq!(again.headers["idempotent-replayed"], "true");
    };
    check(&world.shop).await;
    // Later changes of the order do not change the stored answer.
    world.shop.send("POST", "/order/17/cancel", &[], "").await;
    check(&world.shop).await;
    world.node.stop().await.unwrap();
    let node = imt_oms::Node::start(config(world.data.path(), &world.warehouse.url()))
        .await
        .unwrap();
    check(&Shop::at(node.address())).await;
    node.stop().await.unwrap();
}

#[tokio::test]
async fn a_key_is_bound_to_one_request() {
    let world = World::start().await;
    world.shop.stocks("1,1,10\n", None).await;
    let send = async |path: &str, body: String| world.shop.send("POST", path, &[(KEY, "k")], body).await;
    assert_eq!(send("/order", order_body("1", &[(1, 1)])).await.status, 200);
    let other_body = send("/order", order_body("2", &[(1, 1)])).await;
    assert_eq!(
        (other_body.status, other_body.json()["type"].as_str()),
        (409, Some("urn:imt-order:problem:key-reused"))
    );
    let pay = json!({ "transaction_id": 5 }).to_string();
    assert_eq!(send("/order/1/payment-callback", pay).await.status, 409);
    assert_eq!(
        world.shop.get("/order/2").await.status,
        404,
        "the rejected order was not placed"
    );
}

#[tokio::test]
async fn conflicts_are_stored_and_malformed_requests_are_not() {
    let world = World::start().await;
    let send = async |key: &str, body: String| world.shop.send("POST", "/order", &[(KEY, key)], body).await;
    let malformed = send("k", "{}".to_owned()).await;
    assert_eq!(malformed.status, 400);
    // The corrected request with the same key is executed, because the answer to a malformed
    // request is not stored. The order is rejected, because nothing is in stock. This answer is
    // stored.
    let body = order_body("1", &[(1, 1)]);
    let refused = send("k", body.clone()).await;
    assert_eq!(refused.status, 409);
    world.shop.stocks("1,1,10\n", None).await;
    let again = send("k", body).await;
    assert_eq!((again.status, &again.body), (409, &refused.body));
    assert_eq!(again.headers["content-type"], "application/problem+json");
    for key in ["", &"x".repeat(256), "a\tkey"] {
        assert_eq!(send(key, order_body("9", &[(1, 1)])).await.status, 400);
    }
}

#[tokio::test]
async fn requests_with_one_key_at_the_same_time_are_executed_once() {
    let world = World::start().await;
    world.shop.stocks("1,1,10\n", None).await;
    let send = async || {
        let body = order_body("17", &[(1, 2)]);
        world.shop.send("POST", "/order", &[(KEY, "k")], body).await
    };
    for _ in 0..16 {
        let (one, other, third) = tokio::join!(send(), send(), send());
        for answer in [&one, &other, &third] {
            let kind = answer.json()["type"].as_str().map(str::to_owned);
            let is_in_progress = kind.as_deref() == Some("urn:imt-order:problem:key-in-progress");
            assert!(answer.status == 200 || is_in_progress, "{}", answer.status);
        }
    }
    assert_eq!(send().await.status, 200);
    let stock = world.shop.get("/stocks/1").await.json();
    assert_eq!(stock["stores"][0]["reserved"], 2, "{stock}");
}
