//! Formats keys, values, bars and histograms for people, and parses keys and values.
//!
//! Without flags, values of tables with the names of a node's tables are decoded, unless the table
//! has a recorded key type that is a string or a number. Other values, and values that cannot be
//! decoded, are shown as text if they are UTF-8 without control characters and do not begin with
//! `0x`. Otherwise they are shown as hexadecimal digits after the mark `0x`.
//!
//! The same rules apply to keys, but a key of a typed table is decoded by its recorded type, if
//! that type is a string or a number. If the decoded text would not be shown as it is, or if the
//! key cannot be decoded, such a key is shown as hexadecimal digits after `0x`.

use super::key_types::DataType;
use crate::error::CliError;
use crate::output;
use microdb::Db;
use serde_json::{Value as Json, json};

/// Format in which keys and values are shown and parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// `true` if the rows of a node's tables are decoded.
    known: bool,
    key_type: Option<DataType>,
    /// `true` if `key_type` is the type that the database records, and not one of a flag. Then
    /// digits after [`HEX_MARK`] are the bytes of a key.
    is_recorded: bool,
    value_type: Option<DataType>,
}

/// Flags that choose the format of keys and values.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct FormArgs {
    /// Type of the keys, such as string or u64 [default: as the database records it for a typed
    /// table]
    #[arg(short, long, value_name = "TYPE", conflicts_with = "hex")]
    key_type: Option<DataType>,
    /// Type of the values
    #[arg(long, value_name = "TYPE", conflicts_with = "hex")]
    value_type: Option<DataType>,
    /// Read and print keys and values as hexadecimal digits
    #[arg(long)]
    hex: bool,
    /// Do not decode the rows of a node's tables
    #[arg(long)]
    raw: bool,
}

impl FormArgs {
    pub(super) fn is_raw(&self) -> bool {
        self.raw
    }

    /// Returns the type of keys that `--key-type` names.
    pub(super) fn key_type(&self) -> Option<DataType> {
        self.key_type
    }

    /// Returns the format for a table. `recorded` is the type of its keys that the database
    /// records, which is used if no flag names another one.
    pub(super) fn form(&self, recorded: Option<DataType>) -> Form {
        let hex = self.hex.then_some(DataType::Hex);
        let named = hex.or(self.key_type);
        Form {
            known: !self.raw,
            key_type: named.or(recorded),
            is_recorded: named.is_none() && recorded.is_some(),
            value_type: hex.or(self.value_type),
        }
    }

    /// Returns the format for a table of an open database.
    pub(super) fn form_in(&self, db: &Db, table: &str) -> Form {
        self.form(recorded(db, table))
    }
}

/// Returns the type of a table's keys that the database records. Returns `None` if the table does
/// not exist, or [`DataType::of_keys`] returns `None`.
fn recorded(db: &Db, table: &str) -> Option<DataType> {
    let mut tables = db.tables().into_iter();
    let info = tables.find(|info| info.name == table);
    info.as_ref().and_then(DataType::of_keys)
}

impl Form {
    /// Format that decodes the rows of a node's tables.
    pub(super) const KNOWN: Self = Self {
        known: true,
        key_type: None,
        is_recorded: false,
        value_type: None,
    };
    /// Format that shows all keys and values as text or hexadecimal digits.
    pub(super) const RAW: Self = Self {
        known: false,
        key_type: None,
        is_recorded: false,
        value_type: None,
    };

    /// Returns the format for a table if no flag is given. Keys have the type that the database
    /// records. Without such a type, this is the format [`Form::KNOWN`].
    pub(super) fn recorded_in(db: &Db, table: &str) -> Self {
        let key_type = recorded(db, table);
        Self {
            key_type,
            is_recorded: key_type.is_some(),
            ..Self::KNOWN
        }
    }

    /// Parses a key from the command line, in the same form in which [`Form::key`] shows keys. If a
    /// flag names a type, only keys of this type can be parsed.
    pub(super) fn parse_key(self, table: &str, text: &str) -> Result<Vec<u8>, CliError> {
        if let Some(key_type) = self.key_type {
            if self.is_recorded
                && let Some(bytes) = text.strip_prefix(HEX_MARK).and_then(digits)
            {
                return Ok(bytes);
            }
            let wrong = match self.is_recorded {
                true => "the key does not fit the type of the table's keys",
                false => "the key does not fit --key-type",
            };
            return key_type
                .encode(text)
                .map_err(|error| CliError::Usage(format!("{wrong}: {error}")));
        }
        let known = if self.known {
            imt_oms::key_from_text(table, text)
        } else {
            None
        };
        Ok(known.unwrap_or_else(|| of_text(text)))
    }

