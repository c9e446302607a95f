//! Repeatable random numbers (SplitMix64): a seed gives the same numbers on every machine.

/// A stream of pseudo-random numbers. For a fuzzer, the numbers come from its input bytes until
/// these are used up.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
    bytes: Vec<u8>,
    taken: usize,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: seed,
            bytes: Vec::new(),
            taken: 0,
        }
    }

    /// Returns a stream that takes its numbers from `bytes`, two bytes for each. No choice of a
    /// fuzz target needs larger numbers.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self {
            state: 0,
            bytes: bytes.to_vec(),
            taken: 0,
        }
    }

    /// Returns `true` if the input bytes are used up. From then on, the numbers are those of a
    /// fixed seed.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.taken >= self.bytes.len()
    }

    pub(crate) fn next(&mut self) -> u64 {
        if let Some(bytes) = self.bytes.get(self.taken..).and_then(<[u8]>::first_chunk::<2>) {
            self.taken += 2;
            return u64::from(u16::from_le_bytes(*bytes));
        }
        self.taken = self.bytes.len();
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// Returns a number below `bound`, which must not be zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Returns `true` with a probability of `part` in `whole`.
    pub(crate) fn chance(&mut self, part: u64, whole: u64) -> bool {
        self.below(whole) < part
    }

    /// Returns an independent stream. Creating it takes only one number from this stream.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.next())
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Mixes the bits of a number into all 64 bits, as a hash for small values.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
