//! Rate of requests over time: phases with a constant or a linearly changing rate.
//!
//! With fixed arrivals, arrival `n` of a phase (from 0) is at the time when the integral of the
//! rate reaches `n`. With a Poisson process, the integral must reach the sum of `n + 1` exponential
//! variables with mean 1 (inversion; Cinlar 1975, section 7.3). Times of fixed arrivals are
//! computed from `n` and not added up, so they do not drift.

use std::time::Duration;

use crate::seed::Dice;

/// Distribution of the times between requests at a constant rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrivals {
    /// All times between requests are equal.
    #[default]
    Fixed,
    /// The times between requests are exponentially distributed, as with independent customers.
    Poisson,
}

/// A phase of a run, in which the rate is constant or changes linearly.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadPhase {
    /// Name of the phase, for events and reports.
    pub name: String,
    /// Length of the phase.
    pub duration: Duration,
    /// Requests per second at the beginning of the phase, without payments and cancellations.
    pub rate: f64,
    /// Requests per second at the end of the phase. The rate changes linearly from `rate` to this
    /// value.
    pub rate_end: f64,
    /// Distribution of the times between requests.
    pub arrivals: Arrivals,
}

impl LoadPhase {
    /// Returns a phase with a constant rate.
    pub fn steady(name: &str, rate: f64, duration: Duration, arrivals: Arrivals) -> Self {
        Self {
            name: name.to_owned(),
            duration,
            rate,
            rate_end: rate,
            arrivals,
        }
    }

    /// Returns the time at which the integral of the rate reaches `count`, in seconds since the
    /// beginning of the phase. The phase is treated as if it had no end. Returns 0 if `count` is 0.
    /// Otherwise returns `None` if the rate falls to 0 before this time, or is always 0.
    fn reached_s(&self, count: f64) -> Option<f64> {
        if count <= 0.0 {
            return Some(0.0);
        }
        let growth = (self.rate_end - self.rate) / self.duration.as_secs_f64();
        let under_root = self.rate * self.rate + 2.0 * growth * count;
        if under_root < 0.0 {
            return None;
        }
        // This form of the quadratic formula does not subtract nearly equal numbers, which would
        // lose digits. The form is exact for a constant rate.
        let at_s = 2.0 * count / (self.rate + under_root.sqrt());
        at_s.is_finite().then_some(at_s)
    }
}

/// Iterator over the intended starts of phases that follow each other.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    phases: Vec<LoadPhase>,
    dice: Dice,
    phase: usize,
    begun: Duration,
    /// Integral of the rate from the beginning of the phase to the next arrival.
    reached: f64,
}

impl Moments {
    pub(super) fn new(phases: &[LoadPhase], dice: Dice) -> Self {
        let mut moments = Self {
            phases: phases.to_vec(),
            dice,
            phase: 0,
            begun: Duration::ZERO,
            reached: 0.0,
        };
        moments.enter_phase();
        moments
    }

    fn enter_phase(&mut self) {
        self.reached = 0.0;
        if self.phases.get(self.phase).is_some_and(is_poisson) {
            self.reached = -self.dice.unit().ln();
        }
    }
}

fn is_poisson(phase: &LoadPhase) -> bool {
    phase.arrivals == Arrivals::Poisson
}

impl Iterator for Moments {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        loop {
            let phase = self.phases.get(self.phase)?;
            let after = phase.reached_s(self.reached).map(Duration::from_secs_f64);
            if let Some(after) = after.filter(|after| *after < phase.duration) {
                let at = self.begun + after;
                self.reached += match phase.arrivals {
                    Arrivals::Fixed => 1.0,
                    Arrivals::Poisson => -self.dice.unit().ln(),
                };
                return Some(at);
            }
            self.begun += phase.duration;
            self.phase += 1;
            self.enter_phase();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Purpose;

    fn moments(phases: &[LoadPhase]) -> Vec<f64> {
        Moments::new(phases, Dice::new(1, Purpose::Arrivals))
            .map(|at| at.as_secs_f64())
            .collect()
    }

    fn phase(rate: f64, rate_end: f64, seconds: u64, arrivals: Arrivals) -> LoadPhase {
        LoadPhase {
            rate_end,
            ..LoadPhase::steady("p", rate, Duration::from_secs(seconds), arrivals)
        }
    }

    fn between(moments: &[f64], from: f64, to: f64) -> usize {
        moments.iter().filter(|at| (from..to).contains(*at)).count()
    }

    #[test]
    fn fixed_arrivals_of_a_constant_rate_have_equal_distances() {
        let found = moments(&[phase(50.0, 50.0, 4, Arrivals::Fixed)]);
        assert_eq!(found.len(), 200);
        for (place, at) in found.iter().enumerate() {
            assert!((at - place as f64 / 50.0).abs() < 1e-9, "{place}: {at}");
        }
    }

    #[test]
    fn a_ramp_has_the_mean_rate_of_each_of_its_seconds() {
        for arrivals in [Arrivals::Fixed, Arrivals::Poisson] {
            for (from, to) in [(0.0, 1000.0), (1000.0, 0.0), (200.0, 800.0)] {
                let found = moments(&[phase(from, to, 10, arrivals)]);
                for second in 0..10 {
                    let mean = from + (to - from) * (f64::from(second) + 0.5) / 10.0;
                    let count = between(&found, second.into(), f64::from(second) + 1.0) as f64;
                    let slack = if arrivals == Arrivals::Fixed {
                        1.0
                    } else {
                        5.0 * mean.sqrt()
                    };
                    assert!(
                        (count - mean).abs() <= slack,
                        "{from} to {to}, s {second}: {count}, {mean}"
                    );
                }
            }
        }
    }

    #[test]
    fn phases_follow_each_other_without_a_gap() {
        let found = moments(&[
            phase(100.0, 100.0, 2, Arrivals::Fixed),
            phase(1000.0, 1000.0, 1, Arrivals::Fixed),
            phase(0.0, 0.0, 1, Arrivals::Fixed),
            phase(100.0, 100.0, 1, Arrivals::Poisson),
        ]);
        assert!(found.is_sorted());
        let counts: Vec<usize> = (0..3)
            .map(|n| between(&found, f64::from(n), f64::from(n) + 1.0))
            .collect();
        assert_eq!(counts, [100, 100, 1000]);
        assert!(
            between(&found, 3.0, 4.0) <= 1,
            "a rate of 0 has its first arrival only"
        );
        assert!((50..150).contains(&between(&found, 4.0, 5.0)));
    }
}
