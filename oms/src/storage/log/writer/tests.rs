//! Tests of the writer's decision that the engine has lost entries, with a log of scripted answers.

use std::collections::VecDeque;

use super::*;
use crate::storage::log::body::CHAIN_BYTES;
use crate::storage::log::{Answer, Head, LastWords, RowsPart};
use crate::storage::write_batch::{Row, Table};

const EPOCH: u64 = 5;

/// The answer of a server to one attempt to append the entry 2.
#[derive(Clone, Copy)]
enum Server {
    /// A server without the previous entry 1.
    Old,
    /// A server with the previous entry, which does not append the new one.
    Current,
    /// A server that appends the new entry.
    Appends,
    /// A server that appends the new entry, and answers too late.
    Late,
    /// A server that does not answer. Its client waits without a limit.
    Silent,
}

/// A log with one answer for each attempt to append.
struct Scripted {
    servers: VecDeque<Server>,
    /// The entries appended by `Server::Late`.
    late: Vec<Entry>,
    now: Server,
    changes_of_host: u32,
}

impl Log for Scripted {
    fn append<'a>(&'a mut self, entry: &'a Entry, _: Option<(u64, u64)>) -> Answer<'a, bool> {
        if self.late.contains(entry) {
            return Box::pin(async { Ok(false) });
        }
        self.now = self.servers.pop_front().unwrap_or(Server::Appends);
        if matches!(self.now, Server::Late) {
            self.late.push(entry.clone());
            return Box::pin(async { Err(LogError::Unknown("too late".to_owned())) });
        }
        if matches!(self.now, Server::Silent) {
            return Box::pin(std::future::pending());
        }
        let appends = matches!(self.now, Server::Appends);
        Box::pin(async move { Ok(appends) })
    }

    fn look(&mut self, seq: u64) -> Answer<'_, Option<EntryHead>> {
        if let Some(late) = self.late.iter().find(|late| late.seq == seq) {
            let late = EntryHead::of(late);
            return Box::pin(async move { Ok(Some(late)) });
        }
        let is_there = seq == 1 && matches!(self.now, Server::Current);
        let head = is_there.then(|| EntryHead {
            seq,
            epoch: EPOCH,
            bytes: Bytes::new(),
        });
        Box::pin(async move { Ok(head) })
    }

    fn newest(&mut self) -> Answer<'_, Position> {
        panic!("the writer does not call this")
    }

    fn head(&mut self) -> Answer<'_, Option<Head>> {
        let (epoch, kept_from) = (EPOCH, 1);
        Box::pin(async move { Ok(Some(Head { epoch, kept_from })) })
    }

    fn owner(&mut self) -> Answer<'_, Option<String>> {
        panic!("the writer does not call this")
    }

    fn confirm(&mut self) -> Answer<'_, bool> {
        panic!("the writer does not call this")
    }

    fn release(&mut self, _: u64) -> Answer<'_, ()> {
        panic!("the writer does not call this")
    }

    fn create(&mut self) -> Answer<'_, ()> {
        panic!("the writer does not call this")
    }

    fn raise<'a>(&'a mut self, _: &'a str, _: u64, _: u64) -> Answer<'a, Option<u64>> {
        panic!("the writer does not call this")
    }

    fn tail(&mut self, _: u64, _: u64) -> Answer<'_, Vec<Entry>> {
        panic!("the writer does not call this")
    }

    fn rows<'a>(&'a mut self, _: Option<(Table, &'a [u8])>) -> Answer<'a, RowsPart> {
        panic!("the writer does not call this")
    }

    fn checkpoint<'a>(&'a mut self, _: u64, _: &'a Position, _: &'a LastWords) -> Answer<'a, bool> {
        panic!("the writer does not call this")
    }

    fn trim(&mut self, _: u64, _: u64, _: u64) -> Answer<'_, Option<u64>> {
        panic!("the writer does not call this")
    }

    fn next_host(&mut self) {
        self.changes_of_host += 1;
    }

    fn remove(&mut self, _: u64) -> Answer<'_, ()> {
        panic!("the writer does not call this")
    }
}

