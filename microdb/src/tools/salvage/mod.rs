//! Salvage: copies all readable live records of a damaged database to a new one, and lists the
//! losses.
//!
//! - The log is read in order. Each frame header and each record is verified by its own checksum.
//!   Reading continues behind damage with the next valid frame or record.
//! - The records that were read are replayed as in an open, into a directory in memory. All live
//!   records are copied from there.
//! - The newest readable checkpoint shows which records were live at its position in the log. A
//!   comparison with the replayed records shows lost records, and values that are outdated because
//!   their replacement or deletion was lost.
//! - The source is only read and not locked, and no byte of it changes. Other programs should not
//!   write to it during the salvage.
//!
//! Deliberately absent: repair in place (see `heal`).

mod manifest;
mod replay;
mod source;
mod walk;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::batch::Batch;
use crate::directory::Location;
use crate::engine::catalog::{CATALOG_TABLE, TableCore};
use crate::engine::checkpoint::Loaded;
use crate::engine::identity::{check_path, hold};
use crate::engine::log_order::LogOrder;
use crate::engine::{Closing, Engine, Handle};
use crate::error::{Error, Result};
use crate::format::key_codec::KeyCodec;
use crate::format::names::Paths;
use crate::format::super_block::{Frontier, State};
use crate::options::{Durability, Options};
use crate::raw::epoch::pin;
use crate::raw::sync::ignore_poison;
use crate::recover::{self, engine_of};
use crate::sequence::Sequence;
use crate::table::Table;
use crate::tools::backup::check_apart;
use manifest::KEYS_LISTED_MAX;
pub use manifest::{KeyName, Loss, Manifest, SalvagedTable};
use replay::Replay;
use source::{Listed, Source, chain, note_missing};

/// Name of the manifest file in the folder of the new database.
pub(crate) const MANIFEST_FILE: &str = "SALVAGE.txt";

/// Maximum size of the records in one batch of the copy, in bytes. A larger record is copied in a
/// batch of its own.
const COPY_BATCH_BYTES: usize = 1 << 20;

