//! A node in a machine with a kernel of its own: the whole path, from `init` to a service that answers; and what is
//! left when the machine loses its power.
//!
//! Needs QEMU and a kernel with its modules; skipped without them. See `rswarm_chaos::vm`.

#[path = "vm/power.rs"]
mod power;

use rswarm_chaos::vm::{self, Kernel, Machine, NEEDED};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Where the processor is emulated, all of it takes its time.
const PATIENCE: Duration = Duration::from_secs(600);

type Claim = (&'static str, fn() -> Result<(), String>);

const CLAIMS: [Claim; 2] = [
    ("a_distributions_own_kernel_carries_a_node", demo),
    ("a_manager_that_loses_power_has_lost_nothing_it_acknowledged", power::cut),
];

fn main() -> ExitCode {
    if let Some(code) = vm::dispatch() {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == [power::INSIDE] {
        return power::inside();
    }
    let list = args.iter().any(|arg| arg == "--list");
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let asked =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let mut code = ExitCode::SUCCESS;
    for (name, claim) in CLAIMS.into_iter().filter(|(name, _)| asked(name)) {
        if list {
            println!("{name}: test");
            continue;
        }
        if let Some(why) = vm::missing() {
            eprintln!("skipped: {why}");
            return ExitCode::SUCCESS;
        }
        match claim() {
            Ok(()) => println!("test {name} ... ok"),
            Err(why) => {
                println!("test {name} ... FAILED: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// A machine with rswarm in it.
fn machine(command: &[&str]) -> Result<Machine, String> {
    let kernel = Kernel::find().map_err(words)?;
    println!("a machine with Linux {}:", kernel.release);
    Ok(Machine {
        kernel,
        init: this()?,
        programs: vec![(env!("CARGO_BIN_EXE_rswarm").into(), "rswarm".into())],
        modules: NEEDED.map(str::to_owned).to_vec(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        memory_mib: 3072,
        cpus: 2,
        disk: None,
    })
}

fn this() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| error.to_string())
}

fn words(error: anyhow::Error) -> String {
    format!("{error:#}")
}

/// `lab up --demo` ends well only once the service has answered.
fn demo() -> Result<(), String> {
    let machine = machine(&["/bin/rswarm", "lab", "up", "--nodes", "1", "--demo"])?;
    let ran = machine.run(PATIENCE, |line| println!("  {line}")).map_err(words)?;
    if ran.code == 0 && ran.console.contains("answers at http://") {
        return Ok(());
    }
    Err(format!("`rswarm lab up` ended with {}", ran.code))
}
