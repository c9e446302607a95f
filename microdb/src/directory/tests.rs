//! Tests of the directory: comparison with a plain map over random histories, with evenly
//! distributed and with colliding hashes; and tests of size, false matches, flags, views and
//! concurrent readers.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::raw::epoch::pin;

/// A small random number generator (SplitMix64), so that a failed test can be repeated.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Returns a different location for every number below 65,536 x (2^26 - 1).
pub(super) fn location(number: u64) -> Location {
    let places = (1 << 26) - 1;
    Location::new(number / places, (number % places) as u32 + 1)
}

/// Hash function of the keys of a test.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hashing {
    Good,
    /// The keys have only this many different hashes, so that they collide.
    Few(u64),
    /// All hashes begin with the same 8 bits.
    SameTop,
    /// All hashes have the same tag.
    SameTag,
}

impl Hashing {
    pub(super) fn hash(self, key: u64) -> KeyHash {
        KeyHash(match self {
            Hashing::Good => mix(key),
            Hashing::Few(hashes) => mix(key % hashes),
            Hashing::SameTop => mix(key) >> 8,
            Hashing::SameTag => mix(key) & !(0xF_FFFF << 30),
        })
    }
}

/// A directory, its model (a plain map), and a log that maps locations to keys.
pub(super) struct Bench {
    pub(super) directory: Directory,
    pub(super) hashing: Hashing,
    pub(super) model: BTreeMap<u64, Location>,
    pub(super) log: HashMap<Location, u64>,
    written: u64,
}

impl Bench {
    pub(super) fn new(hashing: Hashing) -> Self {
        Self {
            directory: Directory::new(),
            hashing,
            model: BTreeMap::new(),
            log: HashMap::new(),
            written: 0,
        }
    }

    pub(super) fn write(&mut self, key: u64) -> Location {
        self.written += 1;
        let at = location(self.written);
        self.log.insert(at, key);
        at
    }

    pub(super) fn put(&mut self, key: u64) {
        let to = self.write(key);
        let is_same = |at| Ok::<_, Damage>(self.log[&at] == key);
        let old = self
            .directory
            .upsert(&pin(), self.hashing.hash(key), to, is_same)
            .unwrap();
        assert_eq!(old, self.model.insert(key, to));
    }

    pub(super) fn delete(&mut self, key: u64) {
        let expected = self.model.remove(&key);
        assert_eq!(self.get(key), expected);
        let from = expected.unwrap_or_else(|| location(u64::MAX >> 24));
        let removed = self
            .directory
            .remove(&pin(), self.hashing.hash(key), from)
            .unwrap();
        assert_eq!(removed, expected.is_some());
    }

    pub(super) fn relocate(&mut self, key: u64) {
        let to = self.write(key);
        let hash = self.hashing.hash(key);
        match self.model.get_mut(&key) {
            Some(at) => {
                assert!(self.directory.relocate(&pin(), hash, *at, to).unwrap());
                assert!(!self.directory.relocate(&pin(), hash, *at, to).unwrap());
                *at = to;
            }
            None => assert!(!self.directory.relocate(&pin(), hash, to, to).unwrap()),
        }
    }

    pub(super) fn get(&self, key: u64) -> Option<Location> {
        let is_same = |at| Ok::<_, Damage>(self.log[&at] == key);
        self.directory
            .find(&pin(), self.hashing.hash(key), is_same)
            .unwrap()
    }

    pub(super) fn check(&self) {
        assert_eq!(self.directory.len(), self.model.len() as u64);
        for (key, at) in &self.model {
            assert_eq!(self.get(*key), Some(*at), "key {key}, {:?}", self.hashing);
        }
        check_view(&self.directory.view(&pin()), &self.model, self.hashing, &self.log);
    }
}

fn check_view(view: &View, model: &BTreeMap<u64, Location>, hashing: Hashing, log: &HashMap<Location, u64>) {
    assert_eq!(view.len(), model.len() as u64);
    let mut all: Vec<Location> = view.iter().map(Result::unwrap).collect();
    let mut expected: Vec<Location> = model.values().copied().collect();
    all.sort();
    expected.sort();
    assert!(all == expected);
    for (key, at) in model {
        let found = view
            .candidates(hashing.hash(*key))
            .unwrap()
            .find(|at| log[at] == *key);
        assert_eq!(found, Some(*at));
    }
}

