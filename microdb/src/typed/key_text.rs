//! Keys of typed tables as text, for tools that do not have the program's types.
//!
//! - Strings, integers, booleans and characters in the default encoding can be shown, and tuples of
//!   them. The caller shows any other key as bytes.
//! - A text is returned only for bytes that decode completely. So bytes of another type than
//!   recorded are rarely shown as text.
//!
//! Deliberately absent: structs and enums. The catalog has their names, but not their fields.

use serde::Serialize;

use super::bincode::decode_front;
use super::codec::{Bincode, Codec};
use crate::format::key_codec::KeyCodec;

/// Maximum nesting of tuples, so that a hostile type name cannot exhaust the stack.
const DEPTH_MAX: usize = 4;

impl KeyCodec {
    /// Returns the stored `key` as text. Returns `None` if the recorded encoding is not
    /// [`Bincode`], if keys of the recorded type cannot be shown, or if `key` does not decode as
    /// that type.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// db.typed_table::<(String, u16), u32>("stock")?.put(&("lamp".to_owned(), 5), &3)?;
    /// // A tool knows only the name of the table.
    /// let keys_as = db.tables()[0].keys_as.clone().unwrap();
    /// let stock = db.table("stock")?;
    /// let key = stock.keys().next().unwrap()?;
    /// assert_eq!(keys_as.text_of(&key).as_deref(), Some(r#"("lamp", 5)"#));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn text_of(&self, key: &[u8]) -> Option<String> {
        if self.codec != Bincode::NAME {
            return None;
        }
        let (text, rest) = shown(&self.type_name, key, DEPTH_MAX)?;
        rest.is_empty().then_some(text)
    }

    /// Returns the stored form of a key that was entered as text: a string, an integer, a boolean
    /// or a character. Returns `None` for another type or encoding of keys, or if the text is not a
    /// value of the type.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// db.typed_table::<String, u32>("users")?.put("ann", &3)?;
    /// let keys_as = db.tables()[0].keys_as.clone().unwrap();
    /// assert!(db.table("users")?.contains_key(keys_as.parse("ann").unwrap())?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn parse(&self, text: &str) -> Option<Vec<u8>> {
        if self.codec != Bincode::NAME {
            return None;
        }
        parsed(&self.type_name, text)
    }
}

fn encoded(value: &(impl Serialize + ?Sized)) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    Bincode::encode(value, &mut bytes).ok()?;
    Some(bytes)
}

/// Calls the macro `$one` with the type of the given name. The result is `None` for any other name.
/// Values of these types are shown by `Display` and parsed by `FromStr`.
macro_rules! for_plain_types {
    ($name:expr, $one:ident) => {
        match $name {
            "u8" => $one!(u8),
            "u16" => $one!(u16),
            "u32" => $one!(u32),
            "u64" => $one!(u64),
            "u128" => $one!(u128),
            "usize" => $one!(usize),
            "i8" => $one!(i8),
            "i16" => $one!(i16),
            "i32" => $one!(i32),
            "i64" => $one!(i64),
            "i128" => $one!(i128),
            "isize" => $one!(isize),
            "bool" => $one!(bool),
            "char" => $one!(char),
            _ => None,
        }
    };
}

fn is_string(type_name: &str) -> bool {
    matches!(type_name, "alloc::string::String" | "&str" | "str")
}

fn parsed(type_name: &str, text: &str) -> Option<Vec<u8>> {
    if is_string(type_name) {
        return encoded(text);
    }
    macro_rules! parse {
        ($type:ty) => {
            encoded(&text.parse::<$type>().ok()?)
        };
    }
    for_plain_types!(type_name, parse)
}

/// Returns the value at the start of `bytes` as text, and the remaining bytes. Returns `None` if
/// the type cannot be shown, its tuples are nested deeper than `depth`, or the bytes do not decode.
fn shown<'a>(type_name: &str, bytes: &'a [u8], depth: usize) -> Option<(String, &'a [u8])> {
    if is_string(type_name) {
        let (value, rest) = decode_front::<String>(bytes)?;
        return Some((format!("{value:?}"), rest));
    }
    if let Some(inner) = type_name
        .strip_prefix('(')
        .and_then(|name| name.strip_suffix(')'))
    {
        let depth = depth.checked_sub(1)?;
        let (mut texts, mut rest) = (Vec::new(), bytes);
        for part in parts(inner) {
            let text;
            (text, rest) = shown(part, rest, depth)?;
            texts.push(text);
        }
        return Some((format!("({})", texts.join(", ")), rest));
    }
    macro_rules! show {
        ($type:ty) => {
            decode_front::<$type>(bytes).map(|(value, rest)| (value.to_string(), rest))
        };
    }
    for_plain_types!(type_name, show)
}

/// Splits the list of a tuple's type names at the commas outside of brackets.
fn parts(names: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let at_comma = move |letter: char| {
        match letter {
            '(' | '<' | '[' => depth += 1,
            ')' | '>' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    };
    let names = names.split(at_comma).map(str::trim);
    names.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows<K: Serialize>(key: &K, text: &str) {
        let codec = KeyCodec::of::<K>(Bincode::NAME).unwrap();
        let bytes = encoded(key).unwrap();
        assert_eq!(codec.text_of(&bytes).as_deref(), Some(text), "{codec:?}");
        for cut in 0..bytes.len() {
            assert_eq!(codec.text_of(&bytes[..cut]), None, "{codec:?} cut to {cut}");
        }
        assert_eq!(codec.text_of(&[&bytes[..], b"x"].concat()), None);
    }

    #[test]
    fn keys_of_plain_types_and_tuples_are_shown() {
        shows(&"ann".to_owned(), r#""ann""#);
        shows(&300_u64, "300");
        shows(&-7_i32, "-7");
        shows(&true, "true");
        shows(&('x', (1_u8, "y".to_owned()), 2_u16), r#"(x, (1, "y"), 2)"#);
        shows(&(5_u32,), "(5)");
    }

    #[test]
    fn texts_of_plain_types_are_parsed_and_others_are_refused() {
        let parse = |codec: KeyCodec, text: &str| codec.parse(text);
        let bincode = Bincode::NAME;
        assert_eq!(
            parse(KeyCodec::of::<u64>(bincode).unwrap(), "300"),
            encoded(&300_u64)
        );
        assert_eq!(
            parse(KeyCodec::of::<String>(bincode).unwrap(), "ann"),
            encoded("ann")
        );
        assert_eq!(parse(KeyCodec::of::<u8>(bincode).unwrap(), "300"), None);
        assert_eq!(parse(KeyCodec::of::<Vec<u8>>(bincode).unwrap(), "300"), None);
        assert_eq!(parse(KeyCodec::of::<u64>("json").unwrap(), "300"), None);
    }

    #[test]
    fn hostile_type_names_are_refused() {
        for name in [
            "(".repeat(200) + &")".repeat(200),
            "(u8, , u8".to_owned(),
            "((,),)".to_owned(),
        ] {
            let mut codec = KeyCodec::of::<u8>(Bincode::NAME).unwrap();
            codec.type_name = name;
            assert_eq!(codec.text_of(&[1, 2]), None, "{codec:?}");
        }
    }
}
