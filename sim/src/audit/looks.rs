//! The looks of an audit: the readings of both sides, and the findings that all of them have in
//! common. This module has no clock: it returns the pause before the next look.
//!
//! **Invariants**
//! - Two findings are the same if they have the same kind and subject. Their numbers may differ,
//!   because orders may arrive between two looks.
//! - A reservation that a lost answer between two nodes left behind is released after the next
//!   question of the store's volume about it. The pauses between the late looks last longer than
//!   the first questions, so such a reservation is no finding.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Finding, LOOK_PAUSE, check};

/// Number of looks with a pause of [`LOOK_PAUSE`].
const LOOKS: u32 = 3;
/// Pause before the first late look. Each further pause is twice as long.
const LATE_PAUSE: Duration = Duration::from_secs(1);

/// The findings that all looks so far have in common.
pub(super) struct Looks {
    taken: u32,
    common: Vec<Finding>,
    /// Pause before the next late look.
    late_pause: Duration,
    /// Time that is left for pauses before late looks.
    late_left: Duration,
}

impl Looks {
    /// Begins without a look. `released_within` is the sum of all pauses before late looks.
    pub(super) fn new(released_within: Duration) -> Self {
        Self {
            taken: 0,
            common: Vec::new(),
            late_pause: LATE_PAUSE,
            late_left: released_within,
        }
    }

    /// Adds the findings of a look. Returns the pause before the next look; `None` if no further
    /// look is needed.
    pub(super) fn add(&mut self, found: Vec<Finding>) -> Option<Duration> {
        self.taken += 1;
        self.common = match self.taken {
            1 => found,
            _ => in_common(&self.common, found),
        };
        if self.common.is_empty() {
            return None;
        }
        if self.taken < LOOKS {
            return Some(LOOK_PAUSE);
        }
        if self.late_left.is_zero() || !self.common.iter().any(is_released_late) {
            return None;
        }
        let pause = self.late_pause.min(self.late_left);
        self.late_left -= pause;
        self.late_pause *= 2;
        Some(pause)
    }

    /// Returns the findings that all looks have in common, with the numbers of the last look.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.common
    }
}

/// Returns the findings of the later look that the earlier look has too.
fn in_common(earlier: &[Finding], later: Vec<Finding>) -> Vec<Finding> {
    let earlier: BTreeMap<Finding, &Finding> = earlier.iter().map(|known| (subject(known), known)).collect();
    let is_common = |finding: &Finding| {
        let known = earlier.get(&subject(finding));
        known.is_some_and(|known| lasts(known, finding))
    };
    later.into_iter().filter(is_common).collect()
}

/// Returns `true` for a finding about a reservation that may be released after the next question of
/// the store's volume.
fn is_released_late(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::ReservationOrphaned { .. }
            | Finding::ReservationTwice { .. }
            | Finding::ReservationDiffers { .. }
    )
}

/// Returns the finding without the parts that may change while its cause lasts.
fn subject(finding: &Finding) -> Finding {
    let mut subject = finding.clone();
    match &mut subject {
        Finding::Overreserved { reserved, there, .. } => (*reserved, *there) = (0, 0),
        Finding::StockDiffers { kept, there, .. } => (*kept, *there) = (0, 0),
        Finding::ReservedDiffers { kept, listed, .. } => (*kept, *listed) = (0, 0),
        Finding::CountDiffers { counted, listed, .. } => (*counted, *listed) = (0, 0),
        Finding::CounterShort { counted, .. } => *counted = 0,
        Finding::DeliveredTwice { count, .. } => *count = 0,
        Finding::ReservationOrphaned { state, .. } => *state = None,
        _ => {}
    }
    subject
}

