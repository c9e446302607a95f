//! Tests of reservations for orders of other volumes. Each reservation has one row and ends once,
//! even if calls are repeated or commits fail.

use std::path::Path;

use imt_ring::{Member, NodeName, Ring};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::*;
use crate::domain::stock::Reservation;
use crate::domain::stock_snapshot::StockSnapshot;
use crate::outbox::OutboxLimits;
use crate::runtime::clock::Clock;
use crate::storage::fence::SlotOwnership;
use crate::storage::owned_slots::{Slots, of_order, of_store};
use crate::storage::volume::Volume;
use crate::volume::migration::staged_rows::StagedRows;
use crate::volume::migration::staged_state::StagedState;
use crate::volume::transactor::{Ask, Transactors};

/// Returns a ring with the volume `a` alone, and its successor with a second volume `b`.
pub(crate) fn rings() -> (Arc<Ring>, Arc<Ring>) {
    let member = |name: &str| Member::new(name).unwrap();
    let alone = Ring::bootstrap([member("a")], imt_ring::Options::new()).unwrap();
    let plan = alone.plan(&[member("a"), member("b")]).unwrap();
    let shared = alone.apply(&plan).unwrap();
    (Arc::new(alone), Arc::new(shared))
}

pub(crate) fn name() -> NodeName {
    NodeName::new("a").unwrap()
}

/// Opens the state of the volume `a` under a ring.
pub(crate) fn open(folder: &Path, ring: &Arc<Ring>) -> Arc<VolumeState> {
    open_with(folder, ring, None)
}

/// Opens the state of the volume `a` under a ring, with a client for the other volumes.
pub(crate) fn open_with(
    folder: &Path,
    ring: &Arc<Ring>,
    remote: Option<Arc<dyn RemoteVolumes>>,
) -> Arc<VolumeState> {
    let storage = Volume::open(folder).unwrap();
    let slots = Slots::of(Arc::clone(ring), &name(), storage.slot_ownership().as_ref());
    let loaded = storage.load(&slots).unwrap();
    let (storage, slots) = (Arc::new(storage), Arc::new(slots));
    let limits = OutboxLimits::default();
    Arc::new(VolumeState::new(
        storage,
        slots,
        loaded,
        limits,
        Clock::System,
        remote,
    ))
}

/// Opens the state of the volume `a` with five units of product 7 in each of 20 stores.
pub(crate) async fn stocked(folder: &Path, ring: &Arc<Ring>) -> Arc<VolumeState> {
    let state = open(folder, ring);
    let mut snapshot = StockSnapshot::default();
    (1..=20).for_each(|store| snapshot.set([7, store, 5]).unwrap());
    let mut batch = WriteBatch::default();
    batch.stock(&snapshot, &[]);
    commit(&state, batch).await;
    own(&state, state.slots.record()).await;
    close(&state).await;
    open(folder, ring)
}

async fn commit(state: &VolumeState, batch: WriteBatch) {
    let permit = state.storage.permit().await.unwrap();
    permit.send(batch).durable().await.unwrap();
}

/// Commits the slot ownership of the volume.
pub(crate) async fn own(state: &VolumeState, record: SlotOwnership) {
    let mut batch = WriteBatch::default();
    batch.set_ownership(record);
    commit(state, batch).await;
}

pub(crate) async fn close(state: &Arc<VolumeState>) {
    let state = Arc::clone(state);
    let closing = tokio::task::spawn_blocking(move || state.storage.close());
    closing.await.unwrap().unwrap();
}

/// Returns the first store of the volume `a` (`is_here`) or of the other volume.
pub(crate) fn store_where(ring: &Ring, is_here: bool) -> u32 {
    let is_wanted = |store: &u32| (ring.owner(of_store(ring, *store)).unwrap() == &name()) == is_here;
    (1..=20).find(is_wanted).unwrap()
}

