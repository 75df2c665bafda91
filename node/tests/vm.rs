//! A node in a machine with a kernel of its own: the whole path, from `init` to a service that answers.
//!
//! Needs QEMU and a kernel with its modules; skipped without them. See `rswarm_chaos::vm`.

use rswarm_chaos::vm::{self, Kernel, Machine, NEEDED};
use std::process::ExitCode;
use std::time::Duration;

/// Where the processor is emulated, all of it takes its time.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    if let Some(code) = vm::dispatch() {
        return code;
    }
    const CLAIM: &str = "a_distributions_own_kernel_carries_a_node";
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        println!("{CLAIM}: test");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    if !filters.is_empty() && !filters.iter().any(|filter| CLAIM.contains(filter.as_str())) {
        return ExitCode::SUCCESS;
    }
    if let Some(why) = vm::missing() {
        eprintln!("skipped: {why}");
        return ExitCode::SUCCESS;
    }
    match demo() {
        Ok(()) => {
            println!("test {CLAIM} ... ok");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("test {CLAIM} ... FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

/// `lab up --demo` ends well only once the service has answered.
fn demo() -> Result<(), String> {
    let words = |error: anyhow::Error| format!("{error:#}");
    let kernel = Kernel::find().map_err(words)?;
    println!("a machine with Linux {}:", kernel.release);
    let machine = Machine {
        kernel,
        init: std::env::current_exe().map_err(|error| error.to_string())?,
        programs: vec![(env!("CARGO_BIN_EXE_rswarm").into(), "rswarm".into())],
        modules: NEEDED.map(str::to_owned).to_vec(),
        command: ["/bin/rswarm", "lab", "up", "--nodes", "1", "--demo"].map(str::to_owned).to_vec(),
        memory_mib: 3072,
        cpus: 2,
    };
    let ran = machine.run(PATIENCE, |line| println!("  {line}")).map_err(words)?;
    if ran.code == 0 && ran.console.contains("answers at http://") {
        return Ok(());
    }
    Err(format!("`rswarm lab up` ended with {}", ran.code))
}
