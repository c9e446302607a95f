//! A streaming parser for lines of three unsigned numbers.
//!
//! Both files of the warehouse have this shape: the stock snapshot (`PRODUCT,STORE,QUANTITY`) and
//! the statistics (`PRODUCT,UNITS_SOLD,UNIT_PRICE`). No CSV library is used, because a snapshot of
//! two million lines must be parsed fast.
//!
//! **Invariants**
//! - The body arrives in pieces of any size. Memory holds at most one unfinished line.
//! - A fault names its line and column, both counted from one.
//! - Accepted deviations: an empty line, a last line without newline, a carriage return before a
//!   newline, and a byte order mark at the beginning. Everything else is a fault.

use thiserror::Error;

/// Maximum number of bytes that are kept of an unfinished line. Three ten-digit numbers with commas
/// and a line break of two bytes take 34.
const LINE_BYTES_MAX: usize = 64;

/// A fault in a body, with its line and column.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct CsvError {
    /// Line, counted from one.
    pub line: u64,
    /// Column in bytes, counted from one.
    pub column: usize,
    /// The fault, as text for the client.
    pub reason: String,
}

/// A field of a well-formed line that the consumer of the lines rejects. Fields are counted from
/// zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldFault {
    pub(crate) field: usize,
    pub(crate) reason: String,
}

/// A parser that reads lines from pieces of a body.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    /// The beginning of a line that ends in a later piece.
    unfinished: Vec<u8>,
    /// Number of lines so far, empty ones included.
    lines_seen: u64,
    /// Number of lines passed to the consumer.
    lines_read: u64,
    mark: Mark,
}

/// The UTF-8 byte order mark, which some programs write before their text.
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The state of the byte order mark at the beginning of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Number of bytes of the mark received so far.
    Seen(usize),
    /// The mark is complete or absent, so the text has begun.
    Over,
}

impl Default for Mark {
    fn default() -> Mark {
        Mark::Seen(0)
    }
}

/// The result of reading one line at the beginning of some bytes.
enum Scan {
    Line { fields: [u32; 3], bytes: usize },
    Blank { bytes: usize },
    Unfinished,
    Fault { column: usize, reason: &'static str },
}

impl LineReader {
    /// Passes every line that this piece completes to `take`.
    pub(crate) fn feed(
        &mut self,
        mut piece: &[u8],
        mut take: impl FnMut([u32; 3]) -> Result<(), FieldFault>,
    ) -> Result<(), CsvError> {
        if self.mark != Mark::Over {
            piece = self.skip_mark(piece);
        }
        if !self.unfinished.is_empty() {
            let Some(newline) = piece.iter().position(|&byte| byte == b'\n') else {
                return self.keep(piece);
            };
            let (head, rest) = piece.split_at(newline + 1);
            self.keep(head)?;
            let line = std::mem::take(&mut self.unfinished);
            let left = self.scan_all(&line, &mut take)?;
            debug_assert_eq!(left, 0, "a line that ends in a newline is never unfinished");
            piece = rest;
        }
        let left = self.scan_all(piece, &mut take)?;
        self.keep(&piece[piece.len() - left..])
    }

