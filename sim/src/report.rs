//! The report of a run: one HTML page without outside resources, drawn from its run folder.
//!
//! Invariants:
//! - The page needs no script and no network. It follows the reader's light or dark setting.
//! - Every chart has a title, a unit, a legend in words, and a text for screen readers. Colours are
//!   those of Okabe and Ito (2008), which the colour-blind can tell apart.
//! - The page of a run that was killed shows the seconds that are there.

use std::fmt::Write as _;

use crate::run_folder::{RunFacts, RunFolder};
use crate::series;
use crate::summary::thousands;
use crate::telemetry::{Route, RouteSecond, RunEvent, SecondPoint};
use crate::wire::OrderState;
use crate::{Error, Result};

mod chart;
mod html;

use chart::{Chart, Line, Mark, Scale};
use html::{bars, escape, section};
use serde_json::Value;

/// Name of the page in the run folder.
pub const FILE: &str = "report.html";

const BLUE: chart::Colour = (0, 114, 178);
const ORANGE: chart::Colour = (230, 159, 0);
const GREEN: chart::Colour = (0, 158, 115);
const RED: chart::Colour = (213, 94, 0);
const PINK: chart::Colour = (204, 121, 167);
const SKY: chart::Colour = (86, 180, 233);
const GREY: chart::Colour = (128, 128, 128);

/// Everything that a page is drawn from.
struct Material {
    facts: RunFacts,
    /// Null for a run that was killed.
    summary: Value,
    points: Vec<SecondPoint>,
    events: Vec<RunEvent>,
}

/// Draws the page of a run.
///
/// # Errors
/// If a file of the run folder cannot be read or understood.
pub fn render(folder: &RunFolder) -> Result<String> {
    let material = Material {
        facts: folder.facts()?,
        summary: folder.summary()?.unwrap_or(Value::Null),
        points: series::read(folder.path())?,
        events: folder.events()?,
    };
    let histograms = folder.histograms()?;
    let mut page = html::head(&format!("Run {}", material.facts.scenario));
    page.push_str(&material.header());
    page.push_str(&material.results());
    page.push_str(&material.throughput()?);
    for route in Route::ALL {
        page.push_str(&material.latencies(route)?);
    }
    page.push_str(&distribution(&histograms)?);
    page.push_str(&material.orders()?);
    page.push_str(&material.outbox()?);
    page.push_str(&material.schedule()?);
    page.push_str(&material.ring());
    page.push_str(&material.audit());
    page.push_str(&material.event_table());
    page.push_str("</main></body></html>\n");
    Ok(page)
}

impl Material {
    fn marks(&self) -> Vec<Mark> {
        use crate::telemetry::EventKind as Kind;
        let shown = |event: &&RunEvent| {
            let is_shown = matches!(
                event.kind,
                Kind::Kill | Kind::Stop | Kind::Pause | Kind::Leave | Kind::Warehouse | Kind::Breaker
            );
            is_shown && event.offset_ms > 0
        };
        let marks = self.events.iter().filter(shown).map(|event| Mark {
            at_s: event.offset_ms as f64 / 1_000.0,
            name: match event.kind {
                Kind::Warehouse => event.subject.clone(),
                Kind::Breaker => "breaker".to_owned(),
                kind => format!("{} {}", kind.name(), event.subject),
            },
        });
        marks.collect()
    }

    fn line(&self, name: &'static str, colour: chart::Colour, value: impl Fn(&SecondPoint) -> f64) -> Line {
        Line {
            name,
            colour,
            points: self
                .points
                .iter()
                .map(|point| (point.second as f64, value(point)))
                .collect(),
        }
    }

    fn draw(&self, title: &str, unit: &str, scale: Scale, lines: Vec<Line>) -> Result<String> {
        let chart = Chart {
            title,
            unit,
            x_unit: "seconds since the start",
            scale,
            lines,
            marks: self.marks(),
        };
        chart.figure()
    }

    fn header(&self) -> String {
        let facts = &self.facts;
        let verdict = match self.summary["verdict"].as_str() {
            Some(verdict) => verdict.replace('_', " "),
            None => "killed before its end".to_owned(),
        };
        let class = match verdict.as_str() {
            "clean" => "good",
            "findings" | "threshold missed" => "bad",
            _ => "unsure",
        };
        let begun = std::time::UNIX_EPOCH + std::time::Duration::from_millis(facts.begun_at_ms);
        format!(
            "<header><h1>{} <span class=\"verdict {class}\">{}</span></h1>\
             <p>Seed {}, version {}, {} on {} processors, begun {}.</p>\
             <p>Repeat it: <code>{}</code></p></header>\n",
            escape(&facts.scenario),
            escape(&verdict),
            facts.seed,
            escape(&facts.version),
            escape(&facts.platform),
            facts.processors,
            humantime::format_rfc3339_seconds(begun),
            escape(&facts.repeat),
        )
    }

