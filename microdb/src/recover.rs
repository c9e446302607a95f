//! Opening: who are we, how far were we durable, what does the log say, and is its end a torn tail or rot.
//!
//! The log is replayed frame by frame until the first one that is not whole. If anything proves that this place was durable once (SUPER's
//! state or hints, or the frontier in any valid frame behind it), it is rot: `Error::Corrupt`, and not a byte is changed. If nothing does,
//! it is the torn tail of commits that were never acknowledged as durable: it is cut off and reported, and the log goes on in
//! a new segment, so that bytes of the tail can never be taken for frames later.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::accounts::{Account, Accounts};
use crate::background::Background;
use crate::catalog::{CATALOG_TABLE, Catalog, TableCore};
use crate::checkpoint::Loaded;
use crate::commit::Applied;
use crate::directory::Location;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameKind};
use crate::format::names::{self, Paths};
use crate::format::record::{Record, RecordKind};
use crate::format::super_block::{
    self, Frontier, HINT_BLOCK_BYTES, HINT_OFFSETS, STATE_BLOCK_BYTES, STATE_OFFSETS, SUPER_BYTES, State,
};
use crate::format::{DatabaseId, FORMAT_VERSION};
use crate::log::{Active, Core, Pending, Writer, write_state_blocks};
use crate::options::Options;
use crate::raw::epoch::{Guard, pin};
use crate::raw::tail::TailWriter;
use crate::replay::{Scan, SegmentFile, next_frame, scan_segments};
use crate::segments::Segments;
use crate::stats::Counters;
use crate::storage::{OpenMode, Storage, StorageFile, StorageLock, read_exact};

/// Of the state that a database is made with.
const FIRST_GENERATION: u64 = 1;

/// What opening found and did.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Whether the database was made by this opening.
    pub created: bool,
    /// Whether it had been closed properly.
    pub clean: bool,
    /// Sequence of the last commit found.
    pub sequence: u64,
    /// Sequence of the last commit that was known to be durable.
    pub durable_sequence: u64,
    /// Generation of the checkpoint that was used; 0: the whole log was replayed.
    pub checkpoint: u64,
    /// Whether there should have been a checkpoint that could be used, and was not: missing or damaged.
    pub checkpoint_unusable: bool,
    /// Bytes of the log that were replayed.
    pub bytes_replayed: u64,
    /// Frames of the log that were replayed, and the records in them.
    pub frames_replayed: u64,
    /// See `frames_replayed`.
    pub records_replayed: u64,
    /// Bytes of a torn tail that were cut off: never acknowledged as durable.
    pub dropped_bytes: u64,
}

/// Opens or creates the database at `root`.
pub(crate) fn open(root: &Path, options: Options) -> Result<Engine> {
    let paths = Paths::new(root);
    let storage = options.storage.clone();
    let found = find_super(&paths, storage.as_ref())?;
    if found.is_none() && (options.read_only || !options.create) {
        return Err(Error::NotADatabase {
            path: root.to_path_buf(),
        });
    }
    let lock = if options.read_only {
        None
    } else {
        Some(take_lock(&paths, storage.as_ref())?)
    };
    // Only under the lock is what we saw still so.
    let found = if options.read_only {
        found
    } else {
        find_super(&paths, storage.as_ref())?
    };
    match found {
        Some(file) => reopen(paths, options, lock, file),
        None => create(paths, options, lock),
    }
}

fn take_lock(paths: &Paths, storage: &dyn Storage) -> Result<Box<dyn StorageLock>> {
    storage
        .create_folder(paths.root())
        .map_err(Error::io("cannot create", paths.root()))?;
    let path = paths.lock();
    match storage.lock(&path).map_err(Error::io("cannot lock", &path))? {
        Ok(lock) => Ok(lock),
        Err(holder) => Err(Error::Locked { path, holder }),
    }
}

