//! Nodes that are machines with a kernel of their own, under QEMU.
//!
//! To the rest of the lab such a node looks like any other: a first process of this machine's that dies with all
//! that is in it, that takes orders, and in whose `/run` the daemon's socket is. That process is the machine's
//! [`case`]; inside, the machine's own first process ([`inside`]) is the same that other nodes have. What is said to
//! the machine goes over the lab's network to the [`agent`] in it.

pub(super) mod agent;
mod case;
mod emulator;
pub(super) mod enter;
pub(super) mod inside;
mod monitor;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub(super) use case::hold;

use super::record::{NodeRecord, Record};
use crate::vm::{Kernel, NEEDED, image, qemu};

/// What a machine has to have at least, in MiB: the image it boots from is in there twice for a moment.
pub const MEMORY_MIN: u32 = 256;
/// What it has if nothing else is said, in MiB.
pub const MEMORY: u32 = 512;
/// How large its disk is then, in bytes. It takes the room of what is on it.
const DISK: u64 = 4 << 30;

/// What a machine needs beside [`NEEDED`]: its disks, its network and the port that its log leaves by.
const DEVICES: [&str; 2] = ["virtio_net", "virtio_console"];

/// How long a machine may take to boot: an emulated one beside others.
pub(super) const BOOT_PATIENCE: Duration = Duration::from_secs(300);
/// How long its daemon may take to listen.
pub(super) const DAEMON_PATIENCE: Duration = Duration::from_secs(120);

/// Written there when KVM has turned out not to work.
const NO_KVM: &str = "no-kvm";
/// A machine's disk, in its directory.
const DISK_FILE: &str = "disk.img";
/// What its console has shown.
pub(super) const CONSOLE: &str = "console.log";
/// Where its case lets commands in, inside the case.
pub(super) const DOOR: &str = "/run/lab/guest.sock";

/// What the nodes of a lab are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Namespaces of this machine's kernel.
    #[default]
    Namespaces,
    /// Machines with a kernel of their own.
    Vm {
        /// The memory of each, in MiB.
        memory_mib: u32,
    },
}

impl Backend {
    /// Whether nodes are machines with a kernel of their own.
    pub fn is_vm(self) -> bool {
        matches!(self, Self::Vm { .. })
    }

    /// Whether such nodes can be made here.
    pub(super) fn check(self) -> Result<()> {
        let Self::Vm { memory_mib } = self else { return Ok(()) };
        if memory_mib < MEMORY_MIN {
            bail!("a machine cannot boot with {memory_mib} MiB of memory; {MEMORY_MIN} is the least");
        }
        if super::rootless::is_inside() {
            bail!("machines with a kernel of their own are root's only: use sudo, or leave out --backend vm");
        }
        match missing() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }
}

/// What keeps this machine from having labs of machines, and the packages that cure it, if so.
pub fn missing() -> Option<String> {
    let kernel = Kernel::find().err().map(|_| ("a kernel with its modules", "linux-image-cloud-amd64"));
    let emulator = qemu::missing().map(|_| (qemu::PROGRAM, "qemu-system-x86"));
    let formatter = mke2fs().is_none().then_some(("mke2fs", "e2fsprogs"));
    if !cfg!(target_arch = "x86_64") {
        return qemu::missing();
    }
    let missing: Vec<_> = [emulator, kernel, formatter].into_iter().flatten().collect();
    if missing.is_empty() {
        return None;
    }
    let (what, packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    Some(format!(
        "nodes with a kernel of their own need {}: on Debian, `apt-get install {}`",
        what.join(" and "),
        packages.join(" ")
    ))
}

/// Makes what the machines of a lab boot from, unless it is there and as new as the program.
pub(super) fn prepare_lab(directory: &Path, record: &Record) -> Result<()> {
    let kernel = Kernel::find()?;
    let (path, draft) = (image_for(directory, &kernel), directory.join("initramfs.new"));
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if changed(&path).is_some_and(|made| changed(&record.program).is_some_and(|program| program < made)) {
        return Ok(());
    }
    let contents = image::Contents {
        kernel: &kernel,
        modules: image::DISK_MODULES.iter().chain(&DEVICES).chain(&NEEDED).map(ToString::to_string).collect(),
        programs: vec![(inside::PROGRAM.trim_start_matches('/').to_owned(), record.program.clone())],
        links: vec![("init", inside::PROGRAM)],
        texts: vec![(inside::MARK, kernel.release.clone())],
    };
    contents.write(&draft).context("cannot make the image that machines boot from")?;
    fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))
}

/// The image that a lab's machines boot from, in its directory. It holds modules of one kernel.
fn image_for(directory: &Path, kernel: &Kernel) -> PathBuf {
    directory.join(format!("initramfs-{}", kernel.release))
}

/// Makes what a machine has of its own, and keeps over a power cycle.
pub(super) fn prepare_node(own: &Path, node: &NodeRecord) -> Result<()> {
    let path = own.join(DISK_FILE);
    if path.exists() {
        return Ok(());
    }
    let draft = own.join("disk.new");
    let file = fs::File::create(&draft).with_context(|| format!("cannot create {}", draft.display()))?;
    file.set_len(node.disk.unwrap_or(DISK)).context("cannot make a disk of that size")?;
    let program = mke2fs().context("mke2fs is gone; Debian's package is e2fsprogs")?;
    let made = Command::new(program)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(&draft)
        .stdin(Stdio::null())
        .output()
        .context("cannot run mke2fs")?;
    if !made.status.success() {
        bail!("mke2fs cannot make a file system on {}: {}", draft.display(), words_of(&made.stderr));
    }
    fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))
}

fn words_of(said: &[u8]) -> String {
    String::from_utf8_lossy(said).trim().to_owned()
}

/// The program that makes file systems. The path of a user seldom leads to it.
fn mke2fs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join("mke2fs"))
        .find(|path| path.is_file())
}
