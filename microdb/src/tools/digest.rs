//! Digests of the live records: one per table and key prefix, so that the differences of two
//! databases can be located.
//!
//! - A *leaf* is BLAKE3 over key and value of one live record. The top 12 bits of an unkeyed hash
//!   (XXH3) divide the keys of a table into 4,096 prefixes, equally in every database. The digest
//!   of a prefix is BLAKE3 over its leaves in ascending order. The digest of a table covers its
//!   prefixes. The digest of the database covers names and digests of its tables.
//! - Leaves are sorted and hashed, not added up. A sum or XOR could be updated without reading the
//!   other leaves. But a user who chooses the records can construct sets of leaves with equal XOR
//!   (by linear algebra) or equal sum (by Wagner's generalized birthday algorithm, unless the sum
//!   has kilobytes). A sequence of sorted leaves under BLAKE3 is as strong as BLAKE3.
//! - Digests are computed on request and kept in memory, so a database without such requests pays
//!   nothing. For a later request, the log shows which prefixes were written since, and only these
//!   are hashed again. A pass over each written table finds the records with these prefixes. All
//!   prefixes are hashed if that part of the log is gone or too long.
//! - The pass reads and verifies every record of the table, because only a verified key tells its
//!   prefix. The directory cannot select the records of a prefix, because it is divided by another
//!   hash, with a secret seed.
//!
//! Deliberately absent: digests on disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::directory::View;
use crate::engine::digest_cache::{DigestCache, DigestHash, Prefixes};
use crate::engine::log_order::Walk;
use crate::engine::{Handle, lock};
use crate::error::{Error, Result};
use crate::format::record::{Record, RecordKind};
use crate::sequence::Sequence;
use crate::snapshot::Snapshot;
use crate::tools::change_feed::{Changes, Operation};

/// Number of prefixes of a table. Fewer prefixes make the digests smaller. More prefixes make a
/// comparison read fewer records: with a million keys, a prefix has about 250.
pub const DIGEST_PREFIXES: usize = 4096;

/// Approximate maximum number of leaves (32 bytes each) in memory at a time. To hash more leaves, a
/// table is read more than once.
const LEAVES_MAX: u64 = 4 << 20;

/// First byte of the input of each hash, one value for each kind. So no input of a leaf equals the
/// input of an inner node.
const LEAF: u8 = 0;
const PREFIX: u8 = 1;
const TABLE: u8 = 2;
const DATABASE: u8 = 3;

/// The digests of a database at one moment, returned by [`Db::digest`](crate::Db::digest).
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let before = db.digest()?;
/// events.put("k", "v")?;
/// assert_ne!(db.digest()?.root, before.root);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Digest {
    /// Sequence of the last commit that the digests cover.
    pub sequence: Sequence,
    /// Number of keys in all tables.
    pub keys: u64,
    /// Digest over names and digests of all tables. Equal in two databases exactly if they have
    /// tables of the same names with equal records.
    pub root: DigestHash,
    /// Tables, sorted by name.
    pub tables: Vec<TableDigest>,
}

/// The digests of one table, part of [`Digest`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// for table in db.digest()?.tables {
///     println!("{}: {} keys, {}", table.name, table.keys, table.root);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TableDigest {
    /// Name of the table.
    pub name: String,
    /// Number of keys in the table.
    pub keys: u64,
    /// Digest over the digests of all prefixes.
    pub root: DigestHash,
    #[serde(skip)]
    prefixes: Prefixes,
}

impl TableDigest {
    /// Returns the prefixes with at least one key, each with its digest and number of keys.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let digest = db.digest()?;
    /// assert_eq!(digest.tables[0].prefixes().map(|(_, _, keys)| keys).sum::<u64>(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prefixes(&self) -> impl Iterator<Item = (u16, DigestHash, u64)> + '_ {
        self.prefixes
            .iter()
            .map(|(prefix, (hash, keys))| (*prefix, *hash, *keys))
    }

    /// Returns the prefixes with different digests in this table and `other`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let before = db.digest()?;
    /// events.put("k", "v")?;
    /// let after = db.digest()?;
    /// assert_eq!(after.tables[0].differing(&before.tables[0]), [microdb::digest_prefix(b"k")]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<u16> {
        let differs = |prefix: &u16| self.prefixes.get(prefix) != other.prefixes.get(prefix);
        (0..DIGEST_PREFIXES as u16).filter(differs).collect()
    }
}

/// Returns the prefix of `key`: the top 12 bits of its XXH3 hash.
///
/// ```
/// assert!(usize::from(microdb::digest_prefix(b"k")) < microdb::DIGEST_PREFIXES);
/// ```
#[must_use]
pub fn digest_prefix(key: &[u8]) -> u16 {
    (xxhash_rust::xxh3::xxh3_64(key) >> (64 - DIGEST_PREFIXES.ilog2())) as u16
}

