//! A manager's snapshot as it is found on disk.
#![no_main]

fn run(bytes: &[u8]) {
    thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir_in("/dev/shm").expect("room"));
    DIR.with(|dir| rswarm_raft::fuzz::snapshot(dir.path(), bytes));
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));
