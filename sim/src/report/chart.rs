//! Line charts as SVG inside a figure, with the legend in HTML.

use std::fmt::Write as _;

use plotters::prelude::*;

use super::drawing_failed;
use super::html::escape;
use crate::Result;

/// Red, green and blue.
pub(super) type Colour = (u8, u8, u8);

/// Size of a chart in SVG units; the page scales it to its width.
const SIZE: (u32, u32) = (960, 300);
/// Points of a line; longer series are thinned out to their maxima.
const POINTS_MAX: usize = 600;
/// Smallest value on a logarithmic axis: a microsecond in milliseconds.
const LOG_MIN: f64 = 0.001;
/// Marks with a name; further ones are drawn as lines only.
const NAMED_MARKS_MAX: usize = 24;

/// Scale of the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    /// In powers of ten; values below a thousandth are drawn at it.
    Logarithmic,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.max(LOG_MIN).log10(),
        }
    }

    fn label(self, place: f64) -> String {
        // Between powers of ten there is a line without a number.
        if self == Self::Logarithmic && (place - place.round()).abs() > 1e-6 {
            return String::new();
        }
        let value = match self {
            Self::Linear => place,
            Self::Logarithmic => 10_f64.powf(place),
        };
        match value {
            _ if value >= 10_000.0 => format!("{:.0}k", value / 1_000.0),
            _ if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
            _ if value >= 0.1 => format!("{value:.1}"),
            _ => format!("{value:.3}"),
        }
    }
}

/// One line.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) colour: Colour,
    pub(super) points: Vec<(f64, f64)>,
}

/// A vertical line at a moment.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) at_s: f64,
    pub(super) name: String,
}

/// A chart.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) unit: &'a str,
    pub(super) x_unit: &'a str,
    pub(super) scale: Scale,
    pub(super) lines: Vec<Line>,
    pub(super) marks: Vec<Mark>,
}

impl Chart<'_> {
    /// Draws the chart with its legend.
    pub(super) fn figure(&self) -> Result<String> {
        let mut legend = String::new();
        for line in &self.lines {
            let (r, g, b) = line.colour;
            let last = line.points.iter().map(|(_, y)| *y).fold(0.0, f64::max);
            // Writing to a String cannot fail.
            let _ = write!(
                legend,
                "<span class=\"key\"><i style=\"background:rgb({r},{g},{b})\"></i>{} (max {})</span>",
                escape(line.name),
                Scale::Linear.label(last),
            );
        }
        let svg = self.svg().map_err(drawing_failed)?;
        let text = format!("{} in {} over {}", self.title, self.unit, self.x_unit);
        Ok(format!(
            "<figure role=\"img\" aria-label=\"{}\">{svg}<figcaption>{} in {}: {legend}</figcaption></figure>\n",
            escape(&text),
            escape(self.title),
            escape(self.unit),
        ))
    }

    fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_max = points().map(|(x, _)| *x).fold(1.0, f64::max);
        let y_max = points().map(|(_, y)| *y).fold(0.0, f64::max);
        let y_min = points()
            .map(|(_, y)| *y)
            .filter(|y| *y > 0.0)
            .fold(f64::INFINITY, f64::min);
        let y = match self.scale {
            Scale::Linear => (0.0, if y_max > 0.0 { y_max * 1.1 } else { 1.0 }),
            Scale::Logarithmic => {
                let low = self
                    .scale
                    .place(if y_min.is_finite() { y_min } else { LOG_MIN })
                    .floor();
                (low, self.scale.place(y_max).ceil().max(low + 1.0))
            }
        };
        ((0.0, x_max), y)
    }

    fn svg(&self) -> std::result::Result<String, DrawingAreaErrorKind<std::io::Error>> {
        let mut svg = String::new();
        let ((x_min, x_max), (y_min, y_max)) = self.ranges();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut chart = ChartBuilder::on(&root)
                .margin(8)
                .margin_top(20)
                .x_label_area_size(38)
                .y_label_area_size(62)
                .build_cartesian_2d(x_min..x_max, y_min..y_max)?;
            let label = ("sans-serif", 14).into_font().color(&BLACK);
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(BLACK.mix(0.15))
                .axis_style(BLACK.mix(0.5))
                .x_desc(self.x_unit)
                .y_desc(self.unit)
                .x_label_formatter(&|x| Scale::Linear.label(*x))
                .y_label_formatter(&|y| self.scale.label(*y))
                .label_style(label)
                .draw()?;
            for (place, mark) in self.marks.iter().filter(|mark| mark.at_s <= x_max).enumerate() {
                let line = vec![(mark.at_s, y_min), (mark.at_s, y_max)];
                chart.draw_series(std::iter::once(PathElement::new(line, BLACK.mix(0.35))))?;
                if place < NAMED_MARKS_MAX {
                    // Above the plot, alternating in height, so that neighbours stay readable.
                    let raised = if place % 2 == 0 { -14 } else { 0 };
                    let style = ("sans-serif", 11).into_font().color(&BLACK);
                    let name = EmptyElement::at((mark.at_s, y_max))
                        + Text::new(mark.name.clone(), (2, raised), style);
                    chart.draw_series(std::iter::once(name))?;
                }
            }
            for line in &self.lines {
                let (r, g, b) = line.colour;
                let points = thinned(&line.points).map(|(x, y)| (x, self.scale.place(y)));
                chart.draw_series(LineSeries::new(points, RGBColor(r, g, b).stroke_width(2)))?;
            }
            root.present()?;
        }
        // Text and axes take the colour of the page, light or dark.
        Ok(svg.replace("#000000", "currentColor"))
    }
}

/// Returns at most [`POINTS_MAX`] points: of each group the one with the largest value.
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
    fn labels_fit_the_size_of_their_value() {
        assert_eq!(Scale::Linear.label(25_000.0), "25k");
        assert_eq!(Scale::Linear.label(0.0), "0");
        assert_eq!(Scale::Logarithmic.label(-2.0), "0.010");
        assert_eq!(Scale::Logarithmic.label(2.0), "100");
    }
}
