//! The file SUPER: identity of the database, segments of its log, and the durable frontier.
//!
//! | offset | size | block |
//! | --- | --- | --- |
//! | 0 | 16,384 | state, first copy |
//! | 16,384 | 16,384 | state, second copy |
//! | 32,768 | 4,096 | hint, even counters |
//! | 36,864 | 4,096 | hint, odd counters |
//!
//! - Both *state* blocks hold the same state. They are rewritten one after the other, with a sync
//!   in between, so a crash leaves at least one of them complete. They differ only during a
//!   rewrite, after a rewrite that a crash or an error ended, and if one of them is damaged.
//! - The *hint* blocks hold the durable frontier. After each sync that advances the frontier of an
//!   open database, one of the two blocks is overwritten in turn. The block itself is not synced. A
//!   hint never names a position that is not durable.
//! - After a crash of the process, SUPER covers all commits that were acknowledged as durable. A
//!   power cut may lose the newest hints, so recovery also uses the frontiers in the headers of
//!   segments and frames.
//!
//! Deliberately absent: writing, which is in `engine::log`.

use super::{COUNTER_LIMIT, DatabaseId, FORMAT_VERSION, Flaw, LogPosition, Reader, SEGMENT_ID_LIMIT};
use crate::format::checksum;
use crate::seeded::seeded;

/// Size of a state block in bytes. It has room for the fixed fields and a bitmap of 65,536 segment
/// ids.
pub(crate) const STATE_BLOCK_BYTES: usize = 16 * 1024;
/// Size of a hint block in bytes. Each hint has a page of its own, so that a torn write of one hint
/// cannot damage the other.
pub(crate) const HINT_BLOCK_BYTES: usize = 4 * 1024;
/// Size of the file SUPER, in bytes.
pub(crate) const SUPER_BYTES: usize = 2 * STATE_BLOCK_BYTES + 2 * HINT_BLOCK_BYTES;

/// Offsets of the two state blocks in the file.
pub(crate) const STATE_OFFSETS: [u64; 2] = [0, STATE_BLOCK_BYTES as u64];
/// Offsets of the two hint blocks in the file.
pub(crate) const HINT_OFFSETS: [u64; 2] = [
    2 * STATE_BLOCK_BYTES as u64,
    (2 * STATE_BLOCK_BYTES + HINT_BLOCK_BYTES) as u64,
];

/// First bytes of a state block, and so of the file SUPER.
pub(crate) const STATE_MAGIC: [u8; 8] = *b"MicroDb\n";
/// First bytes of a hint.
pub(crate) const HINT_MAGIC: [u8; 4] = *b"hint";

/// State block, fixed part of 124 bytes, then the bitmap. Positions are packed by
/// `LogPosition::to_u64`.
///
/// | offset | size | field | meaning |
/// | --- | --- | --- | --- |
/// | 0 | 8 | magic | `STATE_MAGIC` |
/// | 8 | 4 | version | of the format |
/// | 12 | 4 | crc | CRC-32C of bytes 16 to the end of the bitmap, and of the version |
/// | 16 | 4 | used bytes | length of the block up to the end of the bitmap |
/// | 20 | 16 | database | id |
/// | 36 | 16 | hash seed | key of the directory's hash |
/// | 52 | 8 | generation | number of times that the state was written |
/// | 60 | 8 | created | milliseconds since 1970 |
/// | 68 | 8 | checkpoint | generation of the newest checkpoint, 0 if none |
/// | 76 | 8 | frontier | durable frontier, packed |
/// | 84 | 8 | sequence | of the last commit before the frontier |
/// | 92 | 8 | chain | link of the chain at that commit |
/// | 100 | 8 | next segment | no segment up to the frontier ever had this id or a higher one |
/// | 108 | 8 | first live | id that bit 0 of the bitmap stands for |
/// | 116 | 4 | words | 64-bit words of the bitmap |
/// | 120 | 4 | reserved | zero |
/// | 124 | 8 x words | live | one bit for each id; set for the segments in `State::live` |
const STATE_FIXED_BYTES: usize = 124;
const _: () = assert!(STATE_FIXED_BYTES == 8 + 4 + 4 + 4 + 16 + 16 + 8 + 8 + 8 + 8 + 8 + 8 + 8 + 8 + 4 + 4);

