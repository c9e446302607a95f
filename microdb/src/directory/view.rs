//! The directory of one moment, kept for any length of time.
//!
//! - Taking a view clones the pointers to the chunks: some thousand pointers at 20 million keys.
//!   While the view exists, the writer copies a shared chunk before it first changes it.
//! - A view holds no epoch pin, so a snapshot may exist for hours. The view costs the memory of the
//!   chunks that have changed since.
//!
//! Deliberately absent: functions that change a view.

use std::sync::Arc;

use super::chunk::Chunk;
use super::probe::Probe;
use super::slot::{KeyHash, Location, Prefix};
use super::{Candidates, Damage, Stash};
use crate::raw::sync::Token;

/// The directory of one moment. Clones share all memory.
#[derive(Clone)]
pub(crate) struct View(Arc<Frozen>);

#[derive(Clone)]
struct Frozen {
    depth: u8,
    /// For each value of the top `depth` bits of a hash, the index of its chunk in `chunks`.
    index: Vec<u32>,
    chunks: Vec<Arc<Chunk>>,
    stash: Arc<Stash>,
    keys: u64,
    /// While the token of any view exists, the directory copies shared chunks before changing them.
    /// Declared last, so that it is dropped after the chunks.
    token: Token,
}

/// The parts of a view, which can be dropped one by one while the view is written to a file.
pub(super) struct Parts {
    pub(super) chunks: Vec<Arc<Chunk>>,
    pub(super) stash: Arc<Stash>,
    pub(super) keys: u64,
    /// The token of the view, which shows the directory that the view exists (see [`Frozen`]).
    pub(super) token: Token,
}

impl View {
    pub(super) fn new(
        depth: u8,
        index: Vec<u32>,
        chunks: Vec<Arc<Chunk>>,
        stash: Arc<Stash>,
        keys: u64,
        token: Token,
    ) -> Self {
        Self(Arc::new(Frozen {
            depth,
            index,
            chunks,
            stash,
            keys,
            token,
        }))
    }

    /// Returns the number of keys.
    pub(crate) fn len(&self) -> u64 {
        self.0.keys
    }

    /// Returns the possible locations of the record of this key at the moment of this view, like
    /// [`super::Directory::candidates`].
    ///
    /// # Errors
    /// If the chunk of the key is in a checkpoint and damaged.
    pub(crate) fn candidates(&self, hash: KeyHash) -> Result<Candidates<'_>, Damage> {
        let prefix = hash.prefix();
        let chunk = self.chunk(prefix);
        chunk.verify()?;
        Ok(Candidates {
            probe: Probe::new(chunk, prefix),
            prefix,
            stash: &self.0.stash,
        })
    }

    fn chunk(&self, prefix: Prefix) -> &Chunk {
        let entry = (prefix.aligned() >> 1 >> (63 - self.0.depth)) as usize;
        &self.0.chunks[self.0.index[entry] as usize]
    }

    /// Checks that no page of the checkpoint of a key's chunk was missing when it was read, like
    /// [`super::Directory::check_uncut`].
    ///
    /// # Errors
    /// If the chunk is in a checkpoint with a missing page.
    pub(crate) fn check_uncut(&self, hash: KeyHash) -> Result<(), Damage> {
        self.chunk(hash.prefix()).check_uncut()
    }

    /// Verifies again each chunk that is in a checkpoint. After this call, each access to a damaged
    /// chunk returns an error.
    pub(crate) fn verify_again(&self) {
        for chunk in &self.0.chunks {
            let _ = chunk.verify_again();
        }
    }

    /// Returns the number of parts of the view: its chunks and its stash. [`View::part`] returns
    /// the locations of one part.
    pub(crate) fn parts(&self) -> usize {
        self.0.chunks.len() + 1
    }

    /// Returns the locations of one part, in no order. All parts together contain each key once. A
    /// part usually has some thousand keys at most.
    ///
    /// # Errors
    /// If the part is in a checkpoint and damaged. Other parts may be intact.
    ///
    /// # Panics
    /// If `part` is out of range, which is a bug of the caller.
    pub(crate) fn part(&self, part: usize) -> Result<Vec<Location>, Damage> {
        if part == self.0.chunks.len() {
            return Ok(self.0.stash.iter().map(|(_, location)| *location).collect());
        }
        let chunk = &self.0.chunks[part];
        chunk.verify()?;
        let mut locations = Vec::with_capacity(chunk.keys());
        for bucket in 0..chunk.bucket_count() {
            for location in chunk.locations(bucket) {
                locations.push(location);
            }
        }
        chunk.check_uncut()?;
        Ok(locations)
    }

    /// Returns every location, part by part, and an error for each damaged part.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Location, Damage>> + '_ {
        (0..self.parts()).flat_map(|part| {
            let (locations, damage) = match self.part(part) {
                Ok(locations) => (locations, None),
                Err(damage) => (Vec::new(), Some(Err(damage))),
            };
            locations.into_iter().map(Ok).chain(damage)
        })
    }

    /// Calls `visit` for each location, with the low 16 bits of the id of its segment. Stops at the
    /// first damaged part.
    ///
    /// # Errors
    /// If a part is in a checkpoint and damaged.
    pub(crate) fn for_each_segment(&self, mut visit: impl FnMut(u16)) -> Result<(), Damage> {
        for chunk in &self.0.chunks {
            chunk.verify()?;
            for bucket in 0..chunk.bucket_count() {
                let locations = chunk.locations(bucket);
                locations.for_each(|location| visit(location.segment16()));
            }
            chunk.check_uncut()?;
        }
        let stashed = self.0.stash.iter();
        stashed.for_each(|(_, location)| visit(location.segment16()));
        Ok(())
    }

    pub(super) fn depth(&self) -> u8 {
        self.0.depth
    }

    #[cfg(test)]
    pub(super) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.0.chunks
    }

    /// Splits the view into parts that can be released one by one.
    pub(super) fn into_parts(self) -> Parts {
        let frozen = Arc::unwrap_or_clone(self.0);
        Parts {
            chunks: frozen.chunks,
            stash: frozen.stash,
            keys: frozen.keys,
            token: frozen.token,
        }
    }
}
