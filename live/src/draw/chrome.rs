//! Draws the header, the footer, the help window, and the message for a terminal that is too small.

use imt_sim::summary::Verdict;
use imt_sim::telemetry::Phase;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Flex, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Wrap};

use super::{COLUMNS_MIN, ROWS_MIN, panel, timeline};
use crate::figures::{count, fit};
use crate::state::{Ending, Outcome, Pane, State};
use crate::theme::Theme;

/// Draws the message for a terminal that is too small.
pub(super) fn draw_too_small(frame: &mut Frame, area: Rect) {
    let text = format!(
        "The terminal has {} x {} cells. The live view needs {COLUMNS_MIN} x {ROWS_MIN}. \
         Enlarge the window; the run goes on. q stops it.",
        area.width, area.height
    );
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
}

/// Draws the name of the scenario, the seed, the stage of the run and its progress.
pub(super) fn draw_header(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let [title, progress] = super::rows(area, [Constraint::Length(1), Constraint::Length(1)]);
    let stage = stage(state, theme);
    let stage_width = (stage.width() as u16 + 1).min(area.width);
    let [left, right] = super::columns(title, [Constraint::Fill(1), Constraint::Length(stage_width)]);
    let scenario = fit(&state.run.scenario, 24);
    let name = Line::from(vec![
        Span::styled(" IMT Order ", theme.strong()),
        Span::styled("  scenario ", theme.quiet()),
        Span::raw(scenario),
        Span::styled("  seed ", theme.quiet()),
        Span::raw(state.run.seed.to_string()),
    ]);
    frame.render_widget(name, left);
    frame.render_widget(stage.alignment(Alignment::Right), right);
    draw_progress(frame, progress, state, theme);
}

fn stage(state: &State, theme: Theme) -> Line<'static> {
    if let Some(outcome) = &state.outcome {
        return verdict(outcome, theme);
    }
    let run = &state.run;
    let elapsed = run.elapsed.as_secs();
    let window = run.sending_window.as_secs_f64().ceil() as u64;
    let mut spans = match run.phase {
        Phase::Waiting => vec![Span::styled("○ waiting for the first stock", theme.warning())],
        Phase::Sending => vec![
            Span::styled("● sending ", theme.good()),
            Span::raw(format!("{} / {} s", elapsed.min(window), window)),
        ],
        Phase::Draining => vec![
            Span::styled("◐ draining ", theme.warning()),
            Span::raw(format!("{} in flight, {elapsed} s", count(run.in_flight()))),
        ],
        Phase::Auditing => {
            let audit = if run.audit.is_empty() {
                "begins"
            } else {
                run.audit.as_str()
            };
            vec![
                Span::styled("◑ auditing ", theme.warning()),
                Span::raw(fit(audit, 40)),
            ]
        }
        Phase::Done => vec![Span::styled("✓ done", theme.good())],
    };
    if state.ending == Ending::Asked && matches!(run.phase, Phase::Waiting | Phase::Sending) {
        spans.insert(0, Span::styled("stopping  ", theme.warning()));
    }
    Line::from(spans)
}

fn verdict(outcome: &Outcome, theme: Theme) -> Line<'static> {
    let name = outcome.verdict.name();
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let (symbol, style, detail) = match outcome.verdict {
        Verdict::Clean => ("✓", theme.good(), "audit found nothing".to_owned()),
        Verdict::Findings => {
            let findings = outcome.findings;
            (
                "✗",
                theme.bad(),
                format!("{findings} finding{}", plural(findings)),
            )
        }
        Verdict::ThresholdMissed => {
            let missed = outcome.thresholds_missed;
            (
                "✗",
                theme.bad(),
                format!("{missed} threshold{} missed", plural(missed)),
            )
        }
        Verdict::Invalid => {
            // A missed threshold decides the exit code, so it is shown instead of the schedule.
            let detail = match outcome.thresholds_missed {
                0 => "the schedule was not kept".to_owned(),
                missed => format!("{missed} threshold{} missed", plural(missed)),
            };
            ("!", theme.warning(), detail)
        }
        Verdict::Unaudited => ("!", theme.bad(), "one side was not audited".to_owned()),
    };
    Line::from(vec![
        Span::styled(format!("{symbol} {name} "), style.patch(theme.strong())),
        Span::raw(detail),
    ])
}

