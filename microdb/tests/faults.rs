//! Tests that every call to the disk may fail, once or forever. The engine must report a typed
//! error and keep its promises.
//!
//! One small and varied workload runs many times. In run N, the Nth call that the fault can hit
//! fails, alone or with all later calls. The fault is an IO error, a full disk, or a write that
//! stops half way. Then these promises are checked:
//!
//! - the error names the fault and reports no damage;
//! - reads show the content of the commit that the database reports as its last one. A commit that
//!   was refused without poisoning the handle is not visible;
//! - a handle that was poisoned by the fault refuses further writes, while reads continue;
//! - a power cut at this time loses nothing that was acknowledged as durable;
//! - once the cause is removed, the same handle completes the workload. If the handle is poisoned
//!   or closed, the handle of the next open completes it.
//!
//! All N and all kinds of calls are tried.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use crate::support::cut::Cuts;
use crate::support::disk::{Call, Disk, Fault, FaultKind};
use crate::support::random::Random;
use crate::support::workload::{Change, Failure, Op, ROOT, Run, Shape, chain, key, read, shown};
use microdb::storage::{OpenMode, Storage};
use microdb::{Durability, Error};

/// Maximum number of disks that are checked for each power cut.
const DISKS: usize = 2;
/// Number of failing calls for a fault that never ends.
const FOR_GOOD: u64 = u64::MAX;

fn put(table: usize, number: u64, len: usize, durability: Durability) -> Op {
    let mut value = format!("value {number} ").into_bytes();
    value.resize(len.max(value.len()), b'.');
    Op::Batch(vec![Change::Put(table, key(number % 10), value)], durability)
}

/// Returns a workload that makes every kind of call to the disk, each in more than one state of the
/// log.
fn script() -> Vec<Op> {
    use Durability::{Buffered, Sync};
    let mut ops = vec![Op::Make(0), put(0, 1, 100, Sync), put(1, 2, 1500, Sync)];
    ops.extend((3..9).map(|number| put(0, number, 900, if number % 2 == 0 { Sync } else { Buffered })));
    ops.push(Op::Batch(
        vec![
            Change::Delete(0, key(3)),
            Change::Put(1, key(4), b"batch".to_vec()),
            Change::Put(2, key(5), b"batch".to_vec()),
        ],
        Sync,
    ));
    ops.extend([
        Op::Checkpoint,
        put(0, 11, 1500, Buffered),
        Op::Sync,
        Op::Feed,
        Op::Reopen,
    ]);
    ops.extend((12..18).map(|number| put(0, number, 1200, Buffered)));
    ops.extend([
        Op::Clear(1),
        put(1, 18, 30, Sync),
        Op::Compact,
        Op::Backup,
        Op::Feed,
    ]);
    ops.extend([
        put(2, 19, 700, Buffered),
        Op::Kill,
        put(2, 20, 700, Sync),
        Op::Drop(1),
    ]);
    ops.extend([
        Op::Rename(2, 1),
        Op::Checkpoint,
        put(1, 21, 600, Buffered),
        Op::Reopen,
    ]);
    ops.extend([
        put(0, 22, 2000, Sync),
        Op::Compact,
        put(0, 23, 10, Buffered),
        Op::Backup,
        Op::Reopen,
    ]);
    ops
}

#[derive(Default, Debug)]
struct Tally {
    runs: u64,
    /// Number of runs in which the last failure poisoned no handle: the open failed, or an
    /// operation was refused.
    refused: u64,
    /// Number of runs in which the last failure poisoned the handle, and the database was opened
    /// again.
    poisoned: u64,
    /// Number of runs in which the fault was hit and no operation failed.
    unnoticed: u64,
    disks: u64,
    calls: BTreeMap<String, u64>,
}

struct Trial {
    run: Run,
    shape: Shape,
    fault: Fault,
    random: Random,
}

#[test]
fn a_fault_at_any_call_is_a_typed_error_and_nothing_acknowledged_is_lost() {
    let mut tally = Tally::default();
    for shape in [Shape::small(true), Shape::small(false)] {
        for kind in [FaultKind::Io, FaultKind::Full, FaultKind::Short] {
            for times in [1, FOR_GOOD] {
                // Without maps only the read calls differ, so one kind of fault suffices.
                if !shape.maps && (kind, times) != (FaultKind::Io, 1) {
                    continue;
                }
                let mut at = 0;
                while trial(shape, Fault { kind, at, times }, &mut tally).unwrap_or_else(|error| {
                    panic!("{shape:?}, {kind:?} at call {at}, {times} times: {error}")
                }) {
                    at += 1;
                }
            }
        }
    }
    println!("faults: {tally:?}");
    // Checks that the faults have hit every kind of call in at least one run.
    for call in [
        Call::CreateFolder,
        Call::Open,
        Call::Create,
        Call::List,
        Call::Rename,
        Call::Remove,
        Call::Link,
        Call::SyncFolder,
        Call::Lock,
        Call::Read,
        Call::Map,
        Call::Len,
        Call::Write,
        Call::Sync,
        Call::Allocate,
        Call::SetLen,
    ] {
        assert!(
            tally.calls.contains_key(&format!("{call:?}")),
            "no fault hit {call:?}"
        );
    }
}

