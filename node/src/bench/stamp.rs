//! What runs in the containers that are timed: it writes down when it began, and waits to be stopped.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// The hidden command: `rswarm bench-stamp DIRECTORY`.
pub const COMMAND: &str = "bench-stamp";

/// Nanoseconds since this machine booted: the same clock in every process of it.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Runs the hidden command, if this process was started for it. Call it first of all: what comes before is measured.
pub fn dispatch() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != COMMAND {
        return None;
    }
    let began = now_ns();
    let written = words.next().context("usage: rswarm bench-stamp DIRECTORY").and_then(|directory| {
        write(Path::new(&directory), began)?;
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTERM);
        stop.thread_block().context("cannot block a signal")?;
        stop.wait().context("cannot wait for a signal").map(drop)
    });
    Some(match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Whole at once, so that nobody reads half of it.
fn write(directory: &Path, began: u64) -> Result<()> {
    let (part, whole) = (directory.join("part"), directory.join("began"));
    fs::write(&part, began.to_string()).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, &whole).with_context(|| format!("cannot write {}", whole.display()))
}

/// When the program began that was given this directory. None: it has not yet.
pub fn read(directory: &Path) -> Option<u64> {
    fs::read_to_string(directory.join("began")).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), None);
        write(directory.path(), 1_234_567_890_123).unwrap();
        assert_eq!(read(directory.path()), Some(1_234_567_890_123));
        assert!(!directory.path().join("part").exists());
    }
}
