//! Tests of expiry with a manual clock: steps of the wall clock do not change the time to pay.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::domain::order::{Line, OrderId};
use crate::domain::stock::StockHead;
use crate::domain::stock_snapshot::StockSnapshot;
use crate::outbox::OutboxLimits;
use crate::runtime::clock::Clock;
use crate::storage::owned_slots::Slots;
use crate::storage::volume::Volume;
use crate::storage::write_batch::Table;
use crate::volume::state::VolumeState;

const TIMEOUT: Duration = Duration::from_secs(900);
const BEGIN_MS: u64 = 1_700_000_000_000;

/// A volume with 100 units of product 7 in store 1, and a wall clock that the test sets.
struct Shop {
    transactors: Arc<Transactors>,
    wall_ms: Arc<AtomicU64>,
}

impl Shop {
    async fn open(folder: &std::path::Path, wall_ms: u64) -> Shop {
        let storage = Volume::open(folder).unwrap();
        if storage.counters().next_page == 0 {
            let mut snapshot = StockSnapshot::default();
            snapshot.set([7, 1, 100]).unwrap();
            let mut batch = WriteBatch::default();
            batch.stock(&snapshot, &[]);
            batch.stock_head(&StockHead::default());
            let permit = storage.permit().await.unwrap();
            permit.send(batch).durable().await.unwrap();
        }
        let slots = Arc::new(Slots::everything());
        let loaded = storage.load(&slots).unwrap();
        let wall_ms = Arc::new(AtomicU64::new(wall_ms));
        let clock = Clock::Manual(Arc::clone(&wall_ms));
        let limits = OutboxLimits::default();
        let state = VolumeState::new(Arc::new(storage), slots, loaded, limits, clock, None);
        Shop {
            transactors: Transactors::new(Arc::new(state)),
            wall_ms,
        }
    }

    async fn close(self) {
        let state = Arc::clone(self.transactors.state());
        let closed = tokio::task::spawn_blocking(move || state.storage.close()).await;
        closed.unwrap().unwrap();
    }

    /// Advances the wall clock and the monotonic clock.
    async fn pass(&self, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        self.wall_ms.fetch_add(seconds * 1_000, Ordering::Relaxed);
    }

    fn step(&self, seconds: i64) {
        let wall_ms = self.wall_ms.load(Ordering::Relaxed);
        let stepped = wall_ms.saturating_add_signed(seconds * 1_000);
        self.wall_ms.store(stepped, Ordering::Relaxed);
    }

    async fn order(&self, id: &str) {
        let id = OrderId::parse(id).unwrap();
        let place = Ask::Place([Line { id: 7, quantity: 1 }].into());
        self.transactors.ask(&id, place).await.unwrap();
    }

