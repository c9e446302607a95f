//! Converts keys and values to text and back.
//!
//! Flags on the command line name the types. Without a flag, the type of keys is the one that the
//! database records for a typed table (`Db::typed_table`). Types of values are not recorded.
//!
//! `String`, `U8`, `U64` and `I64` are encoded as in a typed table with the codec bincode 2
//! (standard configuration): a u8 is one byte, other numbers have a variable length with the least
//! significant byte first, and a string is preceded by its length. The other types are for tables
//! of plain bytes.
//!
//! Deliberately absent: other codecs, and other types of a typed table. Structs and tuples cannot
//! be written as one word on the command line.

use super::show::{digits, hex};
use microdb::{Db, Table, TableInfo};

/// Name of the standard codec of typed tables, as a database records it.
const BINCODE: &str = "bincode";

/// Largest number with an encoding of one byte, which is the number itself.
const ONE_BYTE_MAX: u64 = 250;
/// `TWO`, `FOUR` and `EIGHT` are first bytes of an encoded number. Two, four or eight bytes with
/// the number follow.
const TWO: u8 = 251;
const FOUR: u8 = 252;
const EIGHT: u8 = 253;

/// Type of a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DataType {
    /// UTF-8 text, stored as it is
    Text,
    /// Any bytes, written as hexadecimal digits
    Hex,
    /// String, as a typed table encodes it
    String,
    /// Number of type u8, as a typed table encodes it
    U8,
    /// Number of type u16, u32, u64 or usize, as a typed table encodes it
    U64,
    /// Number of type i16, i32, i64 or isize, as a typed table encodes it
    I64,
    /// Number of four bytes, most significant byte first
    U32be,
    /// Number of eight bytes, most significant byte first
    U64be,
}

impl DataType {
    /// Returns the recorded type of the keys of a table. Returns `None` if no type is recorded, if
    /// the codec is not bincode, or if the type is neither a string nor a number that this module
    /// encodes.
    pub(super) fn of_keys(table: &TableInfo) -> Option<Self> {
        let keys_as = table.keys_as.as_ref()?;
        if keys_as.codec != BINCODE {
            return None;
        }
        Some(match keys_as.type_name.as_str() {
            "alloc::string::String" | "&str" | "str" => Self::String,
            "u8" => Self::U8,
            "u16" | "u32" | "u64" | "usize" => Self::U64,
            "i16" | "i32" | "i64" | "isize" => Self::I64,
            _ => return None,
        })
    }

    /// Returns the table `name`, and creates it if it does not exist. A new table records this type
    /// as that of its keys, as a typed table of the library does, if it is a type of typed tables.
    /// An existing table keeps the type that it has recorded, or stays without one.
    pub(super) fn table_with_keys(self, db: &Db, name: &str) -> microdb::Result<Table> {
        // The type of the values is not recorded, so any type will do.
        Ok(match self {
            Self::String => db.typed_table::<String, u8>(name)?.raw().clone(),
            Self::U8 => db.typed_table::<u8, u8>(name)?.raw().clone(),
            Self::U64 => db.typed_table::<u64, u8>(name)?.raw().clone(),
            Self::I64 => db.typed_table::<i64, u8>(name)?.raw().clone(),
            Self::Text | Self::Hex | Self::U32be | Self::U64be => db.table(name)?,
        })
    }

    /// Returns the encoding of `text` as a value of this type.
    pub(super) fn encode(self, text: &str) -> Result<Vec<u8>, String> {
        let wrong = |example: &str| format!("'{text}' is not a value of this type; for example {example}");
        let number = || text.parse::<u64>().map_err(|_| wrong("17"));
        Ok(match self {
            Self::Text => text.as_bytes().to_vec(),
            Self::Hex => digits(text).ok_or_else(|| wrong("0x00ff"))?,
            Self::String => {
                let mut bytes = varint(text.len() as u64);
                bytes.extend_from_slice(text.as_bytes());
                bytes
            }
            Self::U8 => vec![text.parse().map_err(|_| wrong("17, at most 255"))?],
            Self::U64 => varint(number()?),
            Self::I64 => {
                let number: i64 = text.parse().map_err(|_| wrong("-17"))?;
                varint(((number << 1) ^ (number >> 63)).cast_unsigned())
            }
            Self::U32be => {
                let number = u32::try_from(number()?).map_err(|_| wrong("17, at most 4294967295"))?;
                number.to_be_bytes().to_vec()
            }
            Self::U64be => number()?.to_be_bytes().to_vec(),
        })
    }

    /// Returns encoded bytes as text, or `None` if they are not a value of this type.
    pub(super) fn decode(self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Text => String::from_utf8(bytes.to_vec()).ok(),
            Self::Hex => Some(hex(bytes)),
            Self::String => {
                let (length, text) = split_varint(bytes)?;
                let is_whole = usize::try_from(length).is_ok_and(|length| length == text.len());
                String::from_utf8(text.to_vec()).ok().filter(|_| is_whole)
            }
            Self::U8 => match bytes {
                [number] => Some(number.to_string()),
                _ => None,
            },
            Self::U64 => whole_varint(bytes).map(|number| number.to_string()),
            Self::I64 => {
                let number = whole_varint(bytes)?;
                let magnitude = (number >> 1).cast_signed();
                Some((magnitude ^ -((number & 1).cast_signed())).to_string())
            }
            Self::U32be => Some(u32::from_be_bytes(bytes.try_into().ok()?).to_string()),
            Self::U64be => Some(u64::from_be_bytes(bytes.try_into().ok()?).to_string()),
        }
    }
}

