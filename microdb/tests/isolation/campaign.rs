//! Random work by many threads on one database. The change feed gives the order of their commits.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

use microdb::{Changes, Db, Durability, Error, Operation, Options, Transaction};

use super::checker::{History, Op, Seen, Summary, check};
use super::recorder::{
    Clock, Effects, Handle, KEYS, Recorder, all, decode, durability, encode, key_bytes, seen,
};
use crate::support::random::Random;

/// Number of tables. The first table is never dropped. The other tables are dropped and created
/// again.
const TABLES: usize = 3;

/// Number of threads that work on keys.
const WORKERS: usize = 6;

/// The amount of work in a campaign.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: u64,
    /// Number of operations per worker and round.
    pub(crate) operations: u64,
}

struct Shared<'a> {
    db: &'a Db,
    tables: &'a [RwLock<Handle>],
    clock: &'a Clock,
    /// Commits of the workers hold a read lock, and a compaction holds the write lock. Before a
    /// compaction, the feed has returned all commits, because the compaction may remove them from
    /// the log. Snapshots, iterators and bodies of transactions need no lock.
    gate: RwLock<()>,
}

impl Shared<'_> {
    fn table(&self, random: &mut Random) -> Handle {
        self.tables[random.index(TABLES)].read().unwrap().clone()
    }
}

fn table_name(index: usize) -> String {
    format!("table {index}")
}

fn make(db: &Db, index: usize) -> Handle {
    let name = table_name(index);
    let table = db.table(&name).unwrap();
    // Only one thread creates and drops tables, so the name still belongs to the table opened
    // above.
    let info = db.tables().into_iter().find(|info| info.name == name).unwrap();
    Handle { table, id: info.id }
}

/// Runs the random work of a seed and checks the recorded history.
pub(crate) fn run(seed: u64, size: Size) -> Result<Summary, String> {
    let folder = tempfile::tempdir().unwrap();
    let (clock, mut history, mut commits) = (Clock::default(), History::default(), Vec::new());
    for round in 0..size.rounds {
        let mut random = Random::new(seed << 8 | round);
        let durable = durability(round % 2 == 0);
        let options = Options::new().durability(durable).segment_bytes_first(16 << 10);
        let options = options.segment_bytes_max(64 << 10).background(false);
        let db = options.open(folder.path()).unwrap();
        let mut feed = db.changes_since(db.sequence()).unwrap();
        let tables: Vec<_> = (0..TABLES).map(|index| RwLock::new(make(&db, index))).collect();
        let shared = Shared {
            db: &db,
            tables: &tables,
            clock: &clock,
            gate: RwLock::new(()),
        };
        look_at_all(&shared, &mut history);
        let ops = work(&shared, &mut random, size.operations, &mut feed, &mut commits);
        history.ops.extend(ops);
        look_at_all(&shared, &mut history);
        drop((feed, tables));
        db.close().unwrap();
    }
    let db = Db::open(folder.path()).unwrap();
    let tables: Vec<_> = (0..TABLES).map(|index| RwLock::new(make(&db, index))).collect();
    let shared = Shared {
        db: &db,
        tables: &tables,
        clock: &clock,
        gate: RwLock::new(()),
    };
    look_at_all(&shared, &mut history);
    history.order = match order(&history.ops, &commits) {
        Ok(order) => order,
        Err(fault) => return Err(format!("seed {seed}: {fault}")),
    };
    check(&history).map_err(|faults| format!("seed {seed}: {faults}"))
}

/// Reads each table as a whole. Right after an open, this shows the state found by recovery.
fn look_at_all(shared: &Shared<'_>, history: &mut History) {
    let mut recorder = recorder(shared, 99);
    for table in shared.tables {
        let handle = table.read().unwrap().clone();
        recorder.record("iterator at rest", || {
            let reads = all(&handle, handle.table.iter());
            Ok(Effects {
                reads,
                ..Effects::default()
            })
        });
    }
    history.ops.append(&mut recorder.ops);
}

fn recorder<'a>(shared: &Shared<'a>, thread: usize) -> Recorder<'a> {
    Recorder {
        thread,
        clock: shared.clock,
        ops: Vec::new(),
    }
}