/// Runs random operations in six phases, of which some mainly add keys and some mainly delete keys.
/// Takes views during the run, and later compares each view with the model of its moment.
fn history(seed: u64, hashing: Hashing, keys: u64, steps: u64) {
    let mut random = Random(seed);
    let mut bench = Bench::new(hashing);
    let mut views: Vec<(View, BTreeMap<u64, Location>)> = Vec::new();
    for step in 0..steps {
        let phase = step * 6 / steps;
        let key = random.below(keys);
        match (random.below(10), phase) {
            (0..=5, 0 | 1 | 4) | (0..=1, 3) => bench.put(key),
            (0..=4, 2 | 5) | (2..=3, 3) => bench.delete(key),
            (6, _) => bench.relocate(key),
            _ => assert_eq!(bench.get(key), bench.model.get(&key).copied()),
        }
        if step % (steps / 7) == 0 {
            views.push((bench.directory.view(&pin()), bench.model.clone()));
        }
        if step % (steps / 3) == 0 && !views.is_empty() {
            let (view, model) = views.swap_remove(random.below(views.len() as u64) as usize);
            check_view(&view, &model, hashing, &bench.log);
        }
    }
    bench.check();
    for (view, model) in &views {
        check_view(view, model, hashing, &bench.log);
    }
    let keys: Vec<u64> = bench.model.keys().copied().collect();
    keys.into_iter().for_each(|key| bench.delete(key));
    bench.check();
    assert!(bench.directory.bytes() < 1_024 + 600 * bench.directory.view(&pin()).parts() as u64);
}

#[test]
fn any_history_equals_a_plain_map() {
    for seed in 0..24 {
        history(seed, Hashing::Good, [20, 300, 4_000][seed as usize % 3], 6_000);
    }
    history(99, Hashing::Good, 60_000, 300_000);
}

#[test]
fn any_history_equals_a_plain_map_where_hashes_collide() {
    for seed in 0..4 {
        history(seed, Hashing::Few(1), 60, 2_000);
        history(seed, Hashing::Few(50), 1_000, 6_000);
        history(seed, Hashing::SameTop, 20_000, 40_000);
        history(seed, Hashing::SameTag, 3_000, 10_000);
    }
}

/// Fills a directory with the keys `0..keys` and calls `watch` after each key.
fn fill(keys: u64, mut watch: impl FnMut(u64, &Directory)) -> Directory {
    let directory = Directory::new();
    for key in 0..keys {
        directory
            .insert(&pin(), KeyHash(mix(key)), location(key))
            .unwrap();
        watch(key + 1, &directory);
    }
    directory
}

#[test]
fn a_key_costs_at_most_twelve_bytes_at_every_moment_beyond_a_hundred_thousand() {
    let (mut worst, mut worst_at) = (0.0, 0);
    let directory = fill(2_000_000, |keys, directory| {
        let bytes_a_key = directory.bytes() as f64 / keys as f64;
        if keys > 100_000 && bytes_a_key > worst {
            (worst, worst_at) = (bytes_a_key, keys);
        }
    });
    println!(
        "worst {worst:.2} B a key at {worst_at}, {:.2} at 2 M",
        directory.bytes() as f64 / 2e6
    );
    assert!(worst <= 12.0, "{worst:.2} bytes a key at {worst_at} keys");
}

#[test]
#[ignore = "takes 200 MB and half a minute: run by hand"]
fn twenty_million_keys() {
    let (mut worst, mut worst_at) = (0.0, 0);
    let directory = fill(20_000_000, |keys, directory| {
        let bytes_a_key = directory.bytes() as f64 / keys as f64;
        if keys > 100_000 && bytes_a_key > worst {
            (worst, worst_at) = (bytes_a_key, keys);
        }
    });
    let guard = pin();
    let absent = 2_000_000;
    let false_matches: usize = (0..absent)
        .map(|key| {
            directory
                .candidates(&guard, KeyHash(mix(key + (1 << 40))))
                .unwrap()
                .count()
        })
        .sum();
    let rate = false_matches as f64 / absent as f64;
    println!(
        "worst {worst:.2} B a key at {worst_at}; false matches {:.3} %",
        rate * 100.0
    );
    assert!(worst <= 12.0 && rate <= 0.005);
}

#[test]
fn small_tables_are_small() {
    assert!(Directory::new().bytes() < 1_024);
    let worst = std::cell::Cell::new(0);
    fill(10, |_, directory| worst.set(worst.get().max(directory.bytes())));
    assert!(worst.get() < 1_024, "{} bytes for ten keys", worst.get());
}

