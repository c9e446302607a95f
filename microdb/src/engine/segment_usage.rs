//! Live bytes of all segments, by table.
//!
//! - The counts are changed under the commit lock together with the directory. Counts of bytes are
//!   saved with each checkpoint, counts of records are not.
//! - Compaction chooses the segments to compact by these counts. Dropping a table subtracts its
//!   bytes without reading a record.
//! - A damaged record may claim a wrong length, so counts of bytes are only estimates. No segment
//!   is removed because of a count of bytes alone.
//!
//! Deliberately absent: the positions of live records, which only the directory has.

use std::collections::{HashMap, VecDeque};

use crate::directory::Location;
use crate::format::usage::{Live, SegmentUsage};

/// Usage of all segments, by segment id.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentUsages {
    first: u64,
    list: VecDeque<Option<SegmentUsage>>,
    /// Sum of the sizes of all complete segments.
    bytes: u64,
    /// Sum of all live bytes.
    live_bytes: u64,
}

impl SegmentUsages {
    /// Adds a new segment, which has the highest id so far.
    pub(crate) fn open(&mut self, segment: u64, mut usage: SegmentUsage) {
        self.close(segment);
        // A checkpoint may list tables in any order.
        usage.live.sort_unstable_by_key(|live| live.table);
        if self.list.is_empty() {
            self.first = segment;
        }
        let index = (segment - self.first) as usize;
        if index >= self.list.len() {
            self.list.resize(index + 1, None);
        }
        self.bytes += u64::from(usage.end);
        self.live_bytes = self.live_bytes.saturating_add(usage.live_bytes());
        self.list[index] = Some(usage);
    }

    pub(crate) fn close(&mut self, segment: u64) {
        if let Some(usage) = self.entry(segment).and_then(Option::take) {
            self.bytes -= u64::from(usage.end);
            self.live_bytes = self.live_bytes.saturating_sub(usage.live_bytes());
        }
        while let Some(None) = self.list.front() {
            self.list.pop_front();
            self.first += 1;
        }
    }

