//! Test vectors for implementations in other languages. `golden/keys.txt` has keys with their
//! hashes and slots. `golden/histories.txt` has series of changes with the resulting digests.
//! `golden/ring.*` and `golden/plan.*` have a whole ring and a plan in all their forms.
//! `IMT_RING_GOLDEN=write` writes the present results instead of comparing them. Rings in use
//! depend on these results, so no line of the files may change.
#![allow(clippy::unwrap_used)] // A failed step should end the test at its line.

use std::fmt::Write as _;
use std::path::Path;

use imt_ring::{KeyHash, Member, Options, Ring, Slot};

fn compare(name: &str, content: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var("IMT_RING_GOLDEN").as_deref() == Ok("write") {
        std::fs::write(&path, content).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(content, expected, "golden/{name}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Returns keys of all lengths at which a hash function switches to another algorithm, and some
/// realistic keys.
fn keys() -> Vec<Vec<u8>> {
    let lengths = [
        0, 1, 3, 4, 8, 9, 16, 17, 20, 32, 64, 65, 96, 128, 129, 200, 240, 241, 256, 1024, 1025, 4096,
    ];
    let pattern = |length: usize| (0..length).map(|index| (index * 7 + length) as u8).collect();
    let real = ["17", "order 17", "store-200", "Ωmega", "\0"];
    lengths
        .into_iter()
        .map(pattern)
        .chain(real.map(|key| key.as_bytes().to_vec()))
        .collect()
}

#[test]
fn keys_hash_to_the_golden_slots() {
    let mut out = String::from(
        "# algorithm seed-or-key key hash slot-of-16 slot-of-16384 slot-of-65536; all but slots in hexadecimal\n",
    );
    let secret: [u8; 16] = core::array::from_fn(|index| index as u8);
    let hashes = [
        KeyHash::Xxh3 { seed: 0 },
        KeyHash::Xxh3 {
            seed: 0x0123_4567_89AB_CDEF,
        },
        KeyHash::SipHash13 { key: [0; 16] },
        KeyHash::SipHash13 { key: secret },
    ];
    for hash in hashes {
        let rings = [16, 16_384, 65_536]
            .map(|slots| Ring::bootstrap([], Options::new().slots(slots).key_hash(hash)).unwrap());
        for key in keys() {
            let label = match hash {
                KeyHash::Xxh3 { seed } => format!("xxh3-64 {seed:016x}"),
                KeyHash::SipHash13 { key } => format!("siphash-1-3 {}", hex(&key)),
            };
            let [a, b, c] = rings.each_ref().map(|ring| ring.slot_of(&key));
            let text = if key.is_empty() {
                "-".to_string()
            } else {
                hex(&key)
            };
            writeln!(out, "{label} {text} {:016x} {a} {b} {c}", hash.hash(&key)).unwrap();
        }
    }
    compare("keys.txt", &out);
}

#[test]
fn histories_lead_to_the_golden_digests() {
    let mut out = String::from("# replicas, then after each step: what was done, moved, minimum, digest\n");
    for replication in [1, 2, 3] {
        let options = Options::new().slots(256).replication(replication);
        let member = |text: &str| text.parse::<Member>().unwrap();
        let mut ring = Ring::bootstrap(
            ["paris:2@fr", "lyon@fr", "bonn@de", "rome@it"].map(member),
            options,
        )
        .unwrap();
        let mut note = |what: &str, moved: u32, minimum: u32, ring: &Ring| {
            writeln!(
                out,
                "{replication} {what:<16} {moved:>4} {minimum:>4} {}",
                ring.digest()
            )
            .unwrap();
        };
        note("bootstrap", 0, 0, &ring);
        for step in [
            "+milan@it",
            "+berlin:3@de",
            "-paris",
            "pin 7 rome",
            "+rome:2@it",
            "double",
            "unpin 14",
            "-bonn",
            "+madrid",
        ] {
            let plan = match step.split_at(1) {
                ("+", joiner) => ring.plan_join(member(joiner)),
                ("-", leaver) => ring.plan_leave(&leaver.parse().unwrap()),
                ("p", _) => ring.pin(Slot(7), &"rome".parse().unwrap()),
                ("u", _) => ring.unpin(Slot(14)),
                _ => {
                    ring = ring.double().unwrap();
                    note(step, 0, 0, &ring);
                    continue;
                }
            };
            let plan = plan.unwrap();
            ring = ring.apply(&plan).unwrap();
            note(step, plan.moved, plan.minimum, &ring);
        }
    }
    compare("histories.txt", &out);
}

#[test]
fn a_golden_ring_is_written_as_ever_and_read_back() {
    let secret: [u8; 16] = core::array::from_fn(|index| index as u8 + 1);
    let members = ["paris:2@fr", "lyon@fr", "bonn@de", "rome:0"].map(|text| text.parse::<Member>().unwrap());
    let options = Options::new()
        .slots(16)
        .replication(2)
        .key_hash(KeyHash::SipHash13 { key: secret });
    let ring = Ring::bootstrap(members, options).unwrap();
    let ring = ring
        .apply(&ring.pin(Slot(3), &"rome".parse().unwrap()).unwrap())
        .unwrap();
    let bytes = ring.encode();
    let lines: Vec<String> = bytes.chunks(16).map(hex).collect();
    compare("ring.hex", &(lines.join("\n") + "\n"));
    assert_eq!(Ring::decode(&bytes).unwrap(), ring);
    compare(
        "ring.json",
        &(serde_json::to_string_pretty(&ring).unwrap() + "\n"),
    );
    assert_eq!(
        serde_json::from_str::<Ring>(&serde_json::to_string(&ring).unwrap()).unwrap(),
        ring
    );
    compare("ring.txt", &format!("{ring}"));
    let plan = ring.plan_leave(&"lyon".parse().unwrap()).unwrap();
    compare(
        "plan.json",
        &(serde_json::to_string_pretty(&plan).unwrap() + "\n"),
    );
    compare("plan.txt", &format!("{plan}"));
}