/// A set of prefixes, one bit for each.
#[derive(Clone)]
pub(crate) struct PrefixSet(Box<[u64; DIGEST_PREFIXES / 64]>);

impl PrefixSet {
    fn none() -> Self {
        Self(Box::new([0; DIGEST_PREFIXES / 64]))
    }

    fn all() -> Self {
        Self(Box::new([u64::MAX; DIGEST_PREFIXES / 64]))
    }

    pub(crate) fn of(prefixes: &[u16]) -> Self {
        let mut set = Self::none();
        prefixes.iter().for_each(|prefix| set.add(*prefix));
        set
    }

    fn add(&mut self, prefix: u16) {
        self.0[usize::from(prefix) / 64] |= 1 << (prefix % 64);
    }

    pub(crate) fn has(&self, prefix: u16) -> bool {
        self.0[usize::from(prefix) / 64] >> (prefix % 64) & 1 == 1
    }

    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..DIGEST_PREFIXES as u16).filter(|prefix| self.has(*prefix))
    }
}

impl Handle {
    /// Returns the digests of all live records at this moment.
    pub(crate) fn digest(self: &Arc<Self>) -> Result<Digest> {
        self.digest_with_snapshot().map(|(digest, ..)| digest)
    }

    /// Returns a snapshot, and the names and ids of the tables in it.
    pub(crate) fn named_snapshot(self: &Arc<Self>) -> (Snapshot, Vec<(String, u32)>) {
        let _ddl = lock(&self.ddl);
        let tables = self.named_tables();
        let names = tables.iter().map(|table| (table.name(), table.id)).collect();
        (Snapshot::of(self), names)
    }

    /// Returns the digests of all live records, the ids of the tables, and the digested snapshot.
    pub(crate) fn digest_with_snapshot(self: &Arc<Self>) -> Result<(Digest, Vec<u32>, Snapshot)> {
        self.check_process()?;
        let mut cache = lock(&self.digests);
        let (snapshot, names) = self.named_snapshot();
        let written = cache
            .as_ref()
            .map(|cache| self.written_since(cache.sequence, &snapshot));
        // The cache is taken out first. If an error follows, it stays empty, and the next call
        // digests everything.
        let old = cache.take().map(|cache| cache.tables).unwrap_or_default();
        let mut tables = HashMap::new();
        for (_, id) in &names {
            let before = old
                .get(id)
                .filter(|_| written.as_ref().is_some_and(Option::is_some));
            let wanted = match (before, &written) {
                (Some(_), Some(Some(written))) => written.get(id).cloned().unwrap_or_else(PrefixSet::none),
                _ => PrefixSet::all(),
            };
            tables.insert(*id, digest_table(&snapshot, *id, before, &wanted)?);
        }
        let digest = compose(snapshot.sequence(), &names, &tables);
        let sequence = snapshot.sequence();
        *cache = Some(DigestCache { sequence, tables });
        Ok((digest, names.into_iter().map(|(_, id)| id).collect(), snapshot))
    }

    /// Returns the prefixes written after `sequence`, by table. Returns `None` if a commit after
    /// `sequence` cannot be read (compaction may have removed it), or if these commits have so many
    /// records that digesting everything is as fast.
    fn written_since(
        self: &Arc<Self>,
        sequence: Sequence,
        snapshot: &Snapshot,
    ) -> Option<HashMap<u32, PrefixSet>> {
        let mut written: HashMap<u32, PrefixSet> = HashMap::new();
        if sequence == snapshot.sequence() {
            return Some(written);
        }
        let keys: u64 = snapshot.views().values().map(View::len).sum();
        let mut operations_left = keys.max(DIGEST_PREFIXES as u64);
        for change in Changes::since(self, sequence).ok()? {
            let change = change.ok()?;
            if change.sequence > snapshot.sequence() {
                break;
            }
            operations_left = operations_left.checked_sub(change.operations.len() as u64)?;
            for operation in change.operations {
                let (Operation::Put { table, .. }
                | Operation::Delete { table, .. }
                | Operation::Clear { table }) = &operation;
                let set = written.entry(*table).or_insert_with(PrefixSet::none);
                match &operation {
                    Operation::Put { key, .. } | Operation::Delete { key, .. } => set.add(digest_prefix(key)),
                    Operation::Clear { .. } => *set = PrefixSet::all(),
                }
            }
        }
        Some(written)
    }
}