#[test]
fn absent_keys_seldom_match() {
    let directory = fill(300_000, |_, _| ());
    let guard = pin();
    let matches: usize = (0..300_000)
        .map(|key| {
            directory
                .candidates(&guard, KeyHash(mix(key + (1 << 40))))
                .unwrap()
                .count()
        })
        .sum();
    // The expected number of wrong candidates is 300,000 x 300,000 / 2^34 = 5.2.
    assert!(matches < 25, "{matches} of 300,000");
}

#[test]
fn keys_that_come_and_go_leave_no_flags_behind() {
    const KEYS: u64 = 50_000;
    let directory = fill(KEYS, |_, _| ());
    let guard = pin();
    for key in 0..20 * KEYS {
        assert!(
            directory
                .remove(&guard, KeyHash(mix(key)), location(key))
                .unwrap()
        );
        directory
            .insert(&guard, KeyHash(mix(key + KEYS)), location(key + KEYS))
            .unwrap();
    }
    let view = directory.view(&guard);
    let flags: usize = view.chunks().iter().map(|chunk| chunk.flags()).sum();
    let slots: usize = view.chunks().iter().map(|chunk| chunk.slots()).sum();
    println!("{flags} flags in {slots} slots, {} keys", view.len());
    // Each set flag belongs to a displaced key. In a chunk that was only filled, one key in ten is
    // displaced. After many changes more keys are displaced, because keys do not move back to their
    // home.
    let displaced: usize = view.chunks().iter().map(|chunk| chunk.displaced()).sum();
    assert!(
        flags <= displaced && displaced * 5 < slots,
        "{flags} flags for {displaced} keys in {slots} slots"
    );
}

#[test]
fn a_view_that_is_gone_costs_nothing() {
    let directory = fill(20_000, |_, _| ());
    let guard = pin();
    let hash = KeyHash(mix(7));
    let at = |directory: &Directory| std::ptr::from_ref(directory.chunk(&guard, hash.prefix()).unwrap());
    let before = at(&directory);
    drop(directory.view(&guard));
    directory
        .relocate(&guard, hash, location(7), location(70_000))
        .unwrap();
    assert_eq!(at(&directory), before);
    let view = directory.view(&guard);
    directory
        .relocate(&guard, hash, location(70_000), location(70_001))
        .unwrap();
    let copy = at(&directory);
    assert_ne!(copy, before);
    directory
        .relocate(&guard, hash, location(70_001), location(70_002))
        .unwrap();
    assert_eq!(at(&directory), copy);
    assert_eq!(view.candidates(hash).unwrap().next(), Some(location(70_000)));
}

/// Every key below `STEADY` is always found while the writer relocates such keys, adds and removes
/// other keys, and takes and drops views.
#[test]
fn readers_never_miss_a_key() {
    const STEADY: u64 = 3_000;
    const PASSING: u64 = 60_000;
    let directory = fill(STEADY, |_, _| ());
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (directory, stop, reads) = (&directory, &stop, &reads);
            scope.spawn(move || {
                let mut random = Random(reader);
                while !stop.load(Ordering::Relaxed) {
                    let key = random.below(STEADY);
                    let guard = pin();
                    // Location of a steady key: its number before the first relocation, its number
                    // plus (n + 1) x 2^32 after a relocation in round n.
                    let found = directory
                        .candidates(&guard, KeyHash(mix(key)))
                        .unwrap()
                        .any(|at| (0..40).any(|round| location(key + (round << 32)) == at));
                    assert!(found, "key {key} is missing");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let guard = || pin();
        for round in 0..12 {
            for key in STEADY..STEADY + PASSING {
                directory
                    .insert(&guard(), KeyHash(mix(key)), location(key))
                    .unwrap();
                if key % 16 == 0 {
                    let steady = mix(key) % STEADY;
                    let hash = KeyHash(mix(steady));
                    let from = (0..40).map(|round| location(steady + (round << 32)));
                    let from = from.into_iter().find(|from| {
                        directory
                            .chunk(&guard(), hash.prefix())
                            .unwrap()
                            .find(hash.prefix(), *from)
                            .is_some()
                    });
                    let to = location(steady + ((round + 1) << 32));
                    if from != Some(to) {
                        assert!(directory.relocate(&guard(), hash, from.unwrap(), to).unwrap());
                    }
                }
            }
            let view = directory.view(&guard());
            for key in STEADY..STEADY + PASSING {
                assert!(
                    directory
                        .remove(&guard(), KeyHash(mix(key)), location(key))
                        .unwrap()
                );
            }
            assert_eq!(view.len(), STEADY + PASSING);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(reads.load(Ordering::Relaxed) > 0);
}
