//! Opening a database: reads its identity and its durable frontier, replays the log, and judges the
//! end of the log as a torn tail or as rot.
//!
//! - The log behind the checkpoint, or the whole log without one, is replayed frame by frame until
//!   the first incomplete frame.
//! - The bytes behind the last complete frame are rot if the log was provably durable beyond that
//!   frame. The proof is a durable frontier stated in SUPER (by the state or a hint), or by a later
//!   segment header or a valid frame header behind that frame. Then the open fails with
//!   `Error::Corrupt` and changes neither SUPER nor the log. It fails too if the disk cannot read
//!   bytes of the segment with the last complete frame.
//! - Otherwise these bytes are the torn tail of commits that were never acknowledged as durable. An
//!   open for writing cuts the tail off and reports it. The log continues in a new segment, so that
//!   no later open can take bytes of the tail for frames.
//! - No file of an existing database except LOCK is changed before the lock is held and the log was
//!   judged.
//!
//! Deliberately absent: repair of damage (see `tools::heal` and `tools::salvage`).

mod finish;
pub(crate) mod log_reader;
mod replay;
mod warm;

use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::engine::background::Background;
use crate::engine::catalog::Catalog;
use crate::engine::counters::Counters;
use crate::engine::identity::{Locks, LocksCell, hold, hold_new};
use crate::engine::log::{Core, LogSize, Unmapped, Writer, write_state_blocks};
use crate::engine::read_ahead::DiskReads;
use crate::engine::recovery_report::RecoveryReport;
use crate::engine::segment_usage::SegmentUsages;
use crate::engine::segments::Segments;
use crate::engine::version::Version;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::names::{self, Paths};
use crate::format::super_block::{
    self, Frontier, HINT_BLOCK_BYTES, HINT_OFFSETS, STATE_BLOCK_BYTES, STATE_OFFSETS, SUPER_BYTES, State,
};
use crate::format::{DatabaseId, FORMAT_VERSION};
use crate::options::Options;
use crate::raw::fork::Birth;
use crate::raw::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, OnceLock, Ordering};
use crate::recover::log_reader::scan_segments;
use crate::seeded::seeded;
use crate::sequence::Sequence;
use crate::storage::{OpenMode, Storage, StorageFile, read_exact};

use finish::{adopt, settle};
pub(crate) use replay::{Replayed, Rules};
use replay::{name_tables, replay};

/// Generation of the state of SUPER with which a database is created.
const FIRST_GENERATION: u64 = 1;

/// Opens or creates the database at `root`.
pub(crate) fn open(root: &Path, options: Options) -> Result<Engine> {
    let paths = Paths::new(root);
    let may_create = options.create && !options.read_only;
    let storage = match hold(root, &options.storage) {
        Err(Error::NotADatabase { .. }) if may_create => hold_new(root, &options.storage)?,
        held => held?,
    };
    // From here on, files are accessed through the open folder, so a rename of the folder changes
    // nothing.
    let options = if seeded("path-not-held") {
        options
    } else {
        options.storage(storage.clone())
    };
    let found = find_super(&paths, storage.as_ref())?;
    if found.is_none() && !may_create {
        return Err(Error::NotADatabase {
            path: root.to_path_buf(),
        });
    }
    let mut lock = if options.read_only {
        None
    } else {
        Some(take_lock(&paths, storage.as_ref())?)
    };
    // SUPER is searched again, because another process may have created it before the lock was
    // acquired.
    let found = if options.read_only {
        found
    } else {
        find_super(&paths, storage.as_ref())?
    };
    match found {
        Some(file) => {
            if let Some(lock) = &mut lock {
                lock.take_super(&paths, storage.as_ref())?;
            }
            reopen(paths, options, lock, file)
        }
        None => create(paths, options, lock),
    }
}

pub(crate) fn take_lock(paths: &Paths, storage: &dyn Storage) -> Result<Locks> {
    storage
        .create_folder(paths.root())
        .map_err(Error::io("cannot create", paths.root()))?;
    Locks::take(paths, storage)
}

