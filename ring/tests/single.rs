//! Tests of rings with one replica: exact shares, exactly minimal moves, doubling, encodings, and
//! refused plans, keys and bytes.
#![allow(clippy::unwrap_used)] // A failed step should end the test at its line.

use imt_ring::{Epoch, Error, KeyHash, Member, NodeName, Options, Ring, Slot};

fn members(count: usize) -> Vec<Member> {
    (0..count)
        .map(|index| Member::new(format!("node-{index:04}")).unwrap())
        .collect()
}

fn held(ring: &Ring, name: &NodeName) -> u32 {
    ring.slots_of(name).count() as u32
}

#[test]
fn a_join_moves_exactly_the_newcomers_share_and_a_leave_only_the_leavers() {
    for slots in [16, 64, 1024] {
        for count in 1..80 {
            let ring = Ring::bootstrap(members(count), Options::new().slots(slots)).unwrap();
            let newcomer = Member::new("a-newcomer").unwrap();
            let plan = ring.plan_join(newcomer.clone()).unwrap();
            assert_eq!(
                plan.moved,
                slots / (count as u32 + 1),
                "{slots} slots, {count} nodes"
            );
            assert_eq!(plan.moved, plan.minimum);
            assert!(
                plan.moves
                    .iter()
                    .all(|step| step.to.as_ref() == Some(newcomer.name()) && step.transfer)
            );
            let joined = ring.apply(&plan).unwrap();
            for leaver in joined.members() {
                let plan = joined.plan_leave(leaver.name()).unwrap();
                assert_eq!(plan.moved, held(&joined, leaver.name()));
                assert!(
                    plan.moves
                        .iter()
                        .all(|step| step.from.as_ref() == Some(leaver.name()))
                );
                let left = joined.apply(&plan).unwrap();
                let shares: Vec<u32> = left
                    .members()
                    .iter()
                    .map(|member| held(&left, member.name()))
                    .collect();
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                assert!(most - least <= 1, "{shares:?}");
                assert_eq!(shares.iter().sum::<u32>(), slots);
            }
        }
    }
}

#[test]
fn shares_follow_weights_within_one_slot() {
    let weights = [1u32, 2, 3, 5, 8, 13, 1000, 0];
    let weighted = weights.iter().enumerate();
    let list: Vec<Member> = weighted
        .map(|(i, w)| Member::new(format!("n{i}")).unwrap().with_weight(*w).unwrap())
        .collect();
    let ring = Ring::bootstrap(list.clone(), Options::new().slots(4096)).unwrap();
    let total: u32 = weights.iter().sum();
    for member in &list {
        let exact = f64::from(4096 * member.weight()) / f64::from(total);
        assert!(
            (f64::from(held(&ring, member.name())) - exact).abs() < 1.0,
            "{member}"
        );
    }
}

#[test]
fn a_plan_fits_only_the_ring_that_it_was_made_from() {
    let ring = Ring::bootstrap(members(3), Options::new().slots(64)).unwrap();
    let plan = ring.plan(&members(4)).unwrap();
    let next = ring.apply(&plan).unwrap();
    assert_eq!(next.epoch(), Epoch(2));
    assert!(matches!(
        next.apply(&plan),
        Err(Error::StalePlan {
            plan: Epoch(1),
            ring: Epoch(2)
        })
    ));
    let other = Ring::bootstrap(members(2), Options::new().slots(64)).unwrap();
    assert!(matches!(other.apply(&plan), Err(Error::OtherRing { .. })));
    let mut forged = plan.clone();
    forged.moves.pop();
    assert!(matches!(ring.apply(&forged), Err(Error::BadPlan { .. })));
    let mut forged = plan.clone();
    forged.moves[0].slots.last = Slot(64);
    assert!(matches!(ring.apply(&forged), Err(Error::BadMove { .. })));
    let mut forged = plan;
    forged.members.pop();
    assert!(ring.apply(&forged).is_err());
}

#[test]
fn an_empty_ring_is_an_error_where_a_key_needs_an_owner() {
    let ring = Ring::bootstrap([], Options::new().slots(16)).unwrap();
    assert_eq!(ring.locate(b"key"), Err(Error::Empty));
    assert_eq!(ring.owner(Slot(0)), Err(Error::Empty));
    assert!(matches!(
        ring.replicas(Slot(0), 1).map(Iterator::count),
        Err(Error::Empty)
    ));
    assert_eq!(
        ring.owner(Slot(16)),
        Err(Error::UnknownSlot {
            slot: Slot(16),
            slots: 16
        })
    );
    let first = ring.apply(&ring.plan(&members(1)).unwrap()).unwrap();
    assert_eq!(first.locate(b"key").unwrap().owner, "node-0000");
    assert_eq!(first.plan(&[]), Err(Error::NoMembers));
    assert_eq!(Ring::decode(&ring.encode()).unwrap(), ring);
}

#[test]
fn a_ring_reads_back_from_bytes_and_from_json() {
    for (count, hash) in [
        (0, KeyHash::Xxh3 { seed: u64::MAX }),
        (5, KeyHash::SipHash13 { key: [7; 16] }),
    ] {
        let ring = Ring::bootstrap(members(count), Options::new().slots(256).key_hash(hash)).unwrap();
        assert_eq!(Ring::decode(&ring.encode()).unwrap(), ring);
        let text = serde_json::to_string(&ring).unwrap();
        assert_eq!(serde_json::from_str::<Ring>(&text).unwrap(), ring);
        if count > 0 {
            let plan = ring.plan_leave(ring.members()[0].name()).unwrap();
            let text = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<imt_ring::Plan>(&text).unwrap(), plan);
        }
    }
}

#[test]
fn any_damaged_byte_and_any_cut_is_refused() {
    let bytes = Ring::bootstrap(members(3), Options::new().slots(16))
        .unwrap()
        .encode();
    for cut in 0..bytes.len() {
        assert!(Ring::decode(&bytes[..cut]).is_err());
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Ring::decode(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn doubling_keeps_every_key_where_it_is() {
    let ring = Ring::bootstrap(members(7), Options::new().slots(64)).unwrap();
    let doubled = ring.double().unwrap();
    assert_eq!((doubled.slots(), doubled.epoch()), (128, Epoch(2)));
    for key in 0u32..10_000 {
        let key = key.to_le_bytes();
        assert_eq!(
            ring.locate(&key).unwrap().owner,
            doubled.locate(&key).unwrap().owner
        );
    }
    let most = Ring::bootstrap(members(7), Options::new().slots(65_536)).unwrap();
    assert_eq!(most.double(), Err(Error::Slots { slots: 131_072 }));
}
