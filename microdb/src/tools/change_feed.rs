//! The change feed: the batches committed after a given sequence, read from the log.
//!
//! - Each change carries the chain value of its commit, which depends only on the content of this
//!   and all earlier commits. A follower that applies changes in order and checks them with
//!   [`Change::follows`] proves that it missed no commit.
//! - The feed reads the log itself. If compaction has removed requested commits, the feed returns
//!   an error.
//! - A feed keeps the segments that it has not read yet, so they stay readable after compaction has
//!   removed them.
//!
//! Deliberately absent: notification of new commits. Callers use [`Changes::extend`].

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::{Handle, lock};
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::frame::FrameKind;
use crate::format::record::{self, RecordKind};
use crate::format::segment::SegmentHeader;
use crate::format::super_block::Frontier;
use crate::raw::epoch::pin;
use crate::recover::log_reader::{SegmentFile, next_frame};
use crate::sequence::Sequence;

/// One committed batch.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let change = db.changes_since(db.sequence().saturating_sub(1))?.next().unwrap()?;
/// assert_eq!((change.sequence, change.operations.len()), (db.sequence(), 1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// Sequence of the commit.
    pub sequence: Sequence,
    /// Chain value of the commit: a checksum over all commits up to this one.
    pub chain: u64,
    /// Changes of the commit, in order.
    pub operations: Vec<Operation>,
}

/// One change of a key or of a whole table. Table 0 is the catalog, with a record for each table.
/// The key of this record is the name of the table. Its value is the table's id (4 bytes,
/// little-endian). If the table was created as a typed table, a text about the keys may follow.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// for change in db.changes_since(microdb::Sequence::ZERO)? {
///     for operation in change?.operations {
///         if let microdb::Operation::Put { key, value, .. } = operation {
///             println!("{key:?} became {value:?}");
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// The key was set to this value.
    Put {
        /// Id of the table.
        table: u32,
        /// Key that was set.
        key: Vec<u8>,
        /// Value to which the key was set.
        value: Vec<u8>,
    },
    /// The key was deleted.
    Delete {
        /// Id of the table.
        table: u32,
        /// Key that was deleted.
        key: Vec<u8>,
    },
    /// All keys of the table were deleted, because the table was cleared or dropped.
    Clear {
        /// Id of the table.
        table: u32,
    },
}

impl Change {
    /// Returns `true` if this is the unaltered commit directly after the commit with the chain
    /// value `chain`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let mut chain = 0;
    /// for change in db.changes_since(microdb::Sequence::ZERO)? {
    ///     let change = change?;
    ///     assert!(change.follows(chain), "nothing was missed in between");
    ///     chain = change.chain;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn follows(&self, chain: u64) -> bool {
        let (mut bytes, mut crc) = (Vec::new(), 0);
        for operation in &self.operations {
            bytes.clear();
            let (kind, table, key, value) = operation.parts();
            let content = record::encode(kind, table, key, value, &mut bytes);
            crc = checksum::crc_append(crc, &content.to_le_bytes());
        }
        checksum::chain(chain, self.sequence.0, crc, self.operations.len() as u32) == self.chain
    }
}

impl Operation {
    fn parts(&self) -> (RecordKind, u32, &[u8], &[u8]) {
        match self {
            Self::Put { table, key, value } => (RecordKind::Put, *table, key, value),
            Self::Delete { table, key } => (RecordKind::Delete, *table, key, &[]),
            Self::Clear { table } => (RecordKind::Clear, *table, &[], &[]),
        }
    }
}

/// Iterator over changes, returned by [`Db::changes_since`](crate::Db::changes_since). Ends after
/// damage, or at the last commit that was visible at its creation or last
/// [extension](Changes::extend). In a forked child it returns [`Error::Forked`] once, unless it had
/// already ended, and then ends.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let before = db.sequence();
/// events.put("a", "1")?;
/// events.put("b", "2")?;
/// assert_eq!(db.changes_since(before)?.count(), 2);
/// # Ok(())
/// # }
/// ```
pub struct Changes {
    /// Segments that are not read completely, each with the end of its visible frames.
    left: VecDeque<(SegmentFile, u32)>,
    /// Position of the next frame in the first segment of `left`. `None` at the first frame.
    at: Option<Frontier>,
    /// End of the last segment that was read completely. An extension continues here if the segment
    /// has more frames by then.
    stopped: Option<Frontier>,
    /// Sequence of the last returned change, or the requested sequence. Only later changes are
    /// returned.
    after: u64,
    /// Sequence of the last commit that is in `left` or was returned.
    known: u64,
    /// Keeps the database open until it is closed explicitly. Declared last: the drop of the last
    /// handle frees all memory of the database, so it must follow the drop of the segments.
    engine: Arc<Handle>,
}

/// Segments with the commits after a sequence, each with the end of its visible frames.
type Segments = VecDeque<(SegmentFile, u32)>;

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Changes(after {})", self.after)
    }
}

impl Changes {
    /// Returns an iterator over the visible commits after `sequence`.
    pub(crate) fn since(engine: &Arc<Handle>, sequence: Sequence) -> Result<Self> {
        engine.check_process()?;
        let (left, known) = segments_since(engine, sequence.0)?;
        Ok(Self {
            engine: engine.clone(),
            left,
            at: None,
            stopped: None,
            after: sequence.0,
            known,
        })
    }
}

