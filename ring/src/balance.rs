//! Numbers of slots by node and by zone, compared with the weights.

use alloc::vec;
use alloc::vec::Vec;

use crate::ring::{NONE, Node};
use crate::{Member, Ring, ZoneName};

/// Numbers of slots that one node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct NodeShare<'a> {
    /// The node.
    pub member: &'a Member,
    /// Number of slots that the node owns.
    pub primaries: u32,
    /// Number of slots of which the node holds a copy.
    pub copies: u32,
}

/// Numbers of slots that all nodes of one zone hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ZoneShare<'a> {
    /// The zone, or `None` for all nodes without a zone.
    pub zone: Option<&'a ZoneName>,
    /// Number of nodes in the zone.
    pub nodes: u32,
    /// Sum of the weights of the zone's nodes.
    pub weight: u64,
    /// Number of slots that the zone's nodes own.
    pub primaries: u32,
    /// Number of slot copies that the zone's nodes hold.
    pub copies: u32,
}

/// Evenness of the primaries, or of the copies, over the nodes with a weight above 0. The exact
/// share of a node is proportional to its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Spread {
    /// Smallest number of slots on a node.
    pub least: u32,
    /// Largest number of slots on a node.
    pub most: u32,
    /// Smallest ratio of a node's slots to its exact share, in thousandths, rounded down.
    pub emptiest_permille: u32,
    /// Largest ratio of a node's slots to its exact share, in thousandths, rounded up. A value of
    /// 1,000 is exact. Copies cannot be exact where a zone is too small or too large for the zone
    /// rule.
    pub fullest_permille: u32,
}

/// Evenness of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Balance {
    /// Evenness of the primaries.
    pub primaries: Spread,
    /// Evenness of the copies; all zero in a ring without copies.
    pub copies: Spread,
}

/// Computes the evenness of `counts`, the number of slots of each member, by weight.
///
/// The arithmetic cannot overflow. All counts add up to at most 65,536 x 7, and all weights to at
/// most 16,384 x 1,000,000. So 1,000 times the product of both sums stays below 2^63.
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
    /// Returns for each member the number of slots that it owns, and the number of copies that it
    /// holds.
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

    /// Returns the numbers of slots of each node, in the order of names.
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

    /// Returns the numbers of slots of each zone, in the order of names. The nodes without a zone
    /// come first, as one entry.
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

    /// Returns the evenness of primaries and copies in this ring.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let (primaries, copies) = self.counts();
        Balance {
            primaries: spread(&self.members, &primaries),
            copies: spread(&self.members, &copies),
        }
    }
}
