//! The results, as tables for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::syncs::SyncTally;
use crate::verdict::Verdict;

/// Maximum number of examples of each verdict in a [`Tally`]. The verdict `Right` has none.
const EXAMPLES_MAX: usize = 3;

/// The verdicts of one engine under one kind of damage.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) verdicts: BTreeMap<Verdict, u64>,
    /// The verdicts by damaged file. All power cuts have one entry, "power cut".
    pub(crate) files: BTreeMap<String, BTreeMap<Verdict, u64>>,
    pub(crate) examples: BTreeMap<Verdict, Vec<String>>,
    /// Number of bytes in sectors with at least one nonzero byte. The flipped bits are drawn from
    /// these bytes. 0 for power cuts.
    pub(crate) bytes: u64,
    /// Number of commits during which the power was cut. 0 for flipped bits.
    pub(crate) commits: u64,
    /// Number of moments at which the power was cut, those of the open and close included.
    pub(crate) moments: u64,
    /// Sum, over all moments, of the number of sectors that were pending (see [`crate::disk`]).
    pub(crate) pending: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, verdict: Verdict, file: &str, example: String) {
        *self.verdicts.entry(verdict).or_default() += 1;
        let by_file = self.files.entry(file.to_owned()).or_default();
        *by_file.entry(verdict).or_default() += 1;
        let examples = self.examples.entry(verdict).or_default();
        if verdict != Verdict::Right && examples.len() < EXAMPLES_MAX {
            examples.push(example);
        }
    }

    fn count(&self, verdicts: &[Verdict]) -> u64 {
        let count = |verdict| self.verdicts.get(verdict).copied().unwrap_or(0);
        verdicts.iter().map(count).sum()
    }
}

/// All results of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    /// Flipped bits in closed databases, by engine.
    pub(crate) flips_closed: Vec<(String, Tally)>,
    /// Flipped bits in databases of killed processes, by engine.
    pub(crate) flips_killed: Vec<(String, Tally)>,
    /// Power cuts, by engine.
    pub(crate) cuts: Vec<(String, Tally)>,
    /// Failed syncs after which the process goes on, by engine.
    pub(crate) syncs: Vec<(String, SyncTally)>,
    /// Failed syncs after which the process is killed and started again, by engine.
    pub(crate) syncs_restarted: Vec<(String, SyncTally)>,
    /// Kinds of faults that could not be tried on an engine: engine and reason.
    pub(crate) failures: Vec<(String, String)>,
}

impl Results {
    /// Returns the tables in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (title, tallies) in [("closed", &self.flips_closed), ("killed", &self.flips_killed)] {
            if !tallies.is_empty() {
                flips(&mut text, title, tallies);
            }
        }
        if !self.cuts.is_empty() {
            cuts(&mut text, &self.cuts);
        }
        for (title, tallies) in [
            ("the process goes on", &self.syncs),
            ("the process is killed and started again", &self.syncs_restarted),
        ] {
            if !tallies.is_empty() {
                syncs(&mut text, title, tallies);
            }
        }
        for (engine, reason) in &self.failures {
            let _ = writeln!(text, "failed: {engine}: {reason}");
        }
        text
    }
}

fn flips(text: &mut String, title: &str, tallies: &[(String, Tally)]) {
    let _ = writeln!(
        text,
        "Flipped bits, {title} database\n\n\
         | engine | bits | right | open fails | read fails | drop reported | absent, no error | wrong value | panic | \
         crash | hang |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for (engine, tally) in tallies {
        let _ = write!(text, "| {engine} | {}", tally.verdicts.values().sum::<u64>());
        for verdict in [
            Verdict::Right,
            Verdict::Refused,
            Verdict::ReadError,
            Verdict::Told,
            Verdict::Absent,
            Verdict::Wrong,
            Verdict::Panic,
            Verdict::Crash,
            Verdict::Hang,
        ] {
            let _ = write!(text, " | {}", tally.count(&[verdict]));
        }
        text.push_str(" |\n");
    }
    text.push('\n');
}

fn cuts(text: &mut String, tallies: &[(String, Tally)]) {
    let _ = writeln!(
        text,
        "Power cuts\n\n\
         | engine | commits | moments | pending sectors | cuts | all commits kept | open fails | read fails | \
         commit lost | part of a commit | wrong value | panic, crash, hang |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for (engine, tally) in tallies {
        let _ = write!(
            text,
            "| {engine} | {} | {} | {} | {}",
            tally.commits,
            tally.moments,
            tally.pending,
            tally.verdicts.values().sum::<u64>()
        );
        for verdicts in [
            &[Verdict::Right][..],
            &[Verdict::Refused],
            &[Verdict::ReadError],
            &[Verdict::Absent, Verdict::Told],
            &[Verdict::Partial],
            &[Verdict::Wrong],
            &[Verdict::Panic, Verdict::Crash, Verdict::Hang],
        ] {
            let _ = write!(text, " | {}", tally.count(verdicts));
        }
        text.push_str(" |\n");
    }
    text.push('\n');
}

fn syncs(text: &mut String, title: &str, tallies: &[(String, SyncTally)]) {
    let _ = writeln!(
        text,
        "A failed sync, {title}\n\n\
         | engine | scenarios | its commit: error | acknowledged | later commits: refused | acknowledged | \
         process ended | reads right | after a power cut: all there | not |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for (engine, tally) in tallies {
        let _ = writeln!(
            text,
            "| {engine} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            tally.scenarios,
            tally.reported,
            tally.acknowledged,
            tally.refusing,
            tally.accepting,
            tally.ended,
            tally.readable,
            tally.kept,
            tally.cuts - tally.kept
        );
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scenarios_that_end_with_a_power_cut_can_lose_records() {
        let tally = SyncTally {
            scenarios: 5,
            refusing: 2,
            cuts: 3,
            kept: 2,
            ..SyncTally::default()
        };
        let results = Results {
            syncs: vec![("one".to_owned(), tally)],
            ..Results::default()
        };
        let text = results.markdown();
        assert!(
            text.contains("| one | 5 | 0 | 0 | 2 | 0 | 0 | 0 | 2 | 1 |"),
            "{text}"
        );
    }
}
