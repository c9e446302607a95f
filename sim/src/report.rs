//! The report of a run: one HTML page without external resources, drawn from the run folder.
//!
//! Invariants:
//! - The page needs no script and no network. The page follows the light or dark setting of the
//!   browser.
//! - Every line chart has a title, a unit, a legend in words, and a text for screen readers. Apart
//!   from grey, the colours of lines are those of Okabe and Ito (2008), which colour-blind people
//!   can tell apart.
//! - The page of a killed run shows the seconds that the run recorded.

use serde_json::Value;

use crate::run_folder::{RunFacts, RunFolder};
use crate::series;
use crate::telemetry::{Route, RunEvent, SecondPoint};
use crate::{Error, Result};

mod axis;
mod chart;
mod charts;
mod comparison;
mod html;
mod tables;
mod timeline;

pub use comparison::render_comparison;
use timeline::Timeline;

/// Name of the report's file in the run folder.
pub const FILE: &str = "report.html";

const BLUE: chart::Colour = (0, 114, 178);
const ORANGE: chart::Colour = (230, 159, 0);
const GREEN: chart::Colour = (0, 158, 115);
const RED: chart::Colour = (213, 94, 0);
const PINK: chart::Colour = (204, 121, 167);
const SKY: chart::Colour = (86, 180, 233);
const GREY: chart::Colour = (128, 128, 128);

/// The data of one run, from which its report is drawn.
struct Material {
    facts: RunFacts,
    /// The content of `summary.json`; null if there is no such file, for example because the run
    /// was killed.
    summary: Value,
    points: Vec<SecondPoint>,
    events: Vec<RunEvent>,
    timeline: Timeline,
}

impl Material {
    fn read(folder: &RunFolder) -> Result<Self> {
        let points = series::read(folder.path())?;
        let events = folder.events()?;
        // Seconds are numbered by their starts, so the last one ends a second after its number.
        let end_s = points.last().map_or(0.0, |point| (point.second + 1) as f64);
        Ok(Self {
            facts: folder.facts()?,
            summary: folder.summary()?.unwrap_or(Value::Null),
            timeline: Timeline::new(&events, end_s),
            points,
            events,
        })
    }
}

/// Draws the report of a run. Returns the HTML page.
///
/// # Errors
/// If a file of the run folder cannot be read or parsed, or a chart cannot be drawn.
pub fn render(folder: &RunFolder) -> Result<String> {
    let material = Material::read(folder)?;
    let histograms = folder.histograms()?;
    let mut charts = material.throughput()?;
    charts.push_str(&charts::distribution(&histograms)?);
    for route in [Route::Order, Route::Payment, Route::Cancel, Route::Stats] {
        charts.push_str(&material.latencies(route)?);
    }
    charts.push_str(&material.orders()?);
    charts.push_str(&material.outbox()?);
    charts.push_str(&material.schedule()?);
    charts.push_str(&material.funnel());
    charts.push_str(&material.errors());
    charts.push_str(&material.warehouse_faults());
    charts.push_str(&material.ring());
    let mut page = html::head(&format!("Run {}", material.facts.scenario));
    page.push_str(&material.header());
    page.push_str(&material.tiles());
    page.push_str(&html::panel("Course of the run", &material.timeline.figure()));
    page.push_str(&html::grid(&charts));
    page.push_str(&material.results());
    page.push_str(&material.thresholds());
    page.push_str(&material.audit());
    page.push_str(&material.event_table());
    page.push_str(html::FOOT);
    Ok(page)
}

fn drawing_failed(error: impl std::fmt::Display) -> Error {
    Error::Report {
        problem: error.to_string(),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