    fn state(&self, id: &str) -> State {
        let id = OrderId::parse(id).unwrap();
        let order = self.transactors.state().storage.order(&id).unwrap();
        order.unwrap().state
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_expires_at_its_payment_timeout_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), BEGIN_MS).await;
    let mut expiry = Expiry::new(&shop.transactors, TIMEOUT);
    shop.order("a").await;
    shop.pass(1).await;
    expiry.expire_due(&shop.transactors).await.unwrap();
    shop.order("b").await;
    shop.pass(898).await;
    expiry.expire_due(&shop.transactors).await.unwrap();
    assert_eq!(shop.state("a"), State::Reserved);
    shop.pass(1).await;
    expiry.expire_due(&shop.transactors).await.unwrap();
    assert_eq!(
        (shop.state("a"), shop.state("b")),
        (State::Expired, State::Reserved)
    );
    shop.pass(1).await;
    expiry.expire_due(&shop.transactors).await.unwrap();
    assert_eq!(shop.state("b"), State::Expired);
    shop.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_does_not_change_the_time_to_pay() {
    for step in [-86_400, -600, 600, 86_400] {
        let folder = tempfile::tempdir().unwrap();
        let shop = Shop::open(folder.path(), BEGIN_MS).await;
        let mut expiry = Expiry::new(&shop.transactors, TIMEOUT);
        shop.order("a").await;
        shop.pass(1).await;
        // The wall clock steps before the first pass over the order, and once more after that pass.
        shop.step(step);
        expiry.expire_due(&shop.transactors).await.unwrap();
        shop.pass(400).await;
        shop.step(step);
        shop.order("b").await;
        expiry.expire_due(&shop.transactors).await.unwrap();
        assert_eq!(shop.state("a"), State::Reserved, "step {step}");
        shop.pass(501).await;
        expiry.expire_due(&shop.transactors).await.unwrap();
        let states = (shop.state("a"), shop.state("b"));
        assert_eq!(states, (State::Expired, State::Reserved), "step {step}");
        shop.pass(400).await;
        expiry.expire_due(&shop.transactors).await.unwrap();
        assert_eq!(shop.state("b"), State::Expired, "step {step}");
        shop.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn orders_from_the_future_expire_one_timeout_after_the_volume_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let year_s = 365 * 86_400;
    let shop = Shop::open(folder.path(), BEGIN_MS + year_s * 1_000).await;
    shop.order("ahead").await;
    shop.order("ahead-too").await;
    shop.close().await;

    let shop = Shop::open(folder.path(), BEGIN_MS).await;
    let mut expiry = Expiry::new(&shop.transactors, TIMEOUT);
    shop.order("now").await;
    expiry.expire_due(&shop.transactors).await.unwrap();
    shop.pass(899).await;
    expiry.expire_due(&shop.transactors).await.unwrap();
    assert_eq!(shop.state("ahead"), State::Reserved);
    shop.pass(1).await;
    expiry.expire_due(&shop.transactors).await.unwrap();
    for id in ["ahead", "ahead-too", "now"] {
        assert_eq!(shop.state(id), State::Expired, "{id}");
    }
    shop.close().await;

    // An order that was old when the volume was opened needs no further wait.
    let shop = Shop::open(folder.path(), BEGIN_MS).await;
    shop.order("old").await;
    shop.close().await;
    let shop = Shop::open(folder.path(), BEGIN_MS + 900_000).await;
    let mut expiry = Expiry::new(&shop.transactors, TIMEOUT);
    expiry.expire_due(&shop.transactors).await.unwrap();
    assert_eq!(shop.state("old"), State::Expired);
    shop.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_order_that_cannot_be_read_delays_no_other_order() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), BEGIN_MS).await;
    let mut expiry = Expiry::new(&shop.transactors, TIMEOUT);
    shop.order("a").await;
    shop.order("b").await;
    let mut batch = WriteBatch::default();
    batch.put_raw(Table::Orders, b"a", &[0xFF]);
    let permit = shop.transactors.state().storage.permit().await.unwrap();
    permit.send(batch).durable().await.unwrap();
    shop.order("c").await;
    shop.pass(1).await;
    assert!(expiry.expire_due(&shop.transactors).await.is_err());
    shop.pass(TIMEOUT.as_secs() + 1).await;
    for _ in 0..2 {
        assert!(expiry.expire_due(&shop.transactors).await.is_err());
    }
    let states = (shop.state("b"), shop.state("c"));
    assert_eq!(states, (State::Expired, State::Expired));
    shop.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_between_two_marks_of_a_long_timeout_is_no_age() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), BEGIN_MS).await;
    let (second, step) = (1_000, 7_200_000);
    let mut expiry = Expiry::new(&shop.transactors, Duration::from_secs(30 * 86_400));
    expiry.mark(1, BEGIN_MS);
    let mut wall_ms = BEGIN_MS;
    for pass in 0..3_000 {
        tokio::time::advance(Duration::from_millis(second)).await;
        wall_ms += second + if pass == 2 { step } else { 0 };
        expiry.mark(2, wall_ms);
    }
    let newest = expiry.marks.back().unwrap();
    assert_eq!((expiry.marks.len(), newest.end), (2, 2));
    let begun = newest.wall_ms - BEGIN_MS;
    assert!(begun < step, "the mark is {begun} ms after the first one");
    shop.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_number_of_marks_is_bounded_for_a_long_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), BEGIN_MS).await;
    let mut expiry = Expiry::new(&shop.transactors, Duration::from_secs(30 * 86_400));
    for page in 1..200_000 {
        tokio::time::advance(Duration::from_secs(10)).await;
        expiry.mark(page, BEGIN_MS + page * 10_000);
        assert!(expiry.marks.len() <= MARKS_PER_TIMEOUT as usize + 1);
    }
    shop.close().await;
}
