//! What the daemon and a shim say to each other: the launch file, the records on disk, and the lines on the socket.
//! All of it is JSON, because a daemon of one version must understand the shims of another.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, Limits, Usage};

/// The OCI runtime specification, in the container's directory.
pub const CONFIG_FILE: &str = "config.json";
/// A [`Launch`], beside it.
pub const LAUNCH_FILE: &str = "shim.json";
/// Filters to load in this order, as written by the daemon; absent when the container runs unconfined.
pub const SECCOMP_FILE: &str = "seccomp.bpf";
/// The [`Exit`], written once.
pub const EXIT_FILE: &str = "exit.json";
/// What the exit record is written in before it has its name: made with the container, with room for the longest record,
/// so that there is some when logs have filled the disk.
pub const EXIT_ROOM_FILE: &str = ".exit.json.tmp";
/// The longest exit record, in bytes.
pub const EXIT_ROOM_BYTES: u64 = 8192;
/// The current log; older ones are `log.1`, `log.2`, ...
pub const LOG_FILE: &str = "log";
/// Appended to the name of a file of the log that has been compressed.
pub const COMPRESSED: &str = ".gz";
/// Where the journal takes entries.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
/// The shim's own words, empty unless something is wrong.
pub const SHIM_LOG_FILE: &str = "shim.log";
/// Where the container's root is mounted, in the container's own mount namespace only.
pub const ROOT_DIR: &str = "rootfs";
/// What concerns another OCI runtime that has made the container, in its run directory.
pub const RUNTIME_DIR: &str = "runtime";
/// A [`Running`], in the container's run directory.
pub const STATE_FILE: &str = "state.json";
/// The shim's socket, in the run directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// Locked for as long as the shim lives, in the run directory.
pub const LOCK_FILE: &str = "lock";
/// What the exit record of a container says whose lease ran out.
pub const LEASE_OVER: &str = "its lease ran out: its node could not reach the managers";
/// The longest line either side accepts on the socket, in bytes.
pub const LINE_MAX: usize = 64 * 1024;

/// Milliseconds since the machine's start, sleep included.
pub fn boot_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for writing; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let (seconds, nanos) =
        (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds * 1000 + nanos / 1_000_000
}

/// What a shim must know beyond the OCI specification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// The container's id, for messages.
    pub id: String,
    /// Read-only layers, topmost first. Empty: the root is the specification's own `root.path`.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Overlayfs's scratch directory, on the same file system as `upper`.
    pub work: PathBuf,
    /// `""`, `uid[:gid]` or `name[:group]`, resolved in the container's own files.
    pub user: String,
    /// Groups besides those of the user, by name or number, looked up likewise.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Process 1 is an init of ours, and the program its child.
    #[serde(default)]
    pub init: bool,
    /// Its standard input stays open, for whoever attaches.
    #[serde(default)]
    pub stdin: bool,
    /// It gets a terminal of this size for its standard streams.
    #[serde(default)]
    pub tty: Option<WindowSize>,
    /// Where the container's limits hold, if this machine has cgroups we may write.
    pub cgroup: Option<Cgroup>,
    /// The cgroup the shim itself moves into, best effort.
    pub shims: Option<Cgroup>,
    /// How the log is kept.
    pub log: LogOptions,
    /// Fields of every entry in the journal, for a log that is kept there.
    #[serde(default)]
    pub journal: Vec<(String, String)>,
    /// The container is killed so many milliseconds after its start, unless that is put off by [`Request::Lease`].
    #[serde(default)]
    pub lease_ms: Option<u64>,
    /// The OCI runtime that makes the container in the shim's stead; the shim itself does otherwise.
    #[serde(default)]
    pub runtime: Option<PathBuf>,
}

/// How a container's log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// A file is rotated before it grows beyond this.
    pub file_bytes_max: u64,
    /// Files kept, the current one included; at least one.
    pub files_max: u32,
    /// Files that are complete are compressed.
    #[serde(default)]
    pub compress: bool,
    /// Where it is kept.
    #[serde(default)]
    pub driver: LogDriver,
}

