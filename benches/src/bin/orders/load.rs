//! The load generator: clients with one request in flight each. A client has one TCP connection, or
//! one to each owner of keys.
//!
//! - Connections are made before the clock starts.
//! - Closed loop: each client sends its next request as soon as the previous one is answered.
//! - Open loop: every request has an intended start, independent of the responses. Its latency is
//!   measured from the intended start, so a pause of the server is part of the latency of every
//!   request that it delayed.
//!
//! The client is written by hand, without an HTTP library, because it shares the processors with
//! the measured server and must use little of their time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use imt_benches::Outcome;
use imt_ring::Ring;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

/// Number of threads of the load generator. On a machine with two cores, two threads always kept up
/// with the measured server.
const THREADS: usize = 2;
/// Largest latency of the histogram in microseconds: one minute.
const LATENCY_MAX_US: u64 = 60_000_000;
/// Length in milliseconds of a window of time. The longest latency of each window is recorded.
const WINDOW_MS: u32 = 100;

/// The kind of the requests of a load.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// Each request places a new order with two lines. Order ids begin with this text.
    Order(String),
    /// Each request reads the statistics of a product.
    Statistics,
    /// The requests in turn place a new order, pay an earlier order, read that earlier order, and
    /// read the statistics of a product. Until [`MIX_AHEAD`] orders are sent, a read of statistics
    /// replaces each payment and each read of an order. Order ids begin with this text.
    Mix(String),
    /// Each request pays one order. The id of an order is this text, followed by a number from 0 up
    /// to, but not including, this count.
    Payment(String, u64),
}

impl Ask {
    /// Returns these requests for the load with this number. Each load has its own order ids. Reads
    /// of statistics are the same for every load.
    pub(crate) fn of_client(&self, number: usize) -> Ask {
        match self {
            Ask::Order(prefix) => Ask::Order(format!("{prefix}{number}-")),
            Ask::Mix(prefix) => Ask::Mix(format!("{prefix}{number}-")),
            Ask::Statistics => Ask::Statistics,
            Ask::Payment(prefix, count) => Ask::Payment(format!("{prefix}{number}-"), *count),
        }
    }

    /// Returns the number of requests, if it is limited.
    fn count(&self) -> Option<u64> {
        match self {
            Ask::Payment(_, count) => Some(*count),
            _ => None,
        }
    }
}

/// In [`Ask::Mix`], an order is paid and read when this many further orders have been sent. If
/// there are fewer clients than that, the order is usually answered before its payment is sent.
const MIX_AHEAD: u64 = 1_000;

/// Key by which the ring locates the node that answers reads of statistics.
const STATISTICS: &str = "statistics/";

/// The pace of the requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Each client sends a request as soon as its previous request is answered.
    Closed,
    /// All clients together send this number of requests per second, as long as a client is free at
    /// each intended start.
    Open(f64),
}

/// The owners of orders and statistics, for clients that send each request to its owner.
#[derive(Debug)]
pub(crate) struct Owners {
    pub(crate) ring: Ring,
    /// The addresses of the ring's members, in the order of the members.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Owners {
    fn index_of(&self, key: &[u8]) -> Option<usize> {
        let owner = self.ring.locate(key).ok()?.owner;
        let members = self.ring.members();
        members.binary_search_by(|member| member.name().cmp(owner)).ok()
    }
}

/// A load for one server, or for the owners of the requests' keys.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    /// The owners to which requests are sent. If `None`, all requests are sent to `address`.
    pub(crate) owners: Option<Arc<Owners>>,
    pub(crate) ask: Ask,
    pub(crate) pace: Pace,
    pub(crate) connections: usize,
    pub(crate) lasting: Duration,
}

/// The outcome of a load.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) ok: u64,
    /// Number of responses with another status than 200, and of clients that ended because a
    /// connection failed or a response could not be read.
    pub(crate) other: u64,
    pub(crate) seconds: f64,
    latencies: Histogram<u64>,
    /// Longest latency in microseconds for each window of `WINDOW_MS`. A request belongs to the
    /// window of its start, or in an open loop of its intended start.
    worst_us: Vec<u32>,
}

impl Answers {
    fn note_worst(&mut self, at_ms: u32, took_us: u32) {
        let at = (at_ms / WINDOW_MS) as usize;
        if self.worst_us.len() <= at {
            self.worst_us.resize(at + 1, 0);
        }
        self.worst_us[at] = self.worst_us[at].max(took_us);
    }

