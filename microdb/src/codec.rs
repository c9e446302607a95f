//! Typed values to bytes and back: the one file that knows which encoding that is.
//!
//! bincode 2 with its standard configuration: small, stable across builds, no field names. Decoding is given a limit, since a hostile
//! length would otherwise allocate without bound, and must consume all bytes, since a value of another type often
//! decodes as a prefix.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::options::VALUE_BYTES_MAX;

/// Most bytes that decoding may claim: generous against the memory form of the largest value.
const DECODE_BYTES_MAX: usize = 4 * VALUE_BYTES_MAX;

/// Appends `value` to `to`.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), String> {
    bincode::serde::encode_into_std_write(value, to, bincode::config::standard())
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// Reads a value that takes up all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|error| error.to_string())?;
    if used != bytes.len() {
        return Err(format!("it ends after {used} of {} bytes", bytes.len()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
