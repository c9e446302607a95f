//! The two clocks: the time of day, and the time that passes.
//!
//! The time of day stands in rows and answers. It may step back and forth at any moment, and it is
//! another one on another machine. No wait and no limit follows it while a process runs.
//! Waits follow the monotonic clock. A time of day that was read from a row becomes a monotonic
//! time once, when the row is loaded, and never lies further ahead than the longest wait of its
//! kind (`Moment::due_ms`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The source of timestamps.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A clock that moves only when a test moves it.
    #[allow(dead_code, reason = "made by tests")]
    Manual(Arc<AtomicU64>),
    /// The clock of a node of the simulation.
    #[cfg(test)]
    Virtual(crate::simulation::world::VirtualClock),
}

impl Clock {
    /// UTC milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        match self {
            // A clock set before 1970 reads as 1970: histories then keep their order by themselves.
            Clock::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            Clock::Manual(now_ms) => now_ms.load(Ordering::Relaxed),
            #[cfg(test)]
            Clock::Virtual(clock) => clock.now_ms(),
        }
    }
}

/// One moment by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// UTC milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// Milliseconds since an arbitrary moment of this process; never runs backwards.
    pub(crate) monotonic_ms: u64,
}

impl Moment {
    /// Returns the monotonic time at which something is due that a row says is due at `wall_ms`.
    /// A time that lies further ahead than `wait_max_ms`, the longest wait of its kind, was
    /// written by a clock that was ahead: it counts as `wait_max_ms` from now.
    pub(crate) fn due_ms(&self, wall_ms: u64, wait_max_ms: u64) -> u64 {
        let wait_ms = wall_ms.saturating_sub(self.wall_ms);
        self.monotonic_ms.saturating_add(wait_ms.min(wait_max_ms))
    }

    /// Returns the time of day of a monotonic time.
    pub(crate) fn wall_ms_of(&self, monotonic_ms: u64) -> u64 {
        let ahead = i128::from(monotonic_ms) - i128::from(self.monotonic_ms);
        let wall_ms = i128::from(self.wall_ms) + ahead;
        u64::try_from(wall_ms.max(0)).unwrap_or(u64::MAX)
    }
}

/// Steps of the wall clock smaller than this are rounding, or a clock that is being slewed.
const STEP_MIN_MS: u64 = 1_000;

/// Watches the wall clock for steps, by the monotonic one, so that the age of a row can be told
/// although the clock stepped since the row was written.
#[derive(Debug)]
pub(crate) struct StepWatch {
    /// Steps older than this are forgotten.
    window: Duration,
    began: Instant,
    last: (u64, Instant),
    /// Time and size of each step in the window, at most one for each call of `look`.
    steps: VecDeque<(Instant, i64)>,
}

/// The wall clock, and how far it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// UTC milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// Sum of the steps forward in the window.
    pub(crate) forward_ms: u64,
    /// True if the clock was watched for the whole window and made no step back.
    pub(crate) is_steady: bool,
}

impl StepWatch {
    /// Begins to watch a clock.
    pub(crate) fn new(clock: &Clock, window: Duration) -> StepWatch {
        let now = Instant::now();
        StepWatch {
            window,
            began: now,
            last: (clock.now_ms(), now),
            steps: VecDeque::new(),
        }
    }

    /// Reads the clock and notes the step that it made since the last look.
    pub(crate) fn look(&mut self, clock: &Clock) -> Watched {
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
    fn a_due_time_never_lies_further_ahead_than_the_longest_wait() {
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
    async fn steps_of_the_clock_are_noticed_and_forgotten_after_the_window() {
        let wall = Arc::new(AtomicU64::new(5_000_000));
        let clock = Clock::Manual(Arc::clone(&wall));
        let mut watch = StepWatch::new(&clock, Duration::from_secs(100));
        let mut pass = async |seconds: u64, step_ms: i64| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            wall.fetch_add(seconds * 1_000, Ordering::Relaxed);
            let stepped = wall.load(Ordering::Relaxed).saturating_add_signed(step_ms);
            wall.store(stepped, Ordering::Relaxed);
            let watched = watch.look(&clock);
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
