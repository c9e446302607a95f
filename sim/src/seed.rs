//! Random numbers of a simulation, all derived from one seed.
//!
//! Invariants:
//! - Each purpose has its own streams of random numbers (ChaCha8 has 2^64 streams). So one more
//!   random number for the requests of the shop front never changes the stock of the warehouse.
//! - Calls to the warehouse have a stream for each kind of call, order id and number of the
//!   attempt. So the delay and the fault of a call do not depend on the sequence in which the calls
//!   arrive. Under the same behaviour of the warehouse, a repeated run has the same delays and
//!   faults.
//! - A number in a range is computed here by a multiplication, and not by a library. A new version
//!   of a library may give other numbers, but the samples in `data/samples` must keep every byte.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Purpose of a stream of random numbers. The numeric values select the streams and thereby the
/// bytes of the samples in `data/samples`, so they must not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Purpose {
    /// Intended starts of the front's requests.
    Arrivals = 1,
    /// Kinds and content of the front's requests, and the usual delays of payments.
    Requests = 2,
    /// The stock with which a new warehouse begins.
    Stock = 3,
    /// Lines of the statistics files.
    StatFiles = 4,
    /// Units that are put back into stock.
    Restock = 5,
    /// Delays and faults of announcement calls.
    Announcement = 6,
    /// Delays and faults of delivery calls.
    Delivery = 7,
    /// Payments and cancellations that deviate from the usual behaviour of customers.
    Habits = 8,
    /// Random node events.
    Faults = 9,
}

/// A stream of random numbers for one purpose.
#[derive(Debug, Clone)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// Returns stream 0 of a purpose.
    pub(crate) fn new(seed: u64, purpose: Purpose) -> Self {
        Self::stream(seed, purpose, 0)
    }

    /// Returns the stream for item `number` of a purpose, for example of one statistics file.
    pub(crate) fn numbered(seed: u64, purpose: Purpose, number: u64) -> Self {
        Self::stream(seed, purpose, number)
    }

    /// Returns the stream for one attempt of a call for one order.
    pub(crate) fn for_order(seed: u64, purpose: Purpose, order: &str, attempt: u32) -> Self {
        // The hash is FNV-1a, which has a fixed specification, so that every version of the program
        // gets the same stream. Two calls can get the same stream by chance, which does no harm.
        let hash = order
            .bytes()
            .chain(attempt.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        Self::stream(seed, purpose, hash)
    }

    fn stream(seed: u64, purpose: Purpose, number: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // The purpose is the top byte of the stream's number, so that two purposes never share a
        // stream.
        rng.set_stream((purpose as u64) << 56 | (number & 0x00ff_ffff_ffff_ffff));
        Self(rng)
    }

    /// Returns a number in `0..bound`. The bias is at most `bound / 2^32`, too small to matter in a
    /// run.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(bound)) >> 32) as u32
    }

    /// Returns a number in `low..=high`. `low` must not exceed `high`.
    pub(crate) fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(high - low + 1)
    }

    /// Returns `true` with a probability of 1 in `n`, and never if `n` is 0.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        n > 0 && self.below(n) == 0
    }

    /// Returns a number above 0 and up to 1. Zero is excluded, because some callers take the
    /// logarithm, which is not finite for 0.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_and_no_two_purposes_share_one() {
        let draw = |mut dice: Dice| (0..8).map(|_| dice.below(1000)).collect::<Vec<_>>();
        let stock = draw(Dice::new(7, Purpose::Stock));
        assert_eq!(stock, draw(Dice::new(7, Purpose::Stock)));
        assert_ne!(stock, draw(Dice::new(7, Purpose::Restock)));
        assert_ne!(stock, draw(Dice::new(8, Purpose::Stock)));
        let first = draw(Dice::for_order(7, Purpose::Delivery, "17", 0));
        assert_eq!(first, draw(Dice::for_order(7, Purpose::Delivery, "17", 0)));
        assert_ne!(first, draw(Dice::for_order(7, Purpose::Delivery, "17", 1)));
        assert_ne!(first, draw(Dice::for_order(7, Purpose::Delivery, "18", 0)));
    }

    #[test]
    fn ranges_are_covered_to_both_ends_and_not_beyond() {
        let mut dice = Dice::new(1, Purpose::Requests);
        let mut seen = [0_u32; 6];
        for _ in 0..6000 {
            seen[dice.between(1, 5) as usize] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|n| (1000..1400).contains(n)), "{seen:?}");
        assert!((0..100).all(|_| !dice.one_in(0)));
        assert!((0..1000).map(|_| dice.unit()).all(|u| u > 0.0 && u <= 1.0));
    }
}
