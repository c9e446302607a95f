//! Going through many records in the order of the log.
//!
//! A directory has its keys in the order of their hashes. Followed like that, each record is a miss
//! of the caches, and a page from the disk where the log is larger than the memory. So the places
//! are first put in the log's order, some millions at a time, and while one record is looked at,
//! those that come are on their way: the next pages from the disk, the next lines from memory.

use crate::directory::{Damage, Location, View};
use crate::engine::segments::SegmentTable;

/// How many records are looked up at a time. Up to so many keys the log is read once, beyond it
/// several times, each time leaving records out. Costs 16 bytes of memory each, as long as it
/// takes.
const STRIDE_RECORDS: usize = 2 << 20;

/// The first strides are smaller, so that the first records come soon however many there are:
/// putting two million places in order takes tens of milliseconds. Of a long walk they are a small
/// part.
const FIRST_STRIDES: [usize; 2] = [4 << 10, 64 << 10];

/// How many records ahead the memory is asked for: enough to cover a miss with the work on those
/// before.
const PREFETCH_RECORDS: usize = 16;

/// The disk is asked for about so much of the log at a time, and so much more is on its way
/// meanwhile.
const ASK_BYTES: u32 = 4 << 20;
/// See [`ASK_BYTES`]; where records lie far apart, for so many of them.
const ASK_RANGES: usize = 256;
/// What lies between two records is read with them up to here: a disk has that sooner than it
/// begins anew.
const GAP_BYTES: u32 = 128 * 1024;
/// Where a record ends is not known before it is read: it is taken to be in the page that it begins
/// in, or in the next.
const PAGE_BYTES: u32 = 4096;

/// The places of all records of a view, in the order of the log as far as a stride goes.
pub(crate) struct Walk {
    view: Option<View>,
    /// The next part of the view to look at.
    part: usize,
    /// Strides taken so far.
    strides: usize,
    order: LogOrder,
}

impl Walk {
    /// Through all of `view`; through nothing if there is none.
    pub(crate) fn new(view: Option<&View>) -> Self {
        Self {
            view: view.cloned(),
            part: 0,
            strides: 0,
            order: LogOrder::default(),
        }
    }

    /// The next place; `None` at the end. An error stands for a part of the view that is damaged
    /// and left out.
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

    /// Takes the next parts of the view; whether there were any. Out of line, so that its large
    /// frame is not that of every step.
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

/// LogOrder in the order of the log.
#[derive(Default)]
pub(crate) struct LogOrder {
    locations: Vec<Location>,
    next: usize,
    /// The disk has been asked for those in front of this one.
    asked: usize,
    /// It is asked for more when this one's turn comes.
    ask_at: usize,
}

impl LogOrder {
    /// Those of `locations`, which may be in any order.
    pub(crate) fn new(locations: Vec<Location>) -> Self {
        Self {
            locations: in_log_order(locations),
            ..Self::default()
        }
    }

    /// The next place. The memory, and the disk, are asked for those behind it.
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

    /// Asks the disk for one batch more than the one whose turn it is.
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

    /// The next place that the disk has not been asked for, and the bytes from there to the end of
    /// those that are near.
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
        // They are in order to a cache line only.
        let bytes = last.offset().saturating_sub(first.offset());
        (first, bytes + PAGE_BYTES)
    }
}

/// Records within so many bytes of the log (as a power of two: a cache line) need no order among
/// them.
const GRAIN_BITS: u32 = 6;
/// Bits that one pass of sorting looks at: as many piles as fit into a first-level cache by a line
/// each.
const DIGIT_BITS: u32 = 11;
/// Below this many a sort by comparing is as fast.
const RADIX_RECORDS: usize = 4096;

/// The same locations in the log's order, to a cache line. Radix sort, least digit first (Knuth,
/// volume 3, 5.2.5, algorithm R).
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
        // A part of the view is taken as a whole.
        assert!(walk.order.locations.len() < 3 * FIRST_STRIDES[0]);
        let mut seen = 1;
        while let Some(place) = walk.next(&segments) {
            place.unwrap();
            seen += 1;
        }
        assert_eq!((seen, walk.strides), (records, FIRST_STRIDES.len() + 1));
    }
}
