//! Tests of the dispatcher with a warehouse in this process.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::domain::order::{Line, OrderId};
use crate::outbox::warehouse_client::SendFuture;
use crate::volume::transactor::tests::{close, transactors};

/// A warehouse that panics at the first call and accepts all later ones.
#[derive(Default)]
struct PanicsOnce {
    calls: AtomicU32,
}

impl Warehouse for PanicsOnce {
    fn send<'a>(&'a self, _: Kind, _: &'a Order) -> SendFuture<'a> {
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(before > 0, "requested by the test");
        Box::pin(async { Answer::Done { sequence: None } })
    }

    fn address(&self) -> String {
        "http://test".to_owned()
    }

    fn follow(&self, _: &str) {}
}

#[tokio::test]
async fn a_message_is_sent_again_after_a_panic_in_its_call() {
    let folder = tempfile::tempdir().unwrap();
    let transactors = transactors(folder.path(), 5).await;
    let order = OrderId::parse("a").unwrap();
    let lines = [Line { id: 7, quantity: 1 }].into();
    transactors.ask(&order, Ask::Place(lines)).await.unwrap();
    let wms = Arc::new(PanicsOnce::default());
    let (stop, stopped) = watch::channel(false);
    let running = runtime::spawn(run(
        Arc::clone(&transactors),
        Arc::clone(&wms) as Arc<dyn Warehouse>,
        stopped,
    ));
    let is_waiting = || transactors.state().outbox().get(&order, Kind::Announce).is_some();
    while is_waiting() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(wms.calls.load(Ordering::Relaxed), 2);
    stop.send_replace(true);
    running.await.unwrap();
    close(transactors).await;
}
