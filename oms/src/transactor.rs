//! One transactor per order: a task that owns the order while there is something to do.
//!
//! The first message for an order starts its transactor, which reads the order from the volume, carries out what is
//! in its mailbox one by one, and rests (ends) as soon as the mailbox is empty: an idle open order costs no task and
//! no memory. Mailboxes are filled and closed under one lock, so no message falls between rest and start.
//!
//! A panic loses nothing: the order is as it last became durable, whoever waited is told or tried once more, and
//! the next message starts the transactor anew. An order that makes its transactor panic again and again fails
//! its own messages only.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::desk::{Desk, Fault, Outcome};
use crate::order::{Command, Line, Order, OrderId};
use crate::outbox::{Kind, Message};

/// Messages that may wait for one order. Nobody has more to say to one order at a time; more is an attack or a bug.
const MAILBOX_MESSAGES_MAX: usize = 64;
/// Parts of the registry, each with a lock of its own, so that starts on different threads rarely meet.
const SHARDS: usize = 64;

/// What is asked of an order's transactor.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// Take this order, or answer as when it was taken.
    Place(Box<[Line]>),
    /// Carry this command out.
    Command(Command),
    /// Write down how a message to the warehouse fares.
    Note(Kind, Message),
    /// Have a dead message tried again.
    Retry(Kind),
    /// Say how it stands.
    Look,
    #[cfg(test)]
    Panic,
}

struct Envelope {
    ask: Ask,
    answer: oneshot::Sender<Result<Outcome, Fault>>,
}

/// What waits for a transactor that is at work; empty most of the time, and then without memory of its own.
type Mailbox = VecDeque<Envelope>;

/// The transactors that are at work.
pub(crate) struct Transactors {
    desk: Arc<Desk>,
    shards: Vec<Mutex<HashMap<OrderId, Mailbox>>>,
    hasher: RandomState,
    panics: AtomicU64,
}

impl Transactors {
    /// No transactors yet, over the rooms of a volume.
    pub(crate) fn new(desk: Arc<Desk>) -> Arc<Transactors> {
        Arc::new(Transactors {
            desk,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            panics: AtomicU64::new(0),
        })
    }

    /// The rooms that the transactors work in.
    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// How many transactors are at work now.
    pub(crate) fn at_work(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// How many transactors ended in a panic.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Asks an order's transactor and waits for its answer. A transactor that ends without one is asked once more:
    /// every ask is idempotent, and the one that broke it may have been another's.
    pub(crate) async fn ask(self: &Arc<Self>, id: &OrderId, ask: Ask) -> Result<Outcome, Fault> {
        match self.deliver(id, ask.clone())?.await {
            Ok(answer) => answer,
            Err(_) => self.deliver(id, ask)?.await.unwrap_or(Err(Fault::Interrupted)),
        }
    }

    fn shard(&self, id: &OrderId) -> MutexGuard<'_, HashMap<OrderId, Mailbox>> {
        lock(&self.shards[self.hasher.hash_one(id) as usize % SHARDS])
    }

