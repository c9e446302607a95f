//! Runs operations on the engine and records the results that their callers see.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use microdb::{Durability, Error, Table, Value};

use super::checker::{Key, Op, Seen};

/// Number of keys per table.
pub(crate) const KEYS: u8 = 5;

/// Source of times and values for all threads. Both are counters.
#[derive(Default)]
pub(crate) struct Clock {
    time: AtomicU64,
    values: AtomicU64,
}

impl Clock {
    pub(crate) fn now(&self) -> u64 {
        self.time.fetch_add(1, Ordering::SeqCst)
    }

    /// Returns a value that no other write of the history has.
    pub(crate) fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// An open table with its id, which distinguishes it from dropped tables of the same name.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) table: Table,
    pub(crate) id: u32,
}

impl Handle {
    pub(crate) fn key(&self, number: u8) -> Key {
        (self.id, number)
    }
}

pub(crate) fn key_bytes(number: u8) -> [u8; 2] {
    [b'k', number]
}

/// Encodes a value. Some encodings are so long that the engine does not copy them for a read.
pub(crate) fn encode(value: u64) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    bytes.resize(8 + (value * 37 % 240) as usize, value as u8);
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> u64 {
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(bytes, encode(value), "a value is whole");
    value
}

pub(crate) fn seen(value: Option<&Value>) -> Seen {
    value.map_or(Seen::Absent, |value| Seen::Value(decode(value)))
}

pub(crate) fn durability(durable: bool) -> Durability {
    if durable {
        Durability::Sync
    } else {
        Durability::Buffered
    }
}

/// Returns the state of every key of a table, as read by an iterator.
pub(crate) fn all(
    handle: &Handle,
    records: impl Iterator<Item = microdb::Result<(Value, Value)>>,
) -> Vec<(Key, Seen)> {
    let mut found = BTreeMap::new();
    for record in records {
        let (key, value) = record.unwrap();
        let before = found.insert(key[1], Seen::Value(decode(&value)));
        assert!(before.is_none(), "an iterator gives each key once");
    }
    let seen = |number| found.get(&number).copied().unwrap_or(Seen::Absent);
    (0..KEYS)
        .map(|number| (handle.key(number), seen(number)))
        .collect()
}

/// The recorded operations of one thread.
pub(crate) struct Recorder<'a> {
    pub(crate) thread: usize,
    pub(crate) clock: &'a Clock,
    pub(crate) ops: Vec<Op>,
}

/// Reads and writes of one operation.
#[derive(Clone, Default)]
pub(crate) struct Effects {
    pub(crate) reads: Vec<(Key, Seen)>,
    /// `true` for a point read, as in [`Op`].
    pub(crate) is_point_read: bool,
    pub(crate) writes: BTreeMap<Key, Option<u64>>,
}

impl Effects {
    pub(crate) fn read(key: Key, seen: Seen) -> Self {
        Self {
            reads: vec![(key, seen)],
            ..Self::default()
        }
    }

    pub(crate) fn point_read(key: Key, seen: Seen) -> Self {
        Self {
            is_point_read: true,
            ..Self::read(key, seen)
        }
    }

    pub(crate) fn write(key: Key, value: Option<u64>) -> Self {
        Self {
            writes: BTreeMap::from([(key, value)]),
            ..Self::default()
        }
    }

    fn without_reads(self) -> Self {
        Self {
            writes: self.writes,
            ..Self::default()
        }
    }
}

impl Recorder<'_> {
    /// Runs an operation and records its effects. An operation on a dropped table is refused and
    /// has no effect, so it is not recorded.
    pub(crate) fn record(&mut self, name: &str, run: impl FnOnce() -> microdb::Result<Effects>) {
        let begin = self.clock.now();
        let result = run();
        let end = self.clock.now();
        match result {
            Ok(effects) => self.push(name, (begin, end), effects, true),
            Err(Error::TableDropped { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// Runs a write and records it. A refused write is recorded as well, because it must have no
    /// effect.
    pub(crate) fn write(
        &mut self,
        name: &str,
        effects: Effects,
        run: impl FnOnce() -> microdb::Result<bool>,
    ) {
        let begin = self.clock.now();
        let result = run();
        let end = self.clock.now();
        match result {
            Ok(true) => self.push(name, (begin, end), effects, true),
            // The swap was refused, because its key had changed since the caller read it. So that
            // read is not recorded.
            Ok(false) => {
                self.push(name, (begin, end), effects.without_reads(), false);
            }
            Err(Error::TableDropped { .. }) => {
                let name = format!("refused {name}");
                self.push(&name, (begin, end), effects.without_reads(), false);
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }

    pub(crate) fn push(&mut self, name: &str, (begin, end): (u64, u64), effects: Effects, committed: bool) {
        self.ops.push(Op {
            name: format!("{name} of thread {}", self.thread),
            begin,
            end,
            reads: effects.reads,
            is_point_read: effects.is_point_read,
            writes: effects.writes.into_iter().collect(),
            committed,
        });
    }
}
