//! The least a container can cost: a process of one thread that clones itself into five namespaces, where the copy binds
//! and enters its root, mounts proc and becomes the program. No control group, no overlay, no filter, nobody watches.
//!
//! It is told to by a line, and answers with the time at which it began.

use super::program;
use crate::bench::stamp;
use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::wait::{WaitStatus, waitpid};
use std::ffi::{CStr, CString};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::ptr;

/// The hidden command: `rswarm bench-floor ROOT`.
pub const COMMAND: &str = "bench-floor";

/// Runs the hidden command, if this process was started for it. Call it while there is but one thread.
pub fn dispatch() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != COMMAND {
        return None;
    }
    let root = words.next().map(PathBuf::from);
    Some(match root.context("usage: rswarm bench-floor ROOT").and_then(|root| serve(&root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn serve(root: &Path) -> Result<()> {
    let root = CString::new(root.as_os_str().as_bytes()).context("the path of the root")?;
    let program = CString::new(program::PATH).context("the path of the program")?;
    for line in std::io::stdin().lines() {
        line.context("cannot read an order")?;
        let began = stamp::now_ns();
        start(&root, &program)?;
        println!("{began}");
    }
    Ok(())
}

fn start(root: &CStr, program: &CStr) -> Result<()> {
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    let own = own | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let mut stack = vec![0; 64 * 1024];
    // SAFETY: the copy shares this memory and makes system calls only, on a stack of its own, while this thread, the
    // only one, is held until it has become another program or ended.
    let child = unsafe {
        clone(Box::new(|| become_container(root, program)), &mut stack, flags | own, Some(libc::SIGCHLD))
    };
    match waitpid(child.context("cannot clone")?, None).context("cannot wait")? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => bail!("the bare container ended with {other:?}"),
    }
}

/// Returns only if something fails.
fn become_container(root: &CStr, program: &CStr) -> isize {
    // SAFETY: C strings and null pointers that the calls allow.
    unsafe {
        let (none, here) = (ptr::null::<libc::c_char>(), c".".as_ptr());
        let done = libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, ptr::null()) == 0
            && libc::mount(root.as_ptr(), root.as_ptr(), none, libc::MS_BIND, ptr::null()) == 0
            && libc::chdir(root.as_ptr()) == 0
            && libc::syscall(libc::SYS_pivot_root, here, here) == 0
            && libc::umount2(here, libc::MNT_DETACH) == 0
            && libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, ptr::null()) == 0;
        if done {
            let (args, env) = ([program.as_ptr(), ptr::null()], [ptr::null()]);
            libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr());
        }
    }
    1
}

/// The process that is told to.
pub struct Floor {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Floor {
    /// Starts it on a root directory with the program in it.
    pub fn new(root: &Path) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(COMMAND).arg(root).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start this program")?;
        let orders = child.stdin.take().context("it has no input")?;
        let answers = BufReader::new(child.stdout.take().context("it has no output")?);
        Ok(Self { child, orders, answers })
    }

    /// Tells it to begin.
    pub fn order(&mut self) -> Result<()> {
        self.orders.write_all(b"go\n").context("the bare container's starter is gone")
    }

    /// When it had begun; waits until the program has ended.
    pub fn began(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("the bare container's starter is gone")?;
        line.trim().parse().context("the bare container's starter has failed")
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
