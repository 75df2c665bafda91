//! Labs: whole clusters of real daemons on one machine, made to be broken.
//!
//! A node of a lab is a machine in small: its own process, mount, network, host name and IPC
//! namespaces, its own state directory, address and control group. It can lose its power, its cable or
//! its daemon, freeze, and start again from its disk. Nothing watches over a lab: what it is made of is
//! held by the first processes of its nodes and by the one that holds the switch, and what is known
//! about it stands in one file, so each command picks it up where the last one left it.
//!
//! The lab drives the `rswarm` binary by path and knows nothing of what is in it.

mod cgroup;
mod disks;
mod faults;
mod form;
mod grow;
mod links;
mod machine;
mod node;
mod process;
mod raise;
mod record;
mod remove;
pub mod rootless;
mod standstill;
mod status;
mod talk;
pub mod vm;
mod wire;

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::fcntl::Flock;

use cgroup::Groups;
pub use disks::DISK_MIN;
pub use links::{Carried, Link};
pub use machine::dispatch;
pub use node::{Caller, Node, Ran};
use process::Process;
pub use record::{Capacity, Cut, NODES_MAX, Subnet, Worse, base_directory};
use record::{NodeRecord, Record};
pub use status::{NodeStatus, Power, Status};
pub use vm::Backend;

/// How long a process may take to die, a node to boot, a daemon to obey.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name: up to 40 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// How many nodes, 1 to [`NODES_MAX`]. They are called n1, n2, and so on.
    pub nodes: u8,
    /// How many of them, from the first, are managers.
    pub managers: u8,
    /// Over how many zones the nodes are spread; 1 gives them no label for that.
    pub zones: u8,
    /// Labels of nodes: the name, and `KEY=VALUE`.
    pub labels: Vec<(String, String)>,
    /// Sizes of disks in bytes: a node's, or without a name those of all nodes that are not named. Without any a node's
    /// disk is this machine's.
    pub disks: Vec<(Option<String>, u64)>,
    /// What nodes say they have: a node, or without a name all that are not named.
    pub capacities: Vec<(Option<String>, Capacity)>,
    /// What the nodes are.
    pub backend: Backend,
    /// The `rswarm` binary. It must call [`dispatch`] first of all.
    pub program: PathBuf,
    /// The directory that holds labs; not below `/run`, `/proc`, `/sys` or `/dev`.
    pub base: PathBuf,
    /// What the nodes run in place of the program's daemon. The program is `rswarm` on the path.
    /// No cluster is formed then.
    pub daemon_command: Option<Vec<String>>,
}

impl Options {
    /// Three nodes, all managers, in the usual place.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            name: "lab".to_string(),
            nodes: 3,
            managers: 3,
            zones: 1,
            labels: Vec::new(),
            disks: Vec::new(),
            capacities: Vec::new(),
            backend: Backend::default(),
            program: program.into(),
            base: base_directory(),
            daemon_command: None,
        }
    }

    fn disk_of(&self, name: &str) -> Option<u64> {
        said_of(&self.disks, name)
    }

    fn capacity_of(&self, name: &str) -> Option<Capacity> {
        said_of(&self.capacities, name)
    }

    fn check(&self) -> Result<()> {
        record::check_name(&self.name)?;
        if !(1..=NODES_MAX).contains(&self.nodes) {
            bail!("a lab has 1 to {NODES_MAX} nodes, not {}", self.nodes);
        }
        if !(1..=self.nodes).contains(&self.managers) {
            bail!("of {} nodes, 1 to {} can be managers, not {}", self.nodes, self.nodes, self.managers);
        }
        if let Some((_, size)) = self.disks.iter().find(|(_, size)| *size < DISK_MIN) {
            bail!("a node cannot begin on a disk of {} MiB; {} is the least", size >> 20, DISK_MIN >> 20);
        }
        let disks = self.disks.iter().filter_map(|(node, _)| node.as_ref());
        let capacities = self.capacities.iter().filter_map(|(node, _)| node.as_ref());
        for node in self.labels.iter().map(|(node, _)| node).chain(disks).chain(capacities) {
            let number = node.strip_prefix('n').and_then(|number| number.parse().ok());
            if !number.is_some_and(|number| (1..=self.nodes).contains(&number)) {
                bail!(
                    "there will be no node \"{node}\" to give a label, a disk or a capacity; they are n1 to n{}",
                    self.nodes
                );
            }
        }
        if self.daemon_command.as_ref().is_some_and(Vec::is_empty) {
            bail!("the command that replaces the daemon is empty");
        }
        if !self.base.is_absolute() {
            bail!("the directory of labs must be an absolute path, not {}", self.base.display());
        }
        for hidden in ["/run", "/var/run", "/proc", "/sys", "/dev"] {
            if self.base.starts_with(hidden) {
                bail!(
                    "labs cannot lie in {}: nodes have a {hidden} of their own; set RSWARM_LAB_DIR elsewhere",
                    self.base.display()
                );
            }
        }
        require_root()?;
        self.backend.check()
    }
}

/// What was said last of a node, or else of all.
fn said_of<T: Copy>(said: &[(Option<String>, T)], name: &str) -> Option<T> {
    let of = |wanted: Option<&str>| said.iter().rev().find(|(node, _)| node.as_deref() == wanted);
    of(Some(name)).or_else(|| of(None)).map(|(_, what)| *what)
}

/// Whether labs can be made here; the error says what is missing.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "this process is not root, and a lab's processes are: let the command `rswarm lab` make a user \
         namespace for it, or run it by sudo"
    )
}

/// One lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    /// Whether it goes when this goes.
    owned: bool,
}

