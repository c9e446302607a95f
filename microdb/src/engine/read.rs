//! Reads of current records: single keys, many keys at once, and look-ups for writers.
//!
//! - A read takes no lock. A pin keeps the directory and the segments alive.
//! - A value is returned only after its checksum and its key were verified.
//! - A key is reported as absent only if no damage was found that could hide it: in its part of the
//!   directory, or in a record that may be its own.
//!
//! Deliberately absent: reads of an earlier moment, which are in `snapshot`.

use std::sync::Arc;

use crate::directory::{Damage, KeyHash, Location};
use crate::engine::Engine;
use crate::engine::catalog::TableCore;
use crate::engine::segments::Segment;
use crate::error::{Error, Result};
use crate::format::record::{Record, RecordKind};
use crate::raw::epoch::{Guard, pin};
use crate::raw::sigbus::any_cut;
use crate::raw::sync::Ordering;
use crate::value::Value;

/// Maximum number of attempts of a look-up while compaction moves the record. An attempt fails only
/// if a whole segment is compacted and removed during the read, so even a second attempt is very
/// unlikely.
const MOVED_TRIES: u32 = 16;

/// Number of keys that `multi_get` takes through its stages together. The number exceeds the number
/// of memory reads that a processor can have in flight. The data of this many keys fits into the
/// first-level cache.
const STAGE_KEYS: usize = 64;

/// A verified record found by a lookup.
pub(crate) struct Found<'g> {
    pub(crate) location: Location,
    pub(crate) segment: &'g Arc<Segment>,
    pub(crate) record: Record<'g>,
}

impl Found<'_> {
    #[inline]
    pub(crate) fn value(&self) -> Value {
        let head = &self.record.head;
        self.piece(head.key_at + head.key_bytes, head.value_bytes)
    }

    #[inline]
    pub(crate) fn key(&self) -> Value {
        self.piece(self.record.head.key_at, self.record.head.key_bytes)
    }

    /// Returns the `len` bytes of the record that begin at offset `at` of the record.
    #[inline]
    fn piece(&self, at: usize, len: usize) -> Value {
        let offset = self.location.offset() + at as u32;
        if any_cut() && self.segment.is_cut() {
            return self.copied(at, len);
        }
        Value::new(self.segment.bytes_at(offset), len, self.segment, offset)
    }

    /// Returns a copy, because values must not share the map of a file with missing pages.
    #[cold]
    fn copied(&self, at: usize, len: usize) -> Value {
        Value::copied(self.record.bytes.get(at..at + len).unwrap_or_default())
    }

    /// Checks that the bytes taken from the record were not in a missing page: the file was
    /// truncated, or the disk failed to read the page. Called after taking the bytes, since the
    /// file may be truncated at any moment.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] if the record no longer has a correct checksum.
    #[inline(always)]
    pub(crate) fn check_uncut(&self) -> Result<()> {
        if any_cut() && self.segment.is_cut() {
            self.segment.verified(self.location.offset())?;
        }
        Ok(())
    }
}

impl Engine {
    /// Returns the value of `key`, or `None` if the key is absent.
    #[inline]
    pub(crate) fn get(&self, table: &TableCore, key: &[u8]) -> Result<Option<Value>> {
        let guard = pin();
        match self.lookup(&guard, table, self.hash(key), key)? {
            Some(found) => {
                let value = found.value();
                found.check_uncut()?;
                Ok(Some(value))
            }
            None => Ok(None),
        }
    }

