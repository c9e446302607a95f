//! Workloads that measure a maximum: peak disk usage and the slowest open.
//!
//! An average would hide these maxima, but users notice a disk that is full for a moment, or a
//! single slow open. So the disk usage is sampled during the work, and the database is opened many
//! times after closes at random moments.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Measurement, Task, Watch, rates, whole};
use crate::Outcome;
use crate::data::{key, mix};
use crate::engines::{Access, Records};
use crate::peaks::allocated_bytes;

const MIB: f64 = (1_u64 << 20) as f64;

/// Interval between two samples of the folder's size.
const DISK_INTERVAL: Duration = Duration::from_millis(5);

/// Time from the last sync to the last sample of the folder's size.
const LATER: Duration = Duration::from_secs(1);

/// Number of times that the database is closed and opened.
const TRIES: u64 = 100;

/// Upper limit of the random time of writing before a close, in milliseconds: enough time to start
/// background work.
const WRITING_MS_MAX: u64 = 1_000;

/// Number of records of each commit between an open and a close of the database.
const BATCH_RECORDS: usize = 1_000;

/// Overwrites every record twice in random order without a pause. Measures the peak of the disk
/// usage until the last sync, and the usage one second after this sync. If the later usage is
/// higher, it is also the peak.
pub(super) fn overwrite(task: &Task) -> Outcome<Vec<Measurement>> {
    let (engine, values) = (task.open(false)?, task.values());
    let order = whole::shuffled(task.records);
    let (is_done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                peak.fetch_max(allocated_bytes(&task.folder), Ordering::Relaxed);
                std::thread::sleep(DISK_INTERVAL);
            }
        });
        let overwritten = [1, 0].into_iter().try_for_each(|version| {
            whole::store(engine.as_ref(), &values, task.records, version, |n| {
                u64::from(order[n as usize])
            })?;
            engine.sync()
        });
        is_done.store(true, Ordering::Relaxed);
        overwritten
    })?;
    std::thread::sleep(LATER);
    let later = allocated_bytes(&task.folder);
    let peak = peak.into_inner().max(later);
    Ok(vec![
        Measurement::plain("overwrite-peak", peak as f64 / MIB),
        Measurement::plain("overwrite-later", later as f64 / MIB),
    ])
}

/// Repeatedly opens the database, writes for a random time, and closes it. Measures the time of
/// each open with its first get. Returns the median and the maximum, in milliseconds.
pub(super) fn close_open(task: &Task) -> Outcome<Vec<Measurement>> {
    let values = task.values();
    let mut opens = Vec::new();
    for number in 0..TRIES {
        let seed = mix(number + task.repetition * TRIES);
        let watch = Watch::start();
        let engine = task.open(false)?;
        {
            let mut session = engine.session(Access::Read)?;
            let found = session.get(&key(seed % task.records), &mut |_| {})?;
            opens.push(watch.seconds() * 1e3);
            if !found {
                return Err(format!("record {} is absent", seed % task.records).into());
            }
        }
        let writing = Duration::from_millis(seed % WRITING_MS_MAX);
        let (began, mut session) = (Instant::now(), engine.session(Access::ReadWrite)?);
        let mut records = Records::new(crate::data::KEY_BYTES);
        for n in 0.. {
            if began.elapsed() >= writing {
                break;
            }
            let index = mix(seed.wrapping_add(n)) % task.records;
            records.push(&key(index), values.value(index, 0));
            if records.len() == BATCH_RECORDS {
                session.put_batch(&records)?;
                records.clear();
            }
        }
        // The session and the engine are dropped here, which closes the database.
    }
    let engine = task.open(false)?;
    let mut session = engine.session(Access::Read)?;
    for index in (0..task.records).step_by(1_000) {
        rates::get_right(session.as_mut(), &values, index)?;
    }
    opens.sort_by(f64::total_cmp);
    let (middle, worst) = (opens[opens.len() / 2], opens[opens.len() - 1]);
    Ok(vec![
        Measurement::plain("close-open", middle),
        Measurement::plain("close-open-worst", worst),
    ])
}
