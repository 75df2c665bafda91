//! What this machine says of itself.

use crate::cdi::Devices;
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
    let devices = Devices::read(&ground.config.cdi_spec_dirs);
    let kernel = nix::sys::utsname::uname().ok();
    Description {
        capacity: said()
            .unwrap_or(Resources { nano_cpus: cpus() * 1_000_000_000, memory_bytes: memory_bytes() }),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        kernel: kernel.map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default(),
        engine_version: env!("CARGO_PKG_VERSION").into(),
        warnings: ground
            .executor
            .limits_unenforced()
            .map(str::to_owned)
            .into_iter()
            .chain(devices.complaints.iter().cloned())
            .collect(),
        labels: ground.config.labels.clone(),
        // What is configured by hand is meant.
        generic: devices.stocks().into_iter().chain(ground.config.generic.clone()).collect(),
        devices: devices.names(),
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

/// For nodes of a lab, which share one machine and may be told to differ: `RSWARM_LAB_CAPACITY` holds billionths of
/// processors and bytes of memory. Nothing else sets it.
fn said() -> Option<Resources> {
    read(&std::env::var("RSWARM_LAB_CAPACITY").ok()?)
}

fn read(text: &str) -> Option<Resources> {
    let (cpus, memory) = text.split_once(' ')?;
    Some(Resources { nano_cpus: cpus.parse().ok()?, memory_bytes: memory.parse().ok()? })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_that_cannot_be_read_is_that_of_the_machine() {
        let two = Resources { nano_cpus: 2_000_000_000, memory_bytes: 1 << 30 };
        assert_eq!(read("2000000000 1073741824"), Some(two));
        for nonsense in ["", "2", "2 ", "two one", "-1 5"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
