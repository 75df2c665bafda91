//! Processes that cannot be mistaken for others: a pid together with the moment it started, and
//! everything done to it goes through a pidfd taken after that moment was compared.

use std::{
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

/// A process of this machine, as seen from the namespace the lab is driven from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot: the 22nd field of `/proc/PID/stat`.
    pub started: u64,
}

impl Process {
    /// The process that has this number now, or `None` if there is none.
    pub fn find(pid: i32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.started })
    }

    /// A descriptor of this very process, or `None` if it is gone.
    pub fn open(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The number may have been given away before the descriptor was taken, so compare afterwards.
        let stat = stat(self.pid)?;
        (stat.started == self.started && !matches!(stat.state, 'Z' | 'X')).then_some(fd)
    }

    /// Whether it runs. One that has ended but was not yet waited for does not.
    pub fn is_alive(self) -> bool {
        self.open().is_some()
    }

    /// Sends `signal`; nothing happens if the process is gone.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        match self.open().map(|fd| pidfd_send_signal(fd, signal)) {
            None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Waits for its end, for at most `bound`. Returns whether it ended.
    pub fn wait(self, bound: Duration) -> io::Result<bool> {
        match self.open() {
            None => Ok(true),
            Some(fd) => readable(&fd, bound),
        }
    }
}

/// Waits until `fd` can be read, or `bound` has passed.
pub(super) fn readable(fd: &OwnedFd, bound: Duration) -> io::Result<bool> {
    let end = Instant::now() + bound;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// All processes whose command line begins with a program and then exactly `words`.
pub(super) fn with_arguments(words: &[&[u8]]) -> Vec<Process> {
    all()
        .filter(|process| {
            let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            let mut arguments = line.split(|byte| *byte == 0).skip(1);
            words.iter().all(|word| arguments.next() == Some(word))
        })
        .collect()
}

/// All processes that can be seen from here.
pub(super) fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Process::find(entry.file_name().to_str()?.parse().ok()?))
}

/// The process that made it, or that took it over; as numbered here.
pub(super) fn parent(pid: i32) -> Option<i32> {
    Some(stat(pid)?.parent)
}

/// The letter that says what it does: `R`, `S`, `T`, and so on.
pub(super) fn state(pid: i32) -> Option<char> {
    Some(stat(pid)?.state)
}

struct Stat {
    state: char,
    parent: i32,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold any character, parentheses too.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_number_is_another_process() {
        let me = Process::find(std::process::id() as i32).unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }

    #[test]
    fn an_end_is_waited_for() {
        let mut child = std::process::Command::new("/proc/self/exe").arg("--list").spawn().unwrap();
        let process = Process::find(child.id() as i32).unwrap();
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