    /// Returns the live record of `key`, or `None` if the key is absent. `hash` is the hash of
    /// `key`.
    #[inline]
    pub(crate) fn lookup<'g>(
        &'g self,
        guard: &'g Guard,
        table: &'g TableCore,
        hash: KeyHash,
        key: &[u8],
    ) -> Result<Option<Found<'g>>> {
        self.check_readable(table)?;
        for _ in 0..MOVED_TRIES {
            let directory = table.directory.load(guard);
            let mut moved = None;
            let mut damaged = None;
            let candidates = directory.candidates(guard, hash);
            for location in candidates.map_err(|damage| self.directory_damage(damage))? {
                let Some(segment) = self.segments.load(guard).get(location) else {
                    moved = Some(location);
                    break;
                };
                segment.prefetch(location.offset());
                match segment.intact(location.offset()) {
                    Some(record) if is_key_of(&record, table.id, key) => {
                        return Ok(Some(Found {
                            location,
                            segment,
                            record,
                        }));
                    }
                    Some(_) => {}
                    None => damaged = Some((segment, location)),
                }
            }
            match (moved, damaged) {
                (None, None) => {
                    if any_cut() {
                        let uncut = directory.check_uncut(guard, hash);
                        uncut.map_err(|damage| self.directory_damage(damage))?;
                    }
                    return Ok(None);
                }
                // The damaged record may be the record of this key, so the key cannot be reported
                // as absent.
                (None, Some((segment, location))) => return Err(segment.flaw(location.offset())),
                (Some(_), _) => {}
            }
        }
        Err(Error::corrupt(
            self.paths.root(),
            0,
            "directory slot",
            "a location in a live segment",
            "none",
        ))
    }

    /// Returns the values of many keys, in stages: buckets, records, values. Each stage prefetches
    /// the memory of one key and continues with another key instead of waiting for that memory.
    pub(crate) fn multi_get<K: AsRef<[u8]>>(
        &self,
        table: &TableCore,
        keys: &[K],
    ) -> Result<Vec<Option<Value>>> {
        self.check_readable(table)?;
        let mut values = Vec::with_capacity(keys.len());
        let mut hashes = [KeyHash(0); STAGE_KEYS];
        let mut places = [None; STAGE_KEYS];
        for keys in keys.chunks(STAGE_KEYS) {
            let guard = pin();
            let mut lookups = self.reads.lookups();
            let directory = table.directory.load(&guard);
            for (key, hash) in keys.iter().zip(&mut hashes) {
                *hash = self.hash(key.as_ref());
                directory.prefetch(&guard, *hash);
            }
            let segments = self.segments.load(&guard);
            for (hash, place) in hashes.iter().zip(&mut places).take(keys.len()) {
                let candidates = directory.candidates(&guard, *hash);
                *place = candidates.map_err(|damage| self.directory_damage(damage))?.next();
                if let Some(location) = *place
                    && let Some(segment) = segments.get(location)
                {
                    segment.prefetch(location.offset());
                    if lookups.ask_for_next() {
                        segment.will_look(location.offset());
                    }
                }
            }
            for ((key, hash), place) in keys.iter().zip(hashes).zip(places) {
                let key = key.as_ref();
                let Some(location) = place else {
                    if any_cut() {
                        let uncut = directory.check_uncut(&guard, hash);
                        uncut.map_err(|damage| self.directory_damage(damage))?;
                    }
                    values.push(None);
                    continue;
                };
                let segment = segments.get(location);
                let record = segment.and_then(|segment| segment.intact(location.offset()));
                let found = match segment.zip(record) {
                    Some((segment, record)) if is_key_of(&record, table.id, key) => Some(Found {
                        location,
                        segment,
                        record,
                    }),
                    // The record has another key with the same hash prefix, is damaged, or was
                    // moved by compaction. The full look-up decides.
                    _ => self.lookup(&guard, table, hash, key)?,
                };
                let value = found.as_ref().map(Found::value);
                if let Some(found) = found {
                    found.check_uncut()?;
                }
                values.push(value);
            }
        }
        Ok(values)
    }

    /// Returns the location of `key` in the directory and the length of its record. Returns `None`
    /// if no readable record in the directory has this key. Compares the key without verifying the
    /// checksum of the record, because the callers are writers, which return none of its content.
    pub(crate) fn locate(
        &self,
        guard: &Guard,
        table: &TableCore,
        hash: KeyHash,
        key: &[u8],
    ) -> Result<Option<(Location, usize)>> {
        let segments = self.segments.load(guard);
        let mut bytes = 0;
        let found = table.directory.load(guard).find(guard, hash, |location| {
            let Some(record) = segments
                .get(location)
                .and_then(|segment| segment.record(location.offset()))
            else {
                return Ok::<_, DirectoryError>(false);
            };
            bytes = record.head.bytes();
            Ok(record.head.table == table.id && record.key() == key)
        });
        match found {
            Ok(location) => Ok(location.map(|location| (location, bytes))),
            Err(DirectoryError(damage)) => Err(self.directory_damage(damage)),
        }
    }

    #[inline]
    fn check_readable(&self, table: &TableCore) -> Result<()> {
        self.check_process()?;
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        if table.is_dropped() {
            return Err(Error::TableDropped { name: table.name() });
        }
        Ok(())
    }
}

/// Returns `true` if `record` is a put of `key` in the table with the id `table`.
#[inline]
pub(crate) fn is_key_of(record: &Record<'_>, table: u32, key: &[u8]) -> bool {
    record.head.table == table && record.head.kind == RecordKind::Put && record.key() == key
}

/// Error type for the closure of `Directory::find`. It carries the damage of a directory.
struct DirectoryError(Damage);

impl From<Damage> for DirectoryError {
    fn from(damage: Damage) -> Self {
        Self(damage)
    }
}
