//! The data that this process's tasks of beats and looks share with the callers of `Membership` and
//! `Authority`.
//!
//! **Invariants**
//! - The mutex is never held across an await.
//! - `has_lease` takes no lock, because every read of a volume calls it.
//! - A beat extends the lease only if it returns the version of the confirmed state. So the state
//!   was not replaced before the beat was sent, and no other node has demanded a later version.
//! - Once a confirmed state gives a volume to another node, the lease of the open volume is lost
//!   for good. So a node that was paused answers no read of a volume that it lost in between.
//! - Each event is sent once.
//!
//! Statements are in `tables`. The decision which nodes are gone is in `beat`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use imt_ring::NodeName;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::cluster::engine::beat::{Beat, Judge, LEASE_WAIT, Looked, Pace};
use crate::cluster::engine::tables::{Confirmed, Look};
use crate::cluster::{ClusterState, Event, NodeInfo, VolumeLog};
use crate::error::NodeError;
use crate::postgres::{EngineUrl, SessionError};
use crate::runtime::seeded::seeded;

/// Longest wait for a confirmed state. A fail-over of the engine may take longer. Then the caller
/// gets an error. The tasks of a running node repeat the call, and the start of a node fails.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// A receiver to be notified when a node is gone.
pub(super) struct Watcher {
    pub(super) node: NodeName,
    pub(super) events: UnboundedSender<Event>,
}

pub(super) type Reader = oneshot::Sender<Result<Confirmed, NodeError>>;

pub(super) struct Shared {
    pub(super) url: Arc<EngineUrl>,
    pub(super) name: NodeName,
    pub(super) incarnation: i64,
    origin: Instant,
    /// End of the lease in microseconds since `origin`; 0 without a lease.
    lease_end_us: AtomicU64,
    inside: Mutex<Inside>,
    /// Wakes the task of beats before its next beat is due.
    pub(super) urge: Notify,
    /// Wakes the task that looks, before its next look is due.
    pub(super) urge_look: Notify,
}

/// The lease of an open volume.
struct VolumeLease {
    volume: NodeName,
    /// The version of the cluster's state in which the volume was assigned to this node.
    since: u64,
    /// `true` once the volume is not assigned to this node any more, or is assigned to it again at
    /// a later version.
    is_lost: Weak<AtomicBool>,
}

impl VolumeLease {
    /// Ends the lease if `state` does not assign the volume to `me`, or has assigned it to `me`
    /// again at another version than `since`.
    fn check(&self, me: &NodeName, state: &ClusterState) {
        let is_mine = state.serving.get(&self.volume) == Some(me) && state.since(&self.volume) == self.since;
        if let Some(is_lost) = self.is_lost.upgrade().filter(|_| !is_mine) {
            is_lost.store(true, Ordering::Release);
        }
    }
}

struct Inside {
    judge: Judge,
    look: Look,
    /// The description that this node publishes; `None` before `announce`, and after `retire` or
    /// `withdraw`.
    card: Option<NodeInfo>,
    /// The watchers, each with the incarnation of the node that it watches.
    watchers: Vec<(Watcher, i64)>,
    events: Option<UnboundedSender<Event>>,
    is_elected: bool,
    is_taking: bool,
    is_withdrawn: bool,
    readers: Vec<Reader>,
    cached: Option<Confirmed>,
    /// `true` if the last acknowledged beat returned another version than that of `cached`.
    is_behind: bool,
    leases: Vec<VolumeLease>,
}

impl Inside {
    /// Returns the descriptions of the other nodes that run and have published one.
    fn others_alive<'a>(&'a self, me: &'a NodeName) -> impl Iterator<Item = &'a NodeInfo> {
        self.look.cards.values().filter(move |card| {
            let beat = self.look.beats.get(card.name.as_str());
            card.name != *me
                && beat.is_some_and(|beat| !self.judge.is_gone(card.name.as_str(), beat.incarnation))
        })
    }
}

/// The input of the next beat.
pub(super) struct Due {
    pub(super) card: Option<NodeInfo>,
    pub(super) is_last: bool,
    /// Callers that wait for the cluster's state. A state that is read after the creation of this
    /// `Due` is recent enough for these callers.
    pub(super) readers: Vec<Reader>,
    pub(super) cached: Option<Confirmed>,
    /// `true` if the lease is not extended before this process has read a newer state.
    pub(super) is_behind: bool,
}

