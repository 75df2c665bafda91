//! The ground: the process that holds a user's namespaces, and how others step onto it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{getegid, geteuid, pause},
};
use rustix::process::Signal;

use crate::lab::{
    PATIENCE,
    machine::{announce_ready, become_child, leave_caller},
    process::{Process, with_arguments},
    talk::spawn,
};

/// `lab-ground BASE`: holds a user's namespaces until it is killed.
pub(in crate::lab) const GROUND: &str = "lab-ground";

/// What a ground consists of.
const NAMESPACES: CloneFlags =
    CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWNS).union(CloneFlags::CLONE_NEWNET);

/// A user's ground.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground {
    process: Process,
}

impl Ground {
    /// Has the command run on the ground, as its root.
    pub fn put(self, command: &mut Command) -> Result<()> {
        let holder: OwnedFd =
            self.process.open().context("the process that holds the user namespace has ended")?;
        // SAFETY: the closure makes one system call and touches no memory of the parent's.
        unsafe { command.pre_exec(move || setns(&holder, NAMESPACES).map_err(io::Error::from)) };
        Ok(())
    }

    /// Takes this process, which must have one thread, into the user and network namespaces.
    pub fn enter(self) -> Result<()> {
        let holder = self.process.open().context("the process that holds the user namespace has ended")?;
        setns(holder, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
            .context("cannot enter the user namespace")
    }
}

/// The right to make and to end a user's ground; others wait.
pub(super) struct Claim {
    base: PathBuf,
    _lock: Flock<File>,
}

/// Waits for the right.
pub(super) fn claim(base: &Path) -> Result<Claim> {
    super::own_directory(base)?;
    let path = base.join("ground.lock");
    let file = File::options().create(true).append(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
    let base = fs::canonicalize(base).with_context(|| format!("cannot resolve {}", base.display()))?;
    Ok(Claim { base, _lock: lock.with_context(|| format!("cannot lock {}", path.display()))? })
}

impl Claim {
    /// The ground; made, if there is none.
    pub fn ground(&self) -> Result<Ground> {
        if let Some(process) = find(&self.base).filter(|process| process.is_alive()) {
            return Ok(Ground { process });
        }
        let log = self.base.join("ground.log");
        // A complaint of an earlier attempt is not this one's.
        let _ = fs::remove_file(&log);
        let program = super::own_program()?;
        let process =
            spawn(&program, GROUND, &[self.base.as_os_str()], Stdio::null(), &log).map_err(|error| {
                let why = fs::read_to_string(&log).unwrap_or_default();
                match why.trim().strip_prefix(&format!("{GROUND}: ")) {
                    Some(why) => anyhow!("{why}"),
                    None => error,
                }
            });
        match process {
            Ok(process) => Ok(Ground { process }),
            Err(error) => {
                let _ = fs::remove_file(&log);
                let _ = fs::remove_file(self.base.join("ground.lock"));
                let _ = fs::remove_dir(&self.base);
                Err(error)
            }
        }
    }

    /// Ends the ground, and removes what is left of the user's labs on disk.
    pub fn end(self) -> Result<()> {
        if let Some(process) = find(&self.base) {
            process.signal(Signal::KILL).context("cannot end the process that holds the user namespace")?;
            if !process.wait(PATIENCE).context("cannot wait for a process to end")? {
                bail!("process {} does not die; look at its state in /proc", process.pid);
            }
        }
        for file in ["ground.log", "ground.lock"] {
            let _ = fs::remove_file(self.base.join(file));
        }
        let _ = fs::remove_dir(&self.base);
        Ok(())
    }
}

/// The ground of the labs in this directory. It is known by its command line: there is no record to go stale.
fn find(base: &Path) -> Option<Process> {
    use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
    let own = |process: &Process| {
        fs::metadata(format!("/proc/{}", process.pid)).is_ok_and(|found| found.uid() == geteuid().as_raw())
    };
    with_arguments(&[GROUND.as_bytes(), base.as_os_str().as_bytes()]).into_iter().find(own)
}

/// The ground that others have made for the labs in this directory.
pub(super) fn existing(base: &Path) -> Result<Ground> {
    Ok(Ground { process: find(base).context("the process that holds the user namespace has ended")? })
}

/// The hidden command.
pub(in crate::lab) fn hold(arguments: &[OsString]) -> Result<ExitCode> {
    let [_base] = arguments else { bail!("usage: {GROUND} BASE") };
    leave_caller()?;
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| forbidden("make a user namespace", error))?;
    let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
    map("setgroups", "deny".into()).context("cannot give up supplementary groups")?;
    map("uid_map", format!("0 {user} 1")).context("cannot map the user")?;
    map("gid_map", format!("0 {group} 1")).context("cannot map the group")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(|error| forbidden("use the user namespace", error))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("cannot make mounts private")?;
    if become_child()? {
        announce_ready()?;
        loop {
            pause();
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Why an ordinary user cannot have what a lab needs here, and what to do about it.
fn forbidden(what: &str, error: Errno) -> anyhow::Error {
    let cure = match error {
        Errno::ENOSPC | Errno::EUSERS => "the limit is in /proc/sys/user/max_user_namespaces".to_string(),
        Errno::ENOSYS | Errno::EINVAL => "this kernel has none".to_string(),
        _ => {
            let switches = [
                ("kernel/unprivileged_userns_clone", "1"),
                ("kernel/apparmor_restrict_unprivileged_userns", "0"),
            ];
            let there = switches.iter().filter(|(file, _)| Path::new("/proc/sys").join(file).exists());
            let words: Vec<String> =
                there.map(|(file, value)| format!("sysctl {}={value}", file.replace('/', "."))).collect();
            if words.is_empty() {
                "this machine forbids it".into()
            } else {
                format!("allow it by {}", words.join(" and "))
            }
        }
    };
    anyhow!("a lab without root cannot {what}: {} ({cure}); or run the lab by sudo", error.desc())
}
