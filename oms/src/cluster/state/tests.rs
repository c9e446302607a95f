//! Tests of the changes of the cluster's state: engines, warehouse, assignment of volumes and
//! followers, moves of slots, leaving nodes, and an older layout.

use super::*;

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn names(texts: &[&str]) -> BTreeSet<NodeName> {
    texts.iter().map(|text| name(text)).collect()
}

fn members(texts: &[&str]) -> Vec<Member> {
    texts.iter().map(|text| Member::new(text).unwrap()).collect()
}

fn two() -> ClusterState {
    let first = ClusterState::first(Member::new("a").unwrap()).unwrap();
    let joined = first.with_nodes(&names(&["a", "b"])).unwrap();
    let moving = joined.begin_move(&members(&["a", "b"])).unwrap().unwrap();
    moving.commit_move().unwrap()
}

#[test]
fn a_joining_node_gets_its_share_of_the_slots() {
    let first = ClusterState::first(Member::new("a").unwrap()).unwrap();
    let joined = first.with_nodes(&names(&["a", "b"])).unwrap();
    assert_eq!(joined.serving[&name("b")], name("b"));
    let moving = joined.begin_move(&members(&["a", "b"])).unwrap().unwrap();
    let handovers = moving.handovers();
    assert_eq!(handovers.len(), 1);
    assert_eq!((&handovers[0].from, &handovers[0].to), (&name("a"), &name("b")));
    assert_eq!(handovers[0].slots.len(), 16_384 / 2);
    assert_eq!(
        slots_in(&ranges(&handovers[0].slots)).collect::<Vec<_>>(),
        handovers[0].slots
    );
    let done = moving.commit_move().unwrap();
    assert_eq!(done.ring.members().len(), 2);
    assert_eq!(done.committed, moving.moving.unwrap().id);
    assert_eq!(done.begin_move(&members(&["a", "b"])).unwrap(), None);
}

#[test]
fn the_volume_of_a_dead_node_is_served_by_a_survivor_and_returned() {
    let state = two();
    let after = state.with_nodes(&names(&["a"])).unwrap();
    assert_eq!(after.serving[&name("b")], name("a"));
    assert_eq!(after.ring, state.ring, "no slot moves when a node dies");
    assert_eq!(after.with_nodes(&names(&["a"])), None);
    let back = after.with_nodes(&names(&["a", "b"])).unwrap();
    assert_eq!(back.serving[&name("b")], name("b"));
}

#[test]
fn naming_another_warehouse_keeps_the_ring_and_a_move_in_progress() {
    let first = ClusterState::first(Member::new("a").unwrap()).unwrap();
    let joined = first.with_nodes(&names(&["a", "b"])).unwrap();
    let moving = joined.begin_move(&members(&["a", "b"])).unwrap().unwrap();
    let named = moving.with_warehouse("http://wms:1").unwrap();
    assert_eq!(named.version, moving.version + 1);
    assert_eq!(
        (&named.moving, &named.ring, &named.serving),
        (&moving.moving, &moving.ring, &moving.serving)
    );
    assert_eq!(named.with_warehouse("http://wms:1"), None);
    let done = named.commit_move().unwrap();
    assert_eq!(done.warehouse.as_deref(), Some("http://wms:1"));
    let text = serde_json::to_string(&done).unwrap();
    assert_eq!(serde_json::from_str::<ClusterState>(&text).unwrap(), done);
    let older = serde_json::to_value(&moving).unwrap();
    assert!(
        older.get("warehouse").is_none(),
        "a state without one has no such key"
    );
    assert_eq!(serde_json::from_value::<ClusterState>(older).unwrap(), moving);
}

#[test]
fn an_assignment_names_the_version_since_which_it_holds() {
    let state = two();
    let (a, b) = (name("a"), name("b"));
    assert_eq!((state.since(&a), state.since(&b)), (1, 2));
    let after = state.with_nodes(&names(&["a"])).unwrap();
    assert_eq!((after.since(&a), after.since(&b)), (1, after.version));
    let back = after.with_nodes(&names(&["a", "b"])).unwrap();
    assert_eq!((back.since(&a), back.since(&b)), (1, back.version));
}