/// What happens while a lab comes up: the subject (a node, or the lab's name) and a few words.
pub type Progress<'a> = &'a mut dyn FnMut(&str, &str);

impl Lab {
    /// is set, its files stay, so that the logs can be read.
    pub fn up(options: &Options) -> Result<Self> {
        Self::up_with(options, &mut |_, _| (), &AtomicBool::new(false))
    }

    /// The same, telling what happens, and giving up soon after `interrupted` becomes true.
    ///
    /// Whatever goes wrong, nothing of the lab is left.
    pub fn up_with(options: &Options, progress: Progress<'_>, interrupted: &AtomicBool) -> Result<Self> {
        options.check()?;
        record::private_directory(&options.base)?;
        let mut lab = Self::at(&options.base, &options.name);
        record::private_directory(&lab.directory)?;
        lab.directory = fs::canonicalize(&lab.directory)
            .with_context(|| format!("cannot resolve {}", lab.directory.display()))?;
        let lock = lab.lock()?;
        if Record::read(&lab.directory)?.is_some() {
            bail!(
                "there is a lab \"{0}\" already: `rswarm lab status --name {0}` shows it, \
                 `rswarm lab down --name {0}` removes it",
                options.name
            );
        }
        lab.owned = true;
        lab.build(options, progress, interrupted)?;
        drop(lock);
        if options.daemon_command.is_none() {
            lab.form(progress, interrupted)?;
            lab.label(options)?;
        }
        Ok(lab)
    }

    /// The lab of this name. It is not removed when the value is dropped.
    pub fn open(base: &Path, name: &str) -> Result<Self> {
        record::check_name(name)?;
        let mut lab = Self::at(base, name);
        if !lab.directory.join("lab.json").exists() {
            bail!("there is no lab \"{name}\"; make one by `rswarm lab up --name {name}`");
        }
        require_root()?;
        lab.directory = fs::canonicalize(&lab.directory)
            .with_context(|| format!("cannot resolve {}", lab.directory.display()))?;
        Ok(lab)
    }

    /// The names of all labs there are.
    pub fn list(base: &Path) -> Result<Vec<String>> {
        let entries = match fs::read_dir(base) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", base.display()))?,
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| record::check_name(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes whatever there is of a lab: processes, links, control groups, files. Returns whether
    /// there was anything. Works on labs that were half made or half removed.
    pub fn down(base: &Path, name: &str) -> Result<bool> {
        record::check_name(name)?;
        require_root()?;
        let mut lab = Self::at(base, name);
        match fs::canonicalize(&lab.directory) {
            Ok(directory) => lab.directory = directory,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot resolve {}", lab.directory.display()));
            }
        }
        lab.remove()
    }

    fn at(base: &Path, name: &str) -> Self {
        Self { name: name.to_string(), directory: base.join(name), owned: false }
    }

    /// Leaves the lab running when the value is dropped.
    pub fn keep(&mut self) {
        self.owned = false;
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are. Each node has a directory of its name in there, with `daemon.log`,
    /// `init.log` and `state`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The program that its nodes run.
    pub fn program(&self) -> Result<PathBuf> {
        Ok(self.record()?.program)
    }

    /// What its nodes are.
    pub fn backend(&self) -> Result<Backend> {
        Ok(self.record()?.backend)
    }

    /// The names of its nodes.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.record()?.nodes.into_iter().map(|node| node.name).collect())
    }

    /// One of its nodes. Whether it exists is found out when it is used.
    pub fn node<'a>(&'a self, name: &'a str) -> Node<'a> {
        Node { lab: self, name }
    }

    /// This machine's address in the network of the lab.
    pub fn host_address(&self) -> Result<Ipv4Addr> {
        Ok(self.subnet()?.host())
    }

    fn groups(&self) -> Groups {
        groups_of(&self.directory)
    }

    fn subnet(&self) -> Result<Subnet> {
        self.record()?.subnet.context("the lab has no network yet")
    }

    fn record(&self) -> Result<Record> {
        let record = Record::read(&self.directory)?;
        record.with_context(|| format!("there is no lab \"{}\" any more", self.name))
    }

    /// Changes the lab while nobody else does.
    fn change<T>(&self, act: impl FnOnce(&mut Record) -> Result<T>) -> Result<T> {
        require_root()?;
        let _lock = self.lock()?;
        let mut record = self.record()?;
        let result = act(&mut record);
        record.write(&self.directory)?;
        result
    }

    fn lock(&self) -> Result<Flock<fs::File>> {
        let lock = record::lock(&self.directory)?;
        if lock.metadata().context("cannot look at the lock")?.nlink() == 0 {
            bail!("the lab \"{}\" was removed meanwhile", self.name);
        }
        Ok(lock)
    }
}

/// The control groups of the lab in this directory. The name tells labs of one name apart that lie in
/// different places.
fn groups_of(directory: &Path) -> Groups {
    let bytes = directory.as_os_str().as_bytes();
    let hash =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    Groups::of_lab(&format!("{name}-{hash:08x}"))
}

fn running(node: &NodeRecord) -> Result<Process> {
    let init = node.init.filter(|init| init.is_alive());
    init.with_context(|| format!("{0} is off; switch it on by `rswarm lab start {0}`", node.name))
}

fn connected(record: &Record) -> Result<(Process, Subnet)> {
    let switch = record.switch.filter(|switch| switch.is_alive());
    let switch = switch.with_context(|| {
        format!(
            "the switch of lab \"{}\" does not run; any `rswarm lab start NODE` brings it back",
            record.name
        )
    })?;
    Ok((switch, record.subnet.context("the lab has no network yet")?))
}
