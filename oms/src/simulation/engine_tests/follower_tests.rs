//! Tests of a follower's stop and of its local copy, and of the removal of a volume.

use super::*;
use crate::simulation::engine_log::SimLog;
use crate::storage::log::{Answer, Entry, EntryHead, Head, LastWords, RowsPart};

/// Longest wait for the end of a follower in virtual time, after which a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The behaviour of an engine while its rows are copied.
#[derive(Clone, Copy, Debug)]
enum Rows {
    /// No row arrives.
    Silent,
    /// Rows arrive without end.
    Endless,
    /// Each part of the rows takes 10 s.
    Slow,
}

/// A log in the simulated engine with another behaviour of `rows`.
struct SlowLog(SimLog, Rows);

impl Log for SlowLog {
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool> {
        self.0.append(entry, behind)
    }

    fn look(&mut self, seq: u64) -> Answer<'_, Option<EntryHead>> {
        self.0.look(seq)
    }

    fn newest(&mut self) -> Answer<'_, Position> {
        self.0.newest()
    }

    fn head(&mut self) -> Answer<'_, Option<Head>> {
        self.0.head()
    }

    fn owner(&mut self) -> Answer<'_, Option<String>> {
        self.0.owner()
    }

    fn confirm(&mut self) -> Answer<'_, bool> {
        self.0.confirm()
    }

    fn release(&mut self, epoch: u64) -> Answer<'_, ()> {
        self.0.release(epoch)
    }

    fn create(&mut self) -> Answer<'_, ()> {
        self.0.create()
    }

    fn raise<'a>(&'a mut self, owner: &'a str, since: u64, until: u64) -> Answer<'a, Option<u64>> {
        self.0.raise(owner, since, until)
    }

    fn tail(&mut self, after: u64, last: u64) -> Answer<'_, Vec<Entry>> {
        self.0.tail(after, last)
    }

    fn rows<'a>(&'a mut self, after: Option<(Table, &'a [u8])>) -> Answer<'a, RowsPart> {
        match self.1 {
            Rows::Silent => Box::pin(std::future::pending()),
            Rows::Endless => Box::pin(async move {
                wait_ms(1).await;
                let number = after.map_or(0, |(_, key)| u64::from_be_bytes(key.try_into().unwrap()));
                let key = (number + 1).to_be_bytes().to_vec();
                Ok(RowsPart {
                    last: None,
                    rows: vec![(Table::Orders, key, b"row".to_vec())],
                })
            }),
            Rows::Slow => Box::pin(async move {
                wait_ms(10_000).await;
                self.0.rows(after).await
            }),
        }
    }

    fn checkpoint<'a>(&'a mut self, from: u64, last: &'a Position, words: &'a LastWords) -> Answer<'a, bool> {
        self.0.checkpoint(from, last, words)
    }

    fn trim(&mut self, epoch: u64, after: u64, last: u64) -> Answer<'_, Option<u64>> {
        self.0.trim(epoch, after, last)
    }

    fn next_host(&mut self) {
        self.0.next_host();
    }

    fn remove(&mut self, epoch: u64) -> Answer<'_, ()> {
        self.0.remove(epoch)
    }
}

#[test]
fn a_follower_stops_while_it_copies_rows() {
    for rows in [Rows::Silent, Rows::Endless] {
        simulated(|engine| async move {
            let mut writer = owner(&engine, "ada", 1).await;
            writer.append(body(1)).await.unwrap();
            let disk = Disk::new(true);
            let log = SlowLog(engine.log(VOLUME), rows);
            let open = move || Ok(cache_on(&disk, "/a"));
            let follower = Follower::start(open, Box::new(log), VOLUME);
            wait_ms(1_000).await;
            let stopped = tokio::time::timeout(PATIENCE, follower.stop()).await;
            let cache = stopped.unwrap_or_else(|_| panic!("{rows:?}: the stop does not end"));
            let cache = cache.unwrap();
            assert_eq!(
                cache.position().unwrap(),
                None,
                "an incomplete copy has no position"
            );
            // The next user of the copy fills it again.
            assert_eq!(ids_in(&engine, &cache).await, [1].into(), "{rows:?}");
        });
    }
}

#[test]
fn a_follower_opens_a_failed_local_copy_again() {
    simulated(|engine| async move {
        let mut writer = owner(&engine, "ada", 1).await;
        writer.append(body(1)).await.unwrap();
        let (disk, opened) = (Disk::new(true), Arc::new(Mutex::new(Vec::new())));
        let copies = Arc::clone(&opened);
        let open = move || {
            let cache = cache_on(&disk, "/a");
            copies.lock().push(cache.clone());
            Ok(cache)
        };
        let follower = Follower::start(open, Box::new(engine.log(VOLUME)), VOLUME);
        wait_ms(5_000).await;
        // A closed database refuses all commits, like one with a failed sync.
        let first = opened.lock()[0].clone();
        first.close().unwrap();
        for id in 2..=4 {
            writer.append(body(id)).await.unwrap();
        }
        wait_ms(10_000).await;
        let cache = follower.stop().await.unwrap();
        assert_eq!(ids_of(&cache), (1..4).collect());
        assert_eq!(opened.lock().len(), 2);
    });
}