fn work(
    shared: &Shared<'_>,
    random: &mut Random,
    operations: u64,
    feed: &mut Changes,
    commits: &mut Vec<Vec<Operation>>,
) -> Vec<Op> {
    let done = AtomicBool::new(false);
    let mut ops = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|thread| {
                let mut random = random.fork();
                scope.spawn(move || {
                    let mut recorder = recorder(shared, thread);
                    for _ in 0..operations {
                        step(shared, &mut recorder, &mut random);
                    }
                    recorder.ops
                })
            })
            .collect();
        let (mut schema_random, done) = (random.fork(), &done);
        let schema = scope.spawn(move || {
            let mut recorder = recorder(shared, WORKERS);
            while !done.load(Ordering::Acquire) {
                change_tables(shared, &mut recorder, &mut schema_random, (feed, commits));
            }
            follow(feed, commits);
            recorder.ops
        });
        let results: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Release);
        let schema = schema.join();
        for result in results.into_iter().chain([schema]) {
            ops.extend(result.unwrap());
        }
    });
    ops
}

/// Reads the new commits from the feed and appends them to `commits`.
fn follow(feed: &mut Changes, commits: &mut Vec<Vec<Operation>>) {
    feed.extend().unwrap();
    commits.extend(feed.by_ref().map(|change| change.unwrap().operations));
}

/// Clears a table, drops a table and creates it again, makes a checkpoint, or compacts.
fn change_tables(
    shared: &Shared<'_>,
    recorder: &mut Recorder<'_>,
    random: &mut Random,
    (feed, commits): (&mut Changes, &mut Vec<Vec<Operation>>),
) {
    let clear = |handle: &Handle| Effects {
        writes: (0..KEYS).map(|number| (handle.key(number), None)).collect(),
        ..Effects::default()
    };
    match random.below(10) {
        0..=4 => {
            let handle = shared.table(random);
            recorder.write("clear", clear(&handle), || handle.table.clear().map(|()| true));
        }
        5..=7 => {
            let index = 1 + random.index(TABLES - 1);
            let handle = shared.tables[index].read().unwrap().clone();
            let drop = || shared.db.drop_table(&table_name(index)).map(|()| true);
            recorder.write("drop", clear(&handle), drop);
            let made = make(shared.db, index);
            // Other threads use the new table from now on, while open transactions still use the
            // dropped one.
            *shared.tables[index].write().unwrap() = made;
        }
        8 => shared.db.checkpoint().unwrap(),
        _ => {
            let alone = shared.gate.write().unwrap();
            follow(feed, commits);
            shared.db.compact().unwrap();
            drop(alone);
        }
    }
}

/// Executes one random operation of a worker.
fn step(shared: &Shared<'_>, recorder: &mut Recorder<'_>, random: &mut Random) {
    let handle = shared.table(random);
    let number = random.below(KEYS.into()) as u8;
    let (key, bytes, table) = (handle.key(number), key_bytes(number), &handle.table);
    let how = durability(random.chance(1, 3));
    let kind = random.below(20);
    let _gate = (6..14).contains(&kind).then(|| shared.gate.read().unwrap());
    match kind {
        0 => recorder.record("get", || {
            table
                .get(bytes)
                .map(|value| Effects::point_read(key, seen(value.as_ref())))
        }),
        1 => recorder.record("contains_key", || {
            let seen = |found| if found { Seen::Present } else { Seen::Absent };
            table
                .contains_key(bytes)
                .map(|found| Effects::point_read(key, seen(found)))
        }),
        2 => many(shared, recorder, &handle),
        3 => recorder.record("iterator", || {
            let reads = all(&handle, table.iter());
            Ok(Effects {
                reads,
                ..Effects::default()
            })
        }),
        4 | 5 => snapshot(shared, recorder, random),
        6 | 7 => {
            let value = shared.clock.value();
            let put = || table.put_with(bytes, encode(value), how).map(|()| true);
            recorder.write("put", Effects::write(key, Some(value)), put);
        }
        8 => delete(recorder, &handle, how),
        9..=11 => swap(shared, recorder, &handle, number),
        12 | 13 => batch(shared, recorder, random, how),
        _ => transaction(shared, recorder, random),
    }
}

/// Reads all keys with `multi_get`. Each read is recorded as a separate operation, because the
/// values may belong to different times.
fn many(shared: &Shared<'_>, recorder: &mut Recorder<'_>, handle: &Handle) {
    let begin = shared.clock.now();
    let keys: Vec<_> = (0..KEYS).map(key_bytes).collect();
    let values = handle.table.multi_get(&keys);
    let end = shared.clock.now();
    for (number, value) in (0..KEYS).zip(values.into_iter().flatten()) {
        let effects = Effects::point_read(handle.key(number), seen(value.as_ref()));
        recorder.push("multi_get", (begin, end), effects, true);
    }
}

