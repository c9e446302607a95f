//! The encoding of typed tables, as a trait.
//!
//! - A codec turns serde types into bytes and back. It has no state.
//! - If the codec is not self-describing, the table checks that encoded values can be read back.
//!
//! Deliberately absent: encodings that return references into the stored bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The reason why a codec cannot encode a value or decode bytes.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// An encoding of the keys and values of a [`TypedTable`](crate::TypedTable).
///
/// Equal keys must have equal bytes, because a table finds a key by its bytes. If the encoding
/// changes from one build of a program to the next, the records of earlier builds can become
/// unreadable.
///
/// ```
/// use microdb::{Codec, CodecError};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// /// Values that other programs and people can read.
/// struct Json;
///
/// impl Codec for Json {
///     const NAME: &'static str = "json";
///     const SELF_DESCRIBING: bool = true;
///
///     fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), CodecError> {
///         Ok(serde_json::to_writer(to, value)?)
///     }
///
///     fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
///         Ok(serde_json::from_slice(bytes)?)
///     }
/// }
///
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path())?;
/// let users = db.typed_table_with::<String, Vec<u32>, Json>("users")?;
/// users.put("ann", &vec![3, 4])?;
/// assert_eq!(users.raw().get(r#""ann""#)?.unwrap(), "[3,4]");
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an encoding of typed tables",
    note = "`microdb::Bincode` is one only with the feature `bincode`, which is on by default"
)]
pub trait Codec: 'static {
    /// Name of the encoding, recorded in the catalog for tools.
    const NAME: &'static str;

    /// `true` if the bytes contain the names of fields, so that omitted fields are read as absent.
    ///
    /// If `false`, a put refuses values with omitted fields. The put also reads back a value with a
    /// new shape before the value is stored; [`TypedTable`](crate::TypedTable) explains shapes. If
    /// `true`, nothing is checked.
    const SELF_DESCRIBING: bool = false;

    /// Appends the encoding of `value` to `to`.
    ///
    /// # Errors
    /// The reason why the value cannot be encoded.
    fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes a value from all of `bytes`. The bytes may be damaged or hostile: a length in them
    /// must not cause an allocation of that size.
    ///
    /// # Errors
    /// The reason why the bytes are not a `T`.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError>;
}

/// bincode 2 with its standard configuration. The encoding is compact, equal in all builds, and has
/// no field names. Implements [`Codec`] only with the feature `bincode`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bincode;