fn varint(number: u64) -> Vec<u8> {
    if number <= ONE_BYTE_MAX {
        return vec![number as u8];
    }
    let (first, length) = match number {
        0..=0xFFFF => (TWO, 2),
        0x1_0000..=0xFFFF_FFFF => (FOUR, 4),
        _ => (EIGHT, 8),
    };
    let mut bytes = vec![first];
    bytes.extend_from_slice(&number.to_le_bytes()[..length]);
    bytes
}

/// Decodes a number at the start of `bytes`. Returns the number and the bytes after it.
fn split_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let length = match *first {
        TWO => 2,
        FOUR => 4,
        EIGHT => 8,
        small if u64::from(small) <= ONE_BYTE_MAX => return Some((u64::from(small), rest)),
        _ => return None,
    };
    let (number, rest) = rest.split_at_checked(length)?;
    let mut whole = [0; 8];
    whole[..length].copy_from_slice(number);
    Some((u64::from_le_bytes(whole), rest))
}

fn whole_varint(bytes: &[u8]) -> Option<u64> {
    let (number, rest) = split_varint(bytes)?;
    rest.is_empty().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    #[test]
    fn recorded_types_of_strings_and_numbers_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("db")).unwrap();
        db.typed_table::<String, u8>("string").unwrap();
        db.typed_table::<u8, u8>("u8").unwrap();
        db.typed_table::<usize, u8>("usize").unwrap();
        db.typed_table::<i16, u8>("i16").unwrap();
        db.typed_table::<(String, u8), u8>("tuple").unwrap();
        db.table("bytes").unwrap();
        for table in db.tables() {
            let expected = match table.name.as_str() {
                "string" => Some(DataType::String),
                "u8" => Some(DataType::U8),
                "usize" => Some(DataType::U64),
                "i16" => Some(DataType::I64),
                _ => None,
            };
            assert_eq!(DataType::of_keys(&table), expected, "{}", table.name);
        }
    }

    #[test]
    fn a_new_table_records_the_type_of_its_keys_and_an_old_one_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("db")).unwrap();
        let recorded = |name: &str| {
            let tables = db.tables();
            DataType::of_keys(tables.iter().find(|table| table.name == name).unwrap())
        };
        for kind in [DataType::String, DataType::U8, DataType::U64, DataType::I64] {
            let name = format!("{kind:?}");
            kind.table_with_keys(&db, &name).unwrap();
            assert_eq!(recorded(&name), Some(kind));
        }
        for kind in [DataType::Text, DataType::Hex, DataType::U32be, DataType::U64be] {
            kind.table_with_keys(&db, "plain").unwrap();
            assert_eq!(recorded("plain"), None);
        }
        DataType::U64.table_with_keys(&db, "String").unwrap();
        assert_eq!(recorded("String"), Some(DataType::String));
        DataType::U64.table_with_keys(&db, "plain").unwrap();
        assert_eq!(recorded("plain"), None);
    }

    /// Checks that the encoding of each text is the key that a typed table of MicroDb stores.
    fn check<K: Serialize + DeserializeOwned>(kind: DataType, keys: &[(K, &str)]) {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("db")).unwrap();
        let table = db.typed_table::<K, u8>("typed").unwrap();
        for (key, text) in keys {
            table.put(key, &0).unwrap();
            let bytes = kind.encode(text).unwrap();
            assert!(
                table.raw().get(&bytes).unwrap().is_some(),
                "{kind:?} {text}: {bytes:?}"
            );
            assert_eq!(kind.decode(&bytes).as_deref(), Some(*text), "{kind:?}");
            assert_eq!(kind.decode(&[&bytes[..], b"x"].concat()), None, "{kind:?} {text}");
        }
    }

    #[test]
    fn keys_have_the_bytes_of_typed_tables() {
        check(
            DataType::String,
            &[
                ("ann".to_owned(), "ann"),
                (String::new(), ""),
                ("é".repeat(200), &"é".repeat(200)),
            ],
        );
        check(DataType::U8, &[(0_u8, "0"), (255, "255")]);
        check(
            DataType::U64,
            &[(250_u16, "250"), (251, "251"), (65_535, "65535")],
        );
        check(DataType::U64, &[(65_536_u32, "65536"), (u32::MAX, "4294967295")]);
        check(
            DataType::U64,
            &[
                (7_u64, "7"),
                (1 << 32, "4294967296"),
                (u64::MAX, "18446744073709551615"),
            ],
        );
        check(
            DataType::I64,
            &[
                (-1_i32, "-1"),
                (125, "125"),
                (-126, "-126"),
                (i32::MIN, "-2147483648"),
            ],
        );
        check(
            DataType::I64,
            &[
                (i64::MIN, "-9223372036854775808"),
                (i64::MAX, "9223372036854775807"),
            ],
        );
    }

    #[test]
    fn a_text_of_another_type_is_refused_with_an_example() {
        for (kind, text) in [
            (DataType::Hex, "0g"),
            (DataType::Hex, "0x0"),
            (DataType::U8, "256"),
            (DataType::U64, "-1"),
            (DataType::I64, "1.5"),
            (DataType::U32be, "4294967296"),
            (DataType::U64be, ""),
        ] {
            let error = kind.encode(text).unwrap_err();
            assert!(error.contains("for example"), "{kind:?}: {error}");
        }
        assert_eq!(DataType::U64.decode(&[]), None);
        assert_eq!(DataType::U64.decode(&[251, 1]), None);
        assert_eq!(DataType::U64.decode(&[255]), None);
        assert_eq!(DataType::String.decode(&[5, b'a']), None);
        assert_eq!(DataType::U32be.encode("17").unwrap(), [0, 0, 0, 17]);
        assert_eq!(
            DataType::U64be.decode(&[0, 0, 0, 0, 0, 0, 1, 0]).as_deref(),
            Some("256")
        );
        assert_eq!(DataType::Hex.encode("0x00FF").unwrap(), [0, 255]);
    }
}
