//! Tests of faults of the environment: a warehouse connection that fails in every way, a full disk,
//! and overload.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{Shop, Warehouse, World, config, until};

/// The fault of one call to the warehouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// The connection is reset before the warehouse receives the call.
    ResetBefore,
    /// The warehouse executes the call, and its answer is lost.
    AnswerLost,
    /// The warehouse executes the call, and only a part of its answer arrives.
    AnswerCut,
    /// The warehouse receives the call twice.
    Twice,
    /// The answer to the call is not HTTP, but the greeting of a mail server.
    NotHttp,
    /// A proxy before the warehouse answers 503.
    Unavailable,
}

const FAULTS: [Fault; 7] = [
    Fault::Nothing,
    Fault::ResetBefore,
    Fault::AnswerLost,
    Fault::AnswerCut,
    Fault::Twice,
    Fault::NotHttp,
    Fault::Unavailable,
];

/// Starts a proxy to the warehouse that applies the faults in `FAULTS`, in turn, to successive
/// calls. Returns its URL and a list of the faults applied so far.
async fn faulty_proxy(warehouse: std::net::SocketAddr) -> (String, Arc<Mutex<Vec<Fault>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let done = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&done);
    tokio::spawn(async move {
        for number in 0usize.. {
            let (stream, _) = listener.accept().await.unwrap();
            let fault = FAULTS[number % FAULTS.len()];
            noted.lock().unwrap().push(fault);
            tokio::spawn(relay(stream, warehouse, fault));
        }
    });
    (url, done)
}

/// Relays one call with its fault, and closes the connection.
async fn relay(mut stream: TcpStream, warehouse: std::net::SocketAddr, fault: Fault) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    if fault == Fault::ResetBefore {
        stream.set_zero_linger().unwrap();
        return;
    }
    let immediate: Option<&[u8]> = match fault {
        Fault::NotHttp => Some(b"220 mail.example ESMTP\r\n"),
        Fault::Unavailable => Some(b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        _ => None,
    };
    if let Some(answer) = immediate {
        let _ = stream.write_all(answer).await;
        return;
    }
    let mut answer = Vec::new();
    for _ in 0..if fault == Fault::Twice { 2 } else { 1 } {
        let mut onward = TcpStream::connect(warehouse).await.unwrap();
        onward.write_all(&request).await.unwrap();
        answer = vec![0; 4_096];
        let count = onward.read(&mut answer).await.unwrap();
        answer.truncate(count);
    }
    match fault {
        Fault::AnswerLost => {}
        Fault::AnswerCut => drop(stream.write_all(&answer[..answer.len() / 3]).await),
        _ => drop(stream.write_all(&answer).await),
    }
}

