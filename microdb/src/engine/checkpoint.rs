//! Checkpoints: files with the directories, so that an open need not read the whole log.
//!
//! Order of steps:
//!
//! 1. Views of all directories are taken. Commits wait for this step.
//! 2. The log is synced, at least up to the moment of the views, so that the checkpoint never
//!    points to records that a power cut removes.
//! 3. The file is written under a temporary name, synced and renamed, and its name is made durable.
//! 4. SUPER names the new checkpoint. Durable commits wait for this step and for step 2.
//! 5. The previous checkpoint and the emptied segments (see `compact`) are removed.
//!
//! After each step, SUPER names a complete checkpoint or none. SUPER lists all durable segments of
//! the log, except those begun since its state was written. An open finds the excepted segments by
//! their headers.
//!
//! Invariants of removal:
//!
//! - A segment is removed only after a state of SUPER without this segment is durable. No directory
//!   of the checkpoint points into the segment. Counts of live bytes alone do not decide this.
//! - The copies of the segment's live records are durable before this state of SUPER.
//! - Replaying the whole log without the removed segments gives the same records. So a state of
//!   SUPER that names no checkpoint is valid too. Writing such a state needs no space, so it is
//!   used on a full disk.
//! - If a step after a removal fails, the removed segments stay removed.
//!
//! A checkpoint contains only data that can be derived from the log. An open that finds the
//! checkpoint missing, damaged or unreadable ignores it, and replays the log from its beginning.

use std::io::{self, Write};
use std::sync::Arc;

use crate::directory::{Directory, EncodeError, IMAGE_ALIGN, ImageTable, View};
use crate::engine::catalog::TableCore;
use crate::engine::identity::{is_foreign_checkpoint, is_own_segment};
use crate::engine::log::{LogSize, is_out_of_room};
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::checkpoint::{Block, HEAD_BYTES, Head, TableEntry};
use crate::format::checksum;
use crate::format::super_block::Frontier;
use crate::format::usage::SegmentUsage;
use crate::raw::epoch::pin;
use crate::raw::map::Map;
use crate::seeded::seeded;
use crate::storage::{OpenMode, StorageFile};

/// State of the log and of the directories at one moment, to be written to a checkpoint.
struct Moment {
    at: Frontier,
    /// Value of `Core::published_size` at this moment.
    size: LogSize,
    next_segment: u64,
    next_table: u32,
    tables: Vec<(Arc<TableCore>, View)>,
    usages: Vec<(u64, SegmentUsage)>,
    /// Segments to be removed after the checkpoint. Once `keep_referenced` has removed wrong
    /// entries, no directory of this moment points to them.
    emptied: Vec<u64>,
    /// Segments of `emptied` that were chosen by their numbers of live bytes alone and are not yet
    /// checked against the directories.
    unverified: Vec<u64>,
}

/// A set of segments, stored as the low 16 bits of their ids. A location holds only these bits, and
/// no two segments of a log have the same low 16 bits.
struct SegmentSet(Vec<bool>);

impl Default for SegmentSet {
    fn default() -> Self {
        Self(vec![false; 1 << 16])
    }
}

impl SegmentSet {
    fn add(&mut self, segment16: u16) {
        self.0[usize::from(segment16)] = true;
    }

    fn contains(&self, segment16: u16) -> bool {
        self.0[usize::from(segment16)]
    }
}

/// A checkpoint loaded by an open.
pub(crate) struct Loaded {
    pub(crate) block: Block,
    pub(crate) directories: Vec<Directory>,
    /// The mapped file of the checkpoint. The directories are read from it in place.
    pub(crate) map: Arc<Map>,
}

impl Engine {
    /// Writes a checkpoint of the current state. Then removes the previous checkpoint and emptied
    /// segments. Returns the generation of the new checkpoint.
    pub(crate) fn checkpoint(&self) -> Result<u64> {
        self.check_process()?;
        // This lock ensures that only one checkpoint is written at a time.
        let _one = lock(&self.checkpointing);
        // `check_writable` is called under the lock, because `close` takes the same lock and
        // nothing may be written after `close`.
        self.check_writable()?;
        self.checkpoint_now()
    }

