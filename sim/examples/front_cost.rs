//! Measures the processor time of the threads of the shop front, the cost of writing `stats.csv`,
//! and the lag. The main thread, which dispatches the requests, is not measured.
//!
//!     cargo run --release -p imt-sim --example front_cost -- [RATE] [SECONDS] [ROUNDS]
//!
//! RATE is in requests per second, without payments and cancellations. SECONDS is the length of
//! each round. The shop front loads a server in the same process that answers every request with
//! 200. The times do not include the server's threads.
//!
//! ROUNDS rounds with the log `stats.csv` and as many without it alternate. Only the recorder's
//! thread writes the log, so the cost of the log is the difference of that thread's times. The
//! difference of the total times would be smaller than the noise of a busy machine. The example
//! reads the scheduler's clocks below `/proc`, so it runs on Linux only.
#![allow(clippy::unwrap_used)] // A measuring tool: a failure ends it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, server::conn::http1};
use hyper_util::rt::TokioIo;
use imt_sim::workload::{Arrivals, Load};
use imt_sim::{FrontConfig, FrontReport, Telemetry, run_front};
use tokio::sync::watch;

/// Processor time in microseconds by thread name.
type Times = BTreeMap<String, f64>;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<f64>().unwrap());
    let rate = arguments.next().unwrap_or(5_000.0);
    let seconds = arguments.next().unwrap_or(5.0);
    let rounds = arguments.next().unwrap_or(5.0) as usize;
    let address = start_server();
    let mut recorder = [Vec::new(), Vec::new()];
    let mut total = Vec::new();
    for round in 0..2 * rounds {
        let stats_csv = round % 2 == 0;
        let data = tempfile::tempdir().unwrap();
        let config = FrontConfig {
            oms: address.into(),
            data: data.path().to_owned(),
            load: Load::steady(rate, Duration::from_secs_f64(seconds), Arrivals::Fixed),
            stats_csv,
            ..FrontConfig::default()
        };
        let (report, times) = measured(config);
        let each = |name: &str| times.get(name).copied().unwrap_or_default() / report.requests as f64;
        let sum: f64 = times.keys().map(|name| each(name)).sum();
        println!(
            "{} stats.csv, us a request: {sum:.2} in all, {:.2} runtime, {:.2} pacer, {:.3} recorder; \
             {:.0} requests/s, {} late, lag p50 {} p99 {} max {} us",
            if stats_csv { "   with" } else { "without" },
            each("front-runtime"),
            each("front-pacer"),
            each("front-recorder"),
            report.rate(),
            report.late,
            report.lag.p50_us,
            report.lag.p99_us,
            report.lag.max_us,
        );
        recorder[usize::from(stats_csv)].push(each("front-recorder"));
        total.push(sum);
    }
    let [without, with] = recorder.map(median);
    let cost = with - without;
    let share = cost / median(total) * 100.0;
    println!("medians: stats.csv costs {cost:.3} us a request, {share:.2} % of the front");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs the shop front once. Returns its report and the processor times of its threads.
fn measured(config: FrontConfig) -> (FrontReport, Times) {
    let running = Arc::new(AtomicBool::new(true));
    // The clock of a thread disappears when the thread ends. So the clocks are read every 20 ms,
    // and the last value of each thread is used.
    let watcher = std::thread::spawn({
        let running = Arc::clone(&running);
        move || {
            let mut last: BTreeMap<String, (String, f64)> = BTreeMap::new();
            while running.load(Ordering::Relaxed) {
                for thread in std::fs::read_dir("/proc/self/task").unwrap() {
                    let path = thread.unwrap().path();
                    let read = |name: &str| std::fs::read_to_string(path.join(name));
                    if let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) {
                        let used_us = times.split(' ').next().unwrap().parse::<f64>().unwrap() / 1000.0;
                        last.insert(path.display().to_string(), (name.trim().to_owned(), used_us));
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut times = Times::new();
            for (name, used_us) in last.into_values().filter(|(name, _)| name.starts_with("front-")) {
                *times.entry(name).or_default() += used_us;
            }
            times
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("front-runtime")
        .enable_all()
        .build()
        .unwrap();
    let (_stop, stopped) = watch::channel(false);
    let report = runtime
        .block_on(run_front(config, &Telemetry::default(), stopped))
        .unwrap();
    running.store(false, Ordering::Relaxed);
    (report, watcher.join().unwrap())
}

/// Starts a server that answers every request with 200, on threads of its own. Returns its address.
fn start_server() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("server")
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        });
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // A real server reads the body, so this server reads it as well.
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::from(
        r#"{"status":"ok","stock_snapshots":1}"#,
    )))
}
