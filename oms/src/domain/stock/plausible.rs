//! Numbers of deliveries that come from outside: `X-Stock-As-Of` of a snapshot, `X-Stock-Sequence`
//! of a delivery.
//!
//! The highest number seen is a mark below which snapshots are stale. A number that is wrong and
//! far too high would make every later snapshot stale, or would be subtracted from every later one.
//! So a number has an upper bound:
//!
//! | highest number known | bound |
//! | --- | --- |
//! | none | the clock in Unix milliseconds plus ten minutes, at least 10^9 |
//! | below 10^12: deliveries are counted | that number plus 10^9 |
//! | from 10^12 on: numbers are Unix milliseconds | the clock plus ten minutes, at least that number |

/// Largest distance of a number from the highest one known: more deliveries than a warehouse makes
/// between two messages.
const AHEAD_MAX: u64 = 1_000_000_000;
/// Numbers from this one on are Unix milliseconds: it is a moment of 2001, and no warehouse counts
/// as far.
const MILLISECONDS_FROM: u64 = 1_000_000_000_000;
/// Longest time by which the warehouse's clock may be ahead of ours.
const CLOCK_AHEAD_MAX_MS: u64 = 10 * 60 * 1_000;

/// Returns the largest number that is plausible now; `newest` is the highest one known.
pub(crate) fn largest_plausible(newest: Option<u64>, now_ms: u64) -> u64 {
    let by_clock = now_ms.saturating_add(CLOCK_AHEAD_MAX_MS);
    match newest {
        None => by_clock.max(AHEAD_MAX),
        Some(newest) if newest < MILLISECONDS_FROM => newest + AHEAD_MAX,
        Some(newest) => by_clock.max(newest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_bounded_by_the_deliveries_known_or_by_the_clock() {
        let now_ms = 1_800_000_000_000;
        let ten_minutes_later = now_ms + 600_000;
        for (newest, largest) in [
            (None, ten_minutes_later),
            (Some(0), 1_000_000_000),
            (Some(5_000), 1_000_005_000),
            (Some(now_ms - 30_000), ten_minutes_later),
            (Some(now_ms + 900_000), now_ms + 900_000),
            (Some(u64::MAX), u64::MAX),
        ] {
            assert_eq!(largest_plausible(newest, now_ms), largest, "{newest:?}");
        }
        assert_eq!(
            largest_plausible(None, 0),
            1_000_000_000,
            "a clock that was never set"
        );
    }
}
