//! Properties that all rings must have, tested with random changes, random bytes, random text, and
//! all assignments of a few nodes to a few zones.
#![allow(clippy::unwrap_used)] // A failed step should end the test at its line.

use std::collections::{BTreeMap, BTreeSet};

use imt_ring::{KeyHash, Member, NodeName, Options, Plan, Ring, Slot};
use proptest::prelude::*;

/// One change of a ring. The random numbers of the change are mapped to valid nodes and slots.
#[derive(Debug, Clone)]
enum Change {
    Join { node: u8, weight: u32, zone: Option<u8> },
    Leave { node: u8 },
    Reweight { weight: u32 },
    Pin { slot: u32, node: u8 },
    Unpin { slot: u32 },
    Double,
    Target { nodes: Vec<(u8, u32, Option<u8>)> },
}

fn a_zone() -> impl Strategy<Value = Option<u8>> {
    prop_oneof![Just(None), (0u8..4).prop_map(Some)]
}

fn a_weight() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(1u32), 2 => 0u32..5, 1 => Just(imt_ring::WEIGHT_MAX)]
}

fn a_change() -> impl Strategy<Value = Change> {
    let target = prop::collection::vec((any::<u8>(), a_weight(), a_zone()), 0..12);
    prop_oneof![
        6 => (any::<u8>(), a_weight(), a_zone()).prop_map(|(node, weight, zone)| Change::Join { node, weight, zone }),
        5 => any::<u8>().prop_map(|node| Change::Leave { node }),
        2 => a_weight().prop_map(|weight| Change::Reweight { weight }),
        2 => (any::<u32>(), any::<u8>()).prop_map(|(slot, node)| Change::Pin { slot, node }),
        1 => any::<u32>().prop_map(|slot| Change::Unpin { slot }),
        1 => Just(Change::Double),
        1 => target.prop_map(|nodes| Change::Target { nodes }),
    ]
}

fn member(node: u8, weight: u32, zone: Option<u8>) -> Member {
    let member = Member::new(format!("n{}", node % 40))
        .unwrap()
        .with_weight(weight)
        .unwrap();
    match zone {
        Some(zone) => member.with_zone(format!("z{zone}")).unwrap(),
        None => member,
    }
}

fn pick(ring: &Ring, node: u8) -> Option<NodeName> {
    let members = ring.members();
    members
        .get(usize::from(node) % members.len().max(1))
        .map(|member| member.name().clone())
}

/// Returns the plan for a change. Returns `None` if the ring refuses the change with an error or
/// has no member to change, and for [`Change::Double`], which has no plan.
fn plan(ring: &Ring, change: &Change) -> Option<Plan> {
    match change {
        Change::Join { node, weight, zone } => ring.plan_join(member(*node, *weight, *zone)).ok(),
        Change::Leave { node } => ring.plan_leave(&pick(ring, *node)?).ok(),
        Change::Reweight { weight } => {
            let first = ring.members().first()?.clone().with_weight(*weight).unwrap();
            ring.plan_join(first).ok()
        }
        Change::Pin { slot, node } => ring.pin(Slot(slot % ring.slots()), &pick(ring, *node)?).ok(),
        Change::Unpin { slot } => ring.unpin(Slot(slot % ring.slots())).ok(),
        Change::Double => None,
        Change::Target { nodes } => {
            let target: Vec<Member> = nodes
                .iter()
                .map(|(node, weight, zone)| member(*node, *weight, *zone))
                .collect();
            ring.plan(&target).ok()
        }
    }
}

/// Checks the invariants of a ring, and its encoding.
fn check_ring(ring: &Ring) {
    let mut owned = 0;
    for share in ring.shares() {
        owned += share.primaries;
        assert_eq!(ring.slots_of(share.member.name()).count() as u32, share.primaries);
    }
    assert_eq!(
        owned,
        if ring.members().is_empty() {
            0
        } else {
            ring.slots()
        }
    );
    let able = ring.members().iter().filter(|member| member.weight() > 0).count();
    for slot in (0..ring.slots()).map(Slot) {
        match ring.replicas(slot, 99) {
            Err(_) => assert!(ring.members().is_empty()),
            Ok(nodes) => {
                let nodes: Vec<&NodeName> = nodes.collect();
                assert_eq!(nodes[0], ring.owner(slot).unwrap());
                assert_eq!(
                    nodes.iter().collect::<BTreeSet<_>>().len(),
                    nodes.len(),
                    "distinct"
                );
                assert!(
                    nodes.len() >= able.min(usize::from(ring.replication())),
                    "{slot} has {nodes:?}"
                );
            }
        }
    }
    assert_eq!(&Ring::decode(&ring.encode()).unwrap(), ring);
    let _drawn = format!("{ring}");
}

