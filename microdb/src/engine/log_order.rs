//! Iteration over many records in the order of the log.
//!
//! - A directory has its keys in hash order. Reading the records in that order costs a cache miss
//!   for each record. If the log is larger than memory, it also costs reading a page from the disk.
//! - So locations are sorted into log order first, about two million at a time. Records ahead of
//!   the current one are prefetched: their pages from the disk, and their cache lines from memory.
//!
//! Deliberately absent: one order over the whole view. Each sorted part, called a stride, begins
//! again at the front of the log.

use crate::directory::{Damage, Location, View};
use crate::engine::segments::SegmentTable;

/// Number of records sorted at a time, after the first strides. Each stride reads the log from
/// front to back, each time other records. A stride takes whole parts of a view, so it may be a
/// little larger. Sorting needs 16 bytes of memory per record.
const STRIDE_RECORDS: usize = 2 << 20;

/// Numbers of records in the first strides. These strides are small so that the first records of a
/// view arrive soon: sorting two million locations takes tens of milliseconds.
const FIRST_STRIDES: [usize; 2] = [4 << 10, 64 << 10];

/// Distance, in records, at which a record is prefetched from memory into the processor's cache. It
/// is large enough that a cache miss ends while the records before are processed.
const PREFETCH_RECORDS: usize = 16;

/// Number of bytes of the log in one batch of requests to the disk. While the records of one batch
/// are read, the next batch is already requested.
const ASK_BYTES: u32 = 4 << 20;
/// Maximum number of requests in a batch. Records that are far apart need one request each.
const ASK_RANGES: usize = 256;
/// Maximum size of a gap between two records that is requested along with the records. A disk reads
/// such a gap faster than it handles a second request.
const GAP_BYTES: u32 = 128 * 1024;
/// Number of bytes requested behind the start of the last record of a range. The end of a record is
/// unknown before the record is read. It is assumed to be at most one page behind the start.
const PAGE_BYTES: u32 = 4096;

/// Iterator over the locations of all records of a view, in log order within a stride.
pub(crate) struct Walk {
    view: Option<View>,
    /// Index of the next part of the view.
    part: usize,
    /// Number of strides that were sorted until now.
    strides: usize,
    order: LogOrder,
}

impl Walk {
    /// Returns a walk over all of `view`, or an empty walk for `None`.
    pub(crate) fn new(view: Option<&View>) -> Self {
        Self {
            view: view.cloned(),
            part: 0,
            strides: 0,
            order: LogOrder::default(),
        }
    }

    /// Returns the next location, or `None` at the end. An error stands for a damaged part of the
    /// view, which is skipped.
    #[inline(always)]
    pub(crate) fn next(&mut self, segments: &SegmentTable) -> Option<Result<Location, Damage>> {
        loop {
            if let Some(location) = self.order.next(segments) {
                return Some(Ok(location));
            }
            match self.refill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(damage) => return Some(Err(damage)),
            }
        }
    }

    /// Sorts the locations of the next parts of the view. Returns `false` if no part is left. This
    /// function is not inlined, so that `next` does not need its large stack frame.
    #[cold]
    fn refill(&mut self) -> Result<bool, Damage> {
        let Some(view) = self.view.as_ref().filter(|view| self.part < view.parts()) else {
            return Ok(false);
        };
        let mut locations = std::mem::take(&mut self.order.locations);
        locations.clear();
        let mut result = Ok(true);
        let stride = FIRST_STRIDES.get(self.strides).copied();
        let stride = stride.unwrap_or(STRIDE_RECORDS);
        self.strides += 1;
        while self.part < view.parts() && locations.len() < stride && result.is_ok() {
            match view.part(self.part) {
                Ok(part) => locations.extend(part),
                Err(damage) => result = Err(damage),
            }
            self.part += 1;
        }
        self.order = LogOrder::new(locations);
        result
    }
}

/// Locations in log order. Records ahead of the current location are prefetched.
#[derive(Default)]
pub(crate) struct LogOrder {
    locations: Vec<Location>,
    next: usize,
    /// Number of locations requested from the disk so far.
    asked: usize,
    /// Index of the location at which the next request is made.
    ask_at: usize,
}

impl LogOrder {
    /// Sorts `locations` into log order.
    pub(crate) fn new(locations: Vec<Location>) -> Self {
        Self {
            locations: in_log_order(locations),
            ..Self::default()
        }
    }

    /// Returns the next location, and prefetches the records at later locations from memory and
    /// disk.
    #[inline(always)]
    pub(crate) fn next(&mut self, segments: &SegmentTable) -> Option<Location> {
        let location = *self.locations.get(self.next)?;
        if self.next == self.ask_at {
            self.ask(segments);
        }
        if let Some(ahead) = self.locations.get(self.next + PREFETCH_RECORDS)
            && let Some(segment) = segments.get(*ahead)
        {
            segment.prefetch(ahead.offset());
        }
        self.next += 1;
        Some(location)
    }

