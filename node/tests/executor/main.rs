//! Real containers, of which this program itself, being static, is the image: the executor's claims are asserted
//! from inside and from outside. Run without rights it says so and does nothing.

mod adoption;
mod bench;
mod beside;
mod ends;
mod files;
mod inside;
mod leaks;
mod limits;
mod logs;
mod profile;
mod runtime;
mod starts;
mod streams;
mod users;

use bench::{Bench, Claim, PATIENCE, claims};
use std::process::ExitCode;
use std::time::Instant;

/// In this order.
const THEMES: [&[Claim]; 13] = [
    starts::CLAIMS,
    ends::CLAIMS,
    logs::CLAIMS,
    adoption::CLAIMS,
    limits::CLAIMS,
    profile::CLAIMS,
    files::CLAIMS,
    beside::CLAIMS,
    streams::CLAIMS,
    users::CLAIMS,
    leaks::CLAIMS,
    runtime::CLAIMS,
    claims![all_this_holds_on_another_kernel_with_a_unified_hierarchy],
];

fn main() -> ExitCode {
    if let Some(code) = rswarm_chaos::vm::dispatch() {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("inside") => inside::main(&args[2..]),
        Some("starter") => adoption::starter(&args[2..]),
        Some("churn") => leaks::churn(&args[2..]),
        _ => outside(&args[1..]),
    }
}

fn claims() -> impl Iterator<Item = &'static Claim> {
    THEMES.into_iter().flatten()
}

fn outside(args: &[String]) -> ExitCode {
    if args.iter().any(|arg| arg == "--list") {
        claims().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers need root");
        return ExitCode::SUCCESS;
    }
    let exact = args.iter().any(|arg| arg == "--exact");
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| {
        let fits =
            |filter: &&String| if exact { name == filter.as_str() } else { name.contains(filter.as_str()) };
        filters.is_empty() || filters.iter().any(fits)
    };
    let mut failed = 0;
    for (name, claim) in claims().filter(|(name, _)| chosen(name)) {
        let begun = Instant::now();
        let mut bench = Bench::new();
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(&mut bench))).is_ok();
        let clean = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.clear())).is_ok();
        failed += usize::from(!held || !clean);
        let verdict = if held && clean { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} ms)", begun.elapsed().as_millis());
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The whole of this program once more, in a machine with a kernel of its own.
fn all_this_holds_on_another_kernel_with_a_unified_hierarchy(_: &mut Bench) {
    if let Some(why) = rswarm_chaos::vm::missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let kernel = rswarm_chaos::vm::Kernel::find().unwrap();
    println!("a machine with Linux {}:", kernel.release);
    let machine = rswarm_chaos::vm::Machine {
        kernel,
        init: std::env::current_exe().unwrap(),
        programs: Vec::new(),
        modules: rswarm_chaos::vm::NEEDED.map(str::to_owned).to_vec(),
        command: vec!["/init".into()],
        memory_mib: 3072,
        cpus: 2,
        disk: None,
    };
    let ran = machine.run(10 * PATIENCE, |line| println!("  {line}")).unwrap();
    assert_eq!(ran.code, 0, "claims do not hold there");
    assert!(ran.console.contains("test thirty_starts_leave_nothing ... ok"), "they were looked at");
}
