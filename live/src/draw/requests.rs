//! Draws requests and latencies by route.

use imt_sim::telemetry::{Route, RouteSecond, RouteState};
use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::chart::{self, Point};
use super::panel;
use crate::figures::{count, latency, short};
use crate::state::State;
use crate::theme::Theme;

/// Maximum height of the area of one route, in rows.
const ROUTE_ROWS_MAX: u16 = 9;
/// Width of the numbers of a route beside curves that are one row high, in columns.
const FIGURES_NARROW: u16 = 29;
/// Width of the numbers of a route beside higher curves, in columns.
const FIGURES_WIDE: u16 = 26;

/// Draws the panel of requests.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let inner = panel(frame, area, title(state, theme), theme);
    if inner.height < 2 {
        return;
    }
    let rows = ((inner.height - 1) / Route::COUNT as u16).clamp(1, ROUTE_ROWS_MAX);
    let figures = if rows == 1 { FIGURES_NARROW } else { FIGURES_WIDE };
    let head = Rect { height: 1, ..inner };
    draw_heading(frame, head, figures, rows, theme);
    for route in Route::ALL {
        let y = inner.y + 1 + route.index() as u16 * rows;
        let area = Rect {
            y,
            height: rows,
            ..inner
        };
        // If the panel has fewer rows than routes, the last routes are left out.
        if area.bottom() > inner.bottom() {
            break;
        }
        draw_route(frame, area, figures, RouteView::of(state, route), theme);
    }
}

fn title(state: &State, theme: Theme) -> Line<'static> {
    let run = &state.run;
    let sent = run.seconds.back().map_or(0, |second| second.sent);
    let failed_style = if run.failed > 0 {
        theme.bad()
    } else {
        theme.quiet()
    };
    let mut spans = vec![
        Span::styled(" Requests ", theme.strong()),
        Span::raw(format!("{}/s", short(sent, 7))),
        Span::styled(format!(" · {} in all", short(run.answered, 7)), theme.quiet()),
        Span::styled(" · ", theme.quiet()),
        Span::styled(format!("{} failed ", short(run.failed, 6)), failed_style),
    ];
    if run.dropped > 0 {
        spans.push(Span::styled(
            format!("· {} dropped ", short(run.dropped, 6)),
            theme.bad(),
        ));
    }
    Line::from(spans)
}

/// The data of one route, from which its area of the panel is drawn.
struct RouteView<'a> {
    route: Route,
    state: &'a RouteState,
    newest: RouteSecond,
    peak: u64,
    rate: Vec<RouteSecond>,
    seconds_planned: u64,
}

impl<'a> RouteView<'a> {
    fn of(state: &'a State, route: Route) -> Self {
        let rate: Vec<RouteSecond> = state
            .run
            .seconds
            .iter()
            .map(|second| second.routes[route.index()])
            .collect();
        Self {
            route,
            state: state.run.route(route),
            newest: rate.last().copied().unwrap_or_default(),
            peak: rate.iter().map(|second| second.requests).max().unwrap_or(0),
            rate,
            seconds_planned: state.run.sending_window.as_secs(),
        }
    }

    fn points(&self, theme: Theme, curve: Curve) -> Vec<Point> {
        let usual = match curve {
            Curve::Rate => theme.load(),
            Curve::Latency => theme.latency(),
        };
        let points = self.rate.iter().map(|second| Point {
            value: match curve {
                Curve::Rate => second.requests,
                Curve::Latency => second.p99_us,
            },
            style: if second.failed > 0 { theme.bad() } else { usual },
        });
        points.collect()
    }

    /// Returns a latency of the newest second as text, or a dash if that second had no requests.
    fn latency(&self, us: u64) -> String {
        match self.newest.requests {
            0 => "-".to_owned(),
            _ => latency(us),
        }
    }
}

#[derive(Clone, Copy)]
enum Curve {
    Rate,
    Latency,
}

fn draw_heading(frame: &mut Frame, area: Rect, figures: u16, rows: u16, theme: Theme) {
    let [left, rate, latency] = thirds(area, figures);
    let text = match rows {
        1 => format!("{:<8}{:>6}{:>7}{:>8}", "", "/s", "p50", "p99"),
        _ => "newest second".to_owned(),
    };
    // A narrow curve gets a short heading, because a long heading would be cut.
    let (of_rate, of_latency) = match rate.width {
        0..12 => ("rate", "p99"),
        _ => ("requests/s", "p99 latency"),
    };
    frame.render_widget(Line::styled(text, theme.quiet()), left);
    frame.render_widget(Line::styled(of_rate, theme.quiet()), rate);
    frame.render_widget(Line::styled(of_latency, theme.quiet()), latency);
}

fn draw_route(frame: &mut Frame, area: Rect, figures: u16, view: RouteView<'_>, theme: Theme) {
    let [left, rate, latency] = thirds(area, figures);
    let lines = match area.height {
        1 => vec![short_figures(&view, theme)],
        _ => long_figures(&view, theme),
    };
    frame.render_widget(Paragraph::new(lines), left);
    for (area, curve) in [(rate, Curve::Rate), (latency, Curve::Latency)] {
        // If the area has more than two rows, a blank row separates its curves from those of the
        // next route.
        let height = if area.height > 2 {
            area.height - 1
        } else {
            area.height
        };
        let area = Rect { height, ..area };
        chart::draw(frame, area, &view.points(theme, curve), view.seconds_planned);
    }
}

fn short_figures(view: &RouteView<'_>, theme: Theme) -> Line<'static> {
    let rate = short(view.newest.requests, 6);
    let compact = |us: u64| view.latency(us).replace(" ms", "ms").replace(" s", "s");
    Line::from(vec![
        Span::styled(format!("{:<8}", view.route.name()), theme.strong()),
        Span::raw(format!("{rate:>6}")),
        Span::raw(format!(
            "{:>7}{:>8}",
            compact(view.newest.p50_us),
            compact(view.newest.p99_us)
        )),
    ])
}

fn long_figures(view: &RouteView<'_>, theme: Theme) -> Vec<Line<'static>> {
    let label = |text: &'static str| Span::styled(text, theme.quiet());
    let failed = view.state.failed();
    let failed_style = if failed > 0 { theme.bad() } else { theme.quiet() };
    vec![
        Line::from(vec![
            Span::styled(format!("{:<9}", view.route.name()), theme.strong()),
            Span::raw(format!("{:>9}", format!("{}/s", short(view.newest.requests, 7)))),
        ]),
        Line::from(vec![
            label("p50 "),
            Span::raw(format!("{:<8}", view.latency(view.newest.p50_us))),
            label(" p99 "),
            Span::raw(view.latency(view.newest.p99_us)),
        ]),
        Line::from(vec![
            label("all "),
            Span::raw(format!("{:<8}", short(view.state.requests, 8))),
            label(" max "),
            Span::raw(match view.state.latency.count {
                0 => "-".to_owned(),
                _ => latency(view.state.latency.max_us),
            }),
        ]),
        Line::styled(format!("{} failed", count(failed)), failed_style),
        Line::from(vec![
            label("peak "),
            Span::raw(format!("{}/s", short(view.peak, 8))),
        ]),
    ]
}

fn thirds(area: Rect, figures: u16) -> [Rect; 3] {
    let [left, _, rate, _, latency] = super::columns(
        area,
        [
            Constraint::Length(figures),
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(1),
            Constraint::Fill(1),
        ],
    );
    [left, rate, latency]
}