/// Runs the script once with one fault. Returns `false` if the script ends before the call that
/// should fail.
fn trial(shape: Shape, fault: Fault, tally: &mut Tally) -> Result<bool, String> {
    let disk = Disk::default();
    disk.set_fault(Some(fault));
    let mut noticed = None;
    let opened = Run::try_open(disk.clone(), shape, &Run::nothing());
    let run = match opened {
        Ok(run) => run,
        Err(failure) => {
            check_told(&disk, fault, &failure)?;
            noticed = Some("opening");
            disk.end_fault();
            Run::open(disk.clone(), shape, &Run::nothing())?
        }
    };
    let mut trial = Trial {
        run,
        shape,
        fault,
        random: Random::new(fault.at),
    };
    for (number, op) in script().iter().enumerate() {
        let told = |error: String| format!("operation {number}, {op:?}: {error}");
        if std::env::var_os("MICRODB_FAULT_TRACE").is_some() {
            println!(
                "call {}, event {}: {op:?}, hit {:?}",
                fault.at,
                disk.position(),
                disk.hit()
            );
        }
        let Err(failure) = trial.run.try_step(op) else {
            continue;
        };
        if trial.run.disk.hit().is_none() {
            return Err(told(failure.to_string()));
        }
        check_told(&trial.run.disk, fault, &failure).map_err(told)?;
        noticed = Some(if trial.recover(&failure, tally).map_err(told)? {
            "poisoned"
        } else {
            "refused"
        });
    }
    let hit = disk.hit();
    match (hit, noticed) {
        (None, None) => return Ok(false),
        (_, Some("poisoned")) => tally.poisoned += 1,
        (_, Some(_)) => tally.refused += 1,
        (_, None) => tally.unnoticed += 1,
    }
    if let Some(call) = hit {
        *tally.calls.entry(format!("{call:?}")).or_default() += 1;
    }
    tally.runs += 1;
    trial.end(tally)?;
    Ok(true)
}

/// Checks that the failure is an error of the engine that reports exactly this fault.
fn check_told(disk: &Disk, fault: Fault, failure: &Failure) -> Result<(), String> {
    let Failure::Refused(error) = failure else {
        return Err(failure.to_string());
    };
    let mut cause = error;
    while let Error::Poisoned { cause: deeper } = cause {
        cause = deeper;
    }
    let Error::Io { source, path, .. } = cause else {
        return Err(format!("the fault was told as something else: {}", chain(error)));
    };
    let expected = match fault.kind {
        FaultKind::Full => source.kind() == ErrorKind::StorageFull && error.is_disk_full(),
        FaultKind::Io | FaultKind::Short => source.raw_os_error() == Some(5) && !error.is_disk_full(),
    };
    if !expected || path.as_os_str().is_empty() || disk.hit().is_none() {
        return Err(format!("the fault was told as something else: {}", chain(error)));
    }
    Ok(())
}

impl Trial {
    /// Handles a failed operation: checks reads, refusals and a power cut, then removes the fault.
    /// If the handle is poisoned or closed, opens the database again and checks another power cut.
    /// Returns `true` if the handle was poisoned.
    fn recover(&mut self, failure: &Failure, tally: &mut Tally) -> Result<bool, String> {
        let poisoned = matches!(failure, Failure::Refused(Error::Poisoned { .. }));
        if self.run.is_open() {
            self.check_reads()?;
            if poisoned {
                self.check_refusals()?;
            }
        }
        self.check_cut(tally)?;
        // The fault is removed, as an operator would remove its cause. The disk still reports the
        // call that the fault hit.
        self.run.disk.end_fault();
        if poisoned || !self.run.is_open() {
            if self.run.is_open() && self.run.close().is_ok() {
                return Err("a poisoned database was closed as if nothing had been".to_owned());
            }
            self.run
                .reopen()
                .map_err(|failure| format!("reopened after it: {failure}"))?;
            // A failed sync may have lost content that was visible in the handle. The content
            // visible after the reopening must survive a power cut.
            self.check_cut(tally)
                .map_err(|error| format!("reopened, then {error}"))?;
        }
        Ok(poisoned)
    }

    /// Checks that reads still succeed, and show the content of the commit that the database
    /// reports as its last one (`Db::sequence`).
    fn check_reads(&self) -> Result<(), String> {
        let db = self.run.db();
        let seen = read(db).map_err(|error| format!("a read: {}", chain(&error)))?;
        let point = self
            .run
            .history()
            .iter()
            .rev()
            .find(|point| point.sequence == db.sequence());
        match point {
            Some(point) if *point.model == seen => Ok(()),
            _ => Err(format!("reads show sequence {}: {}", db.sequence(), shown(&seen))),
        }
    }