    /// Skips the byte order mark at the beginning of a body, even if the mark arrives in several
    /// pieces. Returns the rest of the piece.
    #[cold]
    fn skip_mark<'a>(&mut self, mut piece: &'a [u8]) -> &'a [u8] {
        while let (Mark::Seen(seen), Some((&byte, rest))) = (self.mark, piece.split_first()) {
            if byte != BYTE_ORDER_MARK[seen] {
                // The bytes of an incomplete mark are kept as text, which `scan` then reports as a
                // fault.
                self.unfinished.extend_from_slice(&BYTE_ORDER_MARK[..seen]);
                self.mark = Mark::Over;
                break;
            }
            piece = rest;
            self.mark = match seen + 1 {
                seen if seen == BYTE_ORDER_MARK.len() => Mark::Over,
                seen => Mark::Seen(seen),
            };
        }
        piece
    }

    /// Passes the last line to `take` if the body did not end in a newline. Returns the number of
    /// lines that were passed on in total.
    pub(crate) fn finish(
        mut self,
        mut take: impl FnMut([u32; 3]) -> Result<(), FieldFault>,
    ) -> Result<u64, CsvError> {
        if let Mark::Seen(seen) = self.mark {
            self.unfinished.extend_from_slice(&BYTE_ORDER_MARK[..seen]);
        }
        if !self.unfinished.is_empty() {
            let mut line = std::mem::take(&mut self.unfinished);
            line.push(b'\n');
            self.scan_all(&line, &mut take)?;
        }
        Ok(self.lines_read)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), CsvError> {
        if self.unfinished.len() + bytes.len() > LINE_BYTES_MAX {
            // If the first bytes of the line have a fault, this fault is reported instead of the
            // excessive length, because it helps the client more.
            self.unfinished
                .extend_from_slice(&bytes[..bytes.len().min(LINE_BYTES_MAX)]);
            let (column, reason) = match scan(&self.unfinished) {
                Scan::Fault { column, reason } => (column, reason),
                _ => (LINE_BYTES_MAX + 1, "the line is longer than 64 bytes"),
            };
            let is_name =
                self.lines_seen == 0 && self.unfinished.first().is_some_and(|byte| begins_name(*byte));
            let mut fault = self.fault(column, reason.to_owned());
            if is_name {
                fault.reason.push_str(HEADER_ROW);
            }
            return Err(fault);
        }
        self.unfinished.extend_from_slice(bytes);
        Ok(())
    }

    /// Passes all complete lines to `take`. Returns the number of bytes after the last complete
    /// line.
    fn scan_all(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut([u32; 3]) -> Result<(), FieldFault>,
    ) -> Result<usize, CsvError> {
        let mut rest = bytes;
        loop {
            while let Some((fields, bytes)) = rest.first_chunk().and_then(scan_short) {
                take(fields).map_err(|fault| self.refused(rest, fault))?;
                self.lines_read += 1;
                self.lines_seen += 1;
                rest = &rest[bytes..];
            }
            match scan(rest) {
                Scan::Line { fields, bytes } => {
                    take(fields).map_err(|fault| self.refused(rest, fault))?;
                    self.lines_read += 1;
                    self.lines_seen += 1;
                    rest = &rest[bytes..];
                }
                Scan::Blank { bytes } => {
                    self.lines_seen += 1;
                    rest = &rest[bytes..];
                }
                Scan::Unfinished => return Ok(rest.len()),
                Scan::Fault { column, reason } => {
                    let mut fault = self.fault(column, reason.to_owned());
                    if self.lines_seen == 0 && rest.first().is_some_and(|byte| begins_name(*byte)) {
                        fault.reason.push_str(HEADER_ROW);
                    }
                    return Err(fault);
                }
            }
        }
    }

    /// Returns the error for a well-formed line that the consumer does not accept.
    #[cold]
    fn refused(&self, line: &[u8], fault: FieldFault) -> CsvError {
        let commas = line.iter().enumerate().filter(|(_, byte)| **byte == b',');
        let mut starts = std::iter::once(0).chain(commas.map(|(at, _)| at + 1));
        self.fault(starts.nth(fault.field).unwrap_or(0) + 1, fault.reason)
    }

    fn fault(&self, column: usize, reason: String) -> CsvError {
        CsvError {
            line: self.lines_seen + 1,
            column,
            reason,
        }
    }
}

/// Text appended to the fault of a first line that begins like a column name.
const HEADER_ROW: &str = "; the first line looks like a header row: send the lines without one";

/// Returns `true` for a byte that can begin a column name.
fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'"' | b'\'' | b'#' | b'_')
}

