//! What runs inside a lab: the first process of a node, the process that holds the switch's network,
//! and the step from this machine into a node.
//!
//! These are hidden commands of the one binary. They change namespaces, so they must run before any
//! thread is started: a program calls [`dispatch`] first of all.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            net::{UnixListener, UnixStream},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigHandler, SigSet, Signal, kill, signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, close, dup2_stdout, fork, sethostname, setsid},
};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    cgroup::Groups,
    disks, groups_of, links,
    process::Process,
    record::{Capacity, NodeRecord, Record},
    rootless, vm, wire,
};

pub(super) const INIT: &str = "lab-init";
pub(super) const SWITCH: &str = "lab-switch";
pub(super) const ENTER: &str = "lab-enter";

/// Where a node's daemon listens, inside the node.
pub(super) const SOCKET: &str = "/run/rswarm/rswarm.sock";

/// Where a node's first process takes its orders, inside the node.
pub(super) const ORDERS: &str = "/run/lab/init.sock";

/// The variable of the environment that tells a daemon, and the command line in a node, by how much their clock is
/// wrong; it names a file.
const CLOCK: &str = "RSWARM_LAB_CLOCK";

/// The variable that tells a daemon what it shall say it has: billionths of processors, and bytes of memory.
const CAPACITY: &str = "RSWARM_LAB_CAPACITY";

/// That file, in a node's directory.
pub(super) const CLOCK_FILE: &str = "clock";

/// The directory that holds `rswarm`, inside the node.
const BIN: &str = "/run/lab/bin";

/// What a node has of its own. Control groups are seen as they are, because the daemon is told by
/// path where to make those of its containers.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// Runs the hidden command this process was started for, if it was started for one.
///
/// Call it at the very beginning of `main`, before there is a second thread, and leave with the code
/// it returns.
pub fn dispatch() -> Option<ExitCode> {
    if let Some(code) = vm::inside::dispatch() {
        return Some(code);
    }
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let result = match command.to_str()? {
        INIT => init(&arguments),
        SWITCH => switch(&arguments),
        ENTER => enter(&arguments),
        vm::agent::AGENT => vm::agent::serve(),
        rootless::GROUND => rootless::hold_ground(&arguments),
        rootless::DOOR => rootless::hold_door(&arguments),
        _ => return None,
    };
    Some(result.unwrap_or_else(|error| {
        eprintln!("{}: {error:#}", command.display());
        ExitCode::from(125)
    }))
}

