//! Users of a container's own: a user namespace in which its ids stand for a range of the machine's. On the disk files
//! have the container's ids as they are; what they stand for is a matter of the mount.
//!
//! The container's other namespaces and its mounts belong to the machine's users, so that even all capabilities of its
//! root are good for nothing in them. Processes enter the user namespace last.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::bundle::{IdMapping, Linux};
use crate::process::kill_and_reap;
use crate::sys::{self, Failure, Result, Side, check};

/// A user namespace, and which ids it has.
pub struct Users {
    namespace: OwnedFd,
    first: u32,
    count: u32,
}

impl Users {
    /// Makes the namespace that a specification asks for, if it does.
    pub fn of(linux: &Linux) -> Result<Option<Self>> {
        if !linux.namespaces.iter().any(|namespace| namespace.kind == "user") {
            return Ok(None);
        }
        let ([users], [groups]) = (&linux.uid_mappings[..], &linux.gid_mappings[..]) else {
            return Err(Failure::setup("users of a container's own are one range"));
        };
        if users != groups || users.container_id != 0 || users.size == 0 {
            return Err(Failure::setup(
                "users and groups of a container's own are the same range, from 0 on",
            ));
        }
        if sys::in_user_namespace() {
            return Err(Failure::setup(
                "a container cannot have users of its own here: this node runs in a user namespace itself",
            ));
        }
        Self::make(users).map(Some)
    }

    fn make(ids: &IdMapping) -> Result<Self> {
        let (held, hold) = sys::pipe()?;
        let child = match sys::clone(libc::CLONE_NEWUSER, None)? {
            Side::Child => {
                drop(hold);
                let mut byte = [0_u8; 1];
                // SAFETY: room for the byte asked for, which never comes; then this process ends without running
                // anything of the shim's.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::read(held.as_raw_fd(), byte.as_mut_ptr().cast(), 1);
                    libc::_exit(0)
                }
            }
            Side::Parent(child) => child,
        };
        let IdMapping { host_id: first, size: count, .. } = *ids;
        let map = || {
            for name in ["uid_map", "gid_map"] {
                let path = format!("/proc/{}/{name}", child.pid);
                fs::write(&path, format!("0 {first} {count}\n"))
                    .map_err(|error| Failure::io(format_args!("write {path}"), &error))?;
            }
            sys::open(Path::new(&format!("/proc/{}/ns/user", child.pid)), libc::O_RDONLY)
        };
        let namespace = map();
        kill_and_reap(&child);
        Ok(Self { namespace: namespace?, first, count })
    }

    /// What an id of the container's is on this machine.
    pub fn here(&self, id: u32) -> Result<u32> {
        if id < self.count {
            return Ok(self.first + id);
        }
        Err(Failure::setup(format!(
            "the container has no user or group {id}: its ids end at {}",
            self.count - 1
        )))
    }

    /// From now on what this process makes belongs to the container's root. Its rights stay those it has.
    pub fn make_as_root(&self) -> Result<()> {
        const VERSION_3: u32 = 0x2008_0522;
        let header: [u32; 2] = [VERSION_3, 0];
        // effective, permitted, inheritable; the low words first
        let mut data = [0_u32; 6];
        // SAFETY: calls on this process only; header and data have the layout of the version they name, and outlive the
        // calls.
        unsafe {
            libc::setfsgid(self.first);
            // Takes the rights to files out of those in effect.
            libc::setfsuid(self.first);
            check(libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()), "capget")?;
            (data[0], data[3]) = (data[1], data[4]);
            check(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()), "capset").map(drop)
        }
    }

    /// Has the files of a mount that is nowhere yet belong to the container's users, as they are numbered on the disk.
    pub fn map(&self, mount: &OwnedFd, recursive: bool) -> Result<()> {
        sys::map_ids(mount, &self.namespace, recursive)
    }

    /// Puts a mapped view of a directory over it, in this mount namespace.
    pub fn cover(&self, path: &Path) -> Result<()> {
        let tree = sys::open_tree(libc::AT_FDCWD, &path.to_string_lossy(), false)?;
        let failed = |failure: Failure| {
            Failure::setup(format!(
                "{}: its file system cannot be mounted for a container with users of its own ({}); this needs Linux \
                 5.19 and for example ext4, xfs or btrfs",
                path.display(),
                failure.message
            ))
        };
        self.map(&tree, false).map_err(failed)?;
        sys::move_mount(&tree, &sys::open(path, libc::O_PATH | libc::O_DIRECTORY)?)
    }

    /// Moves this process in, with all rights over the namespace and none beyond it.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: an open descriptor and a flag, on a process of one thread.
        let entered = unsafe { libc::setns(self.namespace.as_raw_fd(), libc::CLONE_NEWUSER) };
        check(entered, "enter the user namespace").map(drop)
    }
}