/// Returns the digests of a table's prefixes. Those in `wanted` are computed; all others are taken
/// from `before`.
fn digest_table(
    snapshot: &Snapshot,
    id: u32,
    before: Option<&Prefixes>,
    wanted: &PrefixSet,
) -> Result<Prefixes> {
    let wanted: Vec<u16> = wanted.iter().collect();
    if let (Some(before), true) = (before, wanted.is_empty()) {
        return Ok(before.clone());
    }
    let mut prefixes = before.map(|before| BTreeMap::clone(before)).unwrap_or_default();
    wanted.iter().for_each(|prefix| _ = prefixes.remove(prefix));
    let keys = snapshot.views().get(&id).map_or(0, View::len);
    let share = keys * wanted.len() as u64 / DIGEST_PREFIXES as u64;
    let passes = share.div_ceil(LEAVES_MAX).max(1) as usize;
    for part in wanted.chunks(wanted.len().div_ceil(passes).max(1)) {
        let part = PrefixSet::of(part);
        let mut leaves: Vec<(u16, [u8; 32])> = Vec::new();
        let mut scratch = Vec::new();
        scan(snapshot, id, &part, |prefix, record| {
            leaves.push((prefix, leaf(record, &mut scratch)));
            Ok(true)
        })?;
        leaves.sort_unstable();
        for group in leaves.chunk_by(|one, two| one.0 == two.0) {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&[PREFIX]);
            group.iter().for_each(|(_, leaf)| _ = hasher.update(leaf));
            let hash = DigestHash(*hasher.finalize().as_bytes());
            prefixes.insert(group[0].0, (hash, group.len() as u64));
        }
    }
    Ok(Arc::new(prefixes))
}

/// Returns BLAKE3 over `LEAF`, the length of the key, the key and the value.
fn leaf(record: &Record<'_>, scratch: &mut Vec<u8>) -> [u8; 32] {
    let (key, value) = (record.key(), record.value());
    scratch.clear();
    scratch.push(LEAF);
    scratch.extend_from_slice(&(key.len() as u32).to_le_bytes());
    scratch.extend_from_slice(key);
    if value.len() <= 1024 {
        // A small value is copied behind the key, because hashing one small input is fastest.
        scratch.extend_from_slice(value);
        return *blake3::hash(scratch).as_bytes();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(scratch).update(value);
    *hasher.finalize().as_bytes()
}

fn compose(sequence: Sequence, names: &[(String, u32)], tables: &HashMap<u32, Prefixes>) -> Digest {
    let mut database = blake3::Hasher::new();
    database.update(&[DATABASE]);
    let mut digests = Vec::with_capacity(names.len());
    for (name, id) in names {
        let prefixes = tables[id].clone();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[TABLE]);
        for (prefix, (hash, _)) in prefixes.iter() {
            hasher.update(&prefix.to_le_bytes()).update(&hash.0);
        }
        let root = DigestHash(*hasher.finalize().as_bytes());
        database
            .update(&(name.len() as u32).to_le_bytes())
            .update(name.as_bytes())
            .update(&root.0);
        digests.push(TableDigest {
            name: name.clone(),
            keys: prefixes.values().map(|(_, keys)| keys).sum(),
            root,
            prefixes,
        });
    }
    Digest {
        sequence,
        keys: digests.iter().map(|table| table.keys).sum(),
        root: DigestHash(*database.finalize().as_bytes()),
        tables: digests,
    }
}

/// Calls `each` for the records of a table with a key prefix in `wanted`, until `each` returns
/// `false`. Records are verified. They are read in batches, each in the order of the log.
///
/// # Errors
/// The first damage, and the errors of `each`.
pub(crate) fn scan(
    snapshot: &Snapshot,
    table: u32,
    wanted: &PrefixSet,
    mut each: impl FnMut(u16, &Record<'_>) -> Result<bool>,
) -> Result<()> {
    let Some(view) = snapshot.views().get(&table) else {
        return Ok(());
    };
    let engine = snapshot.engine();
    let segments = snapshot.segments();
    let mut walk = Walk::new(Some(view));
    while let Some(location) = walk.next(segments) {
        let location = location.map_err(|damage| engine.directory_damage(damage))?;
        let segment = segments.find(location, engine.paths.root())?;
        let record = segment.verified(location.offset())?;
        if (record.head.table, record.head.kind) != (table, RecordKind::Put) {
            let found = format_args!("{:?} of table {}", record.head.kind, record.head.table);
            let at = location.offset().into();
            return Err(Error::corrupt(
                &segment.path,
                at,
                "record",
                format_args!("a put of table {table}"),
                found,
            ));
        }
        let prefix = digest_prefix(record.key());
        if wanted.has(prefix) && !each(prefix, &record)? {
            return Ok(());
        }
    }
    Ok(())
}
