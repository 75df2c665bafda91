//! Starting a container: its cgroup, its namespaces, and the child that builds its root and becomes its program.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rswarm_shim::cgroup::Cgroup;

use crate::bundle::{Bundle, Namespace};
use crate::guard::Guard;
use crate::process::{self, Program};
use crate::rootfs;
use crate::sys::{self, Child, Failure, Result, Side, check};
use crate::users::Users;

/// How long the kernel may take to let go of a cgroup whose processes are dead.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);

/// A container whose program has been executed.
pub struct Started {
    pub child: Child,
    /// Our end of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    /// Ends it with the shim, if nothing else does.
    pub guard: Option<Guard>,
}

/// Starts the container, and returns when its program has been executed.
pub fn start(bundle: &Bundle, users: Option<&Users>, stdio: [RawFd; 3]) -> Result<Started> {
    let cgroup = bundle.launch.cgroup.as_ref();
    let started = prepare(bundle).and_then(|()| spawn(bundle, users, stdio));
    if started.is_err() {
        cgroup.map(remove);
    }
    started
}

/// Removes the cgroup of a container that has ended. A cgroup that stays is the daemon's to clear away.
pub fn remove(cgroup: &Cgroup) {
    cgroup.kill();
    if let Err(error) = cgroup.remove(REMOVAL_PATIENCE) {
        eprintln!("{error}");
    }
}

fn prepare(bundle: &Bundle) -> Result<()> {
    let Some(cgroup) = &bundle.launch.cgroup else {
        return Ok(());
    };
    let failed = |error: std::io::Error| Failure::setup(error.to_string());
    cgroup.create().map_err(failed)?;
    let resources = &bundle.spec.linux.resources;
    cgroup.limit(&resources.limits()).map_err(failed)?;
    cgroup.restrict_devices(&resources.devices()).map_err(|error| Failure::io("restrict devices", &error))
}

fn spawn(bundle: &Bundle, users: Option<&Users>, stdio: [RawFd; 3]) -> Result<Started> {
    let namespaces = Namespaces::open(&bundle.spec.linux.namespaces)?;
    let cgroup = bundle.launch.cgroup.as_ref();
    let unified = cgroup.and_then(Cgroup::open_unified);
    let (errors, child_errors) = sys::message_pair()?;
    let (child_go, go) = sys::pipe()?;
    let child = match sys::clone(namespaces.create, unified.as_ref().map(AsFd::as_fd))? {
        Side::Child => {
            // The other ends must not keep this one from noticing the shim's death.
            drop((errors, go));
            process::report_and_exit(&child_errors, || {
                wait_for_go(&child_go)?;
                become_container(bundle, users, &namespaces, stdio, &child_errors)
            })
        }
        Side::Parent(child) => child,
    };
    drop((child_errors, child_go));
    let added = cgroup.map_or(Ok(()), |cgroup| cgroup.add(child.pid, unified.is_some()));
    if let Err(error) = added {
        process::kill_and_reap(&child);
        return Err(Failure::setup(error.to_string()));
    }
    // SAFETY: one byte from a static buffer.
    unsafe { libc::write(go.as_raw_fd(), b"g".as_ptr().cast(), 1) };
    match process::reported(&errors) {
        Ok(terminal) => Ok(Started { child, terminal, guard: None }),
        Err(failure) => {
            process::kill_and_reap(&child);
            Err(failure)
        }
    }
}

fn wait_for_go(go: &OwnedFd) -> Result<()> {
    let mut byte = [0_u8; 1];
    // SAFETY: room for the one byte asked for.
    let count = unsafe { libc::read(go.as_raw_fd(), byte.as_mut_ptr().cast(), 1) };
    if count == 1 { Ok(()) } else { Err(Failure::setup("the shim ended during the start")) }
}

/// The child's side, from a copy of the shim to the container's program.
fn become_container(
    bundle: &Bundle,
    users: Option<&Users>,
    namespaces: &Namespaces,
    stdio: [RawFd; 3],
    report: &OwnedFd,
) -> Result<()> {
    // SAFETY: calls on this process only, with plain integers.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE")?;
        check(libc::setsid(), "setsid")?;
    }
    namespaces.join()?;
    rootfs::build(bundle, users)?;
    if let Some(name) = &bundle.spec.hostname {
        // SAFETY: pointer and length of a live string.
        check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }, "sethostname")?;
    }
    let launch = &bundle.launch;
    let program = Program {
        process: &bundle.spec.process,
        users,
        user: &launch.user,
        groups: &launch.groups,
        seccomp: &bundle.seccomp,
        stdio,
        first: true,
        init: launch.init,
        tty: launch.tty,
    };
    match launch.tty {
        None => process::become_program(&program),
        Some(size) => process::become_program_on_terminal(&program, size, report),
    }
}

/// Which namespaces are made with the clone, which are joined or made after it.
struct Namespaces {
    create: libc::c_int,
    join: Vec<(libc::c_int, OwnedFd, String)>,
    cgroup: bool,
}

impl Namespaces {
    fn open(list: &[Namespace]) -> Result<Self> {
        let mut namespaces = Self { create: 0, join: Vec::new(), cgroup: false };
        for Namespace { kind, path } in list {
            let flag = match kind.as_str() {
                "mount" => libc::CLONE_NEWNS,
                "pid" => libc::CLONE_NEWPID,
                "network" => libc::CLONE_NEWNET,
                "ipc" => libc::CLONE_NEWIPC,
                "uts" => libc::CLONE_NEWUTS,
                "cgroup" if path.is_none() => {
                    namespaces.cgroup = true;
                    continue;
                }
                // Entered last, by itself.
                "user" if path.is_none() => continue,
                _ => return Err(Failure::setup(format!("namespace {kind:?} is not supported"))),
            };
            match path {
                None => namespaces.create |= flag,
                Some(path)
                    if matches!(flag, libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) =>
                {
                    let namespace = sys::open(path, libc::O_RDONLY)?;
                    namespaces.join.push((flag, namespace, path.display().to_string()));
                }
                Some(_) => {
                    return Err(Failure::setup(format!("a {kind} namespace cannot be joined by path")));
                }
            }
        }
        if namespaces.create & libc::CLONE_NEWNS == 0 {
            return Err(Failure::setup("a container needs a mount namespace of its own"));
        }
        Ok(namespaces)
    }

    fn join(&self) -> Result<()> {
        for (flag, namespace, path) in &self.join {
            // SAFETY: an open descriptor and a flag, on a process of one thread.
            let result = unsafe { libc::setns(namespace.as_raw_fd(), *flag) };
            check(result, format_args!("join namespace {path}"))?;
        }
        if self.cgroup {
            // SAFETY: as above. The process is in its cgroup already, which becomes the namespace's root.
            check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }, "unshare cgroup namespace")?;
        }
        Ok(())
    }
}
