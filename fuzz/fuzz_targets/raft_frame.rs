//! What another manager says.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rswarm_raft::fuzz::frame(bytes));
