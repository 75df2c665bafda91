//! Disks of nodes that are small, as a file system in memory of their own, or slow, by their control group.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{major, minor},
};

use super::{Lab, record::NodeRecord, running, talk::order};

/// The smallest disk a node can begin on, in bytes: its image and two segments of a manager's log.
pub const DISK_MIN: u64 = 256 << 20;

impl Lab {
    /// Lets a node's daemon write so many times a second to its disk, or as often as it likes. Switching it off ends
    /// this too.
    pub fn throttle(&self, name: &str, writes: Option<u32>) -> Result<()> {
        self.change(|record| {
            let init = running(record.node(name)?)?;
            if record.backend.is_vm() {
                return order(init, &format!("throttle {}", writes.unwrap_or(0))).map(drop);
            }
            let groups = self.groups().node(name);
            let Some(writes) = writes else { return groups.unthrottle() };
            if writes == 0 {
                bail!("a disk that takes no writes at all is one that is stuck; say at least 1 a second");
            }
            groups.throttle(&disk_of(&self.directory.join(name).join("state"))?, writes)
        })
    }
}

/// The number of the disk that a directory lies on. Control groups know whole disks, no partitions.
fn disk_of(directory: &Path) -> Result<String> {
    let device =
        fs::metadata(directory).with_context(|| format!("cannot look at {}", directory.display()))?.dev();
    let number = format!("{}:{}", major(device), minor(device));
    let known = PathBuf::from(format!("/sys/dev/block/{number}"));
    if major(device) == 0 || !known.exists() {
        bail!(
            "{} lies on no disk of this machine's, so it cannot be slowed down; set RSWARM_LAB_DIR to where it does",
            directory.display()
        );
    }
    if !known.join("partition").exists() {
        return Ok(number);
    }
    let whole = known.join("../dev");
    let whole = fs::read_to_string(&whole).with_context(|| format!("cannot read {}", whole.display()))?;
    Ok(whole.trim().to_owned())
}

/// Gives a node a disk of its own, if it is to have one and has none yet.
pub(super) fn insert(state: &Path, node: &NodeRecord) -> Result<()> {
    let Some(size) = node.disk else { return Ok(()) };
    if mounted(state)?.iter().any(|point| point == state) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("size={size},mode=700");
    mount(Some("rswarm-lab"), state, Some("tmpfs"), flags, Some(options.as_str()))
        .with_context(|| format!("cannot make a disk of {} MiB on {}", size >> 20, state.display()))
}

/// Takes the disks away that lie below a directory, with what is on them.
pub(super) fn remove(directory: &Path) -> Result<()> {
    for point in mounted(directory)? {
        match umount2(&point, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot take away {}", point.display())),
        }
    }
    Ok(())
}

/// What is mounted at or below a directory, the innermost first.
fn mounted(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    below.reverse();
    Ok(below)
}

/// Detaches the disks of other nodes in a node's mount namespace: a copy in there would keep them when they are taken
/// away.
pub(super) fn let_go_of_others(lab: &Path, own: &Path) -> Result<()> {
    for point in mounted(lab.parent().unwrap_or(lab))? {
        if !point.starts_with(own) {
            // Best effort: it costs memory for as long as this node runs.
            let _ = umount2(&point, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}
