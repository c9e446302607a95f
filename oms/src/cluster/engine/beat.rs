//! Decides from beats which nodes are gone, and how long this node may answer reads.
//!
//! A beat is a number in the engine that each node increments several times a second. A look reads
//! the beats of all nodes. The caller passes in all times as readings of this machine's monotonic
//! clock. They are never compared with the clock of the engine or of another machine.
//!
//! **Invariants**
//! - A process is gone at once if its beat is negative, or if the last look shows no row or another
//!   incarnation of its node. Otherwise it is gone once its beat has not changed for `Pace::gone`
//!   while the looks of this process were answered quickly and at regular intervals. The period
//!   begins when this process *first saw* the beat, which is after the beat was sent.
//! - A lease ends at most `LEASE` after the last acknowledged beat was *sent*. `LEASE` is shorter
//!   than `Pace::gone`. So a node stops answering reads before another node declares it gone.
//! - While the beats of this process are not acknowledged, it declares no silent node gone, because
//!   commits are probably blocked for all nodes.
//! - A look that lacks the last acknowledged beat of this process is ignored. Either a former
//!   primary of the engine has answered it, or another process has taken the name of this node, or
//!   another node has removed its row.
//! - After a new connection, the period without a new beat begins again for every node, because the
//!   engine may have failed over.
//!
//! Deliberately absent: statements (`tables`), tasks (`tasks`) and the clock (`shared`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::runtime::seeded::seeded;

/// The timing of beats and looks, which depends on the number of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// Longest time between the starts of two beats, and of two looks, if the engine answers at
    /// once.
    pub(super) beat: Duration,
    /// Time without a new beat after which a node is declared gone.
    pub(super) gone: Duration,
}

/// Longest time after the sending of an acknowledged beat during which a node may answer reads. It
/// is equal for every pace, because two processes may briefly see different numbers of nodes and so
/// have different paces.
pub(super) const LEASE: Duration = Duration::from_millis(900);
/// Time after which the lease of another process has ended, if no beat has extended the lease in
/// this time. It is longer than a lease by a quarter, for clocks that do not run at the same rate.
pub(super) const LEASE_WAIT: Duration = Duration::from_millis(1_125);
/// Maximum age of this process's last acknowledged beat, in intervals of beats. If that beat is
/// older, a look declares no silent node gone. The same limit applies to the time since the
/// previous look.
const OWN_BEATS_MAX: u32 = 3;
/// Maximum duration of a look, in intervals of beats. A look that took longer is late: it declares
/// no silent node gone, and every node that is not gone gets this much more time for its next beat.
const LATE_BEATS: u32 = 2;
/// Number of nodes from which beats and looks are less frequent. Every node reads the rows of all
/// nodes, so the load grows with the square of the number of nodes.
const MANY_NODES: usize = 10;

impl Pace {
    /// Returns the pace for a cluster with this number of nodes.
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

/// A beat of one process, as in the row of its node in the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    /// Random number of the process. A restarted node has another incarnation.
    pub(crate) incarnation: i64,
    /// The number that the process increments. It is negative after an orderly end of the process.
    pub(crate) number: i64,
}

/// The last beat that this process has seen of a node.
#[derive(Clone, Debug)]
struct Seen {
    beat: Beat,
    /// Start of the period without a new beat: the time of the first look that showed this beat. A
    /// late look, a time without acknowledged beats of this process, or a new connection moves the
    /// start to a later time.
    since: Duration,
    is_gone: bool,
}

/// The effect of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// The look was in time. Nodes without a new beat for `Pace::gone` were declared gone.
    InTime,
    /// The look was late, or this process had no recent acknowledged beat. No node was declared
    /// gone for its silence.
    Late,
    /// The look does not show the last acknowledged beat of this process. Either a former primary
    /// of the engine has answered it, or another process has taken the name of this node, or
    /// another node has removed its row. The rows of the look were ignored.
    OldPrimary,
}

/// The beats seen by one process, and its decisions about itself and the other nodes.
#[derive(Debug)]
pub(super) struct Judge {
    me: String,
    incarnation: i64,
    pace: Pace,
    seen: BTreeMap<String, Seen>,
    last_look: Option<Duration>,
    /// Time of sending and number of the last acknowledged beat of this process. `None` before the
    /// first acknowledged beat, and after `replace`.
    acknowledged: Option<(Duration, i64)>,
    is_replaced: bool,
}

impl Judge {
    /// Creates a judge that has seen no look and no acknowledged beat.
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

    /// Records that a beat of this process, sent at `sent`, was acknowledged. Has no effect after
    /// `replace`.
    pub(super) fn acknowledge(&mut self, sent: Duration, number: i64) {
        if !self.is_replaced || seeded("engine-replaced-has-lease") {
            self.acknowledged = Some((sent, number));
        }
    }

    /// Records that another process has taken the name of this node, or that the row of this
    /// process was removed. The lease ends at once, and later beats do not extend it.
    pub(super) fn replace(&mut self) {
        self.is_replaced = true;
        self.acknowledged = None;
    }

    /// Returns `true` once `replace` was called.
    pub(super) fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    /// Returns the time until which the last acknowledged beat can extend the lease, or `None` if
    /// no beat was acknowledged or this process was replaced.
    pub(super) fn lease_end(&self) -> Option<Duration> {
        self.acknowledged.map(|(sent, _)| sent + LEASE)
    }

