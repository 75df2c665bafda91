//! What the kernel may take its time for, freezing and taking memory back, is done by copies of the shim, one after the
//! other, so that the shim itself goes on serving.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rswarm_shim::cgroup::{Cgroup, Limits};

use crate::sys::{self, Side};

/// Errands that wait for their turn; one more is refused.
const WAITING_MAX: usize = 32;

/// Something to be done to the container's cgroup.
pub enum Task {
    Freeze(bool),
    Limit(Limits),
}

impl Task {
    fn carry_out(&self, cgroup: &Cgroup) -> io::Result<()> {
        match self {
            Self::Freeze(frozen) => cgroup.freeze(*frozen),
            Self::Limit(limits) => cgroup.limit(limits),
        }
    }
}

/// What is being done, and for whom; nobody once they have gone.
struct Current {
    client: Option<RawFd>,
    report: OwnedFd,
}

#[derive(Default)]
pub struct Errands {
    current: Option<Current>,
    waiting: VecDeque<(RawFd, Task)>,
}

impl Errands {
    /// Has something done when it is its turn.
    pub fn add(&mut self, client: RawFd, task: Task) -> io::Result<()> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::other("too much is to be done to it already"));
        }
        self.waiting.push_back((client, task));
        Ok(())
    }

    /// What is to be watched for the end of what is being done.
    pub fn report(&self) -> Option<RawFd> {
        self.current.as_ref().map(|current| current.report.as_raw_fd())
    }

    /// How what was being done has ended, if it has just done so, and who is to be told.
    pub fn ended(&mut self) -> Option<(Option<RawFd>, io::Result<()>)> {
        let Current { client, report } = self.current.take()?;
        let mut buffer = [0_u8; 4096];
        let outcome = match sys::receive_with_fds(report.as_raw_fd(), &mut buffer) {
            Ok((1, _)) if buffer[0] == b'K' => Ok(()),
            Ok((0, _)) => Err(io::Error::other("whoever was to do it was killed")),
            Ok((length, _)) => {
                Err(io::Error::other(String::from_utf8_lossy(&buffer[1..length]).into_owned()))
            }
            Err(error) => Err(error),
        };
        Some((client, outcome))
    }

    /// Begins with what is next. One that cannot be begun comes back.
    pub fn begin(&mut self, cgroup: &Cgroup) -> Option<(RawFd, io::Error)> {
        if self.current.is_some() {
            return None;
        }
        let (client, task) = self.waiting.pop_front()?;
        match begin(&task, cgroup) {
            Ok(report) => self.current = Some(Current { client: Some(client), report }),
            Err(error) => return Some((client, error)),
        }
        None
    }

    /// Nobody waits there any more. What has not begun is not done.
    pub fn forget(&mut self, client: RawFd) {
        self.waiting.retain(|(other, _)| *other != client);
        if let Some(current) = &mut self.current {
            current.client = current.client.filter(|other| *other != client);
        }
    }
}

fn begin(task: &Task, cgroup: &Cgroup) -> io::Result<OwnedFd> {
    let failed = |failure: sys::Failure| io::Error::other(failure.message);
    let (report, child_report) = sys::message_pair().map_err(failed)?;
    match sys::clone(0, None).map_err(failed)? {
        Side::Child => {
            sys::keep_only(&[child_report.as_raw_fd()]);
            let message = match task.carry_out(cgroup) {
                Ok(()) => b"K".to_vec(),
                Err(error) => [b"E", error.to_string().as_bytes()].concat(),
            };
            let _ = sys::send_with_fds(child_report.as_raw_fd(), &message, &[]);
            // SAFETY: ends this process without running anything of the shim's.
            unsafe { libc::_exit(0) }
        }
        // It is reaped with all others.
        Side::Parent(_) => Ok(report),
    }
}
