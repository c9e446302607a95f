//! Differences between two databases: digests narrow them down to key prefixes, and only records
//! with these prefixes are compared.
//!
//! - Each database is read at one moment, and its writers continue.
//! - The databases need not have equal ids, hash seeds or histories.
//! - A database and its backup share segments. If their logs show the keys that may differ, only
//!   these keys are compared (see [`log`]). Otherwise, tables with equal digests are not compared.
//!
//! Deliberately absent: merging.

mod log;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use crate::directory::View;
use crate::engine::Handle;
use crate::error::Result;
use crate::sequence::Sequence;
use crate::snapshot::Snapshot;
use crate::tools::digest::{DIGEST_PREFIXES, Digest, PrefixSet, TableDigest, scan};
use crate::value::Value;
use log::changed_keys;

/// Kind of a difference of one key.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let copy = folder.path().join("copy");
/// db.backup_to(&copy)?;
/// let copy = microdb::Db::open(copy)?;
/// events.put("k", "v")?;
/// microdb::diff(&db, &copy, |difference| {
///     assert_eq!(difference.kind, microdb::DifferenceKind::OnlyInFirst);
///     std::ops::ControlFlow::Continue(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Only the first database has the key.
    OnlyInFirst,
    /// Only the second database has the key.
    OnlyInSecond,
    /// Both databases have the key, with different values.
    Value,
}

/// One key that differs, reported by [`diff`](crate::diff).
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let copy = folder.path().join("copy");
/// db.backup_to(&copy)?;
/// let copy = microdb::Db::open(copy)?;
/// events.put("k", "v")?;
/// microdb::diff(&db, &copy, |difference| {
///     println!("{}: {:?}", difference.table, difference.key);
///     std::ops::ControlFlow::Continue(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Name of the table.
    pub table: String,
    /// Key of the record.
    pub key: Vec<u8>,
    /// Kind of the difference.
    pub kind: DifferenceKind,
}

/// Counts of a comparison, returned by [`diff`](crate::diff).
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let copy = folder.path().join("copy");
/// db.backup_to(&copy)?;
/// let copy = microdb::Db::open(copy)?;
/// events.put("k", "v")?;
/// let report = microdb::diff(&db, &copy, |_| std::ops::ControlFlow::Continue(()))?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct DiffReport {
    /// Sequence of the compared state of the first database.
    pub first_sequence: Sequence,
    /// Sequence of the compared state of the second database.
    pub second_sequence: Sequence,
    /// Number of keys in all tables of the first database, and of the second database.
    pub keys: (u64, u64),
    /// Names of tables that only the first database has. Keys of these tables are counted and
    /// reported too.
    pub tables_only_in_first: Vec<String>,
    /// Names of tables that only the second database has. Keys of these tables are counted and
    /// reported too.
    pub tables_only_in_second: Vec<String>,
    /// Number of prefixes with different digests, summed over the tables that both databases have;
    /// 0 if `by_log`. A table has `DIGEST_PREFIXES` prefixes.
    pub prefixes_differing: u64,
    /// Number of keys that only the first database has.
    pub only_in_first: u64,
    /// Number of keys that only the second database has.
    pub only_in_second: u64,
    /// Number of keys that have different values.
    pub values_differing: u64,
    /// Number of records that were looked up in the other database. If `by_log`, number of keys
    /// that were looked up in both.
    pub records_compared: u64,
    /// `true` if the logs alone showed which keys to compare. Then the databases have a common
    /// origin, and only keys in the parts of their logs that differ were compared.
    pub by_log: bool,
    /// `true` if the caller stopped the comparison. The counts of differences are lower bounds
    /// then.
    pub stopped: bool,
}

