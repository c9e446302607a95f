//! Flipped bits: one bit of a database's files at a time.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use imt_benches::Outcome;
use imt_benches::data::Random;
use imt_benches::engines::EngineName;

use crate::disk::View;
use crate::report::Tally;
use crate::verdict::{Verdict, judge};
use crate::work::{self, Expected, Task};
use crate::{Plan, RECORDS};

/// Number of records in a commit of the first half of the database. The second half has one record
/// in each commit.
const PER_COMMIT: u64 = 10;

/// The end of the process that wrote the second half of the database.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum End {
    Closed,
    Killed,
}

/// Flips bits of one database, each in a new copy, and opens each copy.
pub(crate) fn run(plan: &Plan, engine: EngineName, end: End) -> Outcome<Tally> {
    let (whole, scratch) = (plan.folder.join("whole"), plan.folder.join("scratch"));
    View::default().write(&whole)?;
    let half = RECORDS / 2;
    let fill = |records, per_commit, compact, until_killed| Task::Fill {
        engine,
        folder: whole.clone(),
        records,
        per_commit,
        compact,
        until_killed,
    };
    stored(&fill(0..half, PER_COMMIT, true, false))?;
    stored(&fill(half..RECORDS, 1, false, end == End::Killed))?;
    let view = View::read(&whole)?;
    let expected = Expected::first(RECORDS);
    let mut tally = Tally::default();
    let unharmed = judge_view(&view, &scratch, engine, &expected)?;
    if unharmed.0 != Verdict::Right {
        return Err(format!("the unharmed database is not right: {unharmed:?}").into());
    }
    let used = view.used();
    tally.bytes = used.iter().map(|(_, _, bytes)| bytes).sum();
    let mut random = Random::new(plan.seed);
    for _ in 0..plan.flips {
        let mut at = random.below(tally.bytes);
        let bit = random.below(8) as u32;
        // The place of byte number `at`, counted over the bytes of all used sectors.
        let place = used.iter().find_map(|(path, start, bytes)| {
            if at < *bytes {
                return Some((path, start + at));
            }
            at -= bytes;
            None
        });
        let (path, offset) = place.ok_or("no used sector")?;
        let mut damaged = view.clone();
        damaged.flip(path, offset, bit);
        let (verdict, example) = judge_view(&damaged, &scratch, engine, &expected)?;
        tally.add(
            verdict,
            &path.display().to_string(),
            format!("byte {offset}, bit {bit}: {example}"),
        );
    }
    Ok(tally)
}

fn judge_view(
    view: &View,
    scratch: &Path,
    engine: EngineName,
    expected: &Expected,
) -> Outcome<(Verdict, String)> {
    view.write(scratch)?;
    judge(engine, scratch, expected)
}

/// Runs a task that stores records. If the task has `until_killed`, kills its process once the
/// records are stored.
pub(crate) fn stored(task: &Task) -> Outcome<()> {
    let mut child = work::command(task)?.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if let Task::Fill {
        until_killed: true, ..
    } = task
    {
        child.kill()?;
    }
    let status = child.wait()?;
    if line.trim() == "stored" {
        Ok(())
    } else {
        Err(format!("the storing process ended with {status}").into())
    }
}
