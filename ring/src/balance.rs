//! Who holds how much: counts by node and by zone, and how far they are from the weights.

use alloc::vec;
use alloc::vec::Vec;

use crate::ring::{NONE, Node};
use crate::{Member, Ring, ZoneName};

/// What one node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct NodeShare<'a> {
    /// The node.
    pub member: &'a Member,
    /// How many slots it owns.
    pub primaries: u32,
    /// How many slots it holds a copy of.
    pub copies: u32,
}

/// What the nodes of one zone hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ZoneShare<'a> {
    /// The zone; nothing for all nodes that name none.
    pub zone: Option<&'a ZoneName>,
    /// How many nodes it has.
    pub nodes: u32,
    /// The sum of their weights.
    pub weight: u64,
    /// How many slots they own.
    pub primaries: u32,
    /// How many slots they hold copies of.
    pub copies: u32,
}

/// How evenly one kind of replica is spread over the nodes with a weight above 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Spread {
    /// The fewest that a node holds.
    pub least: u32,
    /// The most that a node holds.
    pub most: u32,
    /// The smallest holding over what weights alone would give, in thousandths, rounded down.
    pub emptiest_permille: u32,
    /// The largest holding over what weights alone would give, in thousandths, rounded up. 1,000 is exact; where a zone
    /// is too small or too large for its rule, copies cannot be.
    pub fullest_permille: u32,
}

/// How evenly a ring is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Balance {
    /// Of the primaries.
    pub primaries: Spread,
    /// Of the copies; all zero where there are none.
    pub copies: Spread,
}

/// Overflow: a node holds at most 65,536 x 7 copies, all weights are at most 16,384 x 1,000,000: times 1000 that is below 2^63.
fn spread(members: &[Member], counts: &[u32]) -> Spread {
    let weight: u64 = members.iter().map(|member| u64::from(member.weight())).sum();
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let weighted = members
        .iter()
        .zip(counts)
        .filter(|(member, _)| member.weight() > 0);
    let mut spread: Option<Spread> = None;
    for (member, &count) in weighted {
        let (held, exact) = (
            u64::from(count) * weight * 1000,
            (total * u64::from(member.weight())).max(1),
        );
        let permille = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let (down, up) = (permille(held / exact), permille(held.div_ceil(exact)));
        let so_far = spread.unwrap_or(Spread {
            least: count,
            most: count,
            emptiest_permille: down,
            fullest_permille: up,
        });
        spread = Some(Spread {
            least: so_far.least.min(count),
            most: so_far.most.max(count),
            emptiest_permille: so_far.emptiest_permille.min(down),
            fullest_permille: so_far.fullest_permille.max(up),
        });
    }
    spread.unwrap_or_default()
}

impl Ring {
    /// For each member how many slots it owns, and holds copies of.
    fn counts(&self) -> (Vec<u32>, Vec<u32>) {
        let count = |cells: &[Node]| {
            let mut counts = vec![0; self.members.len()];
            for &node in cells.iter().filter(|node| **node != NONE) {
                counts[usize::from(node)] += 1;
            }
            counts
        };
        let (primaries, copies) = self.cells.split_at(self.options.slots as usize);
        (count(primaries), count(copies))
    }

    /// What each node holds, in the order of their names.
    #[must_use]
    pub fn shares(&self) -> Vec<NodeShare<'_>> {
        let (primaries, copies) = self.counts();
        let counts = primaries.into_iter().zip(copies);
        let share = |(member, (primaries, copies))| NodeShare {
            member,
            primaries,
            copies,
        };
        self.members.iter().zip(counts).map(share).collect()
    }

    /// What each zone holds, in the order of their names; first those nodes that name none, if there are any.
    #[must_use]
    pub fn zone_shares(&self) -> Vec<ZoneShare<'_>> {
        let mut zones: Vec<ZoneShare<'_>> = Vec::new();
        for share in self.shares() {
            let zone = share.member.zone();
            let index = match zones.binary_search_by(|known| known.zone.cmp(&zone)) {
                Ok(index) => index,
                Err(index) => {
                    zones.insert(
                        index,
                        ZoneShare {
                            zone,
                            nodes: 0,
                            weight: 0,
                            primaries: 0,
                            copies: 0,
                        },
                    );
                    index
                }
            };
            zones[index].nodes += 1;
            zones[index].weight += u64::from(share.member.weight());
            zones[index].primaries += share.primaries;
            zones[index].copies += share.copies;
        }
        zones
    }

    /// How evenly this ring is spread.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let (primaries, copies) = self.counts();
        Balance {
            primaries: spread(&self.members, &primaries),
            copies: spread(&self.members, &copies),
        }
    }
}
