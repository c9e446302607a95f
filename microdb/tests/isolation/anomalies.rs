//! Tests of the checker itself: histories without faults, and a history for each anomaly that it
//! must find.

use super::checker::{History, Key, Op, Seen, check};

const X: Key = (1, 0);
const Y: Key = (1, 1);

fn op(name: &str, (begin, end): (u64, u64)) -> Op {
    Op {
        name: name.to_owned(),
        begin,
        end,
        reads: Vec::new(),
        is_point_read: false,
        writes: Vec::new(),
        committed: true,
    }
}

impl Op {
    fn reads(mut self, key: Key, seen: Seen) -> Self {
        self.reads.push((key, seen));
        self
    }

    fn point_read(mut self, key: Key, seen: Seen) -> Self {
        self.is_point_read = true;
        self.reads(key, seen)
    }

    fn writes(mut self, key: Key, value: Option<u64>) -> Self {
        self.writes.push((key, value));
        self
    }
}

/// Checks the operations as a history. Operations with writes are committed in the given order.
fn checked(ops: Vec<Op>) -> Result<(), String> {
    let writers = ops.iter().enumerate().filter(|(_, op)| !op.writes.is_empty());
    let order = writers.map(|(index, _)| index).collect();
    check(&History { ops, order }).map(|_| ())
}

fn faults(ops: Vec<Op>) -> String {
    checked(ops).expect_err("the history has a fault")
}

fn start() -> Op {
    op("start", (0, 1)).writes(X, Some(1)).writes(Y, Some(2))
}

#[test]
fn checker_accepts_a_serial_history_with_clears_and_absent_keys() {
    let ops = vec![
        op("absent", (0, 1)).reads(X, Seen::Absent),
        op("put", (2, 3)).writes(X, Some(1)),
        op("clear", (4, 6)).writes(X, None).writes(Y, None),
        // The next two operations overlap with the clear in time. The first one sees the state
        // before the clear, and the second one the state after it.
        op("beside", (5, 9)).reads(X, Seen::Value(1)),
        op("beside too", (5, 9))
            .reads(X, Seen::Absent)
            .reads(Y, Seen::Absent),
        op("again", (10, 11)).reads(X, Seen::Absent).writes(X, Some(3)),
        op("delete", (12, 13)).reads(X, Seen::Present).writes(X, None),
        op("last", (14, 15)).reads(X, Seen::Absent),
    ];
    checked(ops).unwrap();
}

#[test]
fn checker_finds_a_lost_update() {
    let ops = vec![
        start(),
        op("one", (2, 9)).reads(X, Seen::Value(1)).writes(X, Some(3)),
        op("two", (2, 9)).reads(X, Seen::Value(1)).writes(X, Some(4)),
    ];
    let faults = faults(ops);
    assert!(faults.contains("a cycle of 2 operations"), "{faults}");
    assert!(
        faults.contains("#2 two [2..9] read t1/k0, which #1 one [2..9] replaced"),
        "{faults}"
    );
}

#[test]
fn checker_finds_write_skew() {
    let both = |name| op(name, (2, 9)).reads(X, Seen::Value(1)).reads(Y, Seen::Value(2));
    let ops = vec![
        start(),
        both("one").writes(X, Some(3)),
        both("two").writes(Y, Some(4)),
    ];
    let faults = faults(ops);
    assert!(faults.contains("a cycle of 2 operations"), "{faults}");
    assert!(faults.contains("t1/k0") && faults.contains("t1/k1"), "{faults}");
}

#[test]
fn checker_finds_a_dirty_read() {
    let mut refused = op("refused", (2, 5)).writes(X, Some(3));
    refused.committed = false;
    let ops = vec![start(), refused, op("reader", (3, 9)).reads(X, Seen::Value(3))];
    let order = vec![0];
    let faults = check(&History { ops, order }).unwrap_err();
    assert!(
        faults.contains("#2 reader [3..9] read t1/k0 = Value(3), which nobody committed"),
        "{faults}"
    );
}

#[test]
fn checker_finds_a_long_fork() {
    let ops = vec![
        start(),
        op("x", (2, 9)).writes(X, Some(3)),
        op("y", (2, 9)).writes(Y, Some(4)),
        op("one", (2, 9))
            .reads(X, Seen::Value(3))
            .reads(Y, Seen::Value(2)),
        op("two", (2, 9))
            .reads(X, Seen::Value(1))
            .reads(Y, Seen::Value(4)),
    ];
    let faults = faults(ops);
    assert!(faults.contains("a cycle of 4 operations"), "{faults}");
}

#[test]
fn checker_finds_a_read_of_a_cleared_key() {
    let ops = vec![
        start(),
        op("clear", (2, 3)).writes(X, None).writes(Y, None),
        op("late", (4, 5)).reads(X, Seen::Value(1)),
    ];
    let faults = faults(ops);
    assert!(
        faults.contains("#1 clear [2..3] ended before #2 late [4..5] began"),
        "{faults}"
    );
}

