//! Micro-benchmarks of microdb's log format: encoding the records of a commit with their checksums,
//! and decoding them with verification, as every read does.
//!
//! `cargo bench -p imt-benches --bench format`. Each iteration has a thousand records with keys of
//! 16 bytes and values of 16 bytes, 100 bytes, 1 KiB or 64 KiB (only 16 records of 64 KiB). The
//! baseline `copy` copies the encoded bytes once.
#![allow(missing_docs)] // criterion's macros make public functions.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use microdb::bench_support::{BenchBody, decode};

/// Size of a value in bytes, and number of records of one iteration.
const SIZES: [(usize, u64); 4] = [(16, 1000), (100, 1000), (1024, 1000), (64 * 1024, 16)];

/// Returns distinct records with random bytes, which cannot be compressed.
fn records(count: u64, value_bytes: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count)
        .map(|_| {
            (
                (0..16).map(|_| byte()).collect(),
                (0..value_bytes).map(|_| byte()).collect(),
            )
        })
        .collect()
}

fn format(criterion: &mut Criterion) {
    for (name, run) in [("encode", 0), ("decode", 1), ("copy", 2)] {
        let mut group = criterion.benchmark_group(name);
        for (value_bytes, count) in SIZES {
            let records = records(count, value_bytes);
            let mut body = BenchBody::default();
            let bytes = body.encode(&records).to_vec();
            group.throughput(Throughput::Elements(count));
            group.bench_function(BenchmarkId::from_parameter(value_bytes), |bencher| match run {
                0 => bencher.iter(|| black_box(body.encode(black_box(&records)).len())),
                1 => bencher.iter(|| assert_eq!(decode(black_box(&bytes)), Some(count as usize))),
                _ => bencher.iter(|| black_box(black_box(&bytes).clone())),
            });
        }
        group.finish();
    }
}

criterion_group!(benches, format);
criterion_main!(benches);
