//! The first process of a machine: makes it a home for the command, runs it, tells how it ended, and switches off.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};
use rustix::system::{RebootCommand, finit_module, reboot};

use super::DISK;
use super::image::{COMMAND, MODULES, ORDER};
use super::qemu::{ENDED, UP};

/// Where the files move: a process cannot leave a root on the initial ramdisk by `pivot_root`, as containers do.
const HOME: &str = "/mnt";
/// The disk, if there is one.
const DEVICE: &str = "/dev/vda";

pub(super) fn main() -> ExitCode {
    println!("{UP}");
    let code = work().unwrap_or_else(|error| {
        eprintln!("the machine cannot be set up: {error:#}");
        125
    });
    println!("{ENDED}{code}");
    nix::unistd::sync();
    // It only returns if it cannot; the end of the first process ends the machine too.
    let _ = reboot(RebootCommand::PowerOff);
    ExitCode::FAILURE
}

fn work() -> Result<i32> {
    move_home()?;
    mount_all()?;
    let console = File::options().read(true).write(true).open("/dev/console").context("no console")?;
    nix::unistd::dup2_stdin(&console)?;
    nix::unistd::dup2_stdout(&console)?;
    nix::unistd::dup2_stderr(&console)?;
    load_modules()?;
    delegate()?;
    bring_up("lo")?;
    if Path::new(DEVICE).exists() {
        fs::create_dir_all(DISK)?;
        mount(Some(DEVICE), DISK, Some("ext4"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {DEVICE}"))?;
    }
    run()
}

pub(crate) fn move_home() -> Result<()> {
    file_system("tmpfs", HOME, "mode=755")?;
    for entry in fs::read_dir("/").context("cannot list /")?.flatten() {
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(Path::new(HOME).join(&name))?;
            let filled = name == "bin" || name == MODULES.trim_start_matches('/');
            for file in fs::read_dir(entry.path())?.flatten().filter(|_| filled) {
                move_file(&file.path())?;
            }
        } else if entry.file_type()?.is_file() {
            move_file(&entry.path())?;
        }
    }
    std::env::set_current_dir(HOME)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("cannot move the root")?;
    nix::unistd::chroot(".").context("cannot enter the root")?;
    std::env::set_current_dir("/").context("cannot enter the root")
}

/// Copied, and then removed from the ramdisk, so that the memory is free again.
fn move_file(path: &Path) -> Result<()> {
    let to = Path::new(HOME).join(path.strip_prefix("/")?);
    fs::copy(path, &to).with_context(|| format!("cannot copy {}", path.display()))?;
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

pub(crate) fn mount_all() -> Result<()> {
    file_system("proc", "/proc", "")?;
    file_system("sysfs", "/sys", "")?;
    file_system("devtmpfs", "/dev", "")?;
    for (kind, at, data) in
        [("devpts", "/dev/pts", ""), ("tmpfs", "/dev/shm", ""), ("tmpfs", "/run", "mode=755")]
    {
        fs::create_dir_all(at)?;
        file_system(kind, at, data)?;
    }
    file_system("cgroup2", "/sys/fs/cgroup", "")?;
    let _ = std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd");
    nix::unistd::sethostname("vm").context("cannot name the machine")
}

pub(crate) fn file_system(kind: &str, at: &str, data: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(data))
        .with_context(|| format!("cannot mount {kind} at {at}"))
}

/// All controllers for whoever makes groups, as systemd gives them to a unit with `Delegate=yes`.
pub(crate) fn delegate() -> Result<()> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    for controller in controllers.split_whitespace() {
        // Some cannot be given on; those that matter are asked for by whoever needs them.
        let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}"));
    }
    Ok(())
}

pub(crate) fn load_modules() -> Result<()> {
    for name in fs::read_to_string(ORDER).context("cannot read the list of modules")?.lines() {
        let file = File::open(Path::new(MODULES).join(name)).with_context(|| format!("no module {name}"))?;
        finit_module(&file, c"", 0).with_context(|| format!("cannot load the module {name}"))?;
    }
    Ok(())
}

fn bring_up(link: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let here = rswarm_netoverlay::device::netns::Netns::current()?;
        rswarm_netoverlay::device::link::Links::open(&here)?.set_up(link).await
    })?;
    Ok(())
}

fn run() -> Result<i32> {
    let command = fs::read_to_string(COMMAND).context("cannot read the command")?;
    let words: Vec<&str> = command.split('\0').collect();
    ensure!(!words[0].is_empty(), "no command was given");
    let child = Command::new(words[0])
        .args(&words[1..])
        .env("PATH", "/bin")
        .env("HOME", "/")
        .spawn()
        .with_context(|| format!("cannot run {}", words[0]))?;
    let pid = i32::try_from(child.id())?;
    // Orphans are the first process's as well.
    loop {
        match wait().context("cannot wait for the command")? {
            WaitStatus::Exited(ended, code) if ended.as_raw() == pid => return Ok(code),
            WaitStatus::Signaled(ended, signal, _) if ended.as_raw() == pid => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}
