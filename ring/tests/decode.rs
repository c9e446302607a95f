//! Tests that decoding refuses bytes with a correct digest and wrong content, as a faulty or
//! hostile program could write them. The error must name the wrong field. A ring as JSON is tested
//! likewise. The encoding, with its columns and runs, is described in `src/encode.rs`.
#![allow(clippy::unwrap_used)] // A failed step should end the test at its line.

use imt_ring::{Error, Member, Options, Ring, Slot};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

/// Returns a ring of 16 slots and 2 replicas with the members `a` (zone `z`) and `b`. Slot 3 is
/// pinned.
fn ring() -> Ring {
    let members = ["a@z", "b"].map(|text| text.parse::<Member>().unwrap());
    let ring = Ring::bootstrap(members, Options::new().slots(16).replication(2)).unwrap();
    let owner = ring.owner(Slot(3)).unwrap().clone();
    ring.apply(&ring.pin(Slot(3), &owner).unwrap()).unwrap()
}

/// Encodes [`ring`], changes the bytes, and corrects length and digest.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = ring().encode();
    bytes.truncate(bytes.len() - 16);
    change(&mut bytes);
    let length = (bytes.len() + 16) as u32;
    bytes[20..24].copy_from_slice(&length.to_le_bytes());
    seal(bytes)
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = xxh3_128(&bytes);
    bytes.extend_from_slice(&digest.to_le_bytes());
    bytes
}

#[track_caller]
fn refused(field: &str, change: impl FnOnce(&mut Vec<u8>)) {
    match Ring::decode(&changed(change)) {
        Err(Error::Decode(error)) => {
            assert_eq!(error.field, field, "{error}");
            assert!(error.to_string().contains(field));
        }
        other => panic!("{field}: {other:?}"),
    }
}

// Offsets in the bytes of `ring`. Two members of 8 and 7 bytes follow the header, then one pin,
// then two columns without runs, which have a node for each slot.
const FIRST_MEMBER: usize = 48;
const SECOND_MEMBER: usize = FIRST_MEMBER + 1 + 1 + 4 + 1 + 1;
const PIN: usize = SECOND_MEMBER + 1 + 1 + 4 + 1;
const FIRST_COLUMN: usize = PIN + 4;

#[test]
fn unchanged_bytes_are_accepted() {
    assert_eq!(Ring::decode(&changed(|_| {})).unwrap(), ring());
}

#[test]
fn each_wrong_field_is_named() {
    refused("magic", |bytes| bytes[0] = b'X');
    refused("version", |bytes| bytes[8] = 2);
    refused("options", |bytes| bytes[10] = 3);
    refused("options", |bytes| bytes[10] = 200);
    refused("options", |bytes| bytes[11] = 9);
    refused("options", |bytes| bytes[11] = 0);
    refused("key hash", |bytes| bytes[12] = 3);
    refused("reserved", |bytes| bytes[13] = 1);
    refused("length", |bytes| bytes[14..16].fill(0xFF));
    refused("length", |bytes| bytes[16..20].fill(0xFF));
    refused("hash key", |bytes| bytes[47] = 1);
    refused("member name", |bytes| bytes[FIRST_MEMBER + 1] = b'/');
    refused("member name", |bytes| bytes[FIRST_MEMBER + 1] = 0xFF);
    refused("member name", |bytes| bytes[FIRST_MEMBER + 1] = b'c');
    refused("member name", |bytes| bytes[SECOND_MEMBER + 1] = b'a');
    refused("member name", |bytes| bytes[FIRST_MEMBER] = 255);
    refused("member weight", |bytes| bytes[FIRST_MEMBER + 5] = 0xFF);
    refused("member zone", |bytes| bytes[FIRST_MEMBER + 7] = b' ');
    refused("assignment", |bytes| {
        // Sets the weights of both members to 0.
        bytes[FIRST_MEMBER + 2] = 0;
        bytes[SECOND_MEMBER + 2] = 0;
    });
    refused("assignment", |bytes| bytes[PIN] = 16);
    refused("digest", |bytes| bytes.push(0));
    refused("nodes", |bytes| bytes.truncate(bytes.len() - 1));
    refused("pinned slot", |bytes| bytes.truncate(PIN + 2));
    refused("number of runs", |bytes| bytes.truncate(FIRST_COLUMN + 1));
}

#[test]
fn a_wrong_assignment_is_refused() {
    let cell = |column: usize, slot: usize| FIRST_COLUMN + column * (4 + 32) + 4 + slot * 2;
    refused("assignment", |bytes| bytes[cell(0, 5)] = 2);
    refused("assignment", |bytes| bytes[cell(1, 5)] = 2);
    refused("assignment", |bytes| bytes[cell(0, 5)..][..2].fill(0xFF));
    refused("assignment", |bytes| {
        let primary = bytes[cell(0, 5)];
        bytes[cell(1, 5)] = primary;
    });
}

#[test]
fn a_gap_between_copies_is_refused() {
    let members = ["a", "b", "c"].map(|text| text.parse::<Member>().unwrap());
    let ring = Ring::bootstrap(members, Options::new().slots(16).replication(3)).unwrap();
    let mut bytes = ring.encode();
    bytes.truncate(bytes.len() - 16);
    // Three columns without runs are at the end. The first cell of the second column becomes empty.
    // So slot 0 has a primary and a second copy, but no first copy.
    let first_copy = bytes.len() - 2 * (4 + 32) + 4;
    bytes[first_copy..][..2].fill(0xFF);
    let error = Ring::decode(&seal(bytes)).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("its replicas have a gap"), "{source}");
}

