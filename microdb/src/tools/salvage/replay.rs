//! Replay of a damaged log: applies complete records in the order of the log, and lists the losses.
//!
//! - Sequence numbers of commits show which commits are missing between two that were read.
//! - The checkpoint shows which records should be live at its position in the log, and which should
//!   not.
//! - The first incomplete frame at or behind the last position known to have been durable begins a
//!   torn tail, as in an open. The tail is omitted and is no loss.
//!
//! Deliberately absent: the search for frames, which is in `walk`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::manifest::{KEYS_LISTED_MAX, KeyName, Loss, Manifest};
use super::source::{Listed, SourceSegment, chain};
use super::walk::{Piece, Walk};
use super::{Salvage, live};
use crate::directory::Location;
use crate::engine::checkpoint::Loaded;
use crate::engine::lock;
use crate::error::Result;
use crate::format::LogPosition;
use crate::format::checksum;
use crate::format::frame::{FrameHeader, FrameKind};
use crate::format::names;
use crate::format::record::{Record, RecordKind};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::Frontier;
use crate::format::usage::SegmentUsage;
use crate::raw::epoch::pin;
use crate::raw::sync::ignore_poison;
use crate::recover::log_reader::highest_frontier;
use crate::recover::{Replayed, Rules};
use crate::sequence::Sequence;

