//! Lines of three unsigned numbers, read while they arrive.
//!
//! Both files of the warehouse, the stock snapshot (`PRODUCT,STORE,QUANTITY`) and the statistics
//! (`PRODUCT,UNITS_SOLD,UNIT_PRICE`), have this one shape. The reader takes the body in pieces as the network
//! hands them over, keeps at most one unfinished line, and hands each line on as three numbers. It looks at
//! every byte once.
//!
//! A fault names its line and column, both counted from one. An empty line is passed over, a last line may lack
//! its newline, and a carriage return before a newline is allowed; nothing else is forgiven.

use std::fmt;

/// Longest line in bytes. Three ten-digit numbers take 34; more is not one of ours.
const LINE_BYTES_MAX: usize = 64;

/// What is wrong with a body, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvError {
    /// Line, counted from one.
    pub line: u64,
    /// Column in bytes, counted from one.
    pub column: usize,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for CsvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.reason)
    }
}

impl std::error::Error for CsvError {}

/// The field that a consumer of lines does not accept, counted from zero, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldFault {
    pub(crate) field: usize,
    pub(crate) reason: String,
}

/// Reads lines from pieces of a body.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    /// The beginning of a line whose end has not arrived.
    unfinished: Vec<u8>,
    /// Lines finished so far, the empty ones included.
    lines_seen: u64,
    /// Lines handed on.
    lines_read: u64,
}

/// What stands at the beginning of some bytes.
enum Scan {
    Line { fields: [u32; 3], bytes: usize },
    Blank { bytes: usize },
    Unfinished,
    Fault { column: usize, reason: &'static str },
}

impl LineReader {
    /// Hands every line that is complete with this piece to `take`.
    pub(crate) fn feed(
        &mut self,
        mut piece: &[u8],
        mut take: impl FnMut([u32; 3]) -> Result<(), FieldFault>,
    ) -> Result<(), CsvError> {
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

    /// Takes the last line, if the body did not end in a newline, and says how many lines there were.
    pub(crate) fn finish(
        mut self,
        mut take: impl FnMut([u32; 3]) -> Result<(), FieldFault>,
    ) -> Result<u64, CsvError> {
        if !self.unfinished.is_empty() {
            let mut line = std::mem::take(&mut self.unfinished);
            line.push(b'\n');
            self.scan_all(&line, &mut take)?;
        }
        Ok(self.lines_read)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), CsvError> {
        if self.unfinished.len() + bytes.len() > LINE_BYTES_MAX {
            // A fault that stands before the limit says more than the limit does.
            self.unfinished
                .extend_from_slice(&bytes[..bytes.len().min(LINE_BYTES_MAX)]);
            let (column, reason) = match scan(&self.unfinished) {
                Scan::Fault { column, reason } => (column, reason),
                _ => (LINE_BYTES_MAX + 1, "the line is longer than 64 bytes"),
            };
            return Err(self.fault(column, reason.to_owned()));
        }
        self.unfinished.extend_from_slice(bytes);
        Ok(())
    }

    /// Hands on all complete lines and returns how many bytes are left over at the end.
    fn scan_all(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut([u32; 3]) -> Result<(), FieldFault>,
    ) -> Result<usize, CsvError> {
        let mut rest = bytes;
        loop {
            match scan(rest) {
                Scan::Line { fields, bytes } => {
                    if let Err(fault) = take(fields) {
                        let commas = rest.iter().enumerate().filter(|(_, byte)| **byte == b',');
                        let starts = std::iter::once(0).chain(commas.map(|(at, _)| at + 1));
                        let column = starts.into_iter().nth(fault.field).unwrap_or(0) + 1;
                        return Err(self.fault(column, fault.reason));
                    }
                    self.lines_read += 1;
                    self.lines_seen += 1;
                    rest = &rest[bytes..];
                }
                Scan::Blank { bytes } => {
                    self.lines_seen += 1;
                    rest = &rest[bytes..];
                }
                Scan::Unfinished => return Ok(rest.len()),
                Scan::Fault { column, reason } => return Err(self.fault(column, reason.to_owned())),
            }
        }
    }

    fn fault(&self, column: usize, reason: String) -> CsvError {
        CsvError {
            line: self.lines_seen + 1,
            column,
            reason,
        }
    }
}

/// Reads one line at the beginning of `bytes`. The hot loop of a snapshot: one look at each byte.
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
            // Longer than ten digits is refused below, so a value that wrapped is never used.
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
                        reason: "a number must stand here",
                    },
                };
            }
            return Scan::Fault {
                column: at + 1,
                reason: "a number must stand here",
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
                    reason: "only digits may stand here",
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
    fn every_cut_of_the_body_reads_the_same() {
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
    fn a_fault_names_line_and_column_wherever_the_body_is_cut() {
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
    fn a_line_without_an_end_is_refused_before_it_fills_memory() {
        let body = vec![b'7'; 10_000];
        for cut in [0, 1, 63, 64, 65, 9_999] {
            let error = read_in_pieces(&body, &[cut]).unwrap_err();
            assert!(error.reason.contains("longer than 64 bytes"), "{error}");
        }
    }

    #[test]
    fn a_refused_field_is_named_by_its_column() {
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
