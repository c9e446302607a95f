//! A failed sync: one sync or durable write fails with `EIO`, and all later ones succeed.
//!
//! After the failure, the kernel treats the pages as clean: a repeated sync succeeds and writes
//! nothing. So an engine that repeats the sync acknowledges data that the disk does not have. A
//! scenario ends with a power cut that loses everything pending, and a reading of the rest. The
//! scenario ends without a power cut if no sync or durable write failed and the process neither
//! ended nor hung, or if the engine does not open in a new process.
//!
//! A process that is started again reads the pages of the failed sync from memory, as if they were
//! durable. So half of the scenarios kill the process after the failure, and open the database
//! in a new one.

use std::collections::{BTreeMap, BTreeSet};

use imt_benches::Outcome;
use imt_benches::data::Random;
use imt_benches::engines::EngineName;
use serde::Serialize;

use crate::cuts::prepare;
use crate::disk::{Disk, Fate, View};
use crate::power::{Outcomes, Power};
use crate::verdict::{Verdict, judge};
use crate::work::{Expected, Order, Reading, Reply};
use crate::{Plan, RECORDS};

/// Exclusive maximum of [`Scenario::before`].
const BEFORE_MAX: u64 = 20;
/// Minimum number of commits after the failure, if each commit makes a sync, the process neither
/// ends nor hangs, and a new process can open the database.
const AFTER: u64 = 20;
/// The failing sync is one of this number of syncs after the first `before` commits of a scenario.
/// If an engine makes one sync per commit, the failure is in one of this number of commits.
const FIRST_SYNCS: u64 = 3;
/// Numbers of records in a commit. The larger commits fill whole pages, which no later commit
/// writes again.
const SIZES: [u64; 2] = [4, 80];
/// Maximum number of examples in a [`SyncTally`].
const EXAMPLES_MAX: usize = 12;

/// The life of the process after the failure.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Life {
    GoesOn,
    StartsAgain,
}

/// The results of all scenarios of one engine with the same [`Life`].
#[derive(Debug, Default, Serialize)]
pub(crate) struct SyncTally {
    /// Number of scenarios in which a sync or durable write failed, or the process ended or hung.
    pub(crate) scenarios: u64,
    /// Number of scenarios in which the commit with the failed sync returned an error.
    pub(crate) reported: u64,
    /// Number of scenarios in which the commit with the failed sync was acknowledged.
    pub(crate) acknowledged: u64,
    /// Number of scenarios in which a commit after the failure, or the open in a new process, was
    /// refused.
    pub(crate) refusing: u64,
    /// Number of scenarios in which a commit after the failure was acknowledged.
    pub(crate) accepting: u64,
    /// Number of scenarios in which the process ended or hung.
    pub(crate) ended: u64,
    /// Number of scenarios in which the running engine read all acknowledged records after the
    /// failure.
    pub(crate) readable: u64,
    /// Number of scenarios that ended with a power cut.
    pub(crate) cuts: u64,
    /// Number of scenarios with the verdict `Verdict::Right` after the power cut.
    pub(crate) kept: u64,
    /// Number of scenarios by verdict after the power cut, without `Verdict::Right`.
    pub(crate) verdicts: BTreeMap<Verdict, u64>,
    /// Distinct examples. Each has a step of the scenario, and the engine's message, the file of
    /// the failed sync or the verdict.
    pub(crate) examples: BTreeSet<String>,
}

impl SyncTally {
    fn example(&mut self, step: &str, text: &str) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.insert(format!("{step}: {text}"));
        }
    }
}

/// One failure: the number of commits before its syncs are counted, the number of counted syncs
/// that succeed, the number of records in a commit, and the life of the process after the failure.
struct Scenario {
    before: u64,
    passing: u64,
    per_commit: u64,
    life: Life,
}

