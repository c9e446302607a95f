//! SQLite, bundled: a B-tree with a write-ahead log.
//!
//! Settings:
//! - `synchronous=FULL` for durable commits, else `OFF`
//! - one connection per session, with prepared statements
//! - a page cache of `CACHE_BYTES` per connection, and a memory map of the file, at most
//!   as large as this build of SQLite permits
//! - `WITHOUT ROWID`, so that the key of a record is also its key in the B-tree

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::{Access, CACHE_BYTES, Engine, Records, Session, Setup, plus_one};
use crate::Outcome;

const PUT: &str = "INSERT OR REPLACE INTO records (key, value) VALUES (?1, ?2)";
const GET: &str = "SELECT value FROM records WHERE key = ?1";

/// Maximum wait of a writer for another writer, in milliseconds: longer than any workload takes, so
/// that no write fails.
const BUSY_TIMEOUT_MS: u64 = 600_000;

pub(super) struct Sqlite {
    path: PathBuf,
    durable: bool,
    /// A connection that keeps the write-ahead log open between sessions. Syncs and compaction run
    /// on this connection.
    control: std::sync::Mutex<Connection>,
}

impl Sqlite {
    pub(super) fn open(folder: &Path, setup: Setup) -> Outcome<Self> {
        let path = folder.join("data.sqlite");
        let control = connect(&path, setup.durable)?;
        control.execute_batch(
            "CREATE TABLE IF NOT EXISTS records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        )?;
        Ok(Self {
            path,
            durable: setup.durable,
            control: std::sync::Mutex::new(control),
        })
    }

    fn run(&self, statements: &str) -> Outcome<()> {
        let control = self
            .control
            .lock()
            .map_err(|_| "another thread panicked with the connection")?;
        Ok(control.execute_batch(statements)?)
    }
}

fn connect(path: &Path, durable: bool) -> Outcome<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", if durable { "FULL" } else { "OFF" })?;
    connection.pragma_update(None, "cache_size", -((CACHE_BYTES >> 10) as i64))?;
    connection.pragma_update(None, "mmap_size", 8_i64 << 30)?;
    Ok(connection)
}

impl Engine for Sqlite {
    fn session(&self, access: Access) -> Outcome<Box<dyn Session + '_>> {
        let connection = connect(&self.path, self.durable)?;
        if access == Access::Read {
            connection.execute_batch("BEGIN")?;
        }
        Ok(Box::new(SqliteSession { connection }))
    }

    fn sync(&self) -> Outcome<()> {
        // With `synchronous=FULL`, a checkpoint flushes the log, copies pages from the log to the
        // database file, and then flushes the database file.
        self.run("PRAGMA synchronous=FULL; PRAGMA wal_checkpoint(TRUNCATE)")
    }

    fn compact(&mut self) -> Outcome<()> {
        self.run("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
    }
}

struct SqliteSession {
    connection: Connection,
}

impl Session for SqliteSession {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        self.connection.prepare_cached(PUT)?.execute((key, value))?;
        Ok(())
    }

    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut put = transaction.prepare_cached(PUT)?;
            for (key, value) in records.iter() {
                put.execute((key, value))?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn add_one(&mut self, key: &[u8]) -> Outcome<bool> {
        // A deferred transaction would fail if another writer committed between its read and its
        // write. An immediate transaction locks out other writers before its read.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = transaction
            .prepare_cached(GET)?
            .query_row([key], |row| Ok(row.get_ref(0)?.as_blob()?.to_vec()))
            .optional()?;
        let next = plus_one(value.as_deref())?;
        transaction.prepare_cached(PUT)?.execute((key, next.as_slice()))?;
        transaction.commit()?;
        Ok(true)
    }

    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let mut get = self.connection.prepare_cached(GET)?;
        let found = get.query_row([key], |row| {
            visit(row.get_ref(0)?.as_blob()?);
            Ok(())
        });
        Ok(found.optional()?.is_some())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        let mut all = self.connection.prepare_cached("SELECT key, value FROM records")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            visit(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
        }
        Ok(())
    }
}