/// Returns the orders of the volume `a` (`is_here`) or of the other volume.
pub(crate) fn orders_where(ring: &Ring, is_here: bool) -> impl Iterator<Item = OrderId> {
    let all = (0..).map(|number| OrderId::parse(&format!("o{number}")).unwrap());
    all.filter(move |order| (ring.owner(of_order(ring, order)).unwrap() == &name()) == is_here)
}

pub(crate) fn units(quantity: u32) -> [Line; 1] {
    [Line { id: 7, quantity }]
}

/// Returns the available and the reserved units of product 7 in a store.
pub(crate) fn level(state: &VolumeState, store: u32) -> (i32, u32) {
    let levels = state.stock().product(7);
    let level = levels
        .into_iter()
        .find(|level| level.cell.store == store)
        .unwrap();
    (level.available, level.reserved)
}

fn request(order: &OrderId, nonce: u64, store: u32, quantity: u32) -> Reserve {
    Reserve {
        order: order.clone(),
        nonce,
        store,
        lines: units(quantity).into(),
    }
}

/// Reserves units for an order of another volume. Returns `false` if the store lacks some of them,
/// or if the order has taken lent units of this store.
pub(crate) async fn reserve(
    state: &Arc<VolumeState>,
    order: &OrderId,
    nonce: u64,
    store: u32,
    quantity: u32,
) -> Result<bool, OrderError> {
    let mut answers = state
        .reserve_all(vec![request(order, nonce, store, quantity)])
        .await;
    assert_eq!(answers.len(), 1);
    let answer = answers.pop().unwrap();
    answer.map(|reply| match reply {
        Reply::Reserved => true,
        Reply::Short(_) => false,
        other => panic!("{other:?}"),
    })
}

fn settlement(store: u32, delivered: bool) -> Settlement {
    Settlement {
        store,
        lines: units(2).into(),
        delivered,
        sequence: delivered.then_some(9),
    }
}

#[tokio::test]
async fn a_failed_settlement_changes_nothing_and_its_repetition_is_applied_once() {
    let (_, shared) = rings();
    for delivered in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let state = stocked(folder.path(), &shared).await;
        let store = store_where(&shared, true);
        let orders: Vec<OrderId> = orders_where(&shared, false).take(2).collect();
        for (nonce, (order, quantity)) in (1..).zip(orders.iter().zip([2, 1])) {
            assert!(reserve(&state, order, nonce, store, quantity).await.unwrap());
        }
        assert_eq!(level(&state, store), (2, 3));
        // Under this record the volume owns no slot, so all commits with a fence are rejected. This
        // simulates commits that fail, for example on a full disk.
        own(&state, SlotOwnership(vec![0; shared.slots() as usize])).await;
        let settlement = settlement(store, delivered);
        for _ in 0..2 {
            state.settle(&orders[0], &settlement).await.unwrap_err();
            assert_eq!(level(&state, store), (2, 3));
            let repeated = reserve(&state, &orders[0], 3, store, 2).await;
            repeated.unwrap_err();
            let other = reserve(&state, &orders[0], 4, store, 1).await;
            other.unwrap_err();
            assert_eq!(level(&state, store), (2, 3));
        }
        own(&state, state.slots.record()).await;
        let expected = if delivered { (2, 1) } else { (4, 1) };
        for _ in 0..3 {
            let both = tokio::join!(
                state.settle(&orders[0], &settlement),
                state.settle(&orders[0], &settlement)
            );
            assert!(both.0.is_ok(), "{both:?}");
            assert!(matches!(both.1, Ok(()) | Err(OrderError::Moved)), "{both:?}");
            assert_eq!(level(&state, store), expected);
        }
        close(&state).await;
        let again = open(folder.path(), &shared);
        assert_eq!(level(&again, store), expected);
        close(&again).await;
    }
}

