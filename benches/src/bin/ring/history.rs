//! Measurements that only our ring supports: plans, and long histories of replicas over zones.
//!
//! Other crates have neither plans nor zones, and do not keep replicas when nodes join and leave.
//! So the histories are compared with lower bounds, which hold for any assignment with evenly
//! spread primaries under the given zones.

use std::hint::black_box;

use imt_ring::{Member, NodeName, Options, Plan, Ring, Slot};

use crate::{print_row, time};

fn member(node: usize, zone: usize) -> Member {
    let member = Member::new(format!("node-{node:05}")).expect("digits and letters are a name");
    member
        .with_zone(format!("zone-{zone}"))
        .expect("digits and letters are a name")
}

fn ring(slots: u32, replication: u8, nodes: usize) -> Ring {
    let members = (0..nodes).map(|node| member(node, node % 4));
    Ring::bootstrap(members, Options::new().slots(slots).replication(replication))
        .expect("the members are distinct")
}

/// Prints the times to make a plan, to apply a plan, and to build a ring without one (bootstrap).
pub(crate) fn print_plans(markdown: bool, repeat: usize) {
    println!("\nplans, ms\n");
    print_row(
        markdown,
        &["", "plan a join", "plan a leave", "apply a join", "bootstrap"].map(String::from),
    );
    if markdown {
        print_row(markdown, &["---"; 5].map(String::from));
    }
    for (slots, replication) in [(16_384, 1), (16_384, 3), (65_536, 1), (65_536, 3)] {
        for nodes in [8, 100, 1000] {
            let ring = ring(slots, replication, nodes);
            let leaver = ring.members()[nodes / 2].name().clone();
            let newcomer = member(nodes, nodes % 4);
            let plan = ring.plan_join(newcomer.clone()).expect("it is new");
            let ms = |work: &mut dyn FnMut()| format!("{:.2}", time(repeat, work) / 1e6);
            let cells = [
                format!("{slots} slots, {replication} replicas, {nodes} nodes"),
                ms(&mut || drop(black_box(ring.plan_join(newcomer.clone())))),
                ms(&mut || drop(black_box(ring.plan_leave(&leaver)))),
                ms(&mut || drop(black_box(ring.apply(&plan)))),
                ms(&mut || drop(black_box(self::ring(slots, replication, nodes)))),
            ];
            print_row(markdown, &cells);
        }
    }
}

/// Goal for long histories: the node with the most copies (replicas other than primaries) has at
/// most this many times the mean of all nodes.
const COPIES_GOAL: f64 = 1.12;

/// The worst values of all steps of several histories. The last four fields are sums of all steps.
#[derive(Default)]
struct Worst {
    primaries: f64,
    uneven: u32,
    copies: f64,
    /// In each step, the zones give a lower bound for the ratio of the copies on the fullest node
    /// to the mean of all nodes. This field is the highest of these bounds. Copies are replicas
    /// other than primaries.
    forced: f64,
    /// Largest excess of the copies on the fullest node over the lower bound that the zones give
    /// ([`least_copies`]), in slots.
    copies_unforced: u32,
    /// Highest ratio of the copies on the fullest node to the mean, over the steps in which the
    /// zones permit `COPIES_GOAL`.
    copies_where_possible: f64,
    moved: u64,
    minimum: u64,
    broken_zones: u64,
    without_data: u64,
}

impl Worst {
    fn look(&mut self, before: &Ring, plan: &Plan, after: &Ring) {
        let (shares, nodes) = (after.shares(), after.members().len() as f64);
        let over_mean = |counts: &[u32]| {
            f64::from(counts.iter().max().copied().unwrap_or(0)) * nodes
                / f64::from(counts.iter().sum::<u32>())
        };
        let primaries: Vec<u32> = shares.iter().map(|share| share.primaries).collect();
        let copies: Vec<u32> = shares.iter().map(|share| share.copies).collect();
        let spread = after.balance().primaries;
        self.primaries = self.primaries.max(over_mean(&primaries));
        self.uneven = self.uneven.max(spread.most - spread.least);
        self.look_at_copies(after, over_mean(&copies), after.balance().copies.most);
        self.moved += u64::from(plan.moved);
        self.minimum += u64::from(plan.minimum);
        let zones = after.zone_shares().len();
        for slot in (0..after.slots()).map(Slot) {
            let holders: Vec<&NodeName> = after.replicas(slot, 8).into_iter().flatten().collect();
            let mut distinct: Vec<_> = holders
                .iter()
                .filter_map(|name| after.member(name)?.zone())
                .collect();
            distinct.sort_unstable();
            distinct.dedup();
            self.broken_zones += u64::from(distinct.len() < holders.len().min(zones));
            let had = before
                .replicas(slot, 8)
                .into_iter()
                .flatten()
                .any(|node| node == holders[0]);
            self.without_data += u64::from(!had && before.member(holders[0]).is_some());
        }
    }
}

