//! The timeline of a run: load phases, faults of the warehouse, times of an open circuit breaker,
//! and absences and pauses of nodes. Times count from the start of the sending window, in which
//! orders and statistics requests start.
//!
//! Invariants:
//! - A fault without an end event lasts to the end of the run.
//! - Each fault has its name as text or tooltip besides its colour, for people who cannot see the
//!   colours.

use std::fmt::Write as _;

use super::axis;
use super::chart::Colour;
use super::html::escape;
use crate::telemetry::{EventKind, RunEvent};
use crate::warehouse::Profile;

/// Width of the drawing in SVG units.
const WIDTH: f64 = 1_240.0;
/// Width of the column with the lanes' names, in SVG units.
const NAMES: f64 = 110.0;
/// Height of a lane in SVG units.
const LANE: f64 = 24.0;
/// Height of the time axis in SVG units.
const AXIS: f64 = 24.0;
/// Upper bound of the mean width of the characters in a usual name, in SVG units at the font size
/// of the timeline.
const CHAR_WIDTH: f64 = 7.0;

/// Meaning of a span or mark. It decides the colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// A phase of the load, or the usual behaviour of the warehouse.
    Usual,
    /// A degraded state: a fault of a warehouse that still answers, or a paused node.
    Degraded,
    /// An absence: a node that does not run, a warehouse that does not answer, or an open circuit
    /// breaker.
    Down,
}

impl Tone {
    /// Returns the colour of spans and marks with this meaning.
    pub(super) fn colour(self) -> Colour {
        match self {
            Self::Usual => (86, 180, 233),
            Self::Degraded => (230, 159, 0),
            Self::Down => (213, 94, 0),
        }
    }
}

/// A period with a name in a lane of the timeline. Its times are in seconds since the start of the
/// sending window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) from_s: f64,
    pub(super) until_s: f64,
    pub(super) name: String,
    pub(super) tone: Tone,
}

/// One row of the timeline: the spans of one subject (the load, the warehouse, the breaker or a
/// node). The spans of a lane do not overlap.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) spans: Vec<Span>,
}

/// A vertical line in a chart at the time of an event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    pub(super) at_s: f64,
    pub(super) name: String,
    pub(super) tone: Tone,
}

/// The timeline of a run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Timeline {
    /// End of the timeline in seconds since the start of the sending window: the end of the last
    /// recorded second.
    pub(super) end_s: f64,
    pub(super) lanes: Vec<Lane>,
    /// Marks for the beginnings of absences and pauses of nodes, of faults of the warehouse and of
    /// open circuit breakers, ordered by time.
    pub(super) marks: Vec<Mark>,
}

impl Timeline {
    /// Builds the timeline of a run from its events, which are ordered by time. Spans of no length
    /// and lanes without a span are left out.
    pub(super) fn new(events: &[RunEvent], end_s: f64) -> Self {
        let mut timeline = Self {
            end_s,
            lanes: Vec::new(),
            marks: Vec::new(),
        };
        for event in events {
            timeline.enter(event);
        }
        for lane in &mut timeline.lanes {
            lane.spans.retain(|span| span.until_s > span.from_s);
        }
        timeline.lanes.retain(|lane| !lane.spans.is_empty());
        timeline
    }

    fn enter(&mut self, event: &RunEvent) {
        let at_s = event.offset_ms as f64 / 1_000.0;
        let subject = event.subject.as_str();
        let (lane, span) = match event.kind {
            EventKind::Load => ("load", Some((subject, Tone::Usual))),
            EventKind::Warehouse => ("warehouse", Some((subject, tone_of(subject)))),
            EventKind::Breaker => {
                let is_open = event.text.contains("opened");
                ("breaker", is_open.then_some(("open", Tone::Down)))
            }
            EventKind::Kill => (subject, Some(("killed", Tone::Down))),
            EventKind::Stop => (subject, Some(("stopped", Tone::Down))),
            EventKind::Leave => (subject, Some(("left", Tone::Down))),
            EventKind::Pause => (subject, Some(("paused", Tone::Degraded))),
            EventKind::Join | EventKind::Resume => (subject, None),
            EventKind::Ring | EventKind::Recovered | EventKind::Warning => return,
        };
        // An event before the sending window has the offset 0 and gets no mark.
        if event.offset_ms > 0
            && event.kind != EventKind::Load
            && let Some((name, tone)) = span.filter(|(_, tone)| *tone != Tone::Usual)
        {
            let name = match event.kind {
                EventKind::Warehouse => name.to_owned(),
                EventKind::Breaker => "breaker opens".to_owned(),
                kind => format!("{} {subject}", kind.name()),
            };
            self.marks.push(Mark { at_s, name, tone });
        }
        self.switch(lane, at_s, span);
    }

    /// Ends the open span of a lane at `at_s`, and begins a new span if one is given. Adds the lane
    /// if it is new.
    fn switch(&mut self, lane: &str, at_s: f64, span: Option<(&str, Tone)>) {
        let place = self.lanes.iter().position(|known| known.name == lane);
        let place = place.unwrap_or_else(|| {
            self.lanes.push(Lane {
                name: lane.to_owned(),
                spans: Vec::new(),
            });
            self.lanes.len() - 1
        });
        let spans = &mut self.lanes[place].spans;
        if let Some(open) = spans.last_mut().filter(|open| open.until_s > at_s) {
            open.until_s = at_s;
        }
        if let Some((name, tone)) = span {
            spans.push(Span {
                from_s: at_s,
                until_s: self.end_s.max(at_s),
                name: name.to_owned(),
                tone,
            });
        }
    }

