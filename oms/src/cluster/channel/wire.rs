//! Encoding of the fields of a message: little-endian integers, variable-length numbers and texts.
//!
//! Decoding never panics and never reads beyond the frame. A length is compared with the number of
//! remaining bytes before memory is allocated. Decoded texts and blobs refer to the memory of their
//! frame, without a copy.

use bytes::Bytes;
use thiserror::Error;

use crate::domain::order::{Line, OrderId};

/// An error for bytes that are not a valid message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected {expected} at byte {offset} of a frame")]
pub(crate) struct WireError {
    /// Byte offset in the frame's payload, at the beginning of the faulty field or later.
    pub(crate) offset: usize,
    /// The field that was expected.
    pub(crate) expected: &'static str,
}

/// Appends fields to a buffer.
pub(crate) struct Encoder<'a>(pub(crate) &'a mut Vec<u8>);

impl Encoder<'_> {
    pub(crate) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    /// Appends a number as unsigned LEB128: seven bits per byte, lowest bits first, one to ten
    /// bytes.
    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn optional(&mut self, value: Option<u64>) {
        self.flag(value.is_some());
        if let Some(value) = value {
            self.number(value);
        }
    }

    pub(crate) fn fixed_u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn fixed_u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn fixed_i32(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    pub(crate) fn lines(&mut self, lines: &[Line]) {
        self.number(lines.len() as u64);
        for line in lines {
            self.number(u64::from(line.id));
            self.number(u64::from(line.quantity));
        }
    }
}

/// Reads fields from the payload of a frame.
pub(crate) struct Decoder<'a> {
    frame: &'a Bytes,
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(frame: &'a Bytes) -> Decoder<'a> {
        Decoder { frame, at: 0 }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.frame.len()
    }

    pub(crate) fn fault<T>(&self, expected: &'static str) -> Result<T, WireError> {
        Err(WireError {
            offset: self.at,
            expected,
        })
    }

    fn left(&self) -> usize {
        self.frame.len() - self.at
    }

    fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], WireError> {
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let Some((bytes, _)) = rest.split_first_chunk::<N>() else {
            return self.fault(expected);
        };
        self.at += N;
        Ok(*bytes)
    }

    pub(crate) fn byte(&mut self, expected: &'static str) -> Result<u8, WireError> {
        self.array::<1>(expected).map(|[byte]| byte)
    }

    pub(crate) fn flag(&mut self, expected: &'static str) -> Result<bool, WireError> {
        match self.byte(expected)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => self.fault(expected),
        }
    }

    pub(crate) fn fixed_u64(&mut self, expected: &'static str) -> Result<u64, WireError> {
        self.array(expected).map(u64::from_le_bytes)
    }

    pub(crate) fn fixed_u32(&mut self, expected: &'static str) -> Result<u32, WireError> {
        self.array(expected).map(u32::from_le_bytes)
    }

    pub(crate) fn fixed_i32(&mut self, expected: &'static str) -> Result<i32, WireError> {
        self.array(expected).map(i32::from_le_bytes)
    }

    pub(crate) fn number(&mut self, expected: &'static str) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(expected)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return self.fault(expected);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.fault(expected)
    }

    pub(crate) fn number_u32(&mut self, expected: &'static str) -> Result<u32, WireError> {
        let number = self.number(expected)?;
        u32::try_from(number).or_else(|_| self.fault(expected))
    }

    pub(crate) fn optional(&mut self, expected: &'static str) -> Result<Option<u64>, WireError> {
        if self.flag(expected)? {
            self.number(expected).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Reads the number of elements of a list. Fails if the frame has too few bytes left for that
    /// number of elements with `bytes_min` bytes each.
    pub(crate) fn count(&mut self, bytes_min: usize, expected: &'static str) -> Result<usize, WireError> {
        let count = self.number(expected)?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / bytes_min.max(1) => Ok(count),
            _ => self.fault(expected),
        }
    }

    pub(crate) fn blob(&mut self, expected: &'static str) -> Result<Bytes, WireError> {
        let length = self.count(1, expected)?;
        let blob = self.frame.slice(self.at..self.at + length);
        self.at += length;
        Ok(blob)
    }

    pub(crate) fn text(&mut self, expected: &'static str) -> Result<&'a str, WireError> {
        let length = self.count(1, expected)?;
        let bytes = self.frame.get(self.at..self.at + length).unwrap_or_default();
        let Ok(text) = std::str::from_utf8(bytes) else {
            return self.fault(expected);
        };
        self.at += length;
        Ok(text)
    }

    pub(crate) fn order(&mut self) -> Result<OrderId, WireError> {
        let text = self.text("an order id")?;
        OrderId::parse(text).or_else(|_| self.fault("an order id"))
    }

    pub(crate) fn lines(&mut self) -> Result<Box<[Line]>, WireError> {
        let count = self.count(2, "a number of lines")?;
        let mut lines = Vec::with_capacity(count);
        for _ in 0..count {
            let id = self.number_u32("a product id")?;
            let quantity = self.number_u32("a quantity")?;
            lines.push(Line { id, quantity });
        }
        Ok(lines.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_are_decoded_as_they_were_encoded(
            numbers in proptest::collection::vec(any::<u64>(), 0..20),
            text in ".{0,40}",
            lines in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..10),
        ) {
            let lines: Vec<Line> = lines.into_iter().map(|(id, quantity)| Line { id, quantity }).collect();
            let mut bytes = Vec::new();
            let mut encoder = Encoder(&mut bytes);
            numbers.iter().for_each(|number| encoder.number(*number));
            encoder.text(&text);
            encoder.lines(&lines);
            let frame = Bytes::from(bytes);
            let mut decoder = Decoder::new(&frame);
            for number in &numbers {
                prop_assert_eq!(decoder.number("a number").unwrap(), *number);
            }
            prop_assert_eq!(decoder.text("a text").unwrap(), text);
            prop_assert_eq!(&*decoder.lines().unwrap(), &lines[..]);
            prop_assert!(decoder.is_at_end());
        }
    }

    #[test]
    fn a_count_larger_than_its_frame_is_refused_before_anything_is_allocated() {
        for declared in [5, 1 << 20, u64::MAX] {
            let mut bytes = Vec::new();
            Encoder(&mut bytes).number(declared);
            bytes.extend_from_slice(&[1, 1, 1, 1]);
            let frame = Bytes::from(bytes);
            assert!(Decoder::new(&frame).lines().is_err(), "{declared} lines");
            assert!(Decoder::new(&frame).blob("a blob").is_err(), "{declared} bytes");
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        let frame = Bytes::from(vec![0xff; 11]);
        assert!(Decoder::new(&frame).number("a number").is_err());
        let frame = Bytes::from([[0xff; 9].as_slice(), &[2]].concat());
        assert!(Decoder::new(&frame).number("a number").is_err());
    }
}