fn find_super(paths: &Paths, storage: &dyn Storage) -> Result<Option<Arc<dyn StorageFile>>> {
    let path = paths.super_file();
    match storage.open(&path, OpenMode::Read) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound) => {
            // SUPER is the first file of a database and the last that could vanish: a log without it is damage.
            let segments = storage.list(&paths.log()).unwrap_or_default();
            if segments.iter().any(|name| names::parse_segment(name).is_some()) {
                return Err(Error::corrupt(
                    &path,
                    0,
                    "SUPER",
                    "a file beside the log",
                    "no file",
                ));
            }
            Ok(None)
        }
        Err(error) => Err(Error::io("cannot open", &path)(error)),
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::Io {
        action: "cannot get random bytes for",
        path: "a new database".into(),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(bytes)
}

fn create(paths: Paths, options: Options, lock: Option<Box<dyn StorageLock>>) -> Result<Engine> {
    let storage = options.storage.clone();
    for folder in [paths.log(), paths.directory()] {
        storage
            .create_folder(&folder)
            .map_err(Error::io("cannot create", &folder))?;
    }
    let state = State {
        database: DatabaseId(random()?),
        hash_seed: random()?,
        generation: FIRST_GENERATION,
        created_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_millis() as u64),
        checkpoint: 0,
        frontier: Frontier::default(),
        next_segment: 1,
        live: Vec::new(),
    };
    // Whole and durable under another name first: a database exists once its SUPER does.
    let (temporary, path) = (paths.super_temporary(), paths.super_file());
    let _ = storage.remove(&temporary);
    let file = storage
        .open(&temporary, OpenMode::CreateNew)
        .map_err(Error::io("cannot create", &temporary))?;
    let written = file
        .allocate(0, SUPER_BYTES as u64)
        .and_then(|()| write_state_blocks(file.as_ref(), &state));
    written.map_err(Error::io("cannot write", &path))?;
    // Names become durable in any order: all that an open needs comes before the name that says that there is a database.
    sync_root(&paths, storage.as_ref())?;
    sync_ancestors(&paths, storage.as_ref())?;
    storage
        .rename(&temporary, &path)
        .map_err(Error::io("cannot rename to", &path))?;
    sync_root(&paths, storage.as_ref())?;
    let mut engine = engine_of(paths, options, lock, &state, Some(file));
    engine.recovery = RecoveryReport {
        created: true,
        clean: true,
        ..RecoveryReport::default()
    };
    Ok(engine)
}

/// Makes the names in the database's folder durable.
fn sync_root(paths: &Paths, storage: &dyn Storage) -> Result<()> {
    let synced = storage.sync_folder(paths.root());
    synced.map_err(Error::io("cannot sync", paths.root()))
}

/// Makes the folder's own name durable, and those of the folders above it: any of them may have been made just now, by us or by a
/// process that died before it came to this.
fn sync_ancestors(paths: &Paths, storage: &dyn Storage) -> Result<()> {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
    for folder in paths.root().ancestors().skip(1) {
        // A relative path begins in the working folder.
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        match storage.sync_folder(folder) {
            Ok(()) => {}
            // Where we may not look, nothing of ours was made.
            Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidInput) => {}
            Err(error) => return Err(Error::io("cannot sync", folder)(error)),
        }
    }
    Ok(())
}

/// An engine with nothing in it.
pub(crate) fn engine_of(
    paths: Paths,
    options: Options,
    lock: Option<Box<dyn StorageLock>>,
    state: &State,
    super_file: Option<Arc<dyn StorageFile>>,
) -> Engine {
    let segment_bytes_next = options.segment_bytes_first.min(options.segment_bytes_max);
    Engine {
        paths,
        database: state.database,
        hash_seed: state.hash_seed,
        created_ms: state.created_ms,
        segments: Segments::new([]),
        catalog: RwLock::new(Catalog::empty()),
        ddl: Mutex::new(()),
        core: Mutex::new(Core {
            active: None,
            end: Frontier::default(),
            published: Frontier::default(),
            next_segment: state.next_segment,
            segment_bytes_next,
            rolled: Vec::new(),
            in_flight: false,
            accounts: Accounts::default(),
        }),
        writer: Mutex::new(Writer {
            state_generation: state.generation,
            checkpoint: state.checkpoint,
            ..Writer::default()
        }),
        queue: Mutex::default(),
        group_done: [Condvar::new(), Condvar::new()],
        group_full: Condvar::new(),
        super_file: super_file.filter(|_| !options.read_only),
        frontier: AtomicU64::new(0),
        appended_bytes: AtomicU64::new(0),
        written_bytes: AtomicU64::new(0),
        poison: OnceLock::new(),
        // Until opening has succeeded, so that dropping a half-opened engine writes nothing.
        closed: AtomicBool::new(true),
        counters: Counters::default(),
        recovery: RecoveryReport::default(),
        lock: Mutex::new(lock),
        checkpointing: Mutex::new(()),
        compacting: Mutex::new(()),
        checkpoint_log_start: AtomicU64::new(0),
        background: Background::default(),
        digests: Mutex::default(),
        options,
    }
}

