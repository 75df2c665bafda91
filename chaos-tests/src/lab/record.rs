//! What is known about a lab, kept in one file in its directory, and where things lie in there.
//!
//! The file is replaced as a whole, and carries the boot it was written in: after this machine's reboot
//! the processes it names are known to be gone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{links::Link, process::Process, vm::Backend};

/// Bumped when a program could no longer read what an older one wrote.
const FORMAT: u32 = 1;

/// At most so many nodes fit into a lab: their addresses end in 11 to 210.
pub const NODES_MAX: u8 = 200;

/// Everything a lab is, apart from what can be asked of the kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub name: String,
    boot: String,
    /// The program that nodes run.
    pub program: PathBuf,
    /// What a node runs instead of the program's daemon, if anything.
    pub daemon: Option<Vec<String>>,
    pub switch: Option<Process>,
    pub subnet: Option<Subnet>,
    /// Directed links that pass nothing.
    pub cuts: BTreeSet<Cut>,
    /// Directed links that pass less than they should.
    #[serde(default)]
    pub links: Vec<Worse>,
    pub nodes: Vec<NodeRecord>,
    /// What nodes are.
    #[serde(default)]
    pub backend: Backend,
}

/// Everything a node is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub name: String,
    /// From 1.
    pub number: u8,
    pub manager: bool,
    /// How large its disk is in bytes, if it has one of its own.
    #[serde(default)]
    pub disk: Option<u64>,
    /// What it says it has, if that is not what this machine has.
    #[serde(default)]
    pub capacity: Option<Capacity>,
    /// Its first process, from power on to power off.
    pub init: Option<Process>,
    /// How often it was switched on.
    pub boots: u32,
}

/// What a node has for containers, as its daemon tells the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// In billionths of a processor.
    pub nano_cpus: u64,
    /// In bytes.
    pub memory: u64,
}

/// A link that passes nothing from one node to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cut {
    /// The node that is not heard.
    pub from: String,
    /// The node that does not hear it.
    pub to: String,
}

/// A link that passes less than it should from one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worse {
    /// Where packets come from.
    pub from: String,
    /// Where they go.
    pub to: String,
    /// What becomes of them.
    #[serde(flatten)]
    pub link: Link,
}

/// One of the /24 networks labs take their addresses from, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet(u16);

/// Private /16 networks that few people number their machines from.
const POOLS: [[u8; 2]; 4] = [[10, 199], [172, 31], [192, 168], [198, 18]];

impl Subnet {
    pub(super) fn candidates() -> impl Iterator<Item = Self> {
        (0..POOLS.len() as u16 * 256).map(Self)
    }

    fn address(self, last: u8) -> Ipv4Addr {
        let [first, second] = POOLS[usize::from(self.0 / 256) % POOLS.len()];
        Ipv4Addr::new(first, second, (self.0 % 256) as u8, last)
    }

    /// This machine's address in it.
    pub fn host(self) -> Ipv4Addr {
        self.address(1)
    }

    pub(super) fn switch(self) -> Ipv4Addr {
        self.address(2)
    }

    pub(super) fn node(self, number: u8) -> Ipv4Addr {
        self.address(10 + number)
    }

    /// The name of this machine's end of the cable to the switch.
    pub(super) fn host_link(self) -> String {
        format!("rswlab{}", self.0)
    }

    pub(super) fn overlaps(self, (base, length): (Ipv4Addr, u8)) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(length.min(24))).unwrap_or(0);
        u32::from(self.address(0)) & mask == u32::from(base) & mask
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/24", self.address(0))
    }
}

impl Record {
    pub fn new(name: &str, program: PathBuf, daemon: Option<Vec<String>>) -> Result<Self> {
        let boot = boot()?;
        Ok(Self {
            format: FORMAT,
            name: name.to_string(),
            boot,
            program,
            daemon,
            switch: None,
            subnet: None,
            cuts: BTreeSet::new(),
            links: Vec::new(),
            nodes: Vec::new(),
            backend: Backend::default(),
        })
    }

