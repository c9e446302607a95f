//! Renders a picture of the view as SVG, for documents.
//!
//! Each word becomes a `text` element with a fixed length (`textLength`), so that the columns stay
//! aligned in any monospace font. The block and frame characters of the view are drawn as shapes,
//! because fonts leave gaps between them.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use unicode_width::UnicodeWidthStr;

/// Width and height of a cell, in units of the SVG's coordinates.
const CELL: [f64; 2] = [8.4, 17.0];
/// Empty space around the cells, in units of the SVG's coordinates.
const MARGIN: f64 = 14.0;
/// Font size, in units of the SVG's coordinates.
const FONT: f64 = 14.0;

/// Colours of a picture's background and of its usual text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paper {
    /// Light text on a dark background.
    #[default]
    Dark,
    /// Dark text on a light background.
    Light,
}

impl Paper {
    fn ground(self) -> [u8; 3] {
        match self {
            Self::Dark => [0x12, 0x16, 0x1c],
            Self::Light => [0xff, 0xff, 0xff],
        }
    }

    fn ink(self) -> [u8; 3] {
        match self {
            Self::Dark => [0xe4, 0xe8, 0xec],
            Self::Light => [0x1c, 0x20, 0x26],
        }
    }
}

/// Returns the red, green and blue values of one of the 256 indexed colours, as xterm
/// defines them.
pub fn rgb_of_index(index: u8) -> [u8; 3] {
    const BASIC: [[u8; 3]; 16] = [
        [0, 0, 0],
        [205, 0, 0],
        [0, 205, 0],
        [205, 205, 0],
        [0, 0, 238],
        [205, 0, 205],
        [0, 205, 205],
        [229, 229, 229],
        [127, 127, 127],
        [255, 0, 0],
        [0, 255, 0],
        [255, 255, 0],
        [92, 92, 255],
        [255, 0, 255],
        [0, 255, 255],
        [255, 255, 255],
    ];
    const STEPS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    match index {
        0..=15 => BASIC[usize::from(index)],
        16..=231 => {
            let place = usize::from(index - 16);
            [STEPS[place / 36], STEPS[place / 6 % 6], STEPS[place % 6]]
        }
        232..=255 => [8 + 10 * (index - 232); 3],
    }
}

fn rgb(colour: Color, usual: [u8; 3]) -> [u8; 3] {
    match colour {
        Color::Indexed(index) => rgb_of_index(index),
        Color::Rgb(red, green, blue) => [red, green, blue],
        Color::Black => rgb_of_index(0),
        Color::Red => rgb_of_index(1),
        Color::Green => rgb_of_index(2),
        Color::Yellow => rgb_of_index(3),
        Color::Blue => rgb_of_index(4),
        Color::Magenta => rgb_of_index(5),
        Color::Cyan => rgb_of_index(6),
        _ => usual,
    }
}

fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Colours and style of a cell.
#[derive(Clone, PartialEq)]
struct Look {
    ink: [u8; 3],
    ground: Option<[u8; 3]>,
    is_bold: bool,
    is_underlined: bool,
    is_dim: bool,
}

impl Look {
    fn of(cell: &Cell, paper: Paper) -> Self {
        let mut ink = rgb(cell.fg, paper.ink());
        let mut ground = match cell.bg {
            Color::Reset => None,
            colour => Some(rgb(colour, paper.ground())),
        };
        if cell.modifier.contains(Modifier::REVERSED) {
            let front = ground.unwrap_or(paper.ground());
            (ink, ground) = (front, Some(ink));
        }
        Self {
            ink,
            ground,
            is_bold: cell.modifier.contains(Modifier::BOLD),
            is_underlined: cell.modifier.contains(Modifier::UNDERLINED),
            is_dim: cell.modifier.contains(Modifier::DIM),
        }
    }
}

