//! The first process of a machine: makes it what the image says, and then is what the first process of any node is.

use std::{
    fs::{self, File},
    io::Read,
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use rswarm_netoverlay::device::{link::Links, netns::Netns};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    system::{RebootCommand, reboot},
    time::{ClockId, clock_settime},
};
use serde::{Deserialize, Serialize};

use super::agent::{AGENT, KEY, PORT};
use crate::{
    lab::{
        machine::{Log, Machine, SOCKET},
        record::Capacity,
    },
    vm::{init, qemu::UP},
};

/// Tells the first process where it is.
pub(super) const MARK: &str = "/rswarm-lab-machine";
/// Where the program lies in a machine.
pub(super) const PROGRAM: &str = "/bin/rswarm";
/// `lab-inside`: the first process, once its files lie where they stay.
pub(in crate::lab) const INSIDE: &str = "lab-inside";
/// How it tells that it takes orders.
pub(super) const READY: &str = "rswarm-lab: ready";

const DISK: &str = "vda";
const FACTS: &str = "vdb";
/// Where the disk is.
const DISK_POINT: &str = "/var/lib";
/// What the name of the port begins with that the daemon's log leaves by; it ends in numbers of the kernel's choice.
const LOG_PORT: &str = "vport";
/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a machine is told when it boots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Facts {
    pub name: String,
    pub address: Ipv4Addr,
    /// All nodes of the lab.
    pub hosts: Vec<(Ipv4Addr, String)>,
    /// What those must know who speak with it.
    pub key: String,
    pub capacity: Option<Capacity>,
    /// By how much its clock shall be wrong.
    pub clock_ms: i64,
    /// What it runs in place of the daemon.
    pub daemon: Option<Vec<String>>,
    /// Variables for the daemon and for commands.
    pub environment: Vec<(String, String)>,
}

/// If this is the first process of a lab's machine, does its work and never returns.
pub(in crate::lab) fn dispatch() -> Option<ExitCode> {
    (std::process::id() == 1 && Path::new(MARK).exists()).then(|| {
        let is_home = std::env::args_os().nth(1).is_some_and(|word| word == INSIDE);
        let done = if is_home { live() } else { come_home() };
        if let Err(error) = done {
            eprintln!("the machine cannot be set up: {error:#}");
        }
        nix::unistd::sync();
        // It only returns if it cannot; the end of the first process ends the machine too.
        let _ = reboot(RebootCommand::PowerOff);
        ExitCode::FAILURE
    })
}

/// Moves to where containers can be made, and begins anew from there: the memory of the image is free then.
fn come_home() -> Result<()> {
    println!("{UP}");
    init::move_home()?;
    let error = Command::new(PROGRAM).arg(INSIDE).exec();
    Err(error).with_context(|| format!("cannot run {PROGRAM}"))
}

fn live() -> Result<()> {
    init::mount_all()?;
    let console = File::options().read(true).write(true).open("/dev/console").context("no console")?;
    nix::unistd::dup2_stdin(&console)?;
    nix::unistd::dup2_stdout(&console)?;
    nix::unistd::dup2_stderr(&console)?;
    drop(console);
    // A kernel without security modules has none.
    let _ = init::file_system("securityfs", "/sys/kernel/security", "");
    init::load_modules()?;
    init::delegate()?;
    let facts = facts()?;
    settle(&facts)?;
    for (name, value) in &facts.environment {
        // SAFETY: there is no other thread.
        unsafe { std::env::set_var(name, value) };
    }
    connect(facts.address)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("cannot listen for orders")?;
    let log = awaited(LOG_PORT)?;
    let log =
        File::options().write(true).open(&log).with_context(|| format!("cannot open {}", log.display()))?;
    let words = facts.daemon.unwrap_or_else(|| {
        let words = [PROGRAM, "daemon", "--socket", SOCKET, "--listen-addr", "0.0.0.0:2377"];
        let pace = is_emulated().then_some("--patient");
        words.into_iter().chain(pace).map(String::from).collect()
    });
    let mut machine = Machine::inside(words, Log::Open(log), facts.capacity)?;
    let mut agent = Command::new(PROGRAM);
    agent.arg(AGENT).env(KEY, &facts.key).stdin(Stdio::from(OwnedFd::from(listener)));
    Machine::without_mask(&mut agent).spawn().context("cannot start the agent")?;
    println!("{READY}");
    machine.run()?;
    bail!("its first process was told to end")
}

/// Whether the processor is QEMU's own, which is slow: it says so where virtual ones say whose they are.
fn is_emulated() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let said = std::arch::x86_64::__cpuid(0x4000_0000);
        [said.ebx, said.ecx, said.edx].map(u32::to_le_bytes).concat() == b"TCGTCGTCGTCG"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn facts() -> Result<Facts> {
    let mut text = String::new();
    File::open(awaited(FACTS)?)?.take(1 << 20).read_to_string(&mut text).context("cannot read what I am")?;
    serde_json::from_str(text.trim_end()).context("cannot understand what I am")
}

/// Its name, its disk, its clock.
fn settle(facts: &Facts) -> Result<()> {
    nix::unistd::sethostname(&facts.name).context("cannot name the machine")?;
    for directory in ["/etc", "/root", "/run/lab", "/run/rswarm", "/run/lock", DISK_POINT] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    let hosts = facts.hosts.iter().map(|(address, name)| format!("{address} {name}\n"));
    let hosts = ["127.0.0.1 localhost\n::1 localhost\n".to_owned()].into_iter().chain(hosts);
    fs::write("/etc/hosts", hosts.collect::<String>()).context("cannot write /etc/hosts")?;
    fs::write("/etc/hostname", format!("{}\n", facts.name)).context("cannot write /etc/hostname")?;
    let disk = awaited(DISK)?;
    // The tables of what is not used yet would be written otherwise, and fill the image.
    mount(Some(&disk), DISK_POINT, Some("ext4"), MsFlags::empty(), Some("noinit_itable"))
        .with_context(|| format!("cannot mount {}", disk.display()))?;
    step_clock(facts.clock_ms)
}

/// Sets the machine's clock ahead by so much, or back.
pub(in crate::lab) fn step_clock(by_ms: i64) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = i128::try_from(now.as_nanos())? + i128::from(by_ms) * 1_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(nanos.div_euclid(1_000_000_000)).context("no clock is that wrong")?,
        tv_nsec: nanos.rem_euclid(1_000_000_000) as i64,
    };
    clock_settime(ClockId::Realtime, time).context("cannot set the clock")
}

fn connect(address: Ipv4Addr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let links = Links::open(&Netns::current()?)?;
        links.set_up("lo").await?;
        links.ensure_address("eth0", address.into(), 24).await?;
        links.set_up("eth0").await
    })?;
    Ok(())
}

/// Waits until there is a device whose name begins so: its driver makes it when it has spoken with it.
fn awaited(name: &str) -> Result<PathBuf> {
    let find = || {
        let devices = fs::read_dir("/dev").into_iter().flatten().flatten();
        let mut named = devices.filter(|device| device.file_name().as_bytes().starts_with(name.as_bytes()));
        named.next().map(|device| device.path())
    };
    let news = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .context("cannot watch for devices")?;
    inotify::add_watch(&news, c"/dev", inotify::WatchFlags::CREATE).context("cannot watch /dev")?;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(device) = find() {
            return Ok(device);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("there is no device {name}");
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&news, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for devices"),
        }
        let mut events = [0; 4096];
        while rustix::io::read(&news, &mut events).is_ok_and(|length| length > 0) {}
    }
}