#[tokio::test]
async fn a_reopened_volume_knows_the_reservations_requested_by_other_volumes() {
    let (alone, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let asked = orders_where(&shared, false).next().unwrap();
    assert!(reserve(&state, &asked, 77, store, 2).await.unwrap());
    let own_order = orders_where(&shared, true).next().unwrap();
    let lines: Box<[Line]> = units(1).into();
    let mut batch = WriteBatch::default();
    batch.reserve(&Order::place(own_order.clone(), lines, Some(store), 0), store);
    commit(&state, batch).await;
    close(&state).await;
    // Under the ring `alone`, the slots of both orders are in this volume. A slot does not prove
    // that its order exists, so a reservation with a nonce stays remote.
    let again = open(folder.path(), &alone);
    assert!(again.remote_reservations().get(&asked, store).is_some());
    assert!(again.remote_reservations().get(&own_order, store).is_none());
    // The reservation has the nonce 77. An answer about the nonce 76 must end nothing, and two
    // answers about the nonce 77 must release the units once.
    let mut question = question_about(&again, &asked);
    for (nonce, left) in [(76, (2, 3)), (77, (4, 1)), (77, (4, 1))] {
        question.nonce = nonce;
        let settlement = settlement(store, false);
        let ended = again.end_reservation(&asked, &settlement, Some(&question)).await;
        ended.unwrap();
        assert_eq!(level(&again, store), left);
    }
    close(&again).await;
}

/// Returns the question that is due about the reservation of an order.
fn question_about(state: &VolumeState, order: &OrderId) -> DueReservation {
    let due = state.remote_reservations().due(Instant::now() + ASK_AFTER);
    due.into_iter().find(|due| due.order == *order).unwrap()
}

/// A request of an earlier attempt to place an order arrives after that of a later attempt. The
/// later attempt asked for other units, and its order may be durable already.
#[tokio::test(start_paused = true)]
async fn a_late_request_for_other_units_replaces_no_reservation() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let order = orders_where(&shared, false).next().unwrap();
    assert!(reserve(&state, &order, 8, store, 2).await.unwrap());
    for quantity in [3, 1] {
        let late = reserve(&state, &order, 6, store, quantity).await;
        assert!(matches!(late, Err(OrderError::Busy(OTHER_UNITS))), "{late:?}");
        assert_eq!(level(&state, store), (3, 2));
    }
    // The order's volume is asked at once, and does not need the units. So a later attempt can have
    // other units.
    check_reservations(&state, &NothingKept).await;
    assert_eq!(level(&state, store), (5, 0));
    assert!(reserve(&state, &order, 10, store, 3).await.unwrap());
    assert_eq!(level(&state, store), (2, 3));
    // The units of a confirmed reservation stay too.
    state.confirm(&Confirm {
        order: order.clone(),
        nonce: 10,
        store,
    });
    reserve(&state, &order, 6, store, 1).await.unwrap_err();
    check_reservations(&state, &NothingKept).await;
    assert_eq!(level(&state, store), (2, 3));
    close(&state).await;
    let again = open(folder.path(), &shared);
    assert_eq!(level(&again, store), (2, 3));
    close(&again).await;
}

/// The order's volume answers that no order needs the reservation. A later attempt to place the
/// order has reserved the same units since the question, and then the request of the earlier
/// attempt arrived a second time.
#[tokio::test]
async fn an_answer_about_an_earlier_attempt_ends_no_later_reservation() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let order = orders_where(&shared, false).next().unwrap();
    assert!(reserve(&state, &order, 6, store, 2).await.unwrap());
    let question = question_about(&state, &order);
    for nonce in [8, 6] {
        assert!(reserve(&state, &order, nonce, store, 2).await.unwrap());
    }
    let ended = state
        .end_reservation(&order, &settlement(store, false), Some(&question))
        .await;
    ended.unwrap();
    assert_eq!(level(&state, store), (3, 2));
    close(&state).await;
}

/// A client for other volumes that have no store, and no order that still needs its units.
struct NothingKept;

