//! Draws a curve over the seconds of a run as a sparkline.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::{Sparkline, SparklineBar};

/// The value of a curve in one second, with the style in which it is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) value: u64,
    pub(super) style: Style,
}

/// Draws the newest points of a curve, with the last point at the right edge. Each second gets the
/// same number of columns, from 1 to 8: as many as fit for all planned seconds and all points.
pub(super) fn draw(frame: &mut Frame, area: Rect, points: &[Point], seconds_planned: u64) {
    if area.is_empty() {
        return;
    }
    let width = usize::from(area.width);
    let per_point = width / (seconds_planned as usize).max(points.len()).max(1);
    let per_point = per_point.clamp(1, 8);
    let shown = &points[points.len().saturating_sub(width / per_point)..];
    let blank = width - shown.len() * per_point;
    let bars = shown.iter().flat_map(|point| {
        let bar = SparklineBar::from(point.value).style(Some(point.style));
        std::iter::repeat_n(bar, per_point)
    });
    let bars: Vec<SparklineBar> = std::iter::repeat_n(SparklineBar::from(0), blank)
        .chain(bars)
        .collect();
    frame.render_widget(Sparkline::default().data(bars), area);
}
