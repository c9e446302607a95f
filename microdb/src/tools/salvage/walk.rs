//! Reading a damaged segment: what is whole, what is not, and where it goes on after damage.
//!
//! A frame header has its own checksum, so behind damage the next one is found by looking at every
//! byte. Within a frame whose header is whole, and in the bytes behind one that is not, records are
//! found the same way: each has its own checksum, tied to its place. A stranger among random bytes
//! passes with a probability of 2^-32 a place.

use crate::format::Flaw;
use crate::format::checksum::SegmentMask;
use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader};
use crate::format::record::{Record, RecordKind};
use crate::format::segment::SEGMENT_HEADER_BYTES;
use crate::format::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Bytes of false records that may be checksummed while looking for the next true one in a segment:
/// some seconds. What lies behind is given up.
const SEARCH_BYTES_MAX: u64 = 16 << 30;

/// A part of a segment.
pub(super) struct Piece {
    /// The frame's header; `None` if it is damaged, and `records` are what was found behind it.
    pub(super) header: Option<FrameHeader>,
    pub(super) from: u32,
    /// Offsets of the records that are whole.
    pub(super) records: Vec<u32>,
    pub(super) holes: Vec<Hole>,
}

/// Bytes that are no frame and no record.
pub(super) struct Hole {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) flaw: Flaw,
    /// Table and key of the damaged record, if its lengths are right.
    pub(super) key: Option<(u32, Vec<u8>)>,
}

/// Goes through the frames of a segment.
pub(super) struct Walk<'a> {
    /// The segment up to where its frames end.
    bytes: &'a [u8],
    mask: SegmentMask,
    at: u32,
    search_left: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8], mask: SegmentMask) -> Self {
        Self {
            bytes,
            mask,
            at: SEGMENT_HEADER_BYTES,
            search_left: SEARCH_BYTES_MAX,
        }
    }

    /// The next piece; its last one may be what a torn write left. `None` at the end.
    pub(super) fn next(&mut self) -> Option<Piece> {
        let (from, end) = (self.at, self.bytes.len() as u32);
        let rest = self.bytes.get(from as usize..).filter(|rest| !rest.is_empty())?;
        match FrameHeader::decode(rest, self.mask, from) {
            Ok(header) => {
                let body_at = from + FRAME_HEADER_BYTES;
                let to = body_at.saturating_add(header.body_bytes);
                let mut piece = self.piece(Some(header), from, body_at, to.min(end));
                if to > end {
                    let flaw =
                        Flaw::short("frame body", header.body_bytes as usize, (end - body_at) as usize);
                    piece.holes.push(Hole {
                        from: end,
                        to,
                        flaw,
                        key: None,
                    });
                }
                self.at = to.min(end);
                Some(piece)
            }
            Err(flaw) => {
                let to = self.next_header(from + 1).unwrap_or(end);
                self.at = to;
                let mut piece = self.piece(None, from, from, to);
                // What is wrong is the header in the first place.
                if let Some(first) = piece.holes.first_mut() {
                    first.flaw = flaw;
                    first.key = None;
                }
                Some(piece)
            }
        }
    }

    fn next_header(&self, from: u32) -> Option<u32> {
        let bytes = self.bytes;
        (from..bytes.len() as u32).find(|at| {
            let rest = &bytes[*at as usize..];
            rest[0] == FRAME_MAGIC[0] && FrameHeader::decode(rest, self.mask, *at).is_ok()
        })
    }

    /// The records between `at` and `to`.
    fn piece(&mut self, header: Option<FrameHeader>, from: u32, mut at: u32, to: u32) -> Piece {
        let (mut records, mut holes) = (Vec::new(), Vec::new());
        while at < to {
            match self.record(at, to) {
                Ok(record) => {
                    records.push(at);
                    at += record.bytes.len() as u32;
                }
                Err(flaw) => {
                    let (next, key) = self.behind(at, to);
                    holes.push(Hole {
                        from: at,
                        to: next,
                        flaw,
                        key,
                    });
                    at = next;
                }
            }
        }
        Piece {
            header,
            from,
            records,
            holes,
        }
    }

    fn record(&self, at: u32, to: u32) -> Result<Record<'a>, Flaw> {
        let parsed = Record::parse(self.bytes.get(at as usize..to as usize).unwrap_or_default());
        let record = parsed
            .filter(is_plausible)
            .ok_or_else(|| Flaw::new(0, "record lengths", "a record within the frame", "nonsense"))?;
        record.verify(self.mask, at).map(|()| record)
    }

    /// Where the records go on behind a damaged one at `at`; and that one's table and key, if its
    /// lengths lead there.
    fn behind(&mut self, at: u32, to: u32) -> (u32, Option<(u32, Vec<u8>)>) {
        let damaged = Record::parse(&self.bytes[at as usize..to as usize]).filter(is_plausible);
        if let Some(damaged) = damaged {
            let end = at + damaged.bytes.len() as u32;
            if end == to || self.record(end, to).is_ok() {
                return (end, Some((damaged.head.table, damaged.key().to_vec())));
            }
        }
        for next in at + 1..to {
            let Some(record) = Record::parse(&self.bytes[next as usize..to as usize]).filter(is_plausible)
            else {
                continue;
            };
            self.search_left = self.search_left.saturating_sub(record.bytes.len() as u64);
            if self.search_left == 0 {
                return (to, None);
            }
            if record.verify(self.mask, next).is_ok() {
                return (next, None);
            }
        }
        (to, None)
    }
}

/// Whether an engine may have written this: cheaper to ask than the checksum.
fn is_plausible(record: &Record<'_>) -> bool {
    let head = &record.head;
    head.key_bytes <= KEY_BYTES_MAX
        && match head.kind {
            RecordKind::Put => head.value_bytes <= VALUE_BYTES_MAX,
            RecordKind::Delete => matches!(head.value_bytes, 0 | 8),
            RecordKind::Clear => head.key_bytes == 0 && matches!(head.value_bytes, 0 | 8),
        }
}
