//! Another program in a running container. It is begun by a copy of the shim that enters the container; whatever holds
//! that up holds up neither the shim nor anybody else.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rswarm_shim::cgroup::Cgroup;

use crate::process::{self, Program};
use crate::sys::{self, Child, Failure, Result, Side, check};

/// A program on its way into the container.
pub struct Beginning {
    reports: OwnedFd,
    /// The one that enters; it ends when it has brought the program forth.
    middle: OwnedFd,
    child: Option<Child>,
    terminal: Option<OwnedFd>,
    failed: Option<Failure>,
}

/// A program beside the first one, and our end of its terminal if it has one.
pub struct Beside {
    pub child: Child,
    pub terminal: Option<OwnedFd>,
}

impl Beginning {
    /// Lets a program begin in the container whose first process is `target`, inside all of `cgroups`.
    pub fn of(target: &OwnedFd, cgroups: &[&Cgroup], program: &Program<'_>) -> Result<Self> {
        let (reports, child_reports) = sys::message_pair()?;
        sys::set_nonblocking(&reports).map_err(|error| Failure::io("hear without waiting", &error))?;
        match sys::clone(0, None)? {
            Side::Child => {
                // It must not keep itself from noticing the shim's death.
                drop(reports);
                process::report_and_exit(&child_reports, || enter(target, cgroups, program, &child_reports))
            }
            Side::Parent(middle) => {
                Ok(Self { reports, middle: middle.pidfd, child: None, terminal: None, failed: None })
            }
        }
    }

    /// What is to be watched for something to hear.
    pub fn reports(&self) -> RawFd {
        self.reports.as_raw_fd()
    }

    /// Takes what has been said. None: it is not decided yet.
    pub fn hear(&mut self) -> Option<Result<Beside>> {
        let mut buffer = [0_u8; 4096];
        loop {
            match sys::receive_with_fds(self.reports.as_raw_fd(), &mut buffer) {
                Ok((0, _)) => break,
                Ok((5, mut fds)) if buffer[0] == b'P' => {
                    let pid = i32::from_le_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]);
                    self.child = fds.pop().map(|pidfd| Child { pid, pidfd });
                }
                Ok((1, mut fds)) if buffer[0] == b'T' => self.terminal = fds.pop(),
                Ok((length, _)) => self.failed = Some(process::failure(&buffer[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(error) => {
                    self.failed = Some(Failure::io("hear from the child", &error));
                    break;
                }
            }
        }
        Some(match (self.child.take(), self.failed.take()) {
            (Some(child), None) => Ok(Beside { child, terminal: self.terminal.take() }),
            (child, failed) => {
                self.child = child;
                self.give_up();
                Err(failed.unwrap_or_else(|| Failure::setup("the child ended without a word")))
            }
        })
    }

    /// Ends what has been begun. Whoever has ended is reaped with all others.
    pub fn give_up(&self) {
        for pidfd in [&self.middle].into_iter().chain(self.child.as_ref().map(|child| &child.pidfd)) {
            let _ = sys::pidfd_signal(pidfd, libc::SIGKILL);
        }
    }
}

fn enter(target: &OwnedFd, cgroups: &[&Cgroup], program: &Program<'_>, reports: &OwnedFd) -> Result<()> {
    end_with_the_shim()?;
    let me = std::process::id() as i32;
    for cgroup in cgroups {
        cgroup.add(me, false).map_err(|error| Failure::setup(error.to_string()))?;
    }
    let mut namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS;
    namespaces |= libc::CLONE_NEWIPC | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;
    // SAFETY: an open pidfd and flags, on a process of one thread; and calls on this process only.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE")?;
        check(libc::setns(target.as_raw_fd(), namespaces), "enter the container")?;
    }
    // A process enters a pid namespace only by being born in it.
    match sys::clone(libc::CLONE_PARENT, None)? {
        Side::Child => process::report_and_exit(reports, || {
            end_with_the_shim()?;
            // SAFETY: a call on this process only.
            check(unsafe { libc::setsid() }, "setsid")?;
            match program.tty {
                None => process::become_program(program),
                Some(size) => process::become_program_on_terminal(program, size, reports),
            }
        }),
        Side::Parent(child) => {
            let mut message = vec![b'P'];
            message.extend_from_slice(&child.pid.to_le_bytes());
            sys::send_with_fds(reports.as_raw_fd(), &message, &[child.pidfd.as_raw_fd()])
                .map_err(|error| Failure::io("report the pid", &error))?;
            // SAFETY: ends this process without running anything of the shim's.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Whoever is held up must not outlive the shim, whose lock it holds.
fn end_with_the_shim() -> Result<()> {
    // SAFETY: a call on this process only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }, "PR_SET_PDEATHSIG").map(drop)
}
