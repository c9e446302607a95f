//! Runs all inputs in the corpora of the engine's fuzz targets, and in their folders of
//! `fuzz/artifacts` if these exist.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::fs;
use std::path::Path;

use crate::support::targets::TARGETS;

#[test]
fn every_kept_input_of_every_fuzz_target_passes() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (name, target) in TARGETS {
        let corpus = fuzz.join("corpus").join(name);
        let kept = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
        let found = fs::read_dir(fuzz.join("artifacts").join(name))
            .into_iter()
            .flatten();
        let mut count = 0;
        for entry in kept.chain(found).map(Result::unwrap) {
            println!("{}", entry.path().display());
            target(&fs::read(entry.path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }
}
