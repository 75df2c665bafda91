//! What this machine says of itself.

use crate::member::Ground;
use rswarm_control::level;
use rswarm_control::model::{Description, Resources};

/// The machine's host name.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".into())
}

/// Its means, its kind, and what does not work on it.
pub fn describe(ground: &Ground) -> Description {
    let kernel = nix::sys::utsname::uname().ok();
    Description {
        capacity: Resources { nano_cpus: cpus() * 1_000_000_000, memory_bytes: memory_bytes() },
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        kernel: kernel.map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default(),
        engine_version: env!("CARGO_PKG_VERSION").into(),
        warnings: ground.executor.limits_unenforced().map(str::to_owned).into_iter().collect(),
        labels: ground.config.labels.clone(),
        generic: ground.config.generic.clone(),
        level: level(),
    }
}

/// For tests of clusters whose daemons are of different versions: takes part as one that understands no higher level.
const LEVEL_MAX: &str = "RSWARM_LEVEL_MAX";

/// Up to which level this daemon understands the log.
fn level() -> u32 {
    let most = std::env::var(LEVEL_MAX).ok().and_then(|text| text.parse().ok());
    most.map_or(level::LATEST, |most: u32| most.clamp(level::OLDEST, level::LATEST))
}

fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64)
}

/// Has this process get no transparent huge pages: a daemon uses a little here and there, and would hold twice the
/// memory that it uses. Its children inherit this; a container's shim takes it back.
///
/// # Errors
/// If the system refuses.
pub fn without_huge_pages() -> std::io::Result<()> {
    Ok(nix::sys::prctl::set_thp_disable(true)?)
}

/// Lets this process have as many files open as it may: a leader holds a connection to every node. Containers have a
/// limit of their own.
///
/// # Errors
/// If the system refuses.
pub fn raise_file_limit() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// All the memory it has, in bytes.
pub fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
