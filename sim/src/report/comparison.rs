//! The page that compares two runs: their numbers side by side, and their curves in the same
//! charts.

use std::fmt::Write as _;

use super::axis::Scale;
use super::chart::{Across, Chart, Line};
use super::charts::{latency_line, percentile_chart, percentile_line};
use super::html::{FOOT, chart_panel, escape, grid, head, panel};
use super::tables::verdict_class;
use super::{BLUE, Material, ORANGE, timeline};
use crate::Result;
use crate::compare::{Better, Comparison};
use crate::run_folder::RunFolder;
use crate::telemetry::{Route, SecondPoint};

/// Draws the page that compares two runs. Returns the HTML page.
///
/// # Errors
/// If a file of a run folder cannot be read or parsed, a chart cannot be drawn, or one of the runs
/// has no summary.
pub fn render_comparison(first: &RunFolder, second: &RunFolder) -> Result<String> {
    let comparison = Comparison::of(first, second)?;
    let folders = [first, second];
    let runs = [Material::read(first)?, Material::read(second)?];
    let names = folders.map(|folder| {
        let name = folder.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    });
    let histograms = [first.histograms()?, second.histograms()?];
    let pair = Pair { runs, names };
    let mut charts = pair.over_time("Requests per second", "requests/s", |point| point.ok as f64)?;
    charts.push_str(
        &pair.over_time("Failed requests per second", "requests/s", |point| {
            point.failed as f64
        })?,
    );
    for route in [Route::Order, Route::Payment, Route::Stats] {
        let lines = pair.lines(|place| {
            let of = histograms[place].iter().find(|(name, _)| name == route.name());
            let buckets = of.map(|(_, buckets)| buckets.as_slice()).unwrap_or_default();
            percentile_line(&pair.names[place], COLOURS[place], buckets)
        });
        let lines = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
        let title = format!("{} by percentile", route.template());
        charts.push_str(&percentile_chart(&title, lines)?);
        charts.push_str(&pair.latency(route)?);
    }
    charts.push_str(&pair.over_time("Orders delivered", "orders", |point| point.delivered as f64)?);
    charts.push_str(
        &pair.over_time("Messages for the warehouse", "messages", |point| {
            point.outbox as f64
        })?,
    );
    let mut page = head("Two runs");
    page.push_str(&pair.header(&comparison));
    page.push_str(&panel("Numbers", &table(&comparison, &pair.names)));
    page.push_str(&grid(&charts));
    page.push_str(FOOT);
    Ok(page)
}

/// Colours of the first and the second run in all charts.
const COLOURS: [super::chart::Colour; 2] = [BLUE, ORANGE];

struct Pair {
    runs: [Material; 2],
    names: [String; 2],
}

impl Pair {
    fn lines(&self, line: impl Fn(usize) -> Line) -> Vec<Line> {
        (0..self.runs.len()).map(line).collect()
    }

    fn chart(&self, title: &str, unit: &str, scale: Scale, lines: Vec<Line>) -> Result<String> {
        let chart = Chart {
            title,
            unit,
            across: Across::Seconds,
            scale,
            lines,
            timeline: None,
        };
        Ok(chart_panel(&chart.figure()?))
    }

    fn over_time(&self, title: &str, unit: &str, value: fn(&SecondPoint) -> f64) -> Result<String> {
        let lines = self.lines(|place| {
            let points = self.runs[place].points.iter();
            let points = points.map(|point| (point.second as f64, value(point)));
            Line::new(&self.names[place], COLOURS[place], points.collect())
        });
        self.chart(title, unit, Scale::Linear, lines)
    }

    fn latency(&self, route: Route) -> Result<String> {
        let lines = self.lines(|place| {
            let points = &self.runs[place].points;
            latency_line(&self.names[place], COLOURS[place], points, route, |second| {
                second.p99_us
            })
        });
        match lines.iter().all(|line| line.points.is_empty()) {
            true => Ok(String::new()),
            false => self.chart(
                &format!("p99 of {}", route.template()),
                "ms",
                Scale::Logarithmic,
                lines,
            ),
        }
    }

    fn header(&self, comparison: &Comparison) -> String {
        let mut text = String::from("<header><h1>Two runs</h1>");
        for (place, run) in self.runs.iter().enumerate() {
            let verdict = run.verdict();
            let (r, g, b) = COLOURS[place];
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "<p><span class=\"key\"><i style=\"background:rgb({r},{g},{b})\"></i>{}</span> {}, seed {} \
                 <span class=\"verdict {}\">{}</span></p>",
                escape(&self.names[place]),
                escape(&run.facts.scenario),
                run.facts.seed,
                verdict_class(&verdict),
                escape(&verdict),
            );
        }
        let differences = comparison.differences();
        if !differences.is_empty() {
            let _ = write!(text, "<p>They differ in {}.</p>", escape(&differences.join("; ")));
        }
        text.push_str("</header>\n");
        for run in &self.runs {
            text.push_str(&course(&run.timeline, &run.facts.scenario));
        }
        text
    }
}

/// Returns the timeline of a run; an empty text if the timeline shows no change, because it has no
/// marks and each lane has one span.
fn course(timeline: &timeline::Timeline, scenario: &str) -> String {
    let is_plain = timeline.marks.is_empty() && timeline.lanes.iter().all(|lane| lane.spans.len() == 1);
    match is_plain {
        true => String::new(),
        false => panel(&format!("Course of {scenario}"), &timeline.figure()),
    }
}

fn table(comparison: &Comparison, names: &[String; 2]) -> String {
    let mut rows = String::new();
    for row in comparison.rows() {
        let class = match row.better {
            Some(Better::Second) => " class=\"better\"",
            Some(Better::First) => " class=\"worse\"",
            None => "",
        };
        let _ = write!(
            rows,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td{class}>{}</td></tr>",
            escape(row.name),
            escape(&row.first),
            escape(&row.second),
            escape(&row.change),
        );
    }
    format!(
        "<div class=\"scroll\"><table><thead><tr><th></th><th>{}</th><th>{}</th><th>change</th></tr></thead>\
         <tbody>{rows}</tbody></table></div>",
        escape(&names[0]),
        escape(&names[1]),
    )
}