    /// Returns the number of the last acknowledged beat of this process. `None` if no beat was
    /// acknowledged yet, or if this process was replaced.
    pub(super) fn own_beat(&self) -> Option<i64> {
        self.acknowledged.map(|(_, number)| number)
    }

    /// Begins the period without a new beat again for every node. Must be called after a new
    /// connection, because the engine may have failed over.
    pub(super) fn restart(&mut self, now: Duration) {
        if seeded("engine-times-go-on") {
            return;
        }
        for seen in self.seen.values_mut() {
            seen.since = now;
        }
        self.last_look = None;
    }

    /// Records the rows of a look that was sent at `sent` and answered at `answered`. `own` is the
    /// number of this process's last beat that was acknowledged before `sent`. It is `None` if
    /// there was no such beat.
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
            // Either a former primary has answered, or another process has taken the name of this
            // node. The next beat of this process distinguishes the two cases, because only the
            // present primary acknowledges beats.
            return Looked::OldPrimary;
        }
        let is_old = own.is_some_and(|own| mine.is_none_or(|mine| mine.number < own));
        if is_old && !seeded("engine-old-primary-counts") {
            return Looked::OldPrimary;
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
        let is_stalled = is_stalled && !seeded("engine-stall-ignored");
        self.seen.retain(|name, _| rows.contains_key(name));
        for (name, row) in rows {
            match self.seen.get_mut(name) {
                Some(seen) if seen.beat == *row => {
                    // While the beats of this process are not acknowledged, those of other nodes
                    // may not be either, so this time is not counted as silence of the node. After
                    // a late look, the node's next beat may already be on its way, so the node gets
                    // more time.
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

    /// Returns `true` if this incarnation of a node has ended, its beats have stopped, or the last
    /// look does not show it. A new beat of the incarnation makes the result `false` again.
    pub(super) fn is_gone(&self, name: &str, incarnation: i64) -> bool {
        match self.seen.get(name) {
            Some(seen) => seen.beat.incarnation != incarnation || seen.is_gone,
            None => true,
        }
    }

    /// Returns `true` if a node is gone or unknown, or if its period without a new beat, which
    /// begins at `Seen::since`, has lasted for `time`.
    pub(super) fn is_silent(&self, name: &str, now: Duration, time: Duration) -> bool {
        let seen = self.seen.get(name);
        seen.is_none_or(|seen| seen.is_gone || now.saturating_sub(seen.since) >= time)
    }

    /// Returns the beat that the last look showed for a node, or `None` if the look showed no such
    /// node. Looks with the result `OldPrimary` do not count.
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

    /// A cluster of two nodes. `pass` looks every 100 ms, and each of these looks takes 5 ms.
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

        /// Advances the time by `duration` ms, with a look every 100 ms. The two flags tell whether
        /// this process and the other node beat before each look. Returns the time in ms after
        /// which the other node was gone, or `None` if it was not.
        fn pass(&mut self, duration: u64, (mine, other): (bool, bool)) -> Option<u64> {
            let start = self.now;
            let mut gone = None;
            while self.now < start + duration {
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
        // The next beat of a node that was only slow shows that the node runs.
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
    fn no_node_is_declared_gone_while_own_beats_are_not_acknowledged() {
        let mut world = World::new();
        world.pass(500, (true, true));
        assert_eq!(world.pass(5_000, (false, false)), None, "all commits stand still");
        // Commits work again. The first beat is one of this process, and the other node's first
        // beat follows after two intervals of beats.
        assert_eq!(world.pass(200, (true, false)), None);
        assert_eq!(world.pass(2_000, (true, true)), None);
        // A node that died while commits were blocked is detected afterwards.
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
    fn an_observer_that_was_paused_declares_no_node_gone_at_once() {
        let mut world = World::new();
        world.pass(500, (true, true));
        world.now += 4_000;
        // The first look after the pause shows an old beat of a running node, and the last beat of
        // this process is old too.
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
    fn a_look_answered_by_an_old_primary_declares_no_node_gone() {
        let mut world = World::new();
        world.pass(500, (true, true));
        let old = world.rows();
        for _ in 0..40 {
            world.now += 100;
            world.beat();
            let own = world.judge.own_beat();
            let looked = world.judge.look(ms(world.now), ms(world.now + 5), own, &old);
            assert_eq!(looked, Looked::OldPrimary);
            assert!(!world.is_gone());
        }
        let without_me = [("other".to_owned(), row(OTHER, world.other))].into();
        let own = world.judge.own_beat();
        let looked = world.judge.look(ms(world.now), ms(world.now), own, &without_me);
        assert_eq!(looked, Looked::OldPrimary);
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

    /// Compares the latest end of a node's lease with the earliest time at which an observer
    /// declares the node gone. The node's last beat is sent at 10,000 ms, and the observer sees it
    /// `seen_after` ms later.
    #[test]
    fn a_lease_has_ended_before_any_observer_declares_the_node_gone() {
        for nodes in [1, 9, 10, 100] {
            let pace = Pace::of(nodes);
            assert!(LEASE < pace.gone, "{nodes}");
            // The margin of a quarter allows for clocks that run at different rates.
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