impl Worst {
    fn look_at_copies(&mut self, ring: &Ring, over_mean: f64, most: u32) {
        let least = least_copies(ring);
        let mean = f64::from(ring.slots() * 2) / ring.members().len() as f64;
        let forced = f64::from(least) / mean;
        self.copies = self.copies.max(over_mean);
        self.forced = self.forced.max(forced);
        self.copies_unforced = self.copies_unforced.max(most.saturating_sub(least));
        if forced <= COPIES_GOAL {
            self.copies_where_possible = self.copies_where_possible.max(over_mean);
        }
    }
}

/// Returns a lower bound for the number of copies on the fullest node. Assumes three replicas in
/// distinct zones, equal weights, and at most `share` primaries per node: the mean number, rounded
/// up. A zone holds each slot at most once. So a zone has room for at most
/// `min(slots, nodes x (share + c))` replicas if none of its nodes has more than `c` copies. Such a
/// `c` is enough only if all zones together have room for three times the slots.
fn least_copies(ring: &Ring) -> u32 {
    let share = ring.slots().div_ceil(ring.members().len() as u32);
    let zones = ring.zone_shares();
    let room = |copies: u32| -> u32 {
        let of_zone = |nodes: u32| ring.slots().min(nodes * (share + copies));
        zones.iter().map(|zone| of_zone(zone.nodes)).sum()
    };
    (0..ring.slots())
        .find(|&copies| room(copies) >= ring.slots() * 3)
        .unwrap_or(ring.slots())
}

/// Prints the worst values of histories of three replicas over four zones. Each history has 300
/// steps: a node joins the zone with the fewest nodes, or any node leaves.
pub(crate) fn print_histories(markdown: bool) {
    println!(
        "\n300 random joins and leaves, three replicas over four zones; the worst over five histories\n"
    );
    let heads = [
        "",
        "primaries / mean",
        "most - least",
        "copies / mean",
        "forced by zones",
        "most above forced, slots",
        "copies / mean where 1.12 is possible",
        "moved / minimum",
        "zones broken",
        "new primary without data",
    ];
    print_row(markdown, &heads.map(String::from));
    if markdown {
        print_row(markdown, &["---"; 10].map(String::from));
    }
    for (slots, low, high) in [
        (16_384, 12, 20),
        (16_384, 16, 40),
        (65_536, 16, 40),
        (65_536, 80, 120),
    ] {
        let mut worst = Worst::default();
        let mut ratio = 0.0f64;
        for seed in 0..5 {
            let (moved, minimum) = (worst.moved, worst.minimum);
            history(seed, slots, low, high, &mut worst);
            ratio = ratio.max((worst.moved - moved) as f64 / (worst.minimum - minimum) as f64);
        }
        let cells = [
            format!("{slots} slots, {low} to {high} nodes"),
            format!("{:.4}", worst.primaries),
            worst.uneven.to_string(),
            format!("{:.3}", worst.copies),
            format!("{:.3}", worst.forced),
            worst.copies_unforced.to_string(),
            format!("{:.3}", worst.copies_where_possible),
            format!("{ratio:.3}"),
            worst.broken_zones.to_string(),
            worst.without_data.to_string(),
        ];
        print_row(markdown, &cells);
    }
}

fn history(seed: u64, slots: u32, low: usize, high: usize, worst: &mut Worst) {
    let mut state = seed;
    let mut below = |n: usize| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % n as u64) as usize
    };
    let mut ring = ring(slots, 3, (low + high) / 2);
    for step in 0..300 {
        let nodes = ring.members().len();
        let plan = if nodes <= low || (nodes < high && below(2) == 0) {
            let zones = ring.zone_shares();
            let fewest = zones.iter().enumerate().min_by_key(|(_, zone)| zone.nodes);
            ring.plan_join(member(high + step, fewest.map_or(0, |(index, _)| index)))
        } else {
            ring.plan_leave(ring.members()[below(nodes)].name())
        };
        let plan = plan.expect("joins are new and leaves are there");
        let next = ring.apply(&plan).expect("a plan fits its own ring");
        worst.look(&ring, &plan, &next);
        ring = next;
    }
}