/// Number of bytes that `scan_short` needs: sixteen for the line, and eight more because `number`
/// reads words of eight bytes.
const SHORT_BYTES: usize = 24;

/// Reads one plain line of up to sixteen bytes, with numbers of one to eight digits. Nearly every
/// line of a snapshot is plain, so this function is the hot loop. The function examines eight bytes
/// at a time without a branch per digit. Returns `None` for any other line, which `scan` then
/// reads.
#[inline]
fn scan_short(bytes: &[u8; SHORT_BYTES]) -> Option<([u32; 3], usize)> {
    let ends = non_digits(word_at(bytes, 0)) | (non_digits(word_at(bytes, 8)) << 8);
    let first = ends.trailing_zeros() as usize;
    let ends = ends & ends.wrapping_sub(1);
    let second = ends.trailing_zeros() as usize;
    let ends = ends & ends.wrapping_sub(1);
    if ends == 0 {
        return None;
    }
    let third = ends.trailing_zeros() as usize;
    let is_plain = (bytes[first], bytes[second], bytes[third]) == (b',', b',', b'\n');
    if !is_plain {
        return None;
    }
    let fields = [
        number(bytes, 0, first)?,
        number(bytes, first + 1, second)?,
        number(bytes, second + 1, third)?,
    ];
    Some((fields, third + 1))
}

#[inline]
fn word_at(bytes: &[u8; SHORT_BYTES], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word))
}

