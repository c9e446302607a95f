//! Tests of attempts to open volumes: engines that do not answer, turns, and volumes that are not
//! wanted any more.

use std::collections::BTreeSet;

use imt_ring::Member;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::cluster::Soon;

const FAR: &str = "postgres://imt@far/shop";

/// Volumes with names that begin with the outcome of each attempt: `near` is opened at once, `late`
/// is opened after a call of `go`, `not` is not opened, `bad` has an error, and `far` has no outcome.
struct Names {
    folder: TempDir,
    go: Notify,
    tried: Mutex<Vec<String>>,
    released: Mutex<Vec<String>>,
}

impl Names {
    fn new() -> std::io::Result<Arc<Names>> {
        Ok(Arc::new(Names {
            folder: tempfile::tempdir()?,
            go: Notify::new(),
            tried: Mutex::default(),
            released: Mutex::default(),
        }))
    }

    fn take_tried(&self) -> Vec<String> {
        std::mem::take(&mut *self.tried.lock())
    }

    async fn outcome(&self, volume: &str) -> Outcome {
        match volume.split('-').next() {
            Some("far") => std::future::pending().await,
            Some("not") => return Ok(None),
            Some("bad") => {
                return Err(NodeError::NotAdmitted {
                    name: volume.to_owned(),
                });
            }
            Some("late") => self.go.notified().await,
            _ => {}
        }
        Ok(Some(Volume::open(&self.folder.path().join(volume))?))
    }
}

impl Volumes for Names {
    fn open(self: Arc<Self>, volume: NodeName, _expected: Expected) -> Soon<'static, Option<Volume>> {
        self.tried.lock().push(volume.to_string());
        Box::pin(async move { self.outcome(volume.as_str()).await })
    }

    fn release(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        self.released.lock().push(volume.to_string());
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove(self: Arc<Self>, _volume: NodeName) -> Soon<'static, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Returns a state with these volumes, and their names. The volumes `far` are on a further engine.
fn state_with(volumes: &[&str]) -> (ClusterState, Vec<NodeName>) {
    let state = ClusterState::first(Member::new("ada").unwrap()).unwrap();
    let mut state = state.with_engine("far", FAR).unwrap();
    let names: Vec<NodeName> = volumes.iter().map(|name| NodeName::new(*name).unwrap()).collect();
    for name in names.iter().filter(|name| name.as_str().starts_with("far")) {
        state.placed.insert(name.clone(), "far".to_owned());
    }
    (state, names)
}

/// Runs one pass, and returns the volumes that were opened.
async fn pass(openings: &mut Openings, state: &ClusterState, unserved: &[NodeName]) -> BTreeSet<String> {
    let mut opened = BTreeSet::new();
    openings.begin_pass(state, unserved);
    while let Some(ended) = openings.next().await {
        if let Ok(Some(_)) = ended.outcome {
            opened.insert(ended.volume.to_string());
        }
    }
    opened
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_answer_keeps_no_volume_of_another_one_closed() {
    let volumes = Names::new().unwrap();
    let mut openings = Openings::new(Arc::clone(&volumes) as Arc<dyn Volumes>, true);
    let far = ["far-1", "far-2", "far-3", "far-4", "far-5", "far-6"];
    let (state, mut unserved) = state_with(&far);
    let started = Instant::now();
    assert!(pass(&mut openings, &state, &unserved).await.is_empty());
    assert!(started.elapsed() >= PATIENCE);
    assert_eq!(volumes.take_tried(), far[..PLACES], "the places of the engine");
    unserved.push(NodeName::new("near").unwrap());
    assert_eq!(
        pass(&mut openings, &state, &unserved).await,
        ["near".to_owned()].into()
    );
    assert_eq!(volumes.take_tried(), ["near"]);
    assert!(started.elapsed() < 2 * PATIENCE, "this pass did not wait");
    assert!(!openings.is_idle());
    openings.end().await;
    assert!(openings.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_opened_keeps_no_other_one_from_being_tried() {
    let volumes = Names::new().unwrap();
    let mut openings = Openings::new(Arc::clone(&volumes) as Arc<dyn Volumes>, true);
    let names = ["not-1", "not-2", "not-3", "not-4", "not-5", "not-6", "not-7"];
    let (state, unserved) = state_with(&names);
    let mut tried = BTreeSet::new();
    for _ in 0..4 {
        openings.begin_pass(&state, &unserved);
        let ended = openings.next().await.unwrap();
        assert!(matches!(ended.outcome, Ok(None)));
        tried.extend(volumes.take_tried());
    }
    assert_eq!(tried, names.map(str::to_owned).into());
}

#[tokio::test(start_paused = true)]
async fn a_volume_with_an_error_is_tried_again_after_a_pause() {
    let volumes = Names::new().unwrap();
    let mut openings = Openings::new(Arc::clone(&volumes) as Arc<dyn Volumes>, true);
    let (state, unserved) = state_with(&["bad"]);
    for _ in 0..3 {
        assert!(pass(&mut openings, &state, &unserved).await.is_empty());
    }
    assert_eq!(volumes.take_tried(), ["bad"]);
    tokio::time::advance(ERROR_PAUSE).await;
    assert!(pass(&mut openings, &state, &unserved).await.is_empty());
    assert_eq!(volumes.take_tried(), ["bad"]);
}

#[tokio::test]
async fn a_volume_that_is_not_wanted_any_more_is_closed_and_released() {
    let volumes = Names::new().unwrap();
    let mut openings = Openings::new(Arc::clone(&volumes) as Arc<dyn Volumes>, true);
    let (mut state, unserved) = state_with(&["late"]);
    assert!(pass(&mut openings, &state, &unserved).await.is_empty());
    // The volume was assigned to another node, and to this node again.
    state.since.insert(unserved[0].clone(), 7);
    openings.begin_pass(&state, &unserved);
    volumes.go.notify_one();
    while !openings.is_idle() {
        assert!(pass(&mut openings, &state, &[]).await.is_empty());
    }
    assert_eq!(*volumes.released.lock(), ["late"]);
    let folder = volumes.folder.path().join("late");
    Volume::open(&folder).unwrap();
}

#[tokio::test]
async fn the_end_closes_and_releases_a_volume_that_was_just_opened() {
    let volumes = Names::new().unwrap();
    let mut openings = Openings::new(Arc::clone(&volumes) as Arc<dyn Volumes>, true);
    let (state, unserved) = state_with(&["late"]);
    assert!(pass(&mut openings, &state, &unserved).await.is_empty());
    volumes.go.notify_one();
    openings.end().await;
    assert_eq!(*volumes.released.lock(), ["late"]);
    Volume::open(&volumes.folder.path().join("late")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_an_engine_volumes_are_opened_one_after_the_other() {
    let volumes = Names::new().unwrap();
    let mut openings = Openings::new(Arc::clone(&volumes) as Arc<dyn Volumes>, false);
    let (state, unserved) = state_with(&["not-1", "not-2", "near"]);
    openings.begin_pass(&state, &unserved);
    for expected in ["not-1", "not-2", "near"] {
        assert_eq!(openings.next().await.unwrap().volume.as_str(), expected);
        assert_eq!(volumes.take_tried(), [expected]);
    }
    assert!(openings.next().await.is_none() && openings.is_idle());
    // A volume that was tried comes after one that was not.
    let (state, unserved) = state_with(&["not-1", "not-0"]);
    openings.begin_pass(&state, &unserved);
    assert_eq!(openings.next().await.unwrap().volume.as_str(), "not-0");
}
