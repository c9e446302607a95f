//! Finds keys that may differ between two databases of common origin, by their logs alone.
//!
//! - A database and its backup share segments, byte for byte. Equal seals prove this without
//!   reading the segments.
//! - The last record of a key decides. If a key differs, then in at least one database its last
//!   record is in a segment that the other database does not share. If both last records were in
//!   shared segments, the later of the two would be the last record in both databases. Dropped
//!   tombstones are no exception: compaction drops a tombstone only once no segment may have an
//!   older put of its key.
//! - So only keys in segments that are not shared are compared. If both databases have a segment
//!   with the id of such a segment, the frames that are equal at the beginning of both are skipped.
//!
//! Deliberately absent: the comparison of logs that differ by created, dropped, renamed or cleared
//! tables, or have damage. The caller compares digests in these cases.

use std::collections::HashSet;

use crate::directory::View;
use crate::engine::segments::Segment;
use crate::engine::{Engine, lock};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::record::RecordKind;
use crate::format::segment::SegmentHeader;
use crate::recover::log_reader::{SegmentFile, next_frame};
use crate::snapshot::Snapshot;

/// Table ids and keys.
type Keys = HashSet<(u32, Vec<u8>)>;

/// Returns the keys that may differ. Returns `None` if the databases have different ids, if the
/// parts of the logs that are not shared have clear markers or damage, if the end of a segment is
/// unknown, or if more than 1,000 keys and more than a quarter of the keys of both databases may
/// differ.
pub(crate) fn changed_keys(one: (&Engine, &Snapshot), two: (&Engine, &Snapshot)) -> Option<Keys> {
    if one.0.database != two.0.database {
        return None;
    }
    let most = one
        .1
        .views()
        .values()
        .chain(two.1.views().values())
        .map(View::len)
        .sum::<u64>()
        / 4;
    let mut keys = Keys::new();
    for ((db, snapshot), (other, other_snapshot)) in [(one, two), (two, one)] {
        for segment in snapshot.segments().iter() {
            let end = end(db, segment.id)?;
            if !is_shared(db, other, segment.id, end) {
                let other = other_snapshot.segments().by_id(segment.id);
                let common = other.map_or(0, |other| common_bytes(segment, other));
                collect(db, segment, (common, end), &mut keys)?;
            }
            if keys.len() as u64 > most.max(1000) {
                return None;
            }
        }
    }
    Some(keys)
}

/// Returns the end of the visible frames of a segment, or `None` if the end is unknown.
fn end(db: &Engine, segment: u64) -> Option<u32> {
    let core = lock(&db.core);
    let published = core.published.position;
    if published.segment == segment {
        return Some(published.offset);
    }
    core.usages
        .get(segment)
        .map(|usage| usage.end)
        .filter(|end| *end > 0)
}

fn is_shared(one: &Engine, two: &Engine, segment: u64, end: u32) -> bool {
    let seals = (one.seal_of(segment, end), two.seal_of(segment, end));
    // A seal file may outlive its segment in the log. So `two` must also list the segment with
    // equal length.
    matches!(seals, (Some(one), Some(two)) if one.root == two.root) && two.segment_end(segment) == end
}

/// Returns the number of leading bytes that two segments have in common, counted in blocks of at
/// most 4 KiB. A backup has only the beginning of the segment that was active when it was made.
fn common_bytes(one: &Segment, two: &Segment) -> u32 {
    const BLOCK: usize = 4096;
    let mut at = 0;
    one.begin_reading(at);
    two.begin_reading(at);
    loop {
        let (ours, theirs) = (one.bytes_at(at), two.bytes_at(at));
        let len = ours.len().min(theirs.len());
        if len == 0 {
            return at;
        }
        let blocks = ours[..len].chunks(BLOCK).zip(theirs[..len].chunks(BLOCK));
        let equal: usize = blocks
            .scan(at, |at, (ours, theirs)| {
                let from = *at;
                *at += ours.len() as u32;
                one.keep_reading(from, *at);
                two.keep_reading(from, *at);
                (ours == theirs).then_some(ours.len())
            })
            .sum();
        at += equal as u32;
        if equal < len {
            return at;
        }
    }
}

/// Adds the keys of the records of a segment up to `end`, live or dead. Frames within the first
/// `common` bytes are skipped, because they are in both logs. Returns `None` for a clear marker or
/// damage.
fn collect(
    db: &Engine,
    segment: &std::sync::Arc<Segment>,
    (common, end): (u32, u32),
    keys: &mut Keys,
) -> Option<()> {
    let header = SegmentHeader::decode(segment.bytes_at(0), db.database, segment.id).ok()?;
    let file = SegmentFile {
        segment: segment.clone(),
        header,
        sealed_end: None,
    };
    let mut at = file.start();
    while at.position.offset < common.min(end) {
        let offset = at.position.offset;
        let header = FrameHeader::decode(segment.bytes_at(offset), segment.mask, offset).ok()?;
        let next = offset
            .checked_add(FRAME_HEADER_BYTES)?
            .checked_add(header.body_bytes)?;
        if next > common {
            break;
        }
        at.position.offset = next;
        (at.sequence, at.chain) = (header.sequence, header.chain);
    }
    while at.position.offset < end {
        let frame = next_frame(&file, at).ok()?;
        for (_, record) in frame.records() {
            if record.head.kind == RecordKind::Clear {
                return None;
            }
            keys.insert((record.head.table, record.key().to_vec()));
        }
        at = frame.end;
    }
    Some(())
}
