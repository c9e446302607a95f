//! Tests of several replicas over zones: after many random changes, a ring is still balanced, few
//! slots have moved, and no data is lost.
#![allow(clippy::unwrap_used)] // A failed step should end the test at its line.

use std::collections::BTreeSet;

use imt_ring::{Member, Options, Plan, Ring, Role, Slot};

/// A small seeded random number generator. It gives equal numbers, and so equal changes, on every
/// machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % n as u64) as usize
    }
}

fn member(index: usize, zone: usize) -> Member {
    Member::new(format!("node-{index:04}"))
        .unwrap()
        .with_zone(format!("zone-{zone}"))
        .unwrap()
}

/// The worst values of all steps of a history, and sums over the steps.
#[derive(Debug, Default)]
struct Worst {
    uneven_primaries: u32,
    copies: f64,
    /// Excess of the copies on the fullest node over the smallest number that zones permit, as a
    /// multiple of the mean of all nodes. The field has the largest value of all steps.
    above_forced: f64,
    /// Excess of the copies on the fullest node over the goal, in slots. The goal is 1.12 of the
    /// mean, or the smallest number that zones permit if that number is larger. The field has the
    /// largest value of all steps.
    above_goal: f64,
    moved: u64,
    minimum: u64,
    without_data: u64,
    broken_zones: u64,
}

impl Worst {
    fn look(&mut self, ring: &Ring, plan: &Plan, next: &Ring) {
        let nodes = next.members().len();
        let (mut primaries, mut copies) = (vec![0u32; nodes], vec![0u32; nodes]);
        let zones: BTreeSet<_> = next.members().iter().map(Member::zone).collect();
        for slot in (0..next.slots()).map(Slot) {
            let holders: Vec<_> = next.replicas(slot, 8).unwrap().collect();
            let index = |name| next.members().binary_search_by(|m| m.name().cmp(name)).unwrap();
            primaries[index(holders[0])] += 1;
            for copy in &holders[1..] {
                copies[index(copy)] += 1;
            }
            assert_eq!(holders.len(), usize::from(next.replication()).min(nodes));
            assert_eq!(holders.iter().collect::<BTreeSet<_>>().len(), holders.len());
            let distinct: BTreeSet<_> = holders
                .iter()
                .map(|name| next.member(name).unwrap().zone())
                .collect();
            self.broken_zones += u64::from(distinct.len() < holders.len().min(zones.len()));
            if ring.owner(slot) != next.owner(slot) {
                let had = ring.replicas(slot, 8).unwrap().any(|node| node == holders[0]);
                self.without_data += u64::from(!had && ring.member(holders[0]).is_some());
            }
        }
        let worst = |counts: &[u32]| {
            f64::from(*counts.iter().max().unwrap()) * nodes as f64 / f64::from(counts.iter().sum::<u32>())
        };
        let uneven = primaries.iter().max().unwrap() - primaries.iter().min().unwrap();
        self.uneven_primaries = self.uneven_primaries.max(uneven);
        self.copies = self.copies.max(worst(&copies));
        let mean = f64::from(copies.iter().sum::<u32>()) / nodes as f64;
        let above = f64::from(*copies.iter().max().unwrap()) - f64::from(least_copies(next));
        self.above_forced = self.above_forced.max(above / mean);
        let allowed = f64::from(least_copies(next)).max(1.12 * mean);
        self.above_goal = self
            .above_goal
            .max(f64::from(*copies.iter().max().unwrap()) - allowed);
        self.moved += u64::from(plan.moved);
        self.minimum += u64::from(plan.minimum);
        assert!(
            plan.moves
                .iter()
                .all(|step| step.role != Role::Primary || step.to.is_some())
        );
    }
}

/// Returns the smallest number of copies that the fullest node can have in any assignment. Assumes
/// three replicas in distinct zones, equal weights, and at most the mean number of primaries
/// (rounded up) per node. A zone holds each slot at most once.
fn least_copies(ring: &Ring) -> u32 {
    let share = ring.slots().div_ceil(ring.members().len() as u32);
    let room = |copies: u32| -> u32 {
        let zones = ring.zone_shares();
        zones
            .iter()
            .map(|zone| ring.slots().min(zone.nodes * (share + copies)))
            .sum()
    };
    // The room for replicas grows with the number of copies per node. So a binary search finds the
    // smallest number with enough room.
    let (mut low, mut high) = (0, ring.slots());
    while low < high {
        let middle = (low + high) / 2;
        if room(middle) >= ring.slots() * 3 {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

fn history(seed: u64, slots: u32, start: usize, low: usize, high: usize, steps: usize) -> Worst {
    let mut dice = Dice(seed);
    let first = (0..start).map(|index| member(index, index % 4));
    let mut ring = Ring::bootstrap(first, Options::new().slots(slots).replication(3)).unwrap();
    let mut worst = Worst::default();
    for step in 0..steps {
        let nodes = ring.members().len();
        let join = nodes <= low || (nodes < high && dice.below(2) == 0);
        let plan = if join {
            // Joining nodes choose the zone with the fewest nodes, as an operator would.
            let count = |zone: &usize| {
                let name = format!("zone-{zone}");
                ring.members()
                    .iter()
                    .filter(|m| m.zone().unwrap().as_str() == name)
                    .count()
            };
            let zone = (0..4).min_by_key(count).unwrap();
            ring.plan_join(member(start + step, zone)).unwrap()
        } else {
            ring.plan_leave(ring.members()[dice.below(nodes)].name()).unwrap()
        };
        let next = ring.apply(&plan).unwrap();
        worst.look(&ring, &plan, &next);
        ring = next;
    }
    worst
}

#[test]
fn three_hundred_joins_and_leaves_over_four_zones_stay_balanced_and_cheap() {
    for seed in 0..3 {
        let worst = history(seed, 4096, 24, 16, 40, 300);
        assert_eq!((worst.broken_zones, worst.without_data), (0, 0), "{worst:?}");
        assert!(worst.uneven_primaries <= 1, "{worst:?}");
        assert!(worst.copies <= 1.12, "{worst:?}");
        assert!(worst.above_forced <= 0.03, "{worst:?}");
        assert!(worst.moved as f64 <= worst.minimum as f64 * 1.10, "{worst:?}");
    }
}

#[test]
fn copies_exceed_the_goal_only_where_zones_force_them_to() {
    // If 5 of 13 nodes are in one zone, this zone holds each slot once, one third of all replicas.
    // So the other 8 nodes must hold two thirds. With equal numbers of primaries, each of the 8
    // nodes holds 1.125 of the mean number of copies.
    for seed in 0..3 {
        let worst = history(seed, 4096, 16, 12, 20, 300);
        assert_eq!((worst.broken_zones, worst.without_data), (0, 0), "{worst:?}");
        assert!(worst.above_goal <= 1.0, "{worst:?}");
        assert!(worst.above_forced <= 0.03, "{worst:?}");
        assert!(worst.moved as f64 <= worst.minimum as f64 * 1.10, "{worst:?}");
    }
}

#[test]
fn few_nodes_in_uneven_zones_keep_zones_and_data() {
    // With 4 to 12 nodes, a zone may consist of one node. Copies cannot be even then, so only
    // zones, data and the number of moves are checked.
    for seed in 0..3 {
        let worst = history(seed, 1024, 8, 4, 12, 300);
        assert_eq!((worst.broken_zones, worst.without_data), (0, 0), "{worst:?}");
        assert!(worst.moved as f64 <= worst.minimum as f64 * 1.15, "{worst:?}");
    }
}
