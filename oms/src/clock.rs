//! The time of day, in one place, so that tests can stand it still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where timestamps come from.
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
