//! Live and dead bytes of one segment, as stored in a checkpoint.
//!
//! - Counts are hints for compaction. A damaged record may have claimed a wrong length, so
//!   additions saturate.
//!
//! Deliberately absent: the counts of all segments, which are in `engine::segment_usage`.

/// Live records of one table in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) table: u32,
    pub(crate) bytes: u64,
    /// Number of records. Not saved, and valid only if counted from the start of the segment.
    pub(crate) records: u32,
}

impl Live {
    /// Returns live bytes as read from a checkpoint.
    pub(crate) fn saved(table: u32, bytes: u64) -> Self {
        Self {
            table,
            bytes,
            records: 0,
        }
    }
}

/// Usage of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentUsage {
    /// End of its frames, or 0 while it is active.
    pub(crate) end: u32,
    /// Live records by table, sorted by table id.
    pub(crate) live: Vec<Live>,
    /// Bytes of tombstones, which are neither live nor dead.
    pub(crate) tombstones: u64,
    /// `true` if compaction has emptied the segment, so that the next checkpoint removes it. Not
    /// saved.
    pub(crate) dying: bool,
    /// `true` if the segment is dying because of unverified byte counts alone. Not saved.
    pub(crate) unverified: bool,
    /// `true` if `records` has counted every record since the first. Not saved.
    pub(crate) counted: bool,
}

impl SegmentUsage {
    /// Returns the usage of a segment without records.
    pub(crate) fn counting() -> Self {
        Self {
            counted: true,
            ..Self::default()
        }
    }

    /// Returns the live bytes of all tables.
    pub(crate) fn live_bytes(&self) -> u64 {
        // A forged checkpoint may contain any numbers.
        self.live
            .iter()
            .fold(0, |sum, live| live.bytes.saturating_add(sum))
    }

    /// Returns `true` if certainly no directory points to a record of the segment. Decided by
    /// numbers of records. Bytes would come from lengths that were not verified when the records
    /// died, and a damaged length must not remove live records.
    pub(crate) fn has_no_live_record(&self) -> bool {
        self.counted && self.live.iter().all(|live| live.records == 0)
    }

    /// Finds a table in `live`, or its insertion point. A segment with one table, as most have,
    /// needs no search.
    #[inline]
    pub(crate) fn live_at(&self, table: u32) -> Result<usize, usize> {
        match self.live.as_slice() {
            [only] if only.table == table => Ok(0),
            live => live.binary_search_by_key(&table, |live| live.table),
        }
    }
}