    /// Parses a value from the command line. Without a type, a value is text, or hexadecimal digits
    /// after [`HEX_MARK`]. The decoded form in which rows of a node's tables are shown is not
    /// parsed.
    pub(super) fn parse_value(self, text: &str) -> Result<Vec<u8>, CliError> {
        match self.value_type {
            Some(value_type) => {
                let encoded = value_type.encode(text);
                encoded
                    .map_err(|error| CliError::Usage(format!("the value does not fit --value-type: {error}")))
            }
            None => Ok(of_text(text)),
        }
    }

    pub(super) fn key(self, table: &str, key: &[u8]) -> String {
        let known = match self.key_type {
            // A key that is no plain text of its type is shown as digits, which `parse_key` reads.
            Some(key_type) if self.is_recorded => {
                let text = key_type.decode(key).filter(|text| is_plain(text));
                return text.unwrap_or_else(|| hex(key));
            }
            Some(key_type) => key_type.decode(key),
            None if self.known => imt_oms::key_as_text(table, key),
            None => None,
        };
        known.unwrap_or_else(|| bytes_text(key))
    }

    /// Returns a value as JSON: the decoded row of a node's table, otherwise a string.
    pub(super) fn value(self, table: &str, key: &[u8], value: &[u8]) -> Json {
        if let Some(value_type) = self.value_type {
            return json!(value_type.decode(value).unwrap_or_else(|| bytes_text(value)));
        }
        let known = if self.known && self.key_type.is_none() {
            imt_oms::row_as_json(table, key, value)
        } else {
            None
        };
        match known {
            Some(Ok(row)) => row,
            _ => json!(bytes_text(value)),
        }
    }

    /// Returns a value as text. A decoded row takes one line, and its times are dates.
    pub(super) fn value_text(self, table: &str, key: &[u8], value: &[u8]) -> String {
        match dated(self.value(table, key, value)) {
            Json::String(text) => text,
            row => row.to_string(),
        }
    }
}

/// Returns bytes as text, or as hexadecimal digits after [`HEX_MARK`] if they are not UTF-8 or have
/// control characters. A text that begins with [`HEX_MARK`] is shown as digits too, so that both
/// forms can be told apart.
fn bytes_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_plain(text) => text.to_owned(),
        _ => hex(bytes),
    }
}

/// Returns `true` for a text that is shown as it is: it has no control characters, and does not
/// begin with [`HEX_MARK`].
fn is_plain(text: &str) -> bool {
    !text.starts_with(HEX_MARK) && !text.chars().any(char::is_control)
}

/// Parses a text in the form that [`bytes_text`] returns.
fn of_text(text: &str) -> Vec<u8> {
    let marked = text.strip_prefix(HEX_MARK).and_then(digits);
    marked.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// Replaces milliseconds since 1970 by dates, in all fields with names that end in `_ms`. A field
/// with the number 0 is unchanged.
pub(super) fn dated(value: Json) -> Json {
    match value {
        Json::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| match value.as_u64() {
                Some(ms) if name.ends_with("_ms") && ms > 0 => (name, json!(output::date(ms))),
                _ => (name, dated(value)),
            });
            Json::Object(fields.collect())
        }
        Json::Array(values) => values.into_iter().map(dated).collect(),
        value => value,
    }
}

/// Returns a decoded row as lines of a name and a value. Each list of objects follows as a table. A
/// value that is no object is returned as `word` formats it.
pub(super) fn row_lines(row: &Json) -> String {
    let Json::Object(fields) = row else {
        return word(row);
    };
    let is_table = |value: &&Json| {
        let list = value.as_array();
        list.is_some_and(|list| !list.is_empty() && list.iter().all(Json::is_object))
    };
    let (tables, plain): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| is_table(value));
    let width = plain
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text: String = plain
        .iter()
        .map(|(name, value)| format!("{name:width$}  {}\n", word(value)))
        .collect();
    for (name, list) in tables {
        text.push_str(&format!("\n{name}\n{}", indented(&list_table(list))));
    }
    text
}

