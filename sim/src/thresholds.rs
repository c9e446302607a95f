//! Conditions under which a run fails, such as `p99(order) > 5ms`.
//!
//! ```text
//! condition = metric operator limit
//! metric    = name | name "(" argument ")"
//! operator  = ">" | ">=" | "<" | "<=" | "==" | "!="
//! limit     = number | number "us" | number "ms" | number "s" | number "%"
//! ```
//!
//! | metric | argument | limit |
//! | --- | --- | --- |
//! | `p50` `p90` `p95` `p99` `p999` `max` `mean` | a route or `all` | time |
//! | `p99` `max` | `lag` | time |
//! | `errors` | a route or `all` | number or share |
//! | `requests` | a route or `all` | number |
//! | `orders` | a state of an order | number or share |
//! | `rate` | | requests per second |
//! | `late` `dropped` | | number or share |
//! | `findings` `waiting` `dead` | | number |
//!
//! The routes are `stats`, `order`, `payment` and `cancel`. If the text of a condition is invalid,
//! the error contains the column of the fault.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::audit::AuditReport;
use crate::front::FrontReport;
use crate::latency::LatencyHistogram;
use crate::telemetry::Route;
use crate::wire::OrderState;

/// A condition under which a run fails.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    text: String,
    metric: Metric,
    operator: Operator,
    limit: f64,
    unit: Unit,
}

/// The routes that a metric covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    One(Route),
    All,
}

impl Scope {
    fn routes(self) -> impl Iterator<Item = Route> {
        let is_in = move |route: &Route| matches!(self, Self::All) || self == Self::One(*route);
        Route::ALL.into_iter().filter(is_in)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statistic {
    /// Quantile in thousandths: 999 is the 99.9th percentile.
    Quantile(u16),
    Max,
    Mean,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    Latency(Statistic, Scope),
    Lag(Statistic),
    Errors(Scope),
    Requests(Scope),
    Orders(OrderState),
    Rate,
    Late,
    Dropped,
    Findings,
    Waiting,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Above,
    AtLeast,
    Below,
    AtMost,
    Equal,
    NotEqual,
}

impl Operator {
    const ALL: [(&'static str, Self); 6] = [
        (">=", Self::AtLeast),
        ("<=", Self::AtMost),
        ("==", Self::Equal),
        ("!=", Self::NotEqual),
        (">", Self::Above),
        ("<", Self::Below),
    ];

    fn holds(self, measured: f64, limit: f64) -> bool {
        match self {
            Self::Above => measured > limit,
            Self::AtLeast => measured >= limit,
            Self::Below => measured < limit,
            Self::AtMost => measured <= limit,
            Self::Equal => measured == limit,
            Self::NotEqual => measured != limit,
        }
    }
}

/// Unit of a limit and of the value that is compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Number,
    Microseconds,
    Percent,
}

/// Error for a condition that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}, column {column}: {problem}")]
pub struct ThresholdError {
    text: String,
    /// Column in `text` at which the fault was found. The first column is 1.
    column: usize,
    problem: String,
}

/// Result of one condition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ThresholdResult {
    /// The text of the condition.
    pub condition: String,
    /// The measured value with its unit; `None` if the metric is one of the audit and there was no
    /// audit.
    pub measured: Option<String>,
    /// `true` if the condition holds or cannot be checked. In both cases the run fails. A condition
    /// on latencies cannot be checked if the lag of the run was too large.
    pub is_missed: bool,
}

/// The results of a run, with which conditions are compared.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    /// Results of the shop front.
    pub front: &'a FrontReport,
    /// Report of the audit; `None` if there was no audit.
    pub audit: Option<&'a AuditReport>,
}

