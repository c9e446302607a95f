//! The owner's side of the stock copies that other nodes keep (`control::stock_copies`).
//!
//! A copy requests the changes since its position, which identifies the last change of the stock
//! that the copy has. The copy has one request open at a time, and the stock in an answer is never
//! older than the request.
//!
//! The owner answers a request that may wait (`FollowStock::waits`) after a group commit that
//! changed the stock, or without a change after `ANSWER_AFTER`. Between two answers to one copy,
//! the owner lets `ANSWER_SPACING` pass, so that one answer has the changes of many orders. While
//! an upload waits for the copies, answers need no such spacing. If a request has no position that
//! the owner knows, the answer is the layout of the stock, and the copy reads the whole stock.
//!
//! **Invariants**
//! - A copy is used for at most `COPY_AGE_MAX` after it sent the request of its newest answer. So
//!   no search for an order's store skips a store that has had the units for longer than that. The
//!   copy's node measures this time from the sending of the request, and the owner from its
//!   arrival. So clocks of two nodes are never compared.
//! - Units are never oversold, because only the owner reserves or lends them.
//! - An uploaded stock is visible to the next order. The owner confirms the upload only after every
//!   copy has applied the stock or must not be used (`copies_are_current`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::channel::message::{Cell, FollowStock, ReadStock, Reply, StockLayout, StockPosition};
use crate::domain::stock::StockMoment;
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::volume::questions::VolumeReply;
use crate::volume::state::VolumeState;

/// Age from which a copy is not used. It is three times `ANSWER_AFTER`, so that a copy stays usable
/// if some answers are late. It is short enough that no customer notices outdated quantities.
pub(crate) const COPY_AGE_MAX: Duration = Duration::from_millis(300);
/// Longest time until a request for changes is answered. The answer is empty if the stock has not
/// changed.
const ANSWER_AFTER: Duration = Duration::from_millis(100);
/// Shortest time from an answer to the next answer to the same copy, if its request may wait and no
/// upload waits for the copies. With an answer for each group commit, each node would send nearly
/// as many answers as it accepts orders. The value is a sixth of `COPY_AGE_MAX`, so no copy becomes
/// too old between two answers.
const ANSWER_SPACING: Duration = Duration::from_millis(50);
/// Time without a request after which the owner may forget a copy.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);
/// Maximum number of quantities in one answer to `ReadStock`: 256 KiB with four bytes for each.
const QUANTITIES_AT_A_TIME: usize = 64 << 10;

/// The copies of a volume's stock that other nodes keep, as the owner knows them.
pub(crate) struct Followers {
    /// Random number that distinguishes this volume server from earlier volume servers of the same
    /// volume.
    incarnation: u64,
    known: Mutex<BTreeMap<u64, Follower>>,
    /// Number of calls of `stock_has_changed`.
    commits: AtomicU64,
    /// Notified by `stock_has_changed`.
    stock_changed: Notify,
    /// Number of waiting calls of `copies_are_current`. While it is above 0, answers do not wait
    /// for `ANSWER_SPACING`.
    hurried: AtomicUsize,
    /// Notified when a call of `copies_are_current` begins.
    hurry: Notify,
    /// Notified at each request of a copy.
    copy_changed: Notify,
}

/// The owner's knowledge about one copy.
struct Follower {
    /// The state of the stock that the copy had when it sent its last request. `None` if the copy
    /// is unusable, because it has not read the whole stock yet.
    has: Option<StockMoment>,
    asked: Instant,
    /// Value of `Followers::commits` at the time of the newest answer to this copy; 0 before the
    /// first answer.
    answered: u64,
    /// Time of the newest answer to this copy. `None` before the first answer.
    answered_at: Option<Instant>,
}

