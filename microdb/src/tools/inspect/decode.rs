//! Decoding of a segment into views: frames, records, fields and gaps.
//!
//! - Bytes behind damage are decoded too, as far as possible. A view describes its damage beside
//!   the bytes.
//!
//! Deliberately absent: access to files.

use super::{Field, FrameView, Gap, RecordView, SegmentView};
use crate::format::Flaw;
use crate::format::checksum::SegmentMask;
use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, FrameKind};
use crate::format::record::{Record, RecordKind};
use crate::format::segment::SEGMENT_HEADER_BYTES;
use crate::sequence::Sequence;

/// Adds the frames and gaps of a segment to `view`. Behind a damaged frame header, continues with
/// the next valid one.
pub(super) fn walk(bytes: &[u8], mask: SegmentMask, view: &mut SegmentView) {
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(rest) = bytes.get(at as usize..).filter(|rest| !rest.is_empty()) {
        match FrameHeader::decode(rest, mask, at) {
            Ok(header) => {
                let frame = frame_view(bytes, &header, mask, at);
                at = frame.end as u32;
                view.frames.push(frame);
            }
            Err(flaw) => {
                let whole = |next: &u32| FrameHeader::decode(&bytes[*next as usize..], mask, *next).is_ok();
                let starts =
                    (at + 1..bytes.len() as u32).filter(|next| bytes[*next as usize] == FRAME_MAGIC[0]);
                let next = starts.into_iter().find(whole).unwrap_or(bytes.len() as u32);
                let gap = &bytes[at as usize..next as usize];
                if gap.iter().any(|byte| *byte != 0) || next < bytes.len() as u32 {
                    let reason = told(&flaw);
                    view.gaps.push(Gap {
                        offset: at.into(),
                        end: next.into(),
                        reason,
                    });
                }
                at = next;
            }
        }
    }
}

fn frame_view(bytes: &[u8], header: &FrameHeader, mask: SegmentMask, at: u32) -> FrameView {
    let body_at = at + FRAME_HEADER_BYTES;
    let end = body_at.saturating_add(header.body_bytes).min(bytes.len() as u32);
    let mut frame = FrameView {
        offset: at.into(),
        end: end.into(),
        kind: match header.kind {
            FrameKind::Commit => "commit",
            FrameKind::Relocation => "relocation",
        },
        sequence: Sequence(header.sequence),
        header: fields(bytes, at as usize, &FRAME_FIELDS),
        records: Vec::new(),
        damage: None,
    };
    let (mut offset, mut body) = (body_at, &bytes[body_at as usize..end as usize]);
    while let Some(record) = Record::parse(body) {
        frame.records.push(RecordView {
            offset: offset.into(),
            kind: match record.head.kind {
                RecordKind::Put => "put",
                RecordKind::Delete => "delete",
                RecordKind::Clear => "clear",
            },
            table: record.head.table,
            key: record.key().to_vec(),
            value: record.value().to_vec(),
            bytes: record.bytes.to_vec(),
            damage: record.verify(mask, offset).err().as_ref().map(told),
        });
        offset += record.bytes.len() as u32;
        body = &body[record.bytes.len()..];
    }
    let (found, expected) = (frame.records.len(), header.op_count as usize);
    if found != expected || !body.is_empty() {
        frame.damage = Some(format!(
            "the header announces {expected} records in {} bytes, {found} can be read",
            header.body_bytes
        ));
    }
    frame
}

pub(super) fn told(flaw: &Flaw) -> String {
    format!("{} should be {}, found {}", flaw.field, flaw.expected, flaw.found)
}

/// Name, length and meaning of each field of a segment header, except the reserved bytes.
pub(super) const SEGMENT_FIELDS: [(&str, usize, Meaning); 10] = [
    ("magic", 8, Meaning::Text),
    ("version", 4, Meaning::Number),
    ("crc", 4, Meaning::Hex),
    ("database", 16, Meaning::Id),
    ("id", 8, Meaning::Number),
    ("previous end", 8, Meaning::Position),
    ("sequence", 8, Meaning::Number),
    ("chain", 8, Meaning::Hex),
    ("frontier", 8, Meaning::Position),
    ("data bytes max", 4, Meaning::Number),
];

/// Name, length and meaning of each field of a frame header.
const FRAME_FIELDS: [(&str, usize, Meaning); 9] = [
    ("magic", 4, Meaning::Hex),
    ("header crc", 4, Meaning::Hex),
    ("kind", 4, Meaning::Number),
    ("op count", 4, Meaning::Number),
    ("sequence", 8, Meaning::Number),
    ("body bytes", 4, Meaning::Number),
    ("body crc", 4, Meaning::Hex),
    ("chain", 8, Meaning::Hex),
    ("frontier", 8, Meaning::Position),
];

#[derive(Clone, Copy)]
pub(super) enum Meaning {
    Number,
    Hex,
    /// A database id, shown in hexadecimal in the order of its bytes.
    Id,
    Text,
    /// A position in the log: segment and offset, packed into 64 bits.
    Position,
}

pub(super) fn fields(bytes: &[u8], mut at: usize, layout: &[(&'static str, usize, Meaning)]) -> Vec<Field> {
    let mut fields = Vec::with_capacity(layout.len());
    for (name, len, meaning) in layout {
        let Some(bytes) = bytes.get(at..at + len) else {
            break;
        };
        let number = bytes
            .iter()
            .rev()
            .fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
        let meaning = match meaning {
            Meaning::Number => number.to_string(),
            Meaning::Hex => bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect(),
            Meaning::Id => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            Meaning::Text => bytes.escape_ascii().to_string(),
            Meaning::Position => crate::format::LogPosition::from_u64(number).to_string(),
        };
        fields.push(Field {
            offset: at as u64,
            name,
            bytes: bytes.to_vec(),
            meaning,
        });
        at += len;
    }
    fields
}
