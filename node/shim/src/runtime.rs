//! A container that another OCI runtime makes: the shim prepares its root and its cgroup, lets the runtime create and
//! start it, and from then on is to it what it is to its own.

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::{Duration, Instant};

use rswarm_shim::cgroup::Cgroup;
use rswarm_shim::protocol::{CONFIG_FILE, ROOT_DIR, RUNTIME_DIR, WindowSize};
use serde_json::Value;

use crate::bundle::Bundle;
use crate::container::{self, Started};
use crate::guard::Guard;
use crate::oci::{self, Facts};
use crate::process::{self, User, exit_code};
use crate::rootfs;
use crate::sys::{self, Child, Failure, Result, Side, c_path, c_string, check};

/// How long a runtime may take for one command.
const COMMAND_MAX: Duration = Duration::from_secs(25);
/// The specification, the runtime's log and the number of the container's first process, in [`RUNTIME_DIR`].
const LOG_FILE: &str = "log.json";
const PID_FILE: &str = "pid";
const CONSOLE_SOCKET: &str = "console";
/// What the runtime keeps about the container.
const STATE_DIR: &str = "state";
/// How much is read of what a runtime says of itself.
const WORDS_MAX: u64 = 64 * 1024;

/// A runtime, as it is used for one container.
pub struct Runtime<'a> {
    bundle: &'a Bundle,
    path: &'a Path,
    /// For what it keeps and says.
    home: PathBuf,
}

impl<'a> Runtime<'a> {
    /// The one a container is to be made by, if it is to be made by another.
    pub fn of(bundle: &'a Bundle, run_directory: &Path) -> Option<Self> {
        let path = bundle.launch.runtime.as_deref()?;
        Some(Self { bundle, path, home: run_directory.join(RUNTIME_DIR) })
    }

    /// Starts the container, and returns when its program is about to be executed.
    pub fn start(&self, stdio: [RawFd; 3]) -> Result<Started> {
        let started = self.create_and_start(stdio);
        if started.is_err() {
            self.remove();
        }
        started
    }

    /// Removes what the runtime has left of a container that has ended, or has not come to be.
    pub fn remove(&self) {
        let cgroup = self.bundle.launch.cgroup.as_ref();
        cgroup.map(Cgroup::kill);
        let id = self.bundle.launch.id.as_str();
        if self.home.join(STATE_DIR).join(id).exists()
            && let Err(failure) = self.run(&["delete", "--force", id])
        {
            eprintln!("{}", failure.message);
        }
        if let Some(cgroup) = cgroup {
            container::remove(cgroup);
            cgroup.remove_beside();
        }
    }

    fn create_and_start(&self, stdio: [RawFd; 3]) -> Result<Started> {
        let cgroup = self.bundle.launch.cgroup.as_ref();
        let failed = |error: std::io::Error| Failure::setup(error.to_string());
        if let Some(cgroup) = cgroup {
            cgroup.create().map_err(failed)?;
            cgroup.limit(&self.bundle.spec.linux.resources.limits()).map_err(failed)?;
        }
        fs::create_dir_all(self.home.join(STATE_DIR))
            .map_err(|error| Failure::io(format_args!("make {}", self.home.display()), &error))?;
        let console = self.bundle.launch.tty.map(|size| self.listen().map(|at| (at, size))).transpose()?;
        self.create(stdio, console.is_some())?;
        let child = self.first_process()?;
        let go = || -> Result<(Option<OwnedFd>, Guard)> {
            let terminal = console.map(|(listener, size)| receive_terminal(&listener, size)).transpose()?;
            if let Some(cgroup) = cgroup {
                // Where there is a hierarchy that the runtime does not know of.
                cgroup.add(child.pid, false).map_err(failed)?;
            }
            let guard = Guard::begin(&child, cgroup)?;
            self.run(&["start", &self.bundle.launch.id])?;
            Ok((terminal, guard))
        };
        match go() {
            Ok((terminal, guard)) => Ok(Started { child, terminal, guard: Some(guard) }),
            Err(failure) => {
                // A runtime takes what is dead but not reaped for alive, and waits.
                process::kill_and_reap(&child);
                Err(failure)
            }
        }
    }

    /// The runtime sends its end of the terminal here.
    fn listen(&self) -> Result<UnixListener> {
        let home = sys::open(&self.home, libc::O_PATH | libc::O_DIRECTORY)?;
        // The path may be longer than a socket's address.
        let path = format!("/proc/self/fd/{}/{CONSOLE_SOCKET}", home.as_raw_fd());
        UnixListener::bind(path).map_err(|error| Failure::io("listen for a terminal", &error))
    }

