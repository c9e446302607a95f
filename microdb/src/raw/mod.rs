//! The crate's one room for `unsafe`: small pieces with safe faces, nothing that knows of keys,
//! frames or slots.
//!
//! - [`epoch`]: pins, and cells that hold an `Arc` which readers follow without touching its count.
//! - [`fork`]: tells a forked child from its parent.
//! - [`buckets`]: cache-line buckets of atomic words, in memory of our own or in place in a map.
//! - [`map`]: read-only bytes of a file, mapped, or a copy in memory where a storage cannot map.
//! - [`sigbus`]: mapped files that are cut short read as zeros instead of ending the process.
//! - [`tail`]: append-only memory that one writer fills while anyone reads what it has published.
//! - [`heap`]: freed memory given back to the system.
//! - [`prefetch`]: the cache hint.
//! - [`sync`]: the standard primitives, or those of loom in its build.
//! - [`pool`]: the threads of background work.
//! - [`reclaim`]: decides when freed memory is worth a call to [`heap`].
//!
//! Each block says why it is sound, and no function of this folder asks its caller for more than
//! its types do, with one exception, which is the operating system's: see [`map`] on files that are
//! changed while mapped. Deliberately absent: keys, frames, files by name.
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
