//! The last steps of a process on its way to become the container's program: standard streams, user, capabilities,
//! filters, and the search for the program itself. Also how it reports that it failed.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use rswarm_shim::protocol::WindowSize;

use crate::bundle::{Process, Rlimit};
use crate::init;
use crate::sys::{self, Child, Failure, RESOLVE_IN_ROOT, Result, c_string, check, words};
use crate::terminal;
use crate::users::Users;

/// What a process is to become.
pub struct Program<'a> {
    pub process: &'a Process,
    /// The container's own, if it has some.
    pub users: Option<&'a Users>,
    pub user: &'a str,
    /// Groups besides the user's own.
    pub groups: &'a [String],
    pub seccomp: &'a [Vec<libc::sock_filter>],
    pub stdio: [RawFd; 3],
    /// It is the container's first, which owns the pipes it writes to.
    pub first: bool,
    /// It is the child of an init of ours, which is process 1.
    pub init: bool,
    /// It gets a terminal of this size instead of `stdio`.
    pub tty: Option<WindowSize>,
}

/// Runs a child's work, which ends in another program or in a failure told to the shim.
pub fn report_and_exit(report: &OwnedFd, work: impl FnOnce() -> Result<()>) -> ! {
    if let Err(failure) = work() {
        let mut message = vec![b'E'];
        message.extend_from_slice(&failure.code.to_le_bytes());
        message.extend_from_slice(failure.message.as_bytes());
        let _ = sys::send_with_fds(report.as_raw_fd(), &message, &[]);
    }
    // SAFETY: ends this process without running anything of the shim's.
    unsafe { libc::_exit(125) }
}

/// What a child said before it became its program: nothing, or our end of its terminal, unless it failed.
pub fn reported(socket: &OwnedFd) -> Result<Option<OwnedFd>> {
    let mut terminal = None;
    let mut buffer = [0_u8; 4096];
    loop {
        match sys::receive_with_fds(socket.as_raw_fd(), &mut buffer) {
            Ok((0, _)) => return Ok(terminal),
            Ok((1, mut fds)) if buffer[0] == b'T' => terminal = fds.pop(),
            Ok((length, _)) => return Err(failure(&buffer[..length])),
            Err(error) => return Err(Failure::io("hear from the child", &error)),
        }
    }
}

/// What a child said when it failed.
pub fn failure(message: &[u8]) -> Failure {
    match message.get(1..).and_then(<[u8]>::split_first_chunk::<4>) {
        Some((code, text)) => {
            Failure { code: i32::from_le_bytes(*code), message: String::from_utf8_lossy(text).into() }
        }
        None => Failure::setup("the child failed without a word"),
    }
}