    fn deliver(
        self: &Arc<Self>,
        id: &OrderId,
        ask: Ask,
    ) -> Result<oneshot::Receiver<Result<Outcome, Fault>>, Fault> {
        let (answer, receiver) = oneshot::channel();
        let envelope = Envelope { ask, answer };
        let mut shard = self.shard(id);
        if let Some(mailbox) = shard.get_mut(id) {
            if mailbox.len() == MAILBOX_MESSAGES_MAX {
                return Err(Fault::Busy("too many requests wait for this order"));
            }
            mailbox.push_back(envelope);
            return Ok(receiver);
        }
        shard.insert(id.clone(), Mailbox::new());
        drop(shard);
        let entry = RegistryEntry {
            transactors: Arc::clone(self),
            id: id.clone(),
            rested: false,
        };
        tokio::spawn(work(entry, envelope));
        Ok(receiver)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A transactor's entry in the registry; taken out however the transactor ends.
struct RegistryEntry {
    transactors: Arc<Transactors>,
    id: OrderId,
    rested: bool,
}

impl RegistryEntry {
    /// The next message, or rest: messages are put in under the lock under which the entry is taken out, so none is
    /// left behind.
    fn next(&mut self) -> Option<Envelope> {
        let mut shard = self.transactors.shard(&self.id);
        let next = shard.get_mut(&self.id).and_then(VecDeque::pop_front);
        if next.is_none() {
            shard.remove(&self.id);
            self.rested = true;
        }
        next
    }
}

impl Drop for RegistryEntry {
    fn drop(&mut self) {
        if self.rested {
            return;
        }
        if std::thread::panicking() {
            self.transactors.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(order = %self.id, "the order's transactor panicked; its next message starts it anew");
        }
        // Whoever waits behind the panic is told by the loss of the answer's sender, outside of the lock.
        let left = self.transactors.shard(&self.id).remove(&self.id);
        drop(left);
    }
}

/// The life of a transactor: read the order, answer the mailbox, rest.
async fn work(mut entry: RegistryEntry, first: Envelope) {
    let desk = Arc::clone(&entry.transactors.desk);
    let mut order = None;
    let mut next = Some(first);
    while let Some(envelope) = next {
        let answer = carry_out(&desk, &entry.id, &mut order, envelope.ask).await;
        // Nobody may be waiting any more; what was done stays done.
        let _ = envelope.answer.send(answer);
        next = entry.next();
    }
}

async fn carry_out(
    desk: &Desk,
    id: &OrderId,
    known: &mut Option<Arc<Order>>,
    ask: Ask,
) -> Result<Outcome, Fault> {
    desk.slots.check_order(id)?;
    if known.is_none() {
        *known = desk.store.order(id)?.map(Arc::new);
    }
    let outcome = match (ask, known.clone()) {
        (Ask::Place(lines), None) => desk.place(id, lines).await,
        (Ask::Place(lines), Some(order)) => match order.placed_again(&lines) {
            Ok(()) => Ok(Outcome {
                order,
                repeated: true,
            }),
            Err(refusal) => Err(Fault::Refused(refusal)),
        },
        (Ask::Command(command), Some(order)) => desk.command(order, &command).await,
        (Ask::Note(kind, message), Some(order)) => {
            desk.note_message(&order, kind, &message).await.map(|_| Outcome {
                order,
                repeated: false,
            })
        }
        (Ask::Retry(kind), Some(order)) => desk.retry_message(&order, kind).await.map(|()| Outcome {
            order,
            repeated: false,
        }),
        (Ask::Look, Some(order)) => Ok(Outcome {
            order,
            repeated: true,
        }),
        #[cfg(test)]
        (Ask::Panic, _) => panic!("asked to"),
        (_, None) => Err(Fault::Unknown),
    };
    match &outcome {
        Ok(outcome) => *known = Some(Arc::clone(&outcome.order)),
        // What a failed step left is read anew, not guessed.
        Err(_) => *known = None,
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::Changes;
    use crate::clock::Clock;
    use crate::order::State;
    use crate::outbox::OutboxLimits;
    use crate::sheet::Sheet;
    use crate::slots::Slots;
    use crate::stock::StockHead;
    use crate::store::Store;

    fn id(text: &str) -> OrderId {
        OrderId::parse(text).unwrap()
    }

    fn line(id: u32, quantity: u32) -> Line {
        Line { id, quantity }
    }

    /// Transactors over a volume whose store 1 has `units` of product 7.
    async fn transactors(folder: &std::path::Path, units: u32) -> Arc<Transactors> {
        let store = Store::open(folder).unwrap();
        let mut sheet = Sheet::default();
        sheet.set([7, 1, units]).unwrap();
        let mut changes = Changes::default();
        changes.stock(&sheet, &[]);
        changes.stock_head(&StockHead::default());
        store
            .permit()
            .await
            .unwrap()
            .send(changes)
            .durable()
            .await
            .unwrap();
        let slots = Arc::new(Slots::everything());
        let loaded = store.load(&slots).unwrap();
        Transactors::new(Arc::new(Desk::new(
            Arc::new(store),
            slots,
            loaded,
            OutboxLimits::default(),
            Clock::System,
            None,
        )))
    }

    async fn close(transactors: Arc<Transactors>) {
        tokio::task::spawn_blocking(move || transactors.desk().store.close())
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn a_panic_loses_nothing_and_the_next_message_starts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let transactors = transactors(folder.path(), 5).await;
        let lines: Box<[Line]> = [line(7, 2)].into();
        transactors
            .ask(&id("a"), Ask::Place(lines.clone()))
            .await
            .unwrap();
        assert!(matches!(
            transactors.ask(&id("a"), Ask::Panic).await,
            Err(Fault::Interrupted)
        ));
        assert_eq!(transactors.panics(), 2, "asked once, tried once more");
        let paid = Ask::Command(Command::Pay { transaction: 4 });
        assert_eq!(
            transactors.ask(&id("a"), paid).await.unwrap().order.state,
            State::Paid
        );
        assert!(
            transactors
                .ask(&id("a"), Ask::Place(lines))
                .await
                .unwrap()
                .repeated
        );
        assert_eq!(transactors.desk().stock().product(7)[0].reserved, 2);
        close(transactors).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_waits_behind_a_panic_is_still_carried_out() {
        let folder = tempfile::tempdir().unwrap();
        let transactors = transactors(folder.path(), 5).await;
        for round in 0..200 {
            let order = id(&format!("o{round}"));
            let lines: Box<[Line]> = [line(8, 1)].into();
            let (panic, place) = tokio::join!(
                transactors.ask(&order, Ask::Panic),
                transactors.ask(&order, Ask::Place(lines))
            );
            assert!(matches!(panic, Err(Fault::Interrupted)));
            // It may have waited behind both panics; then it was told so, and may be sent again.
            assert!(matches!(place, Ok(_) | Err(Fault::Interrupted)), "{place:?}");
        }
        close(transactors).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_message_falls_between_rest_and_start() {
        let folder = tempfile::tempdir().unwrap();
        let transactors = transactors(folder.path(), 1_000_000).await;
        let mut askers = tokio::task::JoinSet::new();
        for asker in 0..8u64 {
            let transactors = Arc::clone(&transactors);
            askers.spawn(async move {
                for round in 0..250 {
                    let order = id(&format!("o{}", round % 3));
                    let place = Ask::Place([line(7, 1)].into());
                    let outcome = transactors.ask(&order, place).await.unwrap();
                    assert_eq!(outcome.order.store, Some(1), "asker {asker}");
                }
            });
        }
        while let Some(asker) = askers.join_next().await {
            asker.unwrap();
        }
        assert_eq!(
            transactors.desk().stock().product(7)[0].reserved,
            3,
            "three orders, however often they came"
        );
        assert_eq!(
            transactors.desk().store.book().orders[State::Reserved as usize],
            3
        );
        while transactors.at_work() > 0 {
            tokio::task::yield_now().await;
        }
        close(transactors).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_last_units_are_promised_once_whoever_asks_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let transactors = transactors(folder.path(), 10).await;
        let mut askers = tokio::task::JoinSet::new();
        for asker in 0..100 {
            let transactors = Arc::clone(&transactors);
            askers.spawn(async move {
                let place = Ask::Place([line(7, 1)].into());
                transactors
                    .ask(&id(&format!("o{asker}")), place)
                    .await
                    .unwrap()
                    .order
                    .store
                    .is_some()
            });
        }
        let mut taken = 0;
        while let Some(asker) = askers.join_next().await {
            taken += usize::from(asker.unwrap());
        }
        assert_eq!(taken, 10);
        let reserved: u32 = transactors
            .desk()
            .store
            .reservations(&Slots::everything())
            .unwrap()
            .iter()
            .map(|held| held.lines[0].quantity)
            .sum();
        assert_eq!(reserved, 10);
        close(transactors).await;
    }
}