    /// Requests the next batch of records from the disk, so that the disk is always one batch ahead
    /// of the reader.
    #[cold]
    fn ask(&mut self, segments: &SegmentTable) {
        if self.asked == self.next {
            self.ask_batch(segments);
        }
        self.ask_at = self.asked;
        self.ask_batch(segments);
    }

    fn ask_batch(&mut self, segments: &SegmentTable) {
        let (mut bytes, mut ranges) = (0, 0);
        while bytes < ASK_BYTES && ranges < ASK_RANGES && self.asked < self.locations.len() {
            let (first, len) = self.take_range();
            if let Some(segment) = segments.get(first) {
                segment.will_need(first.offset(), len);
            }
            bytes += len;
            ranges += 1;
        }
    }

    /// Takes the next locations that are not yet requested and are close to each other. Returns the
    /// first of these locations, and the number of bytes from there to the assumed end of the last
    /// record (see [`PAGE_BYTES`]).
    fn take_range(&mut self) -> (Location, u32) {
        let first = self.locations[self.asked];
        let mut last = first;
        for location in &self.locations[self.asked..] {
            let is_near = location.segment16() == first.segment16()
                && location.offset().saturating_sub(last.offset()) <= GAP_BYTES
                && last.offset().saturating_sub(first.offset()) < ASK_BYTES;
            if !is_near {
                break;
            }
            last = *location;
            self.asked += 1;
        }
        // `last` may be before `first`, because locations are sorted only to the granularity of a
        // cache line.
        let bytes = last.offset().saturating_sub(first.offset());
        (first, bytes + PAGE_BYTES)
    }
}

/// Binary logarithm of the distance, in bytes, below which records need no order. The distance is
/// one cache line.
const GRAIN_BITS: u32 = 6;
/// Number of bits by which one pass of the radix sort sorts. One cache line for each of the 2,048
/// resulting buckets fits into the second-level cache.
const DIGIT_BITS: u32 = 11;
/// Number of locations below which a comparison sort is as fast as the radix sort.
const RADIX_RECORDS: usize = 4096;

/// Returns the locations in log order, to the granularity of a cache line. If the low 16 bits of
/// the segment ids wrap, the segments behind the wrap come first. Radix sort, least significant
/// digit first (Knuth, volume 3, 5.2.5, algorithm R).
fn in_log_order(mut locations: Vec<Location>) -> Vec<Location> {
    let bits = || locations.iter().map(|location| location.to_bits());
    let (Some(least), Some(most)) = (bits().min(), bits().max()) else {
        return locations;
    };
    if locations.len() < RADIX_RECORDS {
        locations.sort_unstable();
        return locations;
    }
    let mut sorted = locations.clone();
    for shift in (GRAIN_BITS..)
        .step_by(DIGIT_BITS as usize)
        .take_while(|shift| (most - least) >> shift > 0)
    {
        let digit =
            |location: &Location| ((location.to_bits() - least) >> shift) as usize % (1 << DIGIT_BITS);
        let mut starts = [0_u32; 1 << DIGIT_BITS];
        for location in &locations {
            starts[digit(location)] += 1;
        }
        let mut end = 0;
        for start in &mut starts {
            end += std::mem::replace(start, end);
        }
        for location in &locations {
            let start = &mut starts[digit(location)];
            sorted[*start as usize] = *location;
            *start += 1;
        }
        std::mem::swap(&mut locations, &mut sorted);
    }
    locations
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::directory::{Directory, KeyHash};
    use crate::raw::epoch::pin;

    #[test]
    fn a_walk_gives_its_first_place_without_sorting_all_of_them() {
        let (directory, guard) = (Directory::new(), pin());
        let records = 200_000_u64;
        for number in 0..records {
            let hash = KeyHash(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let at = Location::new(1 + number / 100_000, (number % 100_000 + 2) as u32 * 64);
            directory.insert(&guard, hash, at).unwrap();
        }
        let (view, segments) = (directory.view(&guard), SegmentTable::default());
        let mut walk = Walk::new(Some(&view));
        assert!(walk.next(&segments).is_some());
        // A stride takes whole parts of the view, so it may be larger than `FIRST_STRIDES`.
        assert!(walk.order.locations.len() < 3 * FIRST_STRIDES[0]);
        let mut seen = 1;
        while let Some(place) = walk.next(&segments) {
            place.unwrap();
            seen += 1;
        }
        assert_eq!((seen, walk.strides), (records, FIRST_STRIDES.len() + 1));
    }
}
