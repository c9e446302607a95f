//! Live and dead bytes of one segment, as a checkpoint stores them.

/// Live records of one table in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) table: u32,
    pub(crate) bytes: u64,
    /// Number of records. Not saved; of use only in an account that has counted from the segment's
    /// beginning.
    pub(crate) records: u32,
}

impl Live {
    /// Live bytes as a checkpoint knows them.
    pub(crate) fn saved(table: u32, bytes: u64) -> Self {
        Self {
            table,
            bytes,
            records: 0,
        }
    }
}

/// One segment's account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentUsage {
    /// Where its frames end; 0 while it is active.
    pub(crate) end: u32,
    /// Live records by table, in the order of table ids.
    pub(crate) live: Vec<Live>,
    /// Bytes of tombstones, which are neither live nor simply dead.
    pub(crate) tombstones: u64,
    /// Whether compaction has emptied it: the next checkpoint does without. Not saved.
    pub(crate) dying: bool,
    /// `true` if it is dying for its number of live bytes alone, which nobody verified. Not saved.
    pub(crate) unverified: bool,
    /// Whether `records` counts every record since the segment's first. Not saved.
    pub(crate) counted: bool,
}

impl SegmentUsage {
    /// The account of a segment that has no record yet.
    pub(crate) fn counting() -> Self {
        Self {
            counted: true,
            ..Self::default()
        }
    }

    /// Live bytes of all tables.
    pub(crate) fn live_bytes(&self) -> u64 {
        // A forged checkpoint may name any numbers.
        self.live
            .iter()
            .fold(0, |sum, live| live.bytes.saturating_add(sum))
    }

    /// Returns `true` if certainly no directory points to a record of the segment. Decided by
    /// numbers of records: bytes come from lengths that nobody verified when the records died, and
    /// a rotten length must not take live records away.
    pub(crate) fn has_no_live_record(&self) -> bool {
        self.counted && self.live.iter().all(|live| live.records == 0)
    }

    /// Finds a table in `live`, or the place where it belongs. A segment with one table, as most
    /// have, needs no search.
    #[inline]
    pub(crate) fn live_at(&self, table: u32) -> Result<usize, usize> {
        match self.live.as_slice() {
            [only] if only.table == table => Ok(0),
            live => live.binary_search_by_key(&table, |live| live.table),
        }
    }
}
