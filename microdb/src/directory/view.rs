//! The directory of one moment, kept as long as wanted.
//!
//! Taking a view clones the pointers of the chunks (some thousands at 20 million keys); from then
//! on the writer copies a chunk before it first changes it. Views hold no pin: a snapshot may live
//! for hours, and costs the chunks that have changed meanwhile.

use std::sync::Arc;

use super::chunk::Chunk;
use super::probe::Probe;
use super::slot::{KeyHash, Location, Prefix};
use super::{Candidates, Damage, Stash};
use crate::raw::sync::Token;

/// A directory as it was. Clones share everything.
#[derive(Clone)]
pub(crate) struct View(Arc<Frozen>);

#[derive(Clone)]
struct Frozen {
    depth: u8,
    /// From the top `depth` bits of a hash to its chunk's number.
    index: Vec<u32>,
    chunks: Vec<Arc<Chunk>>,
    stash: Arc<Stash>,
    keys: u64,
    /// Tells the directory that views live. Last, so that it is given back after the chunks.
    token: Token,
}

/// A view on its way to a file.
pub(super) struct Parts {
    pub(super) chunks: Vec<Arc<Chunk>>,
    pub(super) stash: Arc<Stash>,
    pub(super) keys: u64,
    /// As in [`Frozen`].
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

    /// Number of keys.
    pub(crate) fn len(&self) -> u64 {
        self.0.keys
    }

    /// As [`super::Directory::candidates`].
    ///
    /// # Errors
    /// If the chunk lies in a checkpoint and is damaged.
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

    /// As [`super::Directory::check_uncut`].
    ///
    /// # Errors
    /// If the chunk lies in a checkpoint that was cut short.
    pub(crate) fn check_uncut(&self, hash: KeyHash) -> Result<(), Damage> {
        self.chunk(hash.prefix()).check_uncut()
    }

    /// Number of parts for [`View::part`].
    pub(crate) fn parts(&self) -> usize {
        self.0.chunks.len() + 1
    }

    /// The locations of one part, in no order; all parts together have every key once. A part has
    /// some thousand keys at most.
    ///
    /// # Errors
    /// If the part lies in a checkpoint and is damaged; other parts may be whole.
    ///
    /// # Panics
    /// Beyond the last part: our bug.
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

    /// Every location, part by part.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Location, Damage>> + '_ {
        (0..self.parts()).flat_map(|part| {
            let (locations, damage) = match self.part(part) {
                Ok(locations) => (locations, None),
                Err(damage) => (Vec::new(), Some(Err(damage))),
            };
            locations.into_iter().map(Ok).chain(damage)
        })
    }

    /// Calls `visit` with the segment of each location, by the low 16 bits of its id.
    ///
    /// # Errors
    /// If a part lies in a checkpoint and is damaged.
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

    /// The view in parts that can be let go one by one.
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
