//! The process between rswarm and one container: it starts the container, reaps it, keeps its log and its exit
//! record, and answers on a socket. It has one thread and outlives the daemon.
//!
//! `rswarm-shim CONTAINER_DIR RUN_DIR`, with the run directory's lock as standard input and a pipe for one line, a
//! `Ready`, as standard output.

mod attach;
mod beside;
mod bundle;
mod container;
mod errand;
mod execs;
mod guard;
mod init;
mod journal;
mod log;
mod log_file;
mod oci;
mod process;
mod rootfs;
mod runtime;
mod serve;
mod sys;
mod terminal;
mod users;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::ptr;

use rswarm_shim::protocol::{Exit, LOG_FILE, Ready, Running, SOCKET_FILE, STATE_FILE};

use crate::bundle::Bundle;
use crate::container::Started;
use crate::guard::Guard;
use crate::log::{Log, Stream, unix_ns};
use crate::runtime::Runtime;
use crate::serve::{Shim, Streams};
use crate::sys::{Child, Failure, Result, check};
use crate::users::Users;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(directory), Some(run_directory)) = (args.next(), args.next()) else {
        eprintln!("usage: rswarm-shim CONTAINER_DIR RUN_DIR");
        return ExitCode::from(2);
    };
    // SAFETY: calls on this process only; the parent's copy ends at once, so that init inherits the shim.
    unsafe {
        match libc::fork() {
            -1 => return ExitCode::FAILURE,
            0 => {}
            _ => libc::_exit(0),
        }
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"rswarm-shim".as_ptr());
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        // The daemon does without huge pages; what the container does is its own affair.
        libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::umask(0o022);
    }
    match run(&directory, &run_directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let exit = Exit {
                code: failure.code,
                signal: None,
                oom_killed: false,
                error: Some(failure.message),
                started_unix_ns: None,
                finished_unix_ns: unix_ns(),
                log_dropped_bytes: 0,
            };
            serve::record(&directory, &exit);
            tell(&Ready::Failed(exit));
            ExitCode::FAILURE
        }
    }
}

fn run(directory: &Path, run_directory: &Path) -> Result<()> {
    let bundle = Bundle::read(directory)?;
    let signals = block_child_signal()?;
    let listener = listen(run_directory)?;
    let null_failed = |error| Failure::io("open /dev/null", &error);
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(null_failed)?;
    let (stdout, stdout_child) = sys::pipe()?;
    let (stderr, stderr_child) = sys::pipe()?;
    let (stdin_child, stdin) = if bundle.launch.stdin && bundle.launch.tty.is_none() {
        let (reader, writer) = sys::pipe()?;
        (Some(reader), Some(writer))
    } else {
        (None, None)
    };
    let input = stdin_child.as_ref().map_or(null.as_raw_fd(), AsRawFd::as_raw_fd);
    let stdio = [input, stdout_child.as_raw_fd(), stderr_child.as_raw_fd()];
    let started_unix_ns = unix_ns();
    let users = Users::of(&bundle.spec.linux)?;
    let runtime = Runtime::of(&bundle, run_directory);
    let Started { child, terminal, guard } = match &runtime {
        None => container::start(&bundle, users.as_ref(), stdio)?,
        Some(runtime) => runtime.start(stdio)?,
    };
    drop((stdin_child, stdout_child, stderr_child));

    let running = Running {
        pid: child.pid,
        start_ticks: start_ticks(&child),
        shim_pid: std::process::id() as i32,
        started_unix_ns,
    };
    if let Err(error) = save_state(run_directory, &running) {
        eprintln!("cannot save the state in {}: {error}", run_directory.display());
    }
    // Only after the container has begun: it must not inherit the shim's protection.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    tell(&Ready::Running(running.clone()));
    if let Some(shims) = &bundle.launch.shims {
        // Outside the daemon's own cgroup the shim lives on when that is killed as a whole. The move can take the
        // kernel milliseconds, and nobody waits for it here.
        let own = [Some(std::process::id() as i32), guard.as_ref().map(Guard::pid)];
        for pid in own.into_iter().flatten() {
            let _ = shims.add(pid, false);
        }
    }
    let log = Log::open(directory.join(LOG_FILE), bundle.launch.log, &bundle.launch.journal);
    let mut outputs = vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
    if let Some(terminal) = &terminal {
        // The pipes have no other end.
        let copy = terminal.try_clone().map_err(|error| Failure::io("copy the terminal", &error))?;
        outputs = vec![(Stream::Stdout, copy)];
    }
    for (_, output) in &outputs {
        // Poll promises nothing here: what there was to read may be gone, flushed from the terminal or read from
        // /dev/stdout by the container itself.
        sys::set_nonblocking(output).map_err(|error| Failure::io("read without waiting", &error))?;
    }
    let streams = Streams { outputs, input: terminal.or(stdin), null };
    let outside = (runtime.as_ref(), users.as_ref());
    Shim::new(&bundle, outside, child, running, log, streams).run(&listener, &signals);
    drop(guard);
    let _ = fs::remove_file(run_directory.join(SOCKET_FILE));
    Ok(())
}

/// Says the one line on standard output, and gives that up.
fn tell(ready: &Ready) {
    let mut line = serde_json::to_vec(ready).unwrap_or_default();
    line.push(b'\n');
    let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    if let Ok(null) = File::open("/dev/null") {
        // SAFETY: both are descriptors of this process.
        unsafe { libc::dup2(null.as_raw_fd(), 1) };
    }
}

/// Children's ends are read from the descriptor returned, in the loop, and nowhere else.
fn block_child_signal() -> Result<OwnedFd> {
    // SAFETY: the set is initialised before it is used, and a descriptor just returned is ours.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()), "sigprocmask")?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        Ok(OwnedFd::from_raw_fd(check(fd, "signalfd")? as i32))
    }
}

/// Listens in the run directory, whose path may be longer than a socket's address.
fn listen(run_directory: &Path) -> Result<UnixListener> {
    let directory = sys::open(run_directory, libc::O_PATH | libc::O_DIRECTORY)?;
    let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", directory.as_raw_fd());
    let _ = fs::remove_file(&path);
    let failed = |error| Failure::io(format_args!("listen in {}", run_directory.display()), &error);
    let listener = UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// When the child started, in clock ticks since boot; zero if that cannot be read.
fn start_ticks(child: &Child) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.pid)).unwrap_or_default();
    // The command's name, in parentheses, may hold anything; what follows it is fields 3, 4, ...
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

fn save_state(run_directory: &Path, running: &Running) -> io::Result<()> {
    let temporary = run_directory.join(".state.json.tmp");
    fs::write(&temporary, serde_json::to_vec(running)?)?;
    fs::rename(temporary, run_directory.join(STATE_FILE))
}
