//! Tests that kill a node with SIGKILL under load, several times. Afterwards every acknowledged
//! order and payment must exist, once.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::common::{Mood, Shop, Warehouse, config, order_body, until};

const CHILD_DATA: &str = "IMT_OMS_TEST_CHILD_DATA";
const CHILD_WAREHOUSE: &str = "IMT_OMS_TEST_CHILD_WAREHOUSE";
/// Name of the file in the data folder to which the child writes its process id and address.
const CHILD_ADDRESS: &str = "child-address";

/// Not a test. Another test starts this function in child processes and kills them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the second process of other tests"]
async fn child_node() {
    let (Ok(data), Ok(warehouse)) = (std::env::var(CHILD_DATA), std::env::var(CHILD_WAREHOUSE)) else {
        return;
    };
    let data = Path::new(&data);
    let node = imt_oms::Node::start(config(data, &warehouse)).await.unwrap();
    // The file is renamed when it is complete, so the parent reads a whole file or none.
    let written = data.join("child-address.new");
    std::fs::write(&written, format!("{} {}", std::process::id(), node.address())).unwrap();
    std::fs::rename(written, data.join(CHILD_ADDRESS)).unwrap();
    std::future::pending::<()>().await;
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn start_child(data: &Path, warehouse: &str) -> (KilledOnDrop, Shop) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "restart::child_node", "--ignored", "--nocapture"])
        .env(CHILD_DATA, data)
        .env(CHILD_WAREHOUSE, warehouse)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = KilledOnDrop(child);
    let mut address = None;
    until("the child to serve", async || {
        assert!(
            child.0.try_wait().unwrap().is_none(),
            "the child exited by itself"
        );
        let text = std::fs::read_to_string(data.join(CHILD_ADDRESS)).unwrap_or_default();
        if let Some((process, found)) = text.split_once(' ')
            && process == child.0.id().to_string()
        {
            address = Some(found.parse().unwrap());
        }
        address.is_some()
    })
    .await;
    (child, Shop::at(address.unwrap()))
}

