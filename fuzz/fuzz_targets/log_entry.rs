#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imt_oms::fuzzing::run("log_entry", data));
