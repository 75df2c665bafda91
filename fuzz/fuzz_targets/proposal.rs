//! An entry of the log.
#![no_main]

#[path = "../../proto/tests/hostile/mod.rs"]
#[allow(dead_code, reason = "each target uses one of them")]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::proposal(bytes));
