//! A process beside the shim of a container that another runtime has made: nobody but its parent can ask the kernel that
//! a process end with it, so this one waits for the shim's end and kills the container then.

use std::os::fd::{AsRawFd, OwnedFd};

use rswarm_shim::cgroup::Cgroup;

use crate::process::kill_and_reap;
use crate::sys::{self, Child, Result, Side};

/// Kills the container when the shim is no more, until it is dropped.
pub struct Guard {
    child: Child,
    /// Closed by the shim's end, whatever it is.
    _hold: OwnedFd,
}

impl Guard {
    /// Stands guard over a container. What it keeps of the shim's is standard input, which is the lock: it is not free
    /// before the container is dead.
    pub fn begin(container: &Child, cgroup: Option<&Cgroup>) -> Result<Self> {
        let (held, hold) = sys::pipe()?;
        match sys::clone(0, None)? {
            Side::Child => {
                sys::close_all_but(&[0, held.as_raw_fd(), container.pidfd.as_raw_fd()]);
                let mut byte = [0_u8; 1];
                // SAFETY: a name that outlives the call; room for the byte asked for, which never comes.
                unsafe {
                    libc::prctl(libc::PR_SET_NAME, c"rswarm-guard".as_ptr());
                    while libc::read(held.as_raw_fd(), byte.as_mut_ptr().cast(), 1) < 0 {}
                }
                let _ = sys::pidfd_signal(&container.pidfd, libc::SIGKILL);
                if let Some(cgroup) = cgroup {
                    cgroup.kill();
                }
                // SAFETY: ends this process without running anything of the shim's.
                unsafe { libc::_exit(0) }
            }
            Side::Parent(child) => Ok(Self { child, _hold: hold }),
        }
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        kill_and_reap(&self.child);
    }
}