    /// The routes, the load and the thresholds as tables.
    fn results(&self) -> String {
        let summary = &self.summary;
        if summary.is_null() {
            return String::new();
        }
        let number = |value: &Value| thousands(value.as_u64().unwrap_or_default());
        let mut rows = String::new();
        let routes = summary["routes"].as_array().into_iter().flatten();
        for route in routes.filter(|route| route["requests"] != 0) {
            let latency = |name: &str| {
                let us = route["latency"][name].as_u64().unwrap_or_default();
                format!("{:.2}", us as f64 / 1_000.0)
            };
            let failed =
                route["requests"].as_u64().unwrap_or_default() - route["ok"].as_u64().unwrap_or_default();
            let _ = write!(
                rows,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(route["route"].as_str().unwrap_or_default()),
                number(&route["requests"]),
                thousands(failed),
                latency("p50_us"),
                latency("p99_us"),
                latency("p999_us"),
                latency("max_us"),
            );
        }
        let mut text = format!(
            "<p>{} requests in a window of {:.1} s ({:.1}/s) and a drain of {:.1} s; {} late, {} dropped.</p>\
             <table><thead><tr><th>route</th><th>requests</th><th>errors</th><th>p50 ms</th><th>p99 ms</th>\
             <th>p99.9 ms</th><th>max ms</th></tr></thead><tbody>{rows}</tbody></table>",
            number(&summary["requests"]),
            summary["window_s"].as_f64().unwrap_or_default(),
            summary["rate"].as_f64().unwrap_or_default(),
            summary["drain_s"].as_f64().unwrap_or_default(),
            number(&summary["late"]),
            number(&summary["dropped"]),
        );
        let thresholds = summary["thresholds"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if !thresholds.is_empty() {
            text.push_str("<h3>Thresholds</h3><ul>");
            for result in thresholds {
                let (class, word) = match result["is_missed"].as_bool() {
                    Some(false) => ("good", "kept"),
                    _ => ("bad", "missed"),
                };
                let _ = write!(
                    text,
                    "<li><span class=\"verdict {class}\">{word}</span> fail if <code>{}</code>: measured {}</li>",
                    escape(result["condition"].as_str().unwrap_or_default()),
                    escape(result["measured"].as_str().unwrap_or("unknown")),
                );
            }
            text.push_str("</ul>");
        }
        section("Results", &text)
    }

    fn throughput(&self) -> Result<String> {
        let lines = vec![
            self.line("sent", SKY, |point| point.sent as f64),
            self.line("answered well", BLUE, |point| point.ok as f64),
            self.line("failed", RED, |point| point.failed as f64),
        ];
        Ok(section(
            "Throughput",
            &self.draw("Requests per second", "requests/s", Scale::Linear, lines)?,
        ))
    }

    fn latencies(&self, route: Route) -> Result<String> {
        let of = |point: &SecondPoint| point.routes[route.index()];
        if self.points.iter().all(|point| of(point).requests == 0) {
            return Ok(String::new());
        }
        let line = |name, colour, value: fn(&RouteSecond) -> u64| Line {
            name,
            colour,
            // A second without requests has no latency.
            points: self
                .points
                .iter()
                .filter(|point| of(point).requests > 0)
                .map(|point| (point.second as f64, value(&of(point)) as f64 / 1_000.0))
                .collect(),
        };
        let lines = vec![
            line("max", GREY, |second| second.max_us),
            line("p99", ORANGE, |second| second.p99_us),
            line("p50", BLUE, |second| second.p50_us),
        ];
        let title = format!("Latency of {}", route.template());
        Ok(section(
            &title,
            &self.draw(&title, "ms", Scale::Logarithmic, lines)?,
        ))
    }

    fn orders(&self) -> Result<String> {
        let count = |state: OrderState| {
            move |point: &SecondPoint| point.orders.get(state.name()).copied().unwrap_or_default() as f64
        };
        let shown = [
            ("reserved", OrderState::Reserved, SKY),
            ("announced", OrderState::Announced, BLUE),
            ("paid", OrderState::Paid, ORANGE),
            ("delivered", OrderState::Delivered, GREEN),
            ("rejected", OrderState::Rejected, RED),
            ("cancelled", OrderState::Cancelled, PINK),
        ];
        let lines = shown
            .into_iter()
            .map(|(name, state, colour)| self.line(name, colour, count(state)))
            .collect();
        let mut text = self.draw("Orders of this run by state", "orders", Scale::Linear, lines)?;
        if let Some(orders) = self.summary["orders"].as_object() {
            let at_end = OrderState::ALL.iter().filter_map(|state| {
                let count = orders.get(state.name())?.as_u64()?;
                Some((state.name().to_owned(), count))
            });
            text.push_str("<h3>At the end</h3>");
            text.push_str(&bars(&at_end.collect::<Vec<_>>(), "orders"));
        }
        Ok(section("Orders", &text))
    }

    fn outbox(&self) -> Result<String> {
        let lines = vec![
            self.line("waiting", BLUE, |point| {
                point.outbox.saturating_sub(point.outbox_dead) as f64
            }),
            self.line("dead letters", RED, |point| point.outbox_dead as f64),
        ];
        let mut text = self.draw("Messages for the warehouse", "messages", Scale::Linear, lines)?;
        let faults: Vec<(String, u64)> = self.summary["warehouse"]["faults"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or_default()))
            .filter(|(_, count)| *count > 0)
            .collect();
        if !faults.is_empty() {
            text.push_str("<h3>Faults of the warehouse, made on purpose</h3>");
            text.push_str(&bars(&faults, "calls"));
        }
        Ok(section("Outbox and warehouse", &text))
    }

