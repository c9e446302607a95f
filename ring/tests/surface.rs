//! Tests of the public interface: text forms of members and small types, errors, pins, drawings.
#![allow(clippy::unwrap_used)] // A failed step should end the test at its line.

use std::error::Error as _;

use imt_ring::render::{self, Style};
use imt_ring::{
    Digest, Epoch, Error, KeyHash, Member, NodeName, Options, Ring, Role, Slot, SlotRange, ZoneName,
};

fn ring(replication: u8, members: &[&str]) -> Ring {
    let members = members.iter().map(|text| text.parse::<Member>().unwrap());
    Ring::bootstrap(members, Options::new().slots(64).replication(replication)).unwrap()
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

#[test]
fn members_are_read_and_written_as_text() {
    for (text, written) in [
        ("a", "a:1"),
        ("a:7", "a:7"),
        ("a@z", "a:1@z"),
        ("a-1.b_c:0@z", "a-1.b_c:0@z"),
    ] {
        let member: Member = text.parse().unwrap();
        assert_eq!(member.to_string(), written);
        assert_eq!(written.parse::<Member>().unwrap(), member);
        let json = serde_json::to_string(&member).unwrap();
        assert_eq!(serde_json::from_str::<Member>(&json).unwrap(), member);
    }
    let long = "x".repeat(64);
    for text in [
        "",
        ":1",
        "a:",
        "a:x",
        "a:-1",
        "a:1000001",
        "a@",
        "a@b@c",
        "-a",
        ".a",
        "a b",
        "é",
        &long,
    ] {
        assert!(text.parse::<Member>().is_err(), "{text:?}");
    }
    assert_eq!(
        serde_json::from_str::<Member>(r#"{"name":"a"}"#).unwrap(),
        Member::new("a").unwrap()
    );
    assert!(serde_json::from_str::<Member>(r#"{"name":"a","weight":2000000}"#).is_err());
    let zone = ZoneName::new("z").unwrap();
    assert_eq!(
        (zone.as_ref(), zone == "z", format!("{zone:?}")),
        ("z", true, "\"z\"".to_string())
    );
    assert!(zone == *"z" && Member::new("a").unwrap().with_zone("z").unwrap().zone() == Some(&zone));
}

#[test]
fn every_error_says_what_is_wrong_and_what_would_be_right() {
    let one = ring(1, &["a"]);
    let of = |result: Result<Ring, Error>| result.unwrap_err().to_string();
    let members = |list: &[&str]| {
        list.iter()
            .map(|text| text.parse::<Member>().unwrap())
            .collect::<Vec<_>>()
    };
    assert!(of(Ring::bootstrap([], Options::new().slots(17))).contains("power of two from 16 to 65536"));
    assert!(of(Ring::bootstrap([], Options::new().slots(8))).contains("8 slots"));
    assert!(of(Ring::bootstrap([], Options::new().replication(0))).contains("from 1 to 8"));
    assert!(of(Ring::bootstrap(members(&["a", "a:2"]), Options::new())).contains("a is there twice"));
    assert!(of(Ring::bootstrap(members(&["a:0"]), Options::new())).contains("weight above 0"));
    let many = (0..=imt_ring::MEMBERS_MAX).map(|index| Member::new(format!("n{index}")).unwrap());
    assert!(of(Ring::bootstrap(many, Options::new())).contains("at most 16384"));
    assert!(
        one.plan(&[])
            .unwrap_err()
            .to_string()
            .contains("before the last leaves")
    );
    assert!(
        one.plan_leave(&name("b"))
            .unwrap_err()
            .to_string()
            .contains("b is not a member")
    );
    assert!(one.plan_leave(&name("a")).is_err());
    assert!(
        one.pin(Slot(64), &name("a"))
            .unwrap_err()
            .to_string()
            .contains("slots 0 to 63")
    );
    assert!(
        one.pin(Slot(0), &name("b"))
            .unwrap_err()
            .to_string()
            .contains("not a member")
    );
    assert!(one.unpin(Slot(64)).is_err() && one.replicas(Slot(64), 1).is_err());
    assert!(
        Member::new("a b")
            .unwrap_err()
            .to_string()
            .contains("ASCII letters")
    );
    assert!(
        "a:x"
            .parse::<Member>()
            .unwrap_err()
            .to_string()
            .contains("0 to 1000000")
    );
    assert!(
        Error::Empty.to_string().contains("no members")
            && Error::EpochsExhausted.to_string().contains("last")
    );
    let plan = one.plan(&members(&["a", "b"])).unwrap();
    let next = one.apply(&plan).unwrap();
    assert!(
        next.apply(&plan)
            .unwrap_err()
            .to_string()
            .contains("from epoch 1, the ring is at epoch 2")
    );
    assert!(
        ring(1, &["b"])
            .apply(&plan)
            .unwrap_err()
            .to_string()
            .contains("digest")
    );
    let mut forged = plan.clone();
    forged.to_digest = Digest(1);
    assert!(
        one.apply(&forged)
            .unwrap_err()
            .to_string()
            .contains("promises the ring 0000")
    );
    for forge in [
        |plan: &mut imt_ring::Plan| plan.moves[0].from = Some("c".parse().unwrap()),
        |plan: &mut imt_ring::Plan| plan.moves[0].from = Some("b".parse().unwrap()),
        |plan: &mut imt_ring::Plan| plan.moves[0].role = Role::Copy(1),
        |plan: &mut imt_ring::Plan| plan.moves[0].to = None,
        |plan: &mut imt_ring::Plan| plan.pins = vec![Slot(3), Slot(3)],
        |plan: &mut imt_ring::Plan| plan.pins = vec![Slot(64)],
    ] {
        let mut forged = plan.clone();
        forge(&mut forged);
        assert!(!one.apply(&forged).unwrap_err().to_string().is_empty());
    }
    let damaged = Ring::decode(b"IMT-RING").unwrap_err();
    assert!(damaged.to_string().contains("not a readable ring"));
    assert!(
        damaged
            .source()
            .unwrap()
            .to_string()
            .contains("version at byte 8")
    );
    assert!(Error::Empty.source().is_none());
}

#[test]
fn a_pin_holds_until_it_is_taken_off() {
    for replication in 1..=3 {
        let ring = ring(replication, &["a@x", "b@x", "c@y", "d@z"]);
        for slot in (0..64).step_by(7).map(Slot) {
            for member in ring.members() {
                let plan = ring.pin(slot, member.name()).unwrap();
                assert_eq!(plan.moved, plan.minimum);
                assert!(plan.moves.iter().all(|step| step.slots
                    == SlotRange {
                        first: slot,
                        last: slot
                    }));
                let pinned = ring.apply(&plan).unwrap();
                assert_eq!(pinned.owner(slot).unwrap(), member.name());
                assert_eq!(pinned.pins(), [slot]);
                let other = ring.members().iter().find(|other| *other != member).unwrap();
                let fewer = pinned.apply(&pinned.plan_leave(other.name()).unwrap()).unwrap();
                assert_eq!(fewer.owner(slot).unwrap(), member.name());
                let drained = member.clone().with_weight(0).unwrap();
                let drained = pinned.apply(&pinned.plan_join(drained).unwrap()).unwrap();
                assert_eq!(drained.slots_of(member.name()).collect::<Vec<_>>(), [slot]);
                let freed = drained.apply(&drained.unpin(slot).unwrap()).unwrap();
                let freed = freed.apply(&freed.plan(freed.members()).unwrap()).unwrap();
                assert_eq!(freed.slots_of(member.name()).count(), 0);
                let gone = pinned.apply(&pinned.plan_leave(member.name()).unwrap()).unwrap();
                assert_eq!(gone.pins(), []);
                assert_eq!(
                    pinned.double().unwrap().pins(),
                    [Slot(slot.0 * 2), Slot(slot.0 * 2 + 1)]
                );
            }
        }
    }
}

#[test]
fn pictures_keep_to_their_width_and_show_everyone() {
    let big: Vec<String> = (0..60)
        .map(|index| format!("node-{index}:{}@zone-{}", index % 3, index % 5))
        .collect();
    let big: Vec<&str> = big.iter().map(String::as_str).collect();
    for (replication, members) in [
        (1, &["a"][..]),
        (1, &[]),
        (2, &["a:3@x", "b@x", "c@y"]),
        (3, &big),
    ] {
        let ring = ring(replication, members);
        for width in [0, 40, 80, 200] {
            let text = render::show(&ring, Style { width, colour: false });
            // Columns of names and numbers are never cut, so the narrowest drawings may exceed the
            // requested width.
            assert!(
                width < 80 || text.lines().all(|line| line.chars().count() <= width),
                "{text}"
            );
            assert!(
                ring.members()
                    .iter()
                    .all(|member| text.contains(member.name().as_str()))
            );
            let coloured = render::show(&ring, Style { width, colour: true });
            assert_eq!(coloured.contains("\x1b["), !members.is_empty());
            let plan = ring.plan_join("new@x".parse().unwrap()).unwrap();
            let text = render::plan(&plan, Style { width, colour: false });
            assert!(
                width < 80 || text.lines().all(|line| line.chars().count() <= width),
                "{text}"
            );
            assert!(text.contains("new") && !plan.moves[0].to_string().is_empty());
        }
    }
    let ring = ring(1, &["a", "b"]);
    let same = ring.plan(ring.members()).unwrap();
    assert!(same.is_empty() && same.to_string().contains("nothing moves"));
    let pinned = ring
        .apply(&ring.pin(ring.slot_of(b"k\n"), &name("a")).unwrap())
        .unwrap();
    let places = pinned.places(&["k\n", "other"]);
    let table = render::places(&places);
    assert!(table.contains("k\\n") && table.contains("a (pinned)"), "{table}");
    assert!(
        serde_json::to_string(&places)
            .unwrap()
            .contains("\"pinned\":true")
    );
    assert!(render::places(&self::ring(1, &[]).places(&["k"])).contains("nobody"));
    assert!(
        serde_json::to_string(&pinned.shares())
            .unwrap()
            .contains("primaries")
    );
    assert!(
        serde_json::to_string(&pinned.zone_shares())
            .unwrap()
            .contains("nodes")
    );
    assert!(format!("{pinned:?}").contains("digest"));
    let secret = Ring::bootstrap(
        [],
        Options::default().key_hash(KeyHash::SipHash13 { key: [1; 16] }),
    )
    .unwrap();
    assert!(secret.to_string().contains("siphash-1-3"));
}

#[test]
fn small_types_read_back_what_they_write() {
    for role in [Role::Primary, Role::Copy(1), Role::Copy(7)] {
        assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
        let json = serde_json::to_string(&role).unwrap();
        assert_eq!(serde_json::from_str::<Role>(&json).unwrap(), role);
    }
    for text in ["copy-0", "copy-", "copy-300", "owner"] {
        assert!(text.parse::<Role>().unwrap_err().to_string().contains("copy-1"));
    }
    let digest = ring(1, &["a"]).digest();
    assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    assert!("0".parse::<Digest>().unwrap_err().to_string().contains("32"));
    assert_eq!(format!("{digest:?}"), digest.to_string());
    let range = SlotRange {
        first: Slot(3),
        last: Slot(5),
    };
    assert_eq!(
        (range.to_string(), range.count(), range.iter().count()),
        ("3-5".to_string(), 3, 3)
    );
    assert_eq!(
        (Epoch(4).to_string(), Slot(4).to_string()),
        ("4".to_string(), "4".to_string())
    );
    assert_eq!(KeyHash::default(), KeyHash::Xxh3 { seed: 0 });
}