/// What SUPER says.
struct Super {
    state: State,
    /// The furthest durable frontier of state and hints.
    frontier: Frontier,
    hint_counter: u64,
    /// Whether a state block needs to be written anew.
    damaged: bool,
}

fn read_super(path: &Path, file: &dyn StorageFile) -> Result<Super> {
    let len = file
        .len()
        .map_err(Error::io("cannot read", path))?
        .min(SUPER_BYTES as u64);
    let bytes = read_exact(file, 0, len).map_err(Error::io("cannot read", path))?;
    let block = |offset: u64, len: usize| {
        let start = (offset as usize).min(bytes.len());
        &bytes[start..(start + len).min(bytes.len())]
    };
    let states = STATE_OFFSETS.map(|offset| State::decode(block(offset, STATE_BLOCK_BYTES)));
    let damaged = states.iter().any(Result::is_err) || states[0] != states[1];
    let newest = states
        .iter()
        .flatten()
        .max_by_key(|state| state.generation)
        .cloned();
    let Some(state) = newest else {
        let [Err(flaw), _] = states else {
            unreachable!("no state is whole")
        };
        if let ("version", Ok(found)) = (flaw.field, flaw.found.parse()) {
            return Err(Error::Version {
                path: path.to_path_buf(),
                found,
                supported: FORMAT_VERSION,
            });
        }
        return Err(Error::corrupt(
            path,
            flaw.at.into(),
            flaw.field,
            flaw.expected,
            flaw.found,
        ));
    };
    let mut frontier = state.frontier;
    let mut hint_counter = 0;
    for offset in HINT_OFFSETS {
        let hint = super_block::decode_hint(block(offset, HINT_BLOCK_BYTES), state.database);
        if let Some((counter, hint)) = hint {
            hint_counter = hint_counter.max(counter);
            if hint.position > frontier.position {
                frontier = hint;
            }
        }
    }
    Ok(Super {
        state,
        frontier,
        hint_counter,
        damaged,
    })
}

/// How often a read-only open begins anew because the writer has moved on: each time means a checkpoint and a compaction in between.
const READ_TRIES: u32 = 8;

fn reopen(
    paths: Paths,
    options: Options,
    lock: Option<Box<dyn StorageLock>>,
    file: Arc<dyn StorageFile>,
) -> Result<Engine> {
    let path = paths.super_file();
    let file = if options.read_only {
        file
    } else {
        let file = options.storage.open(&path, OpenMode::ReadWrite);
        file.map_err(Error::io("cannot open", &path))?
    };
    let mut found = read_super(&path, file.as_ref())?;
    let mut tries = 0;
    let mut engine = loop {
        let error = match replayed(&paths, &options, &found, &file) {
            Ok(engine) => break engine,
            Err(error) => error,
        };
        // Without the lock, files may go away under our hands. If so, SUPER has changed.
        let again = read_super(&path, file.as_ref())?;
        tries += 1;
        if !options.read_only || again.state.generation == found.state.generation || tries == READ_TRIES {
            return Err(error);
        }
        found = again;
    };
    *lock_mut(&mut engine.lock) = lock;
    Ok(engine)
}

