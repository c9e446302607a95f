//! The measured servers, each in a child process: a bare server, a durable ceiling, the node, a
//! warehouse.
//!
//! A server prints its address on one line of its standard output and runs until its standard input
//! is closed. The bare server only parses an order and answers. The ceiling also writes the body to
//! a preallocated log, with one sync for all requests that wait at the same time. Every durable
//! server must do this work, so the ceiling shows the limit of this machine.

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use imt_benches::Outcome;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Size of the ceiling's log in bytes. The whole file is written before the run. When the log is
/// full, it is overwritten from its beginning.
const LOG_BYTES: u64 = 256 << 20;

/// A server that a child process runs.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Role {
    /// The bare server, which answers without storing anything.
    Bare,
    /// The durable ceiling, which answers once the request's body is in a synced log.
    Durable { folder: PathBuf },
    /// A node of IMT Order.
    Node { folder: PathBuf, warehouse: String },
    /// A warehouse that answers every request after a delay.
    Warehouse {
        delay_ms: u64,
        #[arg(default_value_t = 0)]
        port: u16,
    },
}

/// Runs a server in this process until the standard input is closed.
pub(crate) fn serve(role: Role) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::Bare => listen(BodyLog::None, Duration::ZERO, 0).await?,
            Role::Durable { folder } => listen(BodyLog::start(&folder)?, Duration::ZERO, 0).await?,
            Role::Warehouse { delay_ms, port } => {
                listen(BodyLog::None, Duration::from_millis(delay_ms), port).await?;
            }
            Role::Node { folder, warehouse } => {
                let mut config = imt_oms::NodeConfig::new("bench", folder);
                config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
                config.warehouse = Some(warehouse);
                let node = imt_oms::Node::start(config).await?;
                announce(node.address())?;
                tokio::task::spawn_blocking(wait_for_end).await?;
                node.stop().await?;
            }
        }
        Ok(())
    })
}

fn announce(address: SocketAddr) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{address}")?;
    out.flush()?;
    Ok(())
}

fn wait_for_end() {
    let mut rest = Vec::new();
    // The wait also ends if the standard input cannot be read.
    let _ = std::io::stdin().lock().read_to_end(&mut rest);
}

#[derive(Deserialize, Serialize)]
struct Line {
    id: u32,
    quantity: u32,
}

#[derive(Deserialize, Serialize)]
struct Order {
    id: String,
    products: Vec<Line>,
}

async fn listen(log: BodyLog, delay: Duration, port: u16) -> Outcome<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    announce(listener.local_addr()?)?;
    let ended = tokio::task::spawn_blocking(wait_for_end);
    tokio::pin!(ended);
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = &mut ended => return Ok(()),
        };
        let _ = stream.set_nodelay(true);
        let log = log.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, log.clone(), delay));
            // An error concerns only this connection: its client has disconnected, or has sent
            // bytes that are not HTTP.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    log: BodyLog,
    delay: Duration,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let is_get = request.method() == hyper::Method::GET;
    let body = request.into_body().collect().await?.to_bytes();
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    let text = if is_get {
        br#"{"ca":12345,"total_qty":1234,"mean_price":10.004051863857375}"#.to_vec()
    } else {
        let order: Result<Order, _> = serde_json::from_slice(&body);
        let Ok(order) = order else {
            // A body that is not an order is answered without storing it.
            return Ok(Response::new(Full::default()));
        };
        if !log.append(body).await {
            let mut failed = Response::new(Full::default());
            *failed.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(failed);
        }
        serde_json::to_vec(&order).unwrap_or_default()
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

type Waiting = (Bytes, oneshot::Sender<()>);

/// The log in which the ceiling stores bodies before it answers. The other servers have none.
#[derive(Clone)]
enum BodyLog {
    None,
    Log(Arc<mpsc::Sender<Waiting>>),
}

impl BodyLog {
    fn start(folder: &Path) -> Outcome<BodyLog> {
        std::fs::create_dir_all(folder)?;
        let file = File::create(folder.join("ceiling.log"))?;
        let zeros = vec![0u8; 1 << 20];
        for at in (0..LOG_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        let (sender, receiver) = mpsc::channel::<Waiting>();
        std::thread::spawn(move || {
            let (mut at, mut group, mut answers) = (0u64, Vec::new(), Vec::new());
            while let Ok(first) = receiver.recv() {
                for (body, answer) in std::iter::once(first).chain(receiver.try_iter()) {
                    group.extend_from_slice(&(body.len() as u32).to_le_bytes());
                    group.extend_from_slice(&body);
                    answers.push(answer);
                }
                if at + group.len() as u64 > LOG_BYTES {
                    at = 0;
                }
                let stored = file.write_all_at(&group, at).and_then(|()| file.sync_data());
                at += group.len() as u64;
                group.clear();
                // The return drops the senders in `answers` and the receiver, so every waiting
                // request and every later request fails.
                if stored.is_err() {
                    return;
                }
                for answer in answers.drain(..) {
                    // The send fails if the client has disconnected.
                    let _ = answer.send(());
                }
            }
        });
        Ok(BodyLog::Log(Arc::new(sender)))
    }

    /// Appends a body and waits for the sync. Returns `false` if the write or the sync failed.
    /// Without a log, returns `true` at once.
    async fn append(&self, body: Bytes) -> bool {
        let BodyLog::Log(log) = self else { return true };
        let (answer, stored) = oneshot::channel();
        log.send((body, answer)).is_ok() && stored.await.is_ok()
    }
}