/// The effect of a look, as returned to the task that looks.
pub(super) struct LookOutcome {
    pub(super) looked: Looked,
    /// `true` if the coordinator is gone and this process must try to become the coordinator.
    pub(super) is_vacant: bool,
}

impl LookOutcome {
    fn without_vacancy(looked: Looked) -> LookOutcome {
        LookOutcome {
            looked,
            is_vacant: false,
        }
    }
}

/// Returns the text that identifies a process in the column `coordinator`.
pub(super) fn label(name: &NodeName, incarnation: i64) -> String {
    format!("{name}/{incarnation}")
}

/// Splits a text that `label` returned into the node's name and its incarnation. `None` if the text
/// does not have this form.
fn of_label(label: &str) -> Option<(&str, i64)> {
    let (name, incarnation) = label.split_once('/')?;
    Some((name, incarnation.parse().ok()?))
}

impl Shared {
    pub(super) fn new(url: Arc<EngineUrl>, name: NodeName, incarnation: i64) -> Shared {
        Shared {
            inside: Mutex::new(Inside {
                judge: Judge::new(name.as_str(), incarnation),
                look: Look::default(),
                card: None,
                watchers: Vec::new(),
                events: None,
                is_elected: false,
                is_taking: false,
                is_withdrawn: false,
                readers: Vec::new(),
                cached: None,
                is_behind: false,
                leases: Vec::new(),
            }),
            url,
            name,
            incarnation,
            origin: Instant::now(),
            lease_end_us: AtomicU64::new(0),
            urge: Notify::new(),
            urge_look: Notify::new(),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    pub(super) fn label(&self) -> String {
        label(&self.name, self.incarnation)
    }

    /// Returns the time since the start of this process's membership, by the monotonic clock.
    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    pub(super) fn pace(&self) -> Pace {
        self.inside().judge.pace()
    }

    /// Returns `true` while this process has a lease and may answer reads.
    pub(super) fn has_lease(&self) -> bool {
        (self.now().as_micros() as u64) < self.lease_end_us.load(Ordering::Acquire)
    }

    /// Returns a function that returns `true` while this process may answer reads of a volume.
    /// `since` is the version of the cluster's state in which the volume was assigned to this
    /// node. A call of the function reads the clock and takes no lock.
    pub(super) fn lease_of(
        self: &Arc<Self>,
        volume: &NodeName,
        since: u64,
    ) -> impl Fn() -> bool + Send + Sync + use<> {
        let is_lost = Arc::new(AtomicBool::new(false));
        let lease = VolumeLease {
            volume: volume.clone(),
            since,
            is_lost: Arc::downgrade(&is_lost),
        };
        let mut inside = self.inside();
        if let Some(cached) = &inside.cached {
            lease.check(&self.name, &cached.state);
        }
        inside.leases.retain(|lease| lease.is_lost.strong_count() > 0);
        inside.leases.push(lease);
        let shared = Arc::clone(self);
        // `acknowledge` sets `is_lost` before it extends the lease. So the end of the lease is read
        // first: if the extended lease is visible, `is_lost` is visible too.
        move || shared.has_lease() && !is_lost.load(Ordering::Acquire)
    }

    /// Returns the identity of a volume's log according to the last confirmed state. `None` if this
    /// process has read no confirmed state yet.
    pub(super) fn known_log_of(&self, volume: &NodeName) -> Option<VolumeLog> {
        let inside = self.inside();
        inside.cached.as_ref().map(|cached| cached.state.log_of(volume))
    }

    /// Returns `true` if the last confirmed state assigns a volume to this node. `true` also if
    /// this process has read no confirmed state yet.
    pub(super) fn is_mine(&self, volume: &NodeName) -> bool {
        let inside = self.inside();
        let state = inside.cached.as_ref().map(|cached| &cached.state);
        state.is_none_or(|state| state.serving.get(volume) == Some(&self.name))
    }

    /// Returns `true` if the last confirmed state assigns a volume to this node, and did so at
    /// version `since`. `true` also if this process has read no confirmed state yet.
    pub(super) fn has_assigned(&self, volume: &NodeName, since: u64) -> bool {
        let inside = self.inside();
        let state = inside.cached.as_ref().map(|cached| &cached.state);
        state
            .is_none_or(|state| state.serving.get(volume) == Some(&self.name) && state.since(volume) == since)
    }

    /// Returns the last known beat of a node that is gone, or that has not changed its beat for
    /// `LEASE_WAIT`. Otherwise, and for an unknown node, returns `None`. A later beat of the node
    /// may exist already.
    pub(super) fn silent(&self, node: &str) -> Option<Beat> {
        let inside = self.inside();
        let is_silent = inside.judge.is_silent(node, self.now(), LEASE_WAIT);
        inside.judge.beat_of(node).filter(|_| is_silent).cloned()
    }

    /// Makes the next beat publish the description of this node. `None` removes the published
    /// description.
    pub(super) fn publish(&self, card: Option<NodeInfo>) {
        self.inside().card = card;
        self.urge.notify_one();
    }

    pub(super) fn withdraw(&self) {
        {
            let mut inside = self.inside();
            inside.card = None;
            inside.is_withdrawn = true;
            inside.events = None;
            inside.watchers.clear();
        }
        self.lease_end_us.store(0, Ordering::Release);
        self.urge.notify_one();
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.inside().is_withdrawn
    }

    /// Returns the descriptions of all nodes that run and have published one.
    pub(super) fn alive(&self) -> Vec<NodeInfo> {
        let inside = self.inside();
        let others = inside.others_alive(&self.name).cloned();
        sorted(others.chain(inside.card.clone()).collect())
    }

    /// Returns the published descriptions of all nodes, including nodes that are gone.
    pub(super) fn node_infos(&self) -> Vec<NodeInfo> {
        let inside = self.inside();
        let others = inside.look.cards.values().filter(|card| card.name != self.name);
        sorted(others.cloned().chain(inside.card.clone()).collect())
    }

    /// Returns the last known beat of a node that is gone. `None` if the node runs, is unknown, or
    /// is this node.
    pub(super) fn gone(&self, node: &NodeName) -> Option<Beat> {
        let inside = self.inside();
        let beat = inside.judge.beat_of(node.as_str())?;
        let is_gone = *node != self.name && inside.judge.is_gone(node.as_str(), beat.incarnation);
        is_gone.then(|| beat.clone())
    }

    pub(super) fn watch(&self, watcher: Watcher) {
        let mut inside = self.inside();
        let incarnation = inside
            .look
            .beats
            .get(watcher.node.as_str())
            .map(|beat| beat.incarnation);
        match incarnation {
            Some(incarnation) if !inside.judge.is_gone(watcher.node.as_str(), incarnation) => {
                inside.watchers.push((watcher, incarnation));
            }
            _ => {
                // The send fails if the coordinator's task on this node has stopped. Then the event
                // is not needed.
                let _ = watcher.events.send(Event::Gone(watcher.node));
            }
        }
    }

    /// Sets the receiver of the events that `replaced`, `looked` and `took` send. `Event::Gone`
    /// goes to watchers instead. If this process was elected or replaced before the call, sends
    /// that event at once.
    pub(super) fn stand(&self, events: UnboundedSender<Event>) {
        let mut inside = self.inside();
        if inside.judge.is_replaced() {
            let _ = events.send(Event::Replaced);
        }
        if inside.is_elected {
            let _ = events.send(Event::Elected);
        }
        inside.events = Some(events);
    }

    /// Reads the cluster's state, and waits for the beat that confirms it.
    pub(super) async fn read_state(&self) -> Result<Confirmed, NodeError> {
        let (reader, result) = oneshot::channel();
        self.inside().readers.push(reader);
        self.urge.notify_one();
        let unanswered = |reason: String| NodeError::Engine {
            action: "read the cluster's state",
            url: self.url.to_string(),
            source: SessionError::Away { reason },
        };
        match tokio::time::timeout(READ_TIMEOUT, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unanswered("this node has left the cluster".to_owned())),
            Err(_) => Err(unanswered(
                "the engine acknowledges no beat of this node at present".to_owned(),
            )),
        }
    }

    /// Returns the input of the next beat, with all callers that wait for a state. These callers
    /// are removed from the list. The task of beats answers them, or adds them again (`ask_again`).
    pub(super) fn due(&self) -> Due {
        let mut inside = self.inside();
        inside.readers.retain(|reader| !reader.is_closed());
        Due {
            card: inside.card.clone(),
            is_last: inside.is_withdrawn,
            readers: std::mem::take(&mut inside.readers),
            cached: inside.cached.clone(),
            is_behind: inside.is_behind,
        }
    }

    /// Records an acknowledged beat by its sending time and number, and the state that was read
    /// before it on the same connection. `version` is that of the state at the beat, or a later one
    /// that another node demanded.
    pub(super) fn acknowledge(
        &self,
        (sent, number): (Duration, i64),
        version: u64,
        read: Option<&Confirmed>,
    ) {
        let mut inside = self.inside();
        let inside = &mut *inside;
        inside.judge.acknowledge(sent, number);
        if let Some(read) = read {
            for lease in &inside.leases {
                lease.check(&self.name, &read.state);
            }
            inside.cached = Some(read.clone());
        }
        let known = inside.cached.as_ref().map(|cached| cached.state.version);
        inside.is_behind = known != Some(version) && !seeded("engine-lease-without-state");
        if inside.is_behind && version > 0 {
            self.urge.notify_one();
        }
        match inside.judge.lease_end() {
            Some(_) if inside.is_behind && !inside.is_withdrawn => {}
            Some(end) if !inside.is_withdrawn => {
                self.lease_end_us.store(end.as_micros() as u64, Ordering::Release);
            }
            _ => self.lease_end_us.store(0, Ordering::Release),
        }
    }

    /// Adds callers that have got no state to the list again, so that the state is read for them
    /// before the next beat.
    pub(super) fn ask_again(&self, readers: Vec<Reader>) {
        self.inside().readers.extend(readers);
    }

    /// Records that another process has taken the name of this node, or that the row of this
    /// process was removed. The lease ends at once.
    pub(super) fn replaced(&self) {
        self.lease_end_us.store(0, Ordering::Release);
        let mut inside = self.inside();
        inside.judge.replace();
        inside.is_elected = false;
        if let Some(events) = &inside.events {
            let _ = events.send(Event::Replaced);
        }
        inside.readers.clear();
    }

    /// Begins the period without a new beat again for every node. Must be called after a new
    /// connection.
    pub(super) fn restart(&self) {
        let now = self.now();
        self.inside().judge.restart(now);
    }

    /// Returns the number of the last acknowledged beat of this process. `None` if no beat was
    /// acknowledged yet, or if this process was replaced.
    pub(super) fn own_beat(&self) -> Option<i64> {
        self.inside().judge.own_beat()
    }

    /// Records a look, and sends the events that follow from its rows. After a result with
    /// `is_vacant`, no further result has `is_vacant` before `took` is called.
    pub(super) fn looked(&self, sent: Duration, own: Option<i64>, look: Look) -> LookOutcome {
        let now = self.now();
        let has_lease = self.has_lease();
        let mut inside = self.inside();
        let inside = &mut *inside;
        let names = |inside: &Inside| -> Vec<NodeName> {
            inside
                .others_alive(&self.name)
                .map(|card| card.name.clone())
                .collect()
        };
        let before = names(inside);
        let looked = inside.judge.look(sent, now, own, &look.beats);
        if looked == Looked::OldPrimary {
            return LookOutcome::without_vacancy(looked);
        }
        let is_changed = inside.look.version != 0 && inside.look.version != look.version;
        inside.look = look;
        let is_other = before != names(inside);
        let judge = &inside.judge;
        inside.watchers.retain(|(watcher, incarnation)| {
            let is_gone = judge.is_gone(watcher.node.as_str(), *incarnation);
            if is_gone {
                let _ = watcher.events.send(Event::Gone(watcher.node.clone()));
            }
            !is_gone
        });
        let Some(events) = &inside.events else {
            return LookOutcome::without_vacancy(looked);
        };
        let is_mine = inside.look.coordinator == label(&self.name, self.incarnation);
        if is_mine != inside.is_elected {
            inside.is_elected = is_mine;
            let _ = events.send(if is_mine { Event::Elected } else { Event::Deposed });
        }
        if is_changed {
            let _ = events.send(Event::Changed);
        }
        if is_other && inside.is_elected {
            // A node that was declared gone may beat again after a pause. Such a node does not call
            // `/peer/hello`, so the coordinator is notified here.
            let _ = events.send(Event::Hello);
        }
        let is_vacant = match of_label(&inside.look.coordinator) {
            Some((name, incarnation)) => judge.is_gone(name, incarnation),
            None => true,
        };
        let may_take = looked == Looked::InTime && has_lease && inside.card.is_some();
        if is_mine || !is_vacant || !may_take || inside.is_taking {
            return LookOutcome::without_vacancy(looked);
        }
        inside.is_taking = true;
        LookOutcome {
            looked,
            is_vacant: true,
        }
    }

    /// Records the end of an attempt to become the coordinator. `is_mine` is `true` if it
    /// succeeded.
    pub(super) fn took(&self, is_mine: bool) {
        let mut inside = self.inside();
        inside.is_taking = false;
        if is_mine && !inside.is_elected {
            inside.is_elected = true;
            inside.look.coordinator = self.label();
            if let Some(events) = &inside.events {
                let _ = events.send(Event::Elected);
            }
        }
    }

    /// Returns `true` if the process that `coordinator` identifies is gone, or if the text
    /// identifies no process.
    pub(super) fn is_vacant(&self, coordinator: &str) -> bool {
        let inside = self.inside();
        match of_label(coordinator) {
            Some((name, incarnation)) => inside.judge.is_gone(name, incarnation),
            None => true,
        }
    }
}

fn sorted(mut node_infos: Vec<NodeInfo>) -> Vec<NodeInfo> {
    node_infos.sort_by(|one, other| one.name.cmp(&other.name));
    node_infos
}

#[cfg(test)]
mod tests {
    use imt_ring::Member;

