//! Behaviour of the warehouse: delays of calls, faults of a configured share of the calls, and
//! named profiles.
//!
//! Invariants:
//! - Delay and fault of a call depend on the behaviour, the seed, the id of the order and the
//!   number of the attempt, but not on the sequence in which calls arrive. So with the same seed
//!   and behaviour, the calls of an order get the same delays and faults in every run.
//! - A call with a fault is performed as usual or not at all. So a fault never damages the
//!   warehouse's books (`books.rs`).
//! - Each fault that happens is counted under its name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::seed::Dice;

/// A random delay: the shortest delay plus a random number of equal steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// Shortest delay.
    pub min: Duration,
    /// Difference between two successive possible delays.
    pub step: Duration,
    /// Number of possible delays, the shortest one included; at least 1.
    pub steps: u32,
}

impl Delay {
    /// A delay of zero.
    pub const NONE: Self = Self::fixed(Duration::ZERO);

    /// Returns a delay that is always the same.
    pub const fn fixed(delay: Duration) -> Self {
        Self {
            min: delay,
            step: Duration::ZERO,
            steps: 1,
        }
    }

    const fn between_ms(from: u64, to: u64, step: u64) -> Self {
        Self {
            min: Duration::from_millis(from),
            step: Duration::from_millis(step),
            steps: ((to - from) / step + 1) as u32,
        }
    }

    /// Returns a random delay.
    pub(super) fn draw(&self, dice: &mut Dice) -> Duration {
        self.min + self.step * dice.below(self.steps.max(1))
    }
}

/// A fault of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The connection is reset, and the call is not performed.
    ResetBefore,
    /// The call is performed, and the connection is reset instead of an answer.
    ResetAfterActing,
    /// The call is answered 504 and not performed.
    TimeoutBefore,
    /// The call is performed and answered 504.
    TimeoutAfterActing,
    /// The call is answered 503 with `Retry-After` and not performed.
    Unavailable,
    /// The call is performed, and its answer is sent twice in a row.
    DuplicateAnswer,
    /// The call is performed, and its answer is sent byte by byte with pauses.
    SlowDrip,
}

impl Fault {
    /// Faults that give the caller no result. The order management sends such a call again.
    pub const RETRIED: [Self; 5] = [
        Self::ResetBefore,
        Self::ResetAfterActing,
        Self::TimeoutBefore,
        Self::TimeoutAfterActing,
        Self::Unavailable,
    ];

    /// Returns the name of the fault, as in counts and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ResetBefore => "reset-before",
            Self::ResetAfterActing => "reset-after-acting",
            Self::TimeoutBefore => "504-before-acting",
            Self::TimeoutAfterActing => "504-after-acting",
            Self::Unavailable => "503",
            Self::DuplicateAnswer => "duplicate-answer",
            Self::SlowDrip => "slow-drip",
        }
    }

    /// Returns `true` if the warehouse performs a call with this fault.
    pub fn acts(self) -> bool {
        !matches!(self, Self::ResetBefore | Self::TimeoutBefore | Self::Unavailable)
    }

    /// Returns `true` if a call with this fault is performed and its caller receives the answer.
    pub fn is_answered(self) -> bool {
        matches!(self, Self::DuplicateAnswer | Self::SlowDrip)
    }
}

/// Behaviour of the warehouse for one kind of call.
#[derive(Debug, Clone, PartialEq)]
pub struct CallBehaviour {
    /// Time for which the warehouse delays its answer. An announcement is performed before the
    /// delay, and a delivery after it.
    pub delay: Delay,
    /// Faults, each with its share of the calls. The shares add up to at most 1.
    pub faults: Vec<(Fault, f64)>,
}

impl CallBehaviour {
    /// Returns a behaviour with this delay and without faults.
    pub fn after(delay: Delay) -> Self {
        Self {
            delay,
            faults: Vec::new(),
        }
    }

    fn with(delay: Delay, faults: &[(Fault, f64)]) -> Self {
        Self {
            delay,
            faults: faults.to_vec(),
        }
    }