    fn schedule(&self) -> Result<String> {
        let lines = vec![self.line("p99 of the lag", ORANGE, |point| {
            point.lag_p99_us as f64 / 1_000.0
        })];
        let text = self.draw(
            "Lag of the front behind its schedule",
            "ms",
            Scale::Logarithmic,
            lines,
        )?;
        let note = "<p>A run whose lag has a 99th percentile above 5 ms does not measure the server.</p>";
        Ok(section("Schedule", &(note.to_owned() + &text)))
    }

    fn ring(&self) -> String {
        let nodes: Vec<(String, u64)> = self.summary["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|node| {
                let name = node["name"].as_str().unwrap_or_default().to_owned();
                (name, node["slots"].as_u64().unwrap_or_default())
            })
            .collect();
        match nodes.is_empty() {
            true => String::new(),
            false => section("Ring at the end", &bars(&nodes, "slots")),
        }
    }

    fn audit(&self) -> String {
        let audit = &self.summary["audit"];
        if audit.is_null() {
            let reason = self.summary["audit_problem"]
                .as_str()
                .unwrap_or("the run has none");
            return section("Audit", &format!("<p>No audit: {}.</p>", escape(reason)));
        }
        let number = |name: &str| thousands(audit[name].as_u64().unwrap_or_default());
        let mut text = format!(
            "<p>{} orders, {} deliveries and {} reservations compared; {} messages waiting, {} dead letters.</p>",
            number("orders"),
            number("deliveries"),
            number("reservations"),
            number("outbox_waiting"),
            number("outbox_dead"),
        );
        let findings = audit["findings"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        match findings.is_empty() {
            true => text.push_str("<p><span class=\"verdict good\">no finding</span></p>"),
            false => {
                text.push_str("<ul>");
                for finding in findings {
                    let _ = write!(text, "<li><code>{}</code></li>", escape(&finding.to_string()));
                }
                text.push_str("</ul>");
            }
        }
        section("Audit", &text)
    }

    fn event_table(&self) -> String {
        if self.events.is_empty() {
            return String::new();
        }
        let mut rows = String::new();
        for event in &self.events {
            let _ = write!(
                rows,
                "<tr><td>{:.1}</td><td>{}</td><td class=\"text\">{}</td></tr>",
                event.offset_ms as f64 / 1_000.0,
                event.kind.name(),
                escape(&event.text),
            );
        }
        let table = format!(
            "<table><thead><tr><th>second</th><th>kind</th><th>event</th></tr></thead><tbody>{rows}</tbody></table>"
        );
        section("Events", &table)
    }
}

/// The latencies of all routes by percentile.
fn distribution(histograms: &[(String, Vec<crate::latency::Bucket>)]) -> Result<String> {
    let colours = [BLUE, ORANGE, GREEN, PINK];
    let mut lines = Vec::new();
    for (route, buckets) in histograms {
        let known = Route::ALL.into_iter().find(|known| known.name() == route);
        let Some(known) = known else { continue };
        let total: u64 = buckets.iter().map(|bucket| bucket.count).sum();
        let mut reached = 0;
        let mut points = Vec::new();
        for bucket in buckets {
            // Nines on a linear axis: 90 % is 1, 99 % is 2, 99.9 % is 3.
            let above = 1.0 - reached as f64 / total.max(1) as f64;
            points.push((-above.log10(), bucket.upto_us as f64 / 1_000.0));
            reached += bucket.count;
        }
        lines.push(Line {
            name: known.name(),
            colour: colours[known.index()],
            points,
        });
    }
    if lines.is_empty() {
        return Ok(String::new());
    }
    let chart = Chart {
        title: "Latency by percentile",
        unit: "ms",
        x_unit: "percentile in nines: 1 is 90 %, 2 is 99 %, 3 is 99.9 %",
        scale: Scale::Logarithmic,
        lines,
        marks: Vec::new(),
    };
    Ok(section("Latency by percentile", &chart.figure()?))
}

fn drawing_failed(error: impl std::fmt::Display) -> Error {
    Error::Report {
        problem: error.to_string(),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
