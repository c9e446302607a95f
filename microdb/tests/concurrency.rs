//! Writers, readers, snapshots, transactions, checkpoints, compactions and digests run at once. All
//! their observations must fit one order of all commits.
//!
//! - Every key has one writer, which numbers its values. The writer stores in [`Marks`] the last
//!   number begun and the last number acknowledged. From them a reader knows, without a lock, the
//!   permitted range of the value. A value must also not be older than the value that the reader
//!   saw before.
//! - Transactions move money between accounts. No snapshot may see more or less money in total.
//! - Shared counters are incremented by compare-and-swap and by transactions. Each success must
//!   count once.
//!
//! `MICRODB_THREADS_WRITES` sets the number of writes per writer.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use microdb::{Db, Durability, Options, Snapshot, Table};

const WRITERS: u64 = 3;
const KEYS: u64 = 48;
const ACCOUNTS: u64 = 8;
const MONEY: u64 = 1000;

fn writes() -> u64 {
    let number = std::env::var("MICRODB_THREADS_WRITES").ok();
    number.map_or(6000, |number| number.parse().unwrap())
}

fn options() -> Options {
    let options = Options::new()
        .segment_bytes_first(16 << 10)
        .segment_bytes_max(64 << 10);
    options
        .durability(Durability::Buffered)
        .checkpoint_log_bytes(256 << 10)
        .buffer_bytes(8 << 10)
}

/// Returns `true` if the key is absent after its write number `number`. Every fifth write deletes
/// the key. Number 0 stands for the time before the first write.
fn is_absent(number: u64) -> bool {
    number.is_multiple_of(5)
}

fn key(number: u64) -> String {
    format!("key {number}")
}

fn account(number: u64) -> String {
    format!("account {number}")
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Returns the bytes of the value with this number. The length varies, and each byte depends on the
/// number.
fn value(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(8 + (number % 300) as usize, number as u8);
    bytes
}

/// For each key: the number of the last write begun, and the number of the last write acknowledged.
struct Marks(Vec<(AtomicU64, AtomicU64)>);

impl Marks {
    fn new() -> Self {
        Self((0..KEYS).map(|_| Default::default()).collect())
    }

    fn begin(&self, key: u64, number: u64) {
        self.0[key as usize].0.store(number, Ordering::SeqCst);
    }

    fn end(&self, key: u64, number: u64) {
        self.0[key as usize].1.store(number, Ordering::SeqCst);
    }

    /// Reads a key and checks the value. The value must not be older than `seen` or the last write
    /// acknowledged before the read. The value must not be newer than the last write begun by the
    /// end of the read. Returns the lower bound for the next read.
    fn check(&self, key: u64, seen: u64, read: impl FnOnce() -> Option<Vec<u8>>) -> u64 {
        let oldest = self.0[key as usize].1.load(Ordering::SeqCst).max(seen);
        let found = read();
        let newest = self.0[key as usize].0.load(Ordering::SeqCst);
        match found {
            Some(bytes) => {
                let found = number(&bytes);
                assert_eq!(bytes, value(found), "a value is whole");
                assert!(
                    (oldest..=newest).contains(&found) && !is_absent(found),
                    "key {key}: {oldest} <= {found} <= {newest}"
                );
                found
            }
            None => {
                let absent = (oldest..=newest).find(|number| is_absent(*number));
                absent.unwrap_or_else(|| panic!("key {key} is absent, and was not from {oldest} to {newest}"))
            }
        }
    }
}

fn write(db: &Db, table: &Table, marks: &Marks, writer: u64) {
    for step in 0..writes() {
        let key_number = (step * 7 % (KEYS / WRITERS)) * WRITERS + writer;
        let next = marks.0[key_number as usize].0.load(Ordering::Relaxed) + 1;
        let durability = if step % 97 == 0 {
            Durability::Sync
        } else {
            Durability::Buffered
        };
        marks.begin(key_number, next);
        let key = key(key_number);
        if is_absent(next) {
            table.delete_with(&key, durability).unwrap();
        } else if step % 3 == 0 {
            let mut batch = db.batch();
            batch.put(table, &key, "never to be seen");
            batch.put(table, &key, value(next));
            batch.commit_with(durability).unwrap();
        } else {
            table.put_with(&key, value(next), durability).unwrap();
        }
        marks.end(key_number, next);
    }
}

fn read(table: &Table, marks: &Marks, done: &AtomicBool) {
    let mut seen = vec![0; KEYS as usize];
    while !done.load(Ordering::Acquire) {
        for number in 0..KEYS {
            let read = || match number % 2 {
                0 => table.get(key(number)).unwrap().map(|value| value.to_vec()),
                _ => table
                    .multi_get(&[key(number)])
                    .unwrap()
                    .remove(0)
                    .map(|value| value.to_vec()),
            };
            seen[number as usize] = marks.check(number, seen[number as usize], read);
        }
    }
}

fn watch_snapshots(db: &Db, table: &Table, accounts: &Table, marks: &Marks, done: &AtomicBool) {
    let mut seen = vec![0; KEYS as usize];
    let mut older: Option<(Snapshot, u64)> = None;
    while !done.load(Ordering::Acquire) {
        let before: Vec<u64> = marks.0.iter().map(|mark| mark.1.load(Ordering::SeqCst)).collect();
        let snapshot = db.snapshot();
        for number in 0..KEYS {
            let read = || {
                snapshot
                    .get(table, key(number))
                    .unwrap()
                    .map(|value| value.to_vec())
            };
            let from = seen[number as usize].max(before[number as usize]);
            // The upper bound is taken after the snapshot and before the read. The snapshot cannot
            // contain a write that begins later.
            let newest = marks.0[number as usize].0.load(Ordering::SeqCst);
            let found = read();
            let found = match found {
                Some(bytes) => self::number(&bytes),
                None => (from..=newest)
                    .find(|number| is_absent(*number))
                    .expect("absent at some time"),
            };
            assert!(
                (from..=newest).contains(&found),
                "key {number}: {from} <= {found} <= {newest}"
            );
            seen[number as usize] = found;
        }
        assert_eq!(money(&snapshot, accounts), MONEY * ACCOUNTS);
        let counted = snapshot.iter(table).unwrap().map(Result::unwrap).count() as u64;
        assert_eq!(counted, snapshot.len(table).unwrap());
        // The previous snapshot must still show as many keys and as much money as when it was
        // taken.
        if let Some((old, count)) = older.replace((snapshot, counted)) {
            assert_eq!(old.iter(table).unwrap().map(Result::unwrap).count() as u64, count);
            assert_eq!(money(&old, accounts), MONEY * ACCOUNTS);
        }
    }
}

fn money(snapshot: &Snapshot, accounts: &Table) -> u64 {
    let balance = |account_number| number(&snapshot.get(accounts, account(account_number)).unwrap().unwrap());
    (0..ACCOUNTS).map(balance).sum()
}

/// Moves money between accounts and increments the shared counters. Two threads run this function
/// at once.
fn transfer(db: &Db, accounts: &Table, thread: u64) {
    for step in 0..writes() / 10 {
        let (from, to) = (
            account(step % ACCOUNTS),
            account((step * 3 + thread + 1) % ACCOUNTS),
        );
        db.transaction(|tx| {
            let balance = number(&tx.get(accounts, &from)?.unwrap());
            let amount = balance.min(step % 10);
            tx.put(accounts, &from, (balance - amount).to_le_bytes())?;
            let balance = number(&tx.get(accounts, &to)?.unwrap());
            tx.put(accounts, &to, (balance + amount).to_le_bytes())?;
            let count = tx
                .get(accounts, "transactions")?
                .map_or(0, |count| number(&count));
            tx.put(accounts, "transactions", (count + 1).to_le_bytes())
        })
        .unwrap();
        loop {
            let count = accounts.get("swaps").unwrap().map(|value| value.to_vec());
            let next = count.as_deref().map_or(0, number) + 1;
            if accounts
                .compare_and_swap("swaps", count, Some(next.to_le_bytes()))
                .unwrap()
            {
                break;
            }
        }
    }
}

fn keep_house(db: &Db, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        db.checkpoint().unwrap();
        let digest = db.digest().unwrap();
        assert!(digest.sequence <= db.sequence());
        db.compact().unwrap();
        assert!(db.verify().unwrap().is_sound());
        let mut sequence = None;
        if let Ok(changes) = db.changes_since(digest.sequence) {
            for change in changes {
                let change = change.unwrap();
                assert!(sequence.is_none_or(|last| change.sequence == last + 1));
                sequence = Some(change.sequence);
            }
        }
    }
}