    /// Returns the random fault of a call; `None` for a call without a fault.
    pub(super) fn draw_fault(&self, dice: &mut Dice) -> Option<Fault> {
        let drawn = dice.unit();
        let mut upto = 0.0;
        self.faults.iter().find_map(|(fault, share)| {
            upto += share;
            (drawn <= upto).then_some(*fault)
        })
    }
}

/// Fault with which the warehouse sends stock snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnapshotFault {
    /// Snapshots are sent without a fault.
    #[default]
    None,
    /// After each accepted snapshot, the one accepted before is sent again. The repeated snapshot
    /// is out of date if there was a delivery between the two snapshots.
    Late,
    /// Each accepted snapshot is sent once more.
    Twice,
    /// The connection of every second snapshot breaks after the first half of the body.
    Truncated,
}

/// Behaviour of the warehouse for all kinds of calls. The behaviour can be replaced during a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// Name of the behaviour, for events and reports.
    pub name: String,
    /// `true` if the warehouse is unreachable: open connections are reset at once, and new ones as
    /// soon as they are accepted. The warehouse still sends stock snapshots and writes statistics
    /// files.
    pub is_away: bool,
    /// Behaviour for announcements.
    pub announce: CallBehaviour,
    /// Behaviour for deliveries.
    pub deliver: CallBehaviour,
    /// Fault with which the warehouse sends stock snapshots.
    pub snapshots: SnapshotFault,
}

/// A named behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// The behaviour of the original system, from which this project grew: announcements take 2 to
    /// 4 s, deliveries take 0.2 s, and one delivery in 15 is answered 504.
    Original,
    /// The warehouse answers without delay and without a fault.
    Fast,
    /// The warehouse answers slowly, and answers one call in five with 503.
    Brownout,
    /// No call is answered, because all connections are reset.
    Blackout,
    /// The connection is reset in one call in five, and the call is not performed.
    ResetBefore,
    /// One call in five is performed, and its connection is reset instead of an answer.
    ResetAfterActing,
    /// One call in five is performed and answered 504.
    TimeoutAfterActing,
    /// One answer in five is sent twice.
    DuplicateAnswer,
    /// One answer in five is sent byte by byte.
    SlowDrip,
    /// After each accepted snapshot, the one accepted before is sent again. The repeated snapshot
    /// is out of date if there was a delivery between the two snapshots.
    SnapshotsLate,
    /// Each accepted snapshot is sent once more.
    SnapshotsTwice,
    /// The connection of every second snapshot breaks after the first half of the body.
    SnapshotsTruncated,
}

/// Share of the calls that get the fault of a profile, except in the profile `original`.
const FAULT_SHARE: f64 = 0.2;
/// Faults of the original system: one delivery in 15 is answered 504, and half of these are
/// performed.
const ORIGINAL_FAULTS: [(Fault, f64); 2] = [
    (Fault::TimeoutBefore, 1.0 / 30.0),
    (Fault::TimeoutAfterActing, 1.0 / 30.0),
];
const ORIGINAL_ANNOUNCE: Delay = Delay::between_ms(2_000, 4_000, 250);
const ORIGINAL_DELIVER: Delay = Delay::fixed(Duration::from_millis(200));

impl Profile {
    /// All profiles, for parsing and listing.
    pub const ALL: [Self; 12] = [
        Self::Original,
        Self::Fast,
        Self::Brownout,
        Self::Blackout,
        Self::ResetBefore,
        Self::ResetAfterActing,
        Self::TimeoutAfterActing,
        Self::DuplicateAnswer,
        Self::SlowDrip,
        Self::SnapshotsLate,
        Self::SnapshotsTwice,
        Self::SnapshotsTruncated,
    ];

