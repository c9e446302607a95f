//! Clients that are slow, rude or many.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{World, config};

async fn raw(world: &World, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.node.address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // The node closes the connection or answers; either ends the read.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let world = World::start().await;
    for (path, length) in [("PUT /stocks", 100_000_001u64), ("POST /order", 65_537)] {
        let request =
            format!("{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        let answer = raw(&world, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

#[tokio::test]
async fn rubbish_is_answered_or_cut_and_harms_nobody() {
    let world = World::start().await;
    let flood = format!(
        "GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "x-a: b\r\n".repeat(5_000)
    );
    let requests: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /order HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"GET /order/../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        flood.as_bytes(),
    ];
    for request in requests {
        let answer = raw(&world, request).await;
        assert!(
            !answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"),
            "{answer}"
        );
    }
    assert_eq!(world.shop.get("/health").await.status, 200);
}

#[tokio::test]
async fn clients_that_hang_do_not_keep_others_out() {
    let world = World::start().await;
    let mut hanging = Vec::new();
    for begin in [b"".as_slice(), b"P", b"PR", b"POST /order HTTP/1.1\r\ncontent-le"]
        .iter()
        .cycle()
        .take(200)
    {
        let mut stream = TcpStream::connect(world.node.address()).await.unwrap();
        stream.write_all(begin).await.unwrap();
        hanging.push(stream);
    }
    assert_eq!(world.shop.get("/health").await.status, 200);
    // Nor do they keep the node from stopping.
    world.node.stop().await.unwrap();
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_back() {
    let world = World::start_with(|config| config.server.requests_max = 1).await;
    let mut slow = TcpStream::connect(world.node.address()).await.unwrap();
    let head = b"PUT /stocks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\n1,1,\r\n";
    slow.write_all(head).await.unwrap();
    crate::common::until("the slow request to be in progress", async || {
        let reply = world.shop.get("/health").await;
        if reply.status == 503 {
            assert_eq!(reply.headers["retry-after"], "1");
        }
        reply.status == 503
    })
    .await;
    slow.write_all(b"3\r\n15\n\r\n0\r\n\r\n").await.unwrap();
    crate::common::until("it to end", async || {
        world.shop.get("/health").await.status == 200
    })
    .await;
    assert_eq!(
        world.shop.get("/stocks/1").await.json()["stores"][0]["on_hand"],
        15
    );
}

#[tokio::test]
async fn http_2_in_clear_is_spoken() {
    let world = World::start().await;
    let client: hyper_util::client::legacy::Client<_, http_body_util::Empty<bytes::Bytes>> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
            .http2_only(true)
            .build_http();
    let uri = format!("http://{}/health", world.node.address()).parse().unwrap();
    let response = client.get(uri).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (200, hyper::Version::HTTP_2)
    );
}

#[tokio::test]
async fn a_taken_port_a_used_folder_and_a_bad_setting_are_said_clearly() {
    let world = World::start().await;
    let start = async |change: &dyn Fn(&mut imt_oms::NodeConfig)| {
        let mut config = config(world.data.path(), &world.warehouse.url());
        change(&mut config);
        imt_oms::Node::start(config).await.err().unwrap().to_string()
    };
    let taken = start(&|config| config.listen = world.node.address()).await;
    assert!(
        taken.contains("another program") && taken.contains(&world.node.address().to_string()),
        "{taken}"
    );
    let used = start(&|_| ()).await;
    assert!(
        used.contains("a node named test already runs on") && used.contains("process"),
        "{used}"
    );
    let name = start(&|config| config.name = "a/b".to_owned()).await;
    assert!(name.contains("name"), "{name}");
    for warehouse in ["", "ftp://x", "nonsense", "https://127.0.0.1:1"] {
        let wrong = start(&|config| config.warehouse = warehouse.to_owned()).await;
        assert!(wrong.contains("warehouse"), "{warehouse}: {wrong}");
    }
    let file = world.data.path().join("file");
    std::fs::write(&file, "").unwrap();
    let folder = start(&|config| config.data = file.clone()).await;
    assert!(folder.contains("file"), "{folder}");
}