    /// Returns the windows with a latency of at least `over_ms` as text, each with its longest
    /// latency, such as `1.2 s: 14 ms`.
    pub(crate) fn pauses(&self, over_ms: u32) -> String {
        let windows = self.worst_us.iter().enumerate();
        let long = windows.filter(|(_, worst_us)| **worst_us / 1_000 >= over_ms);
        let texts = long.map(|(at, worst_us)| {
            let at_s = at as f64 * f64::from(WINDOW_MS) / 1_000.0;
            format!("{at_s:.1} s: {} ms", worst_us / 1_000)
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    /// Returns the combined outcome of several loads that ran at the same time, without the longest
    /// latencies of the windows.
    pub(crate) fn together(parts: Vec<Answers>) -> Outcome<Answers> {
        let mut all = empty()?;
        for part in parts {
            all.ok += part.ok;
            all.other += part.other;
            all.seconds = all.seconds.max(part.seconds);
            all.latencies.add(&part.latencies)?;
        }
        Ok(all)
    }

    /// Returns the number of responses with status 200 per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.ok as f64 / self.seconds
    }

    /// Returns a quantile (0 to 1) of the latency in milliseconds. A client that ended because of a
    /// failed connection or an unreadable response counts as one latency of 0.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

/// A switch that stops a running load before its end. Each client ends before its next request.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_called(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Shared {
    load: Load,
    stop: Stop,
    /// Time at which all clients had tried to connect. Unset until that time.
    begun: OnceLock<Instant>,
    connected: Barrier,
    next: AtomicU64,
}

impl Shared {
    fn begun(&self) -> Instant {
        *self.begun.get_or_init(Instant::now)
    }
}

/// Puts a load on its server, or on its owners, and waits for the end of the load.
pub(crate) fn put(load: &Load, stop: &Stop) -> Outcome<Answers> {
    let shared = Arc::new(Shared {
        load: load.clone(),
        stop: stop.clone(),
        begun: OnceLock::new(),
        connected: Barrier::new(load.connections.max(1)),
        next: AtomicU64::new(0),
    });
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let shared = Arc::clone(&shared);
            let connections = load.connections / THREADS + usize::from(thread < load.connections % THREADS);
            std::thread::spawn(move || run_thread(&shared, connections))
        })
        .collect();
    let mut all = empty()?;
    for thread in threads {
        let part = thread
            .join()
            .map_err(|_| "a thread of the load generator panicked")??;
        all.ok += part.ok;
        all.other += part.other;
        all.latencies.add(&part.latencies)?;
        for (at, worst_us) in part.worst_us.iter().enumerate() {
            all.note_worst(at as u32 * WINDOW_MS, *worst_us);
        }
    }
    all.seconds = shared.begun().elapsed().as_secs_f64();
    Ok(all)
}

fn empty() -> Outcome<Answers> {
    Ok(Answers {
        ok: 0,
        other: 0,
        seconds: 0.0,
        latencies: Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?,
        worst_us: Vec::new(),
    })
}

fn run_thread(shared: &Arc<Shared>, connections: usize) -> Result<Answers, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let mut all = empty().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..connections {
            clients.spawn(run_client(Arc::clone(shared)));
        }
        while let Some(client) = clients.join_next().await {
            let seen = client.map_err(|error| error.to_string())?;
            for (status, took_us, at_ms) in seen {
                all.note_worst(at_ms, took_us);
                if status == 200 {
                    all.ok += 1;
                } else {
                    all.other += 1;
                }
                all.latencies.saturating_record(u64::from(took_us));
            }
        }
        Ok(all)
    })
}

/// Opens the connections of one client: one to its server, or one to each owner.
async fn connect(load: &Load) -> std::io::Result<Vec<TcpStream>> {
    let alone = [load.address];
    let addresses = load
        .owners
        .as_ref()
        .map_or(&alone[..], |owners| &owners.addresses);
    let mut streams = Vec::with_capacity(addresses.len());
    for address in addresses {
        let stream = TcpStream::connect(address).await?;
        let _ = stream.set_nodelay(true);
        streams.push(stream);
    }
    Ok(streams)
}