fn lock_mut<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An engine with what SUPER, checkpoint and log say; from the log alone if the checkpoint is of no use.
fn replayed(paths: &Paths, options: &Options, found: &Super, file: &Arc<dyn StorageFile>) -> Result<Engine> {
    if found.state.checkpoint != 0 {
        match replayed_from(paths, options, found, file, found.state.checkpoint) {
            Err(Error::Corrupt { path, .. }) if path.starts_with(paths.directory()) => {}
            Err(Error::Io { path, .. }) if path.starts_with(paths.directory()) => {}
            other => return other,
        }
    }
    replayed_from(paths, options, found, file, 0)
}

fn replayed_from(
    paths: &Paths,
    options: &Options,
    found: &Super,
    file: &Arc<dyn StorageFile>,
    checkpoint: u64,
) -> Result<Engine> {
    let mut engine = engine_of(
        paths.clone(),
        options.clone(),
        None,
        &found.state,
        Some(file.clone()),
    );
    let loaded = if checkpoint == 0 {
        None
    } else {
        // Known from here on, so that an error can name the file.
        engine.recovery.checkpoint = checkpoint;
        Some(engine.load_checkpoint(checkpoint)?)
    };
    let mut scan = scan_segments(&engine, &found.state, found.frontier)?;
    let mut report = RecoveryReport {
        durable_sequence: found.frontier.sequence,
        checkpoint,
        checkpoint_unusable: checkpoint != found.state.checkpoint,
        ..RecoveryReport::default()
    };
    let cut = replay(&engine, &mut scan, loaded, &mut report)?;
    name_tables(&engine)?;
    report.clean = report.dropped_bytes == 0 && cut.end == found.state.frontier;
    {
        let mut writer = lock_writer(&engine);
        writer.hint_counter = found.hint_counter;
        writer.frontier = found.frontier;
    }
    engine
        .frontier
        .store(found.frontier.position.to_u64(), Ordering::Release);
    adopt(&engine, &scan, &cut)?;
    if !options.read_only {
        settle(&engine, &scan, &cut, &report, found.damaged)?;
    }
    report.sequence = cut.end.sequence;
    // What was replayed counts towards the next checkpoint.
    engine
        .appended_bytes
        .store(report.bytes_replayed, Ordering::Relaxed);
    engine
        .written_bytes
        .store(report.bytes_replayed, Ordering::Relaxed);
    engine.recovery = report;
    Ok(engine)
}

fn lock_writer(engine: &Engine) -> std::sync::MutexGuard<'_, Writer> {
    lock(&engine.writer)
}

/// Where replay ended.
struct Cut {
    end: Frontier,
    /// Index in the scan of the segment that holds the end; `None` if the log is empty.
    segment: Option<usize>,
    /// Whether bytes behind the end were dropped, so that the segment cannot be appended to.
    torn: bool,
}

/// Takes over a checkpoint's tables and accounts. Returns the place of the log that it stands for.
fn install(engine: &Engine, core: &mut Core, loaded: Loaded) -> Frontier {
    let Loaded { block, directories } = loaded;
    let mut catalog = engine
        .catalog
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (table, directory) in block.tables.iter().zip(directories) {
        let table = TableCore::with_directory(table.id, &table.name, directory);
        catalog.by_id.insert(table.id, Arc::new(table));
    }
    catalog.next_id = catalog.next_id.max(block.next_table);
    for (id, account) in block.accounts {
        core.accounts.open(id, account);
    }
    core.next_segment = core.next_segment.max(block.next_segment);
    block.at
}

