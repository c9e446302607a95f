//! Tests of images: an opened image equals the written one, and damage is always found.

use std::sync::Arc;

use super::image::{EncodeError, HEADER_BYTES, ImageTable, seal};
use super::tests::{Bench, Hashing, Random, location, mix};
use super::*;
use crate::raw::epoch::pin;
use crate::raw::map::Map;

const SEED: u32 = 0x5EED;

/// Returns a file that holds the image of a directory after `start` other bytes.
fn image(directory: &Directory, start: usize) -> (Vec<u8>, ImageTable) {
    let mut file = vec![0xAA; start];
    let table = directory
        .view(&pin())
        .encode(&mut file, start as u64, SEED)
        .unwrap();
    assert_eq!(table.offset + table.bytes, file.len() as u64);
    (file, table)
}

fn open(file: &[u8], table: ImageTable) -> Result<Directory, Damage> {
    Directory::from_image(&Arc::new(Map::of_bytes(file)), table, SEED)
}

fn bench(hashing: Hashing, keys: u64) -> Bench {
    let mut bench = Bench::new(hashing);
    for key in 0..keys {
        bench.put(key);
    }
    for key in (0..keys).step_by(7) {
        bench.delete(key);
    }
    bench
}

#[test]
fn an_opened_image_is_the_directory_that_was_written_and_lives_on() {
    for (hashing, keys) in [
        (Hashing::Good, 0),
        (Hashing::Good, 30),
        (Hashing::Good, 9_000),
        (Hashing::Good, 150_000),
        (Hashing::Few(3), 100),
    ] {
        let mut bench = bench(hashing, keys);
        // Three rounds, so that the image of each later round contains chunks copied from the map
        // of the round before.
        for round in 0..3 {
            let (file, table) = image(&bench.directory, 640);
            bench.directory = open(&file, table).unwrap();
            assert!(bench.directory.bytes() < 1_024 + keys);
            bench.check();
            for key in (round..keys).step_by(500) {
                bench.put(key);
                bench.put(key + 1_000_000);
                bench.relocate(key);
                bench.delete(key + 1);
            }
            bench.check();
        }
        for key in keys..keys * 2 {
            bench.put(key);
        }
        bench.check();
    }
}

#[test]
fn changing_a_mapped_directory_copies_only_what_changes() {
    let (file, table) = image(&bench(Hashing::Good, 150_000).directory, 0);
    let directory = open(&file, table).unwrap();
    let (guard, before) = (pin(), directory.bytes());
    directory
        .insert(&guard, KeyHash(mix(1 << 40)), location(1 << 30))
        .unwrap();
    assert!(directory.bytes() > before && directory.bytes() < before + (70 << 10));
    let whole = open(&file, table).unwrap().mapped_bytes(&guard);
    let mapped = directory.mapped_bytes(&guard);
    assert!(whole <= file.len() as u64 && mapped < whole && mapped + (64 << 10) >= whole);
}

#[test]
fn every_flipped_bit_of_a_small_image_is_an_error_that_names_its_place() {
    let bench = bench(Hashing::Good, 60);
    let (file, table) = image(&bench.directory, 64);
    for bit in 64 * 8..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = match open(&damaged, table) {
            Err(damage) => {
                assert!(bit / 8 >= table.offset as usize);
                assert_eq!(damage.offset, table.offset);
                damage
            }
            Ok(directory) => {
                let guard = pin();
                let hash = bench.hashing.hash(1);
                let damage = directory
                    .candidates(&guard, hash)
                    .err()
                    .expect("damage must show");
                assert_eq!(directory.insert(&guard, hash, location(1)), Err(damage));
                assert_eq!(directory.remove(&guard, hash, location(1)), Err(damage));
                assert_eq!(
                    directory.relocate(&guard, hash, location(1), location(2)),
                    Err(damage)
                );
                let view = directory.view(&guard);
                assert_eq!(view.iter().find_map(Result::err), Some(damage));
                assert_eq!(view.candidates(hash).err(), Some(damage));
                let encoded = view.encode(&mut Vec::new(), 0, SEED);
                assert!(matches!(encoded, Err(EncodeError::Damage(same)) if same == damage));
                damage
            }
        };
        assert_ne!(error.expected, error.found, "bit {bit}: {error:?}");
    }
}

#[test]
fn damage_in_one_chunk_leaves_the_others_readable() {
    let bench = bench(Hashing::Good, 150_000);
    let (mut file, table) = image(&bench.directory, 0);
    let mut random = Random(1);
    let at = random.below(table.offset);
    file[at as usize] ^= 4;
    let directory = open(&file, table).unwrap();
    let (mut right, mut damaged) = (0, 0);
    for (key, expected) in &bench.model {
        match directory.find(&pin(), bench.hashing.hash(*key), |at| Ok(bench.log[&at] == *key)) {
            Ok(found) => {
                assert_eq!(found, Some(*expected));
                right += 1;
            }
            Err(Damage { offset, .. }) => {
                assert!(offset <= at && at < offset + (64 << 10));
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0 && right > damaged * 10);
}

#[test]
fn every_truncation_and_every_foreign_table_is_an_error() {
    let (file, table) = image(&bench(Hashing::Good, 60).directory, 64);
    for len in 0..file.len() {
        assert!(
            open(&file[..len], table).is_err(),
            "{len} of {} bytes",
            file.len()
        );
    }
    for (offset, bytes) in [
        (0, table.bytes),
        (table.offset, 0),
        (table.offset, 23),
        (u64::MAX, 1),
        (1, u64::MAX),
    ] {
        assert!(open(&file, ImageTable { offset, bytes }).is_err());
    }
    let map = Arc::new(Map::of_bytes(&file));
    assert!(Directory::from_image(&map, table, SEED + 1).is_err());
}

/// Opens tables with random changes and a valid checksum. Opening and reading must return without a
/// panic, in bounded time and memory.
#[test]
fn forged_tables_are_refused_or_harmless() {
    let bench = bench(Hashing::Few(3), 100);
    let (file, table) = image(&bench.directory, 0);
    let mut random = Random(9);
    let table_bytes = table.bytes as usize;
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut forged = file.clone();
        let bytes = &mut forged[table.offset as usize..];
        for _ in 0..1 + random.below(3) {
            let at = 8 + random.below(table_bytes as u64 - 8) as usize;
            bytes[at] = random.next() as u8;
        }
        seal(bytes, table.offset, SEED);
        match open(&forged, table) {
            Ok(directory) => {
                let guard = pin();
                for key in 0..20 {
                    let _ = directory
                        .candidates(&guard, bench.hashing.hash(key))
                        .map(Iterator::count);
                }
                let _ = directory.view(&guard).iter().count();
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 10_000);
    assert!(table_bytes > HEADER_BYTES);
}
