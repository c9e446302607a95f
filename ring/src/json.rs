//! The serde form of a ring, for JSON and similar formats. Every field has a name. A ring read in
//! this form is checked like its binary encoding, except that one ring may have several forms. A
//! run may be split, an empty cell may be written as 65,535, and a weight of 1 may be left out.
//!
//! The assignment is a list of runs, `[slots, primary, copy, ...]`: the number of slots, then the
//! nodes that hold them. A node is the index of its member. Empty cells at the end of a run are
//! left out.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ring::{NONE, Node};
use crate::{Digest, Epoch, KeyHash, Member, Options, Ring, Slot};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RingForm {
    format: u32,
    epoch: Epoch,
    digest: Digest,
    slots: u32,
    replication: u8,
    key_hash: KeyHash,
    members: Vec<Member>,
    pins: Vec<Slot>,
    assignment: Vec<Vec<u32>>,
}

/// The seed, or the secret of SipHash, is hexadecimal text, because JavaScript's numbers cannot
/// hold 64 bits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyHashForm {
    algorithm: String,
    seed: String,
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (algorithm, seed) = match self {
            KeyHash::Xxh3 { seed } => ("xxh3-64", format!("{seed:016x}")),
            KeyHash::SipHash13 { key } => ("siphash-1-3", format!("{:032x}", u128::from_be_bytes(*key))),
        };
        KeyHashForm {
            algorithm: algorithm.to_string(),
            seed,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<KeyHash, D::Error> {
        let form = KeyHashForm::deserialize(deserializer)?;
        let digits = form.seed.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(&form.seed, 16).ok().filter(|_| digits);
        match (form.algorithm.as_str(), form.seed.len(), number) {
            ("xxh3-64", 16, Some(seed)) => Ok(KeyHash::Xxh3 { seed: seed as u64 }),
            ("siphash-1-3", 32, Some(key)) => Ok(KeyHash::SipHash13 {
                key: key.to_be_bytes(),
            }),
            ("xxh3-64" | "siphash-1-3", ..) => Err(D::Error::custom(
                "seed: 16 hexadecimal digits for xxh3-64, 32 for siphash-1-3",
            )),
            _ => Err(D::Error::custom("algorithm: neither xxh3-64 nor siphash-1-3")),
        }
    }
}

impl Serialize for Ring {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let slots = self.options.slots as usize;
        let mut assignment: Vec<Vec<u32>> = Vec::new();
        for slot in 0..slots {
            let nodes = self
                .cells
                .iter()
                .skip(slot)
                .step_by(slots)
                .take_while(|node| **node != NONE);
            match assignment.last_mut() {
                Some(run)
                    if nodes
                        .clone()
                        .map(|&node| u32::from(node))
                        .eq(run[1..].iter().copied()) =>
                {
                    run[0] += 1;
                }
                _ => assignment.push(
                    core::iter::once(1)
                        .chain(nodes.map(|&node| u32::from(node)))
                        .collect(),
                ),
            }
        }
        let form = RingForm {
            format: FORMAT,
            epoch: self.epoch,
            digest: self.digest(),
            slots: self.options.slots,
            replication: self.options.replication,
            key_hash: self.options.key_hash,
            members: self.members.clone(),
            pins: self.pins.clone(),
            assignment,
        };
        form.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Ring {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ring, D::Error> {
        let form = RingForm::deserialize(deserializer)?;
        if form.format != FORMAT {
            return Err(D::Error::custom(format!(
                "format: {}, this release reads {FORMAT}",
                form.format
            )));
        }
        let options = Options::new()
            .slots(form.slots)
            .replication(form.replication)
            .key_hash(form.key_hash);
        options.check().map_err(D::Error::custom)?;
        if form
            .members
            .windows(2)
            .any(|pair| pair[0].name() >= pair[1].name())
        {
            return Err(D::Error::custom("members: not in the order of their names"));
        }
        let cells = cells(&options, &form.assignment).map_err(D::Error::custom)?;
        let ring = Ring::from_parts(options, form.epoch, form.members, cells, form.pins)
            .map_err(D::Error::custom)?;
        if ring.digest() != form.digest {
            return Err(D::Error::custom(format!(
                "digest: {} is written, {} is right",
                form.digest,
                ring.digest()
            )));
        }
        Ok(ring)
    }
}

fn cells(options: &Options, assignment: &[Vec<u32>]) -> Result<Vec<Node>, &'static str> {
    let (slots, replication) = (options.slots as usize, usize::from(options.replication));
    let mut cells = alloc::vec![NONE; slots * replication];
    let mut slot = 0;
    for run in assignment {
        let (&count, nodes) = run.split_first().ok_or("assignment: an empty run")?;
        if count == 0 || count as usize > slots - slot || nodes.len() > replication {
            return Err("assignment: a run of no slots, beyond the last slot, or with too many nodes");
        }
        let end = slot + count as usize;
        for (column, &node) in nodes.iter().enumerate() {
            let node = Node::try_from(node).map_err(|_| "assignment: a node that is not a member")?;
            cells[column * slots + slot..column * slots + end].fill(node);
        }
        slot = end;
    }
    if slot == slots {
        Ok(cells)
    } else {
        Err("assignment: it ends before the last slot")
    }
}