    fn create(&self, stdio: [RawFd; 3], terminal: bool) -> Result<()> {
        let home = sys::open(&self.home, libc::O_PATH | libc::O_DIRECTORY)?;
        let bundle = self.home.display().to_string();
        let pid_file = self.home.join(PID_FILE).display().to_string();
        let mut words = vec!["create", "--bundle", &bundle, "--pid-file", &pid_file];
        let socket = format!("/proc/{}/fd/{}/{CONSOLE_SOCKET}", std::process::id(), home.as_raw_fd());
        if terminal {
            words.extend(["--console-socket", &socket]);
        }
        words.push(&self.bundle.launch.id);
        let prepare = || {
            // No controllers are at stake, but what the container sees as its own cgroup: the runtime gives it a
            // namespace, and moves it only where it knows a hierarchy.
            if let Some(cgroup) = &self.bundle.launch.cgroup {
                cgroup
                    .add_uncontrolled(std::process::id() as i32)
                    .map_err(|error| Failure::setup(error.to_string()))?;
            }
            let root = self.bundle.directory.join(ROOT_DIR);
            rootfs::build_for_another(self.bundle, &root)?;
            self.write_spec(&root)
        };
        self.command(&words, stdio, prepare)
    }

    /// Runs a command of the runtime's that says nothing if all is well.
    fn run(&self, words: &[&str]) -> Result<()> {
        let null = sys::open(Path::new("/dev/null"), libc::O_RDWR)?;
        self.command(words, [null.as_raw_fd(); 3], || Ok(()))
    }

    fn command(&self, words: &[&str], stdio: [RawFd; 3], prepare: impl FnOnce() -> Result<()>) -> Result<()> {
        let log = self.home.join(LOG_FILE);
        let _ = fs::remove_file(&log);
        let (state, log_name) = (self.home.join(STATE_DIR).display().to_string(), log.display().to_string());
        let own = ["--root", &state, "--log", &log_name, "--log-format", "json"];
        let program = c_path(self.path)?;
        let args = own.iter().chain(words).map(c_string).collect::<Result<Vec<_>>>()?;
        let (reports, child_reports) = sys::message_pair()?;
        let child = match sys::clone(0, None)? {
            Side::Child => {
                drop(reports);
                process::report_and_exit(&child_reports, || {
                    prepare()?;
                    become_runtime(&program, &args, stdio)
                })
            }
            Side::Parent(child) => child,
        };
        drop(child_reports);
        if let Err(failure) = process::reported(&reports) {
            process::kill_and_reap(&child);
            return Err(failure);
        }
        let name = self.path.display();
        match wait(&child, Instant::now() + COMMAND_MAX) {
            Some(0) => Ok(()),
            Some(status) => Err(self.refusal(words[0], status, &log)),
            None => {
                process::kill_and_reap(&child);
                Err(Failure::setup(format!("{name} {} has not ended within {COMMAND_MAX:?}", words[0])))
            }
        }
    }

    /// Why a command has failed, in the runtime's words, and with the code that Docker would give it.
    fn refusal(&self, command: &str, status: i32, log: &Path) -> Failure {
        let mut text = Vec::new();
        if let Ok(file) = fs::File::open(log) {
            let _ = file.take(WORDS_MAX).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let said = said(&text).unwrap_or_else(|| format!("exit code {}", exit_code(status).0));
        Failure { code: code(&said), message: format!("{} {command}: {said}", self.path.display()) }
    }

    /// Which process the container's first is, now a child of the shim's.
    fn first_process(&self) -> Result<Child> {
        let path = self.home.join(PID_FILE);
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
        let unusable = || Failure::setup(format!("{} names no process: {text:?}", path.display()));
        let pid: i32 = text.trim().parse().ok().filter(|pid| *pid > 1).ok_or_else(unusable)?;
        // SAFETY: plain integers; a status that nobody asks for; a descriptor just returned is ours.
        unsafe {
            let pidfd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0), "open the container's process")?;
            let pidfd = <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(pidfd as RawFd);
            // Nobody else can take the number of a child that is not yet reaped.
            let ours = libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG | libc::__WALL);
            match ours {
                0 => Ok(Child { pid, pidfd }),
                _ => Err(Failure::setup(format!(
                    "{}: process {pid} has ended at once, or is not left to the shim",
                    self.path.display()
                ))),
            }
        }
    }

    fn write_spec(&self, root: &Path) -> Result<()> {
        let ours = self.bundle.directory.join(CONFIG_FILE);
        let spec: Value = fs::read(&ours)
            .map_err(|error| Failure::io(format_args!("read {}", ours.display()), &error))
            .and_then(|bytes| {
                serde_json::from_slice(&bytes)
                    .map_err(|error| Failure::setup(format!("{}: {error}", ours.display())))
            })?;
        let launch = &self.bundle.launch;
        let adjustment = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let facts = Facts {
            root,
            user: &User::find(root, &launch.user, &launch.groups)?,
            may_raise: may_raise(),
            ceiling: &|name| process::rlimit(name).ok().map(|limit| limit.rlim_max),
            oom_score_adj: adjustment.trim().parse().unwrap_or(0),
            has_sysctl: &|name| Path::new("/proc/sys").join(name.replace('.', "/")).exists(),
        };
        let path = self.home.join(CONFIG_FILE);
        let bytes = serde_json::to_vec(&oci::adapted(spec, &facts)).unwrap_or_default();
        fs::write(&path, bytes).map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))
    }
}