/// Runs the scenarios of one engine. `life` is the life of the process after the failure, in all
/// these scenarios.
pub(crate) fn run(plan: &Plan, engine: EngineName, life: Life) -> Outcome<SyncTally> {
    let folder = prepare(plan, engine)?;
    let view = View::read(&folder)?;
    let mut tally = SyncTally::default();
    let mut random = Random::new(plan.seed);
    for number in 0..plan.scenarios {
        view.write(&folder)?;
        let scenario = Scenario {
            before: random.below(BEFORE_MAX),
            passing: number % FIRST_SYNCS,
            per_commit: SIZES[(number / FIRST_SYNCS) as usize % SIZES.len()],
            life,
        };
        one(plan, engine, &scenario, &mut tally, &mut random)?;
    }
    Ok(tally)
}

fn one(
    plan: &Plan,
    engine: EngineName,
    scenario: &Scenario,
    tally: &mut SyncTally,
    random: &mut Random,
) -> Outcome<()> {
    let folder = plan.folder.join("database");
    let nothing = &mut |_: &Disk, _: &View| Ok(());
    let mut power = Power::start(engine, &folder, nothing)?;
    let mut expected = Expected::first(RECORDS);
    let (mut is_after, mut refused, mut accepted, mut ended) = (false, 0, 0, false);
    for number in 0..scenario.before + FIRST_SYNCS + AFTER {
        let from = RECORDS + number * scenario.per_commit;
        let records = from..from + scenario.per_commit;
        if number == scenario.before {
            power.fail_after(scenario.passing);
        }
        let reply = power.order::<Reply>(&Order::Commit(records.clone()), nothing)?;
        let is_struck = number >= scenario.before && !is_after && power.has_failed();
        match reply {
            Outcomes::Reply(None) => {
                expected.add_sure(records);
                if is_struck {
                    tally.acknowledged += 1;
                    tally.example("acknowledged after a failed sync", power.failed());
                }
                accepted += u64::from(is_after);
            }
            Outcomes::Reply(Some(error)) => {
                // An engine without atomic batches may have stored a part, so each record may be
                // present without the others.
                expected.unsure.extend(records.map(|index| index..index + 1));
                tally.reported += u64::from(is_struck);
                refused += u64::from(is_after);
                tally.example(if is_after { "later commit" } else { "commit" }, &error);
            }
            Outcomes::Ended | Outcomes::Hung => {
                expected.unsure.extend(records.map(|index| index..index + 1));
                ended = true;
            }
        }
        is_after |= is_struck;
        if is_struck && scenario.life == Life::StartsAgain {
            match power.restart(engine, nothing) {
                Ok(again) => power = again,
                Err(error) => {
                    tally.scenarios += 1;
                    tally.refusing += 1;
                    tally.example("open after the failure", &error.to_string());
                    return Ok(());
                }
            }
        } else if ended {
            break;
        }
    }
    if !is_after && !ended {
        return Ok(());
    }
    tally.scenarios += 1;
    tally.refusing += u64::from(refused > 0);
    tally.accepting += u64::from(accepted > 0);
    tally.ended += u64::from(ended);
    if !ended {
        let sure = Expected {
            unsure: Vec::new(),
            ..expected.clone()
        };
        if let Outcomes::Reply(reading) = power.order::<Reading>(&Order::Read(sure), nothing)? {
            tally.readable += u64::from(Verdict::of(&reading) == Verdict::Right);
            if let Some(error) = reading.first_error {
                tally.example("read", &error);
            }
        }
    }
    let (view, disk) = power.state()?;
    let after = disk.after_cut(&view, random, |_| Fate::Old);
    drop(power);
    let scratch = plan.folder.join("scratch");
    after.write(&scratch)?;
    let (verdict, example) = judge(engine, &scratch, &expected)?;
    tally.cuts += 1;
    if verdict == Verdict::Right {
        tally.kept += 1;
    } else {
        *tally.verdicts.entry(verdict).or_default() += 1;
        tally.example("after the power cut", &format!("{verdict:?}: {example}"));
    }
    Ok(())
}
