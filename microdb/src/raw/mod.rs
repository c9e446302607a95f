//! Primitives below the engine, and the only folder with `unsafe`. Nothing here depends on keys,
//! frames or slots.
//!
//! - [`epoch`]: pins, and cells with an `Arc`. Pinned readers use the value without changing its
//!   reference count.
//! - [`fork`]: distinguishes a forked child from its parent.
//! - [`buckets`]: cache-line buckets of atomic words, in own memory or in place in a map.
//! - [`map`]: read-only bytes of a file, mapped or copied.
//! - [`sigbus`]: lets missing pages of mapped files read as zeros instead of ending the process.
//! - [`tail`]: append-only memory with one writer and many readers.
//! - [`heap`]: returns freed memory to the operating system.
//! - [`prefetch`]: prefetch instruction.
//! - [`sync`]: locks and atomics of the standard library, or those of loom in builds for loom.
//! - [`pool`]: threads for background work.
//! - [`reclaim`]: decides when retired and freed memory is released.
//!
//! Each `unsafe` block states why it is sound. Every function that other folders can call is safe
//! with any arguments that its types permit. The one exception: bytes that are read from a map must
//! not change in their file (see [`map`]). Deliberately absent: the format of the database.
#![allow(unsafe_code)]

pub(crate) mod buckets;
pub(crate) mod epoch;
pub(crate) mod fork;
pub(crate) mod heap;
pub(crate) mod map;
pub(crate) mod pool;
pub(crate) mod prefetch;
pub(crate) mod reclaim;
pub(crate) mod sigbus;
pub(crate) mod sync;
pub(crate) mod tail;
