//! Labs of ordinary users: a user namespace stands in for root.
//!
//! All labs of a user stand on one *ground*: a process that holds a user namespace, in which the user is
//! root, and a network namespace, which is "this machine" to the labs. A command of the user steps onto the
//! ground and does there what it does as root elsewhere. Each lab has a *door* as well: a socket that
//! listens on the real machine and leads to the lab's nodes.
//!
//! Nothing here needs a right: what a user namespace cannot give is listed by [`lacks`], not worked around.

mod door;
mod ground;

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{
    Lab,
    form::DEMO_PORT,
    process::Process,
    record::{self, base_directory},
};
pub(super) use door::{DOOR, hold as hold_door};
use ground::Ground;
pub(super) use ground::{GROUND, hold as hold_ground};

/// Tells a command that was put on the ground where the door of its lab is.
const DOOR_VARIABLE: &str = "RSWARM_LAB_DOOR";

/// What a command is going to do with labs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent<'a> {
    /// Make this one.
    Up(&'a str),
    /// Switch something of this one on.
    Start(&'a str),
    /// Remove this one.
    Down(&'a str),
    /// Look at what is there, or change it.
    Use,
}

/// Carries this very command line out on the user's ground, if the user is not root, and returns how it
/// ended; `None` if it is to be carried out here.
///
/// Call it before a second thread is started. For [`Intent::Use`] it does not return if all goes well: the
/// command takes this process's place.
///
/// # Errors
/// If this machine lets ordinary users have no namespaces; the error says what would change that.
pub fn step_onto_ground(intent: Intent<'_>) -> Result<Option<ExitCode>> {
    if nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let base = base_directory();
    match intent {
        Intent::Up(name) => up(&base, name).map(Some),
        Intent::Down(name) => down(&base, name).map(Some),
        // Nothing to look at, so nothing that needs a ground.
        _ if Lab::list(&base)?.is_empty() => Ok(None),
        Intent::Use | Intent::Start(_) => {
            let claim = ground::claim(&base)?;
            let ground = claim.ground()?;
            if let Intent::Start(name) = intent
                && is_lab(&base.join(name))
            {
                door::ensure(&base, name)?;
            }
            drop(claim);
            Err(itself(&base, ground)?.exec()).context("cannot go on inside the user namespace")
        }
    }
}

/// The address on this machine that leads to the lab, for a command that was put on the ground.
pub fn door() -> Option<String> {
    std::env::var(DOOR_VARIABLE).ok()
}

/// Whether this process lives in a user namespace: being root means less there.
pub fn is_inside() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// What a lab cannot do in the user namespace this process lives in, a sentence each.
pub fn lacks() -> Vec<String> {
    let mut lacks = vec![
        format!(
            "The nodes' addresses do not open on this machine; only the door does, which leads to port \
             {DEMO_PORT} of the nodes."
        ),
        "There are no control groups: limits of memory, processors and processes are accepted, not enforced."
            .to_string(),
        "Device nodes cannot be made: containers get this machine's null, zero, full, random, urandom and tty."
            .to_string(),
        "One user is mapped: images with files of other users than root do not load, and --user does not work."
            .to_string(),
    ];
    if fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        lacks.push(
            "/dev/net/tun does not open for you: containers on different nodes do not reach each other, \
             published ports do (cure: chmod 0666 /dev/net/tun, as root)."
                .to_string(),
        );
    }
    lacks
}

fn up(base: &Path, name: &str) -> Result<ExitCode> {
    record::check_name(name)?;
    let claim = ground::claim(base)?;
    let ground = claim.ground()?;
    let directory = base.join(name);
    // From here on there is a lab for whom the ground must stay.
    record::private_directory(&directory)?;
    let mut command = itself(base, ground)?;
    if !is_lab(&directory) {
        let port = door::ensure(base, name)?;
        command.env(DOOR_VARIABLE, format!("127.0.0.1:{port}"));
    }
    drop(claim);
    let status = follow(&mut command)?;
    if !status.success() && !is_lab(&directory) {
        clear(base, name)?;
    }
    Ok(code(status))
}

fn down(base: &Path, name: &str) -> Result<ExitCode> {
    record::check_name(name)?;
    if !base.join(name).is_dir() {
        if base.is_dir() {
            clear(base, name)?;
        }
        println!("lab \"{name}\" does not exist; nothing to remove");
        return Ok(ExitCode::SUCCESS);
    }
    let ground = ground::claim(base)?.ground()?;
    let status = follow(&mut itself(base, ground)?)?;
    if status.success() {
        clear(base, name)?;
    }
    Ok(code(status))
}

/// Takes away what a lab had on the real machine, and the ground if no lab is left on it.
fn clear(base: &Path, name: &str) -> Result<()> {
    let claim = ground::claim(base)?;
    door::close(base, name)?;
    // What is still in there is a lock and a log.
    match fs::remove_dir_all(base.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", base.join(name).display()));
        }
        _ => {}
    }
    if Lab::list(base)?.is_empty() { claim.end() } else { Ok(()) }
}