impl Measured<'_> {
    fn latency(&self, statistic: Statistic, scope: Scope) -> f64 {
        let mut all = LatencyHistogram::default();
        for route in scope.routes() {
            all.add(&self.front.histograms[route.index()]);
        }
        match statistic {
            Statistic::Quantile(thousandths) => all.quantile_us(f64::from(thousandths) / 1_000.0) as f64,
            Statistic::Max => all.summary().max_us as f64,
            Statistic::Mean => all.mean_us(),
        }
    }

    fn requests(&self, scope: Scope) -> f64 {
        scope
            .routes()
            .map(|route| self.front.route(route).requests as f64)
            .sum()
    }

    /// Returns the value of a metric, and the total that is 100 % for a limit in percent (1 for a
    /// metric without shares). Returns `None` if the metric needs an audit and there is none.
    fn value(&self, metric: Metric) -> Option<(f64, f64)> {
        let front = self.front;
        let audit = |count: fn(&AuditReport) -> u64| self.audit.map(|audit| (count(audit) as f64, 1.0));
        let sent = front.requests as f64;
        Some(match metric {
            Metric::Latency(statistic, scope) => (self.latency(statistic, scope), 1.0),
            Metric::Lag(Statistic::Max) => (front.lag.max_us as f64, 1.0),
            Metric::Lag(_) => (front.lag.p99_us as f64, 1.0),
            Metric::Errors(scope) => {
                let failed = |route| {
                    let route = front.route(route);
                    (route.requests - route.ok) as f64
                };
                (scope.routes().map(failed).sum(), self.requests(scope))
            }
            Metric::Requests(scope) => (self.requests(scope), 1.0),
            Metric::Orders(state) => {
                let orders = &self.audit?.orders_of_run;
                let count = orders.get(state.name()).copied().unwrap_or_default();
                (count as f64, orders.values().sum::<u64>() as f64)
            }
            Metric::Rate => (front.rate(), 1.0),
            Metric::Late => (front.late as f64, sent),
            Metric::Dropped => (front.dropped as f64, sent + front.dropped as f64),
            Metric::Findings => audit(|audit| audit.findings.len() as u64)?,
            Metric::Waiting => audit(|audit| audit.outbox_waiting)?,
            Metric::Dead => audit(|audit| audit.outbox_dead)?,
        })
    }
}

impl Threshold {
    /// Compares the condition with the results of a run.
    pub fn evaluate(&self, measured: Measured<'_>) -> ThresholdResult {
        let value = measured.value(self.metric).map(|(value, total)| match self.unit {
            Unit::Percent => 100.0 * value / total.max(1.0),
            Unit::Number | Unit::Microseconds => value,
        });
        // If the lag of the shop front was too large, its latencies are not those of the server.
        let is_unsure = matches!(self.metric, Metric::Latency(..)) && !measured.front.is_valid();
        ThresholdResult {
            condition: self.text.clone(),
            measured: value.map(|value| match is_unsure {
                true => format!("{} in an invalid run", self.unit.format(value)),
                false => self.unit.format(value),
            }),
            is_missed: is_unsure || value.is_none_or(|value| self.operator.holds(value, self.limit)),
        }
    }
}

