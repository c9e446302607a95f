//! The series of a run: the file `series.csv` with a line for each second.
//!
//! Invariants:
//! - The first line names the columns. A reader finds columns by name and reads absent columns as
//!   0, so that a newer program reads the run folders of an older program.
//! - The last line of a killed run may be incomplete. A reader ignores such a line.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::telemetry::{Route, RouteSecond, SecondPoint};
use crate::wire::OrderState;
use crate::{Error, Result};

/// Name of the file of the series in a run folder.
pub const FILE: &str = "series.csv";

/// Suffixes of the columns of a route; the prefix is the name of the route.
const ROUTE_COLUMNS: [&str; 5] = ["requests", "failed", "p50_us", "p99_us", "max_us"];

/// Returns the names of the columns, each with its value in the given second.
fn columns(point: &SecondPoint) -> Vec<(String, u64)> {
    let mut columns = vec![
        ("second".to_owned(), point.second),
        ("sent".to_owned(), point.sent),
        ("ok".to_owned(), point.ok),
        ("failed".to_owned(), point.failed),
        ("late".to_owned(), point.late),
        ("dropped".to_owned(), point.dropped),
        ("in_flight".to_owned(), point.in_flight),
        ("lag_p99_us".to_owned(), point.lag_p99_us),
    ];
    for route in Route::ALL {
        let second = &point.routes[route.index()];
        let values = [
            second.requests,
            second.failed,
            second.p50_us,
            second.p99_us,
            second.max_us,
        ];
        let named = ROUTE_COLUMNS.iter().zip(values);
        columns.extend(named.map(|(column, value)| (format!("{}_{column}", route.name()), value)));
    }
    for state in OrderState::ALL {
        let count = point.orders.get(state.name()).copied().unwrap_or_default();
        columns.push((format!("orders_{state}"), count));
    }
    columns.extend([
        ("outbox".to_owned(), point.outbox),
        ("outbox_dead".to_owned(), point.outbox_dead),
        ("warehouse_away".to_owned(), point.warehouse_away.into()),
        ("announced".to_owned(), point.announced),
        ("delivered".to_owned(), point.delivered),
        ("nodes".to_owned(), point.nodes),
        ("epoch".to_owned(), point.epoch),
    ]);
    columns
}

/// Returns the first line of the file, which names the columns.
pub(crate) fn header() -> String {
    let names: Vec<String> = columns(&SecondPoint::default())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    names.join(",") + "\n"
}

/// Returns the line of the file for a second.
pub(crate) fn line(point: &SecondPoint) -> String {
    let mut line = String::with_capacity(256);
    for (place, (_, value)) in columns(point).into_iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(line, "{comma}{value}");
    }
    line.push('\n');
    line
}

/// Reads the series of a run folder. An incomplete last line is ignored.
///
/// # Errors
/// If the file cannot be read, or a line after the first does not have exactly one number for each
/// column. The error of such a line contains its line number.
pub fn read(folder: &Path) -> Result<Vec<SecondPoint>> {
    let path = folder.join(FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let names: Vec<&str> = lines.next().unwrap_or_default().trim_end().split(',').collect();
    let mut points = Vec::new();
    for (number, line) in (2..).zip(lines) {
        let values: Option<Vec<u64>> = line
            .trim_end()
            .split(',')
            .map(|value| value.parse().ok())
            .collect();
        let values = values.filter(|values| values.len() == names.len());
        let values = values.ok_or_else(|| Error::Malformed {
            path: path.clone(),
            line: number,
            problem: format!("expected {} numbers, one for each column of line 1", names.len()),
        })?;
        let row: HashMap<&str, u64> = names.iter().copied().zip(values).collect();
        points.push(point_of(&row));
    }
    Ok(points)
}

fn point_of(row: &HashMap<&str, u64>) -> SecondPoint {
    let value = |name: &str| row.get(name).copied().unwrap_or_default();
    SecondPoint {
        second: value("second"),
        sent: value("sent"),
        ok: value("ok"),
        failed: value("failed"),
        late: value("late"),
        dropped: value("dropped"),
        in_flight: value("in_flight"),
        lag_p99_us: value("lag_p99_us"),
        routes: Route::ALL.map(|route| {
            let of = |column: &str| value(&format!("{}_{column}", route.name()));
            RouteSecond {
                requests: of("requests"),
                failed: of("failed"),
                p50_us: of("p50_us"),
                p99_us: of("p99_us"),
                max_us: of("max_us"),
            }
        }),
        orders: OrderState::ALL
            .iter()
            .map(|state| (state.name().to_owned(), value(&format!("orders_{state}"))))
            .collect(),
        outbox: value("outbox"),
        outbox_dead: value("outbox_dead"),
        warehouse_away: value("warehouse_away") > 0,
        announced: value("announced"),
        delivered: value("delivered"),
        nodes: value("nodes"),
        epoch: value("epoch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(second: u64) -> SecondPoint {
        let route = |n| RouteSecond {
            requests: n,
            failed: 1,
            p50_us: n + 2,
            p99_us: n + 3,
            max_us: n + 4,
        };
        let orders = OrderState::ALL.iter().zip(1..);
        SecondPoint {
            second,
            sent: 10,
            ok: 9,
            failed: 8,
            late: 7,
            dropped: 6,
            in_flight: 5,
            lag_p99_us: 4,
            routes: [route(10), route(20), route(30), route(40)],
            orders: orders.map(|(state, n)| (state.name().to_owned(), n)).collect(),
            outbox: 3,
            outbox_dead: 2,
            warehouse_away: true,
            announced: 50,
            delivered: 60,
            nodes: 4,
            epoch: 9,
        }
    }

    #[test]
    fn a_series_is_read_as_it_was_written_up_to_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let text = header() + &line(&point(0)) + &line(&point(1)) + "2,17";
        std::fs::write(folder.path().join(FILE), text).unwrap();
        assert_eq!(read(folder.path()).unwrap(), [point(0), point(1)]);
    }

    #[test]
    fn absent_columns_are_zero_and_malformed_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, "second,sent\n0,5\n").unwrap();
        let read_back = read(folder.path()).unwrap();
        assert_eq!((read_back[0].sent, read_back[0].routes[0].requests), (5, 0));
        std::fs::write(&path, "second,sent\n0,5\n1\n").unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("series.csv, line 3: expected 2 numbers"),
            "{error}"
        );
    }
}