#[test]
fn a_late_removal_of_an_earlier_opening_has_no_effect() {
    simulated(|engine| async move {
        let mut log = engine.log(VOLUME);
        drop(owner(&engine, "ada", 1).await);
        let former = log.head().await.unwrap().unwrap().epoch;
        let mut present = owner(&engine, "bob", 2).await;
        present.append(body(1)).await.unwrap();
        log.remove(former).await.unwrap();
        assert_eq!(ids_in(&engine, &cache_at("/a")).await, [1].into());
        let epoch = log.head().await.unwrap().unwrap().epoch;
        log.remove(epoch).await.unwrap();
        assert_eq!(log.head().await.unwrap(), None);
        // A removal without an answer is repeated, and the volume may be gone by then.
        log.remove(epoch).await.unwrap();
    });
}

/// An append that began before the removal of its volume writes its entry after it.
#[test]
fn a_new_volume_has_no_entry_that_a_removed_one_of_its_name_has_left() {
    simulated(|engine| async move {
        let mut former = owner(&engine, "ada", 1).await;
        for id in 1..=3 {
            former.append(body(id)).await.unwrap();
        }
        let (mut log, epoch) = (engine.log(VOLUME), former.epoch());
        engine.stall_next(Duration::from_millis(900));
        let appending = append(former, 4);
        wait_ms(50).await;
        log.remove(epoch).await.unwrap();
        wait_ms(1_000).await;
        let left = log.newest().await.unwrap().seq;
        assert!(left > 3, "the late append wrote no entry");
        let (_, outcome) = appending.await.unwrap();
        drop(outcome);
        let mut present = owner(&engine, "bob", 2).await;
        present.append(body(10)).await.unwrap();
        let cache = cache_at("/a");
        let copied = tokio::time::timeout(PATIENCE, ids_in(&engine, &cache)).await;
        assert_eq!(copied.expect("the log has a gap"), [10].into());
    });
}

/// The checkpointer of a removed volume may run on for a while.
#[test]
fn a_late_checkpointer_removes_no_entry_of_a_new_volume_of_the_name() {
    simulated(|engine| async move {
        let mut former = owner(&engine, "ada", 1).await;
        for id in 1..=30 {
            former.append(body(id)).await.unwrap();
        }
        let acknowledged = former.status().acknowledged();
        let mut late = Checkpointer::new(Box::new(engine.log(VOLUME)), former.epoch());
        late.pass(acknowledged).await.unwrap();
        let mut log = engine.log(VOLUME);
        log.remove(former.epoch()).await.unwrap();
        wait_ms(60_000).await;
        let mut present = owner(&engine, "bob", 2).await;
        for id in 31..=60 {
            present.append(body(id)).await.unwrap();
        }
        let last = present.status().acknowledged();
        let mut checkpointer = Checkpointer::new(Box::new(engine.log(VOLUME)), present.epoch());
        checkpointer.pass(last).await.unwrap();
        let _ = late.pass(acknowledged).await;
        assert!(log.look(1).await.unwrap().is_some(), "a young entry was removed");
    });
}

/// The copy takes longer than the log keeps its entries, and the owner changes copied rows, adds
/// rows and removes rows meanwhile.
#[test]
fn a_long_copy_ends_although_old_entries_are_removed_meanwhile() {
    simulated(|engine| async move {
        let mut writer = owner(&engine, "ada", 1).await;
        for id in 100..400 {
            writer.append(body(id)).await.unwrap();
        }
        let status = Arc::clone(writer.status());
        let mut checkpointer = Checkpointer::new(Box::new(engine.log(VOLUME)), writer.epoch());
        checkpointer.pass(status.acknowledged()).await.unwrap();
        let writing = tokio::spawn(async move {
            for id in 100.. {
                let mut entry = body(id + 500);
                let removed = id.to_string();
                entry.add(&Row {
                    table: Table::Orders,
                    key: removed.as_bytes(),
                    value: None,
                });
                writer.append(entry).await.unwrap();
                let _ = checkpointer.pass(writer.status().acknowledged()).await;
                wait_ms(5_000).await;
            }
        });
        let begun = status.acknowledged();
        let (cache, mut log) = (cache_at("/a"), SlowLog(engine.log(VOLUME), Rows::Slow));
        let first = catch_up(&cache, &mut log, VOLUME, begun, true).await.unwrap();
        let mut reader = engine.log(VOLUME);
        assert!(
            reader.look(begun).await.unwrap().is_none(),
            "the log still has the entries from the begin of the copy"
        );
        writing.abort();
        // A statement in flight ends.
        wait_ms(1_000).await;
        let last = reader.newest().await.unwrap().seq;
        let copied = catch_up(&cache, &mut reader, VOLUME, last, false).await.unwrap();
        assert!(first.seq > begun && copied.seq == last);
        assert_eq!(ids_of(&cache), ids_in(&engine, &cache_at("/b")).await);
        // The first entry of the copy's time removed the row 100 and added the row 600.
        assert!(!ids_of(&cache).contains(&100) && ids_of(&cache).contains(&600));
    });
}
