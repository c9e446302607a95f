//! The charts in the report of a run.

use super::axis::Scale;
use super::chart::{Across, Chart, Colour, Line};
use super::html::{bars, chart_panel, panel};
use super::{BLUE, GREEN, GREY, Material, ORANGE, PINK, RED, SKY};
use crate::Result;
use crate::latency::Bucket;
use crate::telemetry::{Route, RouteSecond, SecondPoint};
use crate::wire::OrderState;

impl Material {
    fn line(&self, name: &str, colour: Colour, value: impl Fn(&SecondPoint) -> f64) -> Line {
        let points = self.points.iter();
        Line::new(
            name,
            colour,
            points.map(|point| (point.second as f64, value(point))).collect(),
        )
    }

    fn draw(&self, title: &str, unit: &str, scale: Scale, lines: Vec<Line>) -> Result<String> {
        let chart = Chart {
            title,
            unit,
            across: Across::Seconds,
            scale,
            lines,
            timeline: Some(&self.timeline),
        };
        chart.figure()
    }

    pub(super) fn throughput(&self) -> Result<String> {
        let lines = vec![
            self.line("sent", SKY, |point| point.sent as f64).filled(),
            self.line("answered well", BLUE, |point| point.ok as f64),
            self.line("failed", RED, |point| point.failed as f64).filled(),
        ];
        let figure = self.draw("Requests per second", "requests/s", Scale::Linear, lines)?;
        Ok(chart_panel(&figure))
    }

    pub(super) fn latencies(&self, route: Route) -> Result<String> {
        if self
            .points
            .iter()
            .all(|point| point.routes[route.index()].requests == 0)
        {
            return Ok(String::new());
        }
        let lines = vec![
            latency_line("max", GREY, &self.points, route, |second| second.max_us),
            latency_line("p99", ORANGE, &self.points, route, |second| second.p99_us),
            latency_line("p50", BLUE, &self.points, route, |second| second.p50_us),
        ];
        let title = format!("Latency of {}", route.template());
        Ok(chart_panel(&self.draw(
            &title,
            "ms",
            Scale::Logarithmic,
            lines,
        )?))
    }

    pub(super) fn orders(&self) -> Result<String> {
        let count = |state: OrderState| {
            move |point: &SecondPoint| point.orders.get(state.name()).copied().unwrap_or_default() as f64
        };
        let shown = [
            (OrderState::Reserved, SKY),
            (OrderState::Announced, BLUE),
            (OrderState::Paid, ORANGE),
            (OrderState::Delivered, GREEN),
            (OrderState::Rejected, RED),
            (OrderState::Cancelled, PINK),
        ];
        let lines = shown.map(|(state, colour)| self.line(state.name(), colour, count(state)));
        // The line of a state is left out if its value is 0 in every second. The line `delivered`
        // is always drawn, so that the chart always has a line.
        let has_orders = |line: &Line| line.name == "delivered" || line.points.iter().any(|(_, y)| *y > 0.0);
        let lines = lines.into_iter().filter(has_orders).collect();
        Ok(chart_panel(&self.draw(
            "Orders of this run by state",
            "orders",
            Scale::Linear,
            lines,
        )?))
    }

    pub(super) fn funnel(&self) -> String {
        let Some(orders) = self.summary["orders"].as_object() else {
            return String::new();
        };
        let at_end = OrderState::ALL.iter().filter_map(|state| {
            let count = orders.get(state.name())?.as_u64()?;
            (count > 0).then(|| (state.name().to_owned(), count))
        });
        panel("Orders at the end", &bars(&at_end.collect::<Vec<_>>(), "order"))
    }

    pub(super) fn outbox(&self) -> Result<String> {
        let lines = vec![
            self.line("waiting", BLUE, |point| {
                point.outbox.saturating_sub(point.outbox_dead) as f64
            })
            .filled(),
            self.line("dead letters", RED, |point| point.outbox_dead as f64),
        ];
        let figure = self.draw("Messages for the warehouse", "messages", Scale::Linear, lines)?;
        Ok(chart_panel(&figure))
    }

    pub(super) fn warehouse_faults(&self) -> String {
        let faults = self.summary["warehouse"]["faults"].as_object();
        let mut faults: Vec<(String, u64)> = faults
            .into_iter()
            .flatten()
            .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or_default()))
            .filter(|(_, count)| *count > 0)
            .collect();
        faults.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        panel("Faults of the warehouse, made on purpose", &bars(&faults, "call"))
    }

    pub(super) fn schedule(&self) -> Result<String> {
        let lines = vec![
            self.line("p99 of the lag", ORANGE, |point| {
                point.lag_p99_us as f64 / 1_000.0
            })
            .filled(),
        ];
        let title = "Lag of the load generator behind its schedule";
        Ok(chart_panel(&self.draw(title, "ms", Scale::Logarithmic, lines)?))
    }

    pub(super) fn ring(&self) -> String {
        let nodes = self.summary["nodes"].as_array().into_iter().flatten();
        let nodes: Vec<(String, u64)> = nodes
            .map(|node| {
                let name = node["name"].as_str().unwrap_or_default().to_owned();
                (name, node["slots"].as_u64().unwrap_or_default())
            })
            .collect();
        panel("Ring at the end", &bars(&nodes, "slot"))
    }
}

/// Returns a line with a latency of a route over time, in milliseconds.
pub(super) fn latency_line(
    name: &str,
    colour: Colour,
    points: &[SecondPoint],
    route: Route,
    value_us: fn(&RouteSecond) -> u64,
) -> Line {
    // A second without requests has no latency, so it gets no point.
    let seconds = points.iter().filter_map(|point| {
        let of = &point.routes[route.index()];
        (of.requests > 0).then(|| (point.second as f64, value_us(of) as f64 / 1_000.0))
    });
    Line::new(name, colour, seconds.collect())
}

/// Returns a line with the latencies of a route by percentile. The percentile is given as the
/// number of nines: 90 % is 1, 99 % is 2, 99.9 % is 3.
pub(super) fn percentile_line(name: &str, colour: Colour, buckets: &[Bucket]) -> Line {
    let total: u64 = buckets.iter().map(|bucket| bucket.count).sum();
    let mut reached = 0;
    let mut points = Vec::new();
    for bucket in buckets {
        let above = 1.0 - reached as f64 / total.max(1) as f64;
        // `max` turns a negative zero into a positive zero. Otherwise the SVG would contain the
        // sign.
        points.push(((-above.log10()).max(0.0), bucket.upto_us as f64 / 1_000.0));
        reached += bucket.count;
    }
    Line::new(name, colour, points)
}

/// Returns a chart of latencies by percentile, with a line for each known route in `histograms`; an
/// empty text if there is none.
pub(super) fn distribution(histograms: &[(String, Vec<Bucket>)]) -> Result<String> {
    let colours = [BLUE, ORANGE, GREEN, PINK];
    let mut lines = Vec::new();
    for (route, buckets) in histograms {
        let known = Route::ALL.into_iter().find(|known| known.name() == route);
        let Some(known) = known else { continue };
        lines.push(percentile_line(known.name(), colours[known.index()], buckets));
    }
    percentile_chart("Latency by percentile", lines)
}

/// Returns a chart of latencies by percentile; an empty text if there are no lines.
pub(super) fn percentile_chart(title: &str, lines: Vec<Line>) -> Result<String> {
    if lines.is_empty() {
        return Ok(String::new());
    }
    let chart = Chart {
        title,
        unit: "ms",
        across: Across::Percentiles,
        scale: Scale::Logarithmic,
        lines,
        timeline: None,
    };
    Ok(chart_panel(&chart.figure()?))
}
