//! Clients that continuously place orders of one volume, and record when each order was
//! acknowledged.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use imt_benches::Outcome;
use imt_ring::Ring;

use crate::load::order_body;

/// Number of clients of a probe. While the order of one client waits for a killed node, another
/// client can receive the first response after another node has taken over the volume.
const CLIENTS: usize = 4;
/// Pause of a client after each request, successful or not.
const PAUSE: Duration = Duration::from_millis(5);
/// Maximum wait of a client for the next bytes of a response.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a request on a new connection. Returns status and body, or `None` if the connection fails,
/// a wait for bytes exceeds [`PATIENCE`], or the head of the response cannot be read.
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let (length, kind) = match body.starts_with('{') {
        true => (body.len(), "application/json"),
        false => (body.len(), "text/csv"),
    };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: imt\r\nconnection: close\r\n");
    write!(
        stream,
        "{head}content-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// An acknowledged order.
#[derive(Clone)]
pub(crate) struct Acknowledged {
    pub(crate) id: String,
    pub(crate) sent: Instant,
    pub(crate) at: Instant,
}

/// Running clients. When this value is dropped, each client stops after its current request.
pub(crate) struct Probe {
    is_over: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Starts clients that send orders to the node at `address`. The ids of all orders begin with
    /// `prefix`, and `ring` assigns each id to `volume`.
    pub(crate) fn start(address: SocketAddr, ring: &Ring, volume: &str, prefix: &str) -> Probe {
        let is_over = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let next = Arc::new(AtomicU64::new(0));
        let client = || {
            let (is_over, acknowledged, next) =
                (Arc::clone(&is_over), Arc::clone(&acknowledged), Arc::clone(&next));
            let (ring, volume, prefix) = (ring.clone(), volume.to_owned(), prefix.to_owned());
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let id = format!("{prefix}{number}");
                    let owner = ring.locate(id.as_bytes());
                    if owner.is_ok_and(|place| place.owner.as_str() != volume) {
                        continue;
                    }
                    let sent = Instant::now();
                    let answer = send(address, "POST", "/order", &order_body(&prefix, number));
                    if answer.is_some_and(|(status, _)| status == 200) {
                        let order = Acknowledged {
                            id,
                            sent,
                            at: Instant::now(),
                        };
                        acknowledged
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .push(order);
                    }
                    std::thread::sleep(PAUSE);
                }
            })
        };
        let clients = (0..CLIENTS).map(|_| client()).collect();
        Probe {
            is_over,
            acknowledged,
            clients,
        }
    }

    fn so_far(&self) -> Vec<Acknowledged> {
        let acknowledged = self.acknowledged.lock();
        acknowledged
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Waits until an order that was sent after `moment` is acknowledged, or fails after a minute.
    /// Returns two times from `moment` on: to the first acknowledgement of any order, and to the
    /// first acknowledgement of an order that was sent after `moment`.
    pub(crate) fn wait_since(&self, moment: Instant) -> Outcome<(Duration, Duration)> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let orders = self.so_far();
            let first = |is_it: &dyn Fn(&Acknowledged) -> bool| {
                orders
                    .iter()
                    .filter(|order| is_it(order))
                    .map(|order| order.at)
                    .min()
            };
            let sent_after = first(&|order| order.sent > moment);
            let at_all = first(&|order| order.at > moment);
            if let (Some(sent_after), Some(at_all)) = (sent_after, at_all) {
                return Ok((at_all - moment, sent_after - moment));
            }
            if Instant::now() >= until {
                return Err("no order was acknowledged within a minute".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the clients. Returns all acknowledged orders, sorted by the time of their
    /// acknowledgement.
    pub(crate) fn stop(mut self) -> Outcome<Vec<Acknowledged>> {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().map_err(|_| "a client of a probe panicked")?;
        }
        let mut orders = self.so_far();
        orders.sort_by_key(|order| order.at);
        Ok(orders)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Returns the longest time between two successive acknowledgements, or 0 for fewer than two. The
/// last acknowledgement up to `from` and all later acknowledgements are considered.
pub(crate) fn longest_gap(orders: &[Acknowledged], from: Instant) -> Duration {
    let before = orders.iter().rposition(|order| order.at <= from).unwrap_or(0);
    let times = orders[before.min(orders.len())..].windows(2);
    times
        .map(|pair| pair[1].at - pair[0].at)
        .max()
        .unwrap_or_default()
}