/// Whether this process has `CAP_SYS_RESOURCE`.
fn may_raise() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|set| set & 1 << 24 != 0)
}

fn become_runtime(program: &CString, args: &[CString], stdio: [RawFd; 3]) -> Result<()> {
    let path = c_string("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")?;
    let env = [path.as_ptr(), ptr::null()];
    let words: Vec<*const libc::c_char> =
        [program].into_iter().chain(args).map(|text| text.as_ptr()).chain([ptr::null()]).collect();
    // SAFETY: calls on this process only; null-terminated arrays of C strings that outlive the call; the signal set is
    // initialised before it is used.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), "PR_SET_PDEATHSIG")?;
        process::place_stdio(stdio)?;
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        let closed = libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        check(closed, "close_range")?;
        libc::execve(program.as_ptr(), words.as_ptr(), env.as_ptr());
    }
    Err(Failure::errno(format_args!("run the runtime {}", program.to_string_lossy())))
}

/// Waits for the end of a child. None: it has not ended by then.
fn wait(child: &Child, deadline: Instant) -> Option<i32> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut entry = libc::pollfd { fd: child.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut status = 0;
        // SAFETY: one entry that outlives the call; a status that is valid for writing.
        unsafe {
            libc::poll(&raw mut entry, 1, timeout_ms);
            if libc::waitpid(child.pid, &raw mut status, libc::WNOHANG | libc::__WALL) == child.pid {
                return Some(status);
            }
        }
        if left.is_zero() {
            return None;
        }
    }
}

/// The terminal that the runtime has sent, by now if ever.
fn receive_terminal(listener: &UnixListener, size: WindowSize) -> Result<OwnedFd> {
    let failed = |error| Failure::io("receive the terminal", &error);
    listener.set_nonblocking(true).map_err(failed)?;
    let (stream, _) = listener.accept().map_err(failed)?;
    stream.set_nonblocking(true).map_err(failed)?;
    let (_, mut descriptors) = sys::receive_with_fds(stream.as_raw_fd(), &mut [0; 4096]).map_err(failed)?;
    let terminal = descriptors.pop().ok_or_else(|| Failure::setup("the runtime has sent no terminal"))?;
    let window = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: an open descriptor and a size that outlives the call.
    check(
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const window) },
        "size the terminal",
    )?;
    Ok(terminal)
}

/// The last thing of weight in a runtime's log. They all write JSON, each its own.
fn said(log: &str) -> Option<String> {
    let message = |line: &str| {
        let Ok(entry) = serde_json::from_str::<Value>(line) else { return Some(line.trim().to_owned()) };
        let level = entry["level"].as_str().unwrap_or_default().to_ascii_lowercase();
        let words = entry["msg"].as_str().or_else(|| entry["fields"]["message"].as_str())?;
        matches!(level.as_str(), "error" | "fatal").then(|| words.trim().to_owned())
    };
    log.lines().rev().filter(|line| !line.trim().is_empty()).find_map(message)
}

/// What a refusal means for the exit record, as Docker reads it from the same words.
fn code(said: &str) -> i32 {
    let said = said.to_ascii_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if !any(&["exec", "executable"]) {
        125
    } else if any(&["executable file not found", "no such file or directory", "not found in $path"]) {
        127
    } else if any(&["permission denied", "exec format error", "is a directory"]) {
        126
    } else {
        125
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_words_are_found_in_its_log() {
        let runc = "{\"level\":\"warning\",\"msg\":\"old\"}\n{\"level\":\"error\",\"msg\":\"runc create failed: \
                    exec: \\\"x\\\": executable file not found in $PATH\",\"time\":\"now\"}\n";
        assert_eq!(code(&said(runc).unwrap()), 127);
        let youki = "{\"level\":\"ERROR\",\"fields\":{\"message\":\"failed: permission denied (exec)\"}}\n";
        assert_eq!(said(youki).unwrap(), "failed: permission denied (exec)");
        assert_eq!(code(&said(youki).unwrap()), 126);
        assert_eq!(said("not JSON\n\n").unwrap(), "not JSON");
        assert_eq!(said(""), None);
        assert_eq!(code("cannot mount proc: no such file or directory"), 125);
    }
}
