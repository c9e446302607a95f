//! The default encoding of typed tables. No other module uses the crate bincode.
//!
//! - The limit of `decode` refuses no value that `encode` accepts and that fits into a record. A
//!   decoded number takes at most 16 bytes per encoded byte, so this limit follows from the maximum
//!   size of a value.
//! - A hostile length in a record never causes an unbounded allocation. Small records have a small
//!   limit.
//! - Decoding must consume all bytes, because the first bytes of a value of another type often
//!   decode.
//!
//! Deliberately absent: a choice of configurations.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Bincode, Codec, CodecError};
use crate::format::VALUE_BYTES_MAX;

/// Maximum number of decoded bytes per encoded byte, reached by a `u128` below 251, which is
/// encoded as one byte.
const GROWTH_MAX: usize = 16;
/// Maximum number of decoded bytes for encoded values of up to [`SMALL_BYTES`].
const SMALL_DECODE_BYTES_MAX: usize = GROWTH_MAX * SMALL_BYTES;
/// Maximum size in bytes of an encoded value to which [`SMALL_DECODE_BYTES_MAX`] applies. Most
/// records are smaller.
const SMALL_BYTES: usize = 64 * 1024;
/// Maximum number of decoded bytes for encoded values larger than [`SMALL_BYTES`].
const DECODE_BYTES_MAX: usize = GROWTH_MAX * VALUE_BYTES_MAX;

impl Codec for Bincode {
    const NAME: &'static str = "bincode";

    fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), CodecError> {
        bincode::serde::encode_into_writer(value, Appender(to), bincode::config::standard())
            .map_err(|error| encode_reason(&error).into())
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        let value = if bytes.len() <= SMALL_BYTES {
            decode_within::<SMALL_DECODE_BYTES_MAX, T>(bytes)
        } else {
            decode_within::<DECODE_BYTES_MAX, T>(bytes)
        };
        Ok(value?)
    }
}

/// Appends to a vector, without the count of written bytes that
/// `bincode::serde::encode_into_std_write` keeps.
struct Appender<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for Appender<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn decode_within<const BYTES_MAX: usize, T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::standard().with_limit::<BYTES_MAX>();
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|error| decode_reason(&error))?;
    if used != bytes.len() {
        return Err(format!("the value ends after {used} of {} bytes", bytes.len()));
    }
    Ok(value)
}

/// Decodes a value at the start of `bytes`. Returns the value and the remaining bytes, or `None` if
/// the bytes do not decode, or the value exceeds [`SMALL_DECODE_BYTES_MAX`].
pub(super) fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let config = bincode::config::standard().with_limit::<SMALL_DECODE_BYTES_MAX>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config).ok()?;
    Some((value, bytes.get(used..)?))
}

/// Returns the reason why bincode refused to encode a value.
fn encode_reason(error: &bincode::error::EncodeError) -> String {
    use bincode::error::EncodeError;
    match error {
        EncodeError::OtherString(reason) => reason.clone(),
        EncodeError::Other(reason) => (*reason).to_owned(),
        error => error.to_string(),
    }
}

/// Returns the reason why bincode refused to decode bytes.
fn decode_reason(error: &bincode::error::DecodeError) -> String {
    use bincode::error::DecodeError;
    use bincode::serde::DecodeError as SerdeError;
    match error {
        DecodeError::Serde(
            SerdeError::AnyNotSupported
            | SerdeError::IdentifierNotSupported
            | SerdeError::IgnoredAnyNotSupported,
        ) => "the type needs a self-describing encoding (untagged or internally tagged enums and \
              serde_json::Value do), and the encoding of typed tables holds no types and no names"
            .to_owned(),
        DecodeError::UnexpectedEnd { .. } => "the bytes end before the value does".to_owned(),
        DecodeError::LimitExceeded => "a length is larger than a record can hold".to_owned(),
        DecodeError::OtherString(reason) => reason.clone(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode<T: Serialize>(value: &T, to: &mut Vec<u8>) -> Result<(), CodecError> {
        Bincode::encode(value, to)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
        Bincode::decode(bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn values_round_trip_and_leftovers_are_refused() {
        let mut bytes = Vec::new();
        encode(&(7u32, "seven".to_owned()), &mut bytes).unwrap();
        assert_eq!(decode::<(u32, String)>(&bytes), Ok((7, "seven".to_owned())));
        assert!(decode::<u32>(&bytes).unwrap_err().contains("ends after"));
        assert!(decode::<(u32, String)>(&bytes[..3]).is_err());
    }

    #[test]
    fn a_hostile_length_is_refused_without_allocating_it() {
        assert!(decode::<Vec<u64>>(&[0xFD, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]).is_err());
        // The 5 bytes announce a string of 2 MiB, which exceeds the limit of small records.
        let error = decode::<String>(&[0xFC, 0x00, 0x00, 0x20, 0x00]).unwrap_err();
        assert!(error.contains("larger than a record can hold"), "{error}");
    }

    #[test]
    fn the_densest_value_of_each_size_is_decoded() {
        for count in [1, SMALL_BYTES - 3, SMALL_BYTES, 9 << 20] {
            let mut bytes = Vec::new();
            encode(&vec![1_u128; count], &mut bytes).unwrap();
            assert_eq!(decode::<Vec<u128>>(&bytes).map(|values| values.len()), Ok(count));
        }
    }
}