    /// Checks that a poisoned database refuses all writes.
    fn check_refusals(&self) -> Result<(), String> {
        let db = self.run.db();
        let table = db.tables().first().and_then(|table| db.get_table(&table.name));
        let mut batch = db.batch();
        if let Some(table) = &table {
            batch.put(table, "refused", "value");
        }
        let put = batch.commit_with(Durability::Buffered).map(drop);
        let tries = [
            (
                "put",
                if table.is_some() {
                    put
                } else {
                    db.table("refused").map(drop)
                },
            ),
            ("sync", db.sync()),
            ("checkpoint", db.checkpoint()),
            ("compact", db.compact().map(drop)),
            ("backup", db.backup_to("/copies/refused").map(drop)),
            ("a new table", db.table("refused").map(drop)),
        ];
        for (what, result) in tries {
            match result {
                Err(Error::Poisoned { cause }) if matches!(*cause, Error::Io { .. }) => {}
                other => return Err(format!("{what} on a poisoned database: {other:?}")),
            }
        }
        Ok(())
    }

    /// Cuts the power at the last event and checks the database and all backups on the resulting
    /// disks.
    fn check_cut(&mut self, tally: &mut Tally) -> Result<(), String> {
        let record = self.run.disk.record();
        let mut cuts = Cuts::new(&record);
        while cuts.step() {}
        let at = record.events.len();
        for image in cuts.disks(&mut self.random, DISKS) {
            tally.disks += 1;
            let next = Run::open(Disk::unrecorded(image), self.shape, self.run.allowed(at))
                .map_err(|error| format!("a power cut after it: {error}"))?;
            for backup in &self.run.backups {
                backup
                    .check(&next.disk, self.shape, at)
                    .map_err(|error| format!("a power cut after it: {error}"))?;
            }
        }
        Ok(())
    }

    /// Closes the database and cuts the power. All acknowledged commits must exist.
    fn end(mut self, tally: &mut Tally) -> Result<(), String> {
        self.run.disk.end_fault();
        if let Err(failure) = self.run.close() {
            // A fault that no operation has reported yet may be reported by the close.
            check_told(&self.run.disk, self.fault, &failure)?;
            self.run
                .reopen()
                .map_err(|failure| format!("reopened at the end: {failure}"))?;
            self.run
                .close()
                .map_err(|failure| format!("closed at the end: {failure}"))?;
        }
        self.check_cut(tally)
    }
}

#[test]
fn a_full_disk_refuses_before_it_acknowledges_and_goes_on_once_there_is_room() {
    let mut refusals = 0;
    for room in (50_000..120_000).step_by(997) {
        let shape = Shape::small(room % 2 == 0);
        let disk = Disk::default();
        disk.set_capacity(room);
        let mut run =
            Run::open(disk.clone(), shape, &Run::nothing()).unwrap_or_else(|error| panic!("{room}: {error}"));
        for number in 0..60 {
            let durability = if number % 3 == 0 {
                Durability::Sync
            } else {
                Durability::Buffered
            };
            let op = put(0, number, 1900, durability);
            match run.try_step(&op) {
                Ok(()) => {}
                Err(Failure::Refused(error)) if error.is_disk_full() => {
                    refusals += 1;
                    // Space is freed. A poisoned handle must be reopened. Any other handle
                    // continues.
                    disk.set_capacity(disk.image().used_bytes() + 20_000);
                    if matches!(error, Error::Poisoned { .. }) {
                        assert!(run.close().is_err());
                        run.reopen().unwrap_or_else(|error| panic!("{room}: {error}"));
                    }
                    run.try_step(&op)
                        .unwrap_or_else(|error| panic!("{room}, there is room again: {error}"));
                }
                Err(failure) => panic!("{room}: {failure}"),
            }
        }
        run.step(&Op::Reopen)
            .unwrap_or_else(|error| panic!("{room}: {error}"));
    }
    assert!(refusals > 100, "{refusals} refusals");
}

#[test]
fn a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one() {
    let shape = Shape::small(true);
    let disk = Disk::default();
    let mut run = Run::open(disk.clone(), shape, &Run::nothing()).unwrap();
    run.step(&put(0, 1, 100, Durability::Sync)).unwrap();
    run.close().unwrap();
    disk.remove(&std::path::Path::new(ROOT).join("SUPER")).unwrap();
    let before = disk.image();
    // An open without SUPER lists the log folder to find out if a log exists. If that listing
    // fails, the open must fail and change nothing.
    for read_only in [false, true] {
        let mut at = 0;
        loop {
            disk.set_fault(Some(Fault {
                kind: FaultKind::Io,
                at,
                times: 1,
            }));
            let opened = shape.options(&disk).read_only(read_only).open(ROOT);
            let hit = disk.hit();
            assert!(
                disk.image().same_as(&before) || hit.is_none(),
                "call {at}, {hit:?}: something was changed"
            );
            match opened {
                Err(Error::Io { .. }) if hit.is_some() => {}
                Err(Error::Corrupt { .. }) if hit.is_none() => break,
                other => panic!("call {at}, {hit:?}, read-only {read_only}: {other:?}"),
            }
            at += 1;
        }
        assert!(at > 1);
    }
    disk.set_fault(None);
    let file = disk.open(
        &std::path::Path::new(ROOT).join("log/0000000001.seg"),
        OpenMode::Read,
    );
    assert!(file.is_ok(), "the log is left alone");
}