/// `lab-switch LAB_DIRECTORY`: holds the switch's network namespace and serves its worse links until it is killed.
fn switch(arguments: &[OsString]) -> Result<ExitCode> {
    let [directory] = arguments else { bail!("usage: {SWITCH} LAB_DIRECTORY") };
    close_inherited()?;
    leave_caller()?;
    groups_of(Path::new(directory)).enter()?;
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    wire::settle_switch()?;
    if become_child()? {
        links::serve(Path::new(directory))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `lab-init LAB_DIRECTORY NODE`: boots a node.
fn init(arguments: &[OsString]) -> Result<ExitCode> {
    let [directory, name] = arguments else { bail!("usage: {INIT} LAB_DIRECTORY NODE") };
    close_inherited()?;
    let (directory, name) = (Path::new(directory), name.to_string_lossy());
    let record = Record::read(directory)?.context("there is no lab here")?;
    let node = record.node(&name)?.clone();
    let groups = groups_of(directory).node(&name);
    if record.backend.is_vm() {
        return vm::hold(directory, &record, &node, &groups);
    }
    leave_caller()?;
    groups.enter()?;
    // The mounts follow after the fork, so that the one who stays behind keeps this machine's /proc.
    unshare(NAMESPACES.difference(CloneFlags::CLONE_NEWNS)).context("cannot make a node's namespaces")?;
    if become_child()? {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        let mut machine = Machine::boot(directory, &record, &node, &groups)?;
        announce_ready()?;
        machine.run()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets go of whatever else the caller has open: a lock that it holds must not last as long as the lab.
fn close_inherited() -> Result<()> {
    let open = fs::read_dir("/proc/self/fd").context("cannot list what is open")?;
    let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // Collected first: what lists them is one of them, and gone by then.
    for number in numbers.filter(|number| *number > 2).collect::<Vec<_>>() {
        match close(number) {
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error).context("cannot close what was inherited"),
        }
    }
    Ok(())
}

/// Cuts the ties to terminal and directory of whoever typed the command.
pub(super) fn leave_caller() -> Result<()> {
    std::env::set_current_dir("/").context("cannot change to /")?;
    // Only a process group's leader cannot have a session, and it has what it needs already.
    let _ = setsid();
    Ok(())
}

/// Forks. The parent reports the child on standard output and gets `false`, the child gets `true`.
pub(super) fn become_child() -> Result<bool> {
    // SAFETY: `dispatch` runs before any other thread exists, so the child inherits no lock.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => Ok(true),
        ForkResult::Parent { child } => {
            let process = Process::find(child.as_raw()).context("the new process has ended at once")?;
            println!("process {} {}", process.pid, process.started);
            Ok(false)
        }
    }
}

pub(super) fn announce_ready() -> Result<()> {
    println!("ready");
    // Whoever started this reads until the last writer is gone.
    dup2_stdout(std::io::stderr()).context("cannot redirect standard output")
}

/// The state of a node's first process.
pub(super) struct Machine {
    command: Vec<OsString>,
    log: Log,
    /// By how much the node's clock is wrong; a node with a kernel of its own has a clock of its own.
    clock: Option<PathBuf>,
    capacity: Option<Capacity>,
    daemon: Daemon,
    orders: UnixListener,
    signals: SignalFd,
}

/// Where the daemon's log goes.
pub(super) enum Log {
    /// Into a file.
    At(PathBuf),
    /// Where this leads.
    Open(File),
}

#[derive(Clone, Copy)]
enum Daemon {
    NeverStarted,
    Running(Pid),
    Ended(WaitStatus),
}

impl Machine {
    fn boot(directory: &Path, record: &Record, node: &NodeRecord, groups: &Groups) -> Result<Self> {
        let own = directory.join(&node.name);
        let signals = catch_signals()?;
        sethostname(&node.name).context("cannot set the host name")?;
        furnish(directory, record, node)?;
        let orders = listen()?;
        let command = match &record.daemon {
            Some(words) => words.iter().map(OsString::from).collect(),
            None => daemon_command(&own, groups),
        };
        let clock = own.join(CLOCK_FILE);
        // A daemon looks for it once, and reads it again and again.
        File::options()
            .create(true)
            .append(true)
            .open(&clock)
            .with_context(|| format!("cannot make {}", clock.display()))?;
        Ok(Self {
            command,
            log: Log::At(own.join("daemon.log")),
            clock: Some(clock),
            capacity: node.capacity,
            daemon: Daemon::NeverStarted,
            orders,
            signals,
        })
    }

    /// That of a node with a kernel of its own, which is furnished.
    pub(super) fn inside(command: Vec<String>, log: Log, capacity: Option<Capacity>) -> Result<Self> {
        let signals = catch_signals()?;
        let command = command.into_iter().map(OsString::from).collect();
        let daemon = Daemon::NeverStarted;
        Ok(Self { command, log, clock: None, capacity, daemon, orders: listen()?, signals })
    }

    /// The mask is the first process's own business, and would be inherited.
    pub(super) fn without_mask(command: &mut Command) -> &mut Command {
        // SAFETY: the closure makes one system call and touches no memory of the parent's.
        unsafe { command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(std::io::Error::from)) }
    }

    /// Reaps, takes orders, and returns once told to switch off.
    pub(super) fn run(&mut self) -> Result<()> {
        loop {
            let mut ready =
                [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.orders, PollFlags::IN)];
            match poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled.context("cannot wait for signals and orders")?,
            };
            let [signalled, ordered] = ready.map(|fd| fd.revents().contains(PollFlags::IN));
            if signalled {
                while let Ok(Some(info)) = self.signals.read_signal() {
                    if info.ssi_signo == Signal::SIGTERM as u32 {
                        self.stop(Signal::SIGTERM);
                        return Ok(());
                    }
                }
                self.reap();
            }
            if ordered && let Ok((stream, _)) = self.orders.accept() {
                // A caller that goes away or talks nonsense harms only itself.
                if let Err(error) = self.obey(stream) {
                    eprintln!("{INIT}: an order failed: {error:#}");
                }
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { return };
            if matches!(self.daemon, Daemon::Running(daemon) if daemon == pid) {
                eprintln!("{INIT}: the daemon has ended: {}", ended(status));
                self.daemon = Daemon::Ended(status);
            }
        }
    }

    /// One order, one line in, one line out.
    fn obey(&mut self, stream: UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        let mut order = String::new();
        BufReader::new((&stream).take(100)).read_line(&mut order)?;
        let answer = match order.trim() {
            "start" => match self.start() {
                Ok(()) => self.describe(),
                Err(error) => format!("error: {error:#}"),
            },
            "kill" => {
                self.stop(Signal::SIGKILL);
                self.describe()
            }
            "stop" => {
                self.stop(Signal::SIGTERM);
                self.describe()
            }
            "status" => self.describe(),
            "listens" => match UnixStream::connect(SOCKET) {
                Ok(_) => "yes".to_string(),
                Err(_) => "no".to_string(),
            },
            other if other.starts_with("clock ") => match self.step_clock(&other[6..]) {
                Ok(()) => "set".to_string(),
                Err(error) => format!("error: {error:#}"),
            },
            other => format!("error: no such order: {other}"),
        };
        writeln!(&stream, "{answer}")?;
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        if let Daemon::Running(pid) = self.daemon {
            bail!("the daemon runs already, as process {pid} of the node");
        }
        let log = match &self.log {
            Log::Open(log) => log.try_clone().context("cannot duplicate a descriptor")?,
            Log::At(path) => File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot open {}", path.display()))?,
        };
        let program = &self.command[0];
        let mut command = Command::new(program);
        let child = Self::without_mask(&mut command)
            .args(&self.command[1..])
            .env_clear()
            .envs(environment())
            .envs(self.clock.as_ref().map(|clock| (CLOCK, clock)))
            .envs(self.capacity.map(|has| (CAPACITY, format!("{} {}", has.nano_cpus, has.memory))))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot duplicate a descriptor")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        self.daemon = Daemon::Running(Pid::from_raw(child.id() as i32));
        Ok(())
    }

    fn step_clock(&self, by_ms: &str) -> Result<()> {
        if self.clock.is_some() {
            bail!("its clock is this machine's");
        }
        vm::inside::step_clock(by_ms.parse().context("no number of milliseconds")?)
    }

    fn stop(&mut self, signal: Signal) {
        if let Daemon::Running(pid) = self.daemon {
            // It is our child and not yet waited for, so the number is still its own.
            let _ = kill(pid, signal);
        }
    }

    fn describe(&self) -> String {
        match self.daemon {
            Daemon::NeverStarted => "not started".to_string(),
            Daemon::Running(pid) => format!("running {pid}"),
            Daemon::Ended(status) => ended(status),
        }
    }
}

