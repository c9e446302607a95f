//! Keys, values and random choices, computed from seeds. Every engine gets the same keys, values
//! and choices in the same order.
//!
//! **Invariants**
//! - A key is computed from its record's index, because a table of keys would compete with the
//!   engine for the caches.
//! - A value is a slice of one pool of random bytes. So its creation costs almost nothing compared
//!   with the measured put, and the result of a get can be checked byte for byte.
//! - Each record has two possible values, versions 0 and 1, so that a workload can overwrite a
//!   record with other bytes. [`Values::is_right`] accepts both versions.

/// Size of a key in bytes.
pub const KEY_BYTES: usize = 16;

/// The key of a record.
pub type Key = [u8; KEY_BYTES];

/// Size in bytes of the pool from which all values are cut, without the size of one value. The pool
/// fits into the second-level cache of a processor, so reading a value from it causes no access to
/// main memory.
const POOL_BYTES: usize = 256 << 10;

/// First index of the absent records. No run stores this many records.
const ABSENT_FROM: u64 = 1 << 40;

const KEY_SEED: u64 = 0x6d69_6372_6f64_6221;
const VALUE_SEED: u64 = 0x7661_6c75_6573_2e2e;

/// Mixes the bits of a number (the finalizer of SplitMix64). The function is a bijection, so
/// distinct numbers give distinct results.
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns the key of record `index`.
#[must_use]
pub fn key(index: u64) -> Key {
    let high = mix(index ^ KEY_SEED);
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&high.to_le_bytes());
    key[8..].copy_from_slice(&mix(high).to_le_bytes());
    key
}

/// Returns a key that no record has. Distinct indexes give distinct keys.
#[must_use]
pub fn absent_key(index: u64) -> Key {
    key(ABSENT_FROM + index)
}

/// The values of all records, cut from one pool.
#[derive(Debug)]
pub struct Values {
    pool: Vec<u8>,
    value_bytes: usize,
}

impl Values {
    /// Creates values of `value_bytes` bytes each.
    #[must_use]
    pub fn new(value_bytes: usize) -> Self {
        let mut random = Random::new(VALUE_SEED);
        let words = (POOL_BYTES + value_bytes).div_ceil(8);
        let pool = (0..words).flat_map(|_| random.bits().to_le_bytes()).collect();
        Self { pool, value_bytes }
    }

    /// Returns the value of record `index` in `version`.
    #[must_use]
    pub fn value(&self, index: u64, version: u64) -> &[u8] {
        let start = mix(index ^ (version << 48) ^ VALUE_SEED) as usize % POOL_BYTES;
        &self.pool[start..start + self.value_bytes]
    }

    /// Returns `true` if `found` is the value of record `index` in version 0 or 1.
    #[must_use]
    pub fn is_right(&self, index: u64, found: &[u8]) -> bool {
        found == self.value(index, 0) || found == self.value(index, 1)
    }
}

/// A small seeded random number generator (SplitMix64). A draw takes about a nanosecond.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a generator. The same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Returns the next random number of 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a random number below `limit`, or 0 if `limit` is 0. Each value is equally likely,
    /// up to a deviation of `limit` / 2^64.
    pub const fn below(&mut self, limit: u64) -> u64 {
        ((self.bits() as u128 * limit as u128) >> 64) as u64
    }

    /// Returns a random fraction from 0 (included) to 1 (excluded).
    pub const fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Zipfian choice of records as in YCSB (Gray et al., "Quickly generating billion-record synthetic
/// databases"). The frequent records are scattered over the key space.
#[derive(Clone, Debug)]
pub struct Zipf {
    records: u64,
    theta: f64,
    alpha: f64,
    eta: f64,
    zeta: f64,
}

impl Zipf {
    /// Creates a generator of choices among `records` records with exponent `theta` (0.99 in YCSB).
    #[must_use]
    pub fn new(records: u64, theta: f64) -> Self {
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let whole = zeta(records);
        Self {
            records,
            theta,
            alpha: 1.0 / (1.0 - theta),
            eta: (1.0 - (2.0 / records as f64).powf(1.0 - theta)) / (1.0 - zeta(2) / whole),
            zeta: whole,
        }
    }

    /// Returns the rank of the next choice. Rank 0 is chosen most often.
    pub fn rank(&self, random: &mut Random) -> u64 {
        let u = random.fraction();
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.theta) {
            return 1;
        }
        let rank = (self.records as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64;
        rank.min(self.records - 1)
    }

    /// Returns the index of the next chosen record. Two ranks can have the same record.
    pub fn index(&self, random: &mut Random) -> u64 {
        mix(self.rank(random)) % self.records
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_are_distinct_and_absent_keys_are_absent() {
        let keys: HashSet<Key> = (0..10_000).map(key).collect();
        assert_eq!(keys.len(), 10_000);
        assert!((0..10_000).all(|index| !keys.contains(&absent_key(index))));
    }

    #[test]
    fn only_the_two_versions_of_a_record_are_right_for_it() {
        for value_bytes in [16, 100, 65_536] {
            let values = Values::new(value_bytes);
            assert_ne!(values.value(7, 0), values.value(7, 1));
            assert!(values.is_right(7, values.value(7, 0)) && values.is_right(7, values.value(7, 1)));
            assert!(!values.is_right(7, values.value(8, 0)));
            assert!(!values.is_right(7, &values.value(7, 0)[1..]));
        }
    }

    #[test]
    fn zipf_prefers_few_records_and_stays_in_range() {
        let zipf = Zipf::new(10_000, 0.99);
        let mut random = Random::new(1);
        let ranks: Vec<u64> = (0..100_000).map(|_| zipf.rank(&mut random)).collect();
        assert!(ranks.iter().all(|rank| *rank < 10_000));
        let top = ranks.iter().filter(|rank| **rank < 100).count();
        // The hundred most frequent of 10,000 ranks get about half of the choices.
        assert!((40_000..65_000).contains(&top), "{top}");
    }

    #[test]
    fn below_stays_below_and_reaches_both_ends() {
        let mut random = Random::new(2);
        let drawn: HashSet<u64> = (0..1_000).map(|_| random.below(7)).collect();
        assert_eq!(drawn, (0..7).collect());
    }
}
