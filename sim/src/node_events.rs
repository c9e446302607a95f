//! Results of the node events of a run, and the nodes that still run after it, for the summary.
//!
//! The program that starts and ends the nodes measures these results. This module only groups and
//! formats them.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::scenario::NodeAction;

/// Node events of one kind in a run, with the time from each event (for a pause, from its end)
/// until every volume answered again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeEvents {
    /// Kind of the events, as in scenario files, for example `kill`.
    pub kind: &'static str,
    /// Number of these events.
    pub count: u64,
    /// Median of the times, milliseconds; of an even number of times, the longer one of the two in
    /// the middle.
    pub median_ms: f64,
    /// Longest time, milliseconds.
    pub longest_ms: f64,
    /// The time of each event, milliseconds, in the order of the events.
    pub times_ms: Vec<f64>,
}

impl NodeEvents {
    /// Groups events by their kind, in the order of [`NodeAction::ALL`]. Each event has the time
    /// until every volume answered again.
    pub fn group(events: &[(NodeAction, Duration)]) -> Vec<Self> {
        let group = |action: NodeAction| {
            let times = events.iter().filter(|(kind, _)| *kind == action);
            let times_ms: Vec<f64> = times.map(|(_, took)| took.as_micros() as f64 / 1_000.0).collect();
            let mut sorted = times_ms.clone();
            sorted.sort_by(f64::total_cmp);
            Some(Self {
                kind: action.name(),
                count: times_ms.len() as u64,
                median_ms: *sorted.get(sorted.len() / 2)?,
                longest_ms: *sorted.last()?,
                times_ms,
            })
        };
        NodeAction::ALL.into_iter().filter_map(group).collect()
    }
}

impl fmt::Display for NodeEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            count,
            median_ms,
            longest_ms,
            ..
        } = self;
        write!(f, "{count} x {kind}, answered again after {median_ms:.0} ms")?;
        match count {
            1 => Ok(()),
            _ => write!(f, " (longest {longest_ms:.0} ms)"),
        }
    }
}

/// A node of the run's cluster that runs at the end of the run and was not started by the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunningNode {
    /// The node's name.
    pub name: String,
    /// Address of the node's API, `HOST:PORT`.
    pub address: String,
    /// Command that stops the node.
    pub stop: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_grouped_by_kind_with_their_median_and_longest_time() {
        let ms = Duration::from_millis;
        let events = [
            (NodeAction::Kill, ms(30)),
            (NodeAction::Stop, ms(5)),
            (NodeAction::Kill, ms(10)),
            (NodeAction::Kill, ms(200)),
        ];
        let groups = NodeEvents::group(&events);
        let texts: Vec<String> = groups.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "1 x stop, answered again after 5 ms",
                "3 x kill, answered again after 30 ms (longest 200 ms)"
            ]
        );
        assert_eq!(groups[1].times_ms, [30.0, 10.0, 200.0]);
        assert!(NodeEvents::group(&[]).is_empty());
    }
}