#[test]
fn checker_finds_a_swap_that_commits_behind_a_clear() {
    let ops = vec![
        start(),
        op("clear", (2, 9)).writes(X, None).writes(Y, None),
        op("swap", (2, 9)).reads(X, Seen::Value(1)).writes(X, Some(3)),
    ];
    let faults = faults(ops);
    assert!(
        faults.contains("#2 swap [2..9] read t1/k0, which #1 clear [2..9] replaced"),
        "{faults}"
    );
}

#[test]
fn checker_finds_an_absent_key_that_appeared_before_the_commit() {
    let ops = vec![
        op("put", (0, 9)).writes(X, Some(1)),
        op("if absent", (0, 9)).reads(X, Seen::Absent).writes(X, Some(2)),
    ];
    let faults = faults(ops);
    assert!(faults.contains("a cycle of 2 operations"), "{faults}");
}

#[test]
fn checker_finds_half_of_a_batch() {
    let ops = vec![
        start(),
        op("batch", (2, 9)).writes(X, Some(3)).writes(Y, Some(4)),
        op("snapshot", (2, 9))
            .reads(X, Seen::Value(3))
            .reads(Y, Seen::Value(2)),
    ];
    let faults = faults(ops);
    assert!(faults.contains("#2 snapshot [2..9] fits no moment"), "{faults}");
    assert!(faults.contains("a cycle of 2 operations"), "{faults}");
}

#[test]
fn checker_finds_commits_out_of_real_time_and_lost_and_unwanted_ones() {
    let history = |order: Vec<usize>, committed| {
        let mut late = op("late", (4, 5)).writes(Y, Some(2));
        late.committed = committed;
        let ops = vec![op("early", (2, 3)).writes(X, Some(1)), late];
        check(&History { ops, order })
    };
    history(vec![0, 1], true).unwrap();
    let out_of_order = history(vec![1, 0], true).unwrap_err();
    assert!(
        out_of_order.contains("#0 early [2..3] ended before #1 late"),
        "{out_of_order}"
    );
    let lost = history(vec![0], true).unwrap_err();
    assert!(lost.contains("was acknowledged, and is not committed"), "{lost}");
    let unwanted = history(vec![0, 1], false).unwrap_err();
    assert!(unwanted.contains("was refused, and is committed"), "{unwanted}");
}

/// A start, a batch of two keys that takes long, and a point read that sees one of the keys before
/// the batch has ended.
fn a_batch_seen_early() -> Vec<Op> {
    vec![
        start(),
        op("batch", (2, 20)).writes(X, Some(3)).writes(Y, Some(4)),
        op("early", (3, 4)).point_read(X, Seen::Value(3)),
    ]
}

#[test]
fn checker_accepts_point_reads_of_a_batch_that_becomes_visible_key_by_key() {
    let mut ops = a_batch_seen_early();
    ops.push(op("other key", (5, 6)).point_read(Y, Seen::Value(2)));
    checked(ops).unwrap();
}

#[test]
fn checker_finds_a_point_read_behind_an_earlier_read_of_its_key() {
    let mut ops = a_batch_seen_early();
    ops.push(op("behind", (5, 6)).point_read(X, Seen::Value(1)));
    let faults = faults(ops);
    assert!(
        faults.contains("#2 early [3..4] ended before #3 behind [5..6] began"),
        "{faults}"
    );
}

#[test]
fn checker_finds_a_snapshot_behind_a_point_read() {
    let mut ops = a_batch_seen_early();
    ops.push(op("snapshot", (5, 6)).reads(Y, Seen::Value(2)));
    let faults = faults(ops);
    assert!(
        faults.contains("#2 early [3..4] ended before #3 snapshot [5..6] began"),
        "{faults}"
    );
}

#[test]
fn checker_finds_a_point_read_that_misses_a_commit_before_the_batch_seen_early() {
    let mut ops = a_batch_seen_early();
    ops.insert(1, op("put", (2, 20)).writes(Y, Some(5)));
    ops.push(op("older", (5, 6)).point_read(Y, Seen::Value(2)));
    let faults = faults(ops);
    assert!(faults.contains("#4 older [5..6] fits no moment"), "{faults}");
}

#[test]
fn checker_finds_a_put_of_one_key_seen_by_one_point_read_and_missed_by_the_next() {
    let ops = vec![
        start(),
        op("x", (2, 20)).writes(X, Some(3)),
        op("y", (2, 20)).writes(Y, Some(4)),
        op("newer", (3, 4)).point_read(Y, Seen::Value(4)),
        op("older", (5, 6)).point_read(X, Seen::Value(1)),
    ];
    let faults = faults(ops);
    assert!(faults.contains("#4 older [5..6] fits no moment"), "{faults}");
}
