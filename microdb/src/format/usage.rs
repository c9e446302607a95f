//! Usage of one segment: its live records by table, and the bytes of its tombstones.
//!
//! - Byte counts are estimates for compaction. They sum record lengths, and a damaged record
//!   may have stated a wrong length. So additions of live bytes saturate instead of overflowing.
//!
//! Deliberately absent: the counts of all segments, which are in `engine::segment_usage`.

/// Live records of one table in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) table: u32,
    pub(crate) bytes: u64,
    /// Number of live records. Not saved in a checkpoint, and valid only if
    /// [`SegmentUsage::counted`] is `true`.
    pub(crate) records: u32,
}

impl Live {
    /// Returns live bytes read from a checkpoint, which does not store the number of records.
    pub(crate) fn saved(table: u32, bytes: u64) -> Self {
        Self {
            table,
            bytes,
            records: 0,
        }
    }
}

/// Usage of one segment. The checkpoint stores `end`, the live bytes by table, and `tombstones`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentUsage {
    /// Offset of the end of the segment's frames, or 0 while the segment is active.
    pub(crate) end: u32,
    /// Live records by table, sorted by table id.
    pub(crate) live: Vec<Live>,
    /// Bytes of tombstones and clear markers. Compaction counts them as dead only in the oldest
    /// segment.
    pub(crate) tombstones: u64,
    /// `true` once compaction has copied all records that are still needed or found none, so that a
    /// later checkpoint may remove the segment. Not saved in a checkpoint.
    pub(crate) dying: bool,
    /// `true` if `dying` was set because of byte counts alone, which a damaged record can falsify.
    /// Not saved in a checkpoint.
    pub(crate) unverified: bool,
    /// `true` if the numbers of records in `live` include every record since the segment was begun.
    /// Not saved in a checkpoint, so it is `false` for a segment loaded from a checkpoint.
    pub(crate) counted: bool,
}

impl SegmentUsage {
    /// Returns the usage of a new segment, without records, with `counted` set.
    pub(crate) fn counting() -> Self {
        Self {
            counted: true,
            ..Self::default()
        }
    }

    /// Returns the live bytes of all tables.
    pub(crate) fn live_bytes(&self) -> u64 {
        // The sum saturates, because a forged checkpoint may contain any numbers.
        self.live
            .iter()
            .fold(0, |sum, live| live.bytes.saturating_add(sum))
    }

    /// Returns `true` only if no directory points to a record of the segment. The numbers of
    /// records decide this, not the bytes. Bytes are sums of unverified lengths, and a damaged
    /// length must not cause the removal of live records.
    pub(crate) fn has_no_live_record(&self) -> bool {
        self.counted && self.live.iter().all(|live| live.records == 0)
    }

    /// Returns the index of a table in `live`, or as the error its insertion point. Most segments
    /// have records of only one table, so they need no search.
    #[inline]
    pub(crate) fn live_at(&self, table: u32) -> Result<usize, usize> {
        match self.live.as_slice() {
            [only] if only.table == table => Ok(0),
            live => live.binary_search_by_key(&table, |live| live.table),
        }
    }
}
