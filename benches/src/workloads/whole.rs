//! Workloads that measure one whole piece of work (load, open, overwrite and compact, scan,
//! replace) or the size of the index. The loads of other value sizes are followed by random gets.
//!
//! **Invariants**
//! - The measured time of a write includes its final sync.
//! - After an open or a replacement, a sample of the records is read back and compared.

use std::io::Write as _;

use super::{Answer, Measurement, ROW_BYTES, Task, Watch, rates};
use crate::Outcome;
use crate::data::{KEY_BYTES, Random, Values, key, mix};
use crate::engines::{Access, Engine, Records, Setup};
use crate::peaks::allocated_bytes;

/// Maximum number of records of one commit while records are stored in batches.
const BATCH_RECORDS: u64 = 1_000;

/// Maximum size of one commit in bytes, if it has more than one record. With large values, a batch
/// has fewer records.
const BATCH_BYTES: u64 = 1 << 20;

/// Maximum number of overwrites before the process is killed. A database with fewer records gets
/// about as many overwrites as it has records. The first half of the overwrites is synced.
const OVERWRITTEN_BEFORE_KILL: u64 = 200_000;

/// Maximum size of all values together, in bytes, in the workloads that [`size`] measures.
const SIZE_BYTES: u64 = 256 << 20;

const MIB: f64 = (1_u64 << 20) as f64;

/// Stores `count` records in batches. The `n`th stored record has the index `order(n)`.
pub(super) fn store(
    engine: &dyn Engine,
    values: &Values,
    count: u64,
    version: u64,
    order: impl Fn(u64) -> u64,
) -> Outcome<()> {
    let mut session = engine.session(Access::ReadWrite)?;
    let record_bytes = (KEY_BYTES + values.value(0, 0).len()) as u64;
    let batch_records = BATCH_RECORDS.min((BATCH_BYTES / record_bytes).max(1)) as usize;
    let mut records = Records::new(KEY_BYTES);
    for n in 0..count {
        let index = order(n);
        records.push(&key(index), values.value(index, version));
        if records.len() == batch_records {
            session.put_batch(&records)?;
            records.clear();
        }
    }
    if !records.is_empty() {
        session.put_batch(&records)?;
    }
    Ok(())
}

/// Stores all records in batches, with one sync at the end.
pub(super) fn load(task: &Task) -> Outcome<Vec<Measurement>> {
    let engine = task.open(false)?;
    let values = task.values();
    let watch = Watch::start();
    store(engine.as_ref(), &values, task.records, 0, |n| n)?;
    engine.sync()?;
    let spent = watch.spent();
    engine.wait_idle()?;
    Ok(vec![Measurement::rate("load", task.records, &spent)])
}

/// Measures the time to open the database and read one record, in milliseconds. The read is
/// included so that an engine that opens lazily has no advantage.
pub(super) fn open(task: &Task, row: &str) -> Outcome<Vec<Measurement>> {
    let values = task.values();
    let watch = Watch::start();
    let engine = task.open(false)?;
    let mut session = engine.session(Access::Read)?;
    rates::get_right(session.as_mut(), &values, task.repetition % task.records)?;
    let mut opened = Measurement::seconds(row, &watch.spent());
    opened.value *= 1e3;
    for index in (0..task.records).step_by(1_000) {
        rates::get_right(session.as_mut(), &values, index)?;
    }
    Ok(vec![opened])
}

/// Overwrites records with a sync in the middle, reports the end of the work to the parent, and
/// waits to be killed.
pub(super) fn write_until_killed(task: &Task) -> Outcome<Answer> {
    let engine = task.open(false)?;
    let values = task.values();
    let half = (OVERWRITTEN_BEFORE_KILL / 2).min(task.records / 2);
    store(engine.as_ref(), &values, half, 1, |n| mix(n) % task.records)?;
    engine.sync()?;
    store(engine.as_ref(), &values, half, 1, |n| {
        mix(n + half) % task.records
    })?;
    let mut out = std::io::stdout();
    writeln!(out, "written")?;
    out.flush()?;
    loop {
        std::thread::park();
    }
}

/// Measures the disk usage three times: after the load, after every record was overwritten twice in
/// random order and background work has ended, and after compaction. An engine that cannot compact
/// has no third figure.
pub(super) fn disk(task: &Task) -> Outcome<Vec<Measurement>> {
    let values = task.values();
    let mut measurements = vec![Measurement::plain(
        "disk-loaded",
        allocated_bytes(&task.folder) as f64 / MIB,
    )];
    {
        let engine = task.open(false)?;
        let order = shuffled(task.records);
        for version in [1, 0] {
            store(engine.as_ref(), &values, task.records, version, |n| {
                u64::from(order[n as usize])
            })?;
            engine.sync()?;
        }
        engine.wait_idle()?;
    }
    measurements.push(Measurement::plain(
        "disk-overwritten",
        allocated_bytes(&task.folder) as f64 / MIB,
    ));
    let compacted = {
        let mut engine = task.open(false)?;
        engine.compact()
    };
    match compacted {
        Ok(()) => {
            measurements.push(Measurement::plain(
                "disk-compacted",
                allocated_bytes(&task.folder) as f64 / MIB,
            ));
        }
        Err(error) if error.is::<crate::engines::Unsupported>() => (),
        Err(error) => return Err(error),
    }
    open(task, "disk-check")?;
    Ok(measurements)
}

