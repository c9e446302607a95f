//! Tests of slow clients over real sockets. The node's timeouts are tens of seconds, so these tests
//! pause the clock of tokio. A paused clock advances whenever all tasks are idle.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::World;

/// Starts a node with this limit of connections, and pauses the clock.
async fn world_with_paused_clock(connections_max: usize) -> World {
    let world = World::start_with(|config| {
        config.server.connections_max = connections_max;
        config.stat_scan_every = Duration::from_secs(60);
    })
    .await;
    tokio::time::pause();
    world
}

async fn connect(world: &World, begin: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(world.node.address()).await.unwrap();
    stream.write_all(begin).await.unwrap();
    stream
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // The connection may end in an error. The test checks the bytes received before the error.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

const HEALTH: &[u8] = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_body_that_stops_arriving_is_answered_with_408_and_not_applied() {
    let world = world_with_paused_clock(100).await;
    let heads = [
        "PUT /stocks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n6\r\n1,1,5\n\r\n",
        "PATCH /stocks HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n1,1,5\n",
        "POST /order HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"id\":",
        "POST /order/1/payment-callback HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ];
    for head in heads {
        let answer = rest(connect(&world, head.as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{head}: {answer}");
        assert!(answer.contains("slow-body"), "{answer}");
    }
    let answer = rest(
        connect(
            &world,
            b"GET /stocks/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await,
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

/// Sends a chunk with one line break every two seconds until the node closes the connection.
/// Returns the answer.
async fn trickle(mut stream: TcpStream) -> String {
    let (mut reading, mut writing) = stream.split();
    let mut answer = Vec::new();
    let answered = async {
        let _ = reading.read_to_end(&mut answer).await;
    };
    let trickling = async {
        while writing.write_all(b"1\r\n\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = answered => {}
        () = trickling => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn trickling_snapshots_time_out_and_the_next_one_is_accepted() {
    let world = world_with_paused_clock(100).await;
    let head = b"PUT /stocks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let mut trickling = Vec::new();
    for _ in 0..2 {
        let stream = connect(&world, head).await;
        trickling.push(tokio::spawn(trickle(stream)));
    }
    for answer in trickling {
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("slow-body"), "{answer}");
    }
    let body = "1,1,5\n";
    let request = format!(
        "PUT /stocks HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = rest(connect(&world, request.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn connections_without_a_complete_request_time_out() {
    let world = world_with_paused_clock(1).await;
    let silent: [&[u8]; 5] = [
        b"",
        b"P",
        b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-slow: ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    for begin in silent {
        let holding = connect(&world, begin).await;
        let next = connect(&world, HEALTH).await;
        let answer = rest(next).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "after {begin:?}: {answer}");
        drop(holding);
    }
}

#[tokio::test]
async fn connections_that_never_read_their_answers_time_out() {
    let world = world_with_paused_clock(1).await;
    let mut holding = TcpStream::connect(world.node.address()).await.unwrap();
    // The answers to these requests are larger than the socket buffers. The node stops reading
    // requests once it cannot write answers.
    let asks = tokio::spawn(async move {
        let ask = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20_000);
        // The socket buffers may accept all requests before the connection is closed.
        let _ = holding.write_all(&ask).await;
        holding
    });
    let answer = rest(connect(&world, HEALTH).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(asks.await.unwrap());
}
