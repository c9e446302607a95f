//! Lock-free lookup of one key in a chunk, while the writer may change the chunk.
//!
//! A lookup reads the slots of the home bucket, then the flag of the key's class in that bucket. If
//! the flag is set, it reads the second bucket. The writer orders its stores so that such a lookup
//! finds each present key (see the races in `chunk.rs`).

use super::chunk::Chunk;
use super::slot::{Location, Pattern, Prefix, Rank, Slot, Tag};
use crate::raw::buckets::{BUCKET_WORDS, BucketRef, fence_loads};

/// Lookup of one key in a chunk: reads the home bucket, the flag of the key's class there, and the
/// second bucket if the flag is set.
pub(super) struct Probe<'a> {
    chunk: &'a Chunk,
    bucket: BucketRef<'a>,
    home: usize,
    tag: Tag,
    pattern: Pattern,
    /// Bit mask of the slots in `bucket` that matched and were not visited yet.
    matches: u8,
    rank: Rank,
}

impl<'a> Probe<'a> {
    #[inline(always)]
    pub(super) fn new(chunk: &'a Chunk, prefix: Prefix) -> Self {
        let (home, tag) = (chunk.home(prefix), prefix.tag());
        let (bucket, pattern) = (chunk.bucket(home), tag.pattern(Rank::Home));
        Self {
            chunk,
            bucket,
            home,
            tag,
            pattern,
            matches: matching(bucket, pattern),
            rank: Rank::Home,
        }
    }

    /// Returns the next candidate, or `None` if no further slot matches.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<Location> {
        loop {
            while self.matches != 0 {
                let word = self.matches.trailing_zeros() as usize;
                self.matches &= self.matches - 1;
                // The slot is loaded again, because it may have changed since it matched. If the
                // key has moved since, this lookup finds it in the second bucket.
                let slot = Slot(self.bucket.load(word));
                if self.pattern.matches(slot)
                    && let Some(location) = slot.location()
                {
                    fence_loads();
                    return Some(location);
                }
            }
            // The flag must be read after the slots (see the races in `chunk.rs`).
            fence_loads();
            if self.rank == Rank::Second || !Slot(self.bucket.load(self.tag.class())).flag() {
                return None;
            }
            self.rank = Rank::Second;
            self.pattern = self.tag.pattern(Rank::Second);
            self.bucket = self.chunk.bucket(self.chunk.second(self.home, self.tag));
            self.matches = matching(self.bucket, self.pattern);
        }
    }
}

/// Returns a bit mask of the slots of the bucket that match the pattern.
#[inline(always)]
fn matching(bucket: BucketRef<'_>, pattern: Pattern) -> u8 {
    (0..BUCKET_WORDS).fold(0, |bits, word| {
        bits | u8::from(pattern.matches(Slot(bucket.load(word)))) << word
    })
}
