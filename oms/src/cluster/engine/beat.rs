//! Judgement about nodes by their beats: which are gone, and how long this one may serve reads.
//!
//! A beat is a number that each node counts up in the engine. Time is passed in, by the monotonic
//! clock of the observer. No clock of the engine or of another machine is used.
//!
//! **Invariants**
//! - A node is gone after its beat stood still for `gone` while this process looked in time. The
//!   time starts when this process *first saw* the beat, which is after the beat was sent.
//! - A lease ends `lease` after the *sending* of the last acknowledged beat. It is shorter than
//!   `gone`, so a node loses its right to answer reads before another one takes its volumes.
//! - Nobody is judged while the own beat is not acknowledged: then commits stand still for all.
//! - Nobody is judged by a look that does not show the own last beat: it read an old world.
//! - All times start again with another connection, because the engine may have failed over.
//!
//! Deliberately absent: statements, tasks and clocks (`mod`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::runtime::seeded::seeded;

/// Times of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// Time between two beats, and between two looks.
    pub(super) beat: Duration,
    /// Time after which a beat that stands still means a gone node.
    pub(super) gone: Duration,
}

/// Time for which a beat gives its node the right to answer reads. It does not depend on the pace,
/// because each process may see another number of nodes.
pub(super) const LEASE: Duration = Duration::from_millis(900);
/// Time without an acknowledged own beat, in beats, after which nobody is judged.
const OWN_BEATS_MAX: u32 = 3;
/// Time that an observer adds for all nodes after a late look, in beats.
const LATE_BEATS: u32 = 2;
/// Number of nodes from which on beats are rarer. A look reads a row of each node.
const MANY_NODES: usize = 10;

impl Pace {
    /// Returns the pace of a cluster with so many nodes.
    pub(super) fn of(nodes: usize) -> Pace {
        if nodes < MANY_NODES {
            Pace {
                beat: Duration::from_millis(100),
                gone: Duration::from_millis(1_250),
            }
        } else {
            Pace {
                beat: Duration::from_millis(200),
                gone: Duration::from_millis(1_400),
            }
        }
    }
}

/// The row of a node in one look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) incarnation: i64,
    /// The number; negative once the process has ended in good order.
    pub(super) number: i64,
}

/// One node as an observer sees it.
#[derive(Clone, Debug)]
struct Seen {
    beat: Beat,
    /// The time of the first look that showed this beat, later by the time that does not count.
    since: Duration,
    is_gone: bool,
}

/// The result of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// The look counts.
    InTime,
    /// The look, or the own beat, was late: nobody is judged now.
    Late,
    /// The look does not show the own last beat. The connection reads an old world.
    OldWorld,
}

/// Judgement of one process about itself and the others.
#[derive(Debug)]
pub(super) struct Judge {
    me: String,
    incarnation: i64,
    pace: Pace,
    seen: BTreeMap<String, Seen>,
    last_look: Option<Duration>,
    /// Sending time and number of the last acknowledged own beat.
    acknowledged: Option<(Duration, i64)>,
    is_replaced: bool,
}