/// Returns one bit for each byte that is not a digit; the lowest bit stands for the first byte.
#[inline]
fn non_digits(word: u64) -> u32 {
    // The XOR turns digits into 0 to 9. Adding 0x76 sets the highest bit of every larger value and
    // never carries into the next byte.
    let off = word ^ 0x3030_3030_3030_3030;
    let above = (off & 0x7f7f_7f7f_7f7f_7f7f) + 0x7676_7676_7676_7676;
    let marks = (above | off) & 0x8080_8080_8080_8080;
    // The multiplication moves the mark of each byte to a separate bit of the highest byte.
    ((marks >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
}

/// Returns the number in `bytes[start..end]`. `None` unless the number has one to eight digits.
#[inline]
fn number(bytes: &[u8; SHORT_BYTES], start: usize, end: usize) -> Option<u32> {
    let digits = end - start;
    if digits == 0 || digits > 8 {
        return None;
    }
    // Pad with zeros before the first digit. Then combine neighbours: digits to pairs, pairs to
    // groups of four, groups to one number.
    let word = (word_at(bytes, start) ^ 0x3030_3030_3030_3030) << (64 - 8 * digits);
    let pairs = (word.wrapping_mul((10 << 8) + 1) >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul((100 << 16) + 1) >> 16) & 0x0000_ffff_0000_ffff;
    Some((fours.wrapping_mul((10_000 << 32) + 1) >> 32) as u32)
}

/// Reads one line at the beginning of `bytes`. Examines each byte once.
#[inline]
fn scan(bytes: &[u8]) -> Scan {
    let mut fields = [0u32; 3];
    let mut at = 0;
    for field in 0..3 {
        let start = at;
        let mut value = 0u64;
        let stop = loop {
            let Some(&byte) = bytes.get(at) else {
                return Scan::Unfinished;
            };
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break byte;
            }
            // More than ten digits are rejected below, so a wrapped value is never used.
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
        };
        if at == start {
            if field == 0 && stop == b'\n' {
                return Scan::Blank { bytes: 1 };
            }
            if field == 0 && stop == b'\r' {
                return match bytes.get(1) {
                    None => Scan::Unfinished,
                    Some(b'\n') => Scan::Blank { bytes: 2 },
                    Some(_) => Scan::Fault {
                        column: 1,
                        reason: "expected a number",
                    },
                };
            }
            return Scan::Fault {
                column: at + 1,
                reason: "expected a number",
            };
        }
        if at - start > 10 || value > u64::from(u32::MAX) {
            return Scan::Fault {
                column: start + 1,
                reason: "the number is too large",
            };
        }
        fields[field] = value as u32;
        match (field, stop) {
            (0 | 1, b',') => at += 1,
            (0 | 1, b'\n' | b'\r') => {
                return Scan::Fault {
                    column: at + 1,
                    reason: "the line must have three fields",
                };
            }
            (2, b'\n') => {
                return Scan::Line {
                    fields,
                    bytes: at + 1,
                };
            }
            (2, b'\r') => match bytes.get(at + 1) {
                None => return Scan::Unfinished,
                Some(b'\n') => {
                    return Scan::Line {
                        fields,
                        bytes: at + 2,
                    };
                }
                Some(_) => {
                    return Scan::Fault {
                        column: at + 1,
                        reason: "the line must end here",
                    };
                }
            },
            (2, b',') => {
                return Scan::Fault {
                    column: at + 1,
                    reason: "the line must have three fields",
                };
            }
            _ => {
                return Scan::Fault {
                    column: at + 1,
                    reason: "expected only digits",
                };
            }
        }
    }
    Scan::Unfinished
}

#[cfg(test)]
mod tests {
    use super::*;

    type Lines = Vec<[u32; 3]>;

    fn read_in_pieces(body: &[u8], cuts: &[usize]) -> Result<Lines, CsvError> {
        let mut reader = LineReader::default();
        let mut lines = Vec::new();
        let mut from = 0;
        for &cut in cuts {
            reader.feed(&body[from..cut], |fields| {
                lines.push(fields);
                Ok(())
            })?;
            from = cut;
        }
        reader.feed(&body[from..], |fields| {
            lines.push(fields);
            Ok(())
        })?;
        let count = reader.finish(|fields| {
            lines.push(fields);
            Ok(())
        })?;
        assert_eq!(count, lines.len() as u64);
        Ok(lines)
    }

    #[test]
    fn the_result_does_not_depend_on_the_pieces_of_the_body() {
        let body = b"1,2,3\n\n10,20,30\r\n4294967295,0,7\n\r\n5,6,7";
        let whole = read_in_pieces(body, &[]).unwrap();
        assert_eq!(whole, [[1, 2, 3], [10, 20, 30], [u32::MAX, 0, 7], [5, 6, 7]]);
        for first in 0..=body.len() {
            for second in first..=body.len() {
                assert_eq!(
                    read_in_pieces(body, &[first, second]).unwrap(),
                    whole,
                    "{first} {second}"
                );
            }
        }
    }

    #[test]
    fn a_fault_names_line_and_column_for_every_cut_of_the_body() {
        let cases: [(&[u8], u64, usize, &str); 12] = [
            (b"1,2,3\n1,2\n", 2, 4, "three fields"),
            (b"1,2,3\n\n1,2,x\n", 3, 5, "number"),
            (b"1,2,3,4\n", 1, 6, "three fields"),
            (b"-1,2,3\n", 1, 1, "number"),
            (b"1, 2,3\n", 1, 3, "number"),
            (b"1,2,3 \n", 1, 6, "digits"),
            (b"1,4294967296,3\n", 1, 3, "too large"),
            (b"1,2,99999999999999999999999\n", 1, 5, "too large"),
            (b"1,2,3\r4,5,6\n", 1, 6, "end here"),
            (b"1,2,3\n7,8", 2, 4, "three fields"),
            (b"product,store,quantity\n", 1, 1, "number"),
            (b"1,2,\xff\n", 1, 5, "number"),
        ];
        for (body, line, column, reason) in cases {
            for cut in 0..=body.len() {
                let error = read_in_pieces(body, &[cut]).unwrap_err();
                assert_eq!(
                    (error.line, error.column),
                    (line, column),
                    "{body:?} cut at {cut}: {error}"
                );
                assert!(error.reason.contains(reason), "{body:?}: {error}");
            }
        }
    }

    #[test]
    fn a_line_without_end_is_rejected_before_it_fills_memory() {
        let body = vec![b'7'; 10_000];
        for cut in [0, 1, 63, 64, 65, 9_999] {
            let error = read_in_pieces(&body, &[cut]).unwrap_err();
            assert!(error.reason.contains("longer than 64 bytes"), "{error}");
        }
    }

    #[test]
    fn scan_short_agrees_with_scan() {
        let numbers = [
            "",
            "0",
            "7",
            "42",
            "0815",
            "99999",
            "1234567",
            "12345678",
            "123456789",
            "4294967295",
            "x",
            "1x",
        ];
        let mut read = 0;
        for first in numbers {
            for second in numbers {
                for third in numbers {
                    for end in ["\n", "\r\n", ",\n", "\n\n", " \n", "\u{ff}\n"] {
                        let line = format!("{first},{second},{third}{end}1,2,3\n1,2,3\n1,2,3\n1,2,3\n");
                        let short = line.as_bytes().first_chunk().and_then(scan_short);
                        let Some((fields, bytes)) = short else { continue };
                        let Scan::Line {
                            fields: plain,
                            bytes: plain_bytes,
                        } = scan(line.as_bytes())
                        else {
                            panic!("{line:?} is not a line");
                        };
                        assert_eq!((fields, bytes), (plain, plain_bytes), "{line:?}");
                        read += 1;
                    }
                }
            }
        }
        assert!(read > 300, "{read} short lines");
    }

    #[test]
    fn a_byte_order_mark_before_the_first_line_is_skipped_for_every_cut_of_the_body() {
        let body = b"\xef\xbb\xbf1,2,3\n4,5,6\n";
        for first in 0..=body.len() {
            for second in first..=body.len() {
                let lines = read_in_pieces(body, &[first, second]).unwrap();
                assert_eq!(lines, [[1, 2, 3], [4, 5, 6]], "{first} {second}");
            }
        }
        assert!(read_in_pieces(b"\xef\xbb\xbf", &[1]).unwrap().is_empty());
        for body in [
            &b"\xef\xbb"[..],
            b"\xef\xbb1,2,3\n",
            b"1,2,3\n\xef\xbb\xbf4,5,6\n",
            b"\xef\xbb\xbf\xef\xbb\xbf1,2,3\n",
        ] {
            for cut in 0..=body.len() {
                let error = read_in_pieces(body, &[cut]).unwrap_err();
                assert_eq!(error.column, 1, "{body:?} cut at {cut}: {error}");
            }
        }
    }

    #[test]
    fn a_header_row_is_reported_as_such() {
        for body in [
            &b"product,store,quantity\n1,2,3\n"[..],
            b"\xef\xbb\xbfProduct,Store,Quantity\r\n1,2,3\n",
            b"\"product\",\"store\",\"quantity\"\n",
            b"the number of the product,the number of the store,units that are on hand\n",
        ] {
            for cut in 0..=body.len() {
                let error = read_in_pieces(body, &[cut]).unwrap_err();
                assert_eq!((error.line, error.column), (1, 1), "cut at {cut}: {error}");
                assert!(error.reason.contains("header row"), "cut at {cut}: {error}");
            }
        }
        let later = read_in_pieces(b"1,2,3\nproduct,store,quantity\n", &[]).unwrap_err();
        assert!(!later.reason.contains("header row"), "{later}");
    }

    #[test]
    fn a_rejected_field_is_reported_by_its_column() {
        let mut reader = LineReader::default();
        let error = reader
            .feed(b"1,2,3\n12,345,6\n", |fields| {
                if fields[1] == 345 {
                    return Err(FieldFault {
                        field: 2,
                        reason: "no".to_owned(),
                    });
                }
                Ok(())
            })
            .unwrap_err();
        assert_eq!((error.line, error.column, error.reason.as_str()), (2, 8, "no"));
    }
}
