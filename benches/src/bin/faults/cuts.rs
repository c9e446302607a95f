//! Power cuts while durable commits are written.
//!
//! An engine opens a database, stores commits one after the other, and closes the database. Before
//! each sync of files, after each durable write and after each acknowledged commit, this program
//! makes copies of the folder as a power cut at this moment may leave it, and opens each copy. All
//! acknowledged commits must be present, and the commit in progress must be present as a whole or
//! not at all. An engine without atomic batches may store a part of the commit in progress.

use std::cell::RefCell;
use std::path::PathBuf;

use imt_benches::Outcome;
use imt_benches::data::Random;
use imt_benches::engines::EngineName;

use crate::disk::{Disk, Fate, View};
use crate::flips::stored;
use crate::power::{Outcomes, Power};
use crate::report::Tally;
use crate::verdict::judge;
use crate::work::{Expected, Order, Reply, Task};
use crate::{Plan, RECORDS};

/// Number of records in each commit during which the power is cut.
pub(crate) const PER_COMMIT: u64 = 4;

/// Creates a database with [`RECORDS`] records and closes it. Returns its folder.
pub(crate) fn prepare(plan: &Plan, engine: EngineName) -> Outcome<PathBuf> {
    let folder = plan.folder.join("database");
    View::default().write(&folder)?;
    stored(&Task::Fill {
        engine,
        folder: folder.clone(),
        records: 0..RECORDS,
        per_commit: 10,
        compact: false,
        until_killed: false,
    })?;
    Ok(folder)
}

/// The state of the power cuts of one engine: the records that must or may be present now, and the
/// verdicts so far.
struct Cutter<'a> {
    plan: &'a Plan,
    engine: EngineName,
    random: Random,
    expected: Expected,
    tally: Tally,
}

impl Cutter<'_> {
    /// Tries `tries` power cuts at one moment, each on a copy of the files, and judges each copy.
    fn cut(&mut self, disk: &Disk, view: &View, tries: u64) -> Outcome<()> {
        self.tally.moments += 1;
        let pending = disk.pending(view);
        self.tally.pending += pending.iter().map(|(_, sectors)| *sectors as u64).sum::<u64>();
        for _ in 0..tries {
            let (after, fates) = self.draw(disk, view, &pending);
            let scratch = self.plan.folder.join("scratch");
            after.write(&scratch)?;
            let (verdict, example) = judge(self.engine, &scratch, &self.expected)?;
            self.tally
                .add(verdict, "power cut", format!("{fates}: {example}"));
        }
        Ok(())
    }

    /// Draws the fate of each file in `pending`. Returns the files after the power cut, and the
    /// fates as text.
    fn draw(&mut self, disk: &Disk, view: &View, pending: &[(PathBuf, usize)]) -> (View, String) {
        let random = &mut self.random;
        // One random file, the centre, gets any of the six fates. Each other file gets only
        // `Random`, `Old` or `New`.
        let centre = random.below(pending.len().max(1) as u64) as usize;
        let kind = random.below(6);
        let mut fates = Vec::new();
        for (position, (path, sectors)) in pending.iter().enumerate() {
            let some = random.below(*sectors as u64 + 1) as usize;
            let kind = if position == centre {
                kind
            } else {
                3 + random.below(3)
            };
            let fate = match kind {
                0 => Fate::Cut(some),
                1 => Fate::Holes(some),
                2 => Fate::AllBut(some),
                3 => Fate::Random,
                4 => Fate::Old,
                _ => Fate::New,
            };
            fates.push((path, fate));
        }
        let text = format!("{fates:?}");
        let after = disk.after_cut(view, random, |path| {
            let fate = fates.iter().find(|(of, _)| of.as_path() == path);
            fate.map_or(Fate::New, |(_, fate)| *fate)
        });
        (after, text)
    }
}

/// Opens a database, stores commits and closes the database. Cuts the power before each sync, after
/// each durable write and after each acknowledged commit.
pub(crate) fn run(plan: &Plan, engine: EngineName) -> Outcome<Tally> {
    let folder = prepare(plan, engine)?;
    let cutter = RefCell::new(Cutter {
        plan,
        engine,
        random: Random::new(plan.seed),
        expected: Expected::first(RECORDS),
        tally: Tally::default(),
    });
    let mut hook = |disk: &Disk, view: &View| cutter.borrow_mut().cut(disk, view, plan.tries);
    let mut power = Power::start(engine, &folder, &mut hook)?;
    for number in 0..plan.commits {
        let from = RECORDS + number * PER_COMMIT;
        let records = from..from + PER_COMMIT;
        // An engine without atomic batches may store a part of a commit.
        cutter.borrow_mut().expected.unsure = if engine.has_batches() {
            vec![records.clone()]
        } else {
            records.clone().map(|index| index..index + 1).collect()
        };
        match power.order(&Order::Commit(records.clone()), &mut hook)? {
            Outcomes::Reply(Reply::None) => (),
            other => return Err(format!("commit {number} failed: {other:?}").into()),
        }
        let mut cutter = cutter.borrow_mut();
        cutter.expected.unsure.clear();
        cutter.expected.add_sure(records);
        cutter.tally.commits += 1;
        let (view, disk) = power.state()?;
        cutter.cut(disk, &view, 1)?;
    }
    match power.order(&Order::Close, &mut hook)? {
        Outcomes::Reply(Reply::None) => (),
        other => return Err(format!("the close failed: {other:?}").into()),
    }
    drop(power);
    Ok(cutter.into_inner().tally)
}
