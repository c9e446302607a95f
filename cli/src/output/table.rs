//! Tables: aligned columns for people, and comma-separated values for other programs.
//!
//! Invariants:
//! - The first row is the heading. A column of numbers is aligned to the right.
//! - Only a table on a terminal is cut to a width, so that a pipe loses nothing. With `--full`, no
//!   table is cut.
//! - Control characters in the cells of a table are escaped, so that a row takes one line. Cells of
//!   CSV are exact.
//!
//! Deliberately absent: a library for tables. comfy-table breaks cells of more than 65,535 columns
//! into lines, and a value of a database may be longer.

use super::terminal;
use crate::error::CliError;
use std::borrow::Cow;
use unicode_width::UnicodeWidthStr;

/// Heading of the column that has coloured cells.
const STATE: &str = "state";
/// Number of blanks between two columns of a table.
const GAP: usize = 2;
/// Width to which a column of a table is narrowed at most, in columns of the terminal. In a
/// narrower terminal, a column is as wide as the terminal.
const COLUMN_MIN: usize = 4;

/// Flags of a command that prints a table.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Table")]
pub(crate) struct TableArgs {
    /// Columns to print, in this order, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    fields: Vec<String>,
    /// Leave out the heading
    #[arg(long)]
    no_header: bool,
    /// Print comma-separated values (RFC 4180)
    #[arg(long)]
    csv: bool,
    /// Print whole cells, even if they are wider than the terminal
    #[arg(long)]
    full: bool,
}

impl TableArgs {
    /// Returns `true` if long cells must not be shortened.
    pub(crate) fn is_full(&self) -> bool {
        self.full || self.csv
    }

    /// Returns `true` if the heading must not be printed.
    pub(crate) fn has_no_header(&self) -> bool {
        self.no_header
    }

    /// Returns a table as text, or as CSV with `--csv`. The first row in `rows` is the heading.
    ///
    /// # Errors
    /// Fails if `--fields` names a column that the table does not have.
    pub(crate) fn render(&self, mut rows: Vec<Vec<String>>) -> Result<String, CliError> {
        if !self.fields.is_empty() {
            rows = self.selected(&rows)?;
        }
        if self.csv {
            let rows = rows.iter().enumerate().skip(usize::from(self.no_header));
            return Ok(rows.map(|(at, row)| csv_line(row, at == 0)).collect());
        }
        let width = terminal::width().filter(|_| !self.full);
        Ok(laid_out(&rows, width, !self.no_header))
    }

    /// Returns the rows with only the columns that `--fields` names, in that order.
    fn selected(&self, rows: &[Vec<String>]) -> Result<Vec<Vec<String>>, CliError> {
        let names: Vec<String> = rows
            .first()
            .into_iter()
            .flatten()
            .map(|name| field(name))
            .collect();
        let place = |wanted: &String| {
            let found = names.iter().position(|name| *name == field(wanted));
            found.ok_or_else(|| {
                CliError::Usage(format!(
                    "--fields: there is no column {wanted:?}; there are {}",
                    names.join(",")
                ))
            })
        };
        let places: Vec<usize> = self.fields.iter().map(place).collect::<Result<_, _>>()?;
        let cell = |row: &Vec<String>, at: usize| row.get(at).cloned().unwrap_or_default();
        let select = |row| places.iter().map(|at| cell(row, *at)).collect();
        Ok(rows.iter().map(select).collect())
    }
}

/// Returns a heading in the form that `--fields` and CSV use: `last error` becomes `last_error`.
fn field(heading: &str) -> String {
    heading.trim().to_lowercase().replace([' ', '-'], "_")
}

fn csv_line(row: &[String], is_heading: bool) -> String {
    let quoted = |cell: &String| match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    let cells = row.iter().map(|cell| match is_heading {
        true => quoted(&field(cell)),
        false => quoted(cell),
    });
    cells.collect::<Vec<_>>().join(",") + "\n"
}

/// Aligns rows in columns. The first row is the heading. Columns of numbers are aligned to the
/// right. On a terminal, long cells are cut so that a row fits the terminal's width, if possible.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    laid_out(rows, terminal::width(), true)
}

/// Returns the rows with the control characters in their cells escaped.
fn escaped_rows(rows: &[Vec<String>]) -> Cow<'_, [Vec<String>]> {
    let has_controls = |cell: &String| cell.contains(char::is_control);
    if !rows.iter().flatten().any(has_controls) {
        return Cow::Borrowed(rows);
    }
    let escaped = |row: &Vec<String>| row.iter().map(|cell| terminal::escaped(cell)).collect::<Vec<_>>();
    Cow::Owned(rows.iter().map(escaped).collect())
}

