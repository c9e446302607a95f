//! Power cuts at every change and sync of the disk: the database must open on the disks that a cut
//! can leave, and must have kept its promises.
//!
//! - A random workload runs on a disk that records its changes and syncs. After each of them, disks
//!   are built as a power cut at that moment could leave them. Each must open in a state that the
//!   history permits: everything acknowledged as durable, nothing that was not attempted, each
//!   batch whole, in order.
//! - Then work continues on such a disk, and the database is closed and opened again. In some cases
//!   the power is cut in this work too. In some cases the process is killed before this work, which
//!   then begins with writes of the killed process that are still unsynced.
//!
//! `MICRODB_CUT_WORKLOADS` sets the number of workloads, for a long run, and
//! `MICRODB_CUT_FIRST_SEED` the first seed. `MICRODB_CUT_SEED` runs a single workload, for example
//! a failed one. With `MICRODB_CUT_TRACE=1`, a failure after a cut also prints the events of the
//! disk before the cut.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::cut::Cuts;
use crate::support::disk::{Disk, Lie, Record};
use crate::support::random::{Random, mix};
use crate::support::workload::{Op, ROOT, Run, Shape};

/// Default number of workloads. All workloads together take a minute of one core at opt-level 1.
const WORKLOADS: u64 = 14;
const OPS: u64 = 24;
/// Maximum numbers of disks checked for each cut: in the workload itself, and in later work on one
/// of the resulting disks.
const DISKS: usize = 16;
const DISKS_DEEP: usize = 3;
/// On one disk in this many, the power is cut again during the work after a cut. At one cut in
/// [`KILL_ONE_IN`], the process is also killed at that point. During the work on the disk of a
/// killed process, with its unsynced writes, the power is always cut. A workload has the depth 1,
/// and the work after a cut or kill has one more. From the depth [`DEPTH_MAX`] on, no work after a
/// cut is cut, and no process is killed.
const DEEPER_ONE_IN: u64 = 100;
const KILL_ONE_IN: u64 = 50;
const DEPTH_MAX: u32 = 3;
/// Maximum number of workloads on a disk that forgets one kind of sync. A check must fail in one of
/// them.
const LIE_WORKLOADS: u64 = 10;

#[derive(Default, Debug)]
struct Tally {
    workloads: u64,
    cuts: u64,
    disks: u64,
    disks_deep: u64,
    killed: u64,
    backups: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.workloads += other.workloads;
        self.cuts += other.cuts;
        self.disks += other.disks;
        self.disks_deep += other.disks_deep;
        self.killed += other.killed;
        self.backups += other.backups;
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().expect("the variable holds a number"))
}

#[test]
fn any_power_cut_keeps_every_acknowledged_commit_and_no_half_of_one() {
    let mut tally = Tally::default();
    if let Some(seed) = number("MICRODB_CUT_SEED") {
        workload(seed, &mut tally);
    } else {
        let first = number("MICRODB_CUT_FIRST_SEED").unwrap_or(1);
        let end = first + number("MICRODB_CUT_WORKLOADS").unwrap_or(WORKLOADS);
        let next = AtomicU64::new(first);
        let one_after_the_other = || {
            let mut tally = Tally::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return tally;
                }
                workload(seed, &mut tally);
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one_after_the_other)).collect();
            for thread in threads {
                tally.add(
                    &thread
                        .join()
                        .expect("a workload failed; its seed is printed above"),
                );
            }
        });
    }
    println!("power cuts: {tally:?}");
}

fn nothing(_: &Path) -> bool {
    false
}

fn ends(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found == ending)
}

fn in_database(path: &Path) -> bool {
    path.starts_with(ROOT)
}

/// Kinds of syncs without which the engine cannot keep its promises. In a test, the disk forgets
/// all syncs of one kind.
const LIES: [Lie; 8] = [
    Lie {
        name: "segments",
        file: |path| in_database(path) && ends(path, "seg"),
        folder: nothing,
    },
    Lie {
        name: "the folder of the segments",
        file: nothing,
        folder: |path| in_database(path) && path.ends_with("log"),
    },
    Lie {
        name: "SUPER",
        file: |path| in_database(path) && path.file_name().is_some_and(|name| name == "SUPER"),
        folder: nothing,
    },
    Lie {
        name: "SUPER before it has its name",
        file: |path| in_database(path) && path.ends_with("SUPER.tmp"),
        folder: nothing,
    },
    Lie {
        name: "the database's folder",
        file: nothing,
        folder: |path| path == Path::new(ROOT),
    },
    Lie {
        name: "the folders above the database",
        file: nothing,
        folder: |path| Path::new(ROOT).starts_with(path) && path != Path::new(ROOT),
    },
    Lie {
        name: "files of a backup",
        file: |path| path.starts_with("/copies"),
        folder: nothing,
    },
    Lie {
        name: "folders of a backup",
        file: nothing,
        folder: |path| path.starts_with("/copies"),
    },
];

