//! Draws the events of the run and the newest lines of the log.

use imt_sim::telemetry::{EventKind, RunEvent};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::panel;
use crate::figures::fit;
use crate::state::State;
use crate::theme::Theme;

/// All kinds of events, in the sequence in which the legend shows them.
const KINDS: [EventKind; 12] = [
    EventKind::Join,
    EventKind::Stop,
    EventKind::Kill,
    EventKind::Pause,
    EventKind::Resume,
    EventKind::Leave,
    EventKind::Ring,
    EventKind::Recovered,
    EventKind::Warehouse,
    EventKind::Breaker,
    EventKind::Load,
    EventKind::Warning,
];
/// Number of kinds of events in one line of the legend.
const LEGEND_COLUMNS: usize = 4;

struct Mark {
    symbol: &'static str,
    style: Style,
}

fn mark(kind: EventKind, theme: Theme) -> Mark {
    let (symbol, style) = match kind {
        EventKind::Join => ("▲", theme.good()),
        EventKind::Stop => ("▼", theme.warning()),
        EventKind::Kill => ("✗", theme.bad()),
        EventKind::Pause => ("‖", theme.warning()),
        EventKind::Resume => ("►", theme.good()),
        EventKind::Leave => ("◄", theme.warning()),
        EventKind::Ring => ("○", theme.load()),
        EventKind::Recovered => ("✓", theme.good()),
        EventKind::Warehouse => ("■", theme.latency()),
        EventKind::Breaker => ("◆", theme.bad()),
        EventKind::Load => ("→", theme.load()),
        EventKind::Warning => ("!", theme.warning()),
    };
    Mark { symbol, style }
}

/// Draws the newest events, with the newest one at the bottom.
pub(super) fn draw_events(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let title = Line::styled(" Events ", theme.strong());
    let inner = panel(frame, area, title, theme);
    let events = &state.run.events;
    if events.is_empty() {
        let text = "Joins, stops, deaths and faults appear here.";
        frame.render_widget(Line::styled(text, theme.quiet()), inner);
        return;
    }
    let first = events.len().saturating_sub(usize::from(inner.height));
    let width = usize::from(inner.width);
    let lines = events.range(first..).map(|event| event_line(event, width, theme));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inner);
}

fn event_line(event: &RunEvent, width: usize, theme: Theme) -> Line<'static> {
    let Mark { symbol, style } = mark(event.kind, theme);
    let seconds = event.offset_ms as f64 / 1_000.0;
    let at = format!("{seconds:>7.1} s ");
    // The time with its blank, the symbol and another blank come before the text.
    let text = fit(&event.text, width.saturating_sub(at.len() + 2));
    Line::from(vec![
        Span::styled(at, theme.quiet()),
        Span::styled(symbol, style),
        Span::raw(" "),
        Span::raw(text),
    ])
}

/// Draws the newest lines of the log, with the newest one at the bottom.
pub(super) fn draw_log(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let inner = panel(frame, area, Line::styled(" Log ", theme.strong()), theme);
    if state.log.is_empty() {
        let text = "Lines of the log appear here.";
        frame.render_widget(Line::styled(text, theme.quiet()), inner);
        return;
    }
    let first = state.log.len().saturating_sub(usize::from(inner.height));
    let lines = state.log[first..].iter().map(|line| {
        let style = match line {
            line if line.contains("ERROR") => theme.bad(),
            line if line.contains("WARN") => theme.warning(),
            _ => Style::new(),
        };
        Line::styled(fit(&brief(line), usize::from(inner.width)), style)
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inner);
}

/// Returns a log line with timestamps shortened to `HH:MM:SS`, because a full timestamp would take
/// half of a narrow panel.
fn brief(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.get(11..19) {
        Some(time) if word.get(10..11) == Some("T") && word.ends_with('Z') => time,
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns the legend: the symbols of all kinds of events and their meanings.
pub(super) fn legend(theme: Theme) -> Vec<Line<'static>> {
    let rows = KINDS.chunks(LEGEND_COLUMNS).map(|kinds| {
        let spans = kinds.iter().flat_map(|kind| {
            let Mark { symbol, style } = mark(*kind, theme);
            [
                Span::styled(symbol, style),
                Span::raw(format!(" {:<14}", kind.name())),
            ]
        });
        Line::from(spans.collect::<Vec<_>>())
    });
    rows.collect()
}
