//! The manifest of a salvage: saved and lost records, for programs (serde) and for people
//! (`Display`).
//!
//! - A loss names its file, offsets and reason, and its commits, tables and keys as far as they are
//!   known.
//! - Unknown numbers are `None`, never a guess.
//!
//! Deliberately absent: values of lost records.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::sequence::Sequence;

/// Maximum number of keys in a list, so that a manifest stays readable.
pub(crate) const KEYS_LISTED_MAX: usize = 1000;

/// Result of [`salvage`](crate::salvage).
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let (damaged, saved) = (db.path().to_owned(), folder.path().join("saved"));
/// db.close()?;
/// let manifest = microdb::salvage(damaged, &saved)?;
/// println!("{manifest}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Folder of the damaged database.
    pub source: PathBuf,
    /// Folder of the new database.
    pub destination: PathBuf,
    /// Id of the damaged database, in hexadecimal.
    pub database: String,
    /// Tables that were written.
    pub tables: Vec<SalvagedTable>,
    /// Number of records written, in all tables.
    pub records: u64,
    /// Total size of the keys and values of the records written in all tables, in bytes.
    pub bytes: u64,
    /// Number of segments of the log that were read.
    pub segments: u64,
    /// Number of complete frames in the segments that were read.
    pub frames: u64,
    /// Highest sequence stated by the header of a frame that was read, or of a segment up to the
    /// last such frame.
    pub sequence: Sequence,
    /// Sequence of the last durable commit according to SUPER, or `None` if SUPER does not state
    /// one.
    pub durable_sequence: Option<Sequence>,
    /// Number of bytes of the torn tail of the log, which were omitted. No commit in them was
    /// acknowledged as durable.
    pub torn_bytes: u64,
    /// All losses that were found.
    pub losses: Vec<Loss>,
    /// Keys that have an old value or should be absent, because the record that replaced or deleted
    /// their value was lost. The checkpoint proves this. At most a thousand are listed.
    pub stale: Vec<KeyName>,
    /// Number of keys that have an old value or should be absent, listed or not.
    pub stale_keys: u64,
    /// Further errors that the new database may have, such as deleted records that are back.
    pub warnings: Vec<String>,
    /// Observations that are no loss, such as damage of files that are not needed.
    pub notes: Vec<String>,
}

/// A table that was salvaged.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let (damaged, saved) = (db.path().to_owned(), folder.path().join("saved"));
/// db.close()?;
/// let manifest = microdb::salvage(damaged, &saved)?;
/// let table = &manifest.tables[0];
/// assert_eq!((table.name.as_str(), table.records), ("events", 1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SalvagedTable {
    /// Name of the table in the new database.
    pub name: String,
    /// Id of the table in the damaged database.
    pub id: u32,
    /// Number of records written to the table.
    pub records: u64,
    /// Total size of the keys and values of the records written to the table, in bytes.
    pub bytes: u64,
    /// `true` if the new table has the name that was found, `false` if its name was invented.
    pub name_known: bool,
}

/// A damaged or missing part of the log.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let (damaged, saved) = (db.path().to_owned(), folder.path().join("saved"));
/// db.close()?;
/// let manifest = microdb::salvage(damaged, &saved)?;
/// for loss in &manifest.losses {
///     println!("{} from {} to {}: {}", loss.path.display(), loss.from, loss.to, loss.what);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Loss {
    /// Path of the damaged or missing file.
    pub path: PathBuf,
    /// Offset of the first damaged or missing byte in the file, or 0 if the whole file is lost.
    pub from: u64,
    /// Offset of the byte after the last damaged or missing byte in the file. 0 if the whole file
    /// is lost; equal to `from` for a record that became unreadable during the copy.
    pub to: u64,
    /// Description of the damage.
    pub what: String,
    /// First and last commit that is damaged or missing, if known from the header of the damaged
    /// frame, or from the sequences that the log or SUPER states before and behind the loss.
    pub sequences: Option<(Sequence, Sequence)>,
    /// Tables of the lost records, if known.
    pub tables: Vec<String>,
    /// Keys of the lost records, if known. They are listed as stored, so damage may have changed
    /// the key itself. At most a thousand are listed.
    pub keys: Vec<KeyName>,
    /// Number of further known keys of the lost records, which are not in `keys`.
    pub keys_left_off: u64,
    /// Number of records that are certainly lost, or `None` if unknown.
    pub records_lost: Option<u64>,
    /// Number of lost records that were live at the newest readable checkpoint, or `None` if no
    /// checkpoint is readable or the loss is behind the checkpoint.
    pub live_records_lost: Option<u64>,
    /// Number of readable records in the damaged frames.
    pub records_recovered: u64,
}