/// Returns `true` if two findings with the same subject show a difference that lasts.
///
/// A list is read before its counter. So while orders arrive, a counter that only grows lies
/// between the lengths of the list in this look and in the next one. A counter outside of these
/// bounds is wrong. Nothing is known about the other counters while they change.
fn lasts(earlier: &Finding, later: &Finding) -> bool {
    let (
        Finding::CountDiffers {
            what,
            counted: counted_before,
            listed: listed_before,
        },
        Finding::CountDiffers { counted, listed, .. },
    ) = (earlier, later)
    else {
        return true;
    };
    let is_short = counted_before < listed_before && counted < listed;
    let is_ahead = counted_before > listed && counted > listed;
    let is_at_rest = (counted_before, listed_before) == (counted, listed);
    is_at_rest || (check::only_grows(what) && (is_short || is_ahead))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::OrderState;

    /// Adds the findings of each look, as long as there is a next look. Returns the common findings
    /// and the pauses between the looks.
    fn looked(found: impl IntoIterator<Item = Vec<Finding>>) -> (Vec<Finding>, Vec<u64>) {
        let mut looks = Looks::new(Duration::from_secs(64));
        let mut pauses = Vec::new();
        for found in found {
            let Some(pause) = looks.add(found) else {
                break;
            };
            pauses.push(pause.as_millis() as u64);
        }
        (looks.into_findings(), pauses)
    }

    fn stock(product: u32, kept: i64) -> Finding {
        Finding::StockDiffers {
            store: 3,
            product,
            kept,
            there: 9,
        }
    }

    fn orphaned() -> Vec<Finding> {
        vec![Finding::ReservationOrphaned {
            order: "17".to_owned(),
            store: 3,
            state: Some(OrderState::Delivered),
        }]
    }

    #[test]
    fn a_difference_with_other_numbers_in_each_look_is_kept() {
        let found = [
            vec![stock(1, 8), stock(2, 8)],
            vec![stock(1, 7)],
            vec![stock(1, 6)],
        ];
        assert_eq!(looked(found), (vec![stock(1, 6)], vec![250, 250]));
        let over = |reserved| {
            vec![Finding::Overreserved {
                store: 3,
                product: 1,
                reserved,
                there: 1,
            }]
        };
        assert_eq!(looked([over(2), over(3), over(4)]).0, over(4));
        // Each look has a difference, but in another product.
        assert_eq!(looked([vec![stock(1, 8)], vec![stock(2, 8)]]).0, []);
    }

    #[test]
    fn a_counter_that_moves_is_kept_only_if_the_moves_cannot_explain_it() {
        let counts = |what: &str, looks: [(u64, u64); 3]| {
            let look = |(counted, listed)| {
                vec![Finding::CountDiffers {
                    what: what.to_owned(),
                    counted,
                    listed,
                }]
            };
            looked(looks.map(look)).0.len()
        };
        let (grows, moves) = ("orders that are delivered", "orders that are paid");
        let (short, ahead) = ([(8, 9), (10, 12), (14, 15)], [(90, 50), (92, 52), (95, 55)]);
        // Orders are delivered between the readings of the list and of the counter.
        let busy = [(10, 8), (13, 11), (16, 14)];
        for (looks, expected) in [(short, 1), (ahead, 1), (busy, 0)] {
            assert_eq!(counts(grows, looks), expected, "{looks:?}");
            assert_eq!(counts("the warehouse's deliveries", looks), expected, "{looks:?}");
            assert_eq!(counts(moves, looks), 0, "{looks:?}");
        }
        assert_eq!(counts(moves, [(8, 9); 3]), 1);
    }

    #[test]
    fn a_reservation_that_the_next_question_releases_is_no_finding() {
        let released = [orphaned(), orphaned(), orphaned(), orphaned(), vec![]];
        assert_eq!(looked(released), (vec![], vec![250, 250, 1_000, 2_000]));
        // The reservation stays: the pauses are longer than the first questions.
        let stays = std::iter::repeat_with(orphaned).take(20);
        let (found, pauses) = looked(stays);
        assert_eq!(found, orphaned());
        let late = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 1_000];
        assert_eq!(pauses, [&[250, 250][..], &late].concat());
    }
}