impl Followers {
    /// Creates an empty list of copies.
    pub(crate) fn new() -> Followers {
        Followers {
            incarnation: runtime::random_u64(),
            known: Mutex::default(),
            commits: AtomicU64::new(0),
            stock_changed: Notify::new(),
            hurried: AtomicUsize::new(0),
            hurry: Notify::new(),
            copy_changed: Notify::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Follower>> {
        self.known.lock()
    }

    /// Wakes the open requests for changes. Call this after each commit that changed the stock.
    pub(crate) fn stock_has_changed(&self) {
        self.commits.fetch_add(1, Ordering::AcqRel);
        self.stock_changed.notify_waiters();
    }

    /// Records that a copy has sent a request, and the state of the stock in that copy. Returns the
    /// number of commits (`commits`) at the newest answer to this copy: 0 before the first answer,
    /// or `None` if the owner did not know the copy before this request.
    fn note(&self, follower: u64, has: Option<StockMoment>) -> Option<u64> {
        let asked = Instant::now();
        let mut known = self.known();
        if !known.contains_key(&follower) {
            known.retain(|_, other| other.asked + FORGOTTEN_AFTER > asked);
        }
        let before = known.get(&follower);
        let answered = before.map(|before| before.answered);
        let now = Follower {
            has,
            asked,
            answered: answered.unwrap_or(0),
            answered_at: before.and_then(|before| before.answered_at),
        };
        known.insert(follower, now);
        drop(known);
        self.copy_changed.notify_waiters();
        answered
    }

    fn note_answer(&self, follower: u64, commits: u64) {
        if let Some(known) = self.known().get_mut(&follower) {
            known.answered = commits;
            known.answered_at = Some(Instant::now());
        }
    }

    /// Returns the earliest time of the next answer to a copy. `None` if the copy has got no answer
    /// yet.
    fn answer_from(&self, follower: u64) -> Option<Instant> {
        let answered_at = self.known().get(&follower)?.answered_at?;
        Some(answered_at + ANSWER_SPACING)
    }

    /// Records that a copy is unusable until it has read the whole stock.
    fn note_reading(&self, follower: u64) {
        if let Some(known) = self.known().get_mut(&follower) {
            known.has = None;
        }
        self.copy_changed.notify_waiters();
    }

    /// Returns the time at which the last copy that lacks the state `moment` becomes too old to be
    /// used. `None` if every usable copy has that state.
    fn behind_until(&self, moment: StockMoment, now: Instant) -> Option<Instant> {
        let known = self.known();
        let behind = known
            .values()
            .filter(|follower| follower.has.is_some_and(|has| has < moment));
        let until = behind.map(|follower| follower.asked + COPY_AGE_MAX).max();
        until.filter(|until| *until > now)
    }

    fn has_any(&self, now: Instant) -> bool {
        let known = self.known();
        known
            .values()
            .any(|follower| follower.asked + FORGOTTEN_AFTER > now)
    }
}

/// While a value of this type exists, answers to copies do not wait for `ANSWER_SPACING`. Each call
/// of `copies_are_current` has such a value until it returns.
struct Hurried<'a>(&'a Followers);

impl Hurried<'_> {
    fn begin(followers: &Followers) -> Hurried<'_> {
        followers.hurried.fetch_add(1, Ordering::AcqRel);
        followers.hurry.notify_waiters();
        Hurried(followers)
    }
}

impl Drop for Hurried<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::AcqRel);
    }
}

impl VolumeState {
    fn position(&self, moment: StockMoment) -> StockPosition {
        StockPosition {
            incarnation: self.followers.incarnation,
            generation: moment.generation,
            changes: moment.changes,
        }
    }

