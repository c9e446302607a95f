//! Reading of a damaged segment: finds complete frames and records, holes, and the continuation
//! behind damage.
//!
//! - A frame header has its own checksum. So behind damage the next frame is found by trying every
//!   byte as the start of a header.
//! - Behind a damaged record, the next record is found in the same way. Each record has a checksum
//!   tied to its position. Random bytes pass this checksum with a probability of 2^-32 per
//!   position.
//!
//! Deliberately absent: the meaning of records.

use crate::format::Flaw;
use crate::format::checksum::SegmentMask;
use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader};
use crate::format::record::{Record, RecordKind};
use crate::format::segment::SEGMENT_HEADER_BYTES;
use crate::format::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Maximum number of bytes that the search for records behind damage checksums in one segment. The
/// limit exceeds the size of a segment, because the ranges of possible records overlap.
/// Checksumming 16 GiB takes some seconds. From the limit on, the bytes behind a damaged record up
/// to the end of its [`Piece`] become a hole.
const SEARCH_BYTES_MAX: u64 = 16 << 30;

/// A part of a segment: one frame, or the bytes from a damaged frame header to the next valid
/// header or the end of the segment.
pub(super) struct Piece {
    /// Header of the frame, or `None` if the header is damaged. In that case `records` are the
    /// records found behind the header.
    pub(super) header: Option<FrameHeader>,
    pub(super) from: u32,
    /// Offsets of the valid records in the segment.
    pub(super) records: Vec<u32>,
    pub(super) holes: Vec<Hole>,
}

/// Bytes that are part of no valid frame header and no valid record, or that are missing behind the
/// end of the segment.
pub(super) struct Hole {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) flaw: Flaw,
    /// Table id and key of the damaged record, if its lengths lead to the next valid record or to
    /// the end of the frame.
    pub(super) key: Option<(u32, Vec<u8>)>,
}

/// Reads a segment piece by piece.
pub(super) struct Walk<'a> {
    /// The bytes of the segment up to the end of its frames.
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

    /// Returns the next piece, or `None` at the end of the segment. The last piece may come from a
    /// torn write.
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
                // The piece begins with the damaged header, so its first hole gets the flaw of the
                // header.
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

    /// Returns the piece that begins at `from`. It has the valid records between the offsets `at`
    /// and `to`, and the holes of bytes without a valid record.
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

    /// Returns the offset of the next valid record behind a damaged record at `at`, or `to` if none
    /// is found. Also returns table id and key of the damaged record, if its lengths lead to the
    /// next valid record or to `to`.
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

/// Returns `true` if the lengths in the record's head are possible. This check is cheaper than the
/// checksum.
fn is_plausible(record: &Record<'_>) -> bool {
    let head = &record.head;
    head.key_bytes <= KEY_BYTES_MAX
        && match head.kind {
            RecordKind::Put => head.value_bytes <= VALUE_BYTES_MAX,
            RecordKind::Delete => matches!(head.value_bytes, 0 | 8),
            RecordKind::Clear => head.key_bytes == 0 && matches!(head.value_bytes, 0 | 8),
        }
}
