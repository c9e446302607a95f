//! The wall clock and the monotonic clock.
//!
//! **Invariants**
//! - Rows and responses show wall clock times. The wall clock can step at any moment, and it
//!   differs between machines. So no wait and no time limit of a running process depends on the
//!   wall clock, with two exceptions. The retention of rows watches for steps (`StepWatch`), and
//!   the console waits until the next full second, so for a second at most.
//! - Waits follow the monotonic clock.
//! - The wall clock time of a message's next try becomes a monotonic time once, when the message is
//!   added to the outbox. The monotonic time is never further in the future than the longest
//!   backoff (`Moment::due_ms`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The source of wall clock times.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    /// The clock of the operating system.
    #[default]
    System,
    /// A clock that only a test advances.
    #[allow(dead_code, reason = "made by tests")]
    Manual(Arc<AtomicU64>),
    /// The clock of a simulated node.
    #[cfg(test)]
    Virtual(crate::simulation::world::VirtualClock),
}

impl Clock {
    /// Returns the wall clock time in UTC milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        match self {
            // A time before 1970 is replaced by 1970. Even then, no event of an order gets a time
            // before that of an earlier event (`Order::apply`).
            Clock::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            Clock::Manual(now_ms) => now_ms.load(Ordering::Relaxed),
            #[cfg(test)]
            Clock::Virtual(clock) => clock.now_ms(),
        }
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// UTC milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// Milliseconds since an arbitrary moment of this process. Never decreases.
    pub(crate) monotonic_ms: u64,
}

impl Moment {
    /// Converts the wall clock time `wall_ms` of a row into a monotonic time. A past time becomes
    /// the present moment. `wait_max_ms` is the longest time for which such a row may have to wait.
    /// A time further in the future was written by a clock that was ahead of the present one, and
    /// is replaced by `wait_max_ms` from now.
    pub(crate) fn due_ms(&self, wall_ms: u64, wait_max_ms: u64) -> u64 {
        let wait_ms = wall_ms.saturating_sub(self.wall_ms);
        self.monotonic_ms.saturating_add(wait_ms.min(wait_max_ms))
    }

    /// Converts a monotonic time into a wall clock time.
    pub(crate) fn wall_ms_of(&self, monotonic_ms: u64) -> u64 {
        let ahead = i128::from(monotonic_ms) - i128::from(self.monotonic_ms);
        let wall_ms = i128::from(self.wall_ms) + ahead;
        u64::try_from(wall_ms.max(0)).unwrap_or(u64::MAX)
    }
}

/// Minimum size of a step of the wall clock. Smaller differences come from rounding, or from a
/// clock that is being adjusted gradually.
const STEP_MIN_MS: u64 = 1_000;

/// Detects steps of the wall clock by comparing it with the monotonic clock. The age of a row is
/// reliable only if no step happened since the row was written.
#[derive(Debug)]
pub(crate) struct StepWatch {
    /// Age at which a step of the wall clock is removed from `steps`.
    window: Duration,
    began: Instant,
    last: (u64, Instant),
    /// Time and size in milliseconds of each step in the window, at most one for each call of
    /// `read_clock`.
    steps: VecDeque<(Instant, i64)>,
}

/// The wall clock time and its reliability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// UTC milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// Sum of the forward steps in the window of the `StepWatch`, in milliseconds.
    pub(crate) forward_ms: u64,
    /// `true` if the clock was watched for a whole window and made no backward step in the last
    /// window.
    pub(crate) is_steady: bool,
}

impl StepWatch {
    /// Starts to watch a clock.
    pub(crate) fn new(clock: &Clock, window: Duration) -> StepWatch {
        let now = Instant::now();
        StepWatch {
            window,
            began: now,
            last: (clock.now_ms(), now),
            steps: VecDeque::new(),
        }
    }

    /// Reads the clock, and records a step if the clock has stepped by at least `STEP_MIN_MS` since
    /// the last call.
    pub(crate) fn read_clock(&mut self, clock: &Clock) -> Watched {
        let (wall_ms, now) = (clock.now_ms(), Instant::now());
        let expected_ms = self.last.0 as i128 + (now - self.last.1).as_millis() as i128;
        let step_ms = i64::try_from(i128::from(wall_ms) - expected_ms).unwrap_or(i64::MAX);
        if step_ms.unsigned_abs() >= STEP_MIN_MS {
            self.steps.push_back((now, step_ms));
        }
        self.last = (wall_ms, now);
        while self.steps.front().is_some_and(|(at, _)| now - *at > self.window) {
            self.steps.pop_front();
        }
        let forward = self
            .steps
            .iter()
            .filter_map(|(_, step)| u64::try_from(*step).ok());
        Watched {
            wall_ms,
            forward_ms: forward.fold(0, u64::saturating_add),
            is_steady: now - self.began >= self.window && self.steps.iter().all(|(_, step)| *step > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_due_time_is_at_most_the_longest_wait_ahead() {
        let now = Moment {
            wall_ms: 1_000_000,
            monotonic_ms: 500,
        };
        for (row_ms, due_ms) in [
            (0, 500),
            (999_999, 500),
            (1_000_000, 500),
            (1_000_700, 1_200),
            (1_060_000, 60_500),
            (1_600_000, 60_500),
            (u64::MAX, 60_500),
        ] {
            assert_eq!(now.due_ms(row_ms, 60_000), due_ms, "{row_ms}");
        }
        assert_eq!(now.wall_ms_of(1_200), 1_000_700);
        assert_eq!(now.wall_ms_of(0), 999_500);
    }

    #[tokio::test(start_paused = true)]
    async fn clock_steps_are_detected_and_forgotten_after_the_window() {
        let wall = Arc::new(AtomicU64::new(5_000_000));
        let clock = Clock::Manual(Arc::clone(&wall));
        let mut watch = StepWatch::new(&clock, Duration::from_secs(100));
        let mut pass = async |seconds: u64, step_ms: i64| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            wall.fetch_add(seconds * 1_000, Ordering::Relaxed);
            let stepped = wall.load(Ordering::Relaxed).saturating_add_signed(step_ms);
            wall.store(stepped, Ordering::Relaxed);
            let watched = watch.read_clock(&clock);
            assert_eq!(watched.wall_ms, stepped);
            (watched.forward_ms, watched.is_steady)
        };
        assert_eq!(pass(60, 0).await, (0, false), "not watched for long enough");
        assert_eq!(pass(60, 999).await, (0, true), "no step");
        assert_eq!(pass(10, 600_000).await, (600_000, true));
        assert_eq!(pass(10, -600_000).await, (600_000, false));
        assert_eq!(
            pass(95, 0).await,
            (0, false),
            "the step forward is out of the window"
        );
        assert_eq!(pass(10, 0).await, (0, true));
    }
}