/// The answers to orders and to payments that the shop received, each with the id of its order.
#[derive(Default)]
struct Acknowledged {
    orders: Vec<(String, bytes::Bytes)>,
    payments: Vec<(String, bytes::Bytes)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_at_any_moment_loses_no_acknowledged_order_or_payment() {
    let data = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::start().await;
    let answers = Arc::new(Mutex::new(Acknowledged::default()));
    let mut checked = (0, 0);
    for round in 0..rounds() {
        let (mut child, shop) = start_child(data.path(), &warehouse.url()).await;
        if round == 0 {
            assert_eq!(shop.stocks("1,1,100000\n2,1,100000\n", Some(0)).await.status, 200);
        }
        warehouse
            .mood
            .send(if round % 2 == 0 {
                Mood::Good
            } else {
                Mood::ActsAndTimesOut
            })
            .unwrap();
        // Repeats the requests acknowledged since the last check, and compares the answers byte for
        // byte. The end of the test checks all of them again.
        checked = check_acknowledged(&shop, &answers, checked).await;
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..8 {
            let (shop, answers, acknowledged) =
                (shop.clone(), Arc::clone(&answers), Arc::clone(&acknowledged));
            clients.spawn(async move {
                for number in 0.. {
                    let id = format!("r{round}c{client}n{number}");
                    let body = order_body(&id, &[(1, 1), (2, 2)]);
                    let Some(order) = shop.try_send("POST", "/order", &[], body.into()).await else {
                        return;
                    };
                    assert_eq!(order.status, 200);
                    answers.lock().unwrap().orders.push((id.clone(), order.body));
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    if number % 2 == 0 {
                        let path = format!("/order/{id}/payment-callback");
                        let body = json!({ "transaction_id": number }).to_string();
                        let Some(paid) = shop.try_send("POST", &path, &[], body.into()).await else {
                            return;
                        };
                        assert_eq!(paid.status, 200);
                        answers.lock().unwrap().payments.push((id, paid.body));
                    }
                }
            });
        }
        let enough = 40 + round % 20 * 37;
        until("acknowledgements", async || {
            acknowledged.load(Ordering::Relaxed) >= enough
        })
        .await;
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    }
    warehouse.mood.send(Mood::Good).unwrap();
    let (_child, shop) = start_child(data.path(), &warehouse.url()).await;
    let (orders, payments) = check_acknowledged(&shop, &answers, (0, 0)).await;
    println!(
        "{} kills, {orders} orders and {payments} payments acknowledged",
        rounds()
    );
    settle_and_audit(&shop, &warehouse, &answers).await;
}

/// Returns the number of kills: 6, or the value of the environment variable `IMT_KILLS`.
fn rounds() -> usize {
    std::env::var("IMT_KILLS").map_or(6, |kills| kills.parse().unwrap())
}

/// Repeats every acknowledged request that was not checked before. `checked` has the numbers of
/// orders and payments that were checked before. Returns the numbers of all acknowledged orders and
/// payments.
async fn check_acknowledged(
    shop: &Shop,
    answers: &Mutex<Acknowledged>,
    checked: (usize, usize),
) -> (usize, usize) {
    let (orders, payments, all) = {
        let answers = answers.lock().unwrap();
        let all = (answers.orders.len(), answers.payments.len());
        (
            answers.orders[checked.0..].to_vec(),
            answers.payments[checked.1..].to_vec(),
            all,
        )
    };
    for (id, body) in orders {
        let again = shop.order(&id, &[(1, 1), (2, 2)]).await;
        assert_eq!((again.status, &again.body), (200, &body), "order {id}");
        assert_eq!(
            again.headers["idempotent-replayed"], "true",
            "order {id} was lost and placed again"
        );
    }
    for (id, body) in payments {
        let transaction: Value = serde_json::from_slice(&body).unwrap();
        let again = shop
            .pay(&id, transaction["transaction_id"].as_u64().unwrap())
            .await;
        assert_eq!((again.status, &again.body), (200, &body), "payment of {id}");
    }
    all
}

async fn settle_and_audit(shop: &Shop, warehouse: &Warehouse, answers: &Mutex<Acknowledged>) {
    let payments = answers.lock().unwrap().payments.clone();
    for (id, _) in &payments {
        shop.until(id, "delivered").await;
    }
    until("the outbox to drain", async || {
        shop.get("/outbox").await.json()["messages"] == json!([])
    })
    .await;
    let orders = all_of(shop, "/orders", "orders").await;
    let open: usize = orders
        .iter()
        .filter(|order| order["state"] == "announced")
        .count();
    let delivered: Vec<&Value> = orders
        .iter()
        .filter(|order| order["state"] == "delivered")
        .collect();
    assert_eq!(open + delivered.len(), orders.len());
    assert_eq!(all_of(shop, "/reservations", "reservations").await.len(), open);
    {
        let seen = warehouse.seen.lock().unwrap();
        assert_eq!(seen.delivered.len(), delivered.len());
        for order in &delivered {
            let (_, sent, _) = &seen.delivered[order["id"].as_str().unwrap()];
            assert_eq!(sent["products"], order["products"]);
            assert_eq!(sent["transaction_id"], order["transaction_id"]);
        }
    }
    let stock = shop.get("/stocks/2").await.json();
    assert_eq!(stock["stores"][0]["on_hand"], 100_000 - 2 * delivered.len());
    assert_eq!(stock["stores"][0]["reserved"], 2 * open);
}

/// Reads all pages of a list.
async fn all_of(shop: &Shop, path: &str, field: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let mut page = shop
            .get(&format!("{path}?limit=1000&cursor={cursor}"))
            .await
            .json();
        if let Value::Array(entries) = page[field].take() {
            all.extend(entries);
        }
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return all,
        }
    }
}