    /// Answers a copy's request for changes. The reply always contains the epoch of the ring at the
    /// time of the answer, because the ring may change while the request waits.
    pub(crate) async fn follow_stock(&self, ask: FollowStock) -> VolumeReply {
        let is_ours = |known: &StockPosition| known.incarnation == self.followers.incarnation;
        let then = ask.known.map(|known| match is_ours(&known) {
            true => StockMoment {
                generation: known.generation,
                changes: known.changes,
            },
            // The position came from an earlier volume server of this volume, so it is older than
            // all positions of this server.
            false => StockMoment::default(),
        });
        let mut answered = self.followers.note(ask.follower, then);
        let until = Instant::now() + ANSWER_AFTER;
        if ask.waits {
            self.space_answers(ask.follower, until).await;
        }
        loop {
            let changed = self.followers.stock_changed.notified();
            let commits = self.followers.commits.load(Ordering::Acquire);
            let is_last = !ask.waits || Instant::now() >= until;
            if is_last || answered != Some(commits) {
                let answer = self.stock_since(then);
                let is_news = !matches!(&answer.reply, Reply::StockChanges(_, cells) if cells.is_empty());
                if is_last || is_news {
                    self.followers.note_answer(ask.follower, commits);
                    return answer;
                }
                answered = Some(commits);
            }
            // The tasks of the other orders of this group commit run during the yield, so the
            // answer also has the changes by these orders.
            let _ = tokio::time::timeout_at(until, changed).await;
            tokio::task::yield_now().await;
        }
    }

    /// Waits until `ANSWER_SPACING` has passed since the last answer to a copy. Ends earlier at
    /// `until`, or once an upload waits for the copies. Before the first answer, does not wait.
    async fn space_answers(&self, follower: u64, until: Instant) {
        let Some(from) = self.followers.answer_from(follower) else {
            return;
        };
        let hurry = self.followers.hurry.notified();
        if self.followers.hurried.load(Ordering::Acquire) == 0 {
            let _ = tokio::time::timeout_at(from.min(until), hurry).await;
        }
    }

    fn stock_since(&self, then: Option<StockMoment>) -> VolumeReply {
        let mut stock = self.stock();
        let now = stock.follow();
        let epoch = self.slots.ring().epoch().0;
        let position = self.position(now);
        let changes = then.and_then(|then| stock.changes_since(then));
        let reply = match changes {
            Some(changes) => {
                let cells = changes.into_iter().map(|changed| Cell {
                    at: changed.at,
                    available: changed.available,
                });
                let cells = cells.skip(usize::from(seeded("stock-change-lost")));
                Reply::StockChanges(position, cells.collect())
            }
            None => Reply::StockLayout(StockLayout {
                position,
                stores: stock.stores().to_vec(),
                products: stock.products(),
            }),
        };
        VolumeReply {
            reply,
            epoch: Some(epoch),
        }
    }

    /// Answers a read of one part of the whole stock. The quantities may be newer than the position
    /// at which the copy began to read. After its last read, the copy requests the changes since
    /// that position. They contain the newer quantities again, so the copy becomes consistent.
    /// Returns `Moved` if the stock has another generation by now, or the volume another server.
    pub(crate) fn read_stock(&self, ask: ReadStock) -> Reply {
        self.followers.note_reading(ask.follower);
        let mut stock = self.stock();
        if ask.incarnation != self.followers.incarnation || ask.generation != stock.moment().generation {
            return Reply::Moved;
        }
        Reply::StockRows(stock.available_rows(ask.first_row as usize, QUANTITIES_AT_A_TIME))
    }

    /// Waits until every copy that may still be used has the stock of the time of this call, or a
    /// newer stock.
    pub(crate) async fn copies_are_current(&self) {
        let moment = self.stock().moment();
        let _hurried = Hurried::begin(&self.followers);
        self.followers.stock_has_changed();
        loop {
            let changed = self.followers.copy_changed.notified();
            let Some(until) = self.followers.behind_until(moment, Instant::now()) else {
                return;
            };
            let _ = tokio::time::timeout_at(until, changed).await;
        }
    }

    /// Stops recording changes of the stock if no copy has sent a request for `FORGOTTEN_AFTER`.
    pub(crate) fn forget_followers(&self) {
        if !self.followers.has_any(Instant::now()) {
            self.stock().unfollow();
        }
    }
}

#[cfg(test)]
mod tests;
