//! The command `rswarm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A lab's own processes change namespaces, which only a single thread may: nothing comes before them.
    if let Some(code) = rswarm_chaos::lab::dispatch() {
        return code;
    }
    rswarm::cli::main()
}