/// What a first process has to hear of: the ends of others, and its own.
fn catch_signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM);
    mask.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot receive signals")
}

fn listen() -> Result<UnixListener> {
    UnixListener::bind(ORDERS).with_context(|| format!("cannot listen on {ORDERS}"))
}

fn ended(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exited {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    }
}

fn daemon_command(own: &Path, groups: &Groups) -> Vec<OsString> {
    let state = own.join("state");
    let mut words: Vec<OsString> = vec![format!("{BIN}/rswarm").into(), "daemon".into()];
    for (flag, value) in [
        ("--state-dir", state.as_os_str()),
        ("--socket", OsStr::new(SOCKET)),
        ("--run-dir", OsStr::new("/run/rswarm")),
        ("--cgroup-parent", OsStr::new(groups.path())),
        ("--listen-addr", OsStr::new("0.0.0.0:2377")),
    ] {
        words.extend([flag.into(), value.into()]);
    }
    words
}

/// By how many milliseconds the clock of the node whose directory this is shall be ahead.
pub(super) fn clock_of(own: &Path) -> i64 {
    let said = fs::read_to_string(own.join(CLOCK_FILE));
    said.ok().and_then(|said| said.trim().parse().ok()).unwrap_or(0)
}

/// Variables of this process's environment that nodes have as well: what steers rswarm.
pub(super) fn kept_environment() -> Vec<(String, String)> {
    let kept = ["LANG", "TERM", "NO_COLOR", "RUST_LOG", "RUST_BACKTRACE", "FAILPOINTS"];
    kept.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

/// What programs in a node find in their environment: a clean one, apart from what steers rswarm.
pub(super) fn environment() -> Vec<(OsString, OsString)> {
    let kept = kept_environment().into_iter().map(|(name, value)| (name.into(), value.into()));
    let path = format!("{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    kept.chain([
        ("PATH".into(), path.into()),
        ("HOME".into(), "/root".into()),
        ("RSWARM_SOCKET".into(), SOCKET.into()),
    ])
    .collect()
}

