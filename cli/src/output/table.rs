//! Tables: aligned columns for people, and comma-separated values for other programs.
//!
//! Invariants:
//! - The first row is the heading. A column of numbers is aligned to the right.
//! - Only a table on a terminal is cut to a width, so that a pipe loses nothing.

use super::terminal;
use crate::error::CliError;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Row, Table, TableStyle};

/// Name of the column with coloured cells.
const STATE: &str = "state";
/// Columns between two columns of a table.
const GAP: u16 = 2;

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
    /// Returns `true` if long cells are wanted whole.
    pub(crate) fn is_full(&self) -> bool {
        self.full || self.csv
    }

    /// Returns `true` if no heading is wanted.
    pub(crate) fn has_no_header(&self) -> bool {
        self.no_header
    }

    /// Returns a table as text. The first row is the heading.
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

    /// Returns the columns that `--fields` names.
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

/// Returns the name of a column for `--fields` and for CSV.
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
/// right. On a terminal, cells are cut to its width.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    laid_out(rows, terminal::width(), true)
}

fn laid_out(rows: &[Vec<String>], width: Option<usize>, has_heading: bool) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    match terminal::is_coloured(&std::io::stdout()) {
        true => table.enforce_styling(),
        false => table.force_no_tty(),
    };
    let state = rows
        .first()
        .and_then(|row| row.iter().position(|name| name == STATE));
    for (number, row) in rows.iter().enumerate().skip(usize::from(!has_heading)) {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            // A cell of a megabyte would be measured letter by letter.
            let shown = match width {
                Some(width) => terminal::cut(cell, width),
                None => cell.clone(),
            };
            match hue(cell).filter(|_| number > 0 && state == Some(column)) {
                Some(color) => Cell::new(shown).fg(color),
                None => Cell::new(shown),
            }
        });
        let mut row: Row = cells.collect::<Vec<_>>().into();
        if width.is_some() {
            row.max_height(1);
        }
        table.add_row(row);
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        if is_numeric(rows, number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

/// Returns `true` for a column with a number in it and nothing else but numbers and gaps.
fn is_numeric(rows: &[Vec<String>], column: usize) -> bool {
    let cells = rows.iter().skip(1).filter_map(|row| row.get(column));
    let is_gap = |cell: &&String| cell.is_empty() || *cell == "-";
    let mut filled = cells.filter(|cell| !is_gap(cell)).peekable();
    filled.peek().is_some() && filled.all(|cell| is_number(cell))
}

/// Returns `true` for a number, also with a unit.
fn is_number(cell: &str) -> bool {
    const UNITS: [&str; 13] = [
        "", "%", "B", "KiB", "MiB", "GiB", "TiB", "ns", "us", "ms", "s", "/s", "x",
    ];
    let cell = cell.strip_prefix(['-', '+', '~']).unwrap_or(cell);
    let digits = cell.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ','));
    digits.len() < cell.len() && UNITS.contains(&digits.trim_start())
}

/// Returns the colour of a state.
fn hue(state: &str) -> Option<Color> {
    match state.split(' ').next().unwrap_or(state) {
        "serving" | "delivered" | "whole" | "ok" => Some(Color::Green),
        "degraded" | "leaving" | "not" | "stopped" | "expired" | "cancelled" | "rejected"
        | "refund_wanted" | "waiting" => Some(Color::Yellow),
        "gone" | "failed" | "dead" | "DAMAGED" => Some(Color::Red),
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