    /// Returns the name of the profile, as in scenarios and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Fast => "fast",
            Self::Brownout => "brownout",
            Self::Blackout => "blackout",
            Self::ResetBefore => "reset-before",
            Self::ResetAfterActing => "reset-after-acting",
            Self::TimeoutAfterActing => "504-after-acting",
            Self::DuplicateAnswer => "duplicate-answer",
            Self::SlowDrip => "slow-drip",
            Self::SnapshotsLate => "snapshots-late",
            Self::SnapshotsTwice => "snapshots-twice",
            Self::SnapshotsTruncated => "snapshots-truncated",
        }
    }

    /// Returns the behaviour of the profile.
    pub fn behaviour(self) -> Behaviour {
        let quick = Delay::between_ms(20, 100, 20);
        let usual = Behaviour {
            name: self.name().to_owned(),
            is_away: false,
            announce: CallBehaviour::after(quick),
            deliver: CallBehaviour::after(quick),
            snapshots: SnapshotFault::None,
        };
        let one_fault = |fault| Behaviour {
            announce: CallBehaviour::with(quick, &[(fault, FAULT_SHARE)]),
            deliver: CallBehaviour::with(quick, &[(fault, FAULT_SHARE)]),
            ..usual.clone()
        };
        let snapshots = |snapshots| Behaviour {
            snapshots,
            ..usual.clone()
        };
        match self {
            Self::Original => Behaviour {
                announce: CallBehaviour::after(ORIGINAL_ANNOUNCE),
                deliver: CallBehaviour::with(ORIGINAL_DELIVER, &ORIGINAL_FAULTS),
                ..usual
            },
            Self::Fast => Behaviour {
                announce: CallBehaviour::after(Delay::NONE),
                deliver: CallBehaviour::after(Delay::NONE),
                ..usual
            },
            Self::Brownout => Behaviour {
                announce: CallBehaviour::with(
                    Delay::between_ms(3_000, 9_000, 500),
                    &[(Fault::Unavailable, FAULT_SHARE)],
                ),
                deliver: CallBehaviour::with(
                    Delay::between_ms(500, 3_000, 250),
                    &[(Fault::Unavailable, FAULT_SHARE)],
                ),
                ..usual
            },
            Self::Blackout => Behaviour {
                is_away: true,
                ..usual
            },
            Self::ResetBefore => one_fault(Fault::ResetBefore),
            Self::ResetAfterActing => one_fault(Fault::ResetAfterActing),
            Self::TimeoutAfterActing => one_fault(Fault::TimeoutAfterActing),
            Self::DuplicateAnswer => one_fault(Fault::DuplicateAnswer),
            Self::SlowDrip => one_fault(Fault::SlowDrip),
            Self::SnapshotsLate => snapshots(SnapshotFault::Late),
            Self::SnapshotsTwice => snapshots(SnapshotFault::Twice),
            Self::SnapshotsTruncated => snapshots(SnapshotFault::Truncated),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|profile| profile.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!(
                "{name:?} is no warehouse profile; the profiles are {}",
                names.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Purpose;

    #[test]
    fn every_profile_is_found_by_its_name() {
        for profile in Profile::ALL {
            assert_eq!(profile.name().parse(), Ok(profile));
            assert_eq!(profile.behaviour().name, profile.name());
        }
        let error = "broken".parse::<Profile>().unwrap_err();
        assert!(error.contains("brownout, blackout"), "{error}");
    }

    #[test]
    fn the_original_answers_one_delivery_in_fifteen_with_504_and_acts_on_half_of_them() {
        let behaviour = Profile::Original.behaviour();
        let mut dice = Dice::new(1, Purpose::Delivery);
        let drawn: Vec<Option<Fault>> = (0..30_000)
            .map(|_| behaviour.deliver.draw_fault(&mut dice))
            .collect();
        for fault in [Fault::TimeoutBefore, Fault::TimeoutAfterActing] {
            let count = drawn.iter().filter(|drawn| **drawn == Some(fault)).count();
            assert!((850..1_150).contains(&count), "{fault:?}: {count}");
        }
        let delays: std::collections::BTreeSet<u128> = (0..1_000)
            .map(|_| behaviour.announce.delay.draw(&mut dice).as_millis())
            .collect();
        assert_eq!(
            delays.into_iter().collect::<Vec<_>>(),
            (8..=16).map(|n| n * 250).collect::<Vec<_>>()
        );
    }
}
