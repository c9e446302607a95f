//! Draws the ring, with each node's share of the slots, its load, and the volumes that it serves.

use imt_sim::cluster_detail::{NodeDetail, NodeStatus, SlotRun};
use imt_sim::telemetry::ClusterState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use unicode_width::UnicodeWidthStr;

use super::{panel, ring_circle};
use crate::figures::{fit, padded, short};
use crate::state::State;
use crate::theme::{Palette, Theme};

/// Minimum and maximum width of the names of nodes in the table, in columns of the terminal.
const NAME_MIN: usize = 4;
const NAME_MAX: usize = 13;
/// Minimum width inside the panel's border at which a circle is drawn beside the table, in columns.
const CIRCLE_BESIDE: u16 = 64;
/// Minimum height inside the panel's border at which a circle is drawn above the table if there is
/// no room beside it, in rows.
const CIRCLE_ABOVE: u16 = 22;
/// Width of a share in columns: a blank and `99.9 %`.
const SHARE: usize = 7;
/// Minimum height of a circle beside the table, in rows.
const CIRCLE_ROWS_MIN: u16 = 9;

/// Draws the panel of the ring.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let ring = RingView::of(&state.run.cluster);
    let inner = panel(frame, area, title(state, &ring, theme), theme);
    if ring.nodes.is_empty() {
        let text = match state.run.cluster.is_reachable {
            true => "The ring has no members yet.",
            false => "The order management has not answered yet.",
        };
        frame.render_widget(Line::styled(text, theme.quiet()), inner);
        return;
    }
    let table = if inner.width >= CIRCLE_BESIDE && inner.height >= CIRCLE_ROWS_MIN {
        let side = (inner.height * 2).min(inner.width / 3);
        let [circle, _, table] = super::columns(
            inner,
            [
                Constraint::Length(side),
                Constraint::Length(2),
                Constraint::Fill(1),
            ],
        );
        ring_circle::draw(frame.buffer_mut(), circle, &ring, theme);
        table
    } else if inner.height >= CIRCLE_ABOVE {
        let rows = (ring.nodes.len() as u16 + 2).min(inner.height - CIRCLE_ABOVE / 2);
        let [circle, _, table] = super::rows(
            inner,
            [
                Constraint::Fill(1),
                Constraint::Length(1),
                Constraint::Length(rows),
            ],
        );
        ring_circle::draw(frame.buffer_mut(), circle, &ring, theme);
        table
    } else {
        let [bar, table] = super::rows(inner, [Constraint::Length(1), Constraint::Fill(1)]);
        frame.render_widget(share_bar(&ring, usize::from(bar.width), theme), bar);
        table
    };
    draw_table(frame, table, &ring, theme);
}

fn title(state: &State, ring: &RingView, theme: Theme) -> Line<'static> {
    let cluster = &state.run.cluster;
    let nodes = ring.nodes.len();
    let plural = if nodes == 1 { "" } else { "s" };
    let mut spans = vec![
        Span::styled(" Ring ", theme.strong()),
        Span::raw(format!("{nodes} node{plural}")),
        Span::styled(format!(" · epoch {} ", cluster.epoch), theme.quiet()),
    ];
    if let Some(moving) = cluster.detail.moving {
        let text = format!(
            "· moving {} of about {} rows ",
            short(moving.rows, 6),
            short(moving.about, 6)
        );
        spans.push(Span::styled(text, theme.warning()));
    }
    if !cluster.is_reachable && cluster.epoch > 0 {
        spans.push(Span::styled("· not answering ", theme.bad()));
    }
    Line::from(spans)
}

/// The data of one node, from which its row of the table is drawn.
pub(super) struct NodeRow {
    pub(super) name: String,
    pub(super) slots: u64,
    status: NodeStatus,
    serves: Vec<String>,
    load: Option<u64>,
}

/// The data of the panel. The index of a node in `nodes` decides its letter and its colour.
pub(super) struct RingView {
    pub(super) epoch: u64,
    pub(super) nodes: Vec<NodeRow>,
    /// Runs of neighbouring slots with the same owner, in slot order. If the owners of the slots
    /// are unknown, one run for each node. `SlotRun::member` is an index in `nodes` here.
    pub(super) runs: Vec<SlotRun>,
}

