//! Most integration tests of the engine, in one binary, so that the crate is linked only once.
//!
//! - Most files in this folder are modules: `cargo test -p imt-microdb --test main recovery::`.
//! - A test with an effect on the whole process runs in a second process ([`support::other`]), or
//!   its file is a separate binary. `Cargo.toml` lists these binaries with the reason.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

mod api;
mod backups;
mod beside;
mod block_log;
mod clean_close;
mod concurrency;
mod corpus;
mod could_not_begin;
mod digest;
mod disk_model;
mod examples;
mod faults;
mod full_disk;
mod golden;
mod heal;
mod identity;
mod identity_campaign;
mod isolation;
mod kill;
mod many_tables;
mod model;
mod opening;
mod package;
mod power_cut;
mod real_disk;
mod recovery;
mod salvage;
mod space;
mod stray_files;
mod support;
mod system;
mod transactions;
mod typed;
mod typed_api;

/// Every test file must be a module of this binary or a binary in `Cargo.toml`. Otherwise its tests
/// would never run.
#[test]
fn every_test_file_is_part_of_a_binary() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (main, manifest) = (include_str!("main.rs"), include_str!("../Cargo.toml"));
    for entry in std::fs::read_dir(folder.join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_here = main.contains(&format!("\nmod {name};\n"));
        let is_own = manifest.contains(&format!("path = \"tests/{name}.rs\""));
        assert!(is_here != is_own || name == "main", "{}", path.display());
    }
}