/// Exclusive upper bound for the difference of the ids of two segments of a log, since a location
/// has 16 bits for the id.
pub(crate) const SEGMENT_SPAN_MAX: u64 = 1 << 16;
const _: () = assert!(STATE_FIXED_BYTES + (SEGMENT_SPAN_MAX as usize / 8) + 8 <= STATE_BLOCK_BYTES);

/// Hint, 44 bytes. Positions are packed by `LogPosition::to_u64`.
///
/// | offset | size | field | meaning |
/// | --- | --- | --- | --- |
/// | 0 | 4 | magic | `HINT_MAGIC` |
/// | 4 | 4 | crc | CRC-32C of the database id and of bytes 8 to 43 |
/// | 8 | 8 | counter | the hint with the higher counter is newer |
/// | 16 | 8 | frontier | durable frontier, packed |
/// | 24 | 8 | sequence | of the last commit before the frontier |
/// | 32 | 8 | chain | link of the chain at that commit |
/// | 40 | 4 | reserved | zero |
pub(crate) const HINT_BYTES: usize = 44;
const _: () = assert!(HINT_BYTES == 4 + 4 + 8 + 8 + 8 + 8 + 4);

/// A position in the log, with the sequence and the chain of the last commit before it. In SUPER,
/// this is the durable frontier: the log is durable up to the position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Frontier {
    pub(crate) position: LogPosition,
    pub(crate) sequence: u64,
    pub(crate) chain: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct State {
    pub(crate) database: DatabaseId,
    pub(crate) hash_seed: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) created_ms: u64,
    pub(crate) checkpoint: u64,
    pub(crate) frontier: Frontier,
    pub(crate) next_segment: u64,
    /// Ids of the segments of the log up to the durable frontier, ascending.
    pub(crate) live: Vec<u64>,
}