/// Reads a request to the end of its body. `None` if the connection ends before that.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), [0u8; 4_096]);
    loop {
        let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length: usize = head
            .split("content-length: ")
            .nth(1)?
            .lines()
            .next()?
            .parse()
            .ok()?;
        if body.len() >= length {
            return Some(bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_paid_order_is_delivered_once_despite_all_faults_of_the_warehouse_connection() {
    let data = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::start().await;
    let (url, done) = faulty_proxy(warehouse.address).await;
    let mut settings = config(data.path(), &url);
    // Five of seven calls fail, so the circuit breaker would stay open most of the time. The test
    // switches it off.
    settings.outbox.breaker_failures = u32::MAX;
    let node = imt_oms::Node::start(settings).await.unwrap();
    let shop = Shop::at(node.address());
    assert_eq!(shop.stocks("1,1,1000\n", Some(0)).await.status, 200);
    let ids: Vec<String> = (0..20).map(|number| format!("f{number}")).collect();
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(shop.order(id, &[(1, 2)]).await.status, 200);
        assert_eq!(shop.pay(id, number as u64).await.status, 200);
    }
    for id in &ids {
        shop.until(id, "delivered").await;
    }
    for fault in FAULTS {
        assert!(done.lock().unwrap().contains(&fault), "{fault:?} never happened");
    }
    assert_eq!(warehouse.seen.lock().unwrap().delivered.len(), ids.len());
    // `/order` reads the row of an order, and `/stocks` the memory. The units are released in
    // memory a moment after the row is committed, so the test waits.
    let stock = async || shop.get("/stocks/1").await.json()["stores"][0].clone();
    until("no unit to be reserved", async || stock().await["reserved"] == 0).await;
    assert_eq!(stock().await["on_hand"], 1_000 - 2 * ids.len());
    node.stop().await.unwrap();
}

/// A small mounted disk, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl SmallDisk<'_> {
    fn mount(folder: &Path) -> SmallDisk<'_> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "none"])
            .arg(folder)
            .output();
        let mounted = mounted.unwrap();
        assert!(mounted.status.success(), "a small disk needs root: {mounted:?}");
        SmallDisk(folder)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_full_disk_rejects_orders_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let _disk = SmallDisk::mount(folder.path());
    let warehouse = Warehouse::start().await;
    let node = imt_oms::Node::start(config(folder.path(), &warehouse.url()))
        .await
        .unwrap();
    let shop = Shop::at(node.address());
    assert_eq!(shop.stocks("1,1,1000000000\n", Some(0)).await.status, 200);
    let ballast = folder.path().join("ballast");
    let mut taken = Vec::new();
    let mut refused = None;
    // A file uses a part of the disk until the test deletes it to make room. Orders fill the rest.
    std::fs::write(&ballast, vec![1u8; 8 << 20]).unwrap();
    for number in 0.. {
        let mut batch = tokio::task::JoinSet::new();
        for part in 0..64 {
            let (shop, id) = (shop.clone(), format!("d{number}-{part}"));
            batch.spawn(async move {
                let products = vec![(1, 1); 100];
                let reply = shop.order(&id, &products).await;
                (id, products, reply)
            });
        }
        while let Some(answered) = batch.join_next().await {
            let (id, products, reply) = answered.unwrap();
            match reply.status {
                200 => taken.push((id, products, reply.body)),
                503 => {
                    assert!(reply.headers.contains_key("retry-after"));
                    refused = Some((id, products));
                }
                status => panic!("{status}: {:?}", reply.body),
            }
        }
        if refused.is_some() {
            break;
        }
    }
    let (id, products) = refused.unwrap();
    assert!(!taken.is_empty());
    assert_eq!(shop.get(&format!("/order/{id}")).await.status, 404);
    assert_eq!(shop.get("/health/live").await.status, 200);
    // The stop may fail, because the disk has no room for a checkpoint. Acknowledged orders do not
    // need a checkpoint.
    let _ = node.stop().await;
    std::fs::remove_file(&ballast).unwrap();
    let node = imt_oms::Node::start(config(folder.path(), &warehouse.url()))
        .await
        .unwrap();
    let shop = Shop::at(node.address());
    // The last 300 orders, during which the disk became full, are all checked. Of the earlier
    // orders, every fiftieth is checked.
    let last = taken.len().saturating_sub(300);
    let checked = taken
        .iter()
        .enumerate()
        .filter(|(at, _)| *at >= last || at % 50 == 0);
    for (_, (id, products, body)) in checked {
        let again = shop.order(id, products).await;
        assert_eq!((again.status, &again.body), (200, body), "{id}");
        assert_eq!(again.headers["idempotent-replayed"], "true", "{id} was lost");
    }
    assert_eq!(shop.order(&id, &products).await.status, 200);
    node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_answered_with_200_or_503_and_the_outbox_stays_bounded() {
    let world = World::start_with(|config| {
        config.server.requests_max = 16;
        config.outbox.messages_max = 200;
        config.warehouse = Some("http://127.0.0.1:9".to_owned());
    })
    .await;
    world.shop.stocks("1,1,1000000\n", None).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..160 {
        let shop = world.shop.clone();
        clients.spawn(async move {
            let (mut taken, mut refused) = (0usize, 0usize);
            for number in 0..10 {
                let reply = shop.order(&format!("c{client}n{number}"), &[(1, 1)]).await;
                match reply.status {
                    200 => taken += 1,
                    503 => refused += 1,
                    status => panic!("{status}: {:?}", reply.body),
                }
            }
            (taken, refused)
        });
    }
    let (mut taken, mut refused) = (0, 0);
    while let Some(client) = clients.join_next().await {
        let (more_taken, more_refused) = client.unwrap();
        taken += more_taken;
        refused += more_refused;
    }
    assert_eq!(taken + refused, 1_600);
    // If commits are slow, the limit of requests may have refused so many orders that the outbox is
    // not full yet. This loop fills the outbox.
    for number in 0.. {
        match world.shop.order(&format!("last{number}"), &[(1, 1)]).await.status {
            200 => taken += 1,
            503 => break,
            status => panic!("{status}"),
        }
    }
    // Up to 16 requests (`requests_max`) were in progress when the outbox reached its limit of 200
    // messages, and each may still add a message.
    assert!((200..=216).contains(&taken), "{taken} taken");
    let health = world.shop.get("/health").await.json();
    assert_eq!(health["outbox"], taken);
    assert_eq!(health["orders"]["reserved"], taken);
    let body = json!({ "transaction_id": 1 }).to_string();
    let paid = world
        .shop
        .send("POST", "/order/c0n0/payment-callback", &[], body)
        .await;
    assert!(
        matches!(paid.status, 200 | 404),
        "payments are accepted under overload: {}",
        paid.status
    );
    until("requests to end", async || {
        world.shop.get("/health").await.json()["transactors"] == 0
    })
    .await;
}