impl RingView {
    fn of(cluster: &ClusterState) -> Self {
        let detail = &cluster.detail;
        let nodes: Vec<NodeRow> = match detail.nodes.is_empty() {
            false => detail.nodes.iter().map(NodeRow::of_detail).collect(),
            true => cluster
                .nodes
                .iter()
                .map(|node| NodeRow::of_health(node, cluster))
                .collect(),
        };
        let place = |name: &String| nodes.iter().position(|node| node.name == *name);
        let known = detail.runs.iter().filter_map(|run| {
            let member = place(detail.members.get(run.member)?)?;
            Some(SlotRun {
                member,
                slots: run.slots,
            })
        });
        let mut runs: Vec<SlotRun> = known.collect();
        if runs.is_empty() {
            let whole = nodes.iter().enumerate().map(|(member, node)| SlotRun {
                member,
                slots: node.slots,
            });
            runs = whole.collect();
        }
        Self {
            epoch: cluster.epoch,
            nodes,
            runs,
        }
    }

    /// Returns the number of slots of all nodes together, at least 1 so that it can be a divisor.
    pub(super) fn slots(&self) -> u64 {
        self.nodes
            .iter()
            .fold(0_u64, |sum, node| sum.saturating_add(node.slots))
            .max(1)
    }

    /// Returns the width of the column with the nodes' names.
    fn name_columns(&self) -> usize {
        let names = self.nodes.iter().map(|node| node.name.width());
        names.max().unwrap_or(0).clamp(NAME_MIN, NAME_MAX)
    }

    /// Returns the name of the node that serves a volume, or `None` if no such node is known.
    fn server_of(&self, volume: &str) -> Option<&str> {
        let mut nodes = self.nodes.iter();
        let server = nodes.find(|node| node.serves.iter().any(|served| served == volume))?;
        Some(server.name.as_str())
    }
}

impl NodeRow {
    fn of_detail(node: &NodeDetail) -> Self {
        Self {
            name: node.name.clone(),
            slots: node.slots,
            status: node.status,
            serves: node.serves.clone(),
            load: node.requests.map(|requests| requests.requests),
        }
    }

    fn of_health(node: &imt_sim::telemetry::NodeState, cluster: &ClusterState) -> Self {
        let serves = match node.name == cluster.answered_by {
            true => cluster.volumes.clone(),
            false => Vec::new(),
        };
        Self {
            name: node.name.clone(),
            slots: node.slots,
            status: match node.is_served {
                true => NodeStatus::Serving,
                false => NodeStatus::NotServed,
            },
            serves,
            load: None,
        }
    }

    fn is_serving(&self) -> bool {
        self.status == NodeStatus::Serving
    }

    fn symbol(&self, theme: Theme) -> Span<'static> {
        match self.status {
            NodeStatus::Serving => Span::styled("●", theme.good()),
            NodeStatus::Joining | NodeStatus::Leaving => Span::styled("◐", theme.warning()),
            NodeStatus::Stopped => Span::styled("○", theme.quiet()),
            NodeStatus::Degraded
            | NodeStatus::Silent
            | NodeStatus::Died
            | NodeStatus::NotServed
            | NodeStatus::Unknown => Span::styled("✗", theme.bad()),
        }
    }

    /// Returns the text of the column `serves`. For a serving node, this is its own volume and the
    /// others that it serves. For any other node, this is its status and the other node that serves
    /// its volume, if one is known.
    fn note(&self, ring: &RingView, width: usize) -> String {
        if !self.is_serving() {
            let server = ring.server_of(&self.name).filter(|server| *server != self.name);
            let Some(server) = server else {
                return self.status.name().to_owned();
            };
            let sentence = format!("{}, served by {server}", self.status.name());
            return match sentence.width() <= width {
                true => sentence,
                false => format!("{} → {server}", self.status.name()),
            };
        }
        let others: Vec<&str> = self
            .serves
            .iter()
            .filter(|volume| **volume != self.name)
            .map(String::as_str)
            .collect();
        match others.is_empty() {
            true => "own volume".to_owned(),
            false => format!("own, {}", others.join(", ")),
        }
    }
}

