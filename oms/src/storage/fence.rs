//! The volume's own record of its slots, and the fence that it is: a commit is refused unless the
//! slots that it speaks for are the volume's, since the epoch that it has in mind.
//!
//! The record is a row of the volume (`meta`, `slots`), replaced by the same batches that put slots
//! in force, seal them or give them up. The committer checks every change against it in the order
//! of commits, so that a step of an owner that is one no more is refused in the very step that
//! would have made it durable, whoever took it and whatever it knew.
//!
//! | field | bytes | meaning |
//! | --- | --- | --- |
//! | slots | 4 | of the ring; little-endian, as all numbers here |
//! | runs | 12 each | how many slots in a row (4), the epoch at which they came (8); 0 where they are elsewhere or sealed |

use crate::storage::codec::DecodeError;

/// A slot that a change speaks for, and the epoch at which it came, as whoever made the change
/// knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) slot: u32,
    pub(crate) epoch: u64,
}

/// The slots of a volume: the epoch at which each came, 0 if it is not the volume's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotOwnership(pub(crate) Vec<u64>);

impl SlotOwnership {
    /// True if the slot is the volume's, since that epoch.
    pub(crate) fn admits(&self, fence: Fence) -> bool {
        fence.epoch > 0 && self.0.get(fence.slot as usize) == Some(&fence.epoch)
    }

    /// The slots that are the volume's.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        (0..)
            .zip(&self.0)
            .filter(|(_, epoch)| **epoch > 0)
            .map(|(slot, _)| slot)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.0.len() as u32).to_le_bytes().to_vec();
        for run in self.0.chunk_by(|one, other| one == other) {
            bytes.extend_from_slice(&(run.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&run[0].to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<SlotOwnership, DecodeError> {
        let fault = |offset, expected| Err(DecodeError { offset, expected });
        let Some((count, runs)) = bytes.split_first_chunk::<4>() else {
            return fault(0, "a number of slots");
        };
        let count = u32::from_le_bytes(*count) as usize;
        let mut epochs = Vec::new();
        for (at, run) in runs.chunks(12).enumerate() {
            let (Some(length), Some(epoch)) = (
                run.first_chunk::<4>(),
                run.get(4..).and_then(|run| run.first_chunk::<8>()),
            ) else {
                return fault(4 + at * 12, "a run of slots");
            };
            let length = u32::from_le_bytes(*length) as usize;
            if length == 0 || length > count - epochs.len() {
                return fault(4 + at * 12, "a run within the slots");
            }
            epochs.resize(epochs.len() + length, u64::from_le_bytes(*epoch));
        }
        if epochs.len() != count {
            return fault(bytes.len(), "every slot in a run");
        }
        Ok(SlotOwnership(epochs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_no_part_of_it_alone() {
        let mut record = SlotOwnership(vec![0; 100]);
        record.0[10..50].fill(3);
        record.0[50] = 4;
        let bytes = record.encode();
        assert_eq!(bytes.len(), 4 + 4 * 12);
        assert_eq!(SlotOwnership::decode(&bytes).unwrap(), record);
        assert_eq!(record.slots().count(), 41);
        for cut in 0..bytes.len() {
            assert!(SlotOwnership::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut long = bytes.clone();
        long[4] = 200;
        assert!(SlotOwnership::decode(&long).is_err());
    }

    #[test]
    fn only_the_epoch_at_which_a_slot_came_is_admitted() {
        let record = SlotOwnership(vec![0, 7]);
        let admits = |slot, epoch| record.admits(Fence { slot, epoch });
        assert!(admits(1, 7));
        assert!(!admits(1, 6) && !admits(1, 8) && !admits(0, 0) && !admits(0, 7) && !admits(2, 7));
    }
}