impl Judge {
    /// Returns the judgement of a process that has seen nothing yet.
    pub(super) fn new(me: &str, incarnation: i64) -> Judge {
        Judge {
            me: me.to_owned(),
            incarnation,
            pace: Pace::of(0),
            seen: BTreeMap::new(),
            last_look: None,
            acknowledged: None,
            is_replaced: false,
        }
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// Records an acknowledged own beat that was sent at `sent`.
    pub(super) fn acknowledge(&mut self, sent: Duration, number: i64) {
        if !self.is_replaced || seeded("engine-replaced-has-lease") {
            self.acknowledged = Some((sent, number));
        }
    }

    /// Records that another process has the name of this one. The lease ends for good.
    pub(super) fn replace(&mut self) {
        self.is_replaced = true;
        self.acknowledged = None;
    }

    /// Returns `true` if another process has the name of this one.
    pub(super) fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    /// Returns the time until which this process may answer reads.
    pub(super) fn lease_end(&self) -> Option<Duration> {
        self.acknowledged.map(|(sent, _)| sent + LEASE)
    }

    /// Returns the number of the last acknowledged own beat.
    pub(super) fn own_beat(&self) -> Option<i64> {
        self.acknowledged.map(|(_, number)| number)
    }

    /// Starts all times again: a connection was made, and the engine may have failed over.
    pub(super) fn restart(&mut self, now: Duration) {
        if seeded("engine-times-go-on") {
            return;
        }
        for seen in self.seen.values_mut() {
            seen.since = now;
        }
        self.last_look = None;
    }

    /// Records the rows of a look that was sent at `sent`, with the own beat that was acknowledged
    /// before that.
    pub(super) fn look(
        &mut self,
        sent: Duration,
        answered: Duration,
        own: Option<i64>,
        rows: &BTreeMap<String, Beat>,
    ) -> Looked {
        let mine = rows.get(&self.me);
        if let Some(mine) = mine
            && mine.incarnation != self.incarnation
            && own.is_some()
        {
            // Either a look into an old world, or this process was replaced. The next own beat
            // tells, because it is a commit.
            return Looked::OldWorld;
        }
        let is_old = own.is_some_and(|own| mine.is_none_or(|mine| mine.number < own));
        if is_old && !seeded("engine-old-world-counts") {
            return Looked::OldWorld;
        }
        self.pace = Pace::of(rows.len());
        let beat = self.pace.beat;
        let gap = self
            .last_look
            .map_or(Duration::ZERO, |last| answered.saturating_sub(last));
        self.last_look = Some(answered);
        let is_late = answered.saturating_sub(sent) > beat * LATE_BEATS || gap > beat * OWN_BEATS_MAX;
        let is_late = is_late && !seeded("engine-late-look-counts");
        let is_stalled = self
            .acknowledged
            .is_none_or(|(at, _)| answered.saturating_sub(at) > beat * OWN_BEATS_MAX);
        let is_stalled = is_stalled && !seeded("engine-stall-judges");
        self.seen.retain(|name, _| rows.contains_key(name));
        for (name, row) in rows {
            match self.seen.get_mut(name) {
                Some(seen) if seen.beat == *row => {
                    // The time of a stall does not count, and after a late look a beat may be on
                    // its way.
                    let added = match (is_stalled, is_late) {
                        (true, _) => gap + beat * LATE_BEATS,
                        (false, true) => beat * LATE_BEATS,
                        (false, false) => Duration::ZERO,
                    };
                    if !seen.is_gone {
                        seen.since = (seen.since + added).min(answered);
                    }
                }
                known => {
                    let is_gone = row.number < 0;
                    let new = Seen {
                        beat: row.clone(),
                        since: answered,
                        is_gone,
                    };
                    match known {
                        Some(known) => *known = new,
                        None => drop(self.seen.insert(name.clone(), new)),
                    }
                }
            }
        }
        if is_late || is_stalled {
            return Looked::Late;
        }
        for (name, seen) in &mut self.seen {
            if *name != self.me && answered.saturating_sub(seen.since) >= self.pace.gone {
                seen.is_gone = true;
            }
        }
        Looked::InTime
    }

    /// Returns `true` if the process of this incarnation is known to have ended, or is taken for
    /// ended. A process that beats again is not gone any more.
    pub(super) fn is_gone(&self, name: &str, incarnation: i64) -> bool {
        match self.seen.get(name) {
            Some(seen) => seen.beat.incarnation != incarnation || seen.is_gone,
            None => true,
        }
    }

    /// Returns the last seen beat of a node.
    pub(super) fn beat_of(&self, name: &str) -> Option<&Beat> {
        self.seen.get(name).map(|seen| &seen.beat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: i64 = 7;
    const OTHER: i64 = 9;

    fn ms(at: u64) -> Duration {
        Duration::from_millis(at)
    }

    fn row(incarnation: i64, number: i64) -> Beat {
        Beat { incarnation, number }
    }

    /// A world in which this process beats and looks every 100 ms. Each step takes 5 ms.
    struct World {
        judge: Judge,
        now: u64,
        mine: i64,
        other: i64,
    }

    impl World {
        fn new() -> World {
            let mut world = World {
                judge: Judge::new("me", ME),
                now: 10_000,
                mine: 1,
                other: 1,
            };
            world.beat();
            world
        }

        fn rows(&self) -> BTreeMap<String, Beat> {
            let rows = [("me", row(ME, self.mine)), ("other", row(OTHER, self.other))];
            rows.map(|(name, beat)| (name.to_owned(), beat)).into()
        }

        fn beat(&mut self) {
            self.mine += 1;
            self.judge.acknowledge(ms(self.now), self.mine);
        }

        fn look_for(&mut self, took: u64) -> Looked {
            let own = self.judge.own_beat();
            let rows = self.rows();
            self.judge.look(ms(self.now), ms(self.now + took), own, &rows)
        }

        /// Passes time until `until` ms from now, with a look each 100 ms. `beats` tells if this
        /// process and the other one beat. Returns the time at which the other one was gone.
        fn pass(&mut self, until: u64, (mine, other): (bool, bool)) -> Option<u64> {
            let start = self.now;
            let mut gone = None;
            while self.now < start + until {
                if mine {
                    self.beat();
                }
                self.other += i64::from(other);
                self.look_for(5);
                if gone.is_none() && self.is_gone() {
                    gone = Some(self.now - start);
                }
                self.now += 100;
            }
            gone
        }

        fn is_gone(&self) -> bool {
            self.judge.is_gone("other", OTHER)
        }
    }

    #[test]
    fn a_node_is_gone_after_its_beat_stood_still_for_1250_ms() {
        let mut world = World::new();
        assert_eq!(world.pass(3_000, (true, true)), None);
        let gone = world.pass(3_000, (true, false)).unwrap();
        assert!((1_200..=1_300).contains(&gone), "{gone}");
        // A node that was only slow is back with its next beat.
        world.other += 1;
        world.look_for(5);
        assert!(!world.is_gone());
    }

    #[test]
    fn a_node_that_was_paused_for_a_second_is_not_gone() {
        let mut world = World::new();
        world.pass(500, (true, true));
        assert_eq!(world.pass(1_000, (true, false)), None);
        assert_eq!(world.pass(2_000, (true, true)), None);
    }

    #[test]
    fn nobody_is_judged_while_the_own_beat_is_not_acknowledged() {
        let mut world = World::new();
        world.pass(500, (true, true));
        assert_eq!(world.pass(5_000, (false, false)), None, "all commits stand still");
        // The own beat is acknowledged first, and the others' follow within two beats.
        assert_eq!(world.pass(200, (true, false)), None);
        assert_eq!(world.pass(2_000, (true, true)), None);
        // A node that died in the stall is found.
        world.pass(1_000, (false, false));
        let gone = world.pass(3_000, (true, false)).unwrap();
        assert!(gone <= 1_700, "{gone}");
    }

    #[test]
    fn a_look_that_took_long_or_came_late_gives_the_others_two_more_beats() {
        for (took, pause) in [(250, 100), (5, 400)] {
            let mut world = World::new();
            world.pass(500, (true, true));
            assert_eq!(world.pass(1_100, (true, false)), None);
            world.now += pause - 100;
            world.beat();
            assert_eq!(world.look_for(took), Looked::Late, "{took} {pause}");
            assert!(!world.is_gone());
            world.now += took.max(100);
            let gone = world.pass(3_000, (true, false));
            assert!(gone.is_some(), "the node is gone in the end");
        }
    }

    #[test]
    fn an_observer_that_was_paused_itself_judges_nobody_at_once() {
        let mut world = World::new();
        world.pass(500, (true, true));
        world.now += 4_000;
        // Its first look shows an old beat of a node that is alive, and its own beat is old.
        assert_eq!(world.look_for(5), Looked::Late);
        assert!(!world.is_gone());
        world.now += 100;
        assert_eq!(world.pass(3_000, (true, true)), None);
    }

    #[test]
    fn all_times_start_again_with_a_new_connection() {
        let mut world = World::new();
        world.pass(500, (true, true));
        assert_eq!(world.pass(1_200, (true, false)), None);
        world.judge.restart(ms(world.now));
        let gone = world.pass(3_000, (true, false)).unwrap();
        assert!((1_200..=1_300).contains(&gone), "{gone}");
    }

    #[test]
    fn a_look_into_an_old_world_judges_nobody() {
        let mut world = World::new();
        world.pass(500, (true, true));
        let old = world.rows();
        for _ in 0..40 {
            world.now += 100;
            world.beat();
            let own = world.judge.own_beat();
            let looked = world.judge.look(ms(world.now), ms(world.now + 5), own, &old);
            assert_eq!(looked, Looked::OldWorld);
            assert!(!world.is_gone());
        }
        let without_me = [("other".to_owned(), row(OTHER, world.other))].into();
        let own = world.judge.own_beat();
        let looked = world.judge.look(ms(world.now), ms(world.now), own, &without_me);
        assert_eq!(looked, Looked::OldWorld);
    }

    #[test]
    fn an_ended_or_replaced_process_is_gone_at_once() {
        let mut world = World::new();
        world.pass(500, (true, true));
        world.other = -1;
        world.look_for(5);
        assert!(world.is_gone());
        assert!(world.judge.is_gone("never-seen", 1));
        let mut rows = world.rows();
        rows.insert("other".to_owned(), row(OTHER + 1, 1));
        world.now += 100;
        world.beat();
        rows.insert("me".to_owned(), row(ME, world.mine));
        let own = world.judge.own_beat();
        world.judge.look(ms(world.now), ms(world.now + 5), own, &rows);
        assert!(world.is_gone(), "the old incarnation");
        assert!(!world.judge.is_gone("other", OTHER + 1), "the new one");
        rows.remove("other");
        world.judge.look(ms(world.now), ms(world.now + 5), own, &rows);
        assert!(world.judge.is_gone("other", OTHER + 1), "its row was removed");
    }

    #[test]
    fn a_lease_ends_900_ms_after_the_sending_of_the_last_acknowledged_beat() {
        let mut judge = Judge::new("me", ME);
        assert_eq!(judge.lease_end(), None);
        judge.acknowledge(ms(1_000), 2);
        assert_eq!(judge.lease_end(), Some(ms(1_900)));
        judge.acknowledge(ms(1_100), 3);
        assert_eq!(judge.lease_end(), Some(ms(2_000)));
        judge.replace();
        judge.acknowledge(ms(1_200), 4);
        assert_eq!(
            judge.lease_end(),
            None,
            "a replaced process never has a lease again"
        );
    }

    /// The latest lease against the earliest judgement: a beat is sent at 0, committed at any time
    /// until its acknowledgement, and seen at once by the observer.
    #[test]
    fn a_lease_has_ended_before_any_observer_takes_the_node_for_gone() {
        for nodes in [1, 9, 10, 100] {
            let pace = Pace::of(nodes);
            assert!(LEASE < pace.gone, "{nodes}");
            // A quarter of the difference is left for the rates of two clocks.
            assert!(LEASE.as_millis() * 5 / 4 <= pace.gone.as_millis(), "{nodes}");
        }
        for seen_after in [0, 1, 50, 400, 899] {
            let mut observer = Judge::new("observer", 1);
            let mut earliest = None;
            let mut now = 10_000 + seen_after;
            let mut own = 1;
            while earliest.is_none() {
                own += 1;
                observer.acknowledge(ms(now), own);
                let rows = [
                    ("observer".to_owned(), row(1, own)),
                    ("node".to_owned(), row(2, 5)),
                ]
                .into();
                observer.look(ms(now), ms(now), Some(own), &rows);
                if observer.is_gone("node", 2) {
                    earliest = Some(now);
                }
                now += 10;
            }
            let lease_end = 10_000 + LEASE.as_millis() as u64;
            assert!(earliest.unwrap() > lease_end, "seen after {seen_after} ms");
        }
    }
}