/// The exit code a wait status stands for, and the signal if one ended the process.
pub fn exit_code(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

pub fn kill_and_reap(child: &Child) {
    let _ = sys::pidfd_signal(&child.pidfd, libc::SIGKILL);
    // SAFETY: waits for our own child; the status is not asked for.
    unsafe { libc::waitpid(child.pid, ptr::null_mut(), 0) };
}

/// Becomes the program on a terminal of its own, whose other end is handed over first.
pub fn become_program_on_terminal(program: &Program<'_>, size: WindowSize, report: &OwnedFd) -> Result<()> {
    let (master, slave) = terminal::open(size)?;
    sys::send_with_fds(report.as_raw_fd(), b"T", &[master.as_raw_fd()])
        .map_err(|error| Failure::io("hand over the terminal", &error))?;
    drop(master);
    become_program(&Program { stdio: [slave.as_raw_fd(); 3], ..*program })
}

/// Becomes the program; returns only if that fails.
pub fn become_program(program: &Program<'_>) -> Result<()> {
    let process = program.process;
    let user = User::find(Path::new("/"), program.user, program.groups)?;
    take_stdio(program, &user)?;
    // SAFETY: calls on this process only, with plain integers.
    unsafe {
        libc::umask(0o022);
    }
    process.rlimits.iter().try_for_each(set_rlimit)?;
    let adjustment = process.oom_score_adj.unwrap_or(0).to_string();
    // Lowering it needs a right that not every daemon has; the default is no worse.
    let _ = std::fs::write("/proc/self/oom_score_adj", adjustment);
    enter_workdir(&process.cwd)?;
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    let command = Command::new(&process.args, &env)?;
    become_user(&user, program.users, capability_mask(&process.capabilities.bounding)?)?;
    // SAFETY: calls on this process only; the signal set is initialised before it is used.
    unsafe {
        if process.no_new_privileges {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")?;
        }
        // A container without its shim would have no log and no exit record. Changing user forgets this setting,
        // so it comes after.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), "PR_SET_PDEATHSIG")?;
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        let closed = libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        check(closed, "close_range")?;
    }
    for filter in program.seccomp {
        load_filter(filter)?;
    }
    if program.init {
        init::split()?;
    }
    Err(command.execute())
}

fn take_stdio(program: &Program<'_>, user: &User) -> Result<()> {
    let here = |id: u32| program.users.map_or(Ok(id), |users| users.here(id));
    let (uid, gid) = (here(user.uid)?, here(user.gid)?);
    place_stdio(program.stdio)?;
    // SAFETY: descriptors of this process; the stat buffer is valid when zero.
    unsafe {
        for stream in 0..3 {
            let mut status: libc::stat = mem::zeroed();
            let known = libc::fstat(stream, &raw mut status) == 0;
            // Programs that open /dev/stdout anew must be allowed to, whoever they run as.
            if program.first && known && status.st_mode & libc::S_IFMT == libc::S_IFIFO {
                let _ = libc::fchown(stream, uid, gid);
            }
            if program.tty.is_some() {
                // The group stays the terminals' own.
                let _ = libc::fchown(stream, uid, libc::gid_t::MAX);
            }
        }
    }
    Ok(())
}

/// Makes these this process's standard streams.
pub fn place_stdio(stdio: [RawFd; 3]) -> Result<()> {
    let mut copies = [0; 3];
    // SAFETY: descriptors of this process.
    unsafe {
        for (copy, fd) in copies.iter_mut().zip(stdio) {
            *copy =
                check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10), "take over a standard stream")? as RawFd;
        }
        for (number, copy) in copies.iter().enumerate() {
            check(libc::dup2(*copy, number as RawFd), "place a standard stream")?;
        }
    }
    Ok(())
}

fn resource(kind: &str) -> Result<libc::__rlimit_resource_t> {
    Ok(match kind {
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        other => return Err(Failure::setup(format!("limit {other} is not supported"))),
    })
}

/// A limit of this process, by its name in a specification.
pub fn rlimit(kind: &str) -> Result<libc::rlimit> {
    let mut value = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `value` is valid for writing.
    check(unsafe { libc::getrlimit(resource(kind)?, &raw mut value) }, "getrlimit")?;
    Ok(value)
}

fn set_rlimit(limit: &Rlimit) -> Result<()> {
    let resource = resource(&limit.kind)?;
    let mut value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: `value` is valid for reading and writing.
    unsafe {
        if libc::setrlimit(resource, &raw const value) == 0 {
            return Ok(());
        }
        // Raising the ceiling needs CAP_SYS_RESOURCE; without it the present ceiling has to do.
        value.rlim_max = rlimit(&limit.kind)?.rlim_max;
        value.rlim_cur = limit.soft.min(value.rlim_max);
        check(libc::setrlimit(resource, &raw const value), format_args!("set {}", limit.kind))?;
    }
    Ok(())
}

fn enter_workdir(path: &str) -> Result<()> {
    let path = if path.is_empty() { "/" } else { path };
    let name = c_string(path)?;
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: a C string that outlives the call; a buffer of the given length.
    unsafe {
        check(libc::chdir(name.as_ptr()), format_args!("enter workdir {path}"))?;
        check(libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()), "getcwd")?;
    }
    // A directory outside the root is reported with "(unreachable)" before its path.
    if buffer[0] == b'/' {
        Ok(())
    } else {
        Err(Failure::setup(format!("workdir {path} is outside the root")))
    }
}

