//! The system calls that libc has no function for, and the two shapes of failure: one that carries the exit code
//! a container start is reported with.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use libc::{c_int, c_long};

/// Why a container did not start, and the code its exit record carries.
#[derive(Debug)]
pub struct Failure {
    /// 125: set-up failed; 126: the program cannot be executed; 127: it does not exist.
    pub code: i32,
    pub message: String,
}

impl Failure {
    pub fn setup(message: impl Into<String>) -> Self {
        Self { code: 125, message: message.into() }
    }

    /// The failure of the system call just made.
    pub fn errno(what: impl fmt::Display) -> Self {
        Self::io(what, &io::Error::last_os_error())
    }

    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::setup(format!("{what}: {}", words(error)))
    }
}

pub type Result<T> = std::result::Result<T, Failure>;

/// The system's words for an error, in the lower case and without the number that `io::Error` adds.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

pub fn check(result: impl Into<c_long>, what: impl fmt::Display) -> Result<c_long> {
    let result = result.into();
    if result < 0 { Err(Failure::errno(what)) } else { Ok(result) }
}

pub fn c_string(text: impl AsRef<[u8]>) -> Result<CString> {
    CString::new(text.as_ref())
        .map_err(|_| Failure::setup(format!("{:?} holds a NUL byte", String::from_utf8_lossy(text.as_ref()))))
}

pub fn c_path(path: &Path) -> Result<CString> {
    c_string(path.as_os_str().as_encoded_bytes())
}

/// Takes ownership of a descriptor a system call has just returned.
fn owned(fd: c_long) -> OwnedFd {
    // SAFETY: every caller passes the fresh, valid result of a call that creates a descriptor.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

pub fn open(path: &Path, flags: c_int) -> Result<OwnedFd> {
    let name = c_path(path)?;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::open(name.as_ptr(), flags | libc::O_CLOEXEC) };
    Ok(owned(check(fd, format_args!("open {}", path.display()))?))
}

pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, "pipe")?;
    Ok((owned(fds[0].into()), owned(fds[1].into())))
}

/// Has neither reading nor writing wait, by whoever shares this description.
pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: an open descriptor and plain flags.
    let set = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A pair of connected sockets that keep message boundaries.
pub fn message_pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, "socketpair")?;
    Ok((owned(fds[0].into()), owned(fds[1].into())))
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone this is.
pub enum Side {
    Child,
    Parent(Child),
}

/// A process this one has made.
pub struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Copies this process, as fork does, with `flags` and, if given, inside the cgroup whose directory is `cgroup`.
///
/// Sound only in a process of one thread, which the shim is: the child may then go on using the allocator.
pub fn clone(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Side> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: (flags | libc::CLONE_PIDFD) as u64,
        pidfd: &raw mut pidfd as u64,
        // CLONE_PARENT children signal the way their new parent asked for, and must not say it again.
        exit_signal: if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of memory; `args` is valid for the given size.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, mem::size_of::<CloneArgs>()) };
    match check(pid, "clone3")? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(Child { pid: pid as i32, pidfd: owned(pidfd.into()) })),
    }
}

pub fn pidfd_signal(pidfd: &OwnedFd, signal: c_int) -> io::Result<()> {
    // SAFETY: plain integers and a null pointer the call allows.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this process lives in a user namespace of somebody's making, where it may not make devices, set
/// `trusted.*` attributes or speak of users that are not mapped.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `openat2`: opens `path` beneath `dir` under the given rules of resolution.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &str, flags: c_int, resolve: u64) -> io::Result<OwnedFd> {
    let name = CString::new(path).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: 0, resolve };
    // SAFETY: `name` and `how` outlive the call; the size is that of `how`.
    let fd = unsafe {
        let size = mem::size_of::<OpenHow>();
        libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), name.as_ptr(), &raw const how, size)
    };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(owned(fd)) }
}

pub const MOUNT_RDONLY: u64 = 0x1;
pub const MOUNT_NOSUID: u64 = 0x2;
pub const MOUNT_NODEV: u64 = 0x4;
pub const MOUNT_NOEXEC: u64 = 0x8;

/// A detached copy of the mount tree at `path`, relative to `dir`.
pub fn open_tree(dir: RawFd, path: &str, recursive: bool) -> Result<OwnedFd> {
    let name = c_string(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as u32;
    }
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, dir, name.as_ptr(), flags) };
    Ok(owned(check(fd, format_args!("open_tree {path}"))?))
}

/// Attaches the detached mount `mount` on the opened place `target`.
pub fn move_mount(mount: &OwnedFd, target: &OwnedFd) -> Result<()> {
    const FROM_EMPTY: u32 = 0x04;
    const TO_EMPTY: u32 = 0x40;
    // SAFETY: both names are empty C strings; the descriptors are open.
    let result = unsafe {
        let empty = c"".as_ptr();
        let (from, to) = (mount.as_raw_fd(), target.as_raw_fd());
        libc::syscall(libc::SYS_move_mount, from, empty, to, empty, FROM_EMPTY | TO_EMPTY)
    };
    check(result, "move_mount").map(drop)
}

