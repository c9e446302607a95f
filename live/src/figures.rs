//! Formats numbers and names as short texts.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Returns a count with thousands separators: `12,345`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a count as text of at most `width` columns. If `width` is below 4, the text of a large
/// count may be wider. A count that does not fit is given in thousands, millions and so on with a
/// letter, such as `1.5k`.
pub(crate) fn short(value: u64, width: usize) -> String {
    let exact = count(value);
    if exact.len() <= width {
        return exact;
    }
    let mut scaled = value as f64;
    for letter in ["k", "M", "G", "T", "P", "E"] {
        scaled /= 1_000.0;
        if scaled < 999.95 || letter == "E" {
            let precise = format!("{scaled:.1}{letter}");
            return match precise.len() <= width {
                true => precise,
                false => format!("{:.0}{letter}", scaled.floor()),
            };
        }
    }
    exact
}

/// Returns a latency in microseconds as text, such as `0.42 ms`, `12.3 ms` or `1.25 s`. The text of
/// a latency below 99,999 s has at most 7 columns.
pub(crate) fn latency(us: u64) -> String {
    let ms = us as f64 / 1_000.0;
    // A range ends where rounding would add a digit: 9,995 us would become `10.00 ms`.
    match us {
        0..9_995 => format!("{ms:.2} ms"),
        9_995..99_950 => format!("{ms:.1} ms"),
        99_950..999_500 => format!("{ms:.0} ms"),
        999_500..99_995_000 => format!("{:.2} s", ms / 1_000.0),
        _ => format!("{:.0} s", ms / 1_000.0),
    }
}

/// Returns the text in at most `width` columns. A text that is too long ends with an ellipsis,
/// unless `width` is 0. Control characters are removed, because they would move the cursor.
pub(crate) fn fit(text: &str, width: usize) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).collect();
    if plain.width() <= width {
        return plain;
    }
    let mut fitted = String::new();
    let mut columns = 0;
    for c in plain.chars() {
        let wide = c.width().unwrap_or(0);
        // One column is reserved for the ellipsis.
        if columns + wide + 1 > width {
            break;
        }
        columns += wide;
        fitted.push(c);
    }
    if width > 0 {
        fitted.push('…');
    }
    fitted
}

/// Returns the text in exactly `width` columns: padded with blanks on the right, or cut.
pub(crate) fn padded(text: &str, width: usize) -> String {
    let mut text = fit(text, width);
    let blanks = width.saturating_sub(text.width());
    text.extend(std::iter::repeat_n(' ', blanks));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_or_rounded_down_within_their_width() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(short(12_345, 6), "12,345");
        assert_eq!(short(1_234_567, 6), "1.2M");
        assert_eq!(short(999_999_999, 6), "1.0G");
        for power in 0..=19 {
            let value = 10_u64.pow(power);
            assert!(short(value, 6).len() <= 6, "{}", short(value, 6));
            assert!(short(value - 1, 6).len() <= 6, "{}", short(value - 1, 6));
        }
        assert!(short(u64::MAX, 6).len() <= 6);
    }

    #[test]
    fn latencies_take_at_most_seven_columns() {
        let texts = [420, 12_340, 123_400, 1_250_000, 600_000_000].map(latency);
        assert_eq!(texts, ["0.42 ms", "12.3 ms", "123 ms", "1.25 s", "600 s"]);
        let below = [9_994, 99_949, 999_499, 99_994_999].map(latency);
        assert_eq!(below, ["9.99 ms", "99.9 ms", "999 ms", "99.99 s"]);
        let edges = [9_995, 9_999, 99_950, 99_999, 999_500, 999_999].map(latency);
        assert_eq!(
            edges,
            ["10.0 ms", "10.0 ms", "100 ms", "100 ms", "1.00 s", "1.00 s"]
        );
        assert_eq!([99_995_000, 99_999_999].map(latency), ["100 s", "100 s"]);
    }

    #[test]
    fn a_long_or_wide_name_is_cut_with_an_ellipsis() {
        assert_eq!(fit("node-1", 6), "node-1");
        assert_eq!(fit("node-12", 6), "node-…");
        assert_eq!(fit("倉庫倉庫", 6), "倉庫…");
        assert_eq!(fit("a\u{1b}[31mb\n", 10), "a[31mb");
        assert_eq!(fit("x", 0), "");
        assert_eq!(padded("倉", 4), "倉  ");
    }
}