fn find_super(paths: &Paths, storage: &dyn Storage) -> Result<Option<Arc<dyn StorageFile>>> {
    let path = paths.super_file();
    match storage.open(&path, OpenMode::Read) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound) => {
            // A new database gets SUPER before its first segment, and a backup gets SUPER last. So
            // a log without SUPER is damaged or incomplete.
            let folder = paths.log();
            let segments = match storage.list(&folder) {
                Ok(names) => names,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                // The folder may contain a log that cannot be listed, so no database is created
                // there.
                Err(error) => return Err(Error::io("cannot list", &folder)(error)),
            };
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

fn create(paths: Paths, options: Options, mut lock: Option<Locks>) -> Result<Engine> {
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
    // SUPER is written completely under a temporary name first, because its final name makes the
    // folder a database. A temporary file of an earlier attempt is removed. If there is none, the
    // removal fails without consequence. If it cannot be removed, the creation below fails.
    let (temporary, path) = (paths.super_temporary(), paths.super_file());
    let _ = storage.remove(&temporary);
    let file = storage
        .open(&temporary, OpenMode::CreateNew)
        .map_err(Error::io("cannot create", &temporary))?;
    let written = file
        .allocate(0, SUPER_BYTES as u64)
        .and_then(|()| write_state_blocks(file.as_ref(), &state));
    written.map_err(Error::io("cannot write", &path))?;
    // The operating system makes names durable in any order. So all other names are synced before
    // SUPER gets its name.
    sync_root(&paths, storage.as_ref())?;
    sync_ancestors(&paths, storage.as_ref())?;
    if find_super(&paths, storage.as_ref())?.is_some() {
        // SUPER appeared after the folder was locked, for example as part of a copied database.
        // That file must be kept.
        return Err(Error::Invalid {
            what: "folder of a new database",
            reason: format!("another process created {} in it", path.display()),
        });
    }
    storage
        .rename(&temporary, &path)
        .map_err(Error::io("cannot rename to", &path))?;
    sync_root(&paths, storage.as_ref())?;
    if let Some(lock) = &mut lock {
        lock.take_super(&paths, storage.as_ref())?;
    }
    let mut engine = engine_of(paths, options, lock, &state, Some(file));
    engine.recovery = RecoveryReport {
        created: true,
        clean: true,
        ..RecoveryReport::default()
    };
    Ok(engine)
}

/// Makes the names in the folder of the database durable.
fn sync_root(paths: &Paths, storage: &dyn Storage) -> Result<()> {
    let synced = storage.sync_folder(paths.root());
    synced.map_err(Error::io("cannot sync", paths.root()))
}

/// Makes the names of the database's folder and of the folders above it durable. Each of these
/// folders may have been created by this process, or by an earlier process that died before it
/// synced the name.
pub(crate) fn sync_ancestors(paths: &Paths, storage: &dyn Storage) -> Result<()> {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
    for folder in paths.root().ancestors().skip(1) {
        // The last ancestor of a relative path is empty and stands for the working folder.
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        match storage.sync_folder(folder) {
            Ok(()) => {}
            // The process may not open this folder, or its file system is read-only or cannot sync
            // folders. The names in the folder cannot be synced here, so the error is ignored. A
            // power cut can then lose a new name in a folder that the process may write but not
            // read, or on a file system that cannot sync folders.
            Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidInput) => {}
            Err(error) => return Err(Error::io("cannot sync", folder)(error)),
        }
    }
    Ok(())
}

/// Returns an engine for the database of `state`, still without segments, and without tables other
/// than the empty catalog.
pub(crate) fn engine_of(
    paths: Paths,
    options: Options,
    lock: Option<Locks>,
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
            published_size: LogSize::default(),
            checkpointed_size: Some(LogSize::default()),
            next_segment: state.next_segment,
            segment_bytes_next,
            rolled: Vec::new(),
            in_flight: false,
            quiet_waiters: 0,
            usages: SegmentUsages::default(),
        }),
        writer: Mutex::new(Writer {
            state_generation: state.generation,
            checkpoint: state.checkpoint,
            generation: state.checkpoint,
            ..Writer::default()
        }),
        queue: Mutex::default(),
        group_done: [Condvar::new(), Condvar::new()],
        group_full: Condvar::new(),
        quiet: Condvar::new(),
        version: Version::new(),
        super_file: super_file.filter(|_| !options.read_only),
        frontier: AtomicU64::new(0),
        appended_bytes: AtomicU64::new(0),
        written_bytes: AtomicU64::new(0),
        poison: OnceLock::new(),
        // Set to `false` once the open has succeeded. Dropping an engine that is marked as closed
        // writes nothing.
        closed: AtomicBool::new(true),
        counters: Counters::default(),
        recovery: RecoveryReport::default(),
        birth: Birth::now(),
        lock: LocksCell::new(lock),
        unmapped: Unmapped::default(),
        checkpointing: Mutex::new(()),
        compacting: Mutex::default(),
        background: Background::default(),
        sealed: Mutex::default(),
        damaged: Mutex::default(),
        digests: Mutex::default(),
        reads: DiskReads::default(),
        space: crate::engine::space::Space::default(),
        rolled_segments: std::sync::atomic::AtomicUsize::new(0),
        spare: Arc::default(),
        options,
    }
}

