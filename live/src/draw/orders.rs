//! Draws the orders of the run by state, as a funnel.
//!
//! The bar of a state on the usual path of an order has two parts. The full part stands for the
//! orders in that state, the light part for the orders in later states of the path.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::panel;
use crate::figures::{padded, short};
use crate::state::State;
use crate::theme::Theme;

/// States on the usual path of an order, from the first to the last.
const PATH: [&str; 6] = [
    "received",
    "reserved",
    "announced",
    "paid",
    "delivering",
    "delivered",
];
/// Final states that are usual in a shop.
const ENDS: [&str; 3] = ["rejected", "cancelled", "expired"];
/// Final states that need an operator's attention.
const FAILURES: [&str; 2] = ["failed", "refund_wanted"];
/// Widths of the columns with the name of a state and with its number of orders, in columns of the
/// terminal.
const NAME: usize = 13;
const COUNT: usize = 6;

struct Row {
    name: String,
    here: u64,
    past: u64,
    style: Style,
}

/// Draws the panel of orders.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let orders = state.run.cluster.orders_of_run();
    let total: u64 = orders.values().fold(0, |sum, count| sum.saturating_add(*count));
    let title = Line::from(vec![
        Span::styled(" Orders ", theme.strong()),
        Span::raw(format!("{} ", short(total, 9))),
        Span::styled("of this run ", theme.quiet()),
    ]);
    let inner = panel(frame, area, title, theme);
    let width = usize::from(inner.width).saturating_sub(NAME + COUNT + 1);
    let rows = rows(&orders, usize::from(inner.height), theme);
    let largest = rows
        .iter()
        .map(|row| row.here.saturating_add(row.past))
        .max()
        .unwrap_or(0)
        .max(1);
    let lines = rows.iter().map(|row| line(row, width, largest, theme));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inner);
}

/// Returns a row for each state. If the rows do not fit into `height`, states outside of [`PATH`]
/// without orders are left out, beginning with the last one.
fn rows(orders: &BTreeMap<String, u64>, height: usize, theme: Theme) -> Vec<Row> {
    let count = |name: &str| orders.get(name).copied().unwrap_or(0);
    let mut rows = Vec::new();
    for (place, name) in PATH.iter().enumerate() {
        let past = PATH[place + 1..]
            .iter()
            .fold(0_u64, |sum, later| sum.saturating_add(count(later)));
        let style = if *name == "delivered" {
            theme.good()
        } else {
            theme.load()
        };
        rows.push(Row {
            name: (*name).to_owned(),
            here: count(name),
            past,
            style,
        });
    }
    let known = |name: &String| {
        let name = name.as_str();
        PATH.contains(&name) || ENDS.contains(&name) || FAILURES.contains(&name)
    };
    let others = orders.keys().filter(|name| !known(name)).map(String::as_str);
    let ends = ENDS.iter().map(|name| (*name, theme.quiet()));
    let failures = FAILURES.into_iter().chain(others).map(|name| (name, theme.bad()));
    let mut ends: Vec<Row> = ends
        .chain(failures)
        .map(|(name, style)| Row {
            name: name.replace('_', " "),
            here: count(name),
            past: 0,
            style,
        })
        .collect();
    while rows.len() + ends.len() > height {
        match ends.iter().rposition(|row| row.here == 0) {
            Some(place) => drop(ends.remove(place)),
            None => break,
        }
    }
    rows.extend(ends);
    rows
}

fn line(row: &Row, width: usize, largest: u64, theme: Theme) -> Line<'static> {
    let columns = |count: u64| (count as f64 / largest as f64 * width as f64).round() as usize;
    let whole = columns(row.here.saturating_add(row.past)).min(width);
    // A state with at least one order has a bar of at least one column.
    let full = columns(row.here)
        .clamp(usize::from(row.here > 0), width.max(1))
        .min(width);
    let light = whole.saturating_sub(full);
    let name_style = if row.here > 0 { Style::new() } else { theme.quiet() };
    Line::from(vec![
        Span::styled(padded(&row.name, NAME), name_style),
        Span::styled(format!("{:>COUNT$} ", short(row.here, COUNT)), name_style),
        Span::styled("█".repeat(full), row.style),
        Span::styled("░".repeat(light), row.style),
    ])
}