/// Measures the size of the index in bytes per key, directly after all puts. Returns `Unsupported`
/// if the engine does not report this size. After a reopen, microdb would map a part of its index
/// from a file. Without a reopen, its whole index is in memory.
pub(super) fn memory(task: &Task) -> Outcome<Vec<Measurement>> {
    let engine = task.open(false)?;
    if engine.index_bytes().is_some() {
        store(engine.as_ref(), &task.values(), task.records, 0, |n| n)?;
    }
    let Some(bytes) = engine.index_bytes() else {
        let reason = "does not report it, or has no index apart from the data";
        return Err(crate::engines::Unsupported(reason).into());
    };
    Ok(vec![Measurement::plain(
        "memory",
        bytes as f64 / task.records as f64,
    )])
}

/// Measures a read of every record, after a first pass that fills the caches.
pub(super) fn scan(task: &Task) -> Outcome<Vec<Measurement>> {
    let engine = task.open(false)?;
    let mut session = engine.session(Access::Read)?;
    let mut pass = || -> Outcome<(u64, u64)> {
        let (mut records, mut sum) = (0, 0);
        session.scan(&mut |key, value| {
            records += 1;
            // Bytes of the key and of both ends of the value are used, so that no engine can skip
            // reading them.
            sum += u64::from(key[0]) + u64::from(value[0]) + u64::from(value[value.len() - 1]);
        })?;
        Ok((records, sum))
    };
    let first = pass()?;
    let watch = Watch::start();
    let second = pass()?;
    let spent = watch.spent();
    if first != second || first.0 != task.records {
        return Err(format!(
            "two scans of {} records saw {first:?} and {second:?}",
            task.records
        )
        .into());
    }
    Ok(vec![Measurement::rate("scan", second.0, &spent)])
}

pub(super) fn shuffled(count: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut random = Random::new(3);
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

/// Measures the replacement of every row (a key of 8 bytes, a value of 4 bytes) in one commit,
/// including the sync after the commit.
pub(super) fn replace(task: &Task, row: &str, shuffle: bool) -> Outcome<Vec<Measurement>> {
    let (key_bytes, value_bytes) = ROW_BYTES;
    let data_bytes = task.records * (key_bytes + value_bytes) as u64 * 4;
    let engine = task.engine.open(
        &task.folder,
        Setup {
            durable: false,
            data_bytes,
        },
    )?;
    let order = if shuffle {
        shuffled(task.records)
    } else {
        (0..task.records as u32).collect()
    };
    let quantities: [Vec<[u8; 4]>; 2] = [0, 1].map(|version| {
        (0..16)
            .map(|quantity: u32| (quantity + version).to_le_bytes())
            .collect()
    });
    let rows = |version: usize| {
        let mut rows = Records::new(key_bytes);
        for index in order.iter().copied().map(u64::from) {
            rows.push(
                &index.to_be_bytes(),
                &quantities[version][mix(index) as usize % 16],
            );
        }
        rows
    };
    let mut session = engine.session(Access::ReadWrite)?;
    session.put_batch(&rows(0))?;
    engine.sync()?;
    let replacement = rows(1);
    let watch = Watch::start();
    session.put_batch(&replacement)?;
    engine.sync()?;
    let spent = watch.spent();
    for index in (0..task.records).step_by(1_000) {
        let mut right = false;
        session.get(&index.to_be_bytes(), &mut |found| {
            right = found == quantities[1][mix(index) as usize % 16];
        })?;
        if !right {
            return Err(format!("row {index} was not replaced").into());
        }
    }
    Ok(vec![Measurement::seconds(row, &spent)])
}

/// Measures the load and random gets with values of `value_bytes` bytes. If the values of all
/// records exceed [`SIZE_BYTES`], only as many records as fit are loaded.
pub(super) fn size(task: &Task, name: &str, value_bytes: usize) -> Outcome<Vec<Measurement>> {
    let records = task.records.min(SIZE_BYTES / value_bytes as u64);
    let task = Task {
        records,
        value_bytes,
        ..task.clone()
    };
    let mut measurements = load(&task)?;
    for measurement in &mut measurements {
        measurement.row = format!("load-{name}");
    }
    let engine = task.open(false)?;
    measurements.extend(rates::random_gets(
        engine.as_ref(),
        &task,
        &format!("get-{name}"),
        1,
    )?);
    Ok(measurements)
}