/// Copies all readable live records of the database in the folder `source`, even if it is badly
/// damaged, to a new database. The folder `destination` of the new database must be missing or
/// empty. Returns the manifest of the losses, which is also written to `SALVAGE.txt` in
/// `destination`. Never changes the source.
///
/// ```no_run
/// let manifest = microdb::salvage("data/shop", "data/shop-salvaged")?;
/// println!("{manifest}");
/// # Ok::<(), microdb::Error>(())
/// ```
///
/// # Errors
/// - [`Error::NotADatabase`] if the source folder contains no valid part of a database.
/// - [`Error::Version`] instead, if SUPER in that folder states a newer format.
/// - [`Error::Invalid`] if a path is empty, or if the destination is not empty, or is inside or
///   around the source.
/// - [`Error::Io`] if the source folder cannot be opened, and errors of writing to the destination.
///
/// Damage is not an error but part of the manifest.
pub fn salvage(source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Result<Manifest> {
    Options::new().salvage(source, destination)
}

impl Options {
    /// Like [`salvage`](crate::salvage), with these options for the new database. Both databases
    /// use the storage of the options. The new database is durable on return, independent of the
    /// durability in the options.
    ///
    /// # Errors
    /// The errors of [`salvage`](crate::salvage), and [`Error::Invalid`] for an invalid option.
    pub fn salvage(self, source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Result<Manifest> {
        let (from, to) = (source.as_ref(), destination.as_ref());
        check_path(to)?;
        let source = hold(from, &self.storage)?;
        let taken = self.storage.list(to).is_ok_and(|names| !names.is_empty());
        check_apart(self.storage.as_ref(), from, to, "salvage folder")?;
        if taken {
            let reason = format!("{} is not empty", to.display());
            return Err(Error::Invalid {
                what: "salvage folder",
                reason,
            });
        }
        let mut manifest = Manifest {
            source: from.to_path_buf(),
            destination: to.to_path_buf(),
            ..Manifest::default()
        };
        let salvaged = Salvage::read(from, &self.clone().storage(source), &mut manifest)?;
        let options = self
            .durability(Durability::Buffered)
            .read_only(false)
            .create(true);
        options.check()?;
        let db = Handle::new(recover::open(to, options)?);
        salvaged.copy_to(&db, &mut manifest)?;
        db.sync_log()?;
        let path = to.join(MANIFEST_FILE);
        let storage = &db.options.storage;
        let file = storage.open(&path, crate::storage::OpenMode::CreateNew);
        let file = file.map_err(Error::io("cannot create", &path))?;
        let written = file
            .write_at(manifest.to_string().as_bytes(), 0)
            .and_then(|()| file.sync_data());
        written.map_err(Error::io("cannot write", &path))?;
        db.close(Closing::Usual)?;
        Ok(manifest)
    }
}

/// Content of a damaged database: an engine with the readable segments. Its directories exist in
/// memory only.
struct Salvage {
    engine: Engine,
    /// Locations of records that were dead in the checkpoint but live when replay reached its
    /// position, by table. The records that replaced or deleted them were lost.
    stale: HashMap<u32, HashSet<Location>>,
    /// Names of tables by table id. They come from the checkpoint, and from the catalog where it is
    /// readable.
    names: HashMap<u32, String>,
}

impl Salvage {
    fn read(from: &Path, options: &Options, manifest: &mut Manifest) -> Result<Self> {
        let paths = Paths::new(from);
        let mut source = Source::find(&paths, options, manifest)?;
        manifest.database = source.database.to_string();
        manifest.durable_sequence = source.frontier.map(|frontier| Sequence(frontier.sequence));
        let state = source.state.clone().unwrap_or_else(|| State {
            database: source.database,
            hash_seed: [0; 16],
            generation: 0,
            created_ms: 0,
            checkpoint: 0,
            frontier: Frontier::default(),
            next_segment: 0,
            live: Vec::new(),
        });
        let options = options.clone().read_only(true).background(false);
        let engine = engine_of(paths, options, None, &state, None);
        let checkpoint = newest_checkpoint(&engine, &source, manifest);
        let known = checkpoint.as_ref().map(|loaded| Listed {
            live: loaded.block.usages.iter().map(|(id, _)| *id).collect(),
            next_segment: loaded.block.next_segment,
        });
        let listed = source.listed(known);
        let segments = source.segments(listed.as_ref(), manifest);
        note_missing(&engine, &source, &segments, manifest);
        let names = checkpoint.iter().flat_map(|loaded| &loaded.block.tables);
        let mut salvage = Self {
            names: names.map(|table| (table.id, table.name.clone())).collect(),
            engine,
            stale: HashMap::new(),
        };
        Replay::new(&mut salvage, source.frontier, listed, checkpoint, manifest).run(&segments)?;
        Ok(salvage)
    }
}

/// Returns the newest readable checkpoint. Notes newer, unreadable checkpoints in the manifest.
fn newest_checkpoint(engine: &Engine, source: &Source, manifest: &mut Manifest) -> Option<Loaded> {
    for generation in &source.checkpoints {
        match engine.load_checkpoint(*generation) {
            Ok(loaded) => return Some(loaded),
            Err(error) => manifest
                .notes
                .push(format!("a checkpoint cannot be used: {}", chain(&error))),
        }
    }
    None
}

/// Returns the locations of the live records of a table.
fn live(table: &TableCore) -> HashSet<Location> {
    let guard = pin();
    // The directory is in memory and not in a checkpoint, so no part of it can be damaged.
    table
        .directory
        .load(&guard)
        .view(&guard)
        .iter()
        .filter_map(std::result::Result::ok)
        .collect()
}

impl Salvage {
    /// Returns the name of a table, or `recovered-ID` if no name was found. The catalog is called
    /// `(names of tables)`.
    fn name(&self, id: u32) -> String {
        if id == CATALOG_TABLE {
            return "(names of tables)".to_owned();
        }
        self.names
            .get(&id)
            .cloned()
            .unwrap_or_else(|| format!("recovered-{id}"))
    }
}

impl Salvage {
    /// Reads the names of tables from the live records of the catalog. Returns the ids of these
    /// tables.
    fn read_names(&mut self) -> HashSet<u32> {
        let mut known = HashSet::new();
        let Some(catalog) = self.engine.table_by_id(CATALOG_TABLE) else {
            return known;
        };
        let guard = pin();
        for location in live(&catalog) {
            let segment = self.engine.segments.load(&guard).get(location);
            let Some(Ok(record)) = segment.map(|segment| segment.verified(location.offset())) else {
                continue;
            };
            let id = record.value().first_chunk().map(|id| u32::from_le_bytes(*id));
            if let (Some(id), Ok(name)) = (id, std::str::from_utf8(record.key())) {
                self.names.insert(id, name.to_owned());
                known.insert(id);
                let mut catalog = ignore_poison(self.engine.catalog.write());
                // Replay creates a table at its first record, so a table without records is created
                // here.
                let table = catalog.table_or_new(id);
                if let Some(codec) = KeyCodec::decode(record.value()) {
                    let _ = table.key_codec.set(codec);
                }
            }
        }
        known
    }

    /// Copies all live records to the new database.
    fn copy_to(mut self, db: &Arc<Handle>, manifest: &mut Manifest) -> Result<()> {
        let known = self.read_names();
        let mut taken: HashSet<String> = HashSet::new();
        // Tables with a name in the catalog come first, so that no other table takes their names.
        let mut tables = self.engine.tables();
        tables.sort_by_key(|table| (!known.contains(&table.id), table.id));
        for table in tables.iter().filter(|table| table.id != CATALOG_TABLE) {
            let locations: Vec<Location> = live(table).into_iter().collect();
            if locations.is_empty() && !known.contains(&table.id) {
                // A table without records and without a name in the catalog was probably dropped.
                continue;
            }
            let mut name = self.name(table.id);
            // Another table may have the fallback name too, and two tables must not be merged.
            let mut number = 1;
            while !taken.insert(name.clone()) {
                name = match number {
                    1 => format!("recovered-{}", table.id),
                    _ => format!("recovered-{}-{number}", table.id),
                };
                number += 1;
            }
            let mut salvaged = SalvagedTable {
                name_known: self.names.get(&table.id) == Some(&name),
                name,
                id: table.id,
                records: 0,
                bytes: 0,
            };
            self.copy_table(db, table, LogOrder::new(locations), &mut salvaged, manifest)?;
            manifest.records += salvaged.records;
            manifest.bytes += salvaged.bytes;
            manifest.tables.push(salvaged);
        }
        Ok(())
    }

    fn copy_table(
        &self,
        db: &Arc<Handle>,
        source: &TableCore,
        mut order: LogOrder,
        salvaged: &mut SalvagedTable,
        manifest: &mut Manifest,
    ) -> Result<()> {
        let target = Table {
            engine: db.clone(),
            core: db.create_table(&salvaged.name, source.key_codec.get())?,
        };
        let guard = pin();
        let segments = self.engine.segments.load(&guard);
        let stale = self.stale.get(&salvaged.id);
        let mut batch = Batch::new(db);
        while let Some(location) = order.next(segments) {
            let segment = segments.find(location, self.engine.paths.root())?;
            // The record was valid during replay. If the disk returns other bytes now, the record
            // is listed as one more loss.
            let record = match segment.verified(location.offset()) {
                Ok(record) => record,
                Err(error) => {
                    manifest.losses.push(Loss {
                        path: segment.path.clone(),
                        from: location.offset().into(),
                        to: location.offset().into(),
                        what: chain(&error),
                        tables: vec![salvaged.name.clone()],
                        records_lost: Some(1),
                        ..Loss::default()
                    });
                    continue;
                }
            };
            if stale.is_some_and(|stale| stale.contains(&location)) {
                manifest.stale_keys += 1;
                if manifest.stale.len() < KEYS_LISTED_MAX {
                    let (table, key) = (salvaged.name.clone(), record.key().to_vec());
                    manifest.stale.push(KeyName { table, key });
                }
            }
            salvaged.records += 1;
            salvaged.bytes += (record.key().len() + record.value().len()) as u64;
            let bytes = record.bytes.len();
            if batch.bytes() + bytes > COPY_BATCH_BYTES && !batch.is_empty() {
                std::mem::replace(&mut batch, Batch::new(db)).commit()?;
            }
            batch.put(&target, record.key(), record.value());
        }
        batch.commit().map(|_| ())
    }
}
