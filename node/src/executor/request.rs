//! What a container is to be, and the checks that make it safe to carry out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use rswarm_shim::cgroup::{IoLimit, Limits};
pub use rswarm_shim::protocol::{LogDriver, LogOptions};

use rswarm_shim::protocol::JOURNAL_SOCKET;

use super::{Error, bundle};
use rswarm_control::model::is_namespaced;

/// A container to be made. Paths on this machine are absolute.
#[derive(Clone, Debug)]
pub struct ContainerRequest {
    /// Letters, digits, `-`, `_` and `.`; at most 128 bytes; unique on this machine for as long as it exists.
    pub id: String,
    /// The image's layers, topmost first; at least one, which may be an empty directory.
    pub lower: Vec<PathBuf>,
    /// The program and its arguments: the image's entrypoint and command already joined.
    pub args: Vec<String>,
    /// `NAME=value`; `PATH`, `HOSTNAME` and `HOME` are added where missing.
    pub env: Vec<String>,
    /// `""` (root), `uid[:gid]` or `name[:group]`, looked up in the image's files.
    pub user: String,
    /// Absolute, made if missing; `""` is `/`.
    pub workdir: String,
    /// Its host name, at most 64 bytes; `""` takes the first 12 bytes of the id.
    pub hostname: String,
    /// Its own addresses, for `/etc/hosts`.
    pub addresses: Vec<IpAddr>,
    /// Further lines for `/etc/hosts`.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// For `/etc/resolv.conf`.
    pub dns: Dns,
    /// In this order, after the file systems every container has.
    pub mounts: Vec<Mount>,
    /// A network namespace to join, as a path. None: one of its own with only a loopback device that is down.
    pub netns: Option<PathBuf>,
    /// Resources it may use at most.
    pub limits: Limits,
    /// The signal number that asks it to end.
    pub stop_signal: i32,
    /// For the caller; kept with the container.
    pub labels: BTreeMap<String, String>,
    /// How its log is kept.
    pub log: LogOptions,
    /// Fields of its entries in the journal, for a log that is kept there.
    pub journal: Vec<(String, String)>,
    /// What it may do.
    pub privileges: Privileges,
    /// Groups of its process besides those of its user, by name or number, looked up in the image's files.
    pub groups: Vec<String>,
    /// Process 1 is an init of ours that passes signals on and reaps.
    pub init: bool,
    /// It gets a terminal.
    pub tty: bool,
    /// Its standard input stays open, for whoever attaches.
    pub stdin: bool,
    /// Limits of its processes.
    pub rlimits: Vec<Rlimit>,
    /// Devices of this machine that it may use.
    pub devices: Vec<Device>,
    /// Programs of this machine that the runtime runs at moments of its life. Only another runtime does.
    pub hooks: Vec<Hook>,
    /// Most that its `/dev/shm` may hold; none is 64 MiB.
    pub shm_bytes: Option<u64>,
    /// How readily the kernel kills it when memory is short.
    pub oom_score_adj: i32,
    /// Its users are not the machine's: its root has no rights outside it.
    pub own_users: bool,
    /// It is killed so long after its start, unless that is put off by [`Executor::lease`](super::Executor::lease):
    /// also when this daemon is no more.
    pub lease: Option<Duration>,
}

impl ContainerRequest {
    /// A container with defaults throughout.
    pub fn new(id: impl Into<String>, lower: Vec<PathBuf>, args: Vec<String>) -> Self {
        Self {
            id: id.into(),
            lower,
            args,
            env: Vec::new(),
            user: String::new(),
            workdir: String::new(),
            hostname: String::new(),
            addresses: Vec::new(),
            extra_hosts: Vec::new(),
            dns: Dns::default(),
            mounts: Vec::new(),
            netns: None,
            limits: Limits { pids: Some(1024), ..Limits::default() },
            stop_signal: nix::libc::SIGTERM,
            labels: BTreeMap::new(),
            log: LogOptions::default(),
            journal: Vec::new(),
            privileges: Privileges::default(),
            groups: Vec::new(),
            init: false,
            tty: false,
            stdin: false,
            rlimits: Vec::new(),
            devices: Vec::new(),
            hooks: Vec::new(),
            shm_bytes: None,
            oom_score_adj: 0,
            own_users: false,
            lease: None,
        }
    }
}

/// A limit of a container's processes; the largest number is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// As `ulimit` calls it: `nofile`, `core`, …
    pub name: String,
    /// What holds.
    pub soft: u64,
    /// How far it may be raised.
    pub hard: u64,
}

/// A program of this machine, run for a container.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// The moment, as OCI calls it: `createContainer`, `poststop`, …
    pub hook_name: String,
    /// Absolute.
    pub path: PathBuf,
    /// What it is called and told.
    #[serde(default)]
    pub args: Vec<String>,
    /// All that is in its environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds it may take.
    pub timeout: Option<u32>,
}

impl Hook {
    /// The moments there are.
    pub const NAMES: [&str; 6] =
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
}

/// A device of this machine in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its path here.
    pub source: PathBuf,
    /// Its path there.
    pub target: String,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

impl Device {
    /// Whether it is a block device, and its numbers. None: it is no device.
    pub(super) fn numbers(&self) -> Option<(bool, u32, u32)> {
        device_numbers(&self.source).ok()
    }
}

