//! What the figures were measured on: facts without which they mean nothing.

use super::figure::Samples;
use anyhow::{Context, Result};
use std::fs;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::Instant;

/// Writes whose time is taken.
const SYNCS: usize = 50;

/// The machine, one fact a line.
pub fn facts(directory: &Path) -> Result<Vec<String>> {
    let names = nix::sys::utsname::uname().context("cannot ask for the kernel")?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let model = value_in("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let memory = value_in("/proc/meminfo", "MemTotal").unwrap_or_default();
    let sync = sync_ms(directory)?.median().unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    Ok(vec![
        format!(
            "rswarm {}, {}",
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) { "debug build" } else { "release build" }
        ),
        format!("{} {}", names.sysname().to_string_lossy(), names.release().to_string_lossy()),
        format!("{cpus} processors, {model}; memory {memory}; load {}", load.join(" ")),
        format!(
            "control groups: {}",
            control_groups(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
        ),
        format!("fdatasync of 4 KiB in {}: {sync:.2} ms (median of {SYNCS})", directory.display()),
        "every write to the log is synced before it counts; times are of one machine with all nodes on it"
            .into(),
    ])
}

/// Peers that are measured beside rswarm where they are installed, and why they were not.
pub fn peers() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find =
        |program: &str| std::env::split_paths(&path).map(|at| at.join(program)).find(|at| at.is_file());
    ["dockerd", "runc", "crun"]
        .into_iter()
        .map(|peer| match find(peer) {
            None => format!("{peer}: not measured (not installed)"),
            Some(at) => format!("{peer}: not measured by this command (found as {})", at.display()),
        })
        .collect()
}

/// How long it takes until a small write is safe, in milliseconds.
fn sync_ms(directory: &Path) -> Result<Samples> {
    let path = directory.join("sync");
    let time = || -> std::io::Result<Samples> {
        let mut file = fs::File::create(&path)?;
        let page = [7; 4096];
        let mut samples = Samples::default();
        for _ in 0..SYNCS {
            file.rewind()?;
            let began = Instant::now();
            file.write_all(&page)?;
            file.sync_data()?;
            samples.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(samples)
    };
    let samples = time().with_context(|| format!("cannot write {}", path.display()));
    let _ = fs::remove_file(&path);
    samples
}

fn value_in(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Which versions are mounted, by `/proc/self/mountinfo`.
fn control_groups(table: &str) -> &'static str {
    let kind =
        |line: &str| line.split_once(" - ").and_then(|(_, right)| right.split(' ').next().map(str::to_owned));
    let has = |wanted: &str| table.lines().any(|line| kind(line).as_deref() == Some(wanted));
    match (has("cgroup"), has("cgroup2")) {
        (false, true) => "v2",
        (true, true) => "hybrid (v1 controllers beside v2)",
        (true, false) => "v1",
        (false, false) => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_control_groups_is_read_from_the_mounts() {
        let v1 = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let v2 = "31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(control_groups(&format!("{v1}{v2}")), "hybrid (v1 controllers beside v2)");
        assert_eq!(control_groups(v2), "v2");
        assert_eq!(control_groups(v1), "v1");
        assert_eq!(control_groups("22 1 0:5 / / rw - ext4 /dev/vda rw\n"), "none");
    }

    #[test]
    fn a_sync_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(sync_ms(directory.path()).unwrap().count(), SYNCS);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