/// Where a container's log is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogDriver {
    /// In files beside the container.
    #[default]
    Local,
    /// In the machine's journal, with [`Launch::journal`].
    Journald,
    /// Nowhere.
    None,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { file_bytes_max: 10 << 20, files_max: 3, compress: false, driver: LogDriver::Local }
    }
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The container's first process, as the daemon's pid namespace names it.
    pub pid: i32,
    /// Its start, in clock ticks since boot: with the pid it names one process.
    pub start_ticks: u64,
    /// The shim.
    pub shim_pid: i32,
    /// When it started, in nanoseconds since the epoch.
    pub started_unix_ns: u64,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal for a signal; 125 to 127 if it never started; 255 if its end was not seen.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed one of its processes for want of memory, and it did not end well.
    pub oom_killed: bool,
    /// Why it never started, or why its end was not seen.
    pub error: Option<String>,
    /// When it started, in nanoseconds since the epoch; none if it never did.
    pub started_unix_ns: Option<u64>,
    /// When it ended, in nanoseconds since the epoch.
    pub finished_unix_ns: u64,
    /// Log bytes that did not fit on the disk.
    pub log_dropped_bytes: u64,
}

/// The one line a shim writes to its standard output once the start is decided.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ready {
    /// The program has been executed.
    Running(Running),
    /// It has not, and the exit record says so.
    Failed(Exit),
}

/// A line to a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Reply::State`].
    State,
    /// Signals the first process. Answered by [`Reply::Done`].
    Kill {
        /// A signal number.
        signal: i32,
    },
    /// Kills every process at once. Answered by [`Reply::Done`].
    KillAll,
    /// Answered by [`Reply::Exited`] when the exit record is on disk.
    Wait,
    /// Answered by [`Reply::Usage`].
    Usage,
    /// Changes the limits. Answered by [`Reply::Done`].
    Update(Limits),
    /// Holds every process still, or lets them go on. Answered by [`Reply::Done`].
    Freeze {
        /// Still.
        frozen: bool,
    },
    /// Puts off the end of a container that has a lease. Answered by [`Reply::Done`].
    Lease {
        /// Until when, in milliseconds of the clock that counts from the machine's start and goes on while it sleeps.
        until_boot_ms: u64,
    },
    /// Passes what the container writes from now on to the one or two descriptors sent along, its standard output's
    /// and its standard error's; with a terminal all is output. Answered by [`Reply::Attached`], and later by
    /// [`Reply::Exited`] or [`Reply::Lagging`].
    Attach,
    /// Ends the container's standard input once nobody else holds it. Answered by [`Reply::Done`].
    CloseStdin,
    /// Signals a program that was begun by `Exec`. Answered by [`Reply::Done`].
    KillExec {
        /// As in [`Reply::Spawned`].
        pid: i32,
        /// A signal number.
        signal: i32,
    },
    /// Runs another program in the container, with the three descriptors sent along as its standard input, output
    /// and error. Answered by [`Reply::Spawned`], and later by [`Reply::ExecExited`].
    Exec(Exec),
}

/// Another program to run in a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Added to the container's own environment.
    pub env: Vec<String>,
    /// As the container's own if none.
    pub user: Option<String>,
    /// As the container's own if none.
    pub workdir: Option<String>,
    /// Killed after this many milliseconds, with all it has started.
    pub timeout_ms: Option<u64>,
    /// Nothing it has started outlives it, and it does not outlive the connection it was asked for on.
    #[serde(default)]
    pub contained: bool,
    /// It gets a terminal of this size for its standard streams. Our end comes along with [`Reply::Spawned`].
    #[serde(default)]
    pub tty: Option<WindowSize>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub columns: u16,
}

/// A line from a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// What is the case now.
    State {
        /// The container, as started.
        running: Running,
    },
    /// The container's end.
    Exited(Exit),
    /// Resources in use.
    Usage(Usage),
    /// It was done.
    Done,
    /// It was not done.
    Failed {
        /// 125 to 127 as for a container that does not start.
        code: i32,
        /// Why.
        message: String,
    },
    /// What the container writes is passed on. If it has a standard input or a terminal, our end comes along.
    Attached,
    /// Nothing more is passed on: the descriptors were full, and the container is not held up for that.
    Lagging,
    /// The other program runs.
    Spawned {
        /// Its pid.
        pid: i32,
    },
    /// The other program ended.
    ExecExited {
        /// As in [`Exit::code`].
        code: i32,
        /// It was killed because its time was up.
        timed_out: bool,
    },
}
