//! Ranges, ticks and labels of the axes of charts.
//!
//! Ticks of a logarithmic axis are at 1, 2 and 5 times a power of ten, or only at powers of ten if
//! the range exceeds a factor of 1,000. The distance between two ticks of a linear axis is 1, 2 or
//! 5 times a power of ten.

/// Smallest value on a logarithmic axis, milliseconds: one microsecond.
const LOG_MIN: f64 = 0.001;
/// Approximate number of ticks on a linear axis.
const TICKS: f64 = 5.0;
/// Factors that give, multiplied by a power of ten, the ticks of a logarithmic axis and the
/// distances between the ticks of a linear axis.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];

/// Range and ticks of an axis, in coordinates of the axis: values, or decimal logarithms of values
/// for [`Scale::Logarithmic`].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
}

/// Scale of a vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// A linear scale that begins at 0.
    Linear,
    /// A logarithmic scale that begins at 0.001 or more. A smaller value, such as 0, is drawn at
    /// the lower end of the axis.
    Logarithmic,
}

impl Scale {
    /// Returns the coordinate of a value on the axis: the value itself, or its decimal logarithm.
    pub(super) fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.max(LOG_MIN).log10(),
        }
    }

    /// Returns the label at a coordinate of the axis.
    pub(super) fn label(self, place: f64) -> String {
        match self {
            Self::Linear => value(place),
            Self::Logarithmic => value(10_f64.powf(place)),
        }
    }

    /// Returns an axis with a range that includes all values above 0; on a logarithmic axis, above
    /// 0.001.
    pub(super) fn axis(self, values: impl Iterator<Item = f64>) -> Axis {
        let values: Vec<f64> = values.collect();
        let max = values.iter().copied().fold(0.0, f64::max);
        match self {
            Self::Linear => linear(max),
            Self::Logarithmic => {
                let above_zero = values.iter().copied().filter(|value| *value > 0.0);
                logarithmic(above_zero.fold(f64::INFINITY, f64::min), max)
            }
        }
    }
}

fn linear(max: f64) -> Axis {
    let step = nice(if max > 0.0 { max / TICKS } else { 0.2 });
    let count = ((max / step).ceil() as usize).max(1);
    let ticks: Vec<f64> = (0..=count).map(|tick| tick as f64 * step).collect();
    Axis {
        low: 0.0,
        high: count as f64 * step,
        ticks,
    }
}

fn logarithmic(min: f64, max: f64) -> Axis {
    let min = if min.is_finite() {
        min.max(LOG_MIN)
    } else {
        LOG_MIN
    };
    let max = max.max(min * 2.0);
    let (first, last) = (min.log10().floor() as i32, max.log10().ceil() as i32);
    let all: Vec<f64> = (first..=last)
        .flat_map(|power| STEPS.map(|step| step * 10_f64.powi(power)))
        .collect();
    // The factors 1.000001 and 0.999999 tolerate rounding errors. Without them, an axis could get
    // one more tick than needed if `min` or `max` equals a tick.
    let low = all
        .iter()
        .copied()
        .filter(|tick| *tick <= min * 1.000_001)
        .fold(all[0], f64::max);
    let high = all
        .iter()
        .copied()
        .filter(|tick| *tick >= max * 0.999_999)
        .fold(f64::INFINITY, f64::min);
    let inside = all.into_iter().filter(|tick| (low..=high).contains(tick));
    let decades = (high / low).log10();
    let is_power = |tick: &f64| (tick.log10() - tick.log10().round()).abs() < 1e-9;
    let ticks: Vec<f64> = match decades > 3.0 {
        true => inside.filter(is_power).map(f64::log10).collect(),
        false => inside.map(f64::log10).collect(),
    };
    Axis {
        low: low.log10(),
        high: high.log10(),
        ticks,
    }
}

/// Returns the smallest step (1, 2 or 5 times a power of ten) that is not below `least`.
fn nice(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let step = STEPS.into_iter().find(|step| step * power >= least * 0.999_999);
    step.unwrap_or(10.0) * power
}

/// Returns an axis of seconds from 0 to the end of the run.
pub(super) fn seconds(end: f64) -> Axis {
    let step = nice(end / 8.0).max(1.0);
    let count = (end / step).floor() as usize;
    Axis {
        low: 0.0,
        high: end,
        ticks: (0..=count).map(|tick| tick as f64 * step).collect(),
    }
}

/// Returns an axis of percentiles from 0 to `end`. The unit is the number of nines: 1 is 90 %, 2 is
/// 99 %.
pub(super) fn percentiles(end: f64) -> Axis {
    let mut ticks = vec![0.0, 0.5_f64.log10().abs()];
    ticks.extend((1..=end.floor() as i32).map(f64::from));
    Axis {
        low: 0.0,
        high: end,
        ticks,
    }
}

/// Returns the percentile with this number of nines as text: `99.9 %` for 3.
pub(super) fn percentile(nines: f64) -> String {
    let percent = 100.0 - 100.0 * 10_f64.powf(-nines);
    let digits = (nines.round() as usize).saturating_sub(2);
    format!("{percent:.digits$} %")
}

/// Returns a number as text with about three significant digits.
pub(super) fn value(value: f64) -> String {
    let text = match value {
        _ if value >= 999_500.0 => return format!("{}M", trimmed(format!("{:.2}", value / 1e6))),
        _ if value >= 9_999.5 => return format!("{}k", trimmed(format!("{:.1}", value / 1e3))),
        _ if value >= 99.95 => format!("{value:.0}"),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ if value >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    trimmed(text)
}

/// Removes trailing zeros after a decimal point, and the point if no digit is left after it.
fn trimmed(text: String) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_at_most() {
        for (number, text) in [
            (0.0, "0"),
            (0.0123, "0.012"),
            (0.25, "0.25"),
            (1.999, "2"),
            (12.34, "12.3"),
            (99.96, "100"),
            (1_234.0, "1234"),
            (25_000.0, "25k"),
            (12_345.0, "12.3k"),
            (2_500_000.0, "2.5M"),
        ] {
            assert_eq!(value(number), text);
        }
    }

    #[test]
    fn an_axis_has_room_for_its_values_and_few_ticks() {
        for max in [0.0, 0.3, 1.0, 7.0, 99.0, 101.0, 2_345.0, 1e6] {
            let axis = Scale::Linear.axis([max].into_iter());
            assert!(axis.high >= max && axis.ticks.len() <= 7, "{max}: {axis:?}");
        }
        for (min, max) in [(0.25, 11.0), (0.001, 0.002), (0.5, 30_000.0), (1.0, 1.0)] {
            let axis = Scale::Logarithmic.axis([min, max].into_iter());
            assert!(axis.low <= min.log10() + 1e-6 && axis.high >= max.log10() - 1e-6);
            assert!((2..=10).contains(&axis.ticks.len()), "{min} to {max}: {axis:?}");
        }
        assert_eq!(Scale::Logarithmic.axis(std::iter::empty()).low, LOG_MIN.log10());
        assert_eq!(seconds(63.0).ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    }

    #[test]
    fn percentiles_are_labelled_by_their_usual_names() {
        for (nines, name) in [
            (0.0, "0 %"),
            (std::f64::consts::LOG10_2, "50 %"),
            (1.0, "90 %"),
            (2.0, "99 %"),
            (3.0, "99.9 %"),
        ] {
            assert_eq!(percentile(nines), name);
        }
    }
}