/// Replays the log and lists the losses.
pub(super) struct Replay<'a> {
    salvage: &'a mut Salvage,
    manifest: &'a mut Manifest,
    rules: Rules,
    frontier: Option<Frontier>,
    /// The newest readable checkpoint. `None` without one, or once replay has reached its position
    /// in the log.
    checkpoint: Option<Loaded>,
    /// List of the segments of the log, if there is one.
    listed: Option<Listed>,
    /// Id of the segment that was read before the present one, or 0.
    before: u64,
    sequence: u64,
    chain: u64,
    /// Index of the loss with which missing commits are listed if the header of the next frame or
    /// segment, or the durable frontier, shows that commits are missing: the first loss found since
    /// the last call of `follow` or `miss`. `None` if no loss was found since then.
    open_loss: Option<usize>,
    /// Table ids and keys of lost records, by index of the loss. An empty key stands for an unknown
    /// key.
    lost: BTreeMap<usize, Vec<(u32, Vec<u8>)>>,
    /// Byte ranges of the losses, for finding the loss of a location: id of the segment, from, to,
    /// index of the loss.
    places: Vec<(u64, u32, u32, usize)>,
    /// Offsets of the ends of complete segments, by id, according to the newest readable
    /// checkpoint.
    known_ends: HashMap<u64, u32>,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        salvage: &'a mut Salvage,
        frontier: Option<Frontier>,
        listed: Option<Listed>,
        checkpoint: Option<Loaded>,
        manifest: &'a mut Manifest,
    ) -> Self {
        let usages = checkpoint.iter().flat_map(|loaded| &loaded.block.usages);
        let known_ends = usages.map(|(id, usage)| (*id, usage.end)).collect();
        // Losses of whole files, which are missing or cannot be read at all.
        let missing = manifest.losses.iter().enumerate().filter_map(|(number, loss)| {
            let id = names::parse_segment(loss.path.file_name()?.to_str()?)?;
            Some((id, 0, u32::MAX, number))
        });
        let places = missing.collect();
        Self {
            salvage,
            manifest,
            rules: Rules::whole_log(),
            frontier,
            checkpoint,
            listed,
            before: 0,
            sequence: 0,
            chain: 0,
            open_loss: None,
            lost: BTreeMap::new(),
            places,
            known_ends,
        }
    }

    pub(super) fn run(mut self, segments: &[SourceSegment]) -> Result<()> {
        for file in segments {
            self.salvage.engine.segments.put(file.segment.clone());
            let mut core = lock(&self.salvage.engine.core);
            core.usages.open(file.segment.id, SegmentUsage::default());
        }
        // Highest position up to which the log is known to have been durable. The first incomplete
        // frame at or behind this position begins a torn tail.
        let claimed = segments
            .iter()
            .map(|file| highest_frontier(&file.segment, SEGMENT_HEADER_BYTES));
        let known = self.frontier.map(|frontier| frontier.position);
        let headers = segments
            .iter()
            .filter_map(|file| file.header)
            .map(|header| header.frontier);
        let durable = claimed.chain(known).chain(headers).max().unwrap_or_default();
        let mut torn = false;
        for (index, file) in segments.iter().enumerate() {
            if torn {
                self.manifest.torn_bytes += u64::from(file.end);
                continue;
            }
            torn = self.segment(file, durable, index + 1 == segments.len())?;
        }
        self.meet_checkpoint(None)?;
        self.check_end(segments, durable);
        let mut core = lock(&self.salvage.engine.core);
        if let Err(error) = self.rules.clear_old(&self.salvage.engine, &mut core) {
            self.manifest.warnings.push(format!(
                "records of a cleared table may be back: {}",
                chain(&error)
            ));
        }
        drop(core);
        self.salvage.read_names();
        self.name_losses();
        Ok(())
    }

    /// Replays one segment. Returns `true` if the log ends in this segment with a torn tail.
    fn segment(&mut self, file: &SourceSegment, durable: LogPosition, last: bool) -> Result<bool> {
        self.manifest.segments += 1;
        let segment = &file.segment;
        match &file.header {
            Some(header) if header.sequence > self.sequence && self.manifest.segments > 1 => {
                if !self.is_gap_of_compaction(header) {
                    self.miss(self.sequence.saturating_add(1), header.sequence);
                }
                (self.sequence, self.chain) = (header.sequence, header.chain);
            }
            Some(header) if self.manifest.segments == 1 => {
                (self.sequence, self.chain) = (header.sequence, header.chain);
            }
            Some(_) => {}
            None => self
                .manifest
                .notes
                .push(format!("the header of {} is damaged", segment.path.display())),
        }
        self.before = segment.id;
        let bytes = segment.bytes_at(0);
        let end = (file.end as usize).min(bytes.len());
        // All bytes before this offset were read or listed as a loss.
        let mut seen = end as u32;
        let mut walk = Walk::new(&bytes[..end], segment.mask);
        while let Some(piece) = walk.next() {
            let at = LogPosition {
                segment: segment.id,
                offset: piece.from,
            };
            let whole = piece.header.is_some() && piece.holes.is_empty();
            if !whole && at >= durable {
                if last && bytes[piece.from as usize..end].iter().all(|byte| *byte == 0) {
                    // The zeros were allocated for frames that were never written.
                    return Ok(false);
                }
                self.manifest.torn_bytes += u64::from(end as u32 - piece.from);
                return Ok(true);
            }
            self.meet_checkpoint(Some(at))?;
            self.piece(file, &piece)?;
            seen = seen.max(piece.holes.last().map_or(0, |hole| hole.to));
        }
        self.lose_end(file, seen, durable);
        Ok(false)
    }

    /// Returns `true` if the commits between the previous segment and the one with `header` were in
    /// segments that compaction has removed, and in no others. The end of the previous segment must
    /// be known, because commits may be missing there too.
    fn is_gap_of_compaction(&self, header: &SegmentHeader) -> bool {
        let is_removed = |id| self.listed.as_ref().is_some_and(|listed| listed.is_removed(id));
        let end = self.known_ends.get(&self.before).copied().unwrap_or(0);
        self.open_loss.is_none()
            && end > 0
            && header.previous_end.segment > self.before
            && (self.before + 1..header.id).all(is_removed)
    }

    /// Lists the bytes behind `seen` that the segment once had, according to the next segment, the
    /// checkpoint or the durable frontier. Sequence numbers alone would not show such a loss,
    /// because copies made by compaction have no sequence number of their own.
    fn lose_end(&mut self, file: &SourceSegment, seen: u32, durable: LogPosition) {
        let segment = &file.segment;
        let by_checkpoint = self.known_ends.get(&segment.id).copied().unwrap_or(0);
        let by_frontier = if segment.id == durable.segment {
            durable.offset
        } else {
            0
        };
        let end = file.end.max(by_checkpoint).max(by_frontier);
        if end > seen {
            let what = "the file ends too early".to_owned();
            self.lose(segment.id, &segment.path, seen, end, what);
        }
    }

    fn piece(&mut self, file: &SourceSegment, piece: &Piece) -> Result<()> {
        // The holes of a frame with a valid header lie behind this header. So commits that are
        // missing before the header belong to an earlier loss.
        if let Some(header) = &piece.header {
            self.follow(header);
        }
        let loss = self.note_holes(file, piece);
        if let Some(header) = &piece.header {
            self.open_loss = None;
            if let (Some(loss), FrameKind::Commit) = (loss, header.kind) {
                let loss = &mut self.manifest.losses[loss];
                loss.sequences = Some((Sequence(header.sequence), Sequence(header.sequence)));
            }
            match loss {
                None => self.manifest.frames += 1,
                Some(loss) => {
                    let lost = u64::from(header.op_count).saturating_sub(piece.records.len() as u64);
                    self.manifest.losses[loss].records_lost = Some(lost);
                    self.manifest.losses[loss].records_recovered = piece.records.len() as u64;
                }
            }
        } else if let Some(loss) = loss {
            self.manifest.losses[loss].records_recovered = piece.records.len() as u64;
            self.open_loss.get_or_insert(loss);
        }
        let engine = &self.salvage.engine;
        let mut core = lock(&engine.core);
        let guard = pin();
        for offset in &piece.records {
            let Some(record) = file.segment.record(*offset) else {
                continue;
            };
            let kind = piece
                .header
                .map_or_else(|| kind_of(&record), |header| header.kind);
            let table = {
                let mut catalog = ignore_poison(engine.catalog.write());
                catalog.table_or_new(record.head.table).clone()
            };
            let at = Location::new(file.segment.id, *offset);
            let replayed = Replayed::new(engine, kind, record, table, at);
            self.rules.apply(engine, &guard, &mut core, &replayed, None)?;
        }
        Ok(())
    }

    /// Lists the holes of a piece as one loss. Returns the index of this loss, or `None` if the
    /// piece has no holes.
    fn note_holes(&mut self, file: &SourceSegment, piece: &Piece) -> Option<usize> {
        let (first, last) = (piece.holes.first()?, piece.holes.last()?);
        let flaw = &first.flaw;
        let what = format!("{} should be {}, found {}", flaw.field, flaw.expected, flaw.found);
        let segment = &file.segment;
        let loss = self.lose(segment.id, &segment.path, first.from, last.to, what);
        let keys = piece.holes.iter().filter_map(|hole| hole.key.clone());
        self.lost.entry(loss).or_default().extend(keys);
        Some(loss)
    }

    fn lose(&mut self, segment: u64, path: &Path, from: u32, to: u32, what: String) -> usize {
        let loss = self.manifest.losses.len();
        self.manifest.losses.push(Loss {
            path: path.to_path_buf(),
            from: from.into(),
            to: to.into(),
            what,
            ..Loss::default()
        });
        self.places.push((segment, from, to, loss));
        self.open_loss.get_or_insert(loss);
        loss
    }

    /// Compares the sequence of a frame with that of the previous frame. Commits missing between
    /// the two were lost. Without a loss in between, also compares the chain.
    fn follow(&mut self, header: &FrameHeader) {
        let expected = match header.kind {
            FrameKind::Commit => self.sequence.saturating_add(1),
            FrameKind::Relocation => self.sequence,
        };
        if header.sequence > expected {
            let last = header.sequence - u64::from(header.kind == FrameKind::Commit);
            self.miss(self.sequence.saturating_add(1), last);
        } else if header.kind == FrameKind::Commit && self.open_loss.is_none() {
            let chain = checksum::chain(self.chain, header.sequence, header.body_crc, header.op_count);
            if (header.sequence, header.chain) != (expected, chain) {
                let sequence = header.sequence;
                self.manifest.warnings.push(format!(
                    "commit {sequence} does not follow on the one that was read before it: a file may be an older version of itself"
                ));
            }
        }
        self.open_loss = None;
        if header.sequence >= self.sequence {
            (self.sequence, self.chain) = (header.sequence, header.chain);
        }
        self.manifest.sequence = Sequence(self.sequence);
    }

    /// Lists the commits from `first` to `last` as missing: with a loss that may have contained
    /// them, or else as a warning.
    fn miss(&mut self, first: u64, last: u64) {
        let missing = |loss: &Loss| loss.is_of_file() && loss.sequences.is_none();
        let loss = self
            .open_loss
            .take()
            .or_else(|| self.manifest.losses.iter().position(missing));
        match loss {
            Some(loss) => self.manifest.losses[loss].sequences = Some((Sequence(first), Sequence(last))),
            None => self
                .manifest
                .warnings
                .push(format!("commits {first} to {last} are not in the log")),
        }
    }

    /// Compares the live records with the checkpoint, once replay has reached the checkpoint's
    /// position and if a loss was found before. `at` is the position of replay, or `None` at the
    /// end of the log.
    fn meet_checkpoint(&mut self, at: Option<LogPosition>) -> Result<()> {
        let reached = |loaded: &mut Loaded| at.is_none_or(|at| at >= loaded.block.at.position);
        let Some(loaded) = self.checkpoint.take_if(reached) else {
            return Ok(());
        };
        if self.manifest.losses.is_empty() {
            return Ok(());
        }
        let guard = pin();
        for (entry, directory) in loaded.block.tables.iter().zip(loaded.directories) {
            let known: std::result::Result<HashSet<Location>, _> = directory.view(&guard).iter().collect();
            let Ok(known) = known else {
                let name = &entry.name;
                self.manifest.warnings.push(format!(
                    "the checkpoint's part for table {name} is damaged: keys of it may have old values, or be back, and cannot be named"
                ));
                continue;
            };
            let ours = match self.salvage.engine.table_by_id(entry.id) {
                Some(table) => live(&table),
                None => HashSet::new(),
            };
            for lost in known.difference(&ours) {
                let in_loss = |(segment, from, to, _): &&(u64, u32, u32, usize)| {
                    *segment as u16 == lost.segment16() && (*from..*to).contains(&lost.offset())
                };
                if let Some((.., loss)) = self.places.iter().find(in_loss) {
                    *self.manifest.losses[*loss].live_records_lost.get_or_insert(0) += 1;
                    self.lost.entry(*loss).or_default().push((entry.id, Vec::new()));
                }
            }
            let stale = ours.difference(&known).copied().collect();
            self.salvage.stale.insert(entry.id, stale);
        }
        for loss in &mut self.manifest.losses {
            loss.live_records_lost.get_or_insert(0);
        }
        Ok(())
    }

    /// Checks that the log reaches its known end. Adds a warning if a loss was not compared with a
    /// checkpoint.
    fn check_end(&mut self, segments: &[SourceSegment], durable: LogPosition) {
        if let Some(frontier) = self.frontier.filter(|frontier| frontier.sequence > self.sequence) {
            let path = self.salvage.engine.paths.segment(frontier.position.segment);
            if self.open_loss.is_none() {
                let losses = &self.manifest.losses;
                let is_file = |loss: &Loss| loss.is_of_file() && loss.path == path;
                self.open_loss = losses.iter().position(is_file);
            }
            if self.open_loss.is_none() {
                let end = segments.iter().find(|file| file.segment.id == durable.segment);
                let from = end.map_or(0, |file| file.end.min(frontier.position.offset));
                let what = "the log is known to have continued".to_owned();
                self.lose(
                    frontier.position.segment,
                    &path,
                    from,
                    frontier.position.offset,
                    what,
                );
            }
            self.miss(self.sequence.saturating_add(1), frontier.sequence);
        }
        let judged = |loss: &Loss| loss.live_records_lost.is_some();
        if self.manifest.losses.iter().any(|loss| !judged(loss)) {
            self.manifest.warnings.push(
                "keys that were written or deleted by the lost commits have the values of before; those that were lost behind the newest readable checkpoint cannot be named"
                    .to_owned(),
            );
        }
    }

    fn name_losses(&mut self) {
        for (loss, keys) in std::mem::take(&mut self.lost) {
            let mut names: Vec<String> = keys.iter().map(|(id, _)| self.salvage.name(*id)).collect();
            names.sort_unstable();
            names.dedup();
            let mut known = keys.into_iter().filter(|(_, key)| !key.is_empty());
            let listed = known.by_ref().take(KEYS_LISTED_MAX);
            let keys = listed
                .map(|(id, key)| KeyName {
                    table: self.salvage.name(id),
                    key,
                })
                .collect();
            let loss = &mut self.manifest.losses[loss];
            (loss.tables, loss.keys, loss.keys_left_off) = (names, keys, known.count() as u64);
        }
    }
}

/// Returns the kind of a frame with a lost header, judged by one of its records. Tombstones and
/// clear markers have a value only if compaction copied them.
fn kind_of(record: &Record<'_>) -> FrameKind {
    let is_tombstone = record.head.kind != RecordKind::Put;
    if is_tombstone && record.head.value_bytes > 0 {
        FrameKind::Relocation
    } else {
        FrameKind::Commit
    }
}