#[test]
fn everything_at_once_fits_one_order_of_all_commits() {
    let folder = tempfile::tempdir().unwrap();
    let db = options().transaction_tries(u32::MAX).open(folder.path()).unwrap();
    let (table, accounts) = (db.table("t").unwrap(), db.table("accounts").unwrap());
    for number in 0..ACCOUNTS {
        accounts.put(account(number), MONEY.to_le_bytes()).unwrap();
    }
    let (marks, done) = (Marks::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (db, table, accounts, marks, done) = (&db, &table, &accounts, &marks, &done);
        let work: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write(db, table, marks, writer)))
            .chain((0..2).map(|thread| scope.spawn(move || transfer(db, accounts, thread))))
            .collect();
        scope.spawn(|| read(table, marks, done));
        scope.spawn(|| watch_snapshots(db, table, accounts, marks, done));
        scope.spawn(|| keep_house(db, done));
        // The readers and the background work run until the writers have ended, also if a writer
        // fails.
        let results: Vec<_> = work
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Release);
        results.into_iter().for_each(|result| result.unwrap());
    });
    let check = |table: &Table, accounts: &Table| {
        for key_number in 0..KEYS {
            let last = marks.0[key_number as usize].1.load(Ordering::SeqCst);
            let expected = Some(value(last)).filter(|_| !is_absent(last));
            assert_eq!(
                table.get(key(key_number)).unwrap().as_deref(),
                expected.as_deref(),
                "key {key_number}"
            );
        }
        for counter in ["transactions", "swaps"] {
            assert_eq!(
                number(&accounts.get(counter).unwrap().unwrap()),
                writes() / 10 * 2
            );
        }
    };
    check(&table, &accounts);
    drop((table, accounts));
    db.close().unwrap();
    let db = options().open(folder.path()).unwrap();
    check(&db.table("t").unwrap(), &db.table("accounts").unwrap());
}
