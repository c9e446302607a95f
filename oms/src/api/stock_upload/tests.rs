//! Tests of snapshots that are interrupted by a crash between any two of their parts, and of the
//! deliveries that a snapshot counts.

use std::path::Path;

use axum::http::StatusCode;

use super::apply::Prepared;
use super::*;
use crate::api::fast_path::Entrance;
use crate::api::request::VolumeOperation;
use crate::domain::order::{Line, OrderId};
use crate::domain::stock::Delivery;
use crate::outbox::OutboxLimits;
use crate::runtime::clock::Clock;
use crate::storage::owned_slots::Slots;
use crate::storage::volume::Volume;
use crate::storage::write_batch::WriteBatch;
use crate::volume::state::VolumeState;
use crate::volume::transactor::Transactors;

const STORES: u32 = 12;
/// Units of product 7 in each store before the first delivery.
const UNITS: u32 = 100;

pub(super) fn open(folder: &Path) -> Arc<App> {
    let storage = Arc::new(Volume::open(folder).unwrap());
    let slots = Arc::new(Slots::everything());
    let loaded = storage.load(&slots).unwrap();
    let limits = OutboxLimits::default();
    let state = VolumeState::new(storage, slots, loaded, limits, Clock::System, None);
    Arc::new(App::of(&Transactors::new(Arc::new(state))))
}

pub(super) async fn close(app: Arc<App>) {
    let storage = Arc::clone(&app.state().storage);
    tokio::task::spawn_blocking(move || storage.close())
        .await
        .unwrap()
        .unwrap();
}

async fn commit(app: &App, batch: WriteBatch) {
    let permit = app.state().storage.permit().await.unwrap();
    permit.send(batch).durable().await.unwrap();
}

/// Returns the units of product 7 that the warehouse counts in a store after this number of
/// deliveries. Delivery N takes N units from store N.
fn counted(store: u32, deliveries: u64) -> u32 {
    UNITS - if u64::from(store) <= deliveries { store } else { 0 }
}

fn lines(deliveries: u64) -> Vec<[u32; 3]> {
    (1..=STORES)
        .map(|store| [7, store, counted(store, deliveries)])
        .collect()
}

fn snapshot(deliveries: u64, as_of: Option<u64>) -> StockSnapshot {
    let mut snapshot = StockSnapshot::default();
    lines(deliveries)
        .into_iter()
        .for_each(|line| snapshot.set(line).unwrap());
    snapshot.counts_to(as_of);
    snapshot
}

async fn put(app: &Arc<App>, deliveries: u64, as_of: Option<u64>) -> StatusCode {
    let line = |[product, store, quantity]: [u32; 3]| format!("{product},{store},{quantity}\n");
    let csv: String = lines(deliveries).into_iter().map(line).collect();
    let mut headers = HeaderMap::new();
    if let Some(as_of) = as_of {
        headers.insert("x-stock-as-of", as_of.into());
    }
    let entrance = Entrance::of(app);
    let answer = entrance.answer(VolumeOperation::ReplaceStock, &headers, Body::from(csv));
    answer.await.status()
}

fn available(app: &App) -> Vec<i32> {
    let levels = app.state().stock().product(7).into_iter();
    levels.map(|level| level.available).collect()
}

/// Opens a volume that has a first snapshot and, after that snapshot, one delivery from every
/// store.
async fn delivered(folder: &Path, is_numbered: bool) -> Arc<App> {
    let app = open(folder);
    assert_eq!(put(&app, 0, is_numbered.then_some(0)).await, StatusCode::OK);
    for store in 1..=STORES {
        let delivery = Delivery {
            store,
            lines: [Line {
                id: 7,
                quantity: store,
            }]
            .into(),
            sequence: is_numbered.then_some(u64::from(store)),
            ordinal: 0,
        };
        let mut batch = WriteBatch::default();
        batch.delivery(&OrderId::parse(&store.to_string()).unwrap(), &delivery);
        commit(&app, batch).await;
    }
    close(app).await;
    open(folder)
}