    use super::*;

    fn shared() -> Arc<Shared> {
        let url = "postgres://imt@127.0.0.1:1/none".parse().unwrap();
        Arc::new(Shared::new(Arc::new(url), NodeName::new("ada").unwrap(), 7))
    }

    /// A state in which the node serves its own volume since version 1.
    fn confirmed() -> Confirmed {
        let member = Member::new("ada").unwrap();
        Confirmed {
            state: ClusterState::first(member).unwrap(),
            coordinator: "ada/7".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_beat_that_meets_the_confirmed_state_extends_the_lease() {
        let shared = shared();
        shared.acknowledge((shared.now(), 2), 1, None);
        assert!(!shared.has_lease() && shared.due().is_behind);
        shared.acknowledge((shared.now(), 3), 1, Some(&confirmed()));
        assert!(shared.has_lease() && !shared.due().is_behind);
        tokio::time::advance(Duration::from_millis(800)).await;
        shared.acknowledge((shared.now(), 4), 2, None);
        assert!(shared.has_lease() && shared.due().is_behind);
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(!shared.has_lease(), "the lease ended 900 ms after beat 3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_was_assigned_elsewhere_has_no_lease_again() {
        let shared = shared();
        let ada = NodeName::new("ada").unwrap();
        let mut read = confirmed();
        shared.acknowledge((shared.now(), 2), 1, Some(&read));
        let lease = shared.lease_of(&ada, 1);
        assert!(lease());
        // The node is paused. Meanwhile its volume is assigned to another node.
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(!lease());
        shared.acknowledge((shared.now(), 3), 2, None);
        assert!(!lease(), "the new state is not known yet");
        read.state.version = 2;
        read.state
            .serving
            .insert(ada.clone(), NodeName::new("bob").unwrap());
        shared.acknowledge((shared.now(), 4), 2, Some(&read));
        assert!(shared.has_lease() && !lease());
        read.state.version = 3;
        read.state.serving.insert(ada.clone(), ada.clone());
        read.state.since.insert(ada.clone(), 3);
        shared.acknowledge((shared.now(), 5), 3, Some(&read));
        assert!(!lease(), "the open volume is that of version 1");
        assert!(shared.lease_of(&ada, 3)());
    }

    #[tokio::test(start_paused = true)]
    async fn the_beat_of_a_node_is_silent_once_it_is_older_than_a_lease() {
        let shared = shared();
        let beat = |number| Beat {
            incarnation: 9,
            number,
        };
        let look = |number| Look {
            beats: [("ada", 7, 1), ("bob", 9, number)]
                .map(|(name, incarnation, number)| (name.to_owned(), Beat { incarnation, number }))
                .into(),
            ..Look::default()
        };
        shared.looked(shared.now(), None, look(1));
        assert_eq!(shared.silent("bob"), None);
        // The looks are in time, and the beats of this process are acknowledged. Otherwise, every
        // node would have more time for its next beat.
        let interval = Pace::of(2).beat;
        for number in 0..=(LEASE_WAIT.as_millis() / interval.as_millis()) as i64 {
            tokio::time::advance(interval).await;
            shared.acknowledge((shared.now(), number), 1, None);
            shared.looked(shared.now(), None, look(1));
        }
        assert_eq!(shared.silent("bob"), Some(beat(1)));
        shared.looked(shared.now(), None, look(2));
        assert_eq!(shared.silent("bob"), None, "it beats again");
        shared.looked(shared.now(), None, look(-1));
        assert_eq!(shared.silent("bob"), Some(beat(-1)), "it has ended");
        assert_eq!(shared.silent("cleo"), None, "its row was removed");
    }
}
