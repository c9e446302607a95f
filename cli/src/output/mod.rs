//! Prints results to standard output as text, JSON or bytes, and remarks to standard error. If the
//! reader of standard output closes the pipe early, the command ends without a failure.

mod table;
mod terminal;

pub(crate) use table::{TableArgs, table};
pub(crate) use terminal::{ColorChoice, cut, escaped, is_coloured, is_quiet, set_up, width};

use crate::error::CliError;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Format of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
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

/// Prints text with exactly one line break at its end.
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

/// Prints a value as one line of JSON, for streams.
pub(crate) fn print_json_line(value: &serde_json::Value) -> Result<(), CliError> {
    print_text(&value.to_string())
}

/// Prints a result in the wanted format: text for people, or a JSON document for programs.
pub(crate) fn print_either(
    output: OutputFormat,
    text: &str,
    json: &impl serde::Serialize,
) -> Result<(), CliError> {
    match output {
        OutputFormat::Json => print_json(json),
        OutputFormat::Table => print_text(text),
    }
}

/// Prints a remark to standard error, unless `--quiet` is set. A remark is neither a result nor a
/// log line.
pub(crate) fn remark(text: &str) {
    if !is_quiet() {
        // The error is ignored, because a closed standard error must not end the command.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }
}

/// Returns a number with its noun in the singular or plural: `1 order`, `2 orders`, `3 entries`.
pub(crate) fn count<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    if number == N::from(1) {
        return format!("1 {noun}");
    }
    let is_vowel = |c: char| "aeiou".contains(c);
    let stem = noun.strip_suffix('y').filter(|stem| !stem.ends_with(is_vowel));
    match stem {
        Some(stem) => format!("{number} {stem}ies"),
        None if noun.ends_with(['s', 'x']) || noun.ends_with("ch") => format!("{number} {noun}es"),
        None => format!("{number} {noun}s"),
    }
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

/// Returns milliseconds since 1970 as a date in UTC, or as a number from the year 10000 on.
pub(crate) fn date(ms: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(ms));
    let shown = time.filter(|_| ms < YEAR_10000_MS);
    shown.map_or_else(
        || ms.to_string(),
        |time| humantime::format_rfc3339_millis(time).to_string(),
    )
}

/// Start of the year 10000 in milliseconds since 1970. RFC 3339 has no form for later dates.
const YEAR_10000_MS: u64 = 253_402_300_800_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_singular_and_other_numbers_are_plural() {
        assert_eq!(count(1_u64, "order"), "1 order");
        assert_eq!(count(0_usize, "order"), "0 orders");
        assert_eq!(count(2_u32, "entry"), "2 entries");
        assert_eq!(count(2_u32, "key"), "2 keys");
        assert_eq!(count(3_u64, "switch"), "3 switches");
        assert_eq!(count(1_u64, "copy"), "1 copy");
    }

    #[test]
    fn bytes_take_the_largest_unit_that_keeps_a_whole_digit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(3 * 1024 * 1024 / 2), "1.5 MiB");
    }

    #[test]
    fn a_time_that_has_no_date_is_shown_as_a_number() {
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(u64::MAX), u64::MAX.to_string());
    }
}
