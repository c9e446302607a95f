//! What a salvage could save and what it could not, for programs (serde) and for people
//! (`Display`).

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Keys are listed up to this number each, and counted beyond it: a manifest should stay something
/// that one can read.
pub(crate) const KEYS_LISTED_MAX: usize = 1000;

/// What became of a damaged database; see [`salvage`](crate::tools::salvage).
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
    /// The damaged folder.
    pub source: PathBuf,
    /// The new database.
    pub destination: PathBuf,
    /// Id of the damaged database, in hex.
    pub database: String,
    /// The tables that were written, with what is in them.
    pub tables: Vec<SalvagedTable>,
    /// Records written, in all tables.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Segments of the log that were read, and whole frames in them.
    pub segments: u64,
    /// See `segments`.
    pub frames: u64,
    /// The last commit of which anything was read.
    pub sequence: u64,
    /// The last commit that is known to have been durable, if anything says so.
    pub durable_sequence: Option<u64>,
    /// Bytes behind the durable end of the log that were left out: commits that were torn, never
    /// acknowledged as durable.
    pub torn_bytes: u64,
    /// All that was lost, in the order of the log.
    pub losses: Vec<Loss>,
    /// Keys that have an old value, or should not be there: a record that replaced or deleted them
    /// was lost. The checkpoint proves it. At most a thousand are listed.
    pub stale: Vec<KeyName>,
    /// How many such keys there are.
    pub stale_keys: u64,
    /// What else the new database may have wrong.
    pub warnings: Vec<String>,
    /// Damage that cost nothing, and what else was found.
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
    /// Its name in the new database.
    pub name: String,
    /// Its id in the damaged one.
    pub id: u32,
    /// Records written.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Whether its name was found; otherwise it has been given one.
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
    /// The file.
    pub path: PathBuf,
    /// Where the unreadable bytes begin.
    pub from: u64,
    /// Where they end.
    pub to: u64,
    /// What is wrong there.
    pub what: String,
    /// The first and last commit that is damaged or gone, as far as their neighbours tell.
    pub sequences: Option<(u64, u64)>,
    /// Tables of the lost records, where known.
    pub tables: Vec<String>,
    /// Keys of the lost records, where known (as they stand there: the damage may be in the key
    /// itself).
    pub keys: Vec<KeyName>,
    /// Records that are lost for certain; `None`: nobody can say how many.
    pub records_lost: Option<u64>,
    /// Of these, records that were live at the last checkpoint, if it can be read.
    pub live_records_lost: Option<u64>,
    /// Records of the damaged commits that could be read all the same, and were.
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
    /// The key.
    pub key: Vec<u8>,
}

impl Manifest {
    /// Whether all that was ever durable has been copied.
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
            (Some(lost), 0) => write!(f, "\n    {lost} records lost")?,
            (Some(lost), recovered) => write!(
                f,
                "\n    {lost} records lost, {recovered} of the same commits recovered"
            )?,
            (None, 0) => write!(f, "\n    nobody can say how many records were there")?,
            (None, recovered) => write!(f, "\n    {recovered} records recovered there, perhaps not all")?,
        }
        if let Some(live) = self.live_records_lost {
            write!(f, "\n    {live} live records lost, by the checkpoint")?;
        }
        if !self.tables.is_empty() {
            write!(f, "\n    tables: {}", self.tables.join(", "))?;
        }
        list(f, "    keys", &self.keys, self.keys.len() as u64)
    }
}

/// Some keys on a line of their own.
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
        let (records, bytes, tables) = (self.records, self.bytes, self.tables.len());
        writeln!(
            f,
            "saved: {records} records ({bytes} bytes) in {tables} tables, up to commit {}",
            self.sequence
        )?;
        for table in &self.tables {
            let (name, records, bytes) = (&table.name, table.records, table.bytes);
            let named = if table.name_known {
                ""
            } else {
                " (its name was lost; this one was given to it)"
            };
            writeln!(f, "    {name}: {records} records, {bytes} bytes{named}")?;
        }
        if self.is_complete() {
            writeln!(f, "lost: nothing that was ever acknowledged as durable")?;
        } else {
            let places = if self.losses.len() == 1 { "place" } else { "places" };
            writeln!(f, "lost: {} {places}", self.losses.len())?;
        }
        for (number, loss) in self.losses.iter().enumerate() {
            writeln!(f, "{:3}. {loss}", number + 1)?;
        }
        if self.stale_keys > 0 {
            write!(
                f,
                "stale: {} keys have an old value or should be gone: what replaced or deleted them was lost",
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
