//! Line charts as SVG inside of an HTML figure, with the legend in HTML.
//!
//! Invariants:
//! - Text and axes have the text colour of the page, so that a chart is readable on a light and on
//!   a dark page.
//! - The values of a chart over time are readable without a script: each second with a value has an
//!   SVG title, which the browser shows as a tooltip. Only a chart with a line of more than 600
//!   points has no tooltips.
//! - The names of marks (vertical lines at the times of events) do not overlap, unless their
//!   characters are unusually wide. A mark without room for its name is drawn as a line without a
//!   name.

use std::fmt::Write as _;
use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::axis::{self, Axis, Scale};
use super::drawing_failed;
use super::html::escape;
use super::timeline::{Mark, Timeline, Tone};
use crate::Result;

/// A colour as red, green and blue, each from 0 to 255.
pub(super) type Colour = (u8, u8, u8);

/// Width and height of a chart in SVG units. The page scales the chart to the width of its panel.
const SIZE: (u32, u32) = (640, 260);
/// Maximum number of points of a line. A longer series is reduced to the maxima of groups of
/// points.
const POINTS_MAX: usize = 600;
/// Upper bound of the mean width of the characters in a usual name of a mark, in SVG units at the
/// font size of these names.
const MARK_CHAR_WIDTH: i32 = 6;
/// Distances between the top of the plot and the two rows of names of marks above it, in SVG units.
const MARK_ROWS: [i32; 2] = [14, 26];

/// One line of a chart.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) colour: Colour,
    pub(super) points: Vec<(f64, f64)>,
    /// `true` to tint the area below the line.
    pub(super) is_filled: bool,
}

impl Line {
    /// Returns a line without a tinted area.
    pub(super) fn new(name: &str, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            colour,
            points,
            is_filled: false,
        }
    }

    /// Returns the line with a tinted area below it.
    pub(super) fn filled(self) -> Self {
        Self {
            is_filled: true,
            ..self
        }
    }

    fn max(&self) -> f64 {
        self.points.iter().map(|(_, y)| *y).fold(0.0, f64::max)
    }
}

/// Quantity on the horizontal axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Across {
    /// Seconds since the start of the sending window, in which orders and statistics requests
    /// start.
    Seconds,
    /// Percentiles as the number of nines: 1 is 90 %, 2 is 99 %.
    Percentiles,
}

impl Across {
    fn text(self) -> &'static str {
        match self {
            Self::Seconds => "seconds since the first request",
            Self::Percentiles => "percentile",
        }
    }

    fn axis(self, max: f64) -> Axis {
        match self {
            Self::Seconds => axis::seconds(max),
            Self::Percentiles => axis::percentiles(max),
        }
    }

    fn label(self, place: f64) -> String {
        match self {
            Self::Seconds => Scale::Linear.label(place),
            Self::Percentiles => axis::percentile(place),
        }
    }
}

/// All data of a chart.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) unit: &'a str,
    pub(super) across: Across,
    pub(super) scale: Scale,
    pub(super) lines: Vec<Line>,
    /// Timeline of the run, for the tinted faults and the marks in the background; `None` for a
    /// chart without them.
    pub(super) timeline: Option<&'a Timeline>,
}

/// An axis for the library `plotters`, with ticks at given places. The library has such an axis,
/// but it cannot label the ticks with formatted numbers.
struct Placed {
    places: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Placed {
    fn of(axis: &Axis) -> Self {
        Self {
            places: (axis.low..axis.high).into(),
            ticks: axis.ticks.clone(),
        }
    }
}

impl Ranged for Placed {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.places.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.clone(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.places.range()
    }
}

type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Placed, Placed>>;
type Drawn<T> = std::result::Result<T, DrawingAreaErrorKind<std::io::Error>>;

impl Chart<'_> {
    /// Returns the chart as an HTML figure with its title and legend.
    pub(super) fn figure(&self) -> Result<String> {
        let mut legend = String::new();
        for line in &self.lines {
            let (r, g, b) = line.colour;
            // Writing to a String cannot fail.
            let _ = write!(
                legend,
                "<span class=\"key\"><i style=\"background:rgb({r},{g},{b})\"></i>{} \
                 <em>max {}</em></span>",
                escape(&line.name),
                axis::value(line.max()),
            );
        }
        let svg = self.svg().map_err(drawing_failed)?;
        let text = format!("{} in {} over {}", self.title, self.unit, self.across.text());
        Ok(format!(
            "<figure><figcaption><b>{}</b> <em>{}</em><br/>{legend}</figcaption>\
             <div class=\"plot\" role=\"img\" aria-label=\"{}\">{svg}</div></figure>\n",
            escape(self.title),
            escape(self.unit),
            escape(&text),
        ))
    }

