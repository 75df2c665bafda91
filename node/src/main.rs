//! The command `rswarm`.

use std::process::ExitCode;

/// A manager is many threads that make and drop small things: with the allocator of the C library, a statically linked
/// one above all, that is a sixth of what the replicated log costs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A lab's own processes change namespaces, which only a single thread may: nothing comes before them.
    if let Some(code) = rswarm_chaos::lab::dispatch() {
        return code;
    }
    rswarm::cli::main()
}