    /// Returns the size of all segments except the active one, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the size of all live records, in bytes.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Returns the number of ids from the oldest segment to the newest.
    pub(crate) fn span(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn get(&self, segment: u64) -> Option<&SegmentUsage> {
        self.list
            .get(usize::try_from(segment.checked_sub(self.first)?).ok()?)?
            .as_ref()
    }

    pub(crate) fn get_mut(&mut self, segment: u64) -> Option<&mut SegmentUsage> {
        self.entry(segment)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &SegmentUsage)> {
        (self.first..)
            .zip(&self.list)
            .filter_map(|(id, usage)| Some((id, usage.as_ref()?)))
    }

    pub(crate) fn set_end(&mut self, segment: u64, end: u32) {
        let Some(Some(usage)) = self.entry(segment) else {
            return;
        };
        let before = std::mem::replace(&mut usage.end, end);
        self.bytes = self.bytes - u64::from(before) + u64::from(end);
    }

    pub(crate) fn add_live(&mut self, at: Location, table: u32, bytes: usize) {
        let bytes = bytes as u64;
        let Some(usage) = self.at(at) else { return };
        match usage.live_at(table) {
            Ok(index) => {
                let live = &mut usage.live[index];
                live.bytes = live.bytes.saturating_add(bytes);
                live.records = live.records.saturating_add(1);
            }
            Err(index) => usage.live.insert(
                index,
                Live {
                    table,
                    bytes,
                    records: 1,
                },
            ),
        }
        self.live_bytes = self.live_bytes.saturating_add(bytes);
    }

    pub(crate) fn sub_live(&mut self, at: Location, table: u32, bytes: usize) {
        let Some(usage) = self.at(at) else { return };
        if let Ok(index) = usage.live_at(table) {
            let live = &mut usage.live[index];
            // The dead record was not verified, so its length may be wrong if it is damaged. A
            // wrong length makes only the sums wrong, because no segment is removed by its live
            // bytes alone (see `checkpoint`).
            let bytes = live.bytes.min(bytes as u64);
            live.bytes -= bytes;
            live.records = live.records.saturating_sub(1);
            self.live_bytes = self.live_bytes.saturating_sub(bytes);
        }
    }

    pub(crate) fn add_tombstone(&mut self, at: Location, bytes: usize) {
        if let Some(usage) = self.at(at) {
            // The sum saturates, because a forged checkpoint may contain any number.
            usage.tombstones = usage.tombstones.saturating_add(bytes as u64);
        }
    }

    /// Marks all records of a table as dead.
    pub(crate) fn drop_table(&mut self, table: u32) {
        let mut dropped = 0_u64;
        for usage in self.list.iter_mut().flatten() {
            usage.live.retain(|live| {
                let stays = live.table != table;
                dropped = if stays {
                    dropped
                } else {
                    live.bytes.saturating_add(dropped)
                };
                stays
            });
        }
        self.live_bytes = self.live_bytes.saturating_sub(dropped);
    }

    /// Marks all records of the tables for which `kept` returns `false` as dead.
    pub(crate) fn retain_tables(&mut self, kept: impl Fn(u32) -> bool) {
        let mut dropped = 0_u64;
        for usage in self.list.iter_mut().flatten() {
            usage.live.retain(|live| {
                let stays = kept(live.table);
                if !stays {
                    dropped = dropped.saturating_add(live.bytes);
                }
                stays
            });
        }
        self.live_bytes = self.live_bytes.saturating_sub(dropped);
    }

    /// Returns the live bytes of each table in all segments, by table id.
    pub(crate) fn bytes_by_table(&self) -> HashMap<u32, u64> {
        let mut sums: HashMap<u32, u64> = HashMap::new();
        for live in self.list.iter().flatten().flat_map(|usage| &usage.live) {
            let sum = sums.entry(live.table).or_default();
            *sum = sum.saturating_add(live.bytes);
        }
        sums
    }

    fn entry(&mut self, segment: u64) -> Option<&mut Option<SegmentUsage>> {
        self.list
            .get_mut(usize::try_from(segment.checked_sub(self.first)?).ok()?)
    }

    fn at(&mut self, at: Location) -> Option<&mut SegmentUsage> {
        let index = at.segment16().wrapping_sub(self.first as u16);
        self.list.get_mut(usize::from(index))?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_follow_every_change_of_an_account() {
        let mut usages = SegmentUsages::default();
        usages.open(7, SegmentUsage::counting());
        usages.open(8, SegmentUsage::default());
        let (first, second) = (Location::new(7, 64), Location::new(8, 64));
        for (at, table, bytes) in [(first, 1, 100), (first, 2, 50), (second, 1, 30)] {
            usages.add_live(at, table, bytes);
        }
        usages.set_end(7, 1000);
        usages.set_end(7, 2000);
        assert_eq!((usages.bytes(), usages.live_bytes()), (2000, 180));
        // Subtracts more than the live bytes, as a record with a damaged length would.
        usages.sub_live(first, 1, 5000);
        assert_eq!(usages.live_bytes(), 80);
        assert!(!usages.get(7).unwrap().has_no_live_record());
        usages.drop_table(2);
        assert_eq!(usages.live_bytes(), 30);
        assert!(usages.get(7).unwrap().has_no_live_record());
        usages.sub_live(second, 1, 30);
        assert!(
            !usages.get(8).unwrap().has_no_live_record(),
            "not counted from its beginning"
        );
        usages.close(7);
        assert_eq!((usages.bytes(), usages.live_bytes(), usages.span()), (0, 0, 1));
    }

    #[test]
    fn tombstones_of_a_forged_checkpoint_do_not_overflow() {
        let mut usages = SegmentUsages::default();
        let forged = SegmentUsage {
            tombstones: u64::MAX,
            ..SegmentUsage::default()
        };
        usages.open(1, forged);
        usages.add_tombstone(Location::new(1, 64), 30);
        assert_eq!(usages.get(1).unwrap().tombstones, u64::MAX);
    }

    #[test]
    fn a_rotten_length_does_not_make_a_live_record_look_dead() {
        let mut usages = SegmentUsages::default();
        usages.open(1, SegmentUsage::counting());
        usages.add_live(Location::new(1, 64), 1, 10);
        usages.add_live(Location::new(1, 128), 1, 10);
        usages.sub_live(Location::new(1, 64), 1, 20);
        let usage = usages.get(1).unwrap();
        assert_eq!((usage.live_bytes(), usage.has_no_live_record()), (0, false));
    }
}
