//! Draws the warehouse, the outbox, the stock, and the lag of the load generator.

use imt_sim::front::LAG_P99_MAX;
use imt_sim::telemetry::{Phase, RunState};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::chart::{self, Point};
use super::panel;
use crate::figures::{fit, latency, short};
use crate::state::State;
use crate::theme::Theme;

/// Width of the label of a fact, in columns.
const LABEL: usize = 11;
/// Minimum number of free rows for a blank row, the heading, and the curve of the outbox.
const CURVE_ROWS_MIN: usize = 4;
/// Maximum height of the curve of the outbox with its heading, in rows.
const CURVE_ROWS_MAX: usize = 7;

struct Fact {
    label: &'static str,
    value: String,
    style: Style,
}

/// Draws the panel of the warehouse and the outbox. Each line is a fact: a label and a value. Facts
/// are sorted by importance, and the last facts are left out if not all of them fit.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let title = Line::styled(" Warehouse and outbox ", theme.strong());
    let inner = panel(frame, area, title, theme);
    let facts = facts(&state.run, theme);
    let width = usize::from(inner.width).saturating_sub(LABEL);
    let lines = facts.iter().take(usize::from(inner.height)).map(|fact| {
        Line::from(vec![
            Span::styled(format!("{:<LABEL$}", fact.label), theme.quiet()),
            Span::styled(fit(&fact.value, width), fact.style),
        ])
    });
    let lines: Vec<Line> = lines.collect();
    let free = usize::from(inner.height) - lines.len();
    frame.render_widget(Paragraph::new(lines), inner);
    if free >= CURVE_ROWS_MIN {
        let height = (free - 1).min(CURVE_ROWS_MAX) as u16;
        let area = Rect {
            y: inner.bottom() - height,
            height,
            ..inner
        };
        draw_backlog(frame, area, &state.run, theme);
    }
}

fn facts(run: &RunState, theme: Theme) -> Vec<Fact> {
    let plain = |label, value: String| Fact {
        label,
        value,
        style: Style::new(),
    };
    // Builds the fact for a count that is 0 in a healthy run.
    let fault = |label, count: u64, text: String| Fact {
        label,
        value: text,
        style: if count > 0 { theme.bad() } else { Style::new() },
    };
    let cluster = &run.cluster;
    let warehouse = run.warehouse_of_run();
    let behaviour = match &warehouse {
        Some(warehouse) => fact_of_behaviour(&warehouse.behaviour),
        None => "no answer yet".to_owned(),
    };
    let known = warehouse.unwrap_or_default();
    let number = |value: u64| short(value, 7);
    let mut facts = vec![
        plain("behaviour", behaviour),
        breaker(cluster.warehouse_away, theme),
        plain(
            "outbox",
            format!(
                "{} · {} calls",
                number(cluster.outbox),
                number(cluster.outbox_in_flight)
            ),
        ),
        fault(
            "dead",
            cluster.outbox_dead,
            format!("{} letters", number(cluster.outbox_dead)),
        ),
        fault(
            "oversold",
            known.refused,
            format!("{} refused", number(known.refused)),
        ),
        plain(
            "delivered",
            format!("{} of {}", number(known.delivered), number(known.announced)),
        ),
        plain("stock", counted(known.snapshots_sent, "snapshot")),
        plain("statistics", counted(known.stat_files_written, "file")),
        plain("504s", format!("{} answered", number(known.gateway_timeouts))),
        fault(
            "repeated",
            known.duplicates_after_answer,
            format!("{} after answer", number(known.duplicates_after_answer)),
        ),
        fault("conflicts", known.conflicts, number(known.conflicts)),
        plain("restocked", format!("{} quantities", number(known.restocked))),
    ];
    match run.lag.p99_us > LAG_P99_MAX.as_micros() as u64 {
        // If the load generator is late, the measured latencies are not those of the node. So the
        // fact about the lag precedes those about the warehouse and the outbox.
        true => facts.insert(0, schedule(run, theme)),
        false => facts.push(schedule(run, theme)),
    }
    if run.phase == Phase::Auditing {
        let audit = if run.audit.is_empty() {
            "begins"
        } else {
            run.audit.as_str()
        };
        // While the audit runs, its progress is shown first.
        facts.insert(0, plain("audit", audit.to_owned()));
    }
    let faults = known.faults.iter().filter(|(_, count)| **count > 0);
    let faults: Vec<String> = faults.map(|(name, count)| format!("{count} {name}")).collect();
    if !faults.is_empty() {
        facts.push(plain("faults", faults.join(", ")));
    }
    facts
}

fn breaker(is_open: bool, theme: Theme) -> Fact {
    match is_open {
        true => Fact {
            label: "breaker",
            value: "OPEN: no answer".to_owned(),
            style: theme.bad(),
        },
        false => Fact {
            label: "breaker",
            value: "closed".to_owned(),
            style: theme.good(),
        },
    }
}

fn fact_of_behaviour(name: &str) -> String {
    if name.is_empty() {
        "answers".to_owned()
    } else {
        name.to_owned()
    }
}

/// Returns a count with its noun, such as `1 file` or `2 files`.
fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", short(count, 7))
}

/// Returns the fact about the load generator's own delays and dropped requests.
fn schedule(run: &RunState, theme: Theme) -> Fact {
    let lag = latency(run.lag.p99_us);
    match run.late.saturating_add(run.dropped) {
        0 => Fact {
            label: "schedule",
            value: format!("lag {lag} at p99"),
            style: Style::new(),
        },
        _ => Fact {
            label: "schedule",
            value: format!(
                "lag {lag}, {} late, {} lost",
                short(run.late, 6),
                short(run.dropped, 6)
            ),
            style: theme.warning(),
        },
    }
}

fn draw_backlog(frame: &mut Frame, area: Rect, run: &RunState, theme: Theme) {
    let peak = run.seconds.iter().map(|second| second.outbox).max().unwrap_or(0);
    let heading = Line::from(vec![
        Span::styled("outbox over time, peak ", theme.quiet()),
        Span::raw(short(peak, 9)),
    ]);
    frame.render_widget(heading, Rect { height: 1, ..area });
    let points: Vec<Point> = run
        .seconds
        .iter()
        .map(|second| Point {
            value: second.outbox,
            style: if second.warehouse_away {
                theme.bad()
            } else {
                theme.load()
            },
        })
        .collect();
    let curve = Rect {
        y: area.y + 1,
        height: area.height - 1,
        ..area
    };
    chart::draw(frame, curve, &points, run.sending_window.as_secs());
}