impl Unit {
    fn format(self, value: f64) -> String {
        match self {
            Self::Number if value.fract() == 0.0 => format!("{value:.0}"),
            Self::Number => format!("{value:.2}"),
            Self::Percent => format!("{value:.2}%"),
            Self::Microseconds if value < 1_000.0 => format!("{value:.0}us"),
            Self::Microseconds if value < 1_000_000.0 => format!("{:.2}ms", value / 1_000.0),
            Self::Microseconds => format!("{:.2}s", value / 1_000_000.0),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut parser = Parser { text, at: 0 };
        let metric = parser.metric()?;
        let operator = parser.operator()?;
        let (limit, unit) = parser.limit(metric)?;
        parser.skip_spaces();
        if parser.at < text.len() {
            return Err(parser.error(parser.at, "unexpected text behind the limit"));
        }
        Ok(Self {
            text: text.trim().to_owned(),
            metric,
            operator,
            limit,
            unit,
        })
    }
}

/// Names of the metrics, for error messages.
const METRICS: &str = "p50, p90, p95, p99, p999, max, mean, errors, requests, orders, rate, late, dropped, \
                       findings, waiting, dead";

/// Parser of a condition. `at` is the number of bytes parsed so far.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, at: usize, problem: impl Into<String>) -> ThresholdError {
        let before = self.text.get(..at).unwrap_or(self.text);
        ThresholdError {
            text: self.text.to_owned(),
            column: before.chars().count() + 1,
            problem: problem.into(),
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Skips spaces, then parses all following characters for which `is_part` is true. Returns the
    /// byte position and the text of these characters.
    fn take(&mut self, is_part: impl Fn(char) -> bool) -> (usize, &'a str) {
        self.skip_spaces();
        let (from, rest) = (self.at, self.rest());
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        self.at += end;
        (from, &rest[..end])
    }

    fn take_word(&mut self) -> (usize, &'a str) {
        self.take(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        self.skip_spaces();
        let is_next = self.rest().starts_with(symbol);
        if is_next {
            self.at += symbol.len();
        }
        is_next
    }

    fn metric(&mut self) -> Result<Metric, ThresholdError> {
        let (from, name) = self.take_word();
        let simple = match name {
            "rate" => Some(Metric::Rate),
            "late" => Some(Metric::Late),
            "dropped" => Some(Metric::Dropped),
            "findings" => Some(Metric::Findings),
            "waiting" => Some(Metric::Waiting),
            "dead" => Some(Metric::Dead),
            _ => None,
        };
        if let Some(metric) = simple {
            return Ok(metric);
        }
        let statistic = match name {
            "p50" => Some(Statistic::Quantile(500)),
            "p90" => Some(Statistic::Quantile(900)),
            "p95" => Some(Statistic::Quantile(950)),
            "p99" => Some(Statistic::Quantile(990)),
            "p999" => Some(Statistic::Quantile(999)),
            "max" => Some(Statistic::Max),
            "mean" => Some(Statistic::Mean),
            "errors" | "requests" | "orders" => None,
            "" => return Err(self.error(from, format!("expected a metric: {METRICS}"))),
            _ => return Err(self.error(from, format!("unknown metric {name}; the metrics are {METRICS}"))),
        };
        if !self.take_symbol("(") {
            let example = if name == "orders" { "rejected" } else { "order" };
            return Err(self.error(self.at, format!("expected an argument, as in {name}({example})")));
        }
        let (from, argument) = self.take_word();
        let metric = self.with_argument(name, statistic, from, argument)?;
        if !self.take_symbol(")") {
            return Err(self.error(self.at, "expected )"));
        }
        Ok(metric)
    }

    fn with_argument(
        &self,
        name: &str,
        statistic: Option<Statistic>,
        from: usize,
        argument: &str,
    ) -> Result<Metric, ThresholdError> {
        if name == "orders" {
            let state = OrderState::ALL.into_iter().find(|state| state.name() == argument);
            let names: Vec<&str> = OrderState::ALL.iter().map(|state| state.name()).collect();
            return state.map(Metric::Orders).ok_or_else(|| {
                self.error(
                    from,
                    format!("unknown state {argument:?}; the states are {}", names.join(", ")),
                )
            });
        }
        if argument == "lag" {
            return match statistic {
                Some(statistic @ (Statistic::Quantile(990) | Statistic::Max)) => Ok(Metric::Lag(statistic)),
                _ => Err(self.error(from, "of the lag there are p99 and max")),
            };
        }
        let route = Route::ALL.into_iter().find(|route| route.name() == argument);
        let scope = match (argument, route) {
            ("all", _) => Scope::All,
            (_, Some(route)) => Scope::One(route),
            _ => {
                let problem =
                    format!("unknown route {argument:?}; the routes are stats, order, payment, cancel, all");
                return Err(self.error(from, problem));
            }
        };
        Ok(match (statistic, name) {
            (Some(statistic), _) => Metric::Latency(statistic, scope),
            (None, "errors") => Metric::Errors(scope),
            (None, _) => Metric::Requests(scope),
        })
    }

    fn operator(&mut self) -> Result<Operator, ThresholdError> {
        self.skip_spaces();
        let found = Operator::ALL
            .into_iter()
            .find(|(symbol, _)| self.take_symbol(symbol));
        found
            .map(|(_, operator)| operator)
            .ok_or_else(|| self.error(self.at, "expected one of > >= < <= == !="))
    }

    fn limit(&mut self, metric: Metric) -> Result<(f64, Unit), ThresholdError> {
        let (from, digits) = self.take(|c| c.is_ascii_digit() || c == '.');
        let number: f64 = digits
            .parse()
            .map_err(|_| self.error(from, "expected a number, as in 5ms, 10 or 1%"))?;
        let (unit_from, unit) = self.take(|c| c.is_ascii_alphabetic() || c == '%');
        let (limit, unit) = match unit {
            "" => (number, Unit::Number),
            "%" => (number, Unit::Percent),
            "us" => (number, Unit::Microseconds),
            "ms" => (number * 1_000.0, Unit::Microseconds),
            "s" => (number * 1_000_000.0, Unit::Microseconds),
            _ => {
                return Err(self.error(
                    unit_from,
                    format!("unknown unit {unit}; the units are us, ms, s, %"),
                ));
            }
        };
        let is_time = matches!(metric, Metric::Latency(..) | Metric::Lag(_));
        let has_share = matches!(
            metric,
            Metric::Errors(_) | Metric::Orders(_) | Metric::Late | Metric::Dropped
        );
        match unit {
            Unit::Microseconds if !is_time => {
                Err(self.error(unit_from, "the metric is a number, not a time"))
            }
            Unit::Percent if !has_share => Err(self.error(unit_from, "the metric has no share")),
            Unit::Number if is_time => Err(self.error(self.at, "expected a unit: us, ms or s")),
            _ => Ok((limit, unit)),
        }
    }
}

#[cfg(test)]
#[path = "thresholds_tests.rs"]
mod tests;