#[test]
fn new_volumes_spread_over_the_engines_and_stay_there() {
    let (b, c) = (name("b"), name("c"));
    let first = ClusterState::first(Member::new("a").unwrap()).unwrap();
    let state = first.with_engine("east", "postgres://imt@db2/shop").unwrap();
    assert_eq!(state.with_engine("east", "postgres://imt@db2/shop"), None);
    let state = state.with_nodes(&names(&["a", "b"])).unwrap();
    assert_eq!(state.log_of(&name("a")).engine, None);
    assert_eq!(
        state.log_of(&b).engine.as_deref(),
        Some("postgres://imt@db2/shop")
    );
    let state = state.with_nodes(&names(&["a", "b", "c"])).unwrap();
    assert_eq!(state.log_of(&c).engine, None, "both had one volume");
    let moved = state.with_engine("east", "postgres://imt@db2,db3/shop").unwrap();
    assert_eq!(
        moved.log_of(&b).engine.as_deref(),
        Some("postgres://imt@db2,db3/shop")
    );
    let gone = moved.with_nodes(&names(&["a"])).unwrap();
    assert_eq!(gone.placed.get(&b).map(String::as_str), Some("east"));
    let text = serde_json::to_string(&gone).unwrap();
    assert_eq!(serde_json::from_str::<ClusterState>(&text).unwrap(), gone);
    let plain = serde_json::to_value(&first).unwrap();
    assert!(plain.get("engines").is_none() && plain.get("placed").is_none());
}

#[test]
fn a_volume_whose_node_left_and_came_back_is_a_new_one() {
    let state = two();
    let b = name("b");
    let born = state.log_of(&b).born;
    assert_eq!((state.log_of(&name("a")).born, born), (1, 2));
    let after = state.with_nodes(&names(&["a"])).unwrap();
    let back = after.with_nodes(&names(&["a", "b"])).unwrap();
    assert_eq!(back.log_of(&b).born, born, "a death creates no volume");
    let left = back.with_leaving(&b).unwrap();
    let moving = left.begin_move(&members(&["a", "b"])).unwrap().unwrap();
    let left = moving
        .commit_move()
        .unwrap()
        .with_nodes(&names(&["a", "b"]))
        .unwrap();
    assert_eq!(left.log_of(&b).born, 0);
    let gone = left.with_nodes(&names(&["a"])).unwrap();
    let back = gone.with_nodes(&names(&["a", "b"])).unwrap();
    assert_eq!(back.log_of(&b).born, back.version);
    assert!(back.since(&b) >= back.log_of(&b).born);
}

#[test]
fn a_follower_is_never_the_server_and_is_preferred_as_the_next_server() {
    let all = names(&["a", "b", "c"]);
    let joined = two().with_nodes(&all).unwrap();
    let moving = joined.begin_move(&members(&["a", "b", "c"])).unwrap().unwrap();
    let state = moving.commit_move().unwrap().with_followers(&all).unwrap();
    for (volume, server) in &state.serving {
        assert_ne!(Some(server), state.following.get(volume), "{volume}");
    }
    assert_eq!(state.with_followers(&all), None);
    let mut state = state;
    state.following.insert(name("a"), name("c"));
    let survivors = names(&["b", "c"]);
    let after = state.with_nodes(&survivors).unwrap();
    assert_eq!(after.serving[&name("a")], name("c"));
    let after = after.with_followers(&survivors).unwrap();
    assert_eq!(after.following[&name("a")], name("b"));
    let back = after.with_nodes(&all).unwrap();
    let back = back.with_followers(&all).unwrap_or(back);
    assert_eq!(back.serving[&name("a")], name("a"));
    assert_ne!(back.following[&name("a")], name("a"));
    let alone = after.with_nodes(&names(&["c"])).unwrap();
    assert!(alone.with_followers(&names(&["c"])).unwrap().following.is_empty());
}

#[test]
fn a_state_of_format_2_is_read_and_becomes_format_3_with_its_next_change() {
    let mut json = serde_json::to_value(two()).unwrap();
    let fields = json.as_object_mut().unwrap();
    fields.remove("since");
    fields.remove("following");
    fields.insert("format".to_owned(), 2.into());
    let old: ClusterState = serde_json::from_value(json).unwrap();
    assert!(old.is_known_format());
    assert_eq!(old.since(&name("b")), 0);
    let next = old.with_nodes(&names(&["a"])).unwrap();
    assert_eq!((next.format, next.since(&name("b"))), (3, next.version));
}

