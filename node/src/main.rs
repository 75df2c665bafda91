//! The command `rswarm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rswarm::cli::main()
}
