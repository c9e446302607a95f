//! Tests of transactors over a volume on disk: serialization, cancellation and panics.

use super::*;
use crate::domain::order::State;
use crate::domain::stock::StockHead;
use crate::domain::stock_snapshot::StockSnapshot;
use crate::error::StorageError;
use crate::outbox::OutboxLimits;
use crate::runtime::clock::Clock;
use crate::storage::owned_slots::Slots;
use crate::storage::volume::Volume;
use crate::storage::write_batch::{Table, WriteBatch};

fn id(text: &str) -> OrderId {
    OrderId::parse(text).unwrap()
}

fn line(id: u32, quantity: u32) -> Line {
    Line { id, quantity }
}

/// Transactors over a volume with `units` of product 7 in store 1.
pub(crate) async fn transactors(folder: &std::path::Path, units: u32) -> Arc<Transactors> {
    let storage = Volume::open(folder).unwrap();
    let mut snapshot = StockSnapshot::default();
    snapshot.set([7, 1, units]).unwrap();
    let mut batch = WriteBatch::default();
    batch.stock(&snapshot, &[]);
    batch.stock_head(&StockHead::default());
    storage
        .permit()
        .await
        .unwrap()
        .send(batch)
        .durable()
        .await
        .unwrap();
    let slots = Arc::new(Slots::everything());
    let loaded = storage.load(&slots).unwrap();
    Transactors::new(Arc::new(VolumeState::new(
        Arc::new(storage),
        slots,
        loaded,
        OutboxLimits::default(),
        Clock::System,
        None,
    )))
}

pub(crate) async fn close(transactors: Arc<Transactors>) {
    tokio::task::spawn_blocking(move || transactors.state().storage.close())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_panic_loses_no_durable_state_and_the_next_request_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 5).await;
    let lines: Box<[Line]> = [line(7, 2)].into();
    transactors
        .ask(&id("a"), Ask::Place(lines.clone()))
        .await
        .unwrap();
    assert!(matches!(
        transactors.ask(&id("a"), Ask::Panic).await,
        Err(OrderError::Interrupted)
    ));
    assert_eq!(transactors.panics(), 1);
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
    assert_eq!(transactors.state().stock().product(7)[0].reserved, 2);
    close(transactors).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_the_mailbox_are_executed_after_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 5).await;
    for round in 0..200 {
        let order = id(&format!("o{round}"));
        let lines: Box<[Line]> = [line(8, 1)].into();
        let (panic, place) = tokio::join!(
            transactors.ask(&order, Ask::Panic),
            transactors.ask(&order, Ask::Place(lines))
        );
        assert!(matches!(panic, Err(OrderError::Interrupted)));
        assert!(place.is_ok(), "{place:?}");
    }
    close(transactors).await;
}

#[tokio::test]
async fn a_panic_outside_of_a_step_answers_all_waiting_requests() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 5).await;
    let order = id("a");
    // The first request waits for its commit while the other two enter the mailbox.
    let (placed, panicked, waiting) = tokio::join!(
        transactors.ask(&order, Ask::Place([line(7, 1)].into())),
        transactors.ask(&order, Ask::PanicInSearch),
        transactors.ask(&order, Ask::Look),
    );
    assert!(placed.is_ok(), "{placed:?}");
    for answer in [panicked, waiting] {
        assert!(matches!(answer, Err(OrderError::Interrupted)), "{answer:?}");
    }
    assert_eq!(transactors.at_work(), 0);
    assert!(transactors.ask(&order, Ask::Look).await.is_ok());
    close(transactors).await;
}

#[tokio::test]
async fn a_note_about_an_earlier_state_of_a_message_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 5).await;
    let (state, order) = (transactors.state(), id("a"));
    let placed = transactors.ask(&order, Ask::Place([line(7, 1)].into())).await;
    placed.unwrap();
    let note = |attempts| {
        let message = Message {
            attempts,
            ..Message::new(1)
        };
        transactors.ask(&order, Ask::Note(Kind::Announce, message))
    };
    // A client retried the dead letter while the dispatcher was about to record its last attempt.
    assert!(note(12).await.unwrap().repeated);
    assert!(!note(0).await.unwrap().repeated);
    let known = state
        .outbox()
        .get(&order, Kind::Announce)
        .map(|slot| slot.attempts);
    assert_eq!(known, Some(0));
    close(transactors).await;
}