fn draw_progress(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let width = usize::from(area.width.saturating_sub(2));
    let share = match state.run.phase {
        Phase::Waiting => 0.0,
        Phase::Sending => {
            let window = state.run.sending_window.as_secs_f64();
            let elapsed = state.run.elapsed.as_secs_f64();
            if window > 0.0 {
                (elapsed / window).clamp(0.0, 1.0)
            } else {
                0.0
            }
        }
        Phase::Draining | Phase::Auditing | Phase::Done => 1.0,
    };
    let filled = (share * width as f64).round() as usize;
    let line = Line::from(vec![
        Span::raw(" "),
        Span::styled("━".repeat(filled), theme.load()),
        Span::styled("─".repeat(width - filled), theme.quiet()),
    ]);
    frame.render_widget(line, area);
}

/// Draws the keys, and a notice or the address of the web console. `shows_one_pane` is `true` if
/// the layout shows either the events or the log, so that the key `l` has an effect.
pub(super) fn draw_footer(frame: &mut Frame, area: Rect, state: &State, shows_one_pane: bool, theme: Theme) {
    let key = |name: &'static str| Span::styled(name, theme.strong());
    let label = |text: &'static str| Span::styled(text, theme.quiet());
    let mut spans = match (state.ending, state.outcome) {
        (_, Some(_)) => vec![key(" q"), label(" leave")],
        (Ending::NotAsked, None) => vec![key(" q"), label(" stop and audit")],
        (Ending::Asked, None) => vec![key(" q"), label(" leave at once")],
    };
    spans.extend([key("   s"), label(" save"), key("   ?"), label(" help")]);
    if shows_one_pane {
        let other = match state.pane {
            Pane::Events => " log",
            Pane::Log => " events",
        };
        spans.extend([key("   l"), label(other)]);
    }
    let keys = Line::from(spans);
    let free = usize::from(area.width).saturating_sub(keys.width() + 2);
    frame.render_widget(keys, area);
    if let Some(notice) = &state.notice {
        let notice = Line::styled(fit(notice, free), theme.strong());
        frame.render_widget(notice.alignment(Alignment::Right), area);
        return;
    }
    // The details of the nodes come from the web console. Without details there is no console, or
    // it does not answer, so its address is not shown.
    let has_console = !state.run.cluster.detail.nodes.is_empty();
    if let Some(console) = state.console.as_ref().filter(|_| has_console) {
        let link = Line::from(vec![
            label("web console "),
            Span::raw(fit(console, free.saturating_sub(12))),
            Span::raw(" "),
        ]);
        frame.render_widget(link.alignment(Alignment::Right), area);
    }
}

/// Draws the help window, with keys and symbols, on top of everything else.
pub(super) fn draw_help(frame: &mut Frame, area: Rect, theme: Theme) {
    let mut lines = vec![
        help_line(
            "q, Ctrl-C",
            "stop sending, finish, audit, print the summary",
            theme,
        ),
        help_line("", "twice: leave at once", theme),
        help_line(
            "l",
            "events or log, where a small screen shows one of them",
            theme,
        ),
        help_line("s", "save this picture into the folder of the run", theme),
        help_line("?, h, Esc", "open and close this help", theme),
        Line::default(),
        Line::styled("Bars of orders: █ in this state, ░ past it", Style::new()),
        Line::from(vec![
            Span::raw("Curves: a bar each second, "),
            Span::styled("so", theme.bad()),
            Span::raw(" in seconds with failed requests"),
        ]),
        Line::raw("Latency: from the intended start of a request to its answer"),
        Line::default(),
    ];
    lines.extend(timeline::legend(theme));
    let height = lines.len() as u16 + 2;
    let [area] = Layout::horizontal([Constraint::Length(72)])
        .flex(Flex::Center)
        .areas(area);
    let [area] = Layout::vertical([Constraint::Length(height)])
        .flex(Flex::Center)
        .areas(area);
    frame.render_widget(Clear, area);
    let inner = panel(frame, area, Line::styled(" Help ", theme.strong()), theme);
    frame.render_widget(Paragraph::new(lines), inner);
}

fn help_line(key: &'static str, text: &'static str, theme: Theme) -> Line<'static> {
    Line::from(vec![
        Span::styled(format!("{key:<11}"), theme.strong()),
        Span::raw(text),
    ])
}