#[test]
fn a_death_during_a_move_undoes_it() {
    let first = ClusterState::first(Member::new("a").unwrap()).unwrap();
    let joined = first.with_nodes(&names(&["a", "b"])).unwrap();
    let moving = joined.begin_move(&members(&["a", "b"])).unwrap().unwrap();
    let after = moving.with_nodes(&names(&["a"])).unwrap();
    assert_eq!(after.moving, None);
    assert_eq!(
        moving.interruption(&after).as_deref(),
        Some("volume b, which takes part in the migration, is served by no node instead of node b")
    );
    assert_eq!(joined.interruption(&after), None, "there was no move");
    assert_eq!(after.ring, first.ring);
    assert!(!after.serving.contains_key(&name("b")), "b never had a slot");
}

#[test]
fn a_node_without_part_in_a_move_does_not_undo_it() {
    let joined = two().with_nodes(&names(&["a", "b", "c"])).unwrap();
    let moving = joined.begin_move(&members(&["a", "b", "c"])).unwrap().unwrap();
    let more = moving.with_nodes(&names(&["a", "b", "c", "d"])).unwrap();
    assert_eq!(more.moving, moving.moving);
    assert_eq!(moving.interruption(&more), None);
    assert_eq!(more.serving[&name("d")], name("d"));
    let fewer = more.with_nodes(&names(&["a", "b", "c"])).unwrap();
    assert_eq!(fewer.moving, moving.moving);
    assert!(!fewer.serving.contains_key(&name("d")));
    let done = fewer.commit_move().unwrap();
    assert_eq!(done.ring, moving.moving.unwrap().next);
}

#[test]
fn a_node_that_leaves_before_it_has_slots_gets_none() {
    let first = ClusterState::first(Member::new("a").unwrap()).unwrap();
    let joined = first.with_nodes(&names(&["a", "b"])).unwrap();
    let leaving = joined.with_leaving(&name("b")).unwrap();
    assert_eq!(leaving.begin_move(&members(&["a", "b"])).unwrap(), None);
    let without = leaving.with_nodes(&names(&["a", "b"])).unwrap();
    assert!(!without.serving.contains_key(&name("b")));
    let ended = without.with_nodes(&names(&["a"])).unwrap();
    assert!(ended.leaving.is_empty());
}

#[test]
fn a_leaving_node_gives_all_slots_away_and_does_not_rejoin() {
    let state = two().with_leaving(&name("b")).unwrap();
    let moving = state.begin_move(&members(&["a", "b"])).unwrap().unwrap();
    let done = moving.commit_move().unwrap();
    assert_eq!(done.ring.members().len(), 1);
    assert_eq!(done.begin_move(&members(&["a", "b"])).unwrap(), None);
    let without = done.with_nodes(&names(&["a", "b"])).unwrap();
    assert!(!without.serving.contains_key(&name("b")));
    assert!(without.leaving.contains(&name("b")), "while its process is alive");
    let ended = without.with_nodes(&names(&["a"])).unwrap();
    assert!(ended.leaving.is_empty());
    assert_eq!(two().with_leaving(&name("c")), Err(Unleavable::NoMember));
    assert_eq!(ended.with_leaving(&name("a")), Err(Unleavable::Last));
    assert_eq!(state.with_leaving(&name("b")), Err(Unleavable::Leaving));
    let other = state.with_leaving(&name("a"));
    assert_eq!(
        other,
        Err(Unleavable::Last),
        "the only other member is leaving, too"
    );
}

#[test]
fn only_a_request_to_leave_that_is_carried_out_interrupts_a_move() {
    let state = two().with_nodes(&names(&["a", "b", "c"])).unwrap();
    let moving = state.begin_move(&members(&["a", "b", "c"])).unwrap().unwrap();
    let reason = moving.leave_interruption(&name("b"));
    assert_eq!(reason.as_deref(), Some("node b was asked to leave the cluster"));
    assert_eq!(moving.leave_interruption(&name("unknown")), None);
    let leaving = moving.with_leaving(&name("b")).unwrap();
    assert_eq!(
        leaving.leave_interruption(&name("b")),
        None,
        "it is leaving already"
    );
    assert_eq!(
        leaving.leave_interruption(&name("a")),
        None,
        "it is the last member"
    );
}