impl RemoteVolumes for NothingKept {
    fn find<'a>(&'a self, _: Search<'a>) -> Answer<'a, Option<u32>> {
        Box::pin(async { Ok(None) })
    }

    fn reserve<'a>(&'a self, _: &'a OrderId, _: u64, _: u32, _: &'a [Line]) -> Answer<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn confirm(&self, _: &OrderId, _: u64, _: u32) {}

    fn allot<'a>(&'a self, _: &'a AllotRequest) -> Answer<'a, Reply> {
        Box::pin(async { Err(OrderError::Moved) })
    }

    fn recall(&self, _: &NodeName, _: Recall) {}

    fn settle<'a>(&'a self, _: &'a OrderId, _: &'a Settlement) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn keeps<'a>(&'a self, _: &'a OrderId, _: u32) -> Answer<'a, bool> {
        Box::pin(async { Ok(false) })
    }
}

/// The node of the order dies after the reservation, before the order is durable. Then the store's
/// volume is opened under a ring that also gives it the order's slot. Only the nonce in the
/// reservation's row shows that another volume requested the units, so the volume must ask if the
/// order exists.
#[tokio::test(start_paused = true)]
async fn units_of_an_order_that_was_never_placed_are_released_by_the_new_owner_of_its_slot() {
    let (alone, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let never_placed = orders_where(&shared, false).next().unwrap();
    assert!(reserve(&state, &never_placed, 77, store, 2).await.unwrap());
    close(&state).await;
    let again = open(folder.path(), &alone);
    assert_eq!(level(&again, store), (3, 2));
    tokio::time::advance(ASK_AFTER * 2).await;
    check_reservations(&again, &NothingKept).await;
    assert_eq!(level(&again, store), (5, 0));
    close(&again).await;
    let opened = open(folder.path(), &alone);
    assert_eq!(level(&opened, store), (5, 0), "the release is durable");
    close(&opened).await;
}

/// The store's volume asks if an order needs its reservation while the settlement is unconfirmed.
/// The store's volume may have applied the settlement already, and a delayed request may have
/// reserved the units again. The answer "kept" would leave these units reserved for ever.
#[tokio::test]
async fn a_question_about_a_reservation_is_not_answered_while_its_settlement_is_unconfirmed() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, false);
    let id = orders_where(&shared, true).next().unwrap();
    let mut order = Order::place(id.clone(), units(2).into(), Some(store), 1);
    assert!(state.keeps(&order, store).unwrap());
    assert!(!state.keeps(&order, store + 1).unwrap());
    order.apply(vec![crate::domain::order::Event::Cancelled], 2);
    let settlement = settlement(store, false);
    state.settlements().insert(id.clone(), settlement);
    let answer = state.keeps(&order, store);
    assert!(matches!(answer, Err(OrderError::Busy(_))), "{answer:?}");
    assert!(!state.keeps(&order, store + 1).unwrap());
    state.settlements().remove(&id);
    assert!(!state.keeps(&order, store).unwrap());
    close(&state).await;
}

#[tokio::test]
async fn a_migrated_reservation_stays_remote_only_if_another_volume_requested_it() {
    let (alone, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, false);
    let orders: Vec<OrderId> = orders_where(&shared, false).take(2).collect();
    let mut staged_state = StagedState::default();
    for (order, nonce) in orders.iter().zip([Some(5), None]) {
        let reservation = Reservation {
            order: order.clone(),
            store,
            lines: units(1).into(),
            nonce,
        };
        staged_state.reserve(order, store, Some(reservation), false);
    }
    let staged = StagedRows::default();
    let permit = state.storage.permit().await.unwrap();
    let taken = state.activate_slots(&alone, &mut staged_state, staged, permit);
    taken.durable().await.unwrap();
    let is_held = |order: &OrderId| state.remote_reservations().get(order, store).is_some();
    assert!(is_held(&orders[0]), "the order must say whether it keeps it");
    assert!(!is_held(&orders[1]), "it was set aside by the order's own step");
    close(&state).await;
}