fn laid_out(rows: &[Vec<String>], columns: Option<usize>, has_heading: bool) -> String {
    let rows = escaped_rows(rows);
    let rows = &*rows;
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| {
        let printed = rows.iter().skip(usize::from(!has_heading));
        let cells = printed.filter_map(|row| row.get(column));
        cells.map(|cell| cell.width()).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..count).map(widest).collect();
    if let Some(columns) = columns {
        shrink(&mut widths, columns);
    }
    let is_right: Vec<bool> = (0..count).map(|column| is_numeric(rows, column)).collect();
    let heading = rows.first();
    let state = heading.and_then(|row| row.iter().position(|name| name == STATE));
    let has_colour = terminal::is_coloured(&std::io::stdout());
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate().skip(usize::from(!has_heading)) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let shown = terminal::cut(cell, widths[column]);
            let pad = " ".repeat(widths[column].saturating_sub(shown.width()));
            let (before, after) = if is_right[column] {
                (pad, String::new())
            } else {
                (String::new(), pad)
            };
            let hue = hue(cell).filter(|_| has_colour && number > 0 && state == Some(column));
            let shown = hue.map_or_else(|| shown.clone(), |code| format!("\u{1b}[{code}m{shown}\u{1b}[0m"));
            line.push_str(&format!("{before}{shown}{after}{}", " ".repeat(GAP)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Narrows the widest columns until a row fits into a terminal of `columns` columns, or until no
/// column is wider than [`COLUMN_MIN`].
fn shrink(widths: &mut [usize], columns: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    for width in widths.iter_mut() {
        *width = (*width).min(columns);
    }
    while widths.iter().sum::<usize>() + gaps > columns {
        match widths.iter_mut().max() {
            Some(widest) if *widest > COLUMN_MIN => *widest -= 1,
            _ => return,
        }
    }
}

/// Returns `true` if a column has at least one number, and each other cell below its heading is a
/// number, empty or `-`.
fn is_numeric(rows: &[Vec<String>], column: usize) -> bool {
    let cells = rows.iter().skip(1).filter_map(|row| row.get(column));
    let is_gap = |cell: &&String| cell.is_empty() || *cell == "-";
    let mut filled = cells.filter(|cell| !is_gap(cell)).peekable();
    filled.peek().is_some() && filled.all(|cell| is_number(cell))
}

/// Returns `true` if a cell consists of digits, points and commas, with an optional sign and unit.
fn is_number(cell: &str) -> bool {
    const UNITS: [&str; 13] = [
        "", "%", "B", "KiB", "MiB", "GiB", "TiB", "ns", "us", "ms", "s", "/s", "x",
    ];
    let cell = cell.strip_prefix(['-', '+', '~']).unwrap_or(cell);
    let digits = cell.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ','));
    digits.len() < cell.len() && UNITS.contains(&digits.trim_start())
}

/// Returns the ANSI colour code of a state, or `None` if the state has no colour.
fn hue(state: &str) -> Option<u8> {
    match state.split(' ').next().unwrap_or(state) {
        "serving" | "delivered" | "whole" | "ok" => Some(32),
        "degraded" | "leaving" | "not" | "stopped" | "expired" | "cancelled" | "rejected"
        | "refund_wanted" | "waiting" => Some(33),
        "gone" | "failed" | "dead" | "DAMAGED" => Some(31),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        let owned = |row: &&[&str]| row.iter().map(ToString::to_string).collect();
        rows.iter().map(owned).collect()
    }

    #[test]
    fn numbers_are_aligned_to_the_right_and_words_to_the_left() {
        let rows = rows(&[
            &["name", "slots", "size", "zone"],
            &["alpha", "7", "1.5 MiB", "-"],
            &["b", "1234", "-", "-"],
        ]);
        assert_eq!(
            table(&rows),
            "name   slots     size  zone\nalpha      7  1.5 MiB  -\nb       1234        -  -\n"
        );
    }

    #[test]
    fn a_table_on_a_terminal_is_cut_to_its_width() {
        let long = "x".repeat(100_000);
        let rows = rows(&[&["key", "value"], &["k", &long], &["other", "1"]]);
        let text = laid_out(&rows, Some(40), true);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(text.contains("xxx…"), "{text}");
        assert!(laid_out(&rows, None, true).contains(&long));
    }

    #[test]
    fn a_cell_with_line_breaks_takes_one_line_of_a_table_and_is_exact_in_csv() {
        let rows = rows(&[&["key", "value"], &["k", "one\ntwo\u{1b}[2J"]]);
        assert_eq!(
            laid_out(&rows, None, true),
            "key  value\nk    one\\ntwo\\u{1b}[2J\n"
        );
        let args = TableArgs {
            csv: true,
            ..TableArgs::default()
        };
        assert_eq!(args.render(rows).unwrap(), "key,value\nk,\"one\ntwo\u{1b}[2J\"\n");
    }

    #[test]
    fn columns_are_chosen_by_name_and_written_as_csv() {
        let rows = rows(&[
            &["order", "last error", "tries"],
            &["17", "no \"route\", none", "3"],
        ]);
        let args = TableArgs {
            fields: vec!["tries".to_owned(), "last_error".to_owned()],
            csv: true,
            ..TableArgs::default()
        };
        assert_eq!(
            args.render(rows.clone()).unwrap(),
            "tries,last_error\n3,\"no \"\"route\"\", none\"\n"
        );
        let args = TableArgs {
            no_header: true,
            ..TableArgs::default()
        };
        assert_eq!(args.render(rows.clone()).unwrap(), "17  no \"route\", none  3\n");
        let args = TableArgs {
            fields: vec!["trys".to_owned()],
            ..TableArgs::default()
        };
        let error = args.render(rows).unwrap_err();
        assert!(matches!(&error, CliError::Usage(text) if text.contains("order,last_error,tries")));
    }
}