    /// Returns the spans that a chart tints. The times of an open circuit breaker are left out,
    /// because an open breaker is a consequence of a fault of the warehouse, which is tinted
    /// itself.
    pub(super) fn faults(&self) -> impl Iterator<Item = &Span> {
        let lanes = self.lanes.iter().filter(|lane| lane.name != "breaker");
        lanes
            .flat_map(|lane| &lane.spans)
            .filter(|span| span.tone != Tone::Usual)
    }

    /// Returns the timeline as an SVG figure; an empty text if there are no lanes, or if `end_s` is
    /// 0.
    pub(super) fn figure(&self) -> String {
        if self.lanes.is_empty() || self.end_s <= 0.0 {
            return String::new();
        }
        let height = self.lanes.len() as f64 * LANE + AXIS;
        let x = |second: f64| NAMES + second / self.end_s * (WIDTH - NAMES - 10.0);
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" xmlns=\"http://www.w3.org/2000/svg\">");
        for (place, lane) in self.lanes.iter().enumerate() {
            let top = place as f64 * LANE;
            // Writing to a String cannot fail.
            let _ = write!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <line x1=\"{NAMES}\" x2=\"{WIDTH}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                NAMES - 10.0,
                top + 16.0,
                escape(&lane.name),
                top + LANE,
                top + LANE,
            );
            for span in &lane.spans {
                draw_span(&mut svg, span, top, x(span.from_s), x(span.until_s));
            }
        }
        for tick in axis::seconds(self.end_s).ticks {
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} s</text>",
                x(tick),
                height - 6.0,
                axis::value(tick),
            );
        }
        svg.push_str("</svg>");
        let label = "Load phases, faults of the warehouse and absences of nodes over time";
        format!("<div class=\"plot lanes\" role=\"img\" aria-label=\"{label}\">{svg}</div>\n")
    }
}

fn draw_span(svg: &mut String, span: &Span, top: f64, left: f64, right: f64) {
    let (r, g, b) = span.tone.colour();
    let width = (right - left).max(3.0);
    let times = format!("{}: {:.1} s to {:.1} s", span.name, span.from_s, span.until_s);
    let _ = write!(
        svg,
        "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"3\" \
         fill=\"rgb({r},{g},{b})\" fill-opacity=\"0.55\"><title>{}</title></rect>",
        top + 3.0,
        LANE - 6.0,
        escape(&times),
    );
    // A name that does not fit into the span is shown only in the tooltip.
    if span.name.chars().count() as f64 * CHAR_WIDTH + 8.0 <= width {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left + 5.0,
            top + 16.0,
            escape(&span.name),
        );
    }
}

/// Returns the meaning of a warehouse profile.
fn tone_of(profile: &str) -> Tone {
    match profile.parse::<Profile>() {
        Ok(Profile::Original | Profile::Fast) => Tone::Usual,
        Ok(Profile::Blackout) => Tone::Down,
        _ => Tone::Degraded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, subject: &str, text: &str, offset_ms: u64) -> RunEvent {
        RunEvent {
            at_ms: offset_ms,
            offset_ms,
            kind,
            subject: subject.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn faults_last_until_their_end_or_the_end_of_the_run() {
        let events = [
            event(EventKind::Load, "steady", "", 0),
            event(EventKind::Warehouse, "blackout", "", 5_000),
            event(
                EventKind::Breaker,
                "warehouse",
                "circuit breaker opened: away",
                6_000,
            ),
            event(EventKind::Kill, "node-1", "node-1 killed", 8_000),
            event(EventKind::Join, "node-1", "node-1 started again", 9_500),
            event(EventKind::Warehouse, "original", "", 10_000),
            event(EventKind::Pause, "node-2", "node-2 paused", 29_000),
        ];
        let timeline = Timeline::new(&events, 30.0);
        let spans: Vec<(&str, f64, f64)> = timeline
            .lanes
            .iter()
            .flat_map(|lane| &lane.spans)
            .map(|span| (span.name.as_str(), span.from_s, span.until_s))
            .collect();
        assert_eq!(
            spans,
            [
                ("steady", 0.0, 30.0),
                ("blackout", 5.0, 10.0),
                ("original", 10.0, 30.0),
                ("open", 6.0, 30.0),
                ("killed", 8.0, 9.5),
                ("paused", 29.0, 30.0),
            ]
        );
        let faults: Vec<&str> = timeline.faults().map(|span| span.name.as_str()).collect();
        assert_eq!(faults, ["blackout", "killed", "paused"]);
        let marks: Vec<&str> = timeline.marks.iter().map(|mark| mark.name.as_str()).collect();
        assert_eq!(
            marks,
            ["blackout", "breaker opens", "kill node-1", "pause node-2"]
        );
        let figure = timeline.figure();
        assert!(figure.contains(">blackout</text>") && figure.contains("paused: 29.0 s to 30.0 s"));
        assert_eq!(Timeline::new(&[], 30.0).figure(), "");
    }
}