fn list_table(list: &Json) -> String {
    let objects: Vec<_> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Json::as_object)
        .collect();
    let mut columns: Vec<&String> = Vec::new();
    for name in objects.iter().flat_map(|object| object.keys()) {
        if !columns.contains(&name) {
            columns.push(name);
        }
    }
    let mut rows = vec![columns.iter().map(ToString::to_string).collect()];
    rows.extend(objects.iter().map(|object| {
        let cells = columns
            .iter()
            .map(|name| object.get(*name).map_or_else(String::new, word));
        cells.collect()
    }));
    output::table(&rows)
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Returns a value as text. The elements of a list are separated by commas, unless the list has
/// lists or objects. Such a list and an object are shown as JSON in one line.
fn word(value: &Json) -> String {
    match value {
        Json::Null => "-".to_owned(),
        Json::String(text) => text.clone(),
        Json::Array(list) if list.iter().all(|value| !value.is_array() && !value.is_object()) => {
            list.iter().map(word).collect::<Vec<_>>().join(", ")
        }
        value => value.to_string(),
    }
}

/// Mark before hexadecimal digits.
const HEX_MARK: &str = "0x";

/// Returns bytes as hexadecimal digits after [`HEX_MARK`].
pub(super) fn hex(bytes: &[u8]) -> String {
    format!("{HEX_MARK}{}", plain_hex(bytes))
}

/// Returns bytes as hexadecimal digits without a mark.
pub(super) fn plain_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses hexadecimal digits, with or without [`HEX_MARK`]. Returns `None` for any other text.
pub(super) fn digits(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_prefix(HEX_MARK).unwrap_or(text);
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}

/// Returns a share between 0 and 1 as a bar of `width` characters in brackets: `#` for live bytes,
/// `.` for dead.
pub(super) fn bar(share: f64, width: usize) -> String {
    let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(width - full))
}

/// Histogram of sizes in bytes, with a bucket for each power of two.
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
    fn bytes_are_marked_and_read_back_in_the_form_in_which_they_are_shown() {
        assert_eq!(digits("0x00ffA0"), Some(vec![0, 255, 160]));
        for wrong in ["0", "0g", "é", "0x0", "+1"] {
            assert_eq!(digits(wrong), None, "{wrong}");
        }
        let cases: [&[u8]; 5] = [&[0, 255, 160], b"k1", "käse".as_bytes(), b"0x6b", b""];
        for bytes in cases {
            let shown = Form::RAW.key("t", bytes);
            assert_eq!(Form::RAW.parse_key("t", &shown).unwrap(), bytes, "{shown}");
        }
        assert_eq!(Form::RAW.key("t", &[0, 255, 160]), "0x00ffa0");
        assert_eq!(Form::RAW.key("t", b"0x6b"), "0x30783662");
        assert_eq!(Form::KNOWN.key("t", "käse".as_bytes()), "käse");
        let digits = Form {
            key_type: Some(DataType::Hex),
            ..Form::KNOWN
        };
        assert!(matches!(digits.parse_key("t", "0g"), Err(CliError::Usage(_))));
    }

    #[test]
    fn keys_of_a_recorded_type_are_read_back_in_the_form_in_which_they_are_shown() {
        let form = Form {
            key_type: Some(DataType::String),
            is_recorded: true,
            ..Form::KNOWN
        };
        for (bytes, shown) in [
            (&b"\x03ann"[..], "ann"),
            (b"\x00", ""),
            // Texts that look like digits, texts with control characters, and other bytes.
            (b"\x040x00", "0x0430783030"),
            (b"\x01\n", "0x010a"),
            (b"k1", "0x6b31"),
        ] {
            assert_eq!(form.key("t", bytes), shown);
            assert_eq!(form.parse_key("t", shown).unwrap(), bytes, "{shown}");
        }
        let numbers = Form {
            key_type: Some(DataType::U64),
            ..form
        };
        let Err(CliError::Usage(error)) = numbers.parse_key("t", "ann") else {
            panic!("a name is no number");
        };
        assert!(error.contains("the type of the table's keys"), "{error}");
    }

    #[test]
    fn a_row_is_shown_as_lines_with_dates_and_its_lists_as_tables() {
        let row = json!({ "state": "paid", "store": null, "ids": [1, 2], "at_ms": 0,
            "history": [{ "event": "reserved", "at_ms": 1000, "store": 3 }, { "event": "paid", "at_ms": 2000 }] });
        let expected = "\
at_ms  0
ids    1, 2
state  paid
store  -

history
  at_ms                     event     store
  1970-01-01T00:00:01.000Z  reserved      3
  1970-01-01T00:00:02.000Z  paid
";
        assert_eq!(row_lines(&dated(row)), expected);
        assert_eq!(row_lines(&json!("text")), "text");
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
