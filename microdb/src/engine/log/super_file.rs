//! Functions that write to SUPER: the durable frontier as a hint, and the state of the log.
//!
//! - A hint is written after each sync that advances the durable frontier of an open database. The
//!   hint itself is not synced.
//! - Both copies of the state are rewritten one after the other, each synced before the next.
//!
//! Deliberately absent: the layout of SUPER, which is in `format::super_block`.

use super::writer::Writer;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::super_block::{HINT_OFFSETS, STATE_BLOCK_BYTES, STATE_OFFSETS, State, encode_hint};
use crate::seeded::seeded;
use crate::storage::StorageFile;

impl Engine {
    /// Writes the frontier as a hint for the next open. The hint is not synced. If a power cut
    /// loses it, the next open knows an earlier frontier. A hint never names a frontier that is not
    /// durable.
    pub(super) fn write_hint(&self, writer: &mut Writer) -> Result<()> {
        let Some(file) = &self.super_file else {
            return Ok(());
        };
        writer.hint_counter += 1;
        let hint = encode_hint(self.database, writer.hint_counter, &writer.frontier);
        let offset = HINT_OFFSETS[(writer.hint_counter % 2) as usize];
        let path = self.paths.super_file();
        let written = file.write_at(&hint, offset);
        written.map_err(|error| self.poisoned(Error::io("cannot write", &path)(error)))
    }

    /// Rewrites the state in SUPER, one copy after the other, with a sync after each. The new state
    /// does not list the segments in `emptied`.
    pub(crate) fn write_state(&self, emptied: &[u64]) -> Result<()> {
        self.check_identity()?;
        let mut writer = lock(&self.writer);
        // Segments that begin behind the frontier are not listed, because they are not durable: a
        // power cut may remove their header or even their name. If such a segment exists at the
        // next open, the open finds it by its header.
        let (live, next_segment) = {
            let core = lock(&self.core);
            let durable = |id: &u64| *id <= writer.frontier.position.segment || seeded("super-early-names");
            let ids = || core.usages.iter().map(|(id, _)| id);
            let live = ids().filter(|id| durable(id) && !emptied.contains(id)).collect();
            (live, ids().find(|id| !durable(id)).unwrap_or(core.next_segment))
        };
        writer.state_generation += 1;
        let state = State {
            database: self.database,
            hash_seed: self.hash_seed,
            generation: writer.state_generation,
            created_ms: self.created_ms,
            checkpoint: writer.checkpoint,
            frontier: writer.frontier,
            next_segment,
            live,
        };
        let Some(file) = &self.super_file else {
            return Ok(());
        };
        let path = self.paths.super_file();
        write_state_blocks(file.as_ref(), &state)
            .map_err(|error| self.poisoned(Error::io("cannot write", &path)(error)))
    }
}

/// Writes both state blocks, one after the other, with a sync after each.
pub(crate) fn write_state_blocks(file: &dyn StorageFile, state: &State) -> std::io::Result<()> {
    let mut block = state.encode();
    block.resize(STATE_BLOCK_BYTES, 0);
    for offset in STATE_OFFSETS {
        file.write_at(&block, offset)?;
        file.sync_data()?;
        if seeded("super-one-copy") {
            break;
        }
    }
    Ok(())
}