/// Detects the mistake `engine-old-host-kept`: the writer does not try the next host.
#[tokio::test(start_paused = true)]
async fn entries_are_lost_only_if_successive_reads_do_not_show_them() {
    let before = Position {
        seq: 1,
        epoch: EPOCH,
        ..Position::default()
    };
    let old = OLD_ANSWERS_MAX as usize;
    for (reads, is_lost) in [
        (vec![Server::Old; old], false),
        (vec![Server::Old; old + 1], true),
        // One read that shows the entry begins the count again.
        (
            [
                vec![Server::Old; old],
                vec![Server::Current],
                vec![Server::Old; old],
            ]
            .concat(),
            false,
        ),
        ([vec![Server::Current], vec![Server::Old; old + 1]].concat(), true),
    ] {
        let count = reads.len();
        let mut log = Scripted {
            servers: reads.into(),
            late: Vec::new(),
            now: Server::Appends,
            changes_of_host: 0,
        };
        let entry = BodyWriter::with_capacity(0).seal(&before, EPOCH);
        let position = entry.1;
        let settled = settle(&mut log, before, entry, &LogStatus::default()).await;
        let expected = match is_lost {
            true => Settled::PredecessorLost,
            false => Settled::Durable(position),
        };
        assert_eq!(settled, expected, "{count} reads");
        assert!(log.servers.is_empty(), "{count} reads");
        assert!(log.changes_of_host >= OLD_ANSWERS_MAX, "{count} reads");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_answers_late_many_times_acknowledges_the_entry_at_last() {
    let before = Position {
        seq: 1,
        epoch: EPOCH,
        ..Position::default()
    };
    let late = 3 * UNACKNOWLEDGED_WHEN_STOPPING;
    for is_stopping in [false, true] {
        let mut log = Scripted {
            servers: vec![Server::Late; late].into(),
            late: Vec::new(),
            now: Server::Appends,
            changes_of_host: 0,
        };
        let status = LogStatus::default();
        if is_stopping {
            status.stop_waiting();
        }
        let entry = BodyWriter::with_capacity(0).seal(&before, EPOCH);
        match settle(&mut log, before, entry, &status).await {
            Settled::Durable(position) if !is_stopping => assert_eq!(position.seq, 2 + late as u64),
            settled => assert_eq!((settled, is_stopping), (Settled::Abandoned, true)),
        }
    }
}

/// The append of a large entry may take many seconds.
#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_the_end_of_an_append() {
    let before = Position {
        seq: 1,
        epoch: EPOCH,
        ..Position::default()
    };
    let mut log = Scripted {
        servers: vec![Server::Silent].into(),
        late: Vec::new(),
        now: Server::Appends,
        changes_of_host: 0,
    };
    let status = LogStatus::default();
    let entry = BodyWriter::with_capacity(0).seal(&before, EPOCH);
    let mut settling = pin!(settle(&mut log, before, entry, &status));
    let short = Duration::from_secs(60);
    let running = tokio::time::timeout(short, &mut settling).await;
    assert!(running.is_err(), "{running:?}");
    status.stop_waiting();
    let stopped = tokio::time::timeout(short, settling).await;
    assert_eq!(stopped, Ok(Settled::Abandoned));
}

/// The head of an entry has a fixed size, and still distinguishes the entry from every other one
/// that can have its number.
#[test]
fn the_head_of_an_entry_identifies_it_without_its_rows() {
    let before = Position {
        seq: 1,
        epoch: EPOCH,
        chain: [3; 16],
    };
    let entry = |before: &Position, epoch, value: &[u8]| {
        let mut body = BodyWriter::with_capacity(value.len());
        body.add(&Row {
            table: Table::Stock,
            key: b"4",
            value: Some(value),
        });
        place(body.seal(before, epoch))
    };
    let stock = vec![7; 1 << 20];
    let (this, position) = entry(&before, EPOCH, &stock);
    let head = EntryHead::of(&this);
    assert_eq!(head.bytes.len(), CHAIN_BYTES);
    assert_eq!(head.position(), Ok(position));
    assert_eq!(head, EntryHead::of(&entry(&before, EPOCH, &stock).0));
    let mut other = stock.clone();
    *other.last_mut().unwrap() = 8;
    let moved = Position { seq: 2, ..before };
    let forked = Position {
        chain: [4; 16],
        ..before
    };
    for (others, kind) in [
        (entry(&before, EPOCH, &other), "other rows"),
        (entry(&before, EPOCH + 1, &stock), "another epoch"),
        (entry(&moved, EPOCH, &stock), "another number"),
        (entry(&forked, EPOCH, &stock), "other entries before"),
    ] {
        assert_ne!(head, EntryHead::of(&others.0), "{kind}");
        assert_ne!(head.bytes, others.0.body.slice(..head.bytes.len()), "{kind}");
    }
}