/// Returns the letter by which the node at an index is recognised without colours. After 26 nodes
/// the letters repeat.
pub(super) fn letter(place: usize) -> char {
    char::from(b'A' + (place % 26) as u8)
}

/// Returns a bar in which each node has a part as wide as its share of the slots. The node's letter
/// is in the middle of its part, unless the part has no column.
fn share_bar(ring: &RingView, width: usize, theme: Theme) -> Line<'static> {
    let slots = ring.slots();
    let (mut before, mut column) = (0_u64, 0);
    let mut spans = Vec::new();
    for (place, node) in ring.nodes.iter().enumerate() {
        before = before.saturating_add(node.slots);
        let end = (before as f64 / slots as f64 * width as f64).round() as usize;
        let columns = end.saturating_sub(column);
        column = column.max(end);
        let mut text = vec![' '; columns];
        if let Some(middle) = text.get_mut(columns / 2) {
            *middle = letter(place);
        }
        spans.push(Span::styled(
            text.into_iter().collect::<String>(),
            filled(place, theme),
        ));
    }
    Line::from(spans)
}

/// Returns the style of the part of the bar for the node at an index.
fn filled(place: usize, theme: Theme) -> Style {
    match (theme.palette(), theme.node(place).fg) {
        (Palette::Indexed, Some(colour)) => Style::new().bg(colour).fg(Color::Indexed(16)),
        (Palette::Basic, Some(colour)) => Style::new().bg(colour).fg(Color::Black),
        _ if place.is_multiple_of(2) => Style::new().add_modifier(Modifier::REVERSED),
        _ => Style::new().add_modifier(Modifier::UNDERLINED),
    }
}

fn draw_table(frame: &mut Frame, area: Rect, ring: &RingView, theme: Theme) {
    let height = usize::from(area.height);
    if height == 0 {
        return;
    }
    let mut lines = Vec::new();
    // The heading is drawn only if there is room for it and for all nodes.
    if height > ring.nodes.len() {
        let names = ring.name_columns();
        let heading = format!(
            "{:<4}{:<names$}{:>SHARE$}{:>8}  serves",
            "", "node", "share", "load"
        );
        lines.push(Line::styled(
            fit(&heading, usize::from(area.width)),
            theme.quiet(),
        ));
    }
    let free = height - lines.len();
    let mut places: Vec<usize> = (0..ring.nodes.len()).collect();
    let hidden = places.len().saturating_sub(free);
    if hidden > 0 {
        // If not all nodes fit, those that do not serve come first, because an operator must see
        // them.
        places.sort_by_key(|place| ring.nodes[*place].is_serving());
        places.truncate(free - 1);
    }
    for place in &places {
        lines.push(node_line(ring, *place, usize::from(area.width), theme));
    }
    if hidden > 0 {
        let more = ring.nodes.len() - places.len();
        lines.push(Line::styled(format!("    and {more} more"), theme.quiet()));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn node_line(ring: &RingView, place: usize, width: usize, theme: Theme) -> Line<'static> {
    let node = &ring.nodes[place];
    let names = ring.name_columns();
    let share = node.slots as f64 * 100.0 / ring.slots() as f64;
    let load = node
        .load
        .map_or("-".to_owned(), |load| format!("{}/s", short(load, 5)));
    let note_width = width.saturating_sub(4 + names + SHARE + 8 + 2);
    let note_style = if node.is_serving() {
        Style::new()
    } else {
        theme.bad()
    };
    Line::from(vec![
        Span::styled(
            letter(place).to_string(),
            theme.node(place).add_modifier(Modifier::BOLD),
        ),
        Span::raw(" "),
        node.symbol(theme),
        Span::raw(" "),
        Span::raw(padded(&node.name, names)),
        Span::raw(format!("{:>SHARE$}", percent(share))),
        Span::raw(format!("{load:>8}  ")),
        Span::styled(fit(&node.note(ring, note_width), note_width), note_style),
    ])
}

/// Returns a share in percent as text with one decimal, such as `99.9 %`, or as `100 %`.
fn percent(share: f64) -> String {
    if share >= 99.95 {
        "100 %".to_owned()
    } else {
        format!("{share:.1} %")
    }
}