/// A key of a table.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let (damaged, saved) = (db.path().to_owned(), folder.path().join("saved"));
/// db.close()?;
/// let manifest = microdb::salvage(damaged, &saved)?;
/// for name in &manifest.stale {
///     println!("{} {:?} may have been deleted", name.table, name.key);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyName {
    /// Name of the table.
    pub table: String,
    /// The key, as stored.
    pub key: Vec<u8>,
}

impl Loss {
    /// Returns `true` if the whole file is missing or unreadable.
    pub(super) fn is_of_file(&self) -> bool {
        self.to == 0
    }
}

impl Manifest {
    /// Returns `true` if no loss, no stale key and no warning is listed.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let (damaged, saved) = (db.path().to_owned(), folder.path().join("saved"));
    /// db.close()?;
    /// let manifest = microdb::salvage(damaged, &saved)?;
    /// assert!(manifest.is_complete());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.losses.is_empty() && self.stale_keys == 0 && self.warnings.is_empty()
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.table, self.key.escape_ascii())
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, bytes {} to {}: {}",
            self.path.display(),
            self.from,
            self.to,
            self.what
        )?;
        if let Some((first, last)) = self.sequences {
            if first == last {
                write!(f, "\n    commit {first}")?;
            } else {
                write!(f, "\n    commits {first} to {last}")?;
            }
        }
        match (self.records_lost, self.records_recovered) {
            (Some(lost), 0) => write!(f, "\n    {} lost", Count(lost, "record"))?,
            (Some(lost), recovered) => write!(
                f,
                "\n    {} lost, {recovered} of the same commits recovered",
                Count(lost, "record")
            )?,
            (None, 0) => write!(f, "\n    the number of lost records is unknown")?,
            (None, recovered) => write!(
                f,
                "\n    {} recovered there, perhaps not all",
                Count(recovered, "record")
            )?,
        }
        if let Some(live) = self.live_records_lost {
            write!(f, "\n    {} lost, by the checkpoint", Count(live, "live record"))?;
        }
        if !self.tables.is_empty() {
            write!(f, "\n    tables: {}", self.tables.join(", "))?;
        }
        let count = self.keys.len() as u64 + self.keys_left_off;
        list(f, "    keys", &self.keys, count)
    }
}

/// A number with its noun, for texts such as `1 record` and `2 records`.
struct Count(u64, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{ending}", self.0, self.1)
    }
}

/// Writes a line with a title and at most `SHOWN` keys, unless there are no keys.
fn list(f: &mut fmt::Formatter<'_>, title: &str, keys: &[KeyName], count: u64) -> fmt::Result {
    const SHOWN: usize = 20;
    if keys.is_empty() {
        return Ok(());
    }
    write!(f, "\n{title}: ")?;
    for (index, key) in keys.iter().take(SHOWN).enumerate() {
        write!(f, "{}{key}", if index == 0 { "" } else { ", " })?;
    }
    let more = count.saturating_sub(keys.len().min(SHOWN) as u64);
    if more > 0 {
        write!(f, " and {more} more")?;
    }
    Ok(())
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (self.source.display(), self.destination.display());
        writeln!(f, "Salvage of {source} into {destination}")?;
        writeln!(f, "database {}", self.database)?;
        writeln!(
            f,
            "saved: {} ({}) in {}, up to commit {}",
            Count(self.records, "record"),
            Count(self.bytes, "byte"),
            Count(self.tables.len() as u64, "table"),
            self.sequence
        )?;
        for table in &self.tables {
            let (records, bytes) = (Count(table.records, "record"), Count(table.bytes, "byte"));
            let named = if table.name_known {
                ""
            } else {
                " (its name was lost; this name was invented)"
            };
            writeln!(f, "    {}: {records}, {bytes}{named}", table.name)?;
        }
        if self.is_complete() {
            writeln!(f, "lost: nothing that was ever acknowledged as durable")?;
        } else {
            writeln!(f, "lost: {}", Count(self.losses.len() as u64, "place"))?;
        }
        for (number, loss) in self.losses.iter().enumerate() {
            writeln!(f, "{:3}. {loss}", number + 1)?;
        }
        if self.stale_keys > 0 {
            write!(
                f,
                "stale: {} keys have an old value or should be absent: the records that replaced or deleted them were lost",
                self.stale_keys
            )?;
            list(f, "    keys", &self.stale, self.stale_keys)?;
            writeln!(f)?;
        }
        if self.torn_bytes > 0 {
            let torn = self.torn_bytes;
            writeln!(
                f,
                "left out: {torn} bytes of a torn tail: commits that were never acknowledged as durable"
            )?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
