//! Head, tiles and tables in the report of a run, and its parts about thresholds, errors and audit.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::Material;
use super::html::{Tile, bars, escape, panel, tiles};
use crate::front::LAG_P99_MAX;
use crate::latency::PERCENTILE_SAMPLES_MIN;
use crate::summary::{millis, plural, thousands};
use crate::telemetry::Route;

/// Maximum number of rows of a table of events that the page shows expanded. A longer table is
/// collapsed at first.
const EVENTS_OPEN_MAX: usize = 30;

/// Returns the CSS class of the badge that shows a verdict.
pub(super) fn verdict_class(verdict: &str) -> &'static str {
    match verdict {
        "clean" => "good",
        "findings" | "threshold missed" => "bad",
        _ => "unsure",
    }
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Returns the number of failed requests of a route. The number is 0 if a summary that was changed
/// by hand has more good requests than requests.
fn failed(route: &Value) -> u64 {
    count(&route["requests"]).saturating_sub(count(&route["ok"]))
}

/// Returns `true` if a set of latencies has enough samples for percentiles, or has no count.
fn has_percentiles(latency: &Value) -> bool {
    let count = latency["count"].as_u64();
    count.is_none_or(|count| count >= PERCENTILE_SAMPLES_MIN)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

impl Material {
    /// Returns the verdict of the run in words. A run without a verdict counts as killed before its
    /// end.
    pub(super) fn verdict(&self) -> String {
        match self.summary["verdict"].as_str() {
            Some(verdict) => verdict.replace('_', " "),
            None => "killed before its end".to_owned(),
        }
    }

    pub(super) fn header(&self) -> String {
        let facts = &self.facts;
        let verdict = self.verdict();
        let class = verdict_class(&verdict);
        let begun = UNIX_EPOCH + Duration::from_millis(facts.begun_at_ms);
        let early = match self.summary["stopped_early"].as_bool() {
            Some(true) => " The run was ended early.",
            _ => "",
        };
        let scenario: Option<toml::Table> = facts.scenario_toml.parse().ok();
        let description = scenario
            .as_ref()
            .and_then(|scenario| scenario.get("description")?.as_str());
        let description = description
            .map(|text| format!("<p>{}</p>", escape(text)))
            .unwrap_or_default();
        format!(
            "<header><h1>{} <span class=\"verdict {class}\">{}</span></h1>{description}\
             <p>Seed {}, version {}, {}, {} processors, begun {}.{early}</p>\
             <p>Repeat: <code>{}</code></p></header>\n",
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

    /// Returns the tiles with the most important numbers; an empty text for a run without a
    /// summary.
    pub(super) fn tiles(&self) -> String {
        let summary = &self.summary;
        if summary.is_null() {
            return String::new();
        }
        let routes = list(&summary["routes"]);
        let failed: u64 = routes.iter().map(failed).sum();
        let order = routes.iter().find(|route| route["name"] == Route::Order.name());
        let latency = |name: &str| order.map_or(0, |order| count(&order["latency"][name]));
        let percentile = |name: &str| match order.is_some_and(|order| has_percentiles(&order["latency"])) {
            true => millis(latency(name)),
            false => "-".to_owned(),
        };
        let lag_us = count(&summary["lag"]["p99_us"]);
        let orders = summary["orders"].as_object();
        let total: u64 = orders.into_iter().flatten().map(|(_, of)| count(of)).sum();
        let found = list(&summary["audit"]["findings"]).len() as u64;
        let thresholds = list(&summary["thresholds"]);
        let missed = thresholds
            .iter()
            .filter(|threshold| threshold["is_missed"] != false)
            .count();
        let percent = failed as f64 / count(&summary["requests"]).max(1) as f64 * 100.0;
        let mut shown = vec![
            Tile {
                name: "Requests",
                value: thousands(count(&summary["requests"])),
                note: format!("{:.1}/s", summary["rate"].as_f64().unwrap_or_default()),
                is_good: None,
            },
            Tile {
                name: "Errors",
                value: thousands(failed),
                note: format!("{percent:.2} % of requests"),
                is_good: None,
            },
            Tile {
                name: "Order, median",
                value: percentile("p50_us"),
                note: "from the intended start".to_owned(),
                is_good: None,
            },
            Tile {
                name: "Order, p99",
                value: percentile("p99_us"),
                note: format!("max {}", millis(latency("max_us"))),
                is_good: None,
            },
            Tile {
                name: "Orders delivered",
                value: thousands(orders.map_or(0, |orders| orders.get("delivered").map_or(0, count))),
                note: format!("of {}", thousands(total)),
                is_good: None,
            },
            Tile {
                name: "Lag p99",
                value: match has_percentiles(&summary["lag"]) {
                    true => millis(lag_us),
                    false => "-".to_owned(),
                },
                note: format!(
                    "limit {} ms; {} late, {} dropped",
                    LAG_P99_MAX.as_millis(),
                    thousands(count(&summary["late"])),
                    thousands(count(&summary["dropped"]))
                ),
                is_good: Some(u128::from(lag_us) <= LAG_P99_MAX.as_micros()),
            },
            Tile {
                name: "Audit",
                value: match summary["audit"].is_null() {
                    true => "none".to_owned(),
                    false => thousands(found),
                },
                note: if found == 1 { "finding" } else { "findings" }.to_owned(),
                is_good: Some(found == 0 && !summary["audit"].is_null()),
            },
        ];
        if !thresholds.is_empty() {
            shown.push(Tile {
                name: "Thresholds",
                value: format!("{} of {}", thresholds.len() - missed, thresholds.len()),
                note: "kept".to_owned(),
                is_good: Some(missed == 0),
            });
        }
        tiles(&shown)
    }

    /// Returns a table with the results of each route that had requests, below a sentence about all
    /// requests; an empty text for a run without a summary.
    pub(super) fn results(&self) -> String {
        let summary = &self.summary;
        if summary.is_null() {
            return String::new();
        }
        let mut rows = String::new();
        let routes = list(&summary["routes"]).iter();
        for route in routes.filter(|route| route["requests"] != 0) {
            let latency = |name: &str| {
                let us = count(&route["latency"][name]);
                format!("{:.2}", us as f64 / 1_000.0)
            };
            let percentile = |name: &str| match has_percentiles(&route["latency"]) {
                true => latency(name),
                false => "-".to_owned(),
            };
            // Writing to a String cannot fail.
            let _ = write!(
                rows,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{:.2}</td><td>{}</td><td>{}</td>\
                 <td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(route["route"].as_str().unwrap_or_default()),
                thousands(count(&route["requests"])),
                thousands(failed(route)),
                route["mean_us"].as_f64().unwrap_or_default() / 1_000.0,
                percentile("p50_us"),
                percentile("p90_us"),
                percentile("p99_us"),
                percentile("p999_us"),
                latency("max_us"),
            );
        }
        let text = format!(
            "<p>{} in a window of {:.1} s ({:.1}/s) and a drain of {:.1} s; {} late, {} dropped. \
             Latencies in milliseconds count from the intended start, without the warm-up. \
             Percentiles of fewer than {PERCENTILE_SAMPLES_MIN} samples are not shown.</p>\
             <div class=\"scroll\"><table><thead><tr><th>route</th><th>requests</th><th>errors</th>\
             <th>mean</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr></thead>\
             <tbody>{rows}</tbody></table></div>",
            plural(count(&summary["requests"]), "request"),
            summary["window_s"].as_f64().unwrap_or_default(),
            summary["rate"].as_f64().unwrap_or_default(),
            summary["drain_s"].as_f64().unwrap_or_default(),
            thousands(count(&summary["late"])),
            thousands(count(&summary["dropped"])),
        );
        panel("Results", &text)
    }

    /// Returns the list of the run's thresholds, each with its measured value; an empty text if
    /// there are none.
    pub(super) fn thresholds(&self) -> String {
        let mut items = String::new();
        for result in list(&self.summary["thresholds"]) {
            let (class, word) = match result["is_missed"].as_bool() {
                Some(false) => ("good", "kept"),
                _ => ("bad", "missed"),
            };
            let _ = write!(
                items,
                "<li><span class=\"verdict {class}\">{word}</span> fail if <code>{}</code>: measured {}</li>",
                escape(result["condition"].as_str().unwrap_or_default()),
                escape(result["measured"].as_str().unwrap_or("unknown")),
            );
        }
        match items.is_empty() {
            true => String::new(),
            false => panel("Thresholds", &format!("<ul>{items}</ul>")),
        }
    }

    /// Returns bars with the numbers of failed requests by route and reason; an empty text if no
    /// request failed.
    pub(super) fn errors(&self) -> String {
        let mut reasons = Vec::new();
        for route in list(&self.summary["routes"]) {
            let name = route["name"].as_str().unwrap_or_default();
            for (reason, of) in route["errors"].as_object().into_iter().flatten() {
                reasons.push((format!("{name}: {reason}"), count(of)));
            }
        }
        panel("Errors by route and reason", &bars(&reasons, "request"))
    }

    pub(super) fn audit(&self) -> String {
        let audit = &self.summary["audit"];
        if audit.is_null() {
            let reason = self.summary["audit_problem"]
                .as_str()
                .unwrap_or("the run has none");
            return panel("Audit", &format!("<p>No audit: {}.</p>", escape(reason)));
        }
        let number = |name: &str, noun: &str| plural(count(&audit[name]), noun);
        let mut text = format!(
            "<p>{}, {}, {}, {} and {} compared; {} waiting, {}.</p>",
            number("orders", "order"),
            number("deliveries", "delivery"),
            number("reservations", "reservation"),
            number("histories", "history"),
            number("log_lines", "logged request"),
            number("outbox_waiting", "message"),
            number("outbox_dead", "dead letter"),
        );
        for group in list(&audit["waiting"]) {
            let _ = write!(
                text,
                "<p>waiting: {} x {}: {}</p>",
                thousands(count(&group["messages"])),
                escape(group["kind"].as_str().unwrap_or_default()),
                escape(group["reason"].as_str().unwrap_or_default()),
            );
        }
        let findings = list(&audit["findings"]);
        if findings.is_empty() {
            text.push_str("<p><span class=\"verdict good\">no finding</span></p>");
            return panel("Audit", &text);
        }
        let sentences = list(&audit["sentences"]);
        text.push_str("<ul>");
        for (place, finding) in findings.iter().enumerate() {
            let sentence = sentences.get(place).and_then(Value::as_str);
            let sentence = sentence.map_or_else(|| finding.to_string(), str::to_owned);
            let _ = write!(text, "<li>{}", escape(&sentence));
            let order = finding["order"].as_str().unwrap_or_default();
            let history = list(&audit["explained"][order]).iter().filter_map(Value::as_str);
            let history: Vec<&str> = history.collect();
            if !history.is_empty() {
                let _ = write!(
                    text,
                    "<details><summary>history of order {}</summary><pre>{}</pre></details>",
                    escape(order),
                    escape(&history.join("\n")),
                );
            }
            text.push_str("</li>");
        }
        text.push_str("</ul>");
        panel("Audit", &text)
    }

    pub(super) fn event_table(&self) -> String {
        if self.events.is_empty() {
            return String::new();
        }
        let mut rows = String::new();
        for event in &self.events {
            let _ = write!(
                rows,
                "<tr><td>{:.1}</td><td class=\"text\">{}</td><td class=\"text\">{}</td></tr>",
                event.offset_ms as f64 / 1_000.0,
                event.kind.name(),
                escape(&event.text),
            );
        }
        let open = if self.events.len() <= EVENTS_OPEN_MAX {
            " open"
        } else {
            ""
        };
        let table = format!(
            "<details{open}><summary>{}</summary><div class=\"scroll\"><table><thead><tr>\
             <th>second</th><th class=\"text\">kind</th><th class=\"text\">event</th></tr></thead>\
             <tbody>{rows}</tbody></table></div></details>",
            plural(self.events.len() as u64, "event")
        );
        panel("Events", &table)
    }
}
