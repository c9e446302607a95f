//! Tests that run the binary `imt` as a process. All are in one test binary, so that a build links
//! only once.
//!
//! `cargo test -p imt --test cli MODULE::` runs the tests of one module.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop where it stands"
)]
#![allow(unreachable_pub, reason = "shared by modules of one test binary")]

mod support;

mod agreement;
mod audit;
mod cli_output;
mod config;
mod console;
mod contexts;
mod db;
mod db_shell;
mod db_truth;
mod documents;
mod engine;
mod engine_cut;
mod engine_faults;
mod foreign_files;
mod histories;
mod leaving;
mod lent_units;
mod live_view;
mod nodes;
mod orders;
mod otlp;
mod read_only_role;
mod routing;
mod several_volumes;
mod shop;
mod usage;

/// A file that is not declared as a module would have tests that never run.
#[test]
fn every_file_of_this_folder_is_a_module() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let listed = include_str!("main.rs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "main" {
            assert!(
                listed.contains(&format!("mod {name};\n")),
                "{name} is not listed in main.rs"
            );
            count += 1;
        }
    }
    assert!(count > 10, "{count} files were found");
}