/// Whether a device is a block device, and its major and minor number.
///
/// # Errors
/// If nothing is there, or it is no device.
pub fn device_numbers(path: &Path) -> std::io::Result<(bool, u32, u32)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let data = std::fs::metadata(path)?;
    let (block, character) = (data.file_type().is_block_device(), data.file_type().is_char_device());
    if !block && !character {
        return Err(std::io::Error::other("it is no device"));
    }
    let number = data.rdev();
    Ok((block, rustix::fs::major(number), rustix::fs::minor(number)))
}

/// How names are resolved in a container.
#[derive(Clone, Debug, Default)]
pub struct Dns {
    /// Servers, in order of preference.
    pub servers: Vec<IpAddr>,
    /// Domains to complete short names with.
    pub search: Vec<String>,
    /// As in `resolv.conf`, for example `ndots:0`.
    pub options: Vec<String>,
}

/// Something to be seen in a container besides its image.
#[derive(Clone, Debug)]
pub enum Mount {
    /// A file or directory of this machine.
    Bind {
        /// Absolute, and existing.
        source: PathBuf,
        /// Absolute; made if missing.
        target: String,
        /// It cannot be written through this mount.
        readonly: bool,
    },
    /// Memory.
    Tmpfs {
        /// Absolute; made if missing.
        target: String,
        /// None: half of the machine's memory.
        size_bytes: Option<u64>,
        /// The directory's permissions, for example `0o1777`.
        mode: u32,
    },
}

impl Mount {
    /// Where it is seen.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. } | Self::Tmpfs { target, .. } => target,
        }
    }
}

/// How a container differs from the default profile: ten capabilities, no new privileges, filtered system calls.
#[derive(Clone, Debug, Default)]
pub struct Privileges {
    /// Without the `CAP_` in front; `ALL` adds all.
    pub cap_add: Vec<String>,
    /// Without the `CAP_` in front; `ALL` drops all that are not added.
    pub cap_drop: Vec<String>,
    /// The image cannot be written over.
    pub read_only_root: bool,
    /// All system calls may be made.
    pub seccomp_unconfined: bool,
    /// Programs may gain privileges by being executed, as `sudo` does.
    pub new_privileges: bool,
    /// Kernel settings of the container's own namespaces.
    pub sysctls: BTreeMap<String, String>,
}

pub(super) fn check(request: &ContainerRequest) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::Invalid { id: request.id.clone(), reason });
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if request.id.is_empty()
        || request.id.len() > 128
        || !request.id.bytes().all(plain)
        || request.id.starts_with('.')
    {
        return refuse(
            "an id is 1 to 128 letters, digits, '-', '_' and '.', and begins with none of '.'".into(),
        );
    }
    if request.lower.is_empty() {
        return refuse("it has no layers".into());
    }
    if request.hostname.len() > 64 || !request.hostname.bytes().all(plain) {
        return refuse(format!("{:?} is no host name of at most 64 bytes", request.hostname));
    }
    if request.args.first().is_none_or(String::is_empty) {
        return refuse("no command was given, and the image has none".into());
    }
    let texts = request.args.iter().chain(&request.env).chain([&request.workdir, &request.user]);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return refuse("its command, environment, user or workdir holds a NUL byte".into());
    }
    if let Some(entry) = request.env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return refuse(format!("environment entry {entry:?} is not NAME=value"));
    }
    if !request.workdir.is_empty() && !is_target(&request.workdir) {
        return refuse(format!("workdir {:?} is not an absolute path", request.workdir));
    }
    for mount in &request.mounts {
        let target = mount.target();
        let kernel = ["/proc", "/sys"];
        if !is_target(target) || Path::new(target) == Path::new("/") {
            return refuse(format!("mount target {target:?} is not an absolute path below /"));
        }
        if kernel.iter().any(|own| Path::new(target).starts_with(own)) {
            return refuse(format!("mount target {target:?} belongs to the kernel"));
        }
        if let Mount::Bind { source, .. } = mount {
            if !source.is_absolute() {
                return refuse(format!("bind source {:?} is not an absolute path", source.display()));
            }
            if let Err(error) = std::fs::symlink_metadata(source) {
                return refuse(format!("bind source {}: {error}", source.display()));
            }
        }
    }
    if request.log.driver == LogDriver::Journald && !Path::new(JOURNAL_SOCKET).exists() {
        return refuse(format!(
            "this node has no journal at {JOURNAL_SOCKET}: choose another log driver, or a node with systemd"
        ));
    }
    for device in &request.devices {
        if !is_target(&device.target) || device.target.ends_with('/') {
            return refuse(format!("device target {:?} is not an absolute path", device.target));
        }
        if let Err(error) = device_numbers(&device.source) {
            return refuse(format!("device {}: {error}", device.source.display()));
        }
    }
    if let Some(hook) = request.hooks.iter().find(|hook| !Hook::NAMES.contains(&hook.hook_name.as_str())) {
        return refuse(format!("there is no moment {:?} for a hook", hook.hook_name));
    }
    if let Some(name) = request.privileges.sysctls.keys().find(|name| !is_namespaced(name)) {
        return refuse(format!("sysctl {name:?} is not of a container's own namespaces"));
    }
    for name in request.privileges.cap_add.iter().chain(&request.privileges.cap_drop) {
        if bundle::capability(name).is_none() {
            return refuse(format!("there is no capability {name:?}"));
        }
    }
    if !(1..=64).contains(&request.stop_signal) {
        return refuse(format!("{} is no signal", request.stop_signal));
    }
    Ok(())
}

fn is_target(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|name| name == "..")
}