fn become_user(user: &User, users: Option<&Users>, capabilities: u64) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    // A user namespace of an ordinary user allows no change of groups; it has none to change either.
    let may_have_groups = !sys::in_user_namespace();
    if let Some(users) = users {
        users.enter()?;
    }
    // SAFETY: calls on this process only; the groups and the capability words outlive the calls.
    unsafe {
        if !user.groups.is_empty() || may_have_groups {
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()), "setgroups")?;
        }
        for capability in 0..64 {
            let dropped = capabilities & (1 << capability) == 0;
            if dropped && libc::prctl(libc::PR_CAPBSET_READ, capability) == 1 {
                check(libc::prctl(libc::PR_CAPBSET_DROP, capability), "drop a capability")?;
            }
        }
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1), "PR_SET_KEEPCAPS")?;
        check(libc::setresgid(user.gid, user.gid, user.gid), "setresgid")?;
        check(libc::setresuid(user.uid, user.uid, user.uid), "setresuid")?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 0), "PR_SET_KEEPCAPS")?;
        let kept = if user.uid == 0 { capabilities } else { 0 };
        let (low, high) = (kept as u32, (kept >> 32) as u32);
        let header: [u32; 2] = [VERSION_3, 0];
        // effective, permitted, inheritable; the low words first
        let data: [u32; 6] = [low, low, 0, high, high, 0];
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()), "capset").map(drop)
    }
}

fn capability_mask(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |mask, name| {
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        let number = CAPABILITIES.iter().position(|known| *known == bare);
        number
            .map(|number| mask | 1 << number)
            .ok_or_else(|| Failure::setup(format!("capability {name} is not known")))
    })
}

/// In the kernel's order.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn load_filter(filter: &[libc::sock_filter]) -> Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| Failure::setup("the seccomp filter is too long"))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program during the call and does not write to it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    check(result, "load the seccomp filter").map(drop)
}

/// A program to execute, with all memory it needs laid out: after the filters nothing is allocated.
struct Command {
    name: String,
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    fn new(args: &[String], env: &[String]) -> Result<Self> {
        let name = args.first().filter(|name| !name.is_empty()).cloned();
        let name = name.ok_or_else(|| Failure::setup("no command was given, and the image has none"))?;
        let candidates = if name.contains('/') {
            vec![c_string(&name)?]
        } else {
            let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
            let directories =
                path.split(':').map(|directory| if directory.is_empty() { "." } else { directory });
            directories.map(|directory| c_string(format!("{directory}/{name}"))).collect::<Result<_>>()?
        };
        let strings = |list: &[String]| list.iter().map(c_string).collect::<Result<Vec<_>>>();
        Ok(Self { candidates, args: strings(args)?, env: strings(env)?, name })
    }

    fn execute(&self) -> Failure {
        let pointers = |list: &[CString]| {
            list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<*const libc::c_char>>()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        let mut refused = None;
        for candidate in &self.candidates {
            // SAFETY: null-terminated arrays of C strings that outlive the call.
            unsafe { libc::execve(candidate.as_ptr(), args.as_ptr(), env.as_ptr()) };
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                // Another directory of the path may hold one that can be executed.
                Some(libc::EACCES) => refused = Some(error),
                _ => return self.failure(126, &words(&error)),
            }
        }
        match refused {
            Some(error) => self.failure(126, &words(&error)),
            None if self.name.contains('/') => self.failure(127, "no such file or directory"),
            None => self.failure(127, "executable file not found in $PATH"),
        }
    }

