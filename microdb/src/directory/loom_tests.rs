//! Tests of the races of the directory with loom's weak memory model, in every order that two
//! preemptions permit.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p imt-microdb --lib loom` runs the real chunks,
//! root and stash on loom's atomics, with one writer and one reader. The writer runs in the first
//! thread of the model. Loom explores which of the earlier stores of other threads a load sees. If
//! a thread loads a word and then stores to the same word, loom does not explore other orders of
//! that store.

use loom::thread;
use std::sync::Arc;

use super::chunk::Chunk;
use super::probe::Probe;
use super::slot::PREFIX_BITS;
use super::*;
use crate::raw::epoch::pin;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Two preemptions are enough for every race of one reader: one interrupts the reader, and one
    // interrupts the writer. More preemptions take hours.
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    let runs = Arc::new(AtomicU64::new(0));
    let counter = runs.clone();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    // Loom runs a model without any race only once. Such a test would prove nothing.
    assert!(runs.load(Ordering::Relaxed) > 10);
}

fn at(number: u32) -> Location {
    Location::new(1, number + 1)
}

/// Returns a prefix with the home bucket `home` in a chunk of `buckets` buckets. Each `number`
/// gives a different tag.
fn prefix(home: u64, buckets: u64, number: u64) -> Prefix {
    Prefix(((home << PREFIX_BITS) / buckets + 1_000 + number * 8) & ((1 << PREFIX_BITS) - 1))
}

fn finds(chunk: &Chunk, prefix: Prefix, location: Location) -> bool {
    let mut probe = Probe::new(chunk, prefix);
    std::iter::from_fn(|| probe.next()).any(|found| found == location)
}

/// Returns a chunk of three buckets, of which the first two are full. The second bucket of each key
/// is the bucket after its home.
fn nearly_full() -> Arc<Chunk> {
    let chunk = Chunk::new(0, 0, 3, 0);
    for number in 0..16 {
        let prefix = prefix(number / 8, 3, number);
        assert_eq!(chunk.home(prefix), number as usize / 8);
        assert!(chunk.insert(prefix, at(number as u32)));
    }
    Arc::new(chunk)
}

#[test]
fn loom_a_chain_of_moves_never_hides_a_key() {
    for sought in [0, 8, 9] {
        check(move || {
            let chunk = nearly_full();
            let reader = thread::spawn({
                let chunk = chunk.clone();
                move || assert!(finds(&chunk, prefix(sought / 8, 3, sought), at(sought as u32)))
            });
            // Moves a key from bucket 1 to bucket 2 and a key from bucket 0 to bucket 1. Inserts a
            // new key into the freed slot of bucket 0.
            assert!(chunk.vacate(0, 2).is_some());
            assert!(chunk.insert(prefix(0, 3, 50), at(50)));
            reader.join().unwrap();
            assert!(finds(&chunk, prefix(0, 3, 50), at(50)));
        });
    }
}

#[test]
fn loom_flags_that_come_and_go_never_hide_a_key() {
    for sought in [20, 8] {
        check(move || {
            let chunk = nearly_full();
            // Keys 20 and 21 have one class and are displaced to the third bucket. The flag of this
            // class must stay set until both keys are removed.
            assert!(chunk.insert(prefix(1, 3, 20), at(20)) && chunk.insert(prefix(1, 3, 21), at(21)));
            let reader = thread::spawn({
                let chunk = chunk.clone();
                move || assert!(finds(&chunk, prefix(1, 3, sought), at(sought as u32)))
            });
            chunk.remove(chunk.find(prefix(1, 3, 21), at(21)).unwrap());
            chunk.remove(chunk.find(prefix(1, 3, 9), at(9)).unwrap());
            assert!(chunk.insert(prefix(1, 3, 22), at(22)));
            reader.join().unwrap();
            assert!(finds(&chunk, prefix(1, 3, 22), at(22)) && !finds(&chunk, prefix(1, 3, 21), at(21)));
        });
    }
}

fn hash(prefix: Prefix) -> KeyHash {
    KeyHash(prefix.aligned())
}

fn reads(directory: &Directory, prefix: Prefix) -> Option<Location> {
    directory.candidates(&pin(), hash(prefix)).unwrap().next()
}

#[test]
fn loom_growth_and_relocation_show_the_old_place_or_the_new() {
    check(|| {
        let directory = Arc::new(Directory::new());
        for number in 0..8 {
            directory
                .insert(&pin(), hash(prefix(0, 1, number)), at(number as u32))
                .unwrap();
        }
        let reader = thread::spawn({
            let directory = directory.clone();
            move || {
                let found = reads(&directory, prefix(0, 1, 3));
                assert!(found == Some(at(3)) || found == Some(at(30)), "{found:?}");
                // Once the reader has seen the new location, it never sees the old location again.
                // It also sees key 8, which was inserted before the relocation.
                if found == Some(at(30)) {
                    assert_eq!(reads(&directory, prefix(0, 1, 3)), found);
                    assert_eq!(reads(&directory, prefix(0, 1, 8)), Some(at(8)));
                }
            }
        });
        directory.insert(&pin(), hash(prefix(0, 1, 8)), at(8)).unwrap();
        assert!(
            directory
                .relocate(&pin(), hash(prefix(0, 1, 3)), at(3), at(30))
                .unwrap()
        );
        reader.join().unwrap();
    });
}

#[test]
fn loom_keys_of_one_hash_are_found_wherever_they_go() {
    check(|| {
        let directory = Arc::new(Directory::new());
        let same = hash(prefix(0, 1, 0));
        for number in 0..8 {
            directory.insert(&pin(), same, at(number)).unwrap();
        }
        let reader = thread::spawn({
            let directory = directory.clone();
            move || {
                let guard = pin();
                assert!(
                    directory
                        .candidates(&guard, same)
                        .unwrap()
                        .any(|found| found == at(5))
                );
            }
        });
        (8..18).for_each(|number| directory.insert(&pin(), same, at(number)).unwrap());
        assert!(directory.remove(&pin(), same, at(17)).unwrap());
        reader.join().unwrap();
        assert_eq!(directory.candidates(&pin(), same).unwrap().count(), 17);
    });
}

#[test]
fn loom_a_view_shows_its_moment_whatever_the_writer_does_beside_it_and_after_it() {
    check(|| {
        let directory = Arc::new(Directory::new());
        for number in 0..2 {
            directory
                .insert(&pin(), hash(prefix(0, 1, number)), at(number as u32))
                .unwrap();
        }
        let view = directory.view(&pin());
        let reader = thread::spawn(move || {
            for number in [0, 1, 0] {
                let found = view.candidates(hash(prefix(0, 1, number))).unwrap().next();
                assert_eq!(found, Some(at(number as u32)));
            }
        });
        // The relocation copies the chunk if the view still exists. The removal may then change the
        // copy in place.
        let (moved, gone) = (hash(prefix(0, 1, 0)), hash(prefix(0, 1, 1)));
        assert!(directory.relocate(&pin(), moved, at(0), at(30)).unwrap());
        assert!(directory.remove(&pin(), gone, at(1)).unwrap());
        reader.join().unwrap();
        assert_eq!(reads(&directory, prefix(0, 1, 0)), Some(at(30)));
        assert_eq!(reads(&directory, prefix(0, 1, 1)), None);
    });
}
