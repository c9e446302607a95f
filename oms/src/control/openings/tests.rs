//! Tests of the choice of volumes: places of an engine, turns, and pauses.

use imt_ring::Member;

use super::*;

const FAR: &str = "postgres://imt@far/shop";
const PAUSE: Duration = Duration::from_secs(1);

/// Openings with the volumes that are under way.
#[derive(Default)]
struct Tries {
    openings: Openings,
    under_way: Vec<(NodeName, Engine)>,
}

impl Tries {
    /// Begins a pass that wants all these volumes.
    fn begin_pass(&mut self, state: &ClusterState, wanted: &[NodeName]) {
        let is_under_way = |volume: &NodeName| self.under_way.iter().any(|(busy, _)| busy == volume);
        let closed: Vec<&NodeName> = wanted.iter().filter(|volume| !is_under_way(volume)).collect();
        self.openings.begin_pass(state, wanted, &closed);
    }

    /// Begins all openings that have a place, and returns their volumes.
    fn fill_places(&mut self) -> Vec<String> {
        let mut begun = Vec::new();
        while let Some((volume, engine)) = self.openings.next(|engine| count_at(&self.under_way, engine)) {
            begun.push(volume.to_string());
            self.under_way.push((volume, engine));
        }
        begun
    }

    /// Ends the opening that began first, without success.
    fn fail_first(&mut self, pause: Duration) {
        let (volume, engine) = self.under_way.remove(0);
        self.openings.note_failure(volume, engine, pause);
    }

    fn pause(&self) -> Option<Duration> {
        self.openings.pause(|engine| count_at(&self.under_way, engine))
    }
}

fn count_at(under_way: &[(NodeName, Engine)], engine: &Engine) -> usize {
    under_way.iter().filter(|(_, at)| at == engine).count()
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

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_answer_keeps_no_volume_of_another_one_closed() {
    let mut tries = Tries::default();
    let far = ["far-1", "far-2", "far-3", "far-4", "far-5", "far-6"];
    let (state, mut wanted) = state_with(&far);
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), far[..PLACES], "the places of the engine");
    assert!(tries.openings.has_due());
    // The volumes without a place are not a reason for another pass. The end of an opening is one.
    assert_eq!(tries.pause(), None);
    wanted.push(NodeName::new("near").unwrap());
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), ["near"]);
    tries.fail_first(PAUSE);
    assert_eq!(tries.fill_places(), ["far-5"], "the free place");
    assert_eq!(tries.pause(), None, "far-1 waits for a place");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_opened_keeps_no_other_one_from_being_tried() {
    let mut tries = Tries::default();
    let names = ["not-1", "not-2", "not-3", "not-4", "not-5", "not-6", "not-7"];
    let (state, wanted) = state_with(&names);
    let mut begun = Vec::new();
    for _ in 0..names.len() {
        tries.begin_pass(&state, &wanted);
        begun.extend(tries.fill_places());
        tries.fail_first(Duration::ZERO);
    }
    assert_eq!(begun[..names.len()], names);
    // From here on, the volume with the oldest last attempt comes first.
    assert_eq!(begun[names.len()..], names[..3]);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_tried_comes_after_one_that_was_not() {
    let mut tries = Tries::default();
    let (state, wanted) = state_with(&["not-1"]);
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), ["not-1"]);
    tries.fail_first(Duration::ZERO);
    let (state, wanted) = state_with(&["not-1", "not-0"]);
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), ["not-0", "not-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_tried_again_after_a_pause_and_at_most_once_in_a_pass() {
    let mut tries = Tries::default();
    let (state, wanted) = state_with(&["bad"]);
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), ["bad"]);
    tries.fail_first(PAUSE);
    for _ in 0..3 {
        tries.begin_pass(&state, &wanted);
        assert!(tries.fill_places().is_empty());
    }
    assert_eq!(tries.pause(), Some(PAUSE));
    tokio::time::advance(PAUSE).await;
    assert_eq!(tries.pause(), Some(Duration::ZERO));
    assert!(
        tries.fill_places().is_empty(),
        "this pass began before the end of the pause"
    );
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), ["bad"]);
    tries.fail_first(Duration::ZERO);
    assert!(tries.fill_places().is_empty(), "the pass has tried the volume");
}

#[tokio::test(start_paused = true)]
async fn the_attempts_at_a_volume_that_is_not_wanted_any_more_are_forgotten() {
    let mut tries = Tries::default();
    let (state, wanted) = state_with(&["bad"]);
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), ["bad"]);
    tries.fail_first(PAUSE);
    tries.begin_pass(&state, &[]);
    assert_eq!(tries.pause(), None);
    tries.begin_pass(&state, &wanted);
    assert_eq!(tries.fill_places(), ["bad"]);
}
