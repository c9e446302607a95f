//! Quotas: the number of slots that each node should hold.
//!
//! Exact shares are proportional to weights, between a lower and an upper bound that follow from
//! pins and zones. They are rounded to whole slots by largest remainder (Hamilton), with regard to
//! the present slots.
//!
//! Plain largest remainder lets a new node change the quota of nodes that give it nothing (the
//! Alabama paradox). Here every node first keeps its present slots as far as floor and ceiling of
//! its share allow. Slots that are then left go to the nodes with the largest remainders. If too
//! many slots are kept, nodes above the floor of their share give up one slot each, those with the
//! smallest remainders first. Of all whole quotas within one slot of the exact shares, these quotas
//! need the fewest moves: the sum of `max(0, quota - held)` is minimal.
//!
//! All arithmetic is in whole numbers, so every machine gets the same result. The arithmetic cannot
//! overflow: totals are at most 2^19 (65,536 slots x 8 replicas), and the sum of weights at most
//! 2^34 (16,384 x 1,000,000). So products stay below 2^54.

use alloc::vec;
use alloc::vec::Vec;

/// Weight, bounds and present slots of one node (or zone), from which its quota follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    /// Weight to which the exact share is proportional.
    pub weight: u64,
    /// Smallest quota that pins and zones permit.
    pub lower: u64,
    /// Largest quota that pins and zones permit.
    pub upper: u64,
    /// Number of slots that the node holds at the time of the division.
    pub held: u64,
}

/// An exact share: `floor + remainder / denominator`. The denominator is the sum of the weights of
/// all claims that the division does not fix to a bound. A fixed share has the remainder 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub floor: u64,
    pub remainder: u64,
}

impl Share {
    pub(crate) fn ceiling(&self) -> u64 {
        self.floor + u64::from(self.remainder > 0)
    }
}

/// Divides `total` in proportion to weights, within bounds.
///
/// The rule is that of CSS flexible boxes. The total less all fixed shares is divided among the
/// claims without a fixed share, which get 0 if they have no weight. Some results may then break a
/// bound.
///
/// Two sums are compared: by how much the claims without a fixed share are together below their
/// lower bounds, and by how much they are above their upper bounds. On the side with the larger
/// sum, each claim that breaks its bound is fixed to that bound. If the sums are equal, this is
/// done on both sides. The division repeats until no bound is broken.
pub(crate) fn shares(total: u64, claims: &[Claim]) -> Vec<Share> {
    let mut result = vec![
        Share {
            floor: 0,
            remainder: 0
        };
        claims.len()
    ];
    let mut open: Vec<usize> = (0..claims.len()).collect();
    let mut left = total;
    loop {
        let weight: u64 = open.iter().map(|&i| claims[i].weight).sum();
        let exact = |i: usize| {
            let product = left * claims[i].weight;
            match weight {
                0 => Share {
                    floor: 0,
                    remainder: 0,
                },
                _ => Share {
                    floor: product / weight,
                    remainder: product % weight,
                },
            }
        };
        let (mut below, mut above) = (0u64, 0u64);
        for &i in &open {
            let (share, claim) = (exact(i), &claims[i]);
            if share.floor < claim.lower {
                below += claim.lower * weight.max(1) - (share.floor * weight.max(1) + share.remainder);
            } else if share.ceiling() > claim.upper {
                above += (share.floor * weight + share.remainder) - claim.upper * weight;
            }
        }
        if below == 0 && above == 0 {
            for &i in &open {
                result[i] = exact(i);
            }
            return result;
        }
        let mut fixed = 0;
        let before = core::mem::take(&mut open);
        for i in before {
            let (share, claim) = (exact(i), &claims[i]);
            let bound = if below >= above && share.floor < claim.lower {
                claim.lower
            } else if above >= below && share.floor >= claim.lower && share.ceiling() > claim.upper {
                claim.upper
            } else {
                open.push(i);
                continue;
            };
            result[i] = Share {
                floor: bound,
                remainder: 0,
            };
            fixed += bound;
        }
        left = left.saturating_sub(fixed);
    }
}

/// Returns whole quotas that add up to `total` and need the fewest moves. Each is the floor or
/// ceiling of its exact share. If quotas can be chosen in several such ways, slots go to the claims
/// with the larger remainder, then to those with more held slots, then to the first claims.
pub(crate) fn quotas(total: u64, claims: &[Claim]) -> Vec<u64> {
    whole(total, claims, &shares(total, claims))
}

/// Returns [`quotas`] from exact shares that the caller has computed.
pub(crate) fn whole(total: u64, claims: &[Claim], shares: &[Share]) -> Vec<u64> {
    let mut quotas: Vec<u64> = shares
        .iter()
        .zip(claims)
        .map(|(share, claim)| claim.held.clamp(share.floor, share.ceiling()))
        .collect();
    let sum: u64 = quotas.iter().sum();
    let mut order: Vec<usize> = Vec::new();
    if sum > total {
        order.extend((0..claims.len()).filter(|&i| quotas[i] > shares[i].floor));
        // Each claim in `order` has one slot more than the floor of its share. The claims with the
        // smallest remainders give up that slot.
        order.sort_by_key(|&i| {
            (
                quotas[i] <= claims[i].held,
                shares[i].remainder,
                claims[i].held,
                usize::MAX - i,
            )
        });
        for &i in order.iter().take((sum - total) as usize) {
            quotas[i] -= 1;
        }
    } else {
        order.extend((0..claims.len()).filter(|&i| quotas[i] < shares[i].ceiling()));
        order.sort_by_key(|&i| (u64::MAX - shares[i].remainder, u64::MAX - claims[i].held, i));
        for &i in order.iter().take((total - sum) as usize) {
            quotas[i] += 1;
        }
    }
    quotas
}