/// Returns the buffer as an SVG document. `title` is read by screen readers.
pub fn render(buffer: &Buffer, paper: Paper, title: &str) -> String {
    let [width, height] = CELL;
    let total_width = f64::from(buffer.area.width) * width + 2.0 * MARGIN;
    let total_height = f64::from(buffer.area.height) * height + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total_width:.0} {total_height:.0}\" \
         role=\"img\">\n<title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"10\" fill=\"{}\"/>\n\
         <g font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
         font-size=\"{FONT}\">\n",
        escaped(title),
        hex(paper.ground())
    );
    for row in 0..buffer.area.height {
        render_row(&mut svg, buffer, row, paper);
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

fn render_row(svg: &mut String, buffer: &Buffer, row: u16, paper: Paper) {
    let mut column = 0;
    while column < buffer.area.width {
        let first = &buffer[(column, row)];
        let look = Look::of(first, paper);
        let is_shape = is_shape(first.symbol());
        let mut text = String::new();
        let begin = column;
        while column < buffer.area.width {
            let cell = &buffer[(column, row)];
            let is_same = match is_shape {
                true => cell.symbol() == first.symbol(),
                false => !self::is_shape(cell.symbol()),
            };
            if Look::of(cell, paper) != look || !is_same {
                break;
            }
            text.push_str(cell.symbol());
            // The cell behind a wide character is a blank that is not shown.
            column += cell.symbol().width().max(1) as u16;
        }
        let run = Run {
            x: MARGIN + f64::from(begin) * CELL[0],
            y: MARGIN + f64::from(row) * CELL[1],
            width: f64::from(column - begin) * CELL[0],
        };
        if let Some(ground) = look.ground {
            rectangle(svg, &run, [0.0, 1.0], &hex(ground), 1.0);
        }
        if let Some(block) = Block::of(first.symbol()) {
            let part = [block.top, block.height];
            rectangle(svg, &run, part, &hex(look.ink), block.opacity);
        } else if let Some(stroke) = Stroke::of(first.symbol()) {
            stroke.draw(svg, &run, &look);
        } else {
            render_text(svg, &run, &text, &look);
        }
    }
}

/// Position and width of adjacent cells in one row that are drawn together.
struct Run {
    x: f64,
    y: f64,
    width: f64,
}

/// The filled part of a cell for a block character. `top` and `height` are shares of the cell's
/// height.
struct Block {
    top: f64,
    height: f64,
    opacity: f64,
}

impl Block {
    fn of(symbol: &str) -> Option<Self> {
        let eighths = |count: f64| Self {
            top: 1.0 - count / 8.0,
            height: count / 8.0,
            opacity: 1.0,
        };
        Some(match symbol {
            "▁" => eighths(1.0),
            "▂" => eighths(2.0),
            "▃" => eighths(3.0),
            "▄" => eighths(4.0),
            "▅" => eighths(5.0),
            "▆" => eighths(6.0),
            "▇" => eighths(7.0),
            "█" => eighths(8.0),
            "▀" => Self {
                top: 0.0,
                ..eighths(4.0)
            },
            "░" => Self {
                opacity: 0.3,
                ..eighths(8.0)
            },
            _ => return None,
        })
    }
}

/// Returns `true` for a character that is drawn as a shape and not as text.
fn is_shape(symbol: &str) -> bool {
    Block::of(symbol).is_some() || Stroke::of(symbol).is_some()
}

/// A line in a cell that replaces a frame character.
#[derive(Clone, Copy)]
enum Stroke {
    /// A line from the left to the right. The number is its thickness, in units of the SVG's
    /// coordinates.
    Across(f64),
    /// A line from the top to the bottom.
    Down,
    /// A rounded corner. It joins the right side of the cell (the left side unless `is_right`) with
    /// its lower side (the upper side unless `is_below`).
    Corner { is_right: bool, is_below: bool },
}

impl Stroke {
    fn of(symbol: &str) -> Option<Self> {
        let corner = |is_right, is_below| Self::Corner { is_right, is_below };
        Some(match symbol {
            "─" => Self::Across(1.0),
            "━" => Self::Across(2.5),
            "│" => Self::Down,
            "╭" => corner(true, true),
            "╮" => corner(false, true),
            "╰" => corner(true, false),
            "╯" => corner(false, false),
            _ => return None,
        })
    }

    fn draw(self, svg: &mut String, run: &Run, look: &Look) {
        let [width, height] = CELL;
        let (left, top) = (run.x, run.y);
        let (x, y) = (left + width / 2.0, top + height / 2.0);
        let (path, thickness) = match self {
            Self::Across(thickness) => (format!("M{left:.1} {y:.1}H{:.1}", left + run.width), thickness),
            // Adjacent `│` cells of the same style form one run, so a vertical line is drawn for
            // each column of the run.
            Self::Down => {
                let columns = (run.width / width).round() as u32;
                let lines = (0..columns).map(|column| {
                    let x = x + f64::from(column) * width;
                    format!("M{x:.1} {top:.1}V{:.1}", top + height)
                });
                (lines.collect(), 1.0)
            }
            Self::Corner { is_right, is_below } => {
                let side = if is_right { left + width } else { left };
                let end = if is_below { top + height } else { top };
                let turn = if is_below {
                    y + width / 2.0
                } else {
                    y - width / 2.0
                };
                (
                    format!("M{x:.1} {end:.1}V{turn:.1}Q{x:.1} {y:.1} {side:.1} {y:.1}"),
                    1.0,
                )
            }
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{thickness}\"/>",
            hex(look.ink),
        );
    }
}

/// Appends a rectangle over the width of a run. `top` and `share` are its upper edge and its
/// height, as shares of the cell's height.
fn rectangle(svg: &mut String, run: &Run, [top, share]: [f64; 2], fill: &str, opacity: f64) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{:.1}\" y=\"{:.2}\" width=\"{:.1}\" height=\"{:.2}\" fill=\"{fill}\" \
         fill-opacity=\"{opacity}\" shape-rendering=\"crispEdges\"/>",
        run.x,
        run.y + top * CELL[1],
        run.width,
        share * CELL[1],
    );
}

