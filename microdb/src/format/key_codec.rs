//! The encoding of a typed table's keys, as recorded in the table's catalog record.
//!
//! A catalog record holds the table's id in 4 bytes. In the record of a typed table, text may
//! follow the id: the name of the codec, a space, and the name of the type of the keys.
//!
//! - Readers that do not know the text ignore it, so the text requires no new version of the
//!   format.
//! - The text is for tools and people. Opening a table does not compare the text with the type in
//!   use, because the name of a type changes when a program is rearranged.
//!
//! Deliberately absent: types of values, and a schema.

use serde::Serialize;

/// Maximum length of the text, in bytes. A longer text is neither recorded nor read.
const TEXT_BYTES_MAX: usize = 255;

/// The encoding and the type of a typed table's keys, recorded when the table was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyCodec {
    /// Name of the codec, for example `bincode`.
    pub codec: String,
    /// Name of the type of the keys, as the compiler prints it.
    pub type_name: String,
}

impl KeyCodec {
    /// Returns the codec and type of keys of type `K`. Returns `None` if the text would be too
    /// long, or if the name of the codec is empty or has a space.
    pub(crate) fn of<K>(codec: &str) -> Option<Self> {
        let found = Self {
            codec: codec.to_owned(),
            type_name: std::any::type_name::<K>().to_owned(),
        };
        (!codec.is_empty() && !codec.contains(' ') && found.text().len() <= TEXT_BYTES_MAX).then_some(found)
    }

    /// Returns the text that is stored in the catalog record.
    pub(crate) fn text(&self) -> String {
        format!("{} {}", self.codec, self.type_name)
    }

    /// Decodes the text behind the table id in the value of a catalog record. Returns `None` if
    /// there is no valid text.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let (_id, text) = value.split_first_chunk::<4>()?;
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let (codec, type_name) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        Some(Self {
            codec: codec.to_owned(),
            type_name: type_name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_behind_the_id_is_read_back_and_anything_else_is_ignored() {
        let codec = KeyCodec::of::<(u32, String)>("bincode").unwrap();
        let value = [&7_u32.to_le_bytes()[..], codec.text().as_bytes()].concat();
        assert_eq!(KeyCodec::decode(&value), Some(codec));
        let long = [&[0; 4][..], &[b'a'; 200], b" ", &[b'b'; 55]].concat();
        assert_eq!(KeyCodec::decode(&long), None);
        for other in [
            &b""[..],
            b"\x07\0\0",
            b"\x07\0\0\0",
            b"\x07\0\0\0bincode",
            b"\x07\0\0\0\xFF b",
        ] {
            assert_eq!(KeyCodec::decode(other), None, "{other:?}");
        }
        assert_eq!(KeyCodec::of::<u8>(&"c".repeat(260)), None);
        assert_eq!(KeyCodec::of::<u8>("two words"), None);
    }
}
