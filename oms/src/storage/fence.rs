//! The fence: the check at commit that the volume owns the slots of a batch.
//!
//! The volume's slot ownership is a row of the volume (table `meta`, key `slots`). Each batch that
//! changes the ownership also replaces this row.
//!
//! **Invariants**
//! - The committer checks every batch against the ownership, in commit order. A volume without such
//!   a row accepts every batch.
//! - So a write by a former owner is rejected at commit time, even if the writer has not noticed
//!   that it lost the slots.
//!
//! | field | bytes | meaning |
//! | --- | --- | --- |
//! | slots | 4 | number of slots of the ring; all numbers are little-endian |
//! | runs | 12 each | number of adjacent slots (4), the epoch at which the volume got them (8) |
//!
//! The epoch is 0 for slots that are sealed or owned by another volume.

use crate::storage::codec::DecodeError;

/// A slot that a batch writes for, and the epoch since which the writer believes that its volume
/// owns the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) slot: u32,
    pub(crate) epoch: u64,
}

/// The slots of a volume. Element `i` is the epoch at which slot `i` came to the volume, or 0 if
/// slot `i` is sealed or owned by another volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotOwnership(pub(crate) Vec<u64>);

impl SlotOwnership {
    /// Returns `true` if the slot of the fence came to the volume at exactly the epoch of the
    /// fence, and the volume owns the slot and has not sealed it.
    pub(crate) fn admits(&self, fence: Fence) -> bool {
        fence.epoch > 0 && self.0.get(fence.slot as usize) == Some(&fence.epoch)
    }

    /// Returns the slots that the volume owns and has not sealed.
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
        if count > imt_ring::SLOTS_MAX as usize {
            return fault(0, "a number of slots that a ring can have");
        }
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
    fn slot_ownership_reads_back_as_written_and_not_from_a_part() {
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
        // One run of four billion slots must not allocate memory for them.
        let huge = [u32::MAX.to_le_bytes(); 2].concat();
        let fault = SlotOwnership::decode(&[&huge[..], &[0; 8]].concat()).unwrap_err();
        assert_eq!(fault.expected, "a number of slots that a ring can have");
    }

    #[test]
    fn only_the_epoch_of_a_slots_arrival_is_admitted() {
        let record = SlotOwnership(vec![0, 7]);
        let admits = |slot, epoch| record.admits(Fence { slot, epoch });
        assert!(admits(1, 7));
        assert!(!admits(1, 6) && !admits(1, 8) && !admits(0, 0) && !admits(0, 7) && !admits(2, 7));
    }
}