    fn failure(&self, code: i32, why: &str) -> Failure {
        Failure { code, message: format!("exec {:?}: {why}", self.name) }
    }
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who a program runs as.
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

impl User {
    /// Finds `""`, `uid[:gid]` or `name[:group]`, and further groups, in the files of a root.
    pub fn find(root: &Path, text: &str, groups: &[String]) -> Result<Self> {
        let group = small_file(root, "/etc/group");
        let mut user = Self::find_in(text, &small_file(root, "/etc/passwd"), &group)?;
        for wanted in groups {
            let gid = group_in(wanted, &group)?;
            if !user.groups.contains(&gid) {
                user.groups.push(gid);
            }
        }
        Ok(user)
    }

    fn find_in(text: &str, passwd: &str, group: &str) -> Result<Self> {
        let (name, group_name) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let name = if name.is_empty() { "0" } else { name };
        let number = name.parse::<u32>().ok();
        // name:password:uid:gid:comment:home:shell
        let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
            fields.len() >= 6 && (fields[0] == name || number.is_some() && fields[2].parse().ok() == number)
        });
        let field = |index: usize| entry.as_ref().and_then(|fields| fields[index].parse::<u32>().ok());
        let Some(uid) = field(2).or(number) else {
            return Err(Failure::setup(format!("user {name:?} is not in the image's /etc/passwd")));
        };
        // name:password:gid:members
        let groups = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let (gid, extra) = match group_name {
            None => {
                let login = entry.as_ref().map_or("", |fields| fields[0]);
                let member = |fields: &Vec<&str>| {
                    fields.len() >= 4
                        && !login.is_empty()
                        && fields[3].split(',').any(|member| member == login)
                };
                let extra = groups.filter(member).filter_map(|fields| fields[2].parse().ok()).collect();
                (field(3).unwrap_or(0), extra)
            }
            Some(wanted) => (group_in(wanted, group)?, Vec::new()),
        };
        let home = entry.map_or("/", |fields| fields[5]);
        let home = if home.is_empty() { "/" } else { home };
        Ok(Self { uid, gid, groups: extra, home: home.into() })
    }
}

/// The number of a group that is given by name or number.
fn group_in(wanted: &str, group: &str) -> Result<u32> {
    // name:password:gid:members
    let mut groups = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let named = groups.find(|fields| fields.len() >= 3 && fields[0] == wanted);
    let gid = named.and_then(|fields| fields[2].parse().ok()).or(wanted.parse().ok());
    gid.ok_or_else(|| Failure::setup(format!("group {wanted:?} is not in the image's /etc/group")))
}

/// A regular file of at most a megabyte; empty if there is no such file.
fn small_file(root: &Path, path: &str) -> String {
    const BYTES_MAX: u64 = 1 << 20;
    let read = || -> io::Result<String> {
        let root = File::open(root)?;
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::from(sys::open_beneath(root.as_fd(), path, flags, RESOLVE_IN_ROOT)?);
        if !file.metadata()?.is_file() {
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:40:other,web\n";

    fn find(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = User::find_in(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn a_user_is_a_name_or_a_number_with_or_without_a_group() {
        assert_eq!(find(""), (0, 0, vec![], "/root".into()));
        assert_eq!(find("web"), (33, 34, vec![40], "/var/www".into()));
        assert_eq!(find("33"), (33, 34, vec![40], "/var/www".into()));
        assert_eq!(find("1000"), (1000, 0, vec![], "/".into()));
        assert_eq!(find("1000:1001"), (1000, 1001, vec![], "/".into()));
        assert_eq!(find("web:logs"), (33, 40, vec![], "/var/www".into()));
        assert_eq!(find(":logs"), (0, 40, vec![], "/root".into()));
    }

    #[test]
    fn an_unknown_user_or_group_is_named() {
        let message = |text| User::find_in(text, PASSWD, GROUP).err().unwrap().message;
        assert!(message("nobody").contains("\"nobody\" is not in the image's /etc/passwd"));
        assert!(message("web:ghosts").contains("\"ghosts\" is not in the image's /etc/group"));
    }
}
