//! A serializer that records the choices of a value while the value is encoded.
//!
//! A choice is a variant, `Some` or `None`, or the kind of a part (a number, text, a sequence, and
//! others; see `Choice`). Each part of a value has a path: a hash of the choices that lead to it.
//! All elements of a sequence have one path. All keys of a map have one path, and all values of a
//! map have another.
//!
//! Deliberately absent: the encoding, which the wrapped serializer does.

use std::cell::{Cell, RefCell};

use serde::ser::{self, Serialize, Serializer};

use super::{KnownShapes, Part};
use crate::seeded::seeded;

/// Number of leading fields of a struct or tuple that have separate paths. All further fields share
/// one path.
const FIELDS_APART: usize = 64;

/// Kinds of choices, in the lower 8 bits of a step. The number of a field or variant, or the length
/// of a tuple or struct, is in the bits above.
#[derive(Clone, Copy)]
enum Choice {
    Bool = 1,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Str,
    Bytes,
    None,
    Some,
    Unit,
    Newtype,
    Variant,
    Sequence,
    Tuple,
    Map,
    Struct,
    Field,
    Element,
    Key,
    Value,
}

/// Returns the path extended by one step. A path is never 0, because 0 marks a free slot of
/// [`KnownShapes`].
#[inline]
fn step(path: u64, choice: Choice, number: u64) -> u64 {
    // The odd constant is 2^64 divided by the golden ratio. The multiplication spreads neighbouring
    // numbers.
    let mixed = (path ^ (choice as u64) ^ (number << 8)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)) | 1
}

/// Paths of the new choices in one value, and the number of its fields, collected while the value
/// is encoded.
pub(super) struct Trace<'a> {
    known: &'a KnownShapes,
    /// The path that was noted last; 0 at first. The elements of a sequence of numbers all have one
    /// path, so comparing a path with the last one saves look-ups.
    last: Cell<u64>,
    /// Paths that are not among the known shapes, perhaps repeatedly.
    pub(super) unknown: RefCell<Vec<u64>>,
    /// Number of fields in all structs, tuples and variants of the value, without the single field
    /// of each newtype.
    pub(super) fields: Cell<u64>,
}

impl<'a> Trace<'a> {
    pub(super) fn new(known: &'a KnownShapes) -> Self {
        Self {
            known,
            last: Cell::new(0),
            unknown: RefCell::default(),
            fields: Cell::new(0),
        }
    }

    pub(super) fn watch<'b, T: ?Sized>(&'b self, value: &'b T, part: Part) -> Watched<'b, T> {
        let path = part as u64;
        let trace = self;
        Watched { value, path, trace }
    }

    #[inline]
    fn note(&self, path: u64) {
        if self.last.replace(path) != path && !self.known.contains(path) {
            self.unknown.borrow_mut().push(path);
        }
    }
}

/// A value, or a part of a value, that is watched while it is encoded.
pub(super) struct Watched<'a, T: ?Sized> {
    value: &'a T,
    path: u64,
    trace: &'a Trace<'a>,
}

impl<T: Serialize + ?Sized> Serialize for Watched<'_, T> {
    #[inline]
    fn serialize<S: Serializer>(&self, inner: S) -> Result<S::Ok, S::Error> {
        let (path, trace) = (self.path, self.trace);
        self.value.serialize(Watch { inner, path, trace })
    }
}

/// A serializer that records each choice and passes the call to the wrapped serializer.
struct Watch<'a, S> {
    inner: S,
    path: u64,
    trace: &'a Trace<'a>,
}

impl<'a, S> Watch<'a, S> {
    #[inline]
    fn note(&self, choice: Choice, number: u64) -> u64 {
        let path = step(self.path, choice, number);
        self.trace.note(path);
        path
    }

    #[inline]
    fn parts<C>(trace: &'a Trace<'a>, path: u64, announced: usize, inner: C) -> Parts<'a, C> {
        let met = 0;
        Parts {
            inner,
            path,
            trace,
            announced,
            met,
        }
    }
}

