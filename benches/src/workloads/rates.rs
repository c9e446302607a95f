//! Workloads that measure a rate: threads repeat an operation for a given time. Puts end earlier if
//! all records are stored.
//!
//! **Invariants**
//! - Every value that is read is compared byte for byte with the values that its record can have.
//! - A sample of the records of a put workload is read back after the measurement.
//! - Reading workloads start with a warm-up, so that no engine is measured with cold caches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use super::{Measurement, Spent, Task, Watch};
use crate::Outcome;
use crate::data::{Key, Random, Values, Zipf, absent_key, key};
use crate::engines::{Access, Engine, Session};

/// Number of operations of a thread between two readings of the clock. Used for buffered puts and
/// for workloads that read, because reading the clock takes time too. A call of `multi_get` counts
/// as one operation for each key.
const FAST_STEP: u64 = 256;

/// Number of keys of one call of `multi_get`.
const MULTI_GET_KEYS: usize = 64;

/// Maximum number of operations that run before the measurement of a workload that reads. A call of
/// `multi_get` counts as one operation for each key. These operations fill the caches and load the
/// pages of memory maps.
const WARM_UP_GETS: u64 = 300_000;

/// Maximum time of the warm-up in seconds. The maximum is large because the warm-up takes long on a
/// busy machine, and a warm-up that is cut short would leave caches cold.
const WARM_UP_SECONDS: f64 = 60.0;

/// The limits of the repetitions of an operation.
#[derive(Clone, Copy)]
struct Plan {
    threads: u64,
    /// Maximum number of operations of all threads together.
    operations: u64,
    /// Number of operations of a thread between two readings of the clock.
    step: u64,
    seconds: f64,
}

/// The work that the threads have done.
struct Done {
    operations: u64,
    /// Number of operations of the thread with the fewest operations.
    fewest: u64,
    spent: Spent,
}

/// Runs `operation(session, thread, i)` in every thread until one of the plan's limits is reached.
/// `i` counts the operations of one thread from 0.
fn repeat<F>(engine: &dyn Engine, access: Access, plan: Plan, operation: F) -> Outcome<Done>
where
    F: Fn(&mut dyn Session, u64, u64) -> Outcome<()> + Sync,
{
    let ready = Barrier::new(plan.threads as usize + 1);
    let stop = AtomicBool::new(false);
    let work = |thread: u64| -> Outcome<u64> {
        let session = engine.session(access);
        ready.wait();
        let mut session = session?;
        let began = Instant::now();
        let share = plan.operations / plan.threads;
        let mut i = 0;
        while i < share && !stop.load(Ordering::Relaxed) {
            let until = share.min(i + plan.step);
            while i < until {
                operation(session.as_mut(), thread, i)?;
                i += 1;
            }
            if began.elapsed().as_secs_f64() >= plan.seconds {
                stop.store(true, Ordering::Relaxed);
            }
        }
        Ok(i)
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..plan.threads)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        ready.wait();
        let watch = Watch::start();
        let counts = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread of the workload panicked"));
        let counts = counts.collect::<Result<Outcome<Vec<u64>>, _>>()??;
        let spent = watch.spent();
        Ok(Done {
            operations: counts.iter().sum(),
            fewest: counts.iter().copied().min().unwrap_or(0),
            spent,
        })
    })
}

/// Measures single puts into an empty database.
pub(super) fn put(task: &Task, row: &str, threads: u64, durable: bool) -> Outcome<Vec<Measurement>> {
    let engine = task.open(durable)?;
    let values = task.values();
    let step = if durable { 1 } else { FAST_STEP };
    let plan = Plan {
        threads,
        operations: task.records,
        step,
        seconds: task.seconds,
    };
    let flushes_before = engine.flushes();
    let done = repeat(engine.as_ref(), Access::ReadWrite, plan, |session, thread, i| {
        let index = i * threads + thread;
        session.put(&key(index), values.value(index, 0))
    })?;
    let mut measurements = vec![Measurement::rate(row, done.operations, &done.spent)];
    if durable && let (Some(before), Some(after)) = (flushes_before, engine.flushes()) {
        let flushes = (after - before) as f64 / done.operations.max(1) as f64;
        measurements.push(Measurement::plain(&format!("{row}-flushes"), flushes));
    }
    // Threads stop after different numbers of puts. Up to the lowest number, all threads stored
    // their records. Every thousandth of these records is checked.
    let mut session = engine.session(Access::Read)?;
    for index in (0..done.fewest * threads).step_by(1_000) {
        get_right(session.as_mut(), &values, index)?;
    }
    Ok(measurements)
}