#[tokio::test]
async fn each_request_of_a_batch_gets_its_own_answer_and_a_refusal_names_the_available_units() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let (here, elsewhere) = (store_where(&shared, true), store_where(&shared, false));
    let orders: Vec<OrderId> = orders_where(&shared, false).take(5).collect();
    let own_order = orders_where(&shared, true).next().unwrap();
    let batch = vec![
        request(&orders[0], 1, here, 2),
        request(&orders[1], 2, here, 4),
        request(&orders[2], 3, elsewhere, 1),
        request(&own_order, 4, here, 1),
        request(&orders[3], 5, here, 3),
        request(&orders[0], 6, here, 2),
        request(&orders[4], 7, here, 1),
    ];
    let answers = state.reserve_all(batch.clone()).await;
    let left = |available| Reply::Short(vec![Cell { at: 7, available }]);
    let reply = |at: usize| answers[at].clone().unwrap();
    assert_eq!(reply(0), Reply::Reserved);
    assert_eq!(reply(1), left(3));
    assert!(
        matches!(answers[2], Err(OrderError::Moved)),
        "the store is elsewhere"
    );
    assert!(matches!(answers[3], Err(OrderError::Moved)), "the order is here");
    assert_eq!(reply(4), Reply::Reserved);
    assert!(
        matches!(answers[5], Err(OrderError::Moved)),
        "its row is being written"
    );
    assert_eq!(reply(6), left(0));
    assert_eq!(level(&state, here), (0, 5));
    // A repetition of the same batch changes nothing.
    let again = state.reserve_all(batch).await;
    assert!(matches!(again[0], Ok(Reply::Reserved)) && matches!(again[4], Ok(Reply::Reserved)));
    assert_eq!(level(&state, here), (0, 5));
    close(&state).await;
    let opened = open(folder.path(), &shared);
    assert_eq!(level(&opened, here), (0, 5));
    close(&opened).await;
}

#[tokio::test]
async fn a_batch_that_fails_to_commit_reserves_nothing_and_refuses_every_request() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let orders: Vec<OrderId> = orders_where(&shared, false).take(3).collect();
    own(&state, SlotOwnership(vec![0; shared.slots() as usize])).await;
    let batch = orders.iter().map(|order| request(order, 1, store, 1)).collect();
    let answers = state.reserve_all(batch).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(OrderError::Moved))),
        "{answers:?}"
    );
    assert_eq!(level(&state, store), (5, 0));
    close(&state).await;
}

#[tokio::test(start_paused = true)]
async fn the_order_of_a_confirmed_reservation_is_not_asked_about_it() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let orders: Vec<OrderId> = orders_where(&shared, false).take(3).collect();
    for order in &orders {
        assert!(reserve(&state, order, 1, store, 1).await.unwrap());
    }
    let confirm = |order: &OrderId, nonce| {
        let order = order.clone();
        state.confirm(&Confirm { order, nonce, store });
    };
    confirm(&orders[0], 1);
    // The nonce 2 belongs to another request for this order, so this confirmation confirms nothing.
    confirm(&orders[1], 2);
    // After this confirmation of nonce 1, a late request reserves the units again under nonce 3.
    // The confirmation does not apply to the new reservation.
    confirm(&orders[2], 1);
    assert!(reserve(&state, &orders[2], 3, store, 1).await.unwrap());
    let later = Instant::now() + ASK_AFTER * 2;
    let due = state.remote_reservations().due(later);
    let mut due: Vec<(OrderId, u64)> = due.into_iter().map(|due| (due.order, due.nonce)).collect();
    due.sort();
    let mut expected = vec![(orders[1].clone(), 1), (orders[2].clone(), 3)];
    expected.sort();
    assert_eq!(due, expected);
    close(&state).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_confirms_no_reservation_that_was_made_again() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let order = orders_where(&shared, false).next().unwrap();
    assert!(reserve(&state, &order, 1, store, 1).await.unwrap());
    let later = Instant::now() + ASK_AFTER * 2;
    let asked = state.remote_reservations().due(later).pop().unwrap();
    state.settle(&order, &settlement(store, false)).await.unwrap();
    // A repeated request reserves the units again under the same nonce.
    assert!(reserve(&state, &order, 1, store, 1).await.unwrap());
    state.remote_reservations().confirm_asked(&asked);
    let asked = state.remote_reservations().due(later).pop().unwrap();
    state.remote_reservations().confirm_asked(&asked);
    let much_later = later + ASK_AFTER_MAX;
    assert!(state.remote_reservations().due(much_later).is_empty());
    close(&state).await;
}