macro_rules! numbers {
    ($($method:ident($type:ty) $choice:ident,)*) => {
        $(#[inline]
        fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.note(Choice::$choice, 0);
            self.inner.$method(value)
        })*
    };
}

impl<'a, S: Serializer> Serializer for Watch<'a, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Parts<'a, S::SerializeSeq>;
    type SerializeTuple = Parts<'a, S::SerializeTuple>;
    type SerializeTupleStruct = Parts<'a, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Parts<'a, S::SerializeTupleVariant>;
    type SerializeMap = Parts<'a, S::SerializeMap>;
    type SerializeStruct = Parts<'a, S::SerializeStruct>;
    type SerializeStructVariant = Parts<'a, S::SerializeStructVariant>;

    numbers! {
        serialize_bool(bool) Bool,
        serialize_i8(i8) I8,
        serialize_i16(i16) I16,
        serialize_i32(i32) I32,
        serialize_i64(i64) I64,
        serialize_i128(i128) I128,
        serialize_u8(u8) U8,
        serialize_u16(u16) U16,
        serialize_u32(u32) U32,
        serialize_u64(u64) U64,
        serialize_u128(u128) U128,
        serialize_f32(f32) F32,
        serialize_f64(f64) F64,
        serialize_char(char) Char,
        serialize_str(&str) Str,
        serialize_bytes(&[u8]) Bytes,
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.note(Choice::Str, 0);
        self.inner.collect_str(value)
    }

    #[inline]
    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.note(Choice::None, 0);
        self.inner.serialize_none()
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let (path, trace) = (self.note(Choice::Some, 0), self.trace);
        self.inner.serialize_some(&Watched { value, path, trace })
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.note(Choice::Unit, 0);
        self.inner.serialize_unit()
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.note(Choice::Unit, 0);
        self.inner.serialize_unit_struct(name)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.note(Choice::Variant, index.into());
        self.inner.serialize_unit_variant(name, index, variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let (path, trace) = (self.note(Choice::Newtype, 0), self.trace);
        self.inner
            .serialize_newtype_struct(name, &Watched { value, path, trace })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let (path, trace) = (self.note(Choice::Variant, index.into()), self.trace);
        let value = Watched { value, path, trace };
        self.inner.serialize_newtype_variant(name, index, variant, &value)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        let (len, path) = (known_len(len)?, self.note(Choice::Sequence, 0));
        Ok(Self::parts(
            self.trace,
            path,
            len,
            self.inner.serialize_seq(Some(len))?,
        ))
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        let path = self.note(Choice::Tuple, len as u64);
        Ok(Self::parts(
            self.trace,
            path,
            len,
            self.inner.serialize_tuple(len)?,
        ))
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        let path = self.note(Choice::Struct, len as u64);
        let inner = self.inner.serialize_tuple_struct(name, len)?;
        Ok(Self::parts(self.trace, path, len, inner))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        let path = step(
            self.note(Choice::Variant, index.into()),
            Choice::Struct,
            len as u64,
        );
        self.trace.note(path);
        let inner = self.inner.serialize_tuple_variant(name, index, variant, len)?;
        Ok(Self::parts(self.trace, path, len, inner))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        let (len, path) = (known_len(len)?, self.note(Choice::Map, 0));
        Ok(Self::parts(
            self.trace,
            path,
            len,
            self.inner.serialize_map(Some(len))?,
        ))
    }

    #[inline]
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        let path = self.note(Choice::Struct, len as u64);
        let inner = self.inner.serialize_struct(name, len)?;
        Ok(Self::parts(self.trace, path, len, inner))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        let path = step(
            self.note(Choice::Variant, index.into()),
            Choice::Struct,
            len as u64,
        );
        self.trace.note(path);
        let inner = self.inner.serialize_struct_variant(name, index, variant, len)?;
        Ok(Self::parts(self.trace, path, len, inner))
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Returns the length of a sequence or map. Fails without a length, because the encoding begins
/// with the length.
fn known_len<E: ser::Error>(len: Option<usize>) -> Result<usize, E> {
    len.ok_or_else(|| {
        E::custom("a map or sequence without a known length (for example of flatten) has no encoding")
    })
}

