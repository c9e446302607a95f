//! Checks of typed keys and values while they are encoded, for a codec that is not self-describing:
//! a key or value that could not be read back is refused. Below, a value may also be a key.
//!
//! Serde guarantees no round trip. A type may omit fields (`skip_serializing_if`) or may need a
//! self-describing encoding (untagged enums). It may also announce another number of fields than
//! the reader expects.
//!
//! - An omitted field or a wrong announced length is refused each time.
//! - A value with a new *shape* is read back. A shape is the set of the choices of a value:
//!   variants, `Some` and `None`, kinds of parts, each with its path. The shape is new if one of
//!   its choices is new. A table handle and its clones remember the choices of the values that were
//!   read back. A value without a new choice is only encoded.
//! - The new choices of a value that cannot be read back are not remembered. So the value is
//!   refused each time.
//!
//! Deliberately absent: a check of the content. A `Deserialize` may refuse some values of its own
//! `Serialize` because of their content (`try_from`). The check detects this only for a value with
//! a new shape.

mod watch;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::watch::Trace;
use super::codec::Codec;
use crate::seeded::seeded;

/// Number of buckets in the table of a handle's known paths, enough for types with hundreds of
/// fields and variants.
const BUCKETS: usize = 256;
/// Number of paths in a bucket, which takes half a cache line.
const BUCKET_SLOTS: usize = 4;

/// Paths of choices in values that were read back successfully.
#[derive(Default)]
pub(super) struct KnownShapes {
    slots: OnceLock<Box<[[AtomicU64; BUCKET_SLOTS]; BUCKETS]>>,
}

impl KnownShapes {
    fn bucket(&self, path: u64) -> &[AtomicU64; BUCKET_SLOTS] {
        let empty = || Box::new([const { [const { AtomicU64::new(0) }; BUCKET_SLOTS] }; BUCKETS]);
        &self.slots.get_or_init(empty)[(path >> 32) as usize % BUCKETS]
    }

    #[inline]
    fn contains(&self, path: u64) -> bool {
        // Relaxed ordering suffices: a path is a single number, and a path that a thread does not
        // see yet is only checked again.
        let slots = self.bucket(path);
        slots.iter().any(|slot| slot.load(Ordering::Relaxed) == path)
    }

    fn insert(&self, path: u64) {
        let slots = self.bucket(path);
        let free = slots.iter().find(|slot| slot.load(Ordering::Relaxed) == 0);
        // If the bucket is full, the new path replaces another path. The replaced path is checked
        // again when it occurs.
        let slot = free.unwrap_or(&slots[(path >> 48) as usize % BUCKET_SLOTS]);
        slot.store(path, Ordering::Relaxed);
    }
}

/// Part of a record. The path of a choice begins with this number, so keys and values have
/// different paths.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Key = 1,
    Value = 2,
}

/// Appends the encoding of `value` to `to`. Fails with the reason if the value cannot be encoded,
/// or has a new shape and cannot be read back. `T` is the type as which the value will be read, and
/// `Q` may be a borrowed form of `T`.
pub(super) fn encode<C: Codec, T: Serialize + DeserializeOwned, Q: Serialize + ?Sized>(
    value: &Q,
    part: Part,
    known: &KnownShapes,
    to: &mut Vec<u8>,
) -> Result<(), String> {
    let start = to.len();
    let trace = Trace::new(known);
    C::encode(&trace.watch(value, part), to).map_err(|error| error.to_string())?;
    let unknown = trace.unknown.take();
    if unknown.is_empty() {
        return Ok(());
    }
    if !seeded("typed-not-read-back") {
        read_back::<C, T>(&to[start..], trace.fields.get(), part)?;
    }
    unknown.into_iter().for_each(|path| known.insert(path));
    Ok(())
}

/// Decodes `bytes` as a `T`, and checks that the result is probably the encoded value.
///
/// Equal bytes alone prove nothing: a tuple with an omitted field may decode as another tuple with
/// equal bytes. So the number of fields is compared too. Different bytes prove nothing either: a
/// `Deserialize` may normalise, for example to lower case. A normalised value must not change when
/// it is decoded a second time.
fn read_back<C: Codec, T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    fields: u64,
    part: Part,
) -> Result<(), String> {
    let reason = |reason: String| format!("it could not be read back: {reason}");
    let (again, fields_again) = encoded_again::<C, T>(bytes, part).map_err(reason)?;
    let is_same = if is_permutation(bytes, &again) {
        fields == fields_again
    } else {
        let (third, fields_third) = encoded_again::<C, T>(&again, part).map_err(reason)?;
        is_permutation(&again, &third) && fields_again == fields_third
    };
    if is_same {
        return Ok(());
    }
    Err(reason(
        "the type writes other fields than it reads (serde's skip attributes do), so another value \
         would be read"
            .to_owned(),
    ))
}

/// Decodes a value and encodes it again. Returns the new bytes and the number of fields in the
/// value.
fn encoded_again<C: Codec, T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    part: Part,
) -> Result<(Vec<u8>, u64), String> {
    let value: T = C::decode(bytes).map_err(|error| error.to_string())?;
    let (known, mut again) = (KnownShapes::default(), Vec::with_capacity(bytes.len()));
    let trace = Trace::new(&known);
    C::encode(&trace.watch(&value, part), &mut again).map_err(|error| error.to_string())?;
    Ok((again, trace.fields.get()))
}

/// Returns `true` if the slices are equal except for the order of their bytes. The order is
/// ignored, because hash maps encode their elements in any order.
fn is_permutation(one: &[u8], two: &[u8]) -> bool {
    let counts = |bytes: &[u8]| {
        let mut counts = [0_u64; 256];
        bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        counts
    };
    one == two || (one.len() == two.len() && counts(one) == counts(two))
}