/// Sets mount attributes on an opened mount, and with `recursive` on all beneath it.
pub fn set_attributes(mount: &OwnedFd, set: u64, recursive: bool) -> Result<()> {
    // attr_set, attr_clr, propagation, userns_fd
    let attributes: [u64; 4] = [set, 0, 0, 0];
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attributes` has the layout and the size of the first version of struct mount_attr.
    let result = unsafe {
        let (fd, size) = (mount.as_raw_fd(), mem::size_of_val(&attributes));
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, attributes.as_ptr(), size)
    };
    check(result, "mount_setattr").map(drop)
}

/// Maps the ids of a mount that is nowhere yet, and with `recursive` of all beneath it, as a user namespace does.
pub fn map_ids(mount: &OwnedFd, namespace: &OwnedFd, recursive: bool) -> Result<()> {
    const IDMAP: u64 = 0x10_0000;
    // attr_set, attr_clr, propagation, userns_fd
    let attributes: [u64; 4] = [IDMAP, 0, 0, namespace.as_raw_fd() as u64];
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attributes` has the layout and the size of the first version of struct mount_attr.
    let result = unsafe {
        let (fd, size) = (mount.as_raw_fd(), mem::size_of_val(&attributes));
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, attributes.as_ptr(), size)
    };
    check(result, "map ids").map(drop)
}

/// A file system being configured, not yet mounted.
pub struct FileSystem {
    fd: OwnedFd,
    kind: String,
}

impl FileSystem {
    pub fn open(kind: &str) -> Result<Self> {
        let name = c_string(kind)?;
        // SAFETY: `name` is NUL-terminated; 1 is FSOPEN_CLOEXEC.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), 1) };
        Ok(Self { fd: owned(check(fd, format_args!("fsopen {kind}"))?), kind: kind.into() })
    }

    /// Sets one option; without a value it is a flag.
    pub fn set(&self, key: &str, value: Option<&[u8]>) -> io::Result<()> {
        const SET_FLAG: u32 = 0;
        const SET_STRING: u32 = 1;
        let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
        let key = CString::new(key).map_err(invalid)?;
        let value = value.map(CString::new).transpose().map_err(invalid)?;
        let (command, pointer) = match &value {
            Some(value) => (SET_STRING, value.as_ptr()),
            None => (SET_FLAG, ptr::null()),
        };
        // SAFETY: key and value are NUL-terminated and outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_fsconfig, self.fd.as_raw_fd(), command, key.as_ptr(), pointer, 0)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes the file system and a detached mount of it.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd> {
        const CREATE: u32 = 6;
        let nothing = ptr::null::<libc::c_char>();
        // SAFETY: this command takes neither key nor value.
        let result =
            unsafe { libc::syscall(libc::SYS_fsconfig, self.fd.as_raw_fd(), CREATE, nothing, nothing, 0) };
        check(result, format_args!("create {}", self.kind))?;
        // SAFETY: plain integers; 1 is FSMOUNT_CLOEXEC.
        let fd = unsafe { libc::syscall(libc::SYS_fsmount, self.fd.as_raw_fd(), 1, attributes) };
        Ok(owned(check(fd, format_args!("mount {}", self.kind))?))
    }
}

/// Sends a message and descriptors on a socket.
pub fn send_with_fds(socket: RawFd, message: &[u8], fds: &[RawFd]) -> io::Result<()> {
    assert!(fds.len() <= FDS_MAX, "callers pass at most {FDS_MAX} descriptors");
    let mut part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    let mut control = [0_u64; 8];
    // SAFETY: an all-zero msghdr is valid; the control buffer is aligned and large enough for FDS_MAX descriptors.
    let sent = unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            let length = mem::size_of_val(fds) as u32;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(length) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(length) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(first), length as usize);
        }
        libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const FDS_MAX: usize = 3;

/// Receives bytes and up to three descriptors; zero bytes mean the other side has closed.
pub fn receive_with_fds(socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0_u64; 8];
    loop {
        // SAFETY: the header points at `part` and `control`, which outlive the call; the kernel sets controllen to
        // what it wrote, and each descriptor it wrote is new and ours.
        unsafe {
            let mut header: libc::msghdr = mem::zeroed();
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = mem::size_of_val(&control) as _;
            let count = libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC);
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            let mut fds = Vec::new();
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            if !first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*first).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(first).cast::<RawFd>();
                for index in 0..bytes / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            return Ok((count as usize, fds));
        }
    }
}

/// In a copy of this process that only works on a few files: closes all else, and ends with its parent.
pub fn keep_only(files: &[RawFd]) {
    // SAFETY: a call on this process only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    close_all_but(files);
}

/// In a copy of this process that only works on a few files: closes all else.
pub fn close_all_but(files: &[RawFd]) {
    // SAFETY: calls on this process only, which uses no other descriptors from here on. The files themselves go on
    // under their own numbers, which lie between the closed ranges.
    unsafe {
        let mut from: u32 = 0;
        let mut sorted: Vec<u32> = files.iter().map(|fd| *fd as u32).collect();
        sorted.sort_unstable();
        for kept in sorted {
            if kept > from {
                libc::syscall(libc::SYS_close_range, from, kept - 1, 0);
            }
            from = kept + 1;
        }
        libc::syscall(libc::SYS_close_range, from, u32::MAX, 0);
    }
}