/// Serializer of the elements or fields of a sequence, map, tuple or struct.
struct Parts<'a, C> {
    inner: C,
    path: u64,
    trace: &'a Trace<'a>,
    /// Number of elements or fields that the type announced, which the reader will expect.
    announced: usize,
    met: usize,
}

impl<'a, C> Parts<'a, C> {
    /// Watches the next element. All elements of a sequence have one path.
    #[inline]
    fn element<'b, T: ?Sized>(&mut self, value: &'b T) -> Watched<'b, T>
    where
        'a: 'b,
    {
        self.met += 1;
        let (path, trace) = (step(self.path, Choice::Element, 0), self.trace);
        Watched { value, path, trace }
    }

    /// Watches the next field. Most fields of a long array share a path, so that they do not evict
    /// other paths from [`KnownShapes`].
    #[inline]
    fn field<'b, T: ?Sized>(&mut self, value: &'b T) -> Watched<'b, T>
    where
        'a: 'b,
    {
        let (path, trace) = (
            step(self.path, Choice::Field, self.met.min(FIELDS_APART) as u64),
            self.trace,
        );
        self.met += 1;
        trace.fields.set(trace.fields.get() + 1);
        Watched { value, path, trace }
    }

    #[inline]
    fn check_len<E: ser::Error>(&self) -> Result<(), E> {
        if self.met == self.announced {
            return Ok(());
        }
        let (announced, met) = (self.announced, self.met);
        Err(E::custom(format_args!(
            "the type announced {announced} elements and wrote {met}"
        )))
    }
}

/// Returns the error for an omitted field.
fn refuse_skip<E: ser::Error>(field: &'static str) -> E {
    E::custom(format_args!(
        "the field {field} is left out (skip_serializing_if), and the encoding of typed tables holds \
         no names by which the reader could notice"
    ))
}

macro_rules! fields_without_names {
    ($($trait:ident $method:ident $part:ident;)*) => {
        $(impl<C: ser::$trait> ser::$trait for Parts<'_, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
                let value = self.$part(value);
                self.inner.$method(&value)
            }

            #[inline]
            fn end(self) -> Result<C::Ok, C::Error> {
                self.check_len()?;
                self.inner.end()
            }
        })*
    };
}

fields_without_names! {
    SerializeSeq serialize_element element;
    SerializeTuple serialize_element field;
    SerializeTupleStruct serialize_field field;
    SerializeTupleVariant serialize_field field;
}

macro_rules! fields_with_names {
    ($($trait:ident)*) => {
        $(impl<C: ser::$trait> ser::$trait for Parts<'_, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), C::Error> {
                let value = self.field(value);
                self.inner.serialize_field(name, &value)
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), C::Error> {
                if seeded("typed-field-left-out") {
                    return Ok(());
                }
                Err(refuse_skip(name))
            }

            #[inline]
            fn end(self) -> Result<C::Ok, C::Error> {
                self.check_len()?;
                self.inner.end()
            }
        })*
    };
}

fields_with_names! { SerializeStruct SerializeStructVariant }

impl<C: ser::SerializeMap> ser::SerializeMap for Parts<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.met += 1;
        let (path, trace) = (step(self.path, Choice::Key, 0), self.trace);
        self.inner.serialize_key(&Watched { value, path, trace })
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        let (path, trace) = (step(self.path, Choice::Value, 0), self.trace);
        self.inner.serialize_value(&Watched { value, path, trace })
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.check_len()?;
        self.inner.end()
    }
}
