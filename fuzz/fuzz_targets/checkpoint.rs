#![no_main]

#[path = "../../microdb/tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|data: &[u8]| support::targets::run("checkpoint", data));
