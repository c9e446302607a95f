//! Prints results to standard output, as text or JSON. A reader that closes the pipe is no failure.

use crate::error::CliError;
use std::io::{ErrorKind, Write};

/// Format of results.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Text for people.
    #[default]
    Table,
    /// One JSON document for programs. Streams print one document per line.
    Json,
}

/// Prints bytes unchanged.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => CliError::BrokenPipe,
            _ => CliError::because("cannot write to standard output", error),
        })
}

/// Prints text and a line break after it if it has none.
pub(crate) fn print_text(text: &str) -> Result<(), CliError> {
    let mut text = text.trim_end_matches('\n').to_owned();
    text.push('\n');
    print_bytes(text.as_bytes())
}

/// Prints a value as one JSON document.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let mut json =
        serde_json::to_vec_pretty(value).map_err(|error| CliError::because("cannot render JSON", error))?;
    json.push(b'\n');
    print_bytes(&json)
}

/// Aligns rows in columns. The first row is the heading. Columns of numbers are aligned to the
/// right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let numeric: Vec<bool> = (0..columns)
        .map(|column| {
            rows.iter().skip(1).filter_map(|row| row.get(column)).all(|cell| {
                cell.chars()
                    .all(|c| c.is_ascii_digit() || matches!(c, '.' | ',' | '%' | '-' | ' '))
            })
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = widths[column].saturating_sub(cell.chars().count());
            let (before, after) = if numeric[column] { (pad, 0) } else { (0, pad) };
            line.push_str(&" ".repeat(before));
            line.push_str(cell);
            line.push_str(&" ".repeat(after + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns a number of bytes with its unit, such as `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_to_the_right_and_words_to_the_left() {
        let rows = [
            vec!["name".into(), "slots".into()],
            vec!["alpha".into(), "7".into()],
            vec!["b".into(), "1234".into()],
        ];
        assert_eq!(table(&rows), "name   slots\nalpha      7\nb       1234\n");
    }

    #[test]
    fn bytes_take_the_largest_unit_that_keeps_a_whole_digit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(3 * 1024 * 1024 / 2), "1.5 MiB");
    }
}