#[test]
fn every_sync_that_is_forgotten_is_noticed() {
    for lie in LIES {
        let noticed = (1..=LIE_WORKLOADS).find_map(|seed| {
            let mut random = Random::new(mix(seed));
            let shape = Shape::draw(&mut random);
            let mut tally = Tally::default();
            let mut context = Context {
                shape,
                random,
                tally: &mut tally,
            };
            let disk = Disk::default();
            disk.set_lie(lie);
            let error = try_workload(disk, &mut context).err()?;
            Some((seed, tally.disks + tally.disks_deep, error))
        });
        let (seed, disks, error) =
            noticed.unwrap_or_else(|| panic!("nobody noticed that the sync of {} was forgotten", lie.name));
        let error = error.lines().next().unwrap_or_default();
        println!(
            "forgotten sync of {}: workload {seed}, disk {disks}: {error}",
            lie.name
        );
    }
}

struct Context<'a> {
    shape: Shape,
    random: Random,
    tally: &'a mut Tally,
}

fn workload(seed: u64, tally: &mut Tally) {
    let mut random = Random::new(mix(seed));
    let shape = Shape::draw(&mut random);
    let mut context = Context { shape, random, tally };
    if let Err(error) = try_workload(Disk::default(), &mut context) {
        panic!("MICRODB_CUT_SEED={seed}, {shape:?}: {error}");
    }
}

fn try_workload(disk: Disk, context: &mut Context<'_>) -> Result<(), String> {
    let mut run = Run::open(disk, context.shape, &Run::nothing())?;
    for number in 0..OPS {
        let op = Op::draw(&mut context.random, number);
        run.step(&op)
            .map_err(|error| format!("operation {number} of the workload: {error}"))?;
    }
    context.tally.workloads += 1;
    cut(&run, 1, DISKS, context)
}

/// Cuts the power before the first event and after every event of `run`, and checks at most
/// `budget` disks for each cut. In some cases, also kills the process at that point.
fn cut(run: &Run, depth: u32, budget: usize, context: &mut Context<'_>) -> Result<(), String> {
    let record = run.disk.record();
    let mut cuts = Cuts::new(&record);
    let of = record.events.len();
    loop {
        let at = cuts.at();
        context.tally.cuts += 1;
        for (number, image) in cuts.disks(&mut context.random, budget).into_iter().enumerate() {
            *(if depth == 1 {
                &mut context.tally.disks
            } else {
                &mut context.tally.disks_deep
            }) += 1;
            follow(Disk::of(image), run, at, depth, context).map_err(|error| {
                format!(
                    "cut {at} of {of} (depth {depth}), disk {number}: {error}{}",
                    trace(&record, at)
                )
            })?;
        }
        if depth < DEPTH_MAX && context.random.chance(1, KILL_ONE_IN) {
            context.tally.killed += 1;
            follow(cuts.killed(), run, at, depth, context)
                .map_err(|error| format!("kill at {at} of {of} (depth {depth}): {error}"))?;
        }
        if !cuts.step() {
            return Ok(());
        }
    }
}

/// Returns the events before event `at` as text, or an empty text unless `MICRODB_CUT_TRACE` is
/// set.
fn trace(record: &Record, at: usize) -> String {
    let events = record.events[..at].iter().enumerate();
    let lines = events.map(|(number, event)| format!("\n  {number} {}", event.shown()));
    if number("MICRODB_CUT_TRACE").is_some() {
        lines.collect()
    } else {
        String::new()
    }
}

/// Opens the database after a crash at event `at` of `run`, continues the work, opens the database
/// once more, and checks the backups. In some cases this work is cut as well.
fn follow(disk: Disk, run: &Run, at: usize, depth: u32, context: &mut Context<'_>) -> Result<(), String> {
    let unsynced = !disk.began_settled();
    let deeper = depth < DEPTH_MAX && (unsynced || context.random.chance(1, DEEPER_ONE_IN));
    let work = || {
        let mut next = Run::open(disk, context.shape, run.allowed(at))?;
        let count = if deeper { 6 } else { 1 };
        let mut last = None;
        for number in 0..count {
            let op = Op::draw(&mut context.random, 1000 * u64::from(depth) + number);
            next.step(&op)
                .map_err(|error| format!("operation {number} after it: {error}"))?;
            last = Some(op);
        }
        next.step(&Op::Reopen)
            .map_err(|error| format!("reopened after it and {last:?}: {error}"))?;
        for backup in &run.backups {
            backup.check(&next.disk, context.shape, at)?;
            context.tally.backups += 1;
        }
        Ok(next)
    };
    // A panic of the engine is also a finding. The caller then prints the place of the cut.
    let next: Result<Run, String> =
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("panic".to_owned()));
    let next = next?;
    if deeper {
        cut(&next, depth + 1, DISKS_DEEP, context)
    } else {
        Ok(())
    }
}