    /// Writes a checkpoint like [`Engine::checkpoint`], for a caller that holds the lock
    /// `checkpointing`.
    pub(crate) fn checkpoint_now(&self) -> Result<u64> {
        self.check_identity()?;
        let mut moment = self.moment();
        self.keep_referenced(&mut moment)?;
        // The log must be durable first: the checkpoint points to records of the log, and the log
        // contains the copies of the live records of the segments that will be removed.
        self.sync_log()?;
        let generation = self.next_generation()?;
        let mut written = self.make_checkpoint(&mut moment, generation);
        if written.as_ref().is_err_and(is_out_of_room) && !moment.emptied.is_empty() {
            self.remove_without_checkpoint(&mut moment)?;
            // `make_checkpoint` has consumed the views of the first moment, so new views are taken.
            moment = self.moment();
            self.keep_referenced(&mut moment)?;
            self.sync_log()?;
            written = self.make_checkpoint(&mut moment, generation);
        }
        written?;
        let old = {
            let mut writer = lock(&self.writer);
            writer.generation = generation;
            std::mem::replace(&mut writer.checkpoint, generation)
        };
        if seeded("removed-before-named") {
            self.remove_segments(&moment.emptied)?;
        }
        self.write_state(&moment.emptied)?;
        // The checkpoint covers the log only up to the moment of the views. An open also replays
        // the log that was appended while the checkpoint was written.
        lock(&self.core).checkpointed_size = Some(moment.size);
        self.counters.checkpoints.add(1);
        self.remove_checkpoint(old);
        self.remove_segments(&moment.emptied)?;
        Ok(generation)
    }

    /// Removes from the list `emptied` the segments to which a directory still points. The list
    /// contains such segments only if the usage counts are wrong. The counts are sums of record
    /// lengths, and the length in a damaged record may be wrong. Background compaction skips the
    /// segments removed from the list until the next open.
    fn keep_referenced(&self, moment: &mut Moment) -> Result<()> {
        if moment.unverified.is_empty() {
            return Ok(());
        }
        let mut referenced = SegmentSet::default();
        for (_, view) in &moment.tables {
            let looked = view.for_each_segment(|segment16| referenced.add(segment16));
            looked.map_err(|damage| self.directory_damage(damage))?;
        }
        let mut kept = std::mem::take(&mut moment.unverified);
        kept.retain(|id| referenced.contains(*id as u16));
        moment.emptied.retain(|id| !kept.contains(id));
        let mut core = lock(&self.core);
        for id in kept {
            if let Some(usage) = core.usages.get_mut(id) {
                usage.dying = false;
                usage.unverified = false;
                moment.usages.push((id, usage.clone()));
            }
            self.set_aside(id);
        }
        moment.usages.sort_unstable_by_key(|(id, _)| *id);
        Ok(())
    }

    /// Removes the emptied segments of the moment, and the previous checkpoint, for a disk without
    /// space for a new one. Until the next checkpoint, an open replays the whole log, which needs
    /// neither a checkpoint nor the removed segments. SUPER is rewritten in place, which takes no
    /// space.
    fn remove_without_checkpoint(&self, moment: &mut Moment) -> Result<()> {
        let old = std::mem::take(&mut lock(&self.writer).checkpoint);
        self.write_state(&moment.emptied)?;
        lock(&self.core).checkpointed_size = None;
        self.remove_checkpoint(old);
        self.remove_segments(&std::mem::take(&mut moment.emptied))
    }

    /// Writes the file of a checkpoint and makes it durable. Consumes the views of `moment`. On an
    /// error the file is removed.
    fn make_checkpoint(&self, moment: &mut Moment, generation: u64) -> Result<()> {
        let (path, temporary) = (
            self.paths.checkpoint(generation),
            self.paths.checkpoint_temporary(generation),
        );
        let (storage, folder) = (self.options.storage.as_ref(), self.paths.directory());
        let _ = storage.remove(&temporary);
        let made = self
            .write_checkpoint(moment, generation)
            .and_then(|()| {
                let renamed = storage.rename(&temporary, &path);
                renamed.map_err(Error::io("cannot rename to", &path))
            })
            .and_then(|()| {
                let synced = storage.sync_folder(&folder);
                synced.map_err(Error::io("cannot sync", &folder))
            });
        if made.is_err() {
            // SUPER names neither of the two files, so both can be removed.
            let _ = storage.remove(&temporary);
            let _ = storage.remove(&path);
        }
        made
    }