impl State {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let first = self.live.first().copied().unwrap_or(0);
        let span = self.live.last().map_or(0, |last| last - first + 1);
        assert!(span <= SEGMENT_SPAN_MAX, "live segments span {span} ids");
        let mut words = vec![0u64; (span as usize).div_ceil(64)];
        for id in &self.live {
            let bit = (id - first) as usize;
            words[bit / 64] |= 1 << (bit % 64);
        }
        let used = STATE_FIXED_BYTES + 8 * words.len();
        let mut bytes = Vec::with_capacity(used);
        bytes.extend_from_slice(&STATE_MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(used as u32).to_le_bytes());
        bytes.extend_from_slice(&self.database.0);
        bytes.extend_from_slice(&self.hash_seed);
        for field in [
            self.generation,
            self.created_ms,
            self.checkpoint,
            self.frontier.position.to_u64(),
            self.frontier.sequence,
            self.frontier.chain,
            self.next_segment,
            first,
        ] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&(words.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        words
            .iter()
            .for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        let crc = checksum::crc_append(checksum::crc(&bytes[16..]), &bytes[8..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes a state block. A block of a newer version gives a [`Flaw`] in the field "version".
    /// The version is checked before the checksum, which a newer version may compute in another
    /// way.
    pub(crate) fn decode(block: &[u8]) -> Result<Self, Flaw> {
        let short = || Flaw::short("state block", STATE_FIXED_BYTES, block.len());
        let mut reader = Reader(block);
        let magic = reader.array::<8>().ok_or_else(short)?;
        if magic != STATE_MAGIC {
            return Err(Flaw::new(
                0,
                "magic",
                STATE_MAGIC.escape_ascii(),
                magic.escape_ascii(),
            ));
        }
        let version = reader.array::<4>().ok_or_else(short)?;
        if u32::from_le_bytes(version) > FORMAT_VERSION && !seeded("newer-version-after-checksum") {
            let found = u32::from_le_bytes(version);
            return Err(Flaw::new(8, "version", FORMAT_VERSION, found));
        }
        let stored = reader.u32().ok_or_else(short)?;
        let used = Reader(reader.0).u32().ok_or_else(short)? as usize;
        let covered = block
            .get(16..used)
            .ok_or_else(|| Flaw::new(16, "used bytes", format_args!("16 to {}", block.len()), used))?;
        let crc = checksum::crc_append(checksum::crc(covered), &version);
        if stored != crc {
            return Err(Flaw::new(
                12,
                "crc",
                format_args!("{crc:08x}"),
                format_args!("{stored:08x}"),
            ));
        }
        let version = u32::from_le_bytes(version);
        if version != FORMAT_VERSION {
            return Err(Flaw::new(8, "version", FORMAT_VERSION, version));
        }
        let mut reader = Reader(covered);
        let _used = reader.u32();
        let database = DatabaseId(reader.array().ok_or_else(short)?);
        let hash_seed = reader.array().ok_or_else(short)?;
        let mut field = || reader.u64().ok_or_else(short);
        let (generation, created_ms, checkpoint) = (field()?, field()?, field()?);
        Flaw::check_counter(52, "generation", generation)?;
        Flaw::check_counter(68, "checkpoint", checkpoint)?;
        let position = LogPosition::from_u64(field()?);
        let frontier = Frontier {
            position,
            sequence: Flaw::check_counter(84, "sequence", field()?)?,
            chain: field()?,
        };
        let (next_segment, first) = (field()?, field()?);
        if next_segment >= SEGMENT_ID_LIMIT || first > next_segment {
            let expected = format_args!("at most {next_segment} and below 2^38");
            return Err(Flaw::new(
                100,
                "next segment, first live",
                expected,
                format_args!("{next_segment}, {first}"),
            ));
        }
        let words = reader.u32().ok_or_else(short)?;
        let _reserved = reader.u32();
        let mut live = Vec::new();
        for index in 0..u64::from(words) {
            let mut word = reader.u64().ok_or_else(short)?;
            while word != 0 {
                live.push(first.saturating_add(64 * index + u64::from(word.trailing_zeros())));
                word &= word - 1;
            }
        }
        if let (Some(&first), Some(&last)) = (live.first(), live.last())
            && (last >= next_segment || last - first >= SEGMENT_SPAN_MAX)
        {
            let expected = format_args!("ids below {next_segment} that span less than {SEGMENT_SPAN_MAX}");
            return Err(Flaw::new(
                124,
                "live segments",
                expected,
                format_args!("{first} to {last}"),
            ));
        }
        Ok(Self {
            database,
            hash_seed,
            generation,
            created_ms,
            checkpoint,
            frontier,
            next_segment,
            live,
        })
    }
}

/// Returns the highest version of a newer format that a copy of the state names, or `None` if a
/// copy is valid or no copy names such a version. If one copy is valid, a newer version in the
/// other copy counts as damage.
pub(crate) fn newer_version(states: &[Result<State, Flaw>; 2]) -> Option<u32> {
    if states.iter().any(Result::is_ok) {
        return None;
    }
    let flaws = states.iter().filter_map(|state| state.as_ref().err());
    let versions = flaws.filter(|flaw| flaw.field == "version");
    let versions = versions.filter_map(|flaw| flaw.found.parse().ok());
    versions.filter(|version| *version > FORMAT_VERSION).max()
}

/// Encodes `frontier` as the hint with number `counter`.
pub(crate) fn encode_hint(database: DatabaseId, counter: u64, frontier: &Frontier) -> [u8; HINT_BYTES] {
    let mut bytes = [0u8; HINT_BYTES];
    bytes[..4].copy_from_slice(&HINT_MAGIC);
    bytes[8..16].copy_from_slice(&counter.to_le_bytes());
    bytes[16..24].copy_from_slice(&frontier.position.to_u64().to_le_bytes());
    bytes[24..32].copy_from_slice(&frontier.sequence.to_le_bytes());
    bytes[32..40].copy_from_slice(&frontier.chain.to_le_bytes());
    let crc = checksum::crc_append(checksum::crc(&database.0), &bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Decodes a hint. Returns its counter and frontier, or `None` if the block has no valid hint of
/// this database.
pub(crate) fn decode_hint(block: &[u8], database: DatabaseId) -> Option<(u64, Frontier)> {
    let mut reader = Reader(block.get(..HINT_BYTES)?);
    if reader.array::<4>()? != HINT_MAGIC {
        return None;
    }
    let stored = reader.u32()?;
    if stored != checksum::crc_append(checksum::crc(&database.0), reader.0) {
        return None;
    }
    let is_possible = |counter: &u64| *counter < COUNTER_LIMIT;
    let counter = reader.u64().filter(is_possible)?;
    let position = LogPosition::from_u64(reader.u64()?);
    Some((
        counter,
        Frontier {
            position,
            sequence: reader.u64().filter(is_possible)?,
            chain: reader.u64()?,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            database: DatabaseId([1; 16]),
            hash_seed: [2; 16],
            generation: 3,
            created_ms: 4,
            checkpoint: 5,
            frontier: Frontier {
                position: LogPosition {
                    segment: 9,
                    offset: 100,
                },
                sequence: 6,
                chain: 7,
            },
            next_segment: 200,
            live: vec![3, 9, 64, 66, 67, 199],
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_of_a_state_is_noticed() {
        let state = state();
        let bytes = state.encode();
        assert_eq!(State::decode(&bytes), Ok(state.clone()));
        assert_eq!(State::decode(&[bytes.clone(), vec![0; 500]].concat()), Ok(state));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(State::decode(&damaged).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(State::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn the_file_is_laid_out_as_described() {
        assert_eq!(STATE_OFFSETS, [0, 16_384]);
        assert_eq!(HINT_OFFSETS, [32_768, 36_864]);
        assert_eq!(SUPER_BYTES, 40_960);
        assert_eq!(SEGMENT_SPAN_MAX, 65_536);
    }

    #[test]
    fn newer_version_is_named_whatever_its_layout_and_one_damaged_copy_is_not_taken_for_it() {
        let mut newer = [0xEE; STATE_BLOCK_BYTES];
        newer[..8].copy_from_slice(&STATE_MAGIC);
        newer[8..12].copy_from_slice(&7_u32.to_le_bytes());
        let (newer, ours) = (State::decode(&newer), State::decode(&state().encode()));
        assert_eq!(newer.as_ref().unwrap_err().field, "version");
        assert_eq!(newer_version(&[newer.clone(), newer.clone()]), Some(7));
        assert_eq!(newer_version(&[State::decode(&[0; 500]), newer.clone()]), Some(7));
        assert_eq!(newer_version(&[newer, ours]), None);
        assert_eq!(
            newer_version(&[State::decode(&[0; 500]), State::decode(&[])]),
            None
        );
    }

    #[test]
    fn counters_that_could_not_go_on_are_refused() {
        let flaw = |change: &dyn Fn(&mut State, u64)| {
            let decoded = |counter| {
                let mut state = state();
                change(&mut state, counter);
                State::decode(&state.encode())
            };
            assert!(decoded(COUNTER_LIMIT - 1).is_ok());
            decoded(COUNTER_LIMIT).unwrap_err().field
        };
        assert_eq!(flaw(&|state, counter| state.generation = counter), "generation");
        assert_eq!(flaw(&|state, counter| state.checkpoint = counter), "checkpoint");
        assert_eq!(
            flaw(&|state, counter| state.frontier.sequence = counter),
            "sequence"
        );
        let database = DatabaseId([1; 16]);
        let hint = |counter, sequence| {
            let frontier = Frontier {
                sequence,
                ..state().frontier
            };
            decode_hint(&encode_hint(database, counter, &frontier), database)
        };
        assert!(hint(COUNTER_LIMIT - 1, COUNTER_LIMIT - 1).is_some());
        assert!(hint(COUNTER_LIMIT, 1).is_none() && hint(1, COUNTER_LIMIT).is_none());
    }

    #[test]
    fn any_number_of_live_segments_comes_back() {
        for count in [0, 1, 2, 63, 64, 65, 128, 129] {
            let mut state = state();
            state.live = (10..10 + count).collect();
            assert_eq!(State::decode(&state.encode()), Ok(state), "{count}");
        }
    }

    #[test]
    fn the_widest_span_of_segments_fits_its_block() {
        let mut state = state();
        state.live = vec![17, 17 + SEGMENT_SPAN_MAX - 1];
        state.next_segment = 17 + SEGMENT_SPAN_MAX;
        let bytes = state.encode();
        assert!(bytes.len() <= STATE_BLOCK_BYTES);
        assert_eq!(State::decode(&bytes), Ok(state));
    }

    #[test]
    fn live_segments_that_cannot_be_are_refused() {
        let mut state = state();
        state.next_segment = 199;
        let flaw = State::decode(&state.encode()).unwrap_err();
        assert_eq!(flaw.field, "live segments");
        // The ids of the two segments are too far apart for the 16 bits of an id in a location.
        let mut bytes = state_bytes_of_span(SEGMENT_SPAN_MAX);
        let flaw = State::decode(&bytes).unwrap_err();
        assert_eq!(flaw.field, "live segments");
        bytes = state_bytes_of_span(SEGMENT_SPAN_MAX - 1);
        assert_eq!(State::decode(&bytes).unwrap().live.len(), 2);
    }

    /// Recomputes the checksum of a changed state block, so that decoding passes the check of the
    /// checksum and reaches the later checks.
    fn seal(bytes: &mut [u8]) {
        let crc = checksum::crc_append(checksum::crc(&bytes[16..]), &bytes[8..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    /// Returns an encoded state with the live segments 17 and `17 + span`. The span may be larger
    /// than `State::encode` permits.
    fn state_bytes_of_span(span: u64) -> Vec<u8> {
        let mut state = state();
        (state.live, state.next_segment) = (vec![17], 1 << 20);
        let mut bytes = state.encode();
        let words = span as usize / 64 + 1;
        bytes.resize(STATE_FIXED_BYTES + 8 * words, 0);
        bytes[16..20].copy_from_slice(&(STATE_FIXED_BYTES as u32 + 8 * words as u32).to_le_bytes());
        bytes[116..120].copy_from_slice(&(words as u32).to_le_bytes());
        bytes[STATE_FIXED_BYTES + span as usize / 8] |= 1 << (span % 8);
        seal(&mut bytes);
        bytes
    }

    #[test]
    fn segment_ids_that_cannot_be_are_refused() {
        let mut state = state();
        state.live.clear();
        let mut refused = |next: u64, first: u64| {
            state.next_segment = next;
            let mut bytes = state.encode();
            bytes[108..116].copy_from_slice(&first.to_le_bytes());
            seal(&mut bytes);
            State::decode(&bytes).is_err_and(|flaw| flaw.field == "next segment, first live")
        };
        assert!(refused(SEGMENT_ID_LIMIT, 5) && !refused(SEGMENT_ID_LIMIT - 1, 5));
        assert!(refused(7, 8) && !refused(7, 7) && !refused(8, 7));
    }

    #[test]
    fn a_damaged_or_foreign_hint_is_none() {
        let (database, frontier) = (DatabaseId([1; 16]), state().frontier);
        let bytes = encode_hint(database, 8, &frontier);
        assert_eq!(decode_hint(&bytes, database), Some((8, frontier)));
        assert_eq!(decode_hint(&bytes, DatabaseId([2; 16])), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_hint(&damaged, database), None, "bit {bit}");
        }
    }
}