fn snapshot(shared: &Shared<'_>, recorder: &mut Recorder<'_>, random: &mut Random) {
    let handles: Vec<_> = shared
        .tables
        .iter()
        .map(|table| table.read().unwrap().clone())
        .collect();
    let begin = shared.clock.now();
    let snapshot = shared.db.snapshot();
    let end = shared.clock.now();
    let mut reads = Vec::new();
    for handle in &handles {
        if random.chance(1, 2) {
            let found = all(handle, snapshot.iter(&handle.table).unwrap());
            let count = found.iter().filter(|(_, seen)| *seen != Seen::Absent).count() as u64;
            assert_eq!(snapshot.len(&handle.table).unwrap(), count);
            reads.extend(found);
        } else {
            let get = |number| snapshot.get(&handle.table, key_bytes(number)).unwrap();
            reads.extend((0..KEYS).map(|number| (handle.key(number), seen(get(number).as_ref()))));
        }
    }
    let effects = Effects {
        reads,
        ..Effects::default()
    };
    recorder.push("snapshot", (begin, end), effects, true);
}

/// Deletes the key that only this thread deletes outside of batches and transactions, if there is
/// one. One thread makes all these deletions of a key, so the function `order` can assign them, in
/// the order in which that thread made them, to the commits that delete the key.
fn delete(recorder: &mut Recorder<'_>, handle: &Handle, how: Durability) {
    let number = recorder.thread as u8 % KEYS;
    if recorder.thread >= KEYS.into() {
        return;
    }
    let key = handle.key(number);
    recorder.record("delete", || {
        Ok(match handle.table.delete_with(key_bytes(number), how)? {
            true => Effects {
                reads: vec![(key, Seen::Present)],
                ..Effects::write(key, None)
            },
            false => Effects::read(key, Seen::Absent),
        })
    });
}

fn swap(shared: &Shared<'_>, recorder: &mut Recorder<'_>, handle: &Handle, number: u8) {
    let (key, bytes) = (handle.key(number), key_bytes(number));
    let Ok(expected) = handle.table.get(bytes) else {
        return;
    };
    let value = shared.clock.value();
    let effects = Effects {
        reads: vec![(key, seen(expected.as_ref()))],
        ..Effects::write(key, Some(value))
    };
    recorder.write("swap", effects, || {
        handle
            .table
            .compare_and_swap(bytes, expected, Some(encode(value)))
    });
}

fn batch(shared: &Shared<'_>, recorder: &mut Recorder<'_>, random: &mut Random, how: Durability) {
    let (mut batch, mut effects) = (shared.db.batch(), Effects::default());
    for at in 0..2 + random.below(3) {
        let (handle, number) = (shared.table(random), random.below(KEYS.into()) as u8);
        // The first operation is always a put. The value of the put identifies the batch among the
        // commits.
        if at > 0 && random.chance(1, 4) && !effects.writes.contains_key(&handle.key(number)) {
            batch.delete(&handle.table, key_bytes(number));
            effects.writes.insert(handle.key(number), None);
        } else {
            let value = shared.clock.value();
            batch.put(&handle.table, key_bytes(number), encode(value));
            effects.writes.insert(handle.key(number), Some(value));
        }
    }
    recorder.write("batch", effects, || batch.commit_with(how).map(|_| true));
}