#[tokio::test]
async fn an_order_with_repeated_panics_is_suspended_and_other_orders_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 5).await;
    for _ in 0..PANICS_BEFORE_SUSPENSION {
        let answer = transactors.ask(&id("bad"), Ask::Panic).await;
        assert!(matches!(answer, Err(OrderError::Interrupted)), "{answer:?}");
    }
    let place = || Ask::Place([line(7, 1)].into());
    assert!(matches!(
        transactors.ask(&id("bad"), place()).await,
        Err(OrderError::Busy(_))
    ));
    assert!(transactors.ask(&id("good"), place()).await.is_ok());
    close(transactors).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_is_finished_after_its_sender_disconnects() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 1_000).await;
    for round in 0..100u32 {
        let order = id(&format!("o{round}"));
        let place = Ask::Place([line(7, 1)].into());
        let mut asking = Box::pin(transactors.ask(&order, place.clone()));
        // The first poll queues the rows. Dropping the future then simulates a client that
        // disconnects.
        let _ = std::future::poll_fn(|cx| std::task::Poll::Ready(asking.as_mut().poll(cx))).await;
        drop(asking);
        let again = transactors.ask(&order, place).await.unwrap();
        assert_eq!(again.order.store, Some(1));
        let known = transactors.state().outbox().get(&order, Kind::Announce).is_some();
        assert!(known, "the announcement is in the outbox");
    }
    while transactors.at_work() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(transactors.state().stock().product(7)[0].reserved, 100);
    close(transactors).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_between_the_end_and_the_start_of_a_transactor() {
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
        transactors.state().stock().product(7)[0].reserved,
        3,
        "each of the three orders is placed once"
    );
    assert_eq!(
        transactors.state().storage.counters().orders[State::Reserved as usize],
        3
    );
    while transactors.at_work() > 0 {
        tokio::task::yield_now().await;
    }
    close(transactors).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_orders_never_reserve_more_than_the_stock() {
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
        .state()
        .storage
        .reservations(&Slots::everything())
        .unwrap()
        .iter()
        .map(|held| held.lines[0].quantity)
        .sum();
    assert_eq!(reserved, 10);
    close(transactors).await;
}

#[tokio::test]
async fn a_message_that_its_order_does_not_need_is_removed_and_any_other_stays() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 5).await;
    let state = transactors.state();
    let (ended, open) = (id("ended"), id("open"));
    for order in [&ended, &open] {
        let lines = [line(7, 2)].into();
        transactors.ask(order, Ask::Place(lines)).await.unwrap();
    }
    let cancel = Ask::Command(Command::Cancel);
    transactors.ask(&ended, cancel).await.unwrap();
    let message = Message::new(1);
    let mut batch = WriteBatch::default();
    batch.message(&ended, Kind::Announce, &message);
    let permit = state.storage.permit().await.unwrap();
    permit.send(batch).durable().await.unwrap();
    let now = state.now();
    state.outbox().set(ended.clone(), Kind::Announce, &message, now);
    for order in [&ended, &open] {
        let drop = Ask::Drop(Kind::Announce);
        let outcome = transactors.ask(order, drop).await.unwrap();
        assert_eq!(outcome.repeated, *order == open);
    }
    let has = |order: &OrderId| state.outbox().get(order, Kind::Announce).is_some();
    assert_eq!((has(&ended), has(&open)), (false, true));
    let mut stored = Vec::new();
    state
        .storage
        .each_row(Table::Outbox, |key, _| {
            stored.push(String::from_utf8(key.to_vec()).unwrap());
            Ok::<(), StorageError>(())
        })
        .unwrap();
    assert_eq!(stored, ["open/announce"]);
    close(transactors).await;
}
