use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::domain::stock::Found;
use crate::volume::remote_stock::tests::{close, orders_where, reserve, rings, stocked, store_where};

const FOLLOWER: u64 = 7;

async fn volume(folder: &Path) -> (Arc<VolumeState>, u32, crate::domain::order::OrderId) {
    let (_, shared) = rings();
    let state = stocked(folder, &shared).await;
    let order = orders_where(&shared, false).next().unwrap();
    (state, store_where(&shared, true), order)
}

fn follow(known: Option<StockPosition>, waits: bool) -> FollowStock {
    FollowStock {
        follower: FOLLOWER,
        known,
        waits,
    }
}

async fn layout(state: &VolumeState) -> StockLayout {
    let answer = state.follow_stock(follow(None, false)).await;
    assert_eq!(answer.epoch, Some(2));
    match answer.reply {
        Reply::StockLayout(layout) => layout,
        other => panic!("{other:?}"),
    }
}

async fn changes(state: &VolumeState, known: StockPosition, waits: bool) -> (StockPosition, Vec<Cell>) {
    match state.follow_stock(follow(Some(known), waits)).await.reply {
        Reply::StockChanges(position, cells) => (position, cells),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_copy_is_told_of_each_change_since_its_position_however_often_it_asks() {
    let folder = tempfile::tempdir().unwrap();
    let (state, store, order) = volume(folder.path()).await;
    let first = layout(&state).await;
    assert_eq!(first.products, [7]);
    let column = first.stores.iter().position(|other| *other == store).unwrap() as u32;
    assert!(reserve(&state, &order, 1, store, 2).await.unwrap());
    let changed = [Cell {
        at: column,
        available: 3,
    }];
    let (position, cells) = changes(&state, first.position, true).await;
    assert_eq!(cells, changed);
    let (_, again) = changes(&state, first.position, true).await;
    assert_eq!(again, changed, "an answer may be lost");
    let (_, none) = changes(&state, position, false).await;
    assert_eq!(none, []);
    close(&state).await;
}

#[tokio::test]
async fn a_waiting_copy_is_answered_by_the_commit_that_changes_the_stock() {
    let folder = tempfile::tempdir().unwrap();
    let (state, store, order) = volume(folder.path()).await;
    let known = layout(&state).await.position;
    let waiting = {
        let state = Arc::clone(&state);
        tokio::spawn(async move { changes(&state, known, true).await })
    };
    tokio::task::yield_now().await;
    assert!(reserve(&state, &order, 1, store, 2).await.unwrap());
    let (_, cells) = waiting.await.unwrap();
    assert_eq!(cells.len(), 1);
    close(&state).await;
}

#[tokio::test]
async fn a_position_of_another_server_or_generation_is_answered_by_the_whole_layout() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _, _) = volume(folder.path()).await;
    let known = layout(&state).await.position;
    for other in [
        StockPosition {
            incarnation: known.incarnation ^ 1,
            ..known
        },
        StockPosition {
            generation: known.generation + 1,
            ..known
        },
        StockPosition {
            changes: known.changes + 1,
            ..known
        },
    ] {
        let reply = state.follow_stock(follow(Some(other), true)).await.reply;
        assert!(matches!(reply, Reply::StockLayout(_)), "{other:?}: {reply:?}");
    }
    let read = |generation| ReadStock {
        follower: FOLLOWER,
        incarnation: known.incarnation,
        generation,
        first_row: 0,
    };
    assert!(
        matches!(state.read_stock(read(known.generation)), Reply::StockRows(rows) if rows.iter().all(|units| *units == 5))
    );
    assert_eq!(state.read_stock(read(known.generation + 1)), Reply::Moved);
    close(&state).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_stock_waits_for_copies_that_are_used_and_not_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let (state, store, order) = volume(folder.path()).await;
    let current = || {
        let state = Arc::clone(&state);
        async move {
            let begun = Instant::now();
            state.copies_are_current().await;
            begun.elapsed()
        }
    };
    assert_eq!(current().await, Duration::ZERO, "nobody follows");
    let known = layout(&state).await.position;
    assert_eq!(current().await, Duration::ZERO, "the follower has nothing to use");
    let (known, _) = changes(&state, known, false).await;
    assert_eq!(current().await, Duration::ZERO, "the copy is current");
    assert!(reserve(&state, &order, 1, store, 2).await.unwrap());
    // The copy sends no further request, so the owner waits until the copy is too old to be used.
    assert!(current().await > Duration::ZERO);
    let (position, _) = changes(&state, known, false).await;
    let waiting = tokio::spawn(current());
    tokio::task::yield_now().await;
    changes(&state, position, false).await;
    assert!(waiting.await.unwrap() < COPY_AGE_MAX);
    close(&state).await;
}

#[tokio::test(start_paused = true)]
async fn answers_to_a_copy_are_spaced_unless_a_new_stock_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (state, store, _) = volume(folder.path()).await;
    // The test reserves units without a commit. Virtual time does not wait for the thread that
    // commits, so it would advance past the spacing that this test measures.
    let sell = || {
        let line = crate::domain::order::Line { id: 7, quantity: 1 };
        assert_eq!(state.stock().reserve_at(store, &[line]), Found::Free);
        state.followers.stock_has_changed();
    };
    let mut known = layout(&state).await.position;
    for hurries in [false, true] {
        sell();
        let begun = Instant::now();
        let waiting = {
            let state = Arc::clone(&state);
            tokio::spawn(async move { changes(&state, known, true).await })
        };
        tokio::task::yield_now().await;
        sell();
        let hurrying = hurries.then(|| {
            let state = Arc::clone(&state);
            tokio::spawn(async move { state.copies_are_current().await })
        });
        let (position, cells) = waiting.await.unwrap();
        assert_eq!(cells.len(), 1, "the last quantity of the cell");
        assert_eq!(begun.elapsed() < ANSWER_SPACING, hurries);
        known = position;
        changes(&state, known, false).await;
        if let Some(hurrying) = hurrying {
            hurrying.await.unwrap();
        }
    }
    close(&state).await;
}
