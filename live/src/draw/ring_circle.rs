//! Draws the ring as a circle of block characters in the owners' colours, or of the owners' letters
//! without colours. Slot 0 is at the top, and the slots continue clockwise.
//!
//! A terminal cell is about twice as high as wide, so each cell has two square points, one above
//! the other.

use std::f64::consts::TAU;

use imt_sim::cluster_detail::SlotRun;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::ring::{RingView, letter};
use crate::figures::short;
use crate::theme::{Palette, Theme};

/// Inner radius of the ring as a share of its outer radius. In a circle of at least 8 rows, the
/// hole has room for two lines of text.
const HOLE: f64 = 0.62;

/// Draws the largest circle that fits, in the centre of the area. Draws nothing if the circle would
/// be too small to show the shares.
pub(super) fn draw(buffer: &mut Buffer, area: Rect, ring: &RingView, theme: Theme) {
    let points = area.width.min(area.height.saturating_mul(2));
    // A circle with a diameter below 8 points would be too coarse to show the shares.
    if points < 8 {
        return;
    }
    let rows = points.div_ceil(2);
    let area = Rect {
        x: area.x + (area.width - points) / 2,
        y: area.y + (area.height - rows) / 2,
        width: points,
        height: rows,
    };
    let circle = Circle {
        runs: &ring.runs,
        slots: ring
            .runs
            .iter()
            .fold(0_u64, |sum, run| sum.saturating_add(run.slots)),
        radius: f64::from(points) / 2.0,
    };
    for row in 0..area.height {
        for column in 0..area.width {
            let upper = circle.owner(column, row * 2);
            let lower = circle.owner(column, row * 2 + 1);
            paint(
                buffer,
                (area.x + column, area.y + row).into(),
                Cell { upper, lower },
                theme,
            );
        }
    }
    let middle = area.y + area.height / 2;
    centre(
        buffer,
        area,
        middle.saturating_sub(1),
        &format!("{} slots", short(circle.slots, 6)),
        theme.strong(),
    );
    centre(
        buffer,
        area,
        middle,
        &format!("epoch {}", ring.epoch),
        theme.quiet(),
    );
}

struct Circle<'a> {
    runs: &'a [SlotRun],
    slots: u64,
    radius: f64,
}

impl Circle<'_> {
    /// Returns the index of the member that owns the slot at a point. Returns `None` for a point in
    /// the hole or outside the circle, and for a ring without slots.
    fn owner(&self, column: u16, row: u16) -> Option<usize> {
        let x = f64::from(column) + 0.5 - self.radius;
        let y = f64::from(row) + 0.5 - self.radius;
        let distance = x.hypot(y);
        if self.slots == 0 || distance > self.radius || distance < self.radius * HOLE {
            return None;
        }
        // Direction of the point from the centre, as a share of a full turn clockwise from the top.
        let turn = (x.atan2(-y) / TAU).rem_euclid(1.0);
        let slot = ((turn * self.slots as f64) as u64).min(self.slots - 1);
        let mut end = 0_u64;
        let run = self.runs.iter().find(|run| {
            end = end.saturating_add(run.slots);
            slot < end
        })?;
        Some(run.member)
    }
}

/// Indices of the members that own the slots at the upper and at the lower point of a cell.
struct Cell {
    upper: Option<usize>,
    lower: Option<usize>,
}

fn paint(buffer: &mut Buffer, place: ratatui::layout::Position, points: Cell, theme: Theme) {
    let Some(cell) = buffer.cell_mut(place) else {
        return;
    };
    let Some(owner) = points.upper.or(points.lower) else {
        return;
    };
    if theme.palette() == Palette::Monochrome {
        cell.set_char(letter(owner));
        return;
    }
    let colour = |owner: usize| theme.node(owner).fg.unwrap_or_default();
    match (points.upper, points.lower) {
        (Some(upper), Some(lower)) if upper != lower => {
            cell.set_char('▀').set_fg(colour(upper)).set_bg(colour(lower));
        }
        (Some(owner), Some(_)) => {
            cell.set_char('█').set_fg(colour(owner));
        }
        (Some(owner), None) => {
            cell.set_char('▀').set_fg(colour(owner));
        }
        (None, Some(owner)) => {
            cell.set_char('▄').set_fg(colour(owner));
        }
        (None, None) => {}
    }
}

fn centre(buffer: &mut Buffer, area: Rect, y: u16, text: &str, style: Style) {
    let hole = (f64::from(area.width) * HOLE) as usize;
    let length = text.chars().count();
    // The text is left out if it would cover the ring, and in a circle of fewer than 8 rows.
    if length > hole.saturating_sub(1) || area.height < 8 {
        return;
    }
    let x = area.x + (area.width.saturating_sub(length as u16)).div_ceil(2);
    buffer.set_string(x, y, text, style);
}