/// Appends the words of a run. Each word has a position of its own, because SVG viewers collapse
/// several blanks into one.
fn render_text(svg: &mut String, run: &Run, text: &str, look: &Look) {
    let mut attributes = String::new();
    if look.is_bold {
        attributes.push_str(" font-weight=\"bold\"");
    }
    if look.is_underlined {
        attributes.push_str(" text-decoration=\"underline\"");
    }
    if look.is_dim {
        attributes.push_str(" opacity=\"0.65\"");
    }
    let mut column = 0;
    for word in text.split(' ') {
        let columns = word.width();
        if columns > 0 {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" textLength=\"{:.1}\" \
                 lengthAdjust=\"spacingAndGlyphs\" fill=\"{}\"{attributes}>{}</text>",
                run.x + column as f64 * CELL[0],
                run.y + CELL[1] * 0.74,
                columns as f64 * CELL[0],
                hex(look.ink),
                escaped(word),
            );
        }
        column += columns + 1;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use ratatui::style::Style;

    use super::*;

    #[test]
    fn cells_become_text_and_rectangles_with_their_colours() {
        let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, 6, 1));
        buffer.set_string(0, 0, "a<b", Style::new().fg(Color::Indexed(166)));
        buffer.set_string(
            3,
            0,
            "▄▄",
            Style::new().fg(Color::Indexed(31)).bg(Color::Indexed(29)),
        );
        let svg = render(&buffer, Paper::Dark, "a & b");
        assert!(svg.contains("<title>a &amp; b</title>"), "{svg}");
        assert!(svg.contains("fill=\"#d75f00\">a&lt;b</text>"), "{svg}");
        let half = "y=\"22.50\" width=\"16.8\" height=\"8.50\" fill=\"#0087af\"";
        assert!(svg.contains(half), "{svg}");
        assert!(svg.contains("height=\"17.00\" fill=\"#00875f\""), "{svg}");
    }

    #[test]
    fn text_behind_wide_characters_begins_at_its_column() {
        let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, 12, 1));
        buffer.set_string(0, 0, "\u{65e5}\u{672c} ab", Style::default());
        let svg = render(&buffer, Paper::Dark, "wide");
        let x = MARGIN + 5.0 * CELL[0];
        assert!(svg.contains(&format!("<text x=\"{x:.1}\"")), "{svg}");
        assert_eq!(svg.matches("<text").count(), 2, "{svg}");
    }

    #[test]
    fn frames_are_lines_that_meet() {
        let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, 4, 2));
        buffer.set_string(0, 0, "╭──╮", Style::new());
        buffer.set_string(0, 1, "│ a│", Style::new());
        let svg = render(&buffer, Paper::Dark, "");
        for path in [
            "M18.2 31.0V26.7Q18.2 22.5 22.4 22.5",
            "M22.4 22.5H39.2",
            "M43.4 31.0V26.7Q43.4 22.5 39.2 22.5",
            "M18.2 31.0V48.0",
            "M43.4 31.0V48.0",
        ] {
            assert!(
                svg.contains(&format!("<path d=\"{path}\"")),
                "{path} is not in {svg}"
            );
        }
        assert_eq!(svg.matches("<text").count(), 1);
    }

    #[test]
    fn indexed_colours_are_those_of_xterm() {
        assert_eq!(rgb_of_index(16), [0, 0, 0]);
        assert_eq!(rgb_of_index(231), [255, 255, 255]);
        assert_eq!(rgb_of_index(244), [128, 128, 128]);
        assert_eq!(rgb_of_index(255), [238, 238, 238]);
    }
}
