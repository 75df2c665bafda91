//! Freezing a node where no control group can do it: every process of it is stopped by signal, until none
//! is left that moves.
//!
//! A node's processes are those of its pid namespace and all that descend from them: containers have
//! pid namespaces of their own within.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{
    PATIENCE,
    process::{self, Process},
};

/// How often to look again.
const LOOK: Duration = Duration::from_millis(2);

/// The processes of the node whose first process is `init`, that one included.
pub(super) fn members(init: Process) -> Vec<Process> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(own) = namespace(init.pid).filter(|_| init.is_alive()) else { return Vec::new() };
    let all: BTreeMap<i32, Process> = process::all().map(|process| (process.pid, process)).collect();
    let parents: BTreeMap<i32, i32> =
        all.keys().filter_map(|pid| Some((*pid, process::parent(*pid)?))).collect();
    let mut inside: BTreeSet<i32> =
        all.keys().copied().filter(|pid| namespace(*pid).as_ref() == Some(&own)).collect();
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| inside.contains(parent) && !inside.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        inside.extend(more);
    }
    inside.into_iter().filter_map(|pid| all.get(&pid).copied()).collect()
}

/// Stops them all, and returns once they stand still.
pub(super) fn stop(init: Process) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let moving: Vec<Process> =
            members(init).into_iter().filter(|process| process.is_alive() && !is_stopped(*process)).collect();
        if moving.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{} processes of the node do not stop within {PATIENCE:?}", moving.len());
        }
        for process in moving {
            process.signal(Signal::STOP).context("cannot stop a process")?;
        }
        thread::sleep(LOOK);
    }
}

/// Lets them all go on.
pub(super) fn go_on(init: Process) -> Result<()> {
    // The first one last: while it is stopped the node counts as paused.
    for process in members(init).into_iter().rev() {
        process.signal(Signal::CONT).context("cannot let a process go on")?;
    }
    Ok(())
}

/// Whether a process is stopped.
pub(super) fn is_stopped(process: Process) -> bool {
    process::state(process.pid) == Some('T')
}
