//! Formats keys, values, bars and histograms for people, and parses keys and values.
//!
//! Values of a node's tables are decoded. Other values, and values that do not decode, are shown as
//! text if they are UTF-8, and as hexadecimal digits otherwise.

use crate::error::CliError;
use crate::output;
use serde_json::{Value as Json, json};

/// Returns a number of places with its noun.
pub(super) fn places(count: usize) -> String {
    match count {
        1 => "1 place".to_owned(),
        count => format!("{count} places"),
    }
}

/// Format of keys and values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Decoded where the type is known, otherwise text or hexadecimal digits.
    Known,
    /// Always hexadecimal digits.
    Hex,
    /// Text or hexadecimal digits, never decoded.
    Raw,
}

impl Form {
    pub(super) fn new(hex: bool, raw: bool) -> Self {
        match (hex, raw) {
            (true, _) => Self::Hex,
            (false, true) => Self::Raw,
            (false, false) => Self::Known,
        }
    }

    /// Parses a key from the command line.
    pub(super) fn parse_key(self, table: &str, text: &str) -> Result<Vec<u8>, CliError> {
        match self {
            Self::Hex => from_hex(text),
            Self::Known => {
                Ok(imt_oms::key_from_text(table, text).unwrap_or_else(|| text.as_bytes().to_vec()))
            }
            Self::Raw => Ok(text.as_bytes().to_vec()),
        }
    }

    /// Parses a value from the command line. The decoded form of a known type is for display only
    /// and is not parsed.
    pub(super) fn parse_value(self, text: &str) -> Result<Vec<u8>, CliError> {
        if self == Self::Hex {
            from_hex(text)
        } else {
            Ok(text.as_bytes().to_vec())
        }
    }

    pub(super) fn key(self, table: &str, key: &[u8]) -> String {
        let known = if self == Self::Known {
            imt_oms::key_as_text(table, key)
        } else {
            None
        };
        known.unwrap_or_else(|| self.bytes(key))
    }

    /// Returns a value as JSON: an object if its type is known, otherwise a string.
    pub(super) fn value(self, table: &str, key: &[u8], value: &[u8]) -> Json {
        let known = if self == Self::Known {
            imt_oms::row_as_json(table, key, value)
        } else {
            None
        };
        match known {
            Some(Ok(row)) => row,
            _ => json!(self.bytes(value)),
        }
    }

    /// Returns a value in one line.
    pub(super) fn value_text(self, table: &str, key: &[u8], value: &[u8]) -> String {
        match self.value(table, key, value) {
            Json::String(text) => text,
            row => row.to_string(),
        }
    }

    fn bytes(self, bytes: &[u8]) -> String {
        match std::str::from_utf8(bytes) {
            Ok(text) if self != Self::Hex && !text.chars().any(char::is_control) => text.to_owned(),
            _ => hex(bytes),
        }
    }
}

/// Returns bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses hexadecimal digits.
pub(super) fn from_hex(text: &str) -> Result<Vec<u8>, CliError> {
    let wrong = || {
        CliError::Usage(format!(
            "'{text}' is not an even number of hexadecimal digits (as --hex asks)"
        ))
    };
    if !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let pair = |at: usize| {
        text.get(at..at + 2)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(wrong)
    };
    (0..text.len()).step_by(2).map(pair).collect()
}

/// Returns a share between 0 and 1 as a bar: `#` live, `.` dead.
pub(super) fn bar(share: f64, width: usize) -> String {
    let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(width - full))
}

/// Returns milliseconds since 1970 as a date in UTC.
pub(super) fn time(ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Histogram of sizes, with a bucket for each power of two.
#[derive(Clone, Default, serde::Serialize)]
pub(super) struct Histogram {
    /// Bucket i counts sizes from 2^(i-1) up to, but not including, 2^i. Bucket 0 counts size 0.
    counts: Vec<u64>,
}

impl Histogram {
    pub(super) fn from_counts(counts: Vec<u64>) -> Self {
        Self { counts }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        let bucket = (usize::BITS - bytes.leading_zeros()) as usize;
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
    }

    /// Returns one line for each bucket that is not empty.
    pub(super) fn lines(&self) -> String {
        let most = self.counts.iter().copied().max().unwrap_or(0).max(1);
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let line = |(bucket, count): (usize, &u64)| {
            let below = output::bytes(1 << bucket);
            format!(
                "  under {below:>10}  {count:>12}  {}\n",
                "#".repeat((count * 40).div_ceil(most) as usize)
            )
        };
        filled.map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_goes_both_ways_and_wrong_digits_are_usage_errors() {
        assert_eq!(from_hex("00ffA0").unwrap(), [0, 255, 160]);
        assert_eq!(Form::Raw.key("t", &[0, 255, 160]), "00ffa0");
        for wrong in ["0", "0g", "é"] {
            assert!(matches!(from_hex(wrong), Err(CliError::Usage(_))), "{wrong}");
        }
        assert_eq!(Form::Known.key("t", "käse".as_bytes()), "käse");
    }

    #[test]
    fn sizes_are_counted_by_powers_of_two() {
        let mut histogram = Histogram::default();
        [0, 1, 7, 8, 9, 1000]
            .into_iter()
            .for_each(|bytes| histogram.add(bytes));
        assert_eq!(histogram.counts, [1, 1, 0, 1, 2, 0, 0, 0, 0, 0, 1]);
        assert_eq!(histogram.lines().lines().count(), 5);
    }
}