    /// Returns the next generation of a checkpoint. Generations are skipped if a checkpoint of
    /// another database, a folder or a pipe has their file name.
    fn next_generation(&self) -> Result<u64> {
        let mut generation = lock(&self.writer).generation + 1;
        let storage = self.options.storage.as_ref();
        while is_foreign_checkpoint(storage, &self.paths.checkpoint(generation), self.database)? {
            generation += 1;
        }
        Ok(generation)
    }

    fn moment(&self) -> Moment {
        // No table can be created or dropped while this lock is held, so the list of tables and
        // their views are of one moment.
        let _ddl = lock(&self.ddl);
        let tables = self.tables();
        let next_table = self.next_table();
        let core = lock(&self.core);
        let guard = pin();
        let leaves = |(id, usage): &(u64, &SegmentUsage)| core.is_removable(*id, usage);
        let (dying, living): (Vec<_>, Vec<_>) = core.usages.iter().partition(leaves);
        let unverified = dying.iter().filter(|(_, usage)| usage.unverified);
        let view = |table: Arc<TableCore>| {
            let view = table.directory.load(&guard).view(&guard);
            (table, view)
        };
        Moment {
            at: core.published,
            size: core.published_size,
            next_segment: core.next_segment,
            next_table,
            tables: tables.into_iter().map(view).collect(),
            usages: living
                .into_iter()
                .map(|(id, usage)| (id, usage.clone()))
                .collect(),
            unverified: unverified.map(|(id, _)| *id).collect(),
            emptied: dying.into_iter().map(|(id, _)| id).collect(),
        }
    }

    /// Writes the file of a checkpoint. Each view of `moment` is dropped as soon as it is written:
    /// while a view of a directory exists, writers must copy the parts that they change.
    fn write_checkpoint(&self, moment: &mut Moment, generation: u64) -> Result<()> {
        let path = self.paths.checkpoint_temporary(generation);
        let file = self.options.storage.open(&path, OpenMode::CreateNew);
        let file = file.map_err(Error::io("cannot create", &path))?;
        let mut out = Appender {
            file: file.as_ref(),
            at: HEAD_BYTES as u64,
            buffer: Vec::new(),
        };
        let seed = Head::image_seed(self.database, generation);
        let mut tables = Vec::new();
        for (table, view) in std::mem::take(&mut moment.tables) {
            let start = out_position(&out);
            let image = view.encode(&mut out, start, seed).map_err(|error| match error {
                EncodeError::Io(error) => Error::io("cannot write", &path)(error),
                EncodeError::Damage(damage) => self.directory_damage(damage),
            })?;
            tables.push(TableEntry {
                id: table.id,
                name: table.name(),
                image_offset: image.offset,
                image_bytes: image.bytes,
            });
            out.pad().map_err(Error::io("cannot write", &path))?;
        }
        let block = Block {
            at: moment.at,
            next_segment: moment.next_segment,
            next_table: moment.next_table,
            tables,
            usages: moment.usages.clone(),
        };
        let block = block.encode();
        let head = Head {
            database: self.database,
            generation,
            block_offset: out_position(&out),
            block_bytes: block.len() as u64,
            block_crc: checksum::crc(&block),
        };
        let written = out
            .write_all(&block)
            .and_then(|()| out.flush())
            .and_then(|()| file.write_at(&head.encode(), 0))
            .and_then(|()| file.sync_data());
        written.map_err(Error::io("cannot write", &path))
    }

    /// Removes the file of a checkpoint that SUPER no longer names. Generation 0 stands for no
    /// checkpoint.
    fn remove_checkpoint(&self, generation: u64) {
        if generation > 0 {
            let path = self.paths.checkpoint(generation);
            let storage = self.options.storage.as_ref();
            // Errors are ignored: a user may have deleted the file already, and a later open for
            // writing removes a file that remains. A checkpoint of another database under this name
            // stays.
            if let Ok(false) = is_foreign_checkpoint(storage, &path, self.database) {
                let _ = storage.remove(&path);
            }
        }
    }