/// Replays the log behind the checkpoint, or all of it, up to the end of what is whole.
fn replay(
    engine: &Engine,
    scan: &mut Scan,
    loaded: Option<Loaded>,
    report: &mut RecoveryReport,
) -> Result<Cut> {
    let mut core = lock(&engine.core);
    let checkpoint = loaded.map_or(Frontier::default(), |loaded| install(engine, &mut core, loaded));
    let mut rules = Rules {
        rebuild: report.checkpoint == 0,
        ..Rules::default()
    };
    let mut cut = Cut {
        end: checkpoint,
        segment: None,
        torn: false,
    };
    for index in 0..scan.segments.len() {
        let segment = &scan.segments[index];
        engine.segments.put(segment.segment.clone(), &pin());
        cut.segment = Some(index);
        if segment.id() < checkpoint.position.segment {
            check_complete(segment, &core)?;
            continue;
        }
        let mut start = checkpoint;
        if segment.id() != checkpoint.position.segment {
            core.accounts.open(segment.id(), Account::default());
            start = segment.start();
        }
        let (end, stopped) = replay_segment(engine, &mut core, segment, start, &mut rules, report)?;
        cut.end = end;
        core.accounts.set_end(segment.id(), end.position.offset);
        let Some(flaw) = stopped else { continue };
        // The frames end here. Is this where the log ended?
        let at = end.position;
        scan.check_not_durable(at, &flaw)?;
        let is_last = index + 1 == scan.segments.len();
        let dropped = scan.bytes_behind(index, at.offset);
        cut.torn = dropped > 0 || !is_last || scan.has_leftovers();
        report.dropped_bytes += dropped;
        scan.segments.truncate(index + 1);
        break;
    }
    if cut.end.position.segment < checkpoint.position.segment
        || cut.segment.is_none() && cut.end != Frontier::default()
    {
        let path = engine.paths.segment(checkpoint.position.segment);
        return Err(Error::corrupt(
            &path,
            0,
            "segment",
            "a file that the checkpoint goes on from",
            "no file",
        ));
    }
    report.dropped_bytes += scan.unreadable_bytes;
    cut.torn |= scan.unreadable_bytes > 0;
    rules.clear_old(engine, &mut core)?;
    Ok(cut)
}

/// A segment in front of the checkpoint must be as long as the checkpoint knows it.
fn check_complete(segment: &SegmentFile, core: &Core) -> Result<()> {
    let (found, path) = (segment.segment.end(), &segment.segment.path);
    match core.accounts.get(segment.id()) {
        Some(account) if found >= account.end => Ok(()),
        Some(account) => {
            let expected = format_args!("at least {} bytes", account.end);
            Err(Error::corrupt(
                path,
                found.into(),
                "segment length",
                expected,
                format_args!("{found} bytes"),
            ))
        }
        None => Err(Error::corrupt(
            path,
            0,
            "segment",
            "one that the checkpoint knows",
            "an unknown one",
        )),
    }
}

/// What replay does beyond applying record by record.
#[derive(Default)]
pub(crate) struct Rules {
    /// Whether the whole log is replayed, without a checkpoint.
    rebuild: bool,
    /// Copied clear markers, by table and by the segment they were first written to.
    clears: Vec<(u32, u64)>,
}

impl Rules {
    /// Those for a log that is replayed from its beginning.
    pub(crate) fn whole_log() -> Self {
        Self {
            rebuild: true,
            ..Self::default()
        }
    }