/// Number of threads of [`hot_counter`].
const HOT_THREADS: u64 = 32;

/// The key of the record with the counter.
const HOT_KEY: &[u8] = b"hot counter";

/// Increments one counter in durable transactions from many threads. If the engine rejects an
/// increment because of a conflict, the rejection is counted and the increment is not repeated.
pub(super) fn hot_counter(task: &Task) -> Outcome<Vec<Measurement>> {
    let engine = task.open(true)?;
    engine
        .session(Access::ReadWrite)?
        .put(HOT_KEY, &0_u64.to_le_bytes())?;
    let plan = Plan {
        threads: HOT_THREADS,
        operations: u64::MAX,
        step: 1,
        seconds: task.seconds,
    };
    let refused = AtomicU64::new(0);
    let done = repeat(engine.as_ref(), Access::ReadWrite, plan, |session, _, _| {
        if !session.add_one(HOT_KEY)? {
            refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let refused = refused.into_inner();
    let added = done.operations - refused;
    let mut counted = None;
    engine.session(Access::ReadWrite)?.get(HOT_KEY, &mut |value| {
        counted = value.try_into().ok().map(u64::from_le_bytes);
    })?;
    if counted != Some(added) {
        return Err(format!("{added} increments were acknowledged, the counter is {counted:?}").into());
    }
    Ok(vec![
        Measurement::rate("hot-counter", added, &done.spent),
        Measurement::plain("hot-counter-refused", refused as f64),
    ])
}

/// Reads record `index` and returns an error unless every byte of its value is right.
pub(super) fn get_right(session: &mut dyn Session, values: &Values, index: u64) -> Outcome<()> {
    let mut right = false;
    let found = session.get(&key(index), &mut |value| right = values.is_right(index, value))?;
    if found && right {
        return Ok(());
    }
    Err(format!("record {index} is {}", if found { "wrong" } else { "absent" }).into())
}

fn reading(task: &Task, threads: u64) -> Plan {
    Plan {
        threads,
        operations: u64::MAX,
        step: FAST_STEP,
        seconds: task.seconds,
    }
}

fn generators(task: &Task, threads: u64) -> Vec<Mutex<Random>> {
    (0..threads)
        .map(|thread| Mutex::new(Random::new(1 + task.repetition * 64 + thread)))
        .collect()
}

/// Draws from the random generator of a thread. No other thread locks this generator, so the lock
/// costs only a few nanoseconds, and this cost is the same for every engine.
fn draw<T>(generators: &[Mutex<Random>], thread: u64, choose: impl FnOnce(&mut Random) -> T) -> Outcome<T> {
    let mut random = generators[thread as usize]
        .lock()
        .map_err(|_| "a thread panicked with its generator")?;
    Ok(choose(&mut random))
}

/// Measures random gets of loaded records.
pub(super) fn get(task: &Task, row: &str, threads: u64) -> Outcome<Vec<Measurement>> {
    let engine = task.open(false)?;
    random_gets(engine.as_ref(), task, row, threads)
}

/// Measures random gets with `threads` threads, after a warm-up, and the disk reads that they
/// caused.
pub(super) fn random_gets(
    engine: &dyn Engine,
    task: &Task,
    row: &str,
    threads: u64,
) -> Outcome<Vec<Measurement>> {
    let values = task.values();
    let generators = generators(task, threads);
    let one = |session: &mut dyn Session, thread: u64, _: u64| {
        let index = draw(&generators, thread, |random| random.below(task.records))?;
        get_right(session, &values, index)
    };
    let plan = reading(task, threads);
    repeat(
        engine,
        Access::Read,
        Plan {
            operations: WARM_UP_GETS,
            seconds: WARM_UP_SECONDS,
            ..plan
        },
        one,
    )?;
    let done = repeat(engine, Access::Read, plan, one)?;
    let mut measurements = vec![Measurement::rate(row, done.operations, &done.spent)];
    let per_get = |amount: f64| amount / done.operations as f64;
    // Disk reads are reported only if there was at least one byte per get. Fewer bytes do not show
    // that the data did not fit into memory.
    if per_get(done.spent.read_bytes) >= 1.0 {
        measurements.push(Measurement::plain(
            &format!("{row}-read"),
            per_get(done.spent.read_bytes) / 1024.0,
        ));
        measurements.push(Measurement::plain(
            &format!("{row}-faults"),
            per_get(done.spent.major_faults),
        ));
    }
    Ok(measurements)
}

/// Measures random gets of 64 keys per call.
pub(super) fn multi_get(task: &Task) -> Outcome<Vec<Measurement>> {
    let engine = task.open(false)?;
    let values = task.values();
    let generators = generators(task, 1);
    let one = |session: &mut dyn Session, thread: u64, _: u64| {
        let mut indexes = [0; MULTI_GET_KEYS];
        draw(&generators, thread, |random| {
            indexes.fill_with(|| random.below(task.records));
        })?;
        let keys: [Key; MULTI_GET_KEYS] = indexes.map(key);
        let mut right = 0;
        session.multi_get(&keys, &mut |position, value| {
            right += usize::from(value.is_some_and(|value| values.is_right(indexes[position], value)));
        })?;
        if right == MULTI_GET_KEYS {
            return Ok(());
        }
        Err(format!("{right} of {MULTI_GET_KEYS} records were right").into())
    };
    let plan = Plan {
        step: FAST_STEP / MULTI_GET_KEYS as u64,
        ..reading(task, 1)
    };
    repeat(
        engine.as_ref(),
        Access::Read,
        Plan {
            operations: WARM_UP_GETS / MULTI_GET_KEYS as u64,
            seconds: WARM_UP_SECONDS,
            ..plan
        },
        one,
    )?;
    let done = repeat(engine.as_ref(), Access::Read, plan, one)?;
    Ok(vec![Measurement::rate(
        "multi-get",
        done.operations * MULTI_GET_KEYS as u64,
        &done.spent,
    )])
}

/// Measures gets of absent keys.
pub(super) fn absent(task: &Task) -> Outcome<Vec<Measurement>> {
    let engine = task.open(false)?;
    let one = |session: &mut dyn Session, _: u64, i: u64| {
        if session.get(&absent_key(i), &mut |_| ())? {
            return Err(format!("absent key {i} was found").into());
        }
        Ok(())
    };
    let plan = reading(task, 1);
    repeat(
        engine.as_ref(),
        Access::Read,
        Plan {
            operations: WARM_UP_GETS,
            seconds: WARM_UP_SECONDS,
            ..plan
        },
        one,
    )?;
    let done = repeat(engine.as_ref(), Access::Read, plan, one)?;
    Ok(vec![Measurement::rate("absent", done.operations, &done.spent)])
}

/// Measures reads and updates of zipfian records with two threads.
pub(super) fn ycsb(task: &Task, row: &str, updates_percent: u64) -> Outcome<Vec<Measurement>> {
    const THREADS: u64 = 2;
    /// Number of choices drawn for each thread before the measurement. A zipfian draw takes about
    /// as long as a fast get, so it must not be part of the measured time.
    const CHOICES: usize = 1 << 20;
    let zipf = Zipf::new(task.records, 0.99);
    let choices: Vec<Vec<(u32, bool)>> = (0..THREADS)
        .map(|thread| {
            let mut random = Random::new(1 + task.repetition * 64 + thread);
            (0..CHOICES)
                .map(|_| {
                    (
                        zipf.index(&mut random) as u32,
                        random.below(100) < updates_percent,
                    )
                })
                .collect()
        })
        .collect();
    let engine = task.open(false)?;
    let values = task.values();
    let one = |session: &mut dyn Session, thread: u64, i: u64| {
        let (index, update) = choices[thread as usize][i as usize % CHOICES];
        if update {
            session.put(&key(index.into()), values.value(index.into(), i & 1))
        } else {
            get_right(session, &values, index.into())
        }
    };
    let plan = reading(task, THREADS);
    repeat(
        engine.as_ref(),
        Access::ReadWrite,
        Plan {
            operations: WARM_UP_GETS,
            seconds: WARM_UP_SECONDS,
            ..plan
        },
        one,
    )?;
    let done = repeat(engine.as_ref(), Access::ReadWrite, plan, one)?;
    Ok(vec![Measurement::rate(row, done.operations, &done.spent)])
}