/// Checks a plan against the next ring: epoch, digest, balance, pinned owners, and number of copied
/// slot replicas. With one replica, also calls [`check_exact`]. With several replicas, a slot must
/// keep a holder of its data if any holder stays with a weight above 0.
fn check_plan(ring: &Ring, plan: &Plan, next: &Ring) {
    assert_eq!(next.epoch().0, ring.epoch().0 + 1);
    assert_eq!(next.digest(), plan.to_digest);
    assert_eq!(next.balance(), plan.balance);
    assert!(next.apply(plan).is_err(), "another epoch");
    for pin in ring
        .pins()
        .iter()
        .filter(|pin| plan.pins.contains(pin) && ring.members() != next.members())
    {
        assert_eq!(ring.owner(*pin), next.owner(*pin), "pinned");
    }
    let mut moved = 0;
    for slot in (0..next.slots()).map(Slot) {
        let before: Vec<&NodeName> = ring.replicas(slot, 99).map(Iterator::collect).unwrap_or_default();
        let after: Vec<&NodeName> = next.replicas(slot, 99).map(Iterator::collect).unwrap_or_default();
        moved += after.iter().filter(|node| !before.contains(node)).count();
        let survivors = before
            .iter()
            .filter(|node| next.member(node).is_some_and(|member| member.weight() > 0));
        if survivors.count() > 0 && ring.replication() > 1 {
            assert!(
                after.iter().any(|node| before.contains(node)),
                "{slot}: nobody has its data any more"
            );
        }
    }
    assert_eq!(plan.moved as usize, moved);
    if ring.replication() == 1 {
        check_exact(ring, plan, next);
    }
    let _drawn = format!("{plan}");
}

/// Checks a plan with one replica. The number of moves must be minimal. If the members changed and
/// neither ring has pins, each node's number of slots must differ from its exact share by less than
/// one slot.
fn check_exact(ring: &Ring, plan: &Plan, next: &Ring) {
    assert_eq!(plan.moved, plan.minimum);
    if !next.pins().is_empty() || !ring.pins().is_empty() {
        return;
    }
    let total: u64 = next
        .members()
        .iter()
        .map(|member| u64::from(member.weight()))
        .sum();
    for share in next.shares() {
        let exact = u64::from(next.slots()) * u64::from(share.member.weight());
        let held = u64::from(share.primaries) * total;
        // With equal members, the plan may be that of an unpin, which does not restore the balance.
        if ring.members() != next.members() {
            assert!(held.abs_diff(exact) < total, "{share:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_every_promise(
        slot_bits in 4u32..9,
        replication in 1u8..6,
        seed in any::<u64>(),
        changes in prop::collection::vec(a_change(), 1..40),
    ) {
        let options = Options::new().slots(1 << slot_bits).replication(replication).key_hash(KeyHash::Xxh3 { seed });
        let mut ring = Ring::bootstrap([], options).unwrap();
        let mut twin = ring.clone();
        for change in &changes {
            if matches!(change, Change::Double) {
                let Ok(doubled) = ring.double() else { continue };
                for key in 0u32..64 {
                    let owner = |ring: &Ring| ring.locate(&key.to_le_bytes()).ok().map(|at| at.owner.clone());
                    prop_assert_eq!(owner(&ring), owner(&doubled));
                }
                if doubled.slots() <= 1024 {
                    twin = twin.double().unwrap();
                    ring = doubled;
                }
                continue;
            }
            let Some(made) = plan(&ring, change) else { continue };
            let next = ring.apply(&made).unwrap();
            check_plan(&ring, &made, &next);
            check_ring(&next);
            // A plan made from a decoded copy of the ring must equal the plan made from the ring.
            twin = Ring::decode(&twin.encode()).unwrap();
            let again = plan(&twin, change);
            prop_assert_eq!(again.as_ref(), Some(&made));
            twin = twin.apply(&made).unwrap();
            ring = next;
        }
        prop_assert_eq!(ring.digest(), twin.digest());
        let text = serde_json::to_string(&ring).unwrap();
        prop_assert_eq!(serde_json::from_str::<Ring>(&text).unwrap(), ring);
    }

    #[test]
    fn no_bytes_and_no_text_make_anything_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,40}") {
        prop_assert!(Ring::decode(&bytes).is_err());
        let _ = text.parse::<Member>();
        let _ = serde_json::from_str::<Ring>(&text);
        let ring = Ring::bootstrap([], Options::new().slots(16)).unwrap();
        let _ = imt_ring::render::places(&ring.places(&[&text]));
    }
}

