//! The metrics of one scrape by Prometheus, and their text in its exposition format (0.0.4).
//!
//! Values are read at each scrape, most of them from the node's own counters. `prometheus-client`
//! only renders the values, so counting a request acquires no lock of that library.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::{self, CONTENT_TYPE};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Content type of a response with the metrics as text.
pub(crate) const TEXT_TYPE: &str = CONTENT_TYPE;

/// Labels of one sample, as pairs of name and value.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The empty label set in the value of an info metric. The information is in the labels of the
/// sample, so the value has no labels of its own.
const NO_LABELS: [(&str, &str); 0] = [];

/// The value of one sample.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Counter(f64),
    Gauge(f64),
    /// An info metric: the value is 1, and the labels are the information.
    Info,
    /// A histogram: the sum of all values, and the number of values in each bucket with the
    /// bucket's upper bound. The last bound is infinite.
    Histogram(f64, Vec<(f64, u64)>),
}

/// Returns a number without a fraction, from 0 to below 2^53, as an integer, which is written
/// without `.0`. `None` for every other number.
fn whole(value: f64) -> Option<u64> {
    // From 2^53 on, an `f64` represents neither fractions nor every integer.
    let is_whole = value.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&value);
    is_whole.then_some(value as u64)
}

impl Value {
    fn metric_type(&self) -> MetricType {
        match self {
            Value::Counter(_) => MetricType::Counter,
            Value::Gauge(_) => MetricType::Gauge,
            Value::Info => MetricType::Info,
            Value::Histogram(..) => MetricType::Histogram,
        }
    }

    fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Value::Counter(value) => match whole(*value) {
                Some(whole) => encoder.encode_counter::<NoLabelSet, u64, u64>(&whole, None),
                None => encoder.encode_counter::<NoLabelSet, f64, f64>(value, None),
            },
            Value::Gauge(value) => match whole(*value) {
                Some(whole) => encoder.encode_gauge(&whole),
                None => encoder.encode_gauge(value),
            },
            Value::Info => encoder.encode_info(&NO_LABELS),
            Value::Histogram(sum, buckets) => {
                let count = buckets.iter().map(|(_, count)| count).sum();
                encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
            }
        }
    }
}

/// All samples of one metric.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    /// The name of the metric. The name of a counter ends with `_total`, and that of an info metric
    /// with `_info`.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) samples: Vec<(Labels, Value)>,
}

impl Family {
    /// Returns a family with one sample without labels.
    pub(crate) fn single(name: &'static str, help: &'static str, value: Value) -> Family {
        Family {
            name,
            help,
            samples: vec![(Labels::new(), value)],
        }
    }
}

/// The metric families of one scrape.
#[derive(Debug)]
struct Scrape(Vec<Family>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, samples } in &self.0 {
            let Some((_, first)) = samples.first() else {
                continue;
            };
            // The encoder appends the suffix of the type, so the suffix is removed here.
            let ending = match first {
                Value::Counter(_) => "_total",
                Value::Info => "_info",
                Value::Gauge(_) | Value::Histogram(..) => "",
            };
            let stem = name.strip_suffix(ending).unwrap_or(name);
            let mut metric = encoder.encode_descriptor(stem, help, None, first.metric_type())?;
            for (labels, value) in samples {
                if labels.is_empty() {
                    value.encode(&mut metric)?;
                } else {
                    value.encode(&mut metric.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Renders families as text in the exposition format.
pub(crate) fn render(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(families)));
    let mut text = String::with_capacity(16 * 1_024);
    // Writing to a String cannot fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_is_written_by_the_conventions() {
        let labels = |value: &str| vec![("volume", value.to_owned())];
        let families = vec![
            Family {
                name: "t_requests_total",
                help: "Requests.",
                samples: vec![
                    (labels("a"), Value::Counter(3.0)),
                    (labels("b\"\\"), Value::Counter(0.5)),
                ],
            },
            Family::single("t_epoch", "Epoch.", Value::Gauge(7.0)),
            Family {
                name: "t_build_info",
                help: "Build.",
                samples: vec![(labels("x"), Value::Info)],
            },
            Family {
                name: "t_empty",
                help: "Nothing.",
                samples: Vec::new(),
            },
            Family::single(
                "t_duration_seconds",
                "Time.",
                Value::Histogram(1.5, vec![(0.25, 2), (f64::INFINITY, 1)]),
            ),
        ];
        let expected = "\
# HELP t_requests_total Requests.
# TYPE t_requests_total counter
t_requests_total{volume=\"a\"} 3
t_requests_total{volume=\"b\\\"\\\\\"} 0.5
# HELP t_epoch Epoch.
# TYPE t_epoch gauge
t_epoch 7
# HELP t_build_info Build.
# TYPE t_build_info gauge
t_build_info{volume=\"x\"} 1
# HELP t_duration_seconds Time.
# TYPE t_duration_seconds histogram
t_duration_seconds_bucket{le=\"0.25\"} 2
t_duration_seconds_bucket{le=\"+Inf\"} 3
t_duration_seconds_sum 1.5
t_duration_seconds_count 3
";
        assert_eq!(render(families), expected);
    }
}
