//! Micro-benchmarks of microdb's hash directory: look-ups of present and absent keys, and insertion
//! with growth. "Overlapped" operations are passed in one call, so that the directory can overlap
//! their cache misses. Further benchmarks measure views (the directory as of one moment) and images
//! (the form in which a checkpoint file stores a view).
//!
//! `cargo bench -p imt-benches --bench directory`. With 2 million keys the directory has 21 MB,
//! more than the caches of a core, so each look-up has about one cache miss. The baseline `memory`
//! makes the same number of random reads in an array of the same size. Each of its reads waits for
//! the read before, so its time per read is the cost of a cache miss in this run.
#![allow(missing_docs)] // criterion's macros make public functions.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use microdb::bench_support::BenchDirectory;

const KEYS: u64 = 2_000_000;
/// Number of look-ups in one iteration of a benchmark.
const OPERATIONS: usize = 100_000;

/// Returns the hash of a number (SplitMix64). Distinct numbers have distinct hashes.
fn hash(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Returns the hashes of random existing keys.
fn present() -> Vec<u64> {
    (0..OPERATIONS as u64)
        .map(|n| hash(hash(n ^ 77) % KEYS))
        .collect()
}

/// Returns the hashes of absent keys.
fn absent() -> Vec<u64> {
    (0..OPERATIONS as u64).map(|n| hash(n + (1 << 40))).collect()
}

fn filled(keys: u64) -> BenchDirectory {
    let directory = BenchDirectory::default();
    directory.insert_all(&(0..keys).map(hash).collect::<Vec<_>>(), 0);
    directory
}

fn look_up(criterion: &mut Criterion) {
    let directory = filled(KEYS);
    let mut group = criterion.benchmark_group("look-up");
    group.throughput(Throughput::Elements(OPERATIONS as u64));
    let memory: Vec<u64> = (0..directory.bytes() / 8).collect();
    let (present, absent) = (present(), absent());
    group.bench_function("memory", |bencher| {
        bencher.iter(|| chained(&present, |hash| memory[(hash % memory.len() as u64) as usize]));
    });
    group.bench_function("found, one waits for the other", |bencher| {
        bencher.iter(|| chained(&present, |hash| directory.get(hash).unwrap_or(0)));
    });
    for (name, hashes) in [("found", &present), ("absent", &absent)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| hashes.iter().filter_map(|hash| directory.get(*hash)).sum::<u64>());
        });
        group.bench_function(format!("{name}, overlapped"), |bencher| {
            bencher.iter(|| directory.get_all(hashes));
        });
    }
    group.finish();
}

/// Makes reads that each depend on the result of the previous read, so that the full latency of a
/// read is measured.
fn chained(hashes: &[u64], read: impl Fn(u64) -> u64) -> u64 {
    // Results are below 2^63, so the shift gives 0 and the hash does not change. The compiler and
    // the processor do not know this, so they cannot start a read before the previous read ends.
    black_box(hashes)
        .iter()
        .fold(0, |last, hash| read(hash ^ (last >> 63)))
}

fn insert(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("insert");
    group.sample_size(10).throughput(Throughput::Elements(KEYS));
    let hashes: Vec<u64> = (0..KEYS).map(hash).collect();
    group.bench_function("2 M from empty", |bencher| {
        bencher.iter_batched(
            BenchDirectory::default,
            |directory| {
                hashes
                    .iter()
                    .zip(0..)
                    .for_each(|(hash, number)| directory.insert(*hash, number));
                directory
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("2 M from empty, overlapped", |bencher| {
        bencher.iter_batched(
            BenchDirectory::default,
            |directory| {
                directory.insert_all(&hashes, 0);
                directory
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn views_and_images(criterion: &mut Criterion) {
    let directory = filled(KEYS);
    let mut group = criterion.benchmark_group("2 M keys");
    group.sample_size(20);
    group.bench_function("view", |bencher| bencher.iter(|| directory.view()));
    let view = directory.view();
    group.bench_function("scan a view", |bencher| bencher.iter(|| view.count()));
    group.bench_function("encode an image", |bencher| {
        bencher.iter(|| view.encode(&mut std::io::sink()));
    });
    let mut file = tempfile::tempfile().expect("a temporary file");
    let table = view.encode(&mut file);
    group.bench_function("open an image", |bencher| {
        bencher.iter(|| BenchDirectory::open(&file, table).expect("mapped"));
    });
    group.finish();
}

criterion_group!(benches, look_up, insert, views_and_images);
criterion_main!(benches);