fn is_lab(directory: &Path) -> bool {
    directory.join("lab.json").exists()
}

/// This process's own command line, to be run on the ground.
fn itself(base: &Path, ground: Ground) -> Result<Command> {
    let program = own_program()?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(program);
    command.args(arguments).env("RSWARM_LAB_DIR", base);
    ground.put(&mut command)?;
    Ok(command)
}

/// Where this very program lies.
fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the file of this program")
}

/// Where to hand a request to end.
static FOLLOWED: AtomicI32 = AtomicI32::new(0);

/// Runs a command to its end. What is typed at the terminal reaches the command by itself, a request to end
/// is handed on; it decides, and this one waits.
fn follow(command: &mut Command) -> Result<ExitStatus> {
    extern "C" fn hand_on(number: i32) {
        let pid = FOLLOWED.load(Ordering::Relaxed);
        if pid > 0 {
            // SAFETY: may be called in a signal handler; the child is not waited for before the number is cleared.
            unsafe { nix::libc::kill(pid, number) };
        }
    }
    let mut child = command.spawn().context("cannot go on inside the user namespace")?;
    FOLLOWED.store(child.id() as i32, Ordering::Relaxed);
    let mut before = Vec::new();
    for (number, handler) in [
        (Signal::SIGINT, SigHandler::SigIgn),
        (Signal::SIGQUIT, SigHandler::SigIgn),
        (Signal::SIGHUP, SigHandler::Handler(hand_on)),
        (Signal::SIGTERM, SigHandler::Handler(hand_on)),
    ] {
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler reads an atomic and makes one system call.
        before.push((number, unsafe { sigaction(number, &action) }.context("cannot catch a signal")?));
    }
    let process = Process::find(child.id() as i32);
    while process.is_some_and(|process| !process.wait(Duration::from_secs(3600)).unwrap_or(true)) {}
    FOLLOWED.store(0, Ordering::Relaxed);
    let status = child.wait().context("cannot wait for the command")?;
    for (number, action) in before {
        // SAFETY: puts back what was there.
        unsafe { sigaction(number, &action) }.context("cannot restore a signal")?;
    }
    Ok(status)
}

fn code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The directory below which a user's labs lie by default: one that outlives the session if there is one.
pub(super) fn home() -> PathBuf {
    let owned = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw())
    };
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|path| owned(path));
    match (state, home) {
        (Some(state), _) => state.join("rswarm-lab"),
        (None, Some(home)) => home.join(".local/state/rswarm-lab"),
        (None, None) => format!("/var/tmp/rswarm-lab-{}", nix::unistd::geteuid()).into(),
    }
}

/// Makes the user's directory, and refuses one that belongs to somebody else: `/var/tmp` is everybody's.
fn own_directory(base: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    record::private_directory(base)?;
    let found = fs::symlink_metadata(base).with_context(|| format!("cannot look at {}", base.display()))?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        bail!("{} belongs to another user; set RSWARM_LAB_DIR to a directory of your own", base.display());
    }
    Ok(())
}