#[tokio::test]
async fn a_delivery_is_subtracted_once_if_the_units_were_reserved_again() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let order = orders_where(&shared, false).next().unwrap();
    for _ in 0..2 {
        // The second reservation and settlement are late copies of the first ones.
        assert!(reserve(&state, &order, 1, store, 2).await.unwrap());
        state.settle(&order, &settlement(store, true)).await.unwrap();
        assert_eq!(level(&state, store), (3, 0));
    }
    close(&state).await;
    let again = open(folder.path(), &shared);
    assert_eq!(level(&again, store), (3, 0));
    close(&again).await;
}

/// A client for another volume that has one store with the units. Its first answer waits for
/// `may_answer`.
struct SlowVolume {
    store: u32,
    asked: Notify,
    may_answer: Notify,
    questions: Mutex<Vec<Option<u32>>>,
    reserved: Mutex<Vec<OrderId>>,
}

impl RemoteVolumes for SlowVolume {
    fn find<'a>(&'a self, search: Search<'a>) -> Answer<'a, Option<u32>> {
        let below = search.below;
        Box::pin(async move {
            let is_first = {
                let mut questions = self.questions.lock();
                questions.push(below);
                questions.len() == 1
            };
            if is_first {
                self.asked.notify_one();
                self.may_answer.notified().await;
            }
            Ok(Some(self.store).filter(|store| below.is_none_or(|below| *store < below)))
        })
    }

    fn reserve<'a>(&'a self, order: &'a OrderId, _: u64, _: u32, _: &'a [Line]) -> Answer<'a, bool> {
        self.reserved.lock().push(order.clone());
        Box::pin(std::future::ready(Ok(true)))
    }

    fn confirm(&self, _: &OrderId, _: u64, _: u32) {}

    fn allot<'a>(&'a self, _: &'a AllotRequest) -> Answer<'a, Reply> {
        Box::pin(std::future::ready(Err(OrderError::Moved)))
    }

    fn recall(&self, _: &NodeName, _: Recall) {}

    fn settle<'a>(&'a self, _: &'a OrderId, _: &'a Settlement) -> Answer<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn keeps<'a>(&'a self, _: &'a OrderId, _: u32) -> Answer<'a, bool> {
        Box::pin(std::future::ready(Ok(true)))
    }
}

