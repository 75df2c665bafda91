//! What a process uses, by what the kernel counts in `/proc`.

use anyhow::{Context, Result};
use std::fs;

/// What a process has used until now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Memory it holds in RAM, in bytes; pages shared with others count in full.
    pub rss_bytes: u64,
    /// Memory that is its own alone, in bytes.
    pub private_bytes: u64,
    /// What it has caused to be written to disk, in bytes.
    pub written_bytes: u64,
    /// Processor time, in clock ticks.
    pub ticks: u64,
}

/// What the process `pid` has used until now.
///
/// # Errors
/// If it has ended, or is another user's.
pub fn usage(pid: i32) -> Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let rollup = read("smaps_rollup")?;
    let kilobytes = |name| field(&rollup, name).with_context(|| format!("process {pid} has no {name}"));
    let io = read("io")?;
    Ok(Usage {
        rss_bytes: kilobytes("Rss")? * 1024,
        private_bytes: (kilobytes("Private_Clean")? + kilobytes("Private_Dirty")?) * 1024,
        written_bytes: field(&io, "write_bytes")
            .with_context(|| format!("process {pid} counts no writes"))?,
        ticks: ticks(&read("stat")?).with_context(|| format!("process {pid} counts no time"))?,
    })
}

/// The most memory that the process `pid` has held in RAM until now, in bytes.
///
/// # Errors
/// If it has ended.
pub fn peak_bytes(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kilobytes = field(&status, "VmHWM").with_context(|| format!("process {pid} has no VmHWM"))?;
    Ok(kilobytes * 1024)
}

/// Processor time the kernel itself has spent on packets outside of any process, in clock ticks.
pub fn soft_interrupt_ticks() -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let ticks_of = |entry: fs::DirEntry| {
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        comm.starts_with("ksoftirqd/").then_some(())?;
        ticks(&fs::read_to_string(entry.path().join("stat")).ok()?)
    };
    processes.flatten().filter_map(ticks_of).sum()
}

/// `NAME: VALUE [kB]`, one a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Time in the program and in the kernel for it, of `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(field(io, "write_bytes"), Some(4096));
        assert_eq!(field("Rss:      1564 kB\nPss: 2 kB\n", "Rss"), Some(1564));
        assert_eq!(field(io, "write"), None);
    }

    #[test]
    fn a_name_with_parentheses_confuses_nobody() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 1 0 100 1 1";
        assert_eq!(ticks(stat), Some(12));
    }

    #[test]
    fn this_process_uses_something() {
        let used = usage(std::process::id() as i32).unwrap();
        assert!(used.rss_bytes >= used.private_bytes && used.private_bytes > 0);
    }
}
