//! An upper bound for delivery numbers from outside: `X-Stock-As-Of` of a snapshot and
//! `X-Stock-Sequence` of a delivery.
//!
//! A snapshot with a number that is far too high would make every later snapshot stale. A delivery
//! with such a number would be subtracted from every later snapshot. So a snapshot with a number
//! above the bound is rejected, and a delivery is recorded without such a number. The bound depends
//! on the highest number of all snapshots and deliveries so far:
//!
//! | highest number so far | bound |
//! | --- | --- |
//! | none | the clock in Unix milliseconds plus ten minutes, at least 10^9 |
//! | below 10^12: a count of deliveries | that number plus 10^9 |
//! | 10^12 or more: Unix milliseconds | the clock plus ten minutes, at least that number |

/// Maximum amount by which a count of deliveries may exceed the highest number so far. No warehouse
/// makes that many deliveries between two numbered snapshots or deliveries.
const AHEAD_MAX: u64 = 1_000_000_000;
/// Smallest number that is taken for Unix milliseconds. As a time, this number is in the year 2001.
/// As a count, it exceeds the deliveries of any warehouse.
const MILLISECONDS_FROM: u64 = 1_000_000_000_000;
/// Maximum time by which the warehouse's clock may be ahead of the clock of this node.
const CLOCK_AHEAD_MAX_MS: u64 = 10 * 60 * 1_000;

/// Returns the largest plausible delivery number. `newest` is the highest number of all snapshots
/// and deliveries so far, or `None` if none had a number.
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
    fn the_bound_follows_the_known_deliveries_or_the_clock() {
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