#[test]
fn every_small_ring_keeps_its_zones_apart() {
    // All assignments of up to 6 nodes to 4 zones (or to no zone), for 2 to 4 replicas.
    for nodes in 1..=6u32 {
        for code in 0..5u32.pow(nodes) {
            let zone = |node: u32| match code / 5u32.pow(node) % 5 {
                4 => None,
                zone => Some(zone as u8),
            };
            // All nodes have equal weights and are interchangeable. So of all sequences with the
            // same zones, only the one in which the zones never descend is tested (no zone comes
            // last).
            if (1..nodes).any(|node| zone(node).unwrap_or(4) < zone(node - 1).unwrap_or(4)) {
                continue;
            }
            for replication in 2..=4 {
                let members: Vec<Member> = (0..nodes).map(|node| member(node as u8, 1, zone(node))).collect();
                let ring =
                    Ring::bootstrap(members, Options::new().slots(32).replication(replication)).unwrap();
                zones_hold(&ring);
                assert_eq!(fullest(&ring), least_possible(&ring), "{ring}");
                for member in ring.members().iter().filter(|_| nodes > 1) {
                    zones_hold(&ring.apply(&ring.plan_leave(member.name()).unwrap()).unwrap());
                }
                for zone in [None, Some(0), Some(3)] {
                    let joined = ring.apply(&ring.plan_join(member(39, 1, zone)).unwrap()).unwrap();
                    zones_hold(&joined);
                }
            }
        }
    }
}

/// Returns the largest number of slots that a node holds, primaries and copies together.
fn fullest(ring: &Ring) -> u32 {
    let held = ring
        .shares()
        .into_iter()
        .map(|share| share.primaries + share.copies);
    held.max().unwrap_or(0)
}

/// Returns the smallest possible value of [`fullest`] with equal weights. With `depth` replicas in
/// `needed` zones, a zone holds at most `depth - needed + 1` replicas of a slot. If every zone is
/// needed, each zone holds at least one replica of a slot. The nodes of a zone can share its
/// replicas evenly.
fn least_possible(ring: &Ring) -> u32 {
    let mut zones: BTreeMap<String, u32> = BTreeMap::new();
    for member in ring.members() {
        let own = || format!("node {}", member.name());
        *zones
            .entry(member.zone().map_or_else(own, |zone| format!("zone {zone}")))
            .or_default() += 1;
    }
    let depth = u32::from(ring.replication()).min(ring.members().len() as u32);
    let needed = depth.min(zones.len() as u32);
    let most = depth - needed + 1;
    let enough = |held: &u32| {
        let room = |&nodes: &u32| (ring.slots() * most.min(nodes)).min(nodes * held);
        let needed_everywhere = needed == zones.len() as u32;
        zones.values().map(room).sum::<u32>() >= ring.slots() * depth
            && (!needed_everywhere || zones.values().all(|nodes| nodes * held >= ring.slots()))
    };
    (0..=ring.slots()).find(enough).unwrap()
}

/// Checks that the first `n` replicas of every slot are in as many zones as possible, for each `n`.
/// A node without a zone is in a zone of its own.
fn zones_hold(ring: &Ring) {
    let zone = |name: &NodeName| match ring.member(name).unwrap().zone() {
        Some(zone) => format!("zone {zone}"),
        None => format!("node {name}"),
    };
    let zones: BTreeSet<String> = ring.members().iter().map(|member| zone(member.name())).collect();
    for slot in (0..ring.slots()).map(Slot) {
        for n in 1..=usize::from(ring.replication()) {
            let names: Vec<&NodeName> = ring.replicas(slot, n).unwrap().collect();
            let distinct: BTreeSet<String> = names.iter().map(|name| zone(name)).collect();
            assert_eq!(distinct.len(), names.len().min(zones.len()), "{ring}");
        }
    }
}
