//! A packet of a container, as the kernel hands it over.
#![no_main]

#[path = "../../netoverlay/tests/hostile/mod.rs"]
#[allow(dead_code, reason = "each target uses one of them")]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::packet(bytes));