impl DiffReport {
    /// Returns `true` if both databases have the same tables with the same records.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let copy = folder.path().join("copy");
    /// db.backup_to(&copy)?;
    /// let copy = microdb::Db::open(copy)?;
    /// events.put("k", "v")?;
    /// let report = microdb::diff(&db, &copy, |_| std::ops::ControlFlow::Continue(()))?;
    /// assert!(!report.is_equal());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.tables_only_in_first.is_empty()
            && self.tables_only_in_second.is_empty()
            && self.differences() == 0
    }

    /// Returns the number of keys that differ.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let copy = folder.path().join("copy");
    /// db.backup_to(&copy)?;
    /// let copy = microdb::Db::open(copy)?;
    /// events.put("k", "v")?;
    /// let report = microdb::diff(&db, &copy, |_| std::ops::ControlFlow::Continue(()))?;
    /// assert_eq!(report.differences(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn differences(&self) -> u64 {
        self.only_in_first + self.only_in_second + self.values_differing
    }
}

impl fmt::Display for DiffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_equal() && !self.stopped {
            return write!(f, "equal: {} keys", self.keys.0);
        }
        write!(
            f,
            "{}{} keys differ ({} only in the first, {} only in the second, {} with another value); {} and {} keys in all",
            if self.stopped { "at least " } else { "" },
            self.differences(),
            self.only_in_first,
            self.only_in_second,
            self.values_differing,
            self.keys.0,
            self.keys.1,
        )?;
        for (tables, side) in [
            (&self.tables_only_in_first, "first"),
            (&self.tables_only_in_second, "second"),
        ] {
            if !tables.is_empty() {
                write!(f, "; tables only in the {side}: {}", tables.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Compares two databases. [`crate::diff`] describes the result.
pub(crate) fn diff(
    first: &Arc<Handle>,
    second: &Arc<Handle>,
    mut found: impl FnMut(&Difference) -> ControlFlow<()>,
) -> Result<DiffReport> {
    first.check_process()?;
    second.check_process()?;
    if let Some(report) = by_log(first, second, &mut found)? {
        return Ok(report);
    }
    let (one, two) = (Side::of(first)?, Side::of(second)?);
    let mut report = DiffReport {
        first_sequence: one.sequence,
        second_sequence: two.sequence,
        keys: (one.keys, two.keys),
        ..DiffReport::default()
    };
    let mut names: Vec<&String> = one.tables.keys().chain(two.tables.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (ours, theirs) = (one.tables.get(name), two.tables.get(name));
        let prefixes = match (ours, theirs) {
            (Some((ours, _)), Some((theirs, _))) => ours.differing(theirs),
            (Some(_), None) => {
                report.tables_only_in_first.push(name.clone());
                (0..DIGEST_PREFIXES as u16).collect()
            }
            _ => {
                report.tables_only_in_second.push(name.clone());
                (0..DIGEST_PREFIXES as u16).collect()
            }
        };
        if prefixes.is_empty() {
            continue;
        }
        if ours.is_some() && theirs.is_some() {
            report.prefixes_differing += prefixes.len() as u64;
        }
        let mut compare = Compare {
            name,
            prefixes: PrefixSet::of(&prefixes),
            report: &mut report,
            found: &mut found,
        };
        compare.run(
            (&one.snapshot, ours.map(|(_, id)| *id)),
            (&two.snapshot, theirs.map(|(_, id)| *id)),
        )?;
        if report.stopped {
            break;
        }
    }
    Ok(report)
}

/// Compares the keys that may differ according to the logs of two databases of common origin.
/// Returns `None` if names or ids of tables differ, or if `changed_keys` returns `None`.
fn by_log(
    first: &Arc<Handle>,
    second: &Arc<Handle>,
    found: &mut impl FnMut(&Difference) -> ControlFlow<()>,
) -> Result<Option<DiffReport>> {
    let ((one, names), (two, other_names)) = (first.named_snapshot(), second.named_snapshot());
    if names != other_names {
        return Ok(None);
    }
    let Some(keys) = changed_keys((first, &one), (second, &two)) else {
        return Ok(None);
    };
    let count = |snapshot: &Snapshot| {
        let tables = names.iter().filter_map(|(_, id)| snapshot.views().get(id));
        tables.map(View::len).sum()
    };
    let mut report = DiffReport {
        first_sequence: one.sequence(),
        second_sequence: two.sequence(),
        keys: (count(&one), count(&two)),
        by_log: true,
        ..DiffReport::default()
    };
    for (name, id) in &names {
        let prefixes = PrefixSet::of(&[]);
        let mut compare = Compare {
            name,
            prefixes,
            report: &mut report,
            found,
        };
        for (_, key) in keys.iter().filter(|(table, _)| table == id) {
            compare.report.records_compared += 1;
            let kind = match (one.get_in(*id, key)?, two.get_in(*id, key)?) {
                (Some(_), None) => DifferenceKind::OnlyInFirst,
                (None, Some(_)) => DifferenceKind::OnlyInSecond,
                (Some(one), Some(two)) if *one != *two => DifferenceKind::Value,
                _ => continue,
            };
            if !compare.tell(key, kind) {
                return Ok(Some(report));
            }
        }
    }
    Ok(Some(report))
}

/// One of the two databases: a snapshot with its digests.
struct Side {
    snapshot: Snapshot,
    sequence: Sequence,
    keys: u64,
    /// Digests and ids of tables, by name.
    tables: BTreeMap<String, (TableDigest, u32)>,
}

impl Side {
    fn of(db: &Arc<Handle>) -> Result<Self> {
        let (digest, ids, snapshot) = db.digest_with_snapshot()?;
        let Digest {
            sequence,
            keys,
            tables,
            ..
        } = digest;
        let tables = tables
            .into_iter()
            .zip(ids)
            .map(|(table, id)| (table.name.clone(), (table, id)));
        Ok(Self {
            snapshot,
            sequence,
            keys,
            tables: tables.collect(),
        })
    }
}

/// The comparison of one table. `prefixes` are the key prefixes that `run` compares.
struct Compare<'a, F> {
    name: &'a str,
    prefixes: PrefixSet,
    report: &'a mut DiffReport,
    found: &'a mut F,
}

impl<F: FnMut(&Difference) -> ControlFlow<()>> Compare<'_, F> {
    /// Compares the records of the table that have one of the prefixes. Looks up those of the first
    /// database in the second database, and reports differences. Then looks up those of the second
    /// database in the first database, and reports missing keys. Ends early if `found` stops the
    /// comparison.
    fn run(&mut self, first: (&Snapshot, Option<u32>), second: (&Snapshot, Option<u32>)) -> Result<()> {
        let prefixes = self.prefixes.clone();
        if let (snapshot, Some(id)) = first {
            scan(snapshot, id, &prefixes, |_, record| {
                self.report.records_compared += 1;
                let kind = match in_other(second, record.key())? {
                    None => DifferenceKind::OnlyInFirst,
                    Some(value) if *value != *record.value() => DifferenceKind::Value,
                    Some(_) => return Ok(true),
                };
                Ok(self.tell(record.key(), kind))
            })?;
        }
        if let (snapshot, Some(id), false) = (second.0, second.1, self.report.stopped) {
            scan(snapshot, id, &prefixes, |_, record| {
                self.report.records_compared += 1;
                match in_other(first, record.key())? {
                    None => Ok(self.tell(record.key(), DifferenceKind::OnlyInSecond)),
                    Some(_) => Ok(true),
                }
            })?;
        }
        Ok(())
    }

    /// Counts and reports a difference. Returns `true` if the comparison shall continue.
    fn tell(&mut self, key: &[u8], kind: DifferenceKind) -> bool {
        let count = match kind {
            DifferenceKind::OnlyInFirst => &mut self.report.only_in_first,
            DifferenceKind::OnlyInSecond => &mut self.report.only_in_second,
            DifferenceKind::Value => &mut self.report.values_differing,
        };
        *count += 1;
        let difference = Difference {
            table: self.name.to_owned(),
            key: key.to_vec(),
            kind,
        };
        self.report.stopped = (self.found)(&difference).is_break();
        !self.report.stopped
    }
}

fn in_other((snapshot, id): (&Snapshot, Option<u32>), key: &[u8]) -> Result<Option<Value>> {
    id.map_or(Ok(None), |id| snapshot.get_in(id, key))
}
