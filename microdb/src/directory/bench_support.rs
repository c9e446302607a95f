//! The directory for benchmarks outside of the crate: a public wrapper around the real code.
//!
//! Compiled only with the feature `bench`, and not part of the interface of the crate.

use std::sync::Arc;

use super::{Directory, ImageTable, KeyHash, Location, View};
use crate::raw::epoch::pin;
use crate::raw::map::Map;

/// Number of hashes for which buckets are prefetched into the processor's cache before the first of
/// them is inserted or looked up. A processor has ten to sixteen line-fill buffers, and 32
/// prefetches keep all of them in use.
const WINDOW: usize = 32;

/// A directory for benchmarks. Numbers stand for locations.
pub struct BenchDirectory(Directory);

/// A view of a directory.
pub struct BenchView(View);

fn location(number: u64) -> Location {
    let places = (1 << 26) - 1;
    Location::new(number / places, (number % places) as u32 + 1)
}

fn number(location: Location) -> u64 {
    u64::from(location.segment16()) * ((1 << 26) - 1) + u64::from(location.offset()) - 1
}

impl Default for BenchDirectory {
    fn default() -> Self {
        Self(Directory::new())
    }
}

impl BenchDirectory {
    /// Adds absent keys with these hashes. Their locations are numbered from `first` on.
    pub fn insert_all(&self, hashes: &[u64], first: u64) {
        for (window, numbers) in hashes.chunks(WINDOW).zip((first..).step_by(WINDOW)) {
            let guard = pin();
            window
                .iter()
                .for_each(|hash| self.0.prefetch(&guard, KeyHash(*hash)));
            for (hash, number) in window.iter().zip(numbers..) {
                self.0
                    .insert(&guard, KeyHash(*hash), location(number))
                    .expect("nothing is mapped");
            }
        }
    }

    /// Adds one absent key with this hash at the location `number`.
    pub fn insert(&self, hash: u64, number: u64) {
        self.0
            .insert(&pin(), KeyHash(hash), location(number))
            .expect("nothing is mapped");
    }

    /// Returns the number of the first location at which the key with this hash may be, or `None`
    /// if no slot matches the hash.
    pub fn get(&self, hash: u64) -> Option<u64> {
        let guard = pin();
        self.0
            .candidates(&guard, KeyHash(hash))
            .expect("nothing is damaged")
            .next()
            .map(number)
    }

    /// Returns the sum of the results of [`BenchDirectory::get`] for these hashes, with 0 for
    /// `None`. Prefetches the buckets of several hashes into the processor's cache, so that the
    /// waits for memory overlap.
    pub fn get_all(&self, hashes: &[u64]) -> u64 {
        let mut sum = 0;
        for window in hashes.chunks(WINDOW) {
            let guard = pin();
            window
                .iter()
                .for_each(|hash| self.0.prefetch(&guard, KeyHash(*hash)));
            for hash in window {
                let mut candidates = self
                    .0
                    .candidates(&guard, KeyHash(*hash))
                    .expect("nothing is damaged");
                sum += candidates.next().map_or(0, number);
            }
        }
        sum
    }

    /// Returns a view of the directory at this moment.
    pub fn view(&self) -> BenchView {
        BenchView(self.0.view(&pin()))
    }

    /// Returns the number of keys.
    pub fn keys(&self) -> u64 {
        self.0.len()
    }

    /// Returns the memory of the directory in bytes, without mapped bytes and without the stash.
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Opens the image written to `file` by [`BenchView::encode`].
    ///
    /// # Errors
    /// If the length of the file cannot be read, or the file cannot be mapped.
    pub fn open(file: &std::fs::File, table: (u64, u64)) -> std::io::Result<Self> {
        let map = Arc::new(Map::of_file(file, file.metadata()?.len())?);
        let table = ImageTable {
            offset: table.0,
            bytes: table.1,
        };
        Ok(Self(
            Directory::from_image(&map, table, 0).expect("nothing is damaged"),
        ))
    }
}

impl BenchView {
    /// Writes the image of the view. Returns the offset and the length of the image's table.
    pub fn encode(&self, out: &mut dyn std::io::Write) -> (u64, u64) {
        let table = self
            .0
            .clone()
            .encode(out, 0, 0)
            .expect("the benchmark's writer does not fail");
        (table.offset, table.bytes)
    }

    /// Counts all locations.
    pub fn count(&self) -> usize {
        self.0.iter().count()
    }
}
