//! Tests of content codings, for every route that takes a body.

use std::io::Write;

use serde_json::json;

use crate::common::{World, order_body};

fn gzip(plain: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn every_body_is_accepted_in_gzip_under_all_names_of_the_coding() {
    let world = World::start().await;
    for (number, coding) in ["gzip", "GZIP", "x-gzip", "identity, X-GZip"]
        .into_iter()
        .enumerate()
    {
        let headers = [("content-encoding", coding)];
        let send = async |method, path: &str, body: String| {
            world.shop.send(method, path, &headers, gzip(&body)).await
        };
        let put = send("PUT", "/stocks", "1,1,50\n".to_owned()).await;
        assert_eq!(put.status, 200, "{coding}: {:?}", put.body);
        let patch = send("PATCH", "/stocks", "1,1,60\n".to_owned()).await;
        assert_eq!(patch.status, 200, "{coding}: {:?}", patch.body);
        let id = format!("gzip-{number}");
        let order = send("POST", "/order", order_body(&id, &[(1, 1)])).await;
        assert_eq!((order.status, &order.json()["id"]), (200, &json!(id)), "{coding}");
        let path = format!("/order/{id}/payment-callback");
        let paid = send("POST", &path, json!({"transaction_id": 4711}).to_string()).await;
        assert_eq!((paid.status, &paid.json()["transaction_id"]), (200, &json!(4711)));
    }
}

#[tokio::test]
async fn an_unknown_coding_is_answered_with_415_and_the_known_codings() {
    let world = World::start().await;
    for coding in ["br", "deflate", "gzip, br", "gzip, gzip, gzip"] {
        let headers = [("content-encoding", coding)];
        for (method, path, body) in [
            ("PUT", "/stocks", "1,1,1\n".to_owned()),
            ("PATCH", "/stocks", "1,1,1\n".to_owned()),
            ("POST", "/order", order_body("1", &[(1, 1)])),
            (
                "POST",
                "/order/1/payment-callback",
                "{\"transaction_id\":1}".to_owned(),
            ),
        ] {
            let reply = world.shop.send(method, path, &headers, body).await;
            assert_eq!(reply.status, 415, "{method} {path} {coding}");
            assert_eq!(reply.headers["accept-encoding"], "gzip, identity");
        }
        // The header `Content-Encoding` is ignored in a request without a body.
        let reply = world.shop.send("GET", "/orders", &headers, "").await;
        assert_eq!(reply.status, 200, "{coding}");
    }
}

#[tokio::test]
async fn a_body_that_decodes_to_more_than_the_limit_is_answered_with_413() {
    let world = World::start().await;
    let headers = [("content-encoding", "gzip")];
    let order = format!("{{\"id\":\"{}\"}}", "x".repeat(200_000));
    let reply = world.shop.send("POST", "/order", &headers, gzip(&order)).await;
    assert_eq!(reply.status, 413);
    let stock = "\n".repeat(110_000_000);
    let reply = world.shop.send("PUT", "/stocks", &headers, gzip(&stock)).await;
    assert_eq!(reply.status, 413);
    let change = "\n".repeat(5_000_000);
    let reply = world.shop.send("PATCH", "/stocks", &headers, gzip(&change)).await;
    assert_eq!(reply.status, 413);
}
