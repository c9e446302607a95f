//! All integration tests of the ring, in one binary, so that the crate is linked only once.
//!
//! Each file beside this one is a module. The tests of one module run with `cargo test -p imt-ring
//! --test main golden::`.

#![allow(clippy::unwrap_used)] // A failed step should end the test at its line.

mod decode;
mod golden;
mod properties;
mod replicas;
mod single;
mod surface;

/// Every test file must be a module of this binary, because otherwise its tests would never run.
#[test]
fn every_test_file_is_part_of_this_binary() {
    let main = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            main.contains(&format!("\nmod {name};\n"))
                || name == "main"
                || path.extension() != Some("rs".as_ref()),
            "{}",
            path.display()
        );
    }
}
