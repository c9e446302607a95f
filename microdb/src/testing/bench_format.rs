//! Entry points for the micro-benchmarks of `benches/`: encoding of a commit's records, and
//! decoding in a read.
//!
//! Compiled only with the feature `bench`, and not part of the interface.

use crate::directory::KeyHash;
use crate::engine::body::Body;
use crate::format::DatabaseId;
use crate::format::checksum::SegmentMask;
use crate::format::record::{Record, RecordKind};

/// Offset that the benchmarks assume for the first record in its segment.
const OFFSET: u32 = 4096;

/// The body of a commit. Its buffer is reused, as in commits.
#[derive(Default)]
pub struct BenchBody(Body);

impl BenchBody {
    /// Encodes puts to one table with all their checksums, as a commit does before its position in
    /// the log is known. Then masks the checksums for a fixed segment and offset. Returns the
    /// encoded bytes.
    pub fn encode(&mut self, records: &[(Vec<u8>, Vec<u8>)]) -> &[u8] {
        self.0.clear();
        for (key, value) in records {
            let pushed = self.0.push(RecordKind::Put, (0, 1), KeyHash(0), key, value);
            pushed.expect("the benchmark's records are within the limits");
        }
        // A commit stores this checksum in the frame header, so its computation is part of the
        // measured work.
        std::hint::black_box(self.0.crc());
        self.0.mask(mask(), OFFSET);
        &self.0.bytes
    }
}

fn mask() -> SegmentMask {
    SegmentMask::new(DatabaseId([7; 16]), 1)
}

/// Parses and verifies the records of a body, as reads do. Returns the number of records if all are
/// valid.
#[must_use]
pub fn decode(body: &[u8]) -> Option<usize> {
    let (mut at, mut count) = (0, 0);
    while at < body.len() {
        let record = Record::parse(&body[at..])?;
        record.verify(mask(), OFFSET + at as u32).ok()?;
        at += record.bytes.len();
        count += 1;
    }
    Some(count)
}
