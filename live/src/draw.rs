//! Draws the state of a run at one moment on a terminal frame, without IO.
//!
//! The size of the terminal decides between three layouts. Each panel draws into a given area. If
//! the area is too small, the panel leaves out its least important lines.
//!
//! Invariants:
//! - Any size is drawn without a panic. In a terminal of fewer than 80 columns or 24 rows, only a
//!   message about the size is drawn.
//! - Text from outside (names, log lines) is cut to the available width and has no control
//!   characters.

mod chart;
mod chrome;
mod orders;
mod requests;
mod ring;
mod ring_circle;
mod servers;
mod timeline;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Block, BorderType, Padding};

use crate::state::{Overlay, Pane, State};
use crate::theme::Theme;

/// Minimum width of a terminal for the view, in columns.
pub const COLUMNS_MIN: u16 = 80;
/// Minimum height of a terminal for the view, in rows.
pub const ROWS_MIN: u16 = 24;

/// Draws `state` on the whole frame.
pub fn draw(frame: &mut Frame, state: &State, theme: Theme) {
    let area = frame.area();
    if area.width < COLUMNS_MIN || area.height < ROWS_MIN {
        chrome::draw_too_small(frame, area);
        return;
    }
    let panels = Panels::of(area, state.pane);
    chrome::draw_header(frame, panels.header, state, theme);
    requests::draw(frame, panels.requests, state, theme);
    orders::draw(frame, panels.orders, state, theme);
    ring::draw(frame, panels.ring, state, theme);
    servers::draw(frame, panels.servers, state, theme);
    if let Some(area) = panels.events {
        timeline::draw_events(frame, area, state, theme);
    }
    if let Some(area) = panels.log {
        timeline::draw_log(frame, area, state, theme);
    }
    let shows_one_pane = panels.events.is_none() || panels.log.is_none();
    chrome::draw_footer(frame, panels.footer, state, shows_one_pane, theme);
    if state.overlay == Overlay::Help {
        chrome::draw_help(frame, area, theme);
    }
}

/// Areas of the header, the panels and the footer. The area of a panel that is not shown is `None`.
struct Panels {
    header: Rect,
    requests: Rect,
    orders: Rect,
    ring: Rect,
    servers: Rect,
    events: Option<Rect>,
    log: Option<Rect>,
    footer: Rect,
}

impl Panels {
    fn of(area: Rect, pane: Pane) -> Self {
        let [header, body, footer] = rows(
            area,
            [Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)],
        );
        let mut panels = match area.width {
            160.. if area.height >= 44 => Self::three_columns(body),
            120.. if area.height >= 36 => Self::two_columns(body),
            _ => Self::compact(body, pane),
        };
        (panels.header, panels.footer) = (header, footer);
        panels
    }

    /// Layout for a terminal of at least 80 x 24 cells. One area shows either the events or the
    /// log.
    fn compact(body: Rect, pane: Pane) -> Self {
        let [left, right] = columns(
            body,
            [
                Constraint::Fill(2),
                Constraint::Length(30 + (body.width - 80) / 4),
            ],
        );
        let spare = body.height - 21;
        let [requests, ring, bottom] = rows(
            left,
            [
                Constraint::Length(7 + spare / 3),
                Constraint::Length(7 + spare / 3),
                Constraint::Fill(1),
            ],
        );
        let [orders, servers] = rows(
            right,
            [Constraint::Length(12 + (spare / 3).min(2)), Constraint::Fill(1)],
        );
        let (events, log) = match pane {
            Pane::Events => (Some(bottom), None),
            Pane::Log => (None, Some(bottom)),
        };
        Self {
            header: Rect::ZERO,
            requests,
            orders,
            ring,
            servers,
            events,
            log,
            footer: Rect::ZERO,
        }
    }

    /// Layout for a terminal of at least 120 x 36 cells: two columns of panels, with events and log
    /// below.
    fn two_columns(body: Rect) -> Self {
        let [top, bottom] = rows(body, [Constraint::Fill(3), Constraint::Fill(1)]);
        let [left, right] = columns(top, [Constraint::Fill(3), Constraint::Fill(2)]);
        let [requests, ring] = rows(left, [Constraint::Fill(8), Constraint::Fill(7)]);
        let [orders, servers] = rows(right, [Constraint::Length(14), Constraint::Fill(1)]);
        let [events, log] = columns(bottom, [Constraint::Fill(1), Constraint::Fill(1)]);
        Self {
            header: Rect::ZERO,
            requests,
            orders,
            ring,
            servers,
            events: Some(events),
            log: Some(log),
            footer: Rect::ZERO,
        }
    }

    /// Layout for a terminal of at least 160 x 44 cells: three columns of panels, with events and
    /// log below.
    fn three_columns(body: Rect) -> Self {
        let [top, bottom] = rows(body, [Constraint::Fill(5), Constraint::Fill(2)]);
        let [left, middle, right] = columns(
            top,
            [Constraint::Fill(9), Constraint::Fill(6), Constraint::Fill(5)],
        );
        let [orders, servers] = rows(right, [Constraint::Length(14), Constraint::Fill(1)]);
        let [events, log] = columns(bottom, [Constraint::Fill(9), Constraint::Fill(11)]);
        Self {
            header: Rect::ZERO,
            requests: left,
            orders,
            ring: middle,
            servers,
            events: Some(events),
            log: Some(log),
            footer: Rect::ZERO,
        }
    }
}

fn rows<const N: usize>(area: Rect, constraints: [Constraint; N]) -> [Rect; N] {
    Layout::vertical(constraints).areas(area)
}

fn columns<const N: usize>(area: Rect, constraints: [Constraint; N]) -> [Rect; N] {
    Layout::horizontal(constraints).areas(area)
}

/// Draws a border with a title and returns the area inside the border.
fn panel(frame: &mut Frame, area: Rect, title: Line<'_>, theme: Theme) -> Rect {
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(theme.quiet())
        .padding(Padding::horizontal(1))
        .title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    inner
}

#[cfg(test)]
#[path = "draw/tests.rs"]
mod tests;