    fn axes(&self) -> (Axis, Axis) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_max = points().map(|(x, _)| *x).fold(1.0, f64::max);
        let x_max = self.timeline.map_or(x_max, |timeline| timeline.end_s.max(x_max));
        (
            self.across.axis(x_max),
            self.scale.axis(points().map(|(_, y)| *y)),
        )
    }

    fn svg(&self) -> Drawn<String> {
        let mut svg = String::new();
        let (x, y) = self.axes();
        let overlay = {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut plot = ChartBuilder::on(&root)
                .margin_right(14)
                .margin_top(if self.has_marks() { 32 } else { 10 })
                .x_label_area_size(36)
                .y_label_area_size(46)
                .build_cartesian_2d(Placed::of(&x), Placed::of(&y))?;
            self.draw_bands(&mut plot, &y)?;
            let label = ("sans-serif", 12).into_font().color(&BLACK);
            plot.configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(BLACK.mix(0.13))
                .axis_style(BLACK.mix(0.45))
                .x_desc(self.across.text())
                .x_label_formatter(&|x| self.across.label(*x))
                .y_label_formatter(&|y| self.scale.label(*y))
                .label_style(label)
                .draw()?;
            self.draw_lines(&mut plot, &y)?;
            self.draw_marks(&mut plot, &x, &y)?;
            let overlay = self.tooltips(&plot, &x, &y);
            root.present()?;
            overlay
        };
        // The library `plotters` draws text and axes in black. They get the text colour of the page
        // here, so that a chart is readable on a dark page.
        let mut svg = svg.replace("#000000", "currentColor");
        if let Some(end) = svg.rfind("</svg>") {
            svg.insert_str(end, &overlay);
        }
        Ok(svg)
    }

    fn has_marks(&self) -> bool {
        self.timeline.is_some_and(|timeline| !timeline.marks.is_empty())
    }

    /// Tints the background of the times in which the warehouse had a fault, or a node was paused
    /// or absent.
    fn draw_bands(&self, plot: &mut Plot<'_, '_>, y: &Axis) -> Drawn<()> {
        for span in self.timeline.iter().flat_map(|timeline| timeline.faults()) {
            let (r, g, b) = span.tone.colour();
            let strength = if span.tone == Tone::Down { 0.22 } else { 0.13 };
            let band = Rectangle::new(
                [(span.from_s, y.low), (span.until_s, y.high)],
                RGBColor(r, g, b).mix(strength).filled(),
            );
            plot.draw_series(std::iter::once(band))?;
        }
        Ok(())
    }

    fn draw_lines(&self, plot: &mut Plot<'_, '_>, y: &Axis) -> Drawn<()> {
        for line in &self.lines {
            let (r, g, b) = line.colour;
            let points: Vec<(f64, f64)> = thinned(&line.points)
                .map(|(x, value)| (x, self.scale.place(value).clamp(y.low, y.high)))
                .collect();
            if let (true, Some(first), Some(last)) = (line.is_filled, points.first(), points.last()) {
                let mut area = points.clone();
                area.extend([(last.0, y.low), (first.0, y.low)]);
                plot.draw_series(std::iter::once(Polygon::new(area, RGBColor(r, g, b).mix(0.15))))?;
            }
            plot.draw_series(LineSeries::new(points, RGBColor(r, g, b).stroke_width(2)))?;
        }
        Ok(())
    }

    fn draw_marks(&self, plot: &mut Plot<'_, '_>, x: &Axis, y: &Axis) -> Drawn<()> {
        let mut free_from = [i32::MIN; MARK_ROWS.len()];
        let marks = self.timeline.iter().flat_map(|timeline| &timeline.marks);
        for mark in marks.filter(|mark| mark.at_s <= x.high) {
            let (r, g, b) = mark.tone.colour();
            let line = vec![(mark.at_s, y.low), (mark.at_s, y.high)];
            plot.draw_series(std::iter::once(PathElement::new(
                line,
                RGBColor(r, g, b).mix(0.8),
            )))?;
            let (left, _) = plot.backend_coord(&(mark.at_s, y.high));
            let width = mark.name.chars().count() as i32 * MARK_CHAR_WIDTH;
            let left = left.min(SIZE.0 as i32 - width);
            let Some(row) = free_from.iter().position(|free| left >= *free) else {
                continue;
            };
            free_from[row] = left + width + MARK_CHAR_WIDTH;
            let shift = left - plot.backend_coord(&(mark.at_s, y.high)).0;
            let style = ("sans-serif", 11).into_font().color(&BLACK);
            let name = EmptyElement::at((mark.at_s, y.high))
                + Text::new(mark.name.clone(), (shift, -MARK_ROWS[row]), style);
            plot.draw_series(std::iter::once(name))?;
        }
        Ok(())
    }

    /// Returns invisible columns, one for each second with a value. The tooltip of a column has the
    /// values of its second, and the names of marks at most half a second away. Returns an empty
    /// text for a chart that is not over time, has no line, or has a line of more than
    /// [`POINTS_MAX`] points.
    fn tooltips(&self, plot: &Plot<'_, '_>, x: &Axis, y: &Axis) -> String {
        let longest = self.lines.iter().map(|line| line.points.len()).max();
        if self.across != Across::Seconds || longest.is_none_or(|points| points > POINTS_MAX) {
            return String::new();
        }
        let mut columns = String::from("<g class=\"tips\">");
        let mut seconds: Vec<i64> = self
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|(x, _)| *x as i64)
            .collect();
        seconds.sort_unstable();
        seconds.dedup();
        for second in seconds {
            let at = second as f64;
            let (left, top) = plot.backend_coord(&((at - 0.5).max(x.low), y.high));
            let (right, bottom) = plot.backend_coord(&((at + 0.5).min(x.high), y.low));
            let mut text = format!("second {second}");
            for line in &self.lines {
                if let Some((_, value)) = line.points.iter().find(|(x, _)| *x as i64 == second) {
                    let _ = write!(text, "\n{} {} {}", line.name, axis::value(*value), self.unit);
                }
            }
            let near = |mark: &&Mark| (mark.at_s - at).abs() <= 0.5;
            for mark in self
                .timeline
                .iter()
                .flat_map(|timeline| timeline.marks.iter().filter(near))
            {
                let _ = write!(text, "\n{}", mark.name);
            }
            let _ = write!(
                columns,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
                (right - left).max(1),
                bottom - top,
                escape(&text),
            );
        }
        columns.push_str("</g>");
        columns
    }
}