/// Decoded content of SUPER.
pub(crate) struct Super {
    pub(crate) state: State,
    /// The highest durable frontier stated by the state and the hints.
    pub(crate) frontier: Frontier,
    hint_counter: u64,
    /// `true` if the two state blocks differ or one of them is invalid, so that both must be
    /// rewritten.
    damaged: bool,
}

pub(crate) fn read_super(path: &Path, file: &dyn StorageFile) -> Result<Super> {
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
        let newer = super_block::newer_version(&states);
        let [Err(flaw), _] = states else {
            unreachable!("no state is whole")
        };
        if let Some(found) = newer {
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

/// Maximum number of attempts of a read-only open beside a writer. A failed attempt is repeated
/// only if the writer changed SUPER during the attempt, which may then have seen half of that
/// change.
const READ_TRIES: u32 = 8;

fn reopen(paths: Paths, options: Options, lock: Option<Locks>, file: Arc<dyn StorageFile>) -> Result<Engine> {
    let path = paths.super_file();
    let file = if options.read_only {
        file
    } else {
        let file = options.storage.open(&path, OpenMode::ReadWrite);
        file.map_err(Error::io("cannot open", &path))?
    };
    let mut found = read_super(&path, file.as_ref())?;
    let mut tries = 0;
    let engine = loop {
        let error = match replayed(&paths, &options, &found, &file) {
            Ok(engine) => break engine,
            Err(error) => error,
        };
        // A read-only open holds no lock, so a writer may remove files during the attempt. In that
        // case SUPER has changed.
        let again = read_super(&path, file.as_ref())?;
        tries += 1;
        let unchanged = |one: &Super, two: &Super| {
            (one.state.generation, one.hint_counter) == (two.state.generation, two.hint_counter)
        };
        if !options.read_only || unchanged(&again, &found) || tries == READ_TRIES {
            return Err(error);
        }
        found = again;
    };
    *engine.locks() = lock;
    Ok(engine)
}

/// Returns an engine with the content of checkpoint and log. Uses the log alone if the checkpoint
/// is unusable. In a read-only open, fails instead if SUPER names another checkpoint by now.
fn replayed(paths: &Paths, options: &Options, found: &Super, file: &Arc<dyn StorageFile>) -> Result<Engine> {
    if found.state.checkpoint != 0 {
        let error = match replayed_from(paths, options, found, file, found.state.checkpoint) {
            Err(error) => error,
            engine => return engine,
        };
        let (Error::Corrupt { path, .. } | Error::Io { path, .. }) = &error else {
            return Err(error);
        };
        if !path.starts_with(paths.directory()) {
            return Err(error);
        }
        // A writer may have replaced the checkpoint during this open. Then the caller reads SUPER
        // again and uses the newer checkpoint, which is faster than a replay of the whole log.
        let newest = || read_super(&paths.super_file(), file.as_ref()).map(|found| found.state.checkpoint);
        if options.read_only && newest()? != found.state.checkpoint {
            return Err(error);
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
        // Set before the load, so that errors can name the file of the checkpoint.
        engine.recovery.checkpoint = checkpoint;
        Some(engine.load_checkpoint(checkpoint)?)
    };
    let mut scan = scan_segments(&engine, &found.state, found.frontier)?;
    let mut report = RecoveryReport {
        durable_sequence: Sequence(found.frontier.sequence),
        checkpoint,
        checkpoint_unusable: checkpoint != found.state.checkpoint,
        ..RecoveryReport::default()
    };
    let segments = || scan.segments.iter().map(|file| &*file.segment);
    let log_bytes = segments().map(|segment| u64::from(segment.end())).sum();
    let scattered = engine.advise_reads(log_bytes, segments());
    if let Some(loaded) = &loaded {
        loaded.map.advise(scattered);
    }
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
    report.sequence = Sequence(cut.end.sequence);
    // The replayed part of the log is not in a checkpoint yet. Its size is set here, because the
    // next checkpoint is made once enough of the log is in no checkpoint.
    lock(&engine.core).published_size = LogSize {
        bytes: report.bytes_replayed,
        records: report.records_replayed,
    };
    engine
        .appended_bytes
        .store(report.bytes_replayed, Ordering::Relaxed);
    engine
        .written_bytes
        .store(report.bytes_replayed, Ordering::Relaxed);
    engine.recovery = report;
    Ok(engine)
}

fn lock_writer(engine: &Engine) -> MutexGuard<'_, Writer> {
    lock(&engine.writer)
}