/// Returns the segments with the commits after `sequence`, and the sequence of the last visible
/// commit.
fn segments_since(engine: &Handle, sequence: u64) -> Result<(Segments, u64)> {
    let (segments, end) = {
        let core = lock(&engine.core);
        let guard = pin();
        (engine.segments.load_arc(&guard), core.published)
    };
    if sequence > end.sequence {
        return Err(Error::FeedAhead {
            asked: Sequence(sequence),
            last: Sequence(end.sequence),
        });
    }
    let mut left = Segments::new();
    let mut gap = None;
    for segment in segments
        .iter()
        .filter(|segment| segment.id <= end.position.segment)
    {
        let header = SegmentHeader::decode(segment.bytes_at(0), engine.database, segment.id)
            .map_err(|flaw| segment.damage(0, &flaw))?;
        if let Some((before, stop)) = left.back_mut() {
            if header.previous_end.segment == before.id() {
                *stop = header.previous_end.offset;
            } else {
                gap = Some(header.sequence);
                left.clear();
            }
        } else if header.previous_end.segment != 0 {
            gap = Some(header.sequence);
        }
        let file = SegmentFile {
            segment: segment.clone(),
            header,
            sealed_end: None,
        };
        left.push_back((file, end.position.offset));
    }
    // The header of the next segment states the last commit before it. If that commit is not after
    // `sequence`, the first segment has no requested commit.
    while left
        .get(1)
        .is_some_and(|(next, _)| next.header.sequence <= sequence)
    {
        left.pop_front();
    }
    match gap {
        Some(oldest)
            if left
                .front()
                .is_some_and(|(first, _)| first.header.sequence > sequence) =>
        {
            Err(Error::FeedGone {
                asked: Sequence(sequence),
                oldest: Sequence(oldest),
            })
        }
        _ => Ok((left, end.sequence)),
    }
}

impl Changes {
    /// Adds the commits made since the creation or the last extension. No commit is returned twice.
    /// Unread segments stay readable for the feed, even after compaction has removed them. So a
    /// follower that extends often misses nothing, even if it reads slowly. The kept segments cost
    /// disk space.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let table = db.table("t")?;
    /// let mut changes = db.changes_since(db.sequence())?;
    /// assert!(changes.next().is_none());
    /// table.put("k", "v")?;
    /// changes.extend()?;
    /// assert!(changes.next().is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::FeedGone`] if compaction has removed commits made since the creation or the last
    /// extension; [`Error::Corrupt`] or [`Error::Io`] if the header of a segment is damaged or
    /// unreadable; [`Error::Forked`].
    pub fn extend(&mut self) -> Result<()> {
        self.engine.check_process()?;
        let (mut fresh, known) = segments_since(&self.engine, self.known)?;
        let is_first = |file: &SegmentFile, fresh: &Segments| {
            fresh.front().is_some_and(|(first, _)| first.id() == file.id())
        };
        match self.left.back() {
            Some((last, _)) => {
                if is_first(last, &fresh) {
                    self.left.pop_back();
                }
            }
            None => {
                let goes_on = |at: &Frontier| {
                    fresh
                        .front()
                        .is_some_and(|(first, _)| first.id() == at.position.segment)
                };
                self.at = self.stopped.filter(goes_on);
            }
        }
        self.left.append(&mut fresh);
        self.known = known;
        Ok(())
    }

    fn read(&mut self) -> Result<Option<Change>> {
        while let Some((file, stop)) = self.left.front() {
            let at = self.at.unwrap_or_else(|| file.start());
            if at.position.offset >= *stop {
                self.stopped = Some(at);
                self.at = None;
                self.left.pop_front();
                continue;
            }
            let frame =
                next_frame(file, at).map_err(|flaw| file.segment.damage(at.position.offset, &flaw))?;
            self.at = Some(frame.end);
            if frame.header.kind == FrameKind::Relocation || frame.header.sequence <= self.after {
                continue;
            }
            self.after = frame.header.sequence;
            let operations = frame.records().map(|(_, record)| {
                let (table, key) = (record.head.table, record.key().to_vec());
                match record.head.kind {
                    RecordKind::Put => Operation::Put {
                        table,
                        key,
                        value: record.value().to_vec(),
                    },
                    RecordKind::Delete => Operation::Delete { table, key },
                    RecordKind::Clear => Operation::Clear { table },
                }
            });
            return Ok(Some(Change {
                sequence: Sequence(frame.header.sequence),
                chain: frame.header.chain,
                operations: operations.collect(),
            }));
        }
        Ok(None)
    }
}

impl Iterator for Changes {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = match self.engine.check_process() {
            Err(forked) if !self.left.is_empty() => Some(Err(forked)),
            _ => self.read().transpose(),
        };
        if let Some(Err(_)) = read {
            // The position of the next change after damage is unknown, so the iterator ends. An
            // extension reads from the last returned change on and finds the same error again.
            self.left.clear();
            (self.at, self.stopped, self.known) = (None, None, self.after);
        }
        read
    }
}
