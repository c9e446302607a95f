//! Colours of the view.
//!
//! Invariants:
//! - Usual text has the terminal's default colours, so that light and dark terminals both work.
//! - The indexed colours have a contrast ratio of at least 3 to both white and black, and hues that
//!   people with any common colour blindness can tell apart (after Okabe and Ito).
//! - Without colours (`NO_COLOR`), words, symbols, and reversed or underlined text show the facts
//!   that colours show otherwise.

use ratatui::style::{Color, Modifier, Style};

/// The set of colours that the view uses on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Palette {
    /// The 256 indexed colours.
    #[default]
    Indexed,
    /// The 16 colours of the terminal's theme.
    Basic,
    /// No colours: bold, dim, reversed and underlined text only.
    Monochrome,
}

/// Values of the environment variables that decide the palette. A variable that is empty or not set
/// is `None`.
#[derive(Debug, Clone, Default)]
pub struct TerminalEnv {
    /// Value of `NO_COLOR`. Any value removes all colours.
    pub no_color: Option<String>,
    /// Value of `COLORTERM`, such as `truecolor`.
    pub colorterm: Option<String>,
    /// Value of `TERM`, the type of the terminal.
    pub term: Option<String>,
}

impl TerminalEnv {
    /// Reads the variables of this process.
    pub fn of_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            no_color: variable("NO_COLOR"),
            colorterm: variable("COLORTERM"),
            term: variable("TERM"),
        }
    }

    /// Returns `true` if the terminal can position its cursor, which the view needs.
    pub fn can_draw(&self) -> bool {
        self.term.as_deref().is_some_and(|term| term != "dumb")
    }
}

/// The styles of the view, with a method for each kind of text or curve.
#[derive(Debug, Clone, Copy, Default)]
pub struct Theme {
    palette: Palette,
}

/// Colours of nodes by their index in the list of nodes. From the seventh node on, the colours
/// repeat. Neighbouring indexed colours also differ a little in lightness.
const NODE_INDEXED: [u8; 6] = [31, 166, 29, 133, 136, 67];
const NODE_BASIC: [Color; 6] = [
    Color::Cyan,
    Color::Magenta,
    Color::Blue,
    Color::Yellow,
    Color::Green,
    Color::Red,
];

impl Theme {
    /// Creates a theme that uses this palette.
    pub fn new(palette: Palette) -> Self {
        Self { palette }
    }

    /// Creates a theme with the palette that these environment variables allow.
    pub fn of(env: &TerminalEnv) -> Self {
        let has = |variable: &Option<String>, words: &[&str]| {
            let value = variable.as_deref().unwrap_or_default();
            words.iter().any(|word| value.contains(word))
        };
        Self::new(match env {
            _ if env.no_color.is_some() => Palette::Monochrome,
            _ if has(&env.term, &["256color", "kitty", "alacritty", "direct"]) => Palette::Indexed,
            _ if has(&env.colorterm, &["truecolor", "24bit"]) => Palette::Indexed,
            _ => Palette::Basic,
        })
    }

    /// Returns the palette.
    pub fn palette(self) -> Palette {
        self.palette
    }

    /// Returns the style of curves of load.
    pub fn load(self) -> Style {
        self.colour(31, Color::Cyan)
    }

    /// Returns the style of curves of latency.
    pub fn latency(self) -> Style {
        self.colour(133, Color::Magenta)
    }

    /// Returns the style of healthy states.
    pub fn good(self) -> Style {
        self.colour(29, Color::Green)
    }

    /// Returns the style of states that need attention.
    pub fn warning(self) -> Style {
        self.colour(136, Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// Returns the style of failures.
    pub fn bad(self) -> Style {
        let style = self.colour(166, Color::Red).add_modifier(Modifier::BOLD);
        match self.palette {
            Palette::Monochrome => style.add_modifier(Modifier::REVERSED),
            _ => style,
        }
    }

    /// Returns the style of important names and figures.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Returns the style of labels, units and frames.
    pub fn quiet(self) -> Style {
        match self.palette {
            Palette::Indexed => Style::new().fg(Color::Indexed(244)),
            _ => Style::new().add_modifier(Modifier::DIM),
        }
    }

    /// Returns the style of a node by its index in the list of nodes.
    pub fn node(self, place: usize) -> Style {
        match self.palette {
            Palette::Indexed => Style::new().fg(Color::Indexed(NODE_INDEXED[place % NODE_INDEXED.len()])),
            Palette::Basic => Style::new().fg(NODE_BASIC[place % NODE_BASIC.len()]),
            Palette::Monochrome => Style::new(),
        }
    }

    fn colour(self, indexed: u8, basic: Color) -> Style {
        match self.palette {
            Palette::Indexed => Style::new().fg(Color::Indexed(indexed)),
            Palette::Basic => Style::new().fg(basic),
            Palette::Monochrome => Style::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svg::rgb_of_index;

    fn env(no_color: Option<&str>, colorterm: Option<&str>, term: &str) -> TerminalEnv {
        TerminalEnv {
            no_color: no_color.map(str::to_owned),
            colorterm: colorterm.map(str::to_owned),
            term: Some(term.to_owned()),
        }
    }

    #[test]
    fn the_environment_chooses_the_palette() {
        let palette = |env: TerminalEnv| Theme::of(&env).palette();
        assert_eq!(
            palette(env(Some("1"), None, "xterm-256color")),
            Palette::Monochrome
        );
        assert_eq!(palette(env(None, None, "xterm-256color")), Palette::Indexed);
        assert_eq!(palette(env(None, Some("truecolor"), "xterm")), Palette::Indexed);
        assert_eq!(palette(env(None, None, "linux")), Palette::Basic);
        assert!(env(None, None, "linux").can_draw());
        assert!(!env(None, None, "dumb").can_draw());
        assert!(!TerminalEnv::default().can_draw());
    }

    /// Returns the relative luminance of a colour, as defined by WCAG 2.
    fn luminance([red, green, blue]: [u8; 3]) -> f64 {
        let linear = |channel: u8| match f64::from(channel) / 255.0 {
            value if value <= 0.040_45 => value / 12.92,
            value => ((value + 0.055) / 1.055).powf(2.4),
        };
        0.212_6 * linear(red) + 0.715_2 * linear(green) + 0.072_2 * linear(blue)
    }

    #[test]
    fn indexed_colours_are_readable_on_white_and_on_black() {
        let theme = Theme::new(Palette::Indexed);
        let nodes = (0..NODE_INDEXED.len()).map(|place| theme.node(place));
        let named = [
            theme.load(),
            theme.latency(),
            theme.good(),
            theme.warning(),
            theme.bad(),
            theme.quiet(),
        ];
        for style in nodes.chain(named) {
            let Some(Color::Indexed(index)) = style.fg else {
                panic!("{style:?} has no indexed colour");
            };
            let luminance = luminance(rgb_of_index(index));
            let contrasts = [1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05];
            assert!(
                contrasts.iter().all(|contrast| *contrast >= 3.0),
                "{index}: {contrasts:?}"
            );
        }
    }

    #[test]
    fn the_monochrome_palette_has_no_colour() {
        let theme = Theme::new(Palette::Monochrome);
        let styles = [
            theme.load(),
            theme.bad(),
            theme.warning(),
            theme.quiet(),
            theme.node(3),
        ];
        assert!(
            styles
                .iter()
                .all(|style| style.fg.is_none() && style.bg.is_none()),
            "{styles:?}"
        );
    }
}
