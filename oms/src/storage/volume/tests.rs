//! The committer keeps the order of submission, and a closed volume says so.

use super::*;
use crate::domain::order::Line;

fn delivery() -> Delivery {
    Delivery {
        store: 1,
        lines: [Line { id: 7, quantity: 1 }].into(),
        sequence: Some(1),
        ordinal: 0,
    }
}

#[tokio::test]
async fn changes_of_one_group_take_effect_in_the_order_of_their_submission() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Volume::open(folder.path()).unwrap();
    let order = OrderId::parse("a").unwrap();
    for _ in 0..50 {
        let mut tickets = Vec::new();
        for step in 0..9 {
            let mut batch = WriteBatch::default();
            // Ends with a removal or with a row, in turns.
            if step % 2 == 0 {
                batch.forget_delivery(&order, 1);
            } else {
                batch.delivery(&order, &delivery());
            }
            tickets.push(storage.permit().await.unwrap().send(batch));
        }
        for ticket in tickets {
            ticket.durable().await.unwrap();
        }
        assert_eq!(storage.load(&Slots::everything()).unwrap().deliveries.len(), 0);
    }
    tokio::task::spawn_blocking(move || storage.close())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_closed_volume_says_so_and_can_be_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(Volume::open(folder.path()).unwrap());
    let again = Volume::open(folder.path()).err().unwrap();
    assert!(matches!(again, StorageError::Open { .. }), "{again}");
    let closing = Arc::clone(&storage);
    tokio::task::spawn_blocking(move || closing.close())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(storage.try_permit(), Err(StorageError::Closed)));
    assert!(matches!(
        storage.order(&OrderId::parse("a").unwrap()),
        Err(StorageError::Closed)
    ));
    Volume::open(folder.path()).unwrap();
}

#[tokio::test]
async fn a_reservation_ends_once_whoever_ends_it_and_beside_whatever() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Volume::open(folder.path()).unwrap();
    let order = OrderId::parse("a").unwrap();
    let lines = [Line { id: 7, quantity: 1 }];
    for _ in 0..50 {
        // In one group or in several, as it comes.
        let mut tickets = Vec::new();
        for is_put in [true, false, false, true, true, false, false] {
            let mut batch = WriteBatch::default();
            if is_put {
                batch.reserve_for(&order, 1, &lines, None);
            } else {
                batch.unreserve(&order, 1);
            }
            tickets.push(storage.permit().await.unwrap().send(batch));
        }
        let mut ended = Vec::new();
        for mut ticket in tickets {
            ended.push(ticket.answer().await.unwrap().has_ended);
        }
        assert_eq!(ended, [true, true, false, true, true, true, false]);
    }
    tokio::task::spawn_blocking(move || storage.close())
        .await
        .unwrap()
        .unwrap();
}