#[test]
fn runs_that_do_not_fill_a_column_are_refused() {
    let runs = |runs: &[(u32, u16)]| {
        let mut column = (runs.len() as u32).to_le_bytes().to_vec();
        for (length, node) in runs {
            column.extend_from_slice(&length.to_le_bytes());
            column.extend_from_slice(&node.to_le_bytes());
        }
        move |bytes: &mut Vec<u8>| {
            let second = bytes.split_off(FIRST_COLUMN + 4 + 32);
            bytes.truncate(FIRST_COLUMN);
            bytes.extend_from_slice(&column);
            bytes.extend_from_slice(&second);
        }
    };
    refused("run length", runs(&[(17, 0)]));
    refused("run length", runs(&[(16, 0), (1, 1)]));
    refused("run length", runs(&[(0, 0), (16, 1)]));
    refused("number of runs", runs(&[(15, 0)]));
    // In the column `single`, each slot is a run of its own. Such a column is longer than a column
    // without runs, and equal neighbouring runs are not joined. A ring has only one valid encoding,
    // so the column is refused.
    let ring = ring();
    let owners: Vec<u16> = (0..16)
        .map(|slot| u16::from(ring.owner(Slot(slot)).unwrap() == &ring.members()[1].name().clone()))
        .collect();
    let single: Vec<(u32, u16)> = owners.iter().map(|&owner| (1, owner)).collect();
    refused("assignment", runs(&single));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    /// Changed bytes with a corrected digest are refused, or decode to a ring to which the plans
    /// made from it can be applied.
    #[test]
    fn forged_bytes_are_refused_or_a_ring(edits in prop::collection::vec((any::<u16>(), 0u8..6), 1..8)) {
        let members = ["a@x", "b@x", "c:2@y", "d", "e:0"].map(|text| text.parse::<Member>().unwrap());
        let ring = Ring::bootstrap(members, Options::new().slots(16).replication(3)).unwrap();
        let mut bytes = ring.encode();
        bytes.truncate(bytes.len() - 16);
        for (place, value) in edits {
            // The columns with a member for each slot are the largest part behind the header, so
            // most changes are in the columns. In the low byte of a cell, the values 0 to 4 are
            // indexes of the five members, so that many changed rings are valid.
            let index = FIRST_MEMBER + usize::from(place) % (bytes.len() - FIRST_MEMBER);
            bytes[index] = if value == 5 { 0xFF } else { value };
        }
        let bytes = seal(bytes);
        if let Ok(forged) = Ring::decode(&bytes) {
            prop_assert_eq!(forged.encode(), bytes);
            for plan in [forged.plan_join("f@z".parse().unwrap()), forged.plan_leave(forged.members()[0].name())] {
                let Ok(plan) = plan else { continue };
                let next = forged.apply(&plan).unwrap();
                prop_assert_eq!(next.digest(), plan.to_digest);
                prop_assert!((0..16).all(|slot| next.owner(Slot(slot)).is_ok()));
            }
        }
    }
}

#[test]
fn bytes_too_short_for_anything_are_refused() {
    for length in 0..60 {
        let bytes = seal(ring().encode()[..length].to_vec());
        assert!(matches!(Ring::decode(&bytes), Err(Error::Decode(_))), "{length}");
    }
}

#[test]
fn json_that_is_not_a_ring_is_refused_by_what_is_wrong() {
    let good = serde_json::to_value(ring()).unwrap();
    let refused = |pointer: &str, value: serde_json::Value, says: &str| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        let error = serde_json::from_value::<Ring>(bad).unwrap_err().to_string();
        assert!(error.contains(says), "{pointer}: {error}");
    };
    refused("/format", 2.into(), "format");
    refused("/digest", "0".repeat(32).into(), "digest");
    refused("/digest", "xyz".into(), "32 hexadecimal digits");
    refused("/slots", 17.into(), "power of two");
    refused("/replication", 9.into(), "replicas");
    refused("/key_hash/algorithm", "md5".into(), "algorithm");
    refused("/key_hash/seed", "12".into(), "seed");
    refused("/key_hash/seed", "+000000000000001".into(), "seed");
    refused("/members/0/name", "a/b".into(), "name");
    refused("/members/0/name", "z".into(), "members");
    refused("/members/0/weight", 2_000_000.into(), "weight");
    refused("/pins/0", 99.into(), "slot 99");
    refused("/pins", serde_json::json!([3, 3]), "not in order");
    refused("/assignment/0", serde_json::json!([]), "assignment");
    refused("/assignment/0", serde_json::json!([0, 0, 1]), "assignment");
    refused("/assignment/0", serde_json::json!([17, 0, 1]), "assignment");
    refused("/assignment/0", serde_json::json!([1, 70_000]), "assignment");
    refused("/assignment/0", serde_json::json!([1, 7]), "not a member");
    refused("/assignment", serde_json::json!([[1, 0, 1]]), "assignment");
    let text = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<Ring>(&text).unwrap(), ring());
    let extra = text.replacen('{', "{\"more\":1,", 1);
    assert!(serde_json::from_str::<Ring>(&extra).is_err());
}