#[tokio::test]
async fn a_snapshot_interrupted_between_any_two_parts_never_oversells() {
    let truth: Vec<i32> = (1..=STORES).map(|store| (UNITS - store) as i32).collect();
    for is_numbered in [true, false] {
        // With numbered deliveries, the second snapshot counts the first half of them. Without
        // numbers a snapshot cannot state how many deliveries it counts, so the second snapshot
        // counts all deliveries.
        let counts_to = if is_numbered { 6 } else { u64::from(STORES) };
        let as_of = is_numbered.then_some(counts_to);
        for cut in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let app = delivered(folder.path(), is_numbered).await;
            assert_eq!(available(&app), truth);
            let layout = app.state().stock().layout();
            let parts = Prepared::of(snapshot(counts_to, as_of), &layout).parts;
            assert!(parts.len() > 3, "the snapshot has parts to cut between");
            if cut > parts.len() {
                close(app).await;
                break;
            }
            for part in parts.into_iter().take(cut) {
                commit(&app, part.batch).await;
            }
            // Closing and opening the volume stands for a crash after `cut` parts.
            close(app).await;
            let app = open(folder.path());
            let left = available(&app);
            if is_numbered {
                assert_eq!(left, truth, "cut after {cut} parts");
                let older = put(&app, counts_to - 1, Some(counts_to - 1)).await;
                let is_refused = older == StatusCode::CONFLICT;
                assert_eq!(
                    is_refused,
                    cut > 0,
                    "a store of the cut snapshot counts more deliveries: {older}"
                );
            } else {
                let is_less = left.iter().zip(&truth).all(|(left, truth)| left <= truth);
                assert!(is_less, "cut after {cut} parts: {left:?}");
            }
            // The warehouse sends the whole snapshot again after the crash.
            assert_eq!(put(&app, counts_to, as_of).await, StatusCode::OK);
            assert_eq!(available(&app), truth, "cut after {cut} parts and sent again");
            close(app).await;
            let app = open(folder.path());
            assert_eq!(
                available(&app),
                truth,
                "cut after {cut} parts, sent again and restarted"
            );
            close(app).await;
        }
    }
}

/// Records a delivery without a number, of one unit of product 7 from store 1.
async fn deliver_one(app: &App, order: &str) {
    let (order, line) = (OrderId::parse(order).unwrap(), Line { id: 7, quantity: 1 });
    let mut batch = WriteBatch::default();
    {
        let mut stock = app.state().stock();
        let delivery = stock.deliver(&order, 1, &[line], None).unwrap();
        batch.delivery(&order, delivery);
    }
    commit(app, batch).await;
}

#[tokio::test]
async fn a_part_counts_only_deliveries_before_the_token_of_this_server() {
    let folder = tempfile::tempdir().unwrap();
    let app = open(folder.path());
    let take = async |arrival: Option<String>| {
        let part = Part {
            is_whole: true,
            epoch: app.state().slots.ring().epoch().0,
            as_of: None,
            arrival,
        };
        let taken = take_part(&app, &part.to_query(), Body::from("7,1,100\n")).await;
        assert!(taken.is_ok());
        available(&app)
    };
    assert_eq!(take(None).await, [100]);
    deliver_one(&app, "1").await;
    let token = app.arrival_token();
    deliver_one(&app, "2").await;
    // A part without a token of this volume server may belong to a snapshot that is older than both
    // deliveries. So both deliveries are subtracted from its 100 units.
    assert_eq!(take(None).await, [98], "no token");
    assert_eq!(
        take(Some("7.9".to_owned())).await,
        [98],
        "the token of another server"
    );
    assert_eq!(take(Some("other".to_owned())).await, [98], "no token at all");
    assert_eq!(take(Some(token)).await, [99], "the first delivery is counted");
    close(app).await;
}