/// Makes the mount namespace of a node: what identifies a machine is its own, all else is this
/// machine's.
fn furnish(directory: &Path, record: &Record, node: &NodeRecord) -> Result<()> {
    attach(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let_go_of_namespaces()?;
    disks::let_go_of_others(directory, &directory.join(&node.name))?;
    let program = File::open(&record.program)
        .with_context(|| format!("cannot open the program {}", record.program.display()))?;

    attach(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    for directory in [BIN, "/run/rswarm", "/run/lock", "/run/lab/cgroup"] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    let binary = format!("{BIN}/rswarm");
    File::create(&binary).with_context(|| format!("cannot make {binary}"))?;
    attach(Some(&format!("/proc/self/fd/{}", program.as_raw_fd())), &binary, None, MsFlags::MS_BIND)?;

    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach(Some("proc"), "/proc", Some("proc"), flags)?;
    let cgroups = Path::new("/sys/fs/cgroup").is_dir();
    if cgroups {
        attach(Some("/sys/fs/cgroup"), "/run/lab/cgroup", None, MsFlags::MS_BIND | MsFlags::MS_REC)?;
    }
    attach(Some("sysfs"), "/sys", Some("sysfs"), flags)?;
    if cgroups {
        attach(Some("/run/lab/cgroup"), "/sys/fs/cgroup", None, MsFlags::MS_MOVE)?;
    }
    if Path::new("/dev/shm").is_dir() {
        attach(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    }

    let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_string();
    if let Some(subnet) = record.subnet {
        hosts.extend(record.nodes.iter().map(|node| format!("{} {}\n", subnet.node(node.number), node.name)));
    }
    replace("/etc/hosts", "/run/lab/hosts", &hosts)?;
    replace("/etc/hostname", "/run/lab/hostname", &format!("{}\n", node.name))
}

/// Puts `text` in the place of a file, in this mount namespace only. What is not there stays absent.
fn replace(target: &str, source: &str, text: &str) -> Result<()> {
    fs::write(source, text).with_context(|| format!("cannot write {source}"))?;
    if Path::new(target).exists() {
        attach(Some(source), target, None, MsFlags::MS_BIND)?;
    }
    Ok(())
}

fn attach(source: Option<&str>, target: &str, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    let data = (kind == Some("tmpfs")).then_some(if target == "/run" { "mode=755" } else { "mode=1777" });
    mount(source, target, kind, flags, data).with_context(|| format!("cannot mount on {target}"))
}

/// Detaches every namespace that is pinned in this machine's file system: a copy of the pin in here
/// would keep it alive for as long as the node runs.
pub(super) fn let_go_of_namespaces() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    for line in table.lines().filter(|line| line.contains(" - nsfs ")) {
        if let Some(point) = line.split(' ').nth(4) {
            match umount2(point, MntFlags::MNT_DETACH) {
                // Its owner has removed it since the table was read.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot detach {point}")),
            }
        }
    }
    Ok(())
}

/// `lab-enter LAB_DIRECTORY NODE -- COMMAND…`: runs a command inside a node, and ends as it ends.
fn enter(arguments: &[OsString]) -> Result<ExitCode> {
    let [directory, name, dashes, program, rest @ ..] = arguments else {
        bail!("usage: {ENTER} LAB_DIRECTORY NODE -- COMMAND…");
    };
    if dashes.as_bytes() != b"--" {
        bail!("usage: {ENTER} LAB_DIRECTORY NODE -- COMMAND…");
    }
    let (directory, name) = (Path::new(directory), name.to_string_lossy());
    let record = Record::read(directory)?.context("there is no lab here")?;
    let process = record.node(&name)?.init;
    let init = process.and_then(Process::open);
    let init = init.with_context(|| format!("{name} is off; switch it on by `rswarm lab start {name}`"))?;

    if let Some(case) = process.filter(|_| record.backend.is_vm()) {
        let words = [program].into_iter().chain(rest).map(|word| word.to_str().map(str::to_owned));
        let words: Option<Vec<String>> = words.collect();
        return vm::enter::run(case, words.context("a command for another machine has to be text")?);
    }
    groups_of(directory).node(&name).enter()?;
    setns(init, NAMESPACES).with_context(|| format!("cannot enter the namespaces of {name}"))?;
    // In a user namespace /root is somebody else's.
    if std::env::set_current_dir("/root").is_err() {
        std::env::set_current_dir("/").context("cannot change to /")?;
    }

    let mut command = Command::new(program);
    command.args(rest).env_clear().envs(environment());
    command.env(CLOCK, directory.join(&*name).join(CLOCK_FILE));
    // The search for the program goes by this process's own path.
    // SAFETY: there is no other thread that could read the environment meanwhile.
    unsafe { std::env::set_var("PATH", lookup_path()) };
    // SAFETY: the closure makes one system call and touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from))
    };
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("cannot run {} on {name}: {error}", program.display());
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if missing { 127 } else { 126 }));
        }
    };
    // What is typed at the terminal reaches the command by itself; it decides, and this one follows.
    for typed in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal installs no code of ours.
        unsafe { signal(typed, SigHandler::SigIgn) }.context("cannot ignore a signal")?;
    }
    let status = child.wait().context("cannot wait for the command")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn lookup_path() -> OsString {
    environment().into_iter().find(|(name, _)| name == "PATH").map(|(_, path)| path).unwrap_or_default()
}
