//! Tests of hostile and faulty clients: malformed requests, hanging and broken connections, and too
//! many requests.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{World, config};

async fn raw(world: &World, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.node.address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // The node closes or resets the connection after its answer. The bytes received before a reset
    // are returned too.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_body_over_the_limit_is_rejected_before_it_is_sent() {
    let world = World::start().await;
    for (path, length) in [("PUT /stocks", 100_000_001u64), ("POST /order", 65_537)] {
        let request =
            format!("{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        let answer = raw(&world, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_takes_the_next_request_after_a_body_that_no_route_reads() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.node.address()).await.unwrap();
    let head = "POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 70000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // The node refuses the request once it has read the head. The body arrives in pieces
    // afterwards, and the node must discard it before the next request.
    for _ in 0..7 {
        stream.write_all(&[b'x'; 10_000]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let next = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(next).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert!(answers.starts_with("HTTP/1.1 404"), "{answers}");
    assert!(answers.contains("HTTP/1.1 200"), "{answers}");
}

#[tokio::test]
async fn an_answer_before_a_long_body_says_that_the_connection_closes() {
    let world = World::start().await;
    let request = "POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    let answer = raw(&world, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn malformed_http_is_rejected_and_other_clients_are_served() {
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
async fn hanging_clients_block_neither_other_clients_nor_a_stop() {
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
    // The hanging clients do not block the stop of the node either.
    world.node.stop().await.unwrap();
}

#[tokio::test]
async fn requests_over_the_limit_are_answered_with_503_and_probes_are_served() {
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
    // Health probes and metrics are answered even while the slow request uses up the limit.
    for path in ["/health/live", "/health/ready", "/metrics"] {
        for method in ["GET", "HEAD"] {
            let reply = world.shop.send(method, path, &[], "").await;
            assert_eq!(reply.status, 200, "{method} {path}");
        }
    }
    assert_eq!(world.shop.get("/health/live/more").await.status, 503);
    slow.write_all(b"3\r\n15\n\r\n0\r\n\r\n").await.unwrap();
    crate::common::until("the slow request to end", async || {
        world.shop.get("/health").await.status == 200
    })
    .await;
    assert_eq!(
        world.shop.get("/stocks/1").await.json()["stores"][0]["on_hand"],
        15
    );
}

#[tokio::test]
async fn http_2_in_clear_is_supported() {
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
async fn start_errors_name_the_port_the_folder_and_the_setting() {
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
        let wrong = start(&|config| config.warehouse = Some(warehouse.to_owned())).await;
        assert!(wrong.contains("warehouse"), "{warehouse}: {wrong}");
    }
    let absent = world.data.path().join("absent");
    for (setting, weight, zone) in [("zone", 1, Some("a b")), ("weight", u32::MAX, None)] {
        let refused = start(&|config| {
            config.data = absent.clone();
            config.weight = weight;
            config.zone = zone.map(str::to_owned);
        })
        .await;
        assert!(refused.contains(setting), "{refused}");
        assert!(!absent.exists(), "a refused {setting} creates no folder");
    }
    let file = world.data.path().join("file");
    std::fs::write(&file, "").unwrap();
    let folder = start(&|config| config.data = file.clone()).await;
    assert!(folder.contains("file"), "{folder}");
}

#[tokio::test]
async fn every_hostile_body_is_answered_with_400_and_changes_nothing() {
    let world = World::start().await;
    world.shop.stocks("1,1,100\n", None).await;
    let deep = format!(
        r#"{{"id":"h","products":{}{}}}"#,
        "[".repeat(20_000),
        "]".repeat(20_000)
    );
    let many_fields = format!(
        r#"{{"id":"h",{}"products":7}}"#,
        (0..3_000).map(|n| format!("\"f{n}\":1,")).collect::<String>()
    );
    let bodies: [&[u8]; 18] = [
        b"",
        b"null",
        b"\xff\xfe{}",
        b"{\"id\":\"\xc3\x28\",\"products\":[{\"id\":1,\"quantity\":1}]}",
        br#"{"id":"h","products":[{"id":1,"quantity":1}]} trailing"#,
        br#"{"id":"h","products":[{"id":1,"quantity":1e400}]}"#,
        br#"{"id":"h","products":[{"id":1,"quantity":99999999999999999999999999}]}"#,
        br#"{"id":"h","products":[{"id":18446744073709551616,"quantity":1}]}"#,
        br#"{"id":"h","products":[{"id":1,"quantity":"1"}]}"#,
        br#"{"id":"h","products":[{"id":1,"quantity":null}]}"#,
        br#"{"id":"h","products":[{"id":1,"quantity":true}]}"#,
        br#"{"id":["h"],"products":[{"id":1,"quantity":1}]}"#,
        br#"{"id":"h\u0000","products":[{"id":1,"quantity":1}]}"#,
        br#"{"id":"../../h","products":[{"id":1,"quantity":1}]}"#,
        br#"{"id":"h","id":"h","products":[{"id":1,"quantity":1}]}"#,
        br#"{"id":"h","products":[{"id":1,"id":1,"quantity":1}]}"#,
        deep.as_bytes(),
        many_fields.as_bytes(),
    ];
    for body in bodies {
        for path in ["/order", "/order/h/payment-callback"] {
            let reply = world.shop.send("POST", path, &[], body.to_vec()).await;
            let text = String::from_utf8_lossy(body);
            assert_eq!(reply.status, 400, "{path} {text:.80}: {:?}", reply.body);
            assert_eq!(reply.headers["content-type"], "application/problem+json");
            assert!(!reply.json()["detail"].as_str().unwrap().is_empty());
        }
    }
    assert_eq!(world.shop.get("/order/h").await.status, 404);
    assert_eq!(
        world.shop.get("/stocks/1").await.json()["stores"][0]["reserved"],
        0
    );
}

#[tokio::test]
async fn malformed_paths_and_queries_are_rejected() {
    let world = World::start().await;
    for (method, path, status) in [
        ("GET", "/order/%2e%2e%2fetc%2fpasswd", 400),
        ("GET", "/order/..", 400),
        ("GET", "/order/%00", 400),
        ("GET", "/order/%ff", 400),
        ("GET", "//order/17", 404),
        ("GET", "/order/17/", 404),
        ("GET", "/ORDER/17", 404),
        ("GET", "/../data/secret", 404),
        ("GET", "/order/17;x=1", 400),
        ("DELETE", "/order/17", 405),
        ("POST", "/order/%31/payment-callback?x=y", 400),
        ("GET", "/aggregate-stats/1e3", 400),
        ("GET", "/aggregate-stats/-1", 400),
        ("GET", "/aggregate-stats/%31", 200),
        ("GET", "/aggregate-stats/99999999999999999999", 400),
        ("GET", "/orders?limit=0", 400),
        ("GET", "/orders?limit=-1", 400),
        ("GET", "/orders?status=paid", 400),
        ("GET", "/order/17?x=1", 400),
        ("GET", "/aggregate-stats?top=1&top=2", 400),
        ("GET", "/orders?cursor=..", 400),
        ("GET", "/orders?state=%ff", 400),
        ("GET", "/reservations?cursor=%2e%2e", 400),
    ] {
        let reply = world.shop.send(method, path, &[], "").await;
        assert_eq!(reply.status, status, "{method} {path}: {:?}", reply.body);
    }
}

#[tokio::test]
async fn a_half_closed_connection_leaves_its_order_whole() {
    let world = World::start().await;
    world.shop.stocks("1,1,5\n", None).await;
    let body = r#"{"id":"half","products":[{"id":1,"quantity":1}]}"#;
    let request = format!(
        "POST /order HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(world.node.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    // The node may answer, or treat the client as disconnected. In both cases the order is either
    // placed or absent, so the same order below must succeed and reserve one unit in total.
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if !answer.is_empty() {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    crate::common::until("the transactor to end", async || {
        world.shop.get("/health").await.json()["transactors"] == 0
    })
    .await;
    let order = world.shop.order("half", &[(1, 1)]).await;
    assert_eq!(order.status, 200);
    assert_eq!(
        world.shop.get("/stocks/1").await.json()["stores"][0]["reserved"],
        1
    );
}

#[tokio::test]
async fn orders_of_disconnected_clients_are_placed_once_or_not_at_all() {
    let world = World::start().await;
    world.shop.stocks("1,1,1000\n", None).await;
    for number in 0..60u32 {
        let body = format!(r#"{{"id":"gone{number}","products":[{{"id":1,"quantity":1}}]}}"#);
        let request = format!(
            "POST /order HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(world.node.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.set_zero_linger().unwrap();
    }
    for number in 0..60u32 {
        let order = world.shop.order(&format!("gone{number}"), &[(1, 1)]).await;
        assert_eq!(order.status, 200);
    }
    let health = world.shop.get("/health").await.json();
    assert_eq!(health["transactor_panics"], 0);
    let stock = world.shop.get("/stocks/1").await.json();
    assert_eq!(stock["stores"][0]["reserved"], 60, "each order reserves once");
    for number in 0..60u32 {
        world.shop.until(&format!("gone{number}"), "announced").await;
    }
}