    /// Reads the record in a lab's directory; `None` if there is none, or none that can be read.
    ///
    /// Processes recorded in an earlier boot of this machine are forgotten.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join("lab.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut record: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged; `rswarm lab down` removes the lab", path.display()))?;
        if record.format != FORMAT {
            bail!(
                "{} was written by another version of rswarm; remove the lab with that one",
                path.display()
            );
        }
        if record.boot != boot()? {
            record.boot = boot()?;
            record.switch = None;
            record.nodes.iter_mut().for_each(|node| node.init = None);
        }
        Ok(Some(record))
    }

    /// Replaces the record in a lab's directory.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let (path, draft) = (directory.join("lab.json"), directory.join("lab.json.new"));
        let write = || -> Result<()> {
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            Ok(fs::rename(&draft, &path)?)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn node(&self, name: &str) -> Result<&NodeRecord> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| self.no_such_node(name))
    }

    pub fn node_mut(&mut self, name: &str) -> Result<&mut NodeRecord> {
        let missing = self.no_such_node(name);
        self.nodes.iter_mut().find(|node| node.name == name).context(missing)
    }

    fn no_such_node(&self, name: &str) -> String {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        format!("the lab \"{}\" has no node \"{name}\"; it has {}", self.name, names.join(", "))
    }
}

/// Where labs lie: `$RSWARM_LAB_DIR`, or `/var/lib/rswarm-lab`; without root a directory of the user's own,
/// `$XDG_STATE_HOME/rswarm-lab`, `~/.local/state/rswarm-lab`, or `/var/tmp/rswarm-lab-UID`.
pub fn base_directory() -> PathBuf {
    match std::env::var_os("RSWARM_LAB_DIR") {
        Some(directory) => directory.into(),
        None if nix::unistd::geteuid().is_root() => "/var/lib/rswarm-lab".into(),
        None => super::rootless::home(),
    }
}

/// Makes a directory only its owner can look into. Fine if it exists.
pub(super) fn private_directory(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Holds off every other command that changes the lab in this directory.
pub(super) fn lock(directory: &Path) -> Result<Flock<File>> {
    let path = directory.join("lock");
    let file = File::options().create(true).append(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", path.display()))
}

/// Refuses names that could not be a directory, a control group and part of a host name.
pub(super) fn check_name(name: &str) -> Result<()> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(fine) || name.starts_with('-') {
        bail!("\"{name}\" cannot name a lab: take up to 40 of a-z, 0-9 and -, not beginning with -");
    }
    Ok(())
}

fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_avoids_what_is_routed() {
        let first = Subnet(7);
        assert_eq!(first.node(3), Ipv4Addr::new(10, 199, 7, 13));
        assert!(first.overlaps((Ipv4Addr::new(10, 0, 0, 0), 8)));
        assert!(first.overlaps((Ipv4Addr::new(10, 199, 7, 128), 25)));
        assert!(!first.overlaps((Ipv4Addr::new(10, 199, 8, 0), 24)));
        assert_eq!(Subnet(256 + 4).to_string(), "172.31.4.0/24");
    }

    #[test]
    fn processes_of_an_earlier_boot_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = Record::new("lab", "/bin/true".into(), None).unwrap();
        record.switch = Process::find(std::process::id() as i32);
        record.write(directory.path()).unwrap();
        assert!(Record::read(directory.path()).unwrap().unwrap().switch.is_some());

        record.boot = "another".to_string();
        record.write(directory.path()).unwrap();
        assert!(Record::read(directory.path()).unwrap().unwrap().switch.is_none());
    }

    #[test]
    fn a_name_is_harmless() {
        assert!(check_name("lab-2").is_ok());
        for bad in ["", "..", "a/b", "-x", "Ä"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