/// Reads some keys and writes some keys in a transaction. Each run of the body is recorded, because
/// even a repeated run must not see a state that never existed.
fn transaction(shared: &Shared<'_>, recorder: &mut Recorder<'_>, random: &mut Random) {
    let picks = |random: &mut Random, count| -> Vec<(Handle, u8)> {
        let pick = |random: &mut Random| (shared.table(random), random.below(KEYS.into()) as u8);
        (0..count).map(|_| pick(random)).collect()
    };
    let count = 1 + random.below(4);
    let reads = picks(random, count);
    let count = random.below(3);
    let writes = picks(random, count);
    let (pause, is_begun) = (random.chance(1, 8), random.chance(1, 3));
    let mut runs: Vec<(u64, Effects)> = Vec::new();
    let mut gate = None;
    let begin = shared.clock.now();
    let mut body = |tx: &mut Transaction<'_>| {
        runs.push((shared.clock.now(), Effects::default()));
        let effects = &mut runs.last_mut().unwrap().1;
        for (handle, number) in &reads {
            let value = tx.get(&handle.table, key_bytes(*number))?;
            effects.reads.push((handle.key(*number), seen(value.as_ref())));
            if pause {
                std::thread::yield_now();
            }
        }
        for (at, (handle, number)) in writes.iter().enumerate() {
            let key = handle.key(*number);
            if at > 0 && at % 2 == 1 && !effects.writes.contains_key(&key) {
                tx.delete(&handle.table, key_bytes(*number))?;
                effects.writes.insert(key, None);
            } else {
                let value = shared.clock.value();
                tx.put(&handle.table, key_bytes(*number), encode(value))?;
                effects.writes.insert(key, Some(value));
            }
        }
        // The lock is kept for the commit after the body, and for a further run of the body.
        gate.get_or_insert_with(|| shared.gate.read().unwrap());
        Ok(())
    };
    // A transaction of `Db::begin` has one run, and this caller commits it. `Db::transaction`
    // commits by itself, and repeats the body after a conflict.
    let result = if is_begun {
        let mut tx = shared.db.begin();
        body(&mut tx).and_then(|()| tx.commit().map(drop))
    } else {
        shared.db.transaction(body)
    };
    let end = shared.clock.now();
    let committed = result.is_ok();
    if let Err(error) = result {
        let is_conflict = is_begun && matches!(error, Error::Conflict { .. });
        assert!(
            is_conflict || matches!(error, Error::TableDropped { .. }),
            "{error}"
        );
    }
    let last = runs.pop();
    for (at, effects) in runs {
        recorder.push("run of a transaction", (at, end), effects, false);
    }
    if let Some((_, effects)) = last {
        recorder.push("transaction", (begin, end), effects, committed);
    }
}

/// Finds the recorded operation of each commit. The value of a put identifies its operation.
/// Commits without a put are deletions and clears. All deletions of a key, and all clears of a
/// table, are made by one thread, so they are matched in the order of that thread. A deletion of an
/// absent key has no effect and is skipped.
fn order(ops: &[Op], commits: &[Vec<Operation>]) -> Result<Vec<usize>, String> {
    let (mut by_value, mut removals) = (HashMap::new(), HashMap::<_, Vec<usize>>::new());
    for (index, op) in ops.iter().enumerate() {
        let values: Vec<_> = op.writes.iter().filter_map(|(_, value)| *value).collect();
        by_value.extend(values.iter().map(|value| (*value, index)));
        if values.is_empty() && op.committed {
            match &op.writes[..] {
                [] => {}
                [((table, number), _)] => removals.entry((*table, Some(*number))).or_default().push(index),
                all => removals.entry((all[0].0.0, None)).or_default().push(index),
            }
        }
    }
    // Each list comes from one thread. The list is sorted in descending order, so that `pop`
    // returns the oldest operation.
    for list in removals.values_mut() {
        list.sort_unstable_by_key(|index| Reverse(ops[*index].begin));
    }
    let (mut order, mut present) = (Vec::new(), HashSet::new());
    for commit in commits {
        if let [Operation::Delete { table, key }] = &commit[..]
            && !present.contains(&(*table, key[1]))
        {
            continue;
        }
        apply(commit, &mut present);
        // If a batch puts a key twice, only the last value of the key was recorded. An earlier
        // value is not in `by_value`, and the search goes on to the next operation.
        let value = commit.iter().find_map(|operation| match operation {
            Operation::Put { table, value, .. } if *table > 0 => by_value.get(&decode(value)).copied(),
            _ => None,
        });
        let removal = commit.iter().find_map(|operation| match operation {
            Operation::Delete { table, key } if *table > 0 => Some((*table, Some(key[1]))),
            Operation::Clear { table } => Some((*table, None)),
            _ => None,
        });
        let found = match (value, removal) {
            (Some(index), _) => Some(index),
            (None, Some(removal)) => removals.get_mut(&removal).and_then(Vec::pop),
            // A commit that only creates a table belongs to no recorded operation.
            (None, None) if commit.iter().all(is_of_the_catalog) => continue,
            (None, None) => None,
        };
        order.push(found.ok_or_else(|| format!("a commit that nobody made: {commit:?}"))?);
    }
    Ok(order)
}

/// Applies a commit to the set of existing keys.
fn apply(commit: &[Operation], present: &mut HashSet<(u32, u8)>) {
    for operation in commit {
        match operation {
            Operation::Put { table, key, .. } if *table > 0 => _ = present.insert((*table, key[1])),
            Operation::Delete { table, key } if *table > 0 => _ = present.remove(&(*table, key[1])),
            Operation::Clear { table } => present.retain(|(id, _)| id != table),
            _ => {}
        }
    }
}

fn is_of_the_catalog(operation: &Operation) -> bool {
    matches!(operation, Operation::Put { table: 0, .. })
}