    /// Applies a record as it stood in a frame of this kind.
    pub(crate) fn apply(
        &mut self,
        engine: &Engine,
        guard: &Guard,
        core: &mut Core,
        table: &TableCore,
        (frame, record): (FrameKind, &Record<'_>),
        at: Location,
    ) -> Result<()> {
        let bytes = record.bytes.len();
        if frame == FrameKind::Relocation && record.head.kind == RecordKind::Clear {
            // It clears what stood before its first place, not what was put since.
            core.accounts.add_tombstone(at, bytes);
            if let Some(origin) = record.value().first_chunk().filter(|_| self.rebuild) {
                self.clears.push((table.id, u64::from_le_bytes(*origin)));
            }
            return Ok(());
        }
        let (kind, key) = (record.head.kind, record.key());
        let applied = Applied {
            kind,
            hash: engine.hash(key),
            key,
            at,
            bytes,
        };
        engine.apply(guard, core, table, &applied).map(|_| ())
    }

    /// Takes out the records that copied clear markers are for: those of older segments, which their compaction would not have left alive.
    pub(crate) fn clear_old(&self, engine: &Engine, core: &mut Core) -> Result<()> {
        let guard = pin();
        let damaged = |damage| engine.directory_damage(damage);
        for (table, origin) in &self.clears {
            let Some(table) = engine.table_by_id(*table) else {
                continue;
            };
            let segments = engine.segments.load(&guard);
            let directory = table.directory.load(&guard);
            for location in directory.view(&guard).iter() {
                let location = location.map_err(damaged)?;
                let segment = segments.find(location, engine.paths.root())?;
                if segment.id < *origin {
                    let record = segment.verified(location.offset())?;
                    directory
                        .remove(&guard, engine.hash(record.key()), location)
                        .map_err(damaged)?;
                    core.accounts.sub_live(location, table.id, record.bytes.len());
                }
            }
        }
        Ok(())
    }
}

type Stopped = Option<crate::format::Flaw>;

/// Replays one segment. Returns the end of its whole frames, and what stopped them if they end before the segment does.
fn replay_segment(
    engine: &Engine,
    core: &mut Core,
    segment: &SegmentFile,
    mut end: Frontier,
    rules: &mut Rules,
    report: &mut RecoveryReport,
) -> Result<(Frontier, Stopped)> {
    let guard = pin();
    let mut catalog = engine
        .catalog
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    loop {
        if segment.sealed_end == Some(end.position.offset) {
            return Ok((end, None));
        }
        let frame = match next_frame(segment, end) {
            Ok(frame) => frame,
            Err(flaw) => return Ok((end, Some(flaw))),
        };
        for (offset, record) in frame.records() {
            let table = catalog.table_or_new(record.head.table);
            let at = Location::new(segment.id(), offset);
            rules.apply(engine, &guard, core, table, (frame.header.kind, &record), at)?;
            report.records_replayed += 1;
        }
        report.frames_replayed += 1;
        end = frame.end;
        report.bytes_replayed += u64::from(FRAME_HEADER_BYTES + frame.header.body_bytes);
    }
}

/// Gives tables their names, and forgets those that have none: they were dropped.
fn name_tables(engine: &Engine) -> Result<()> {
    let mut catalog = engine
        .catalog
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let guard = pin();
    let own = catalog.table_or_new(CATALOG_TABLE).clone();
    let segments = engine.segments.load(&guard);
    let view = own.directory.load(&guard).view(&guard);
    let mut named = std::collections::HashMap::new();
    for location in view.iter() {
        let location = location.map_err(|damage| engine.directory_damage(damage))?;
        let segment = segments.find(location, engine.paths.root())?;
        let record = segment.verified(location.offset())?;
        let id = record.value().first_chunk().map(|id| u32::from_le_bytes(*id));
        let (Some(id), Ok(name)) = (id, std::str::from_utf8(record.key())) else {
            let found = record.key().escape_ascii();
            let (path, at) = (&segment.path, location.offset().into());
            return Err(Error::corrupt(
                path,
                at,
                "catalog record",
                "a name and an id",
                found,
            ));
        };
        let table = catalog.table_or_new(id).clone();
        table.set_name(name);
        named.insert(name.to_owned(), table);
    }
    let kept: std::collections::HashSet<u32> = named
        .values()
        .map(|table| table.id)
        .chain([CATALOG_TABLE])
        .collect();
    let mut core = lock(&engine.core);
    catalog.by_id.retain(|id, _| {
        if !kept.contains(id) {
            core.accounts.drop_table(*id);
        }
        kept.contains(id)
    });
    catalog.by_name = named;
    Ok(())
}

/// Takes over the log's end as replay found it.
fn adopt(engine: &Engine, scan: &Scan, cut: &Cut) -> Result<()> {
    let mut core = lock(&engine.core);
    core.end = cut.end;
    core.published = cut.end;
    core.next_segment = core.next_segment.max(scan.next_segment);
    let Some(last) = cut.segment.and_then(|index| scan.segments.get(index)) else {
        return Ok(());
    };
    let max = engine.options.segment_bytes_max;
    core.segment_bytes_next = last.header.data_bytes_max.saturating_mul(2).min(max);
    let end = cut.end.position.offset;
    if engine.options.read_only || cut.torn || last.sealed_end.is_some() || end >= last.header.data_bytes_max
    {
        return Ok(());
    }
    // The log goes on where it ended.
    let tail = TailWriter::with_capacity((last.header.data_bytes_max - end) as usize);
    let segment = Arc::new(last.segment.cut_to(end).with_tail(tail.buffer().clone()));
    engine.segments.put(segment.clone(), &pin());
    let mut writer = lock(&engine.writer);
    let dirty = cut.end.position > writer.frontier.position;
    writer.pending.push_back(Pending {
        segment: segment.clone(),
        written: end,
        sealed_end: None,
        dirty,
    });
    // Its account is open again: only complete segments are compacted.
    core.accounts.set_end(segment.id, 0);
    core.active = Some(Active {
        segment,
        tail,
        base: end,
        allocated: end,
    });
    Ok(())
}

/// Removes what a crash left of checkpoints that SUPER does not name.
fn remove_other_checkpoints(engine: &Engine, report: &RecoveryReport) -> Result<()> {
    let (storage, folder) = (engine.options.storage.as_ref(), engine.paths.directory());
    for name in storage.list(&folder).map_err(Error::io("cannot list", &folder))? {
        // A damaged one is kept for who wants to look at it, until the next one takes its place.
        let named = names::parse_checkpoint(&name)
            .is_some_and(|generation| generation == report.checkpoint || report.checkpoint_unusable);
        if !named && (names::parse_checkpoint(&name).is_some() || name.ends_with(names::TEMPORARY)) {
            let path = folder.join(&name);
            storage.remove(&path).map_err(Error::io("cannot remove", &path))?;
        }
    }
    Ok(())
}

/// Leaves the disk as replay understood it: leftovers removed, what was found made durable, the tail cut off.
fn settle(engine: &Engine, scan: &Scan, cut: &Cut, report: &RecoveryReport, damaged: bool) -> Result<()> {
    let storage = engine.options.storage.as_ref();
    let frontier = lock(&engine.writer).frontier;
    // What lies beyond the frontier is visible from now on, so it has to stay.
    for segment in &scan.segments {
        let file = &segment.segment.file;
        let path = &segment.segment.path;
        let is_end = segment.id() == cut.end.position.segment;
        if is_end && cut.torn {
            file.set_len(cut.end.position.offset.into())
                .map_err(Error::io("cannot cut", path))?;
        }
        if segment.id() >= frontier.position.segment && (cut.end.position > frontier.position || cut.torn) {
            file.sync_data().map_err(Error::io("cannot sync", path))?;
        }
    }
    let doomed = scan.to_remove(cut.end.position.segment);
    if let (Some(file), true) = (&engine.super_file, damaged || !doomed.is_empty()) {
        // The state that we go by may be the last words of a process that died before it synced them. Until they are durable,
        // nothing may go that an older state would miss.
        let path = engine.paths.super_file();
        file.sync_data().map_err(Error::io("cannot sync", &path))?;
    }
    for path in doomed {
        storage.remove(&path).map_err(Error::io("cannot remove", &path))?;
    }
    if lock(&engine.writer).state_generation == FIRST_GENERATION {
        // The process that made the database may have died before SUPER's name was durable.
        sync_root(&engine.paths, storage)?;
    }
    remove_other_checkpoints(engine, report)?;
    let log = engine.paths.log();
    if !report.clean || scan.has_leftovers() {
        storage
            .sync_folder(&log)
            .map_err(Error::io("cannot sync", &log))?;
    }
    {
        let mut writer = lock(&engine.writer);
        writer.frontier = cut.end;
        writer
            .pending
            .iter_mut()
            .for_each(|pending| pending.dirty = false);
    }
    engine
        .frontier
        .store(cut.end.position.to_u64(), Ordering::Release);
    if damaged || cut.torn || scan.has_leftovers() {
        engine.write_state(&[])?;
    }
    Ok(())
}
