//! Writer and reader of the parts of an encoded value, such as numbers, texts and order lines.
//!
//! **Invariant**: the reader trusts no byte. A wrong length causes an error, never a large
//! allocation.

use crate::domain::order::Line;
use crate::error::DecodeError;

/// Layout version: the first byte of every value of a `Writer`.
const VERSION: u8 = 1;

/// Appends one value to a buffer, such as that of a write batch.
pub(crate) struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn new(bytes: &mut Vec<u8>, expected: usize) -> Writer<'_> {
        bytes.reserve(expected);
        bytes.push(VERSION);
        Writer(bytes)
    }

    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn optional(&mut self, value: Option<u64>) {
        match value {
            None => self.0.push(0),
            Some(value) => {
                self.0.push(1);
                self.number(value);
            }
        }
    }

    /// Writes one byte: a code, a width or a flag.
    pub(crate) fn code(&mut self, code: u8) {
        self.0.push(code);
    }

    /// Writes bytes without their length.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Writes all values in sequence, each in `WIDTH` bytes.
    pub(crate) fn each<const WIDTH: usize>(&mut self, values: &[i32], to_bytes: impl Fn(i32) -> [u8; WIDTH]) {
        let begin = self.0.len();
        self.0.resize(begin + values.len() * WIDTH, 0);
        let (cells, _) = self.0[begin..].as_chunks_mut();
        for (cell, value) in cells.iter_mut().zip(values) {
            *cell = to_bytes(*value);
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn lines(&mut self, lines: &[Line]) {
        self.number(lines.len() as u64);
        for line in lines {
            self.number(u64::from(line.id));
            self.number(u64::from(line.quantity));
        }
    }
}

/// Reads one value from its first byte to its last.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Reader<'a>, DecodeError> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.byte("a layout version")? != VERSION {
            return Err(DecodeError {
                offset: 0,
                expected: "layout version 1",
            });
        }
        Ok(reader)
    }

    pub(crate) fn fault(&self, expected: &'static str) -> DecodeError {
        DecodeError {
            offset: self.at,
            expected,
        }
    }

    pub(crate) fn byte(&mut self, expected: &'static str) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.fault(expected))?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn take(&mut self, count: usize, expected: &'static str) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).ok_or_else(|| self.fault(expected))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| self.fault(expected))?;
        self.at = end;
        Ok(taken)
    }

    pub(crate) fn number(&mut self, expected: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(expected)?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit of the number.
            if bits << shift >> shift != bits {
                return Err(self.fault(expected));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fault(expected))
    }

    pub(crate) fn small(&mut self, expected: &'static str) -> Result<u32, DecodeError> {
        let value = self.number(expected)?;
        u32::try_from(value).map_err(|_| self.fault(expected))
    }

    pub(crate) fn optional(&mut self, expected: &'static str) -> Result<Option<u64>, DecodeError> {
        match self.byte(expected)? {
            0 => Ok(None),
            1 => self.number(expected).map(Some),
            _ => Err(self.fault(expected)),
        }
    }

    pub(crate) fn text(&mut self, expected: &'static str) -> Result<String, DecodeError> {
        let bytes = self.blob(expected)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.fault(expected))
    }

    pub(crate) fn blob(&mut self, expected: &'static str) -> Result<&'a [u8], DecodeError> {
        let count = self.number(expected)? as usize;
        self.take(count, expected)
    }

    pub(crate) fn lines(&mut self) -> Result<Box<[Line]>, DecodeError> {
        let count = self.number("a number of lines")? as usize;
        // A line takes at least two bytes, so this check bounds the allocation for a wrong count.
        if count > self.bytes.len() {
            return Err(self.fault("a number of lines"));
        }
        let mut lines = Vec::with_capacity(count);
        for _ in 0..count {
            lines.push(Line {
                id: self.small("a product")?,
                quantity: self.small("a quantity")?,
            });
        }
        Ok(lines.into_boxed_slice())
    }

    /// Returns the unread bytes.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Returns an error with the end of the row as its offset, such as for left-over bytes.
    pub(crate) fn fault_at_end(&self, expected: &'static str) -> DecodeError {
        DecodeError {
            offset: self.bytes.len(),
            expected,
        }
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(self.fault("the end of the row"))
        }
    }
}
