//! Threads of the replicated log's own, so that a leader is never late with its heartbeats because much else is to be
//! done. Where that is allowed they come before others, also those of other programs.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Builder, Handle, Runtime};

/// How many. One may be busy applying entries while another sends heartbeats.
const THREADS: usize = 2;
/// By how much they come before others.
const NICE: i32 = -5;

static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    let started = AtomicUsize::new(0);
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("log")
        .on_thread_start(move || {
            // Those that come later wait for the disk or write snapshots, which is not urgent.
            if started.fetch_add(1, Ordering::Relaxed) < THREADS {
                // Not everybody may.
                let _ = rustix::process::nice(NICE);
            }
        })
        .enable_all()
        .build()
});

/// Where the log is to be opened, and connections are to be made that it uses.
///
/// # Errors
/// If the threads cannot be started.
pub fn handle() -> io::Result<&'static Handle> {
    let copied = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
    RUNTIME.as_ref().map(Runtime::handle).map_err(copied)
}
