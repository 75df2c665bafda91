//! A terminal of the container's own, made in its mount namespace.

use std::fs::File;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rswarm_shim::protocol::WindowSize;

use crate::sys::{self, Failure, RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, Result, check};

/// Makes a terminal and takes it for this session, which must have none. Our end comes first.
pub fn open(size: WindowSize) -> Result<(OwnedFd, OwnedFd)> {
    const PATH: &str = "/dev/pts/ptmx";
    const DEVPTS_MAGIC: i64 = 0x1cd1;
    let failed = |error| Failure::io(format_args!("open {PATH}"), &error);
    let root = File::open(Path::new("/")).map_err(failed)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS;
    let master = sys::open_beneath(root.as_fd(), PATH, flags, resolve).map_err(failed)?;
    // SAFETY: all-zero buffers are valid, and outlive the calls; a descriptor just returned is ours; the rest are
    // plain integers and calls on this process only.
    unsafe {
        let (mut status, mut system): (libc::stat, libc::statfs) = (mem::zeroed(), mem::zeroed());
        check(libc::fstat(master.as_raw_fd(), &raw mut status), "fstat")?;
        check(libc::fstatfs(master.as_raw_fd(), &raw mut system), "fstatfs")?;
        if status.st_rdev != libc::makedev(5, 2) || system.f_type != DEVPTS_MAGIC {
            return Err(Failure::setup(format!("{PATH} makes no terminals")));
        }
        let locked: libc::c_int = 0;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked), "unlock the terminal")?;
        // By number and not by path: what lies at the path is the container's to choose.
        let slave = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags | libc::O_CLOEXEC);
        let slave = OwnedFd::from_raw_fd(check(slave, "open the terminal")? as i32);
        let window = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const window), "size the terminal")?;
        check(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0), "take the terminal")?;
        Ok((master, slave))
    }
}