/// Returns at most [`POINTS_MAX`] points: from each group of successive points, the point with the
/// largest value.
fn thinned(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    let group = points.len().div_ceil(POINTS_MAX).max(1);
    points.chunks(group).filter_map(|points| {
        points
            .iter()
            .copied()
            .max_by(|(_, one), (_, other)| one.total_cmp(other))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_series_keeps_its_maxima() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        points[4_321].1 = 99.0;
        let thinned: Vec<(f64, f64)> = thinned(&points).collect();
        assert!(thinned.len() <= POINTS_MAX);
        assert!(thinned.contains(&(4_321.0, 99.0)));
    }

    #[test]
    fn each_second_has_a_tooltip_and_names_of_marks_never_overlap() {
        let points: Vec<(f64, f64)> = (0..30).map(|n| (f64::from(n), 5.0)).collect();
        let mark = |at_s: f64| Mark {
            at_s,
            name: "kill node-1".to_owned(),
            tone: Tone::Down,
        };
        let timeline = Timeline {
            end_s: 30.0,
            marks: (0..30).map(|n| mark(f64::from(n))).collect(),
            lanes: Vec::new(),
        };
        let chart = Chart {
            title: "Requests per second",
            unit: "requests/s",
            across: Across::Seconds,
            scale: Scale::Linear,
            lines: vec![Line::new("sent", (1, 2, 3), points)],
            timeline: Some(&timeline),
        };
        let figure = chart.figure().unwrap();
        assert_eq!(figure.matches("<title>").count(), 30);
        assert!(figure.contains("<title>second 7\nsent 5 requests/s\nkill node-1</title>"));
        let names = figure.matches("\nkill node-1\n").count();
        assert!((2..=20).contains(&names), "{names} names of 30 marks");
    }
}
