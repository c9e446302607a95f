//! Tests of the task that requests units from the owners of stores.

use imt_ring::NodeName;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::*;
use crate::domain::loans::AllotRequest;
use crate::domain::order::Line;
use crate::domain::settlement::Settlement;
use crate::storage::owned_slots::of_store;
use crate::volume::remote_stock::Answer;
use crate::volume::remote_stock::tests::{close, name, rings, stocked};
use crate::volume::store_search::Search;

/// A client for other volumes. The first request for units of the store `panics_for` panics. No
/// other request for units is answered.
struct Panicking {
    panics_for: u32,
    asked: Mutex<Vec<u32>>,
    was_asked: Notify,
}

impl RemoteVolumes for Panicking {
    fn find<'a>(&'a self, _: Search<'a>) -> Answer<'a, Option<u32>> {
        Box::pin(async { Ok(None) })
    }

    fn reserve<'a>(&'a self, _: &'a OrderId, _: u64, _: u32, _: &'a [Line]) -> Answer<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn confirm(&self, _: &OrderId, _: u64, _: u32) {}

    fn allot<'a>(&'a self, request: &'a AllotRequest) -> Answer<'a, Reply> {
        let is_first = {
            let mut asked = self.asked.lock();
            asked.push(request.store);
            asked.iter().filter(|store| **store == request.store).count() == 1
        };
        self.was_asked.notify_one();
        assert!(
            !is_first || request.store != self.panics_for,
            "a panic that the test wants"
        );
        Box::pin(std::future::pending())
    }

    fn recall(&self, _: &NodeName, _: Recall) {}

    fn settle<'a>(&'a self, _: &'a OrderId, _: &'a Settlement) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn keeps<'a>(&'a self, _: &'a OrderId, _: u32) -> Answer<'a, bool> {
        Box::pin(async { Ok(true) })
    }
}

#[tokio::test]
async fn a_store_is_requested_again_after_a_panic_while_another_request_waits() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let elsewhere = |store: &u32| shared.owner(of_store(&shared, *store)).unwrap() != &name();
    let hot: Vec<u32> = (1..=20).filter(elsewhere).take(2).collect();
    let line = Line { id: 7, quantity: 1 };
    for store in hot.iter().cycle().take(4) {
        state
            .allotments()
            .note_reserved(*store, &[line], state.now().monotonic_ms);
    }
    let remote = Arc::new(Panicking {
        panics_for: hot[0],
        asked: Mutex::default(),
        was_asked: Notify::new(),
    });
    let (stop, stopped) = watch::channel(false);
    let client: Arc<dyn RemoteVolumes> = Arc::clone(&remote) as _;
    let borrowing = tokio::spawn(borrow_always(Arc::clone(&state), client, stopped));
    let asked_of_both = async {
        loop {
            remote.was_asked.notified().await;
            let asked = remote.asked.lock().clone();
            let count = |store: u32| asked.iter().filter(|asked| **asked == store).count();
            if count(hot[0]) == 2 && count(hot[1]) == 1 {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), asked_of_both).await;
    assert!(in_time.is_ok(), "{:?} of {hot:?}", remote.asked.lock());
    stop.send_replace(true);
    borrowing.await.unwrap();
    close(&state).await;
}
