//! Report on the recovery of a database while it was opened, for programs and for operators.
//!
//! - The displayed text names the commits that exist and the bytes that were dropped, and explains
//!   why nothing durable is missing.
//! - The report counts dropped bytes. None of them was ever acknowledged as durable.
//!
//! Deliberately absent: damage, which is an error of the open.

use std::fmt;

use serde::Serialize;

use crate::engine::counters::Bytes;
use crate::sequence::Sequence;

/// Report on the recovery of a database while it was opened.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// println!("{}", db.recovery());
/// assert_eq!(db.recovery().frames_replayed, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// `true` if this open created the database.
    pub created: bool,
    /// `true` if the log ends where the state in SUPER says and no bytes were dropped, as after a
    /// proper close. Also `true` if this open created the database.
    pub clean: bool,
    /// Sequence of the last commit in the log after recovery.
    pub sequence: Sequence,
    /// Sequence of the last commit that SUPER stated as durable before this open.
    pub durable_sequence: Sequence,
    /// Generation of the checkpoint that this open used, or 0 if the open used none and replayed
    /// the whole log.
    pub checkpoint: u64,
    /// `true` if the checkpoint that SUPER names was missing, damaged or unreadable.
    pub checkpoint_unusable: bool,
    /// Bytes of the frames that were replayed.
    pub bytes_replayed: u64,
    /// Number of frames that were replayed.
    pub frames_replayed: u64,
    /// Number of records in the replayed frames.
    pub records_replayed: u64,
    /// Bytes of a torn tail that were dropped. None of them had been acknowledged as durable. A
    /// read-only open ignores them, and leaves them on disk.
    pub dropped_bytes: u64,
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.created {
            return f.write_str("created a new database");
        }
        let (sequence, durable) = (self.sequence, self.durable_sequence);
        if self.clean {
            write!(f, "closed properly before, at commit {sequence}")?;
        } else if self.dropped_bytes == 0 && sequence == durable {
            write!(
                f,
                "not closed properly before; no commit is missing: the log ends with the last durable commit, {sequence}"
            )?;
        } else {
            write!(
                f,
                "not closed properly before; all durable commits are present, up to commit {durable}"
            )?;
        }
        if sequence > durable {
            let more = sequence.0 - durable.0;
            write!(
                f,
                "\n{more} later commits are complete and were kept; the database continues from commit {sequence}"
            )?;
        }
        if self.dropped_bytes > 0 {
            let bytes = Bytes(self.dropped_bytes);
            write!(
                f,
                "\n{bytes} of a torn tail were cut off: incomplete commits that were never acknowledged as durable"
            )?;
        }
        if self.frames_replayed > 0 {
            let (frames, records, bytes) = (
                self.frames_replayed,
                self.records_replayed,
                Bytes(self.bytes_replayed),
            );
            write!(
                f,
                "\n{frames} frames with {records} records ({bytes}) were replayed from the log"
            )?;
        }
        match (self.checkpoint_unusable, self.checkpoint) {
            (true, _) => f.write_str(
                "\nthe checkpoint was missing or damaged and was not used; the whole log was replayed instead, nothing is lost, and the next checkpoint replaces it",
            ),
            (false, 0) => f.write_str("\nthere was no checkpoint yet"),
            (false, generation) => write!(f, "\ncheckpoint {generation} was used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_present_and_dropped_commits_and_the_reason() {
        let shown = |report: RecoveryReport| report.to_string();
        let created = RecoveryReport {
            created: true,
            ..RecoveryReport::default()
        };
        assert_eq!(shown(created), "created a new database");
        let clean = RecoveryReport {
            clean: true,
            sequence: Sequence(7),
            durable_sequence: Sequence(7),
            checkpoint: 3,
            ..RecoveryReport::default()
        };
        assert_eq!(
            shown(clean),
            "closed properly before, at commit 7\ncheckpoint 3 was used"
        );
        let ended = RecoveryReport {
            sequence: Sequence(7),
            durable_sequence: Sequence(7),
            ..RecoveryReport::default()
        };
        assert_eq!(
            shown(ended.clone()),
            "not closed properly before; no commit is missing: the log ends with the last durable commit, 7\n\
             there was no checkpoint yet"
        );
        let torn = RecoveryReport {
            dropped_bytes: 100,
            ..ended.clone()
        };
        assert_eq!(
            shown(torn),
            "not closed properly before; all durable commits are present, up to commit 7\n\
             100 bytes of a torn tail were cut off: incomplete commits that were never acknowledged as durable\n\
             there was no checkpoint yet"
        );
        let more = RecoveryReport {
            sequence: Sequence(8),
            ..ended
        };
        assert_eq!(
            shown(more),
            "not closed properly before; all durable commits are present, up to commit 7\n\
             1 later commits are complete and were kept; the database continues from commit 8\n\
             there was no checkpoint yet"
        );
        let crashed = RecoveryReport {
            sequence: Sequence(12),
            durable_sequence: Sequence(9),
            checkpoint_unusable: true,
            frames_replayed: 4,
            records_replayed: 5,
            bytes_replayed: 3000,
            dropped_bytes: 100,
            ..RecoveryReport::default()
        };
        assert_eq!(
            shown(crashed),
            "not closed properly before; all durable commits are present, up to commit 9\n\
             3 later commits are complete and were kept; the database continues from commit 12\n\
             100 bytes of a torn tail were cut off: incomplete commits that were never acknowledged as durable\n\
             4 frames with 5 records (2.9 KiB) were replayed from the log\n\
             the checkpoint was missing or damaged and was not used; the whole log was replayed instead, nothing is lost, and the next checkpoint replaces it"
        );
    }
}