    /// Removes segments that are no longer part of the durable state. If a file cannot be removed,
    /// the remaining files are removed all the same. The next open for writing then removes this
    /// file.
    fn remove_segments(&self, emptied: &[u64]) -> Result<()> {
        let storage = self.options.storage.as_ref();
        // The segments and their maps are removed from the segment table before the files are
        // deleted. Readers that still need the segments hold the previous table.
        self.segments.remove(emptied);
        {
            let mut core = lock(&self.core);
            emptied.iter().for_each(|id| core.usages.close(*id));
            self.note_sizes(&core);
        }
        self.space.wake();
        let mut result = Ok(());
        for id in emptied {
            let path = self.paths.segment(*id);
            // The seal is removed before its segment. Otherwise, a crash could leave a seal without
            // a segment.
            let _ = storage.remove(&self.paths.seal(*id));
            let removed = is_own_segment(storage, &path, self.database).and_then(|is_own| {
                if !is_own {
                    return Ok(());
                }
                storage.remove(&path).map_err(Error::io("cannot remove", &path))
            });
            if removed.is_ok() {
                self.counters.segments_removed.add(1);
            }
            result = result.and(removed);
        }
        result
    }

    /// Returns `true` if the log since the last checkpoint has at least `checkpoint_log_bytes`, and
    /// at least twice the size of the directories, which a checkpoint writes.
    pub(crate) fn checkpoint_due(&self) -> bool {
        let since = self.log_since_checkpoint();
        since.bytes >= self.options.checkpoint_log_bytes && since.bytes >= 2 * self.directory_totals().1
    }

    /// Loads the checkpoint `generation`.
    pub(crate) fn load_checkpoint(&self, generation: u64) -> Result<Loaded> {
        let path = self.paths.checkpoint(generation);
        let file = self
            .options
            .storage
            .open(&path, OpenMode::Read)
            .map_err(Error::io("cannot open", &path))?;
        let len = file.len().map_err(Error::io("cannot read", &path))?;
        let map = self.options.map(file.as_ref(), len);
        let map = map.map_err(Error::io("cannot map", &path))?;
        let block = self.read_block(&map, generation)?;
        let seed = Head::image_seed(self.database, generation);
        let open = |table: &TableEntry| {
            let image = ImageTable {
                offset: table.image_offset,
                bytes: table.image_bytes,
            };
            Directory::from_image(&map, image, seed)
                .map_err(|damage| self.checkpoint_damage(generation, damage))
        };
        let directories = block.tables.iter().map(open).collect::<Result<_>>()?;
        Ok(Loaded {
            block,
            directories,
            map,
        })
    }

    fn read_block(&self, map: &Map, generation: u64) -> Result<Block> {
        let path = self.paths.checkpoint(generation);
        let head = Head::decode(
            map.get(0, map.len().min(HEAD_BYTES)).unwrap_or_default(),
            self.database,
            generation,
        )
        .map_err(|flaw| Error::corrupt(&path, flaw.at.into(), flaw.field, flaw.expected, flaw.found))?;
        let bytes = usize::try_from(head.block_offset)
            .ok()
            .zip(usize::try_from(head.block_bytes).ok())
            .and_then(|(offset, bytes)| map.get(offset, bytes));
        let crc = bytes.map(checksum::crc);
        let block = bytes
            .filter(|_| crc == Some(head.block_crc))
            .and_then(Block::decode);
        block.ok_or_else(|| {
            let expected = format_args!("a block with crc {:08x}", head.block_crc);
            Error::corrupt(
                &path,
                head.block_offset,
                "checkpoint block",
                expected,
                format_args!("{crc:08x?}"),
            )
        })
    }
}

/// Writes a file sequentially, in large pieces.
struct Appender<'a> {
    file: &'a dyn StorageFile,
    /// Offset in the file at which the content of `buffer` begins.
    at: u64,
    buffer: Vec<u8>,
}

/// Size of the pieces that an [`Appender`] writes, except the first and the last. It is large
/// enough that the cost of the system calls is negligible.
const APPEND_BYTES: usize = 2 << 20;

fn out_position(out: &Appender<'_>) -> u64 {
    out.at + out.buffer.len() as u64
}

impl Appender<'_> {
    /// Pads with zeros up to the next offset at which the image of a directory may begin.
    fn pad(&mut self) -> io::Result<()> {
        let position = out_position(self);
        let zeros = position.next_multiple_of(IMAGE_ALIGN) - position;
        self.write_all(&vec![0; zeros as usize])
    }
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        loop {
            // Each piece except the last ends at a multiple of `APPEND_BYTES`, so that the page
            // cache can hold the piece in one large page.
            let piece = APPEND_BYTES - self.at as usize % APPEND_BYTES;
            if self.buffer.len() < piece {
                break;
            }
            self.file.write_at(&self.buffer[..piece], self.at)?;
            self.at += piece as u64;
            self.buffer.drain(..piece);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