/// Runs one client with one request in flight. Returns for each request the status, the latency in
/// microseconds, and the start (in an open loop, the intended start) in milliseconds after the
/// start of the load. A failed connection or an unreadable response adds zeros and ends the client.
async fn run_client(shared: Arc<Shared>) -> Vec<(u16, u32, u32)> {
    let mut seen = Vec::with_capacity(1 << 14);
    let connected = connect(&shared.load).await;
    shared.connected.wait().await;
    let Ok(mut streams) = connected else {
        seen.push((0, 0, 0));
        return seen;
    };
    let (mut request, mut answer) = (Request::default(), vec![0u8; 8 * 1_024]);
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let started = match shared.load.pace {
            Pace::Closed => Instant::now(),
            Pace::Open(rate) => {
                let meant = shared.begun() + Duration::from_secs_f64(number as f64 / rate);
                if meant > Instant::now() {
                    tokio::time::sleep_until(meant.into()).await;
                }
                meant
            }
        };
        let is_last = shared.load.ask.count().is_some_and(|count| number >= count);
        let is_over = started.duration_since(shared.begun()) >= shared.load.lasting;
        if is_last || is_over || shared.stop.is_called() {
            return seen;
        }
        write_request(&shared.load.ask, number, &mut request);
        let owners = shared.load.owners.as_ref();
        let owner = owners.and_then(|owners| owners.index_of(request.key.as_bytes()));
        let stream = &mut streams[owner.unwrap_or(0)];
        let Some(status) = exchange(stream, &request.bytes, &mut answer).await else {
            seen.push((0, 0, 0));
            return seen;
        };
        seen.push((
            status,
            started.elapsed().as_micros().min(u128::from(u32::MAX)) as u32,
            started.duration_since(shared.begun()).as_millis() as u32,
        ));
    }
}

/// Returns the id of a product of the benchmark's stock. Successive numbers give scattered ids, and
/// the same ids in every run.
pub(crate) fn product_of(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 10_000 + 1
}

/// Returns the JSON body of an order.
pub(crate) fn order_body(prefix: &str, number: u64) -> String {
    let (first, second) = (product_of(number), product_of(number ^ 0xaaaa_aaaa));
    format!(
        r#"{{"id":"{prefix}{number}","products":[{{"id":{first},"quantity":1}},{{"id":{second},"quantity":2}}]}}"#
    )
}

/// A request as bytes, and the key that decides its owner.
#[derive(Default)]
struct Request {
    bytes: Vec<u8>,
    key: String,
}

fn write_request(ask: &Ask, number: u64, request: &mut Request) {
    use std::io::Write;
    let Request { bytes, key } = request;
    bytes.clear();
    let mut post = |path: &str, body: &str| {
        // Writing to a Vec cannot fail.
        let _ = write!(
            bytes,
            "POST {path} HTTP/1.1\r\nhost: imt\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
    };
    let read = match ask {
        Ask::Order(prefix) => {
            *key = format!("{prefix}{number}");
            return post("/order", &order_body(prefix, number));
        }
        Ask::Payment(prefix, _) => {
            *key = format!("{prefix}{number}");
            let path = format!("/order/{key}/payment-callback");
            return post(&path, &format!(r#"{{"transaction_id":{number}}}"#));
        }
        Ask::Statistics => {
            STATISTICS.clone_into(key);
            format!("/aggregate-stats/{}", product_of(number))
        }
        Ask::Mix(prefix) => {
            let (order, kind) = (number / 4, number % 4);
            let before = order.checked_sub(MIX_AHEAD);
            *key = match (before, kind) {
                (_, 0) => format!("{prefix}{order}"),
                (Some(before), 1 | 2) => format!("{prefix}{before}"),
                _ => STATISTICS.to_owned(),
            };
            match (before, kind) {
                (_, 0) => return post("/order", &order_body(prefix, order)),
                (Some(before), 1) => {
                    let path = format!("/order/{key}/payment-callback");
                    return post(&path, &format!(r#"{{"transaction_id":{before}}}"#));
                }
                (Some(_), 2) => format!("/order/{key}"),
                _ => format!("/aggregate-stats/{}", product_of(number)),
            }
        }
    };
    let _ = write!(bytes, "GET {read} HTTP/1.1\r\nhost: imt\r\n\r\n");
}

/// Sends a request and reads the whole response. A response without the header `content-length`
/// counts as one without a body. Returns the status, or `None` if the connection failed, or the
/// response is not HTTP or does not fit into `answer`.
async fn exchange(stream: &mut TcpStream, request: &[u8], answer: &mut [u8]) -> Option<u16> {
    stream.write_all(request).await.ok()?;
    let mut filled = 0;
    loop {
        let count = stream.read(answer.get_mut(filled..)?).await.ok()?;
        if count == 0 {
            return None;
        }
        filled += count;
        let Some(head) = find(&answer[..filled], b"\r\n\r\n") else {
            continue;
        };
        let status = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
        let length: usize = match find(&answer[..head], b"content-length: ") {
            Some(at) => {
                let digits = &answer[at + 16..head + 2];
                let end = find(digits, b"\r\n")?;
                std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?
            }
            None => 0,
        };
        if filled >= head + 4 + length {
            return Some(status);
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
