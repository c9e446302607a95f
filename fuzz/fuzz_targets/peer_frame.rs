#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imt_oms::fuzzing::run("peer_frame", data));