/// The search must ask the other volume, because no copy of its stock is ready. Before that volume
/// answers, another order takes the units of the first store here. The search must then be repeated
/// with a higher limit `below`, or it would miss the store of the other volume.
#[tokio::test]
async fn an_order_skips_no_store_of_a_volume_that_answers_late() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    close(&stocked(folder.path(), &shared).await).await;
    let is_here = |store: &u32| shared.owner(of_store(&shared, *store)).unwrap() == &name();
    let elsewhere = store_where(&shared, false).max(store_where(&shared, true) + 1);
    let elsewhere = (elsewhere..=20).find(|store| !is_here(store)).unwrap();
    let mut earlier: Vec<u32> = (1..elsewhere).filter(is_here).collect();
    let first = earlier.pop().unwrap();
    assert!(
        (elsewhere..=20).any(|store| is_here(&store)),
        "a later store is here"
    );
    let other = Arc::new(SlowVolume {
        store: elsewhere,
        asked: Notify::new(),
        may_answer: Notify::new(),
        questions: Mutex::default(),
        reserved: Mutex::default(),
    });
    let remote: Arc<dyn RemoteVolumes> = Arc::clone(&other) as Arc<dyn RemoteVolumes>;
    let state = open_with(folder.path(), &shared, Some(remote));
    let transactors = Transactors::new(Arc::clone(&state));
    let order = orders_where(&shared, true).next().unwrap();
    let mut others = orders_where(&shared, false);
    for store in earlier {
        let other = others.next().unwrap();
        assert!(reserve(&state, &other, 1, store, 3).await.unwrap());
    }
    let placing = {
        let (transactors, order) = (Arc::clone(&transactors), order.clone());
        tokio::spawn(async move { transactors.ask(&order, Ask::Place(units(4).into())).await })
    };
    other.asked.notified().await;
    let late = others.next().unwrap();
    assert!(reserve(&state, &late, 1, first, 3).await.unwrap());
    other.may_answer.notify_one();
    let placed = placing.await.unwrap().unwrap();
    assert_eq!(placed.order.store, Some(elsewhere));
    assert_eq!(*other.reserved.lock(), [order]);
    let questions = other.questions.lock().clone();
    assert!(
        questions.len() == 2 && questions[0] == Some(first),
        "{questions:?}"
    );
    close(&state).await;
}

/// A client for other volumes, of which one does not answer: that with the settlements of the first
/// `silent` orders.
struct OneSilent {
    silent: usize,
    sent: Mutex<Vec<OrderId>>,
}

impl RemoteVolumes for OneSilent {
    fn find<'a>(&'a self, _: Search<'a>) -> Answer<'a, Option<u32>> {
        Box::pin(async { Ok(None) })
    }

    fn reserve<'a>(&'a self, _: &'a OrderId, _: u64, _: u32, _: &'a [Line]) -> Answer<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn confirm(&self, _: &OrderId, _: u64, _: u32) {}

    fn allot<'a>(&'a self, _: &'a AllotRequest) -> Answer<'a, Reply> {
        Box::pin(async { Err(OrderError::Moved) })
    }

    fn recall(&self, _: &NodeName, _: Recall) {}

    fn settle<'a>(&'a self, order: &'a OrderId, _: &'a Settlement) -> Answer<'a, ()> {
        let mut sent = self.sent.lock();
        sent.push(order.clone());
        let answers = sent.len() > self.silent;
        drop(sent);
        Box::pin(std::future::ready(if answers {
            Ok(())
        } else {
            Err(OrderError::Moved)
        }))
    }

    fn keeps<'a>(&'a self, _: &'a OrderId, _: u32) -> Answer<'a, bool> {
        Box::pin(async { Ok(true) })
    }
}

#[tokio::test]
async fn settlements_to_a_silent_volume_do_not_hold_back_the_others() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, false);
    let orders: Vec<OrderId> = orders_where(&shared, true)
        .take(2 * SETTLEMENTS_AT_A_TIME)
        .collect();
    for order in &orders {
        let released = settlement(store, false);
        state.settlements().insert(order.clone(), released);
    }
    let other = Arc::new(OneSilent {
        silent: SETTLEMENTS_AT_A_TIME,
        sent: Mutex::default(),
    });
    let remote: Arc<dyn RemoteVolumes> = Arc::clone(&other) as Arc<dyn RemoteVolumes>;
    settle_all(&state, &remote).await;
    assert_eq!(other.sent.lock().len(), orders.len());
    assert_eq!(state.settlements().len(), SETTLEMENTS_AT_A_TIME);
    close(&state).await;
}
