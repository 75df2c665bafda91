//! The control groups of a lab: one for the lab, in it one for each node, and in that one a leaf for
//! the node's own processes, so that its containers' groups can be made beside it.
//!
//! On a machine with the first version of control groups the same path exists under each controller,
//! and where the unified hierarchy is mounted as well (hybrid) it is there that nodes are frozen:
//! a process frozen there still dies when it is killed.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Where all labs have their groups, under each hierarchy's root.
const ROOT: &str = "rswarm-lab";

/// The leaf that holds a node's own processes.
const LEAF: &str = "machine";

/// Controllers of the first version a node's processes are put under. `cpuset` is missing because a
/// new group of it admits nobody before it is set up.
const CONTROLLERS: [&str; 7] = ["freezer", "pids", "memory", "cpu", "cpuacct", "blkio", "devices"];

/// How long a freeze, a thaw or a removal may take before it is called a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// The groups of one path, in every hierarchy of this machine.
#[derive(Debug, Clone)]
pub struct Groups {
    /// The path below each hierarchy's root, with a leading slash.
    path: String,
    hierarchies: Hierarchies,
}

#[derive(Debug, Clone, Default)]
struct Hierarchies {
    /// Mount points of the first version, those of [`CONTROLLERS`] only.
    v1: Vec<PathBuf>,
    /// The mount point of the freezer of the first version.
    freezer: Option<PathBuf>,
    /// The mount point of the unified hierarchy.
    unified: Option<PathBuf>,
}

impl Groups {
    /// The groups of a whole lab.
    pub fn of_lab(lab: &str) -> Self {
        Self { path: format!("/{ROOT}/{lab}"), hierarchies: Hierarchies::mounted() }
    }

    /// The groups of one node of this lab.
    pub fn node(&self, node: &str) -> Self {
        Self { path: format!("{}/{node}", self.path), hierarchies: self.hierarchies.clone() }
    }

    /// The path below each hierarchy's root: what the node's daemon gets as `--cgroup-parent`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether there are control groups. In a user namespace there are none: see [`super::standstill`].
    pub fn exist(&self) -> bool {
        self.hierarchies.roots().next().is_some()
    }

    /// Makes the groups, with a leaf for the node's own processes. What exists is left as it is.
    pub fn create(&self) -> Result<()> {
        for directory in self.directories() {
            let leaf = directory.join(LEAF);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&leaf)
                .with_context(|| format!("cannot make the control group {}", leaf.display()))?;
        }
        if let Some(unified) = &self.hierarchies.unified {
            delegate(unified, &self.path);
        }
        Ok(())
    }

    /// Puts the calling process into the leaf, and so all its descendants to come.
    pub fn enter(&self) -> Result<()> {
        for directory in self.directories() {
            let list = directory.join(LEAF).join("cgroup.procs");
            // In the hierarchies of single controllers a lost seat costs a limit; in the one that
            // freezes and counts it would cost the truth.
            match fs::write(&list, "0") {
                Err(error) if Some(&directory) == self.freezing().as_ref() => {
                    return Err(error).with_context(|| format!("cannot enter {}", list.display()));
                }
                Err(error) => tracing::debug!(list = %list.display(), %error, "control group not entered"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Lets the node's own processes write to a disk so often a second at most. `disk` is its number, as `254:0`.
    pub fn throttle(&self, disk: &str, writes: u32) -> Result<()> {
        let (old, new) = self.throttles();
        let (file, line) = match (old, new) {
            (Some(old), _) => (old, format!("{disk} {writes}")),
            (None, Some(new)) => (new, format!("{disk} wiops={writes}")),
            (None, None) => bail!("this machine's control groups cannot slow a disk down (no blkio, no io)"),
        };
        fs::write(&file, line).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Lets them write as they like.
    pub fn unthrottle(&self) -> Result<()> {
        let (old, new) = self.throttles();
        for (file, rest) in [(old, "0"), (new, "wiops=max")] {
            let Some(file) = file else { continue };
            let set = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            for disk in set.lines().filter_map(|line| line.split(' ').next()) {
                fs::write(&file, format!("{disk} {rest}"))
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// The files that say so, of the first version and of the unified hierarchy, where they are.
    fn throttles(&self) -> (Option<PathBuf>, Option<PathBuf>) {
        let leaf = |root: &PathBuf| below(root, &self.path).join(LEAF);
        let mut old =
            self.hierarchies.v1.iter().map(|root| leaf(root).join("blkio.throttle.write_iops_device"));
        let mut new = self.hierarchies.unified.iter().map(|root| leaf(root).join("io.max"));
        (old.find(|file| file.exists()), new.find(|file| file.exists()))
    }

    /// Stops all processes of the group where they are, and returns once they stand still.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// Whether they are stopped.
    pub fn is_frozen(&self) -> bool {
        let Some(directory) = self.freezing() else { return false };
        if self.hierarchies.unified.is_some() {
            fs::read_to_string(directory.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
        } else {
            fs::read_to_string(directory.join("freezer.state")).is_ok_and(|text| text.trim() != "THAWED")
        }
    }

    /// The processes in the group and the groups below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for directory in self.freezing().into_iter().chain(self.directories()) {
            walk(&directory, &mut |group| {
                let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            });
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills whatever is in the group and below, and returns once nothing is left.
    pub fn kill(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(unified) = &self.hierarchies.unified {
                let _ = fs::write(below(unified, &self.path).join("cgroup.kill"), "1");
            }
            let pids = self.processes();
            for process in pids.iter().filter_map(|pid| super::process::Process::find(*pid)) {
                let _ = process.signal(rustix::process::Signal::KILL);
            }
            let _ = self.thaw_everything();
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("the processes {pids:?} of {} do not die; look at their state in /proc", self.path);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes the groups and all below. Whatever ran in them must have ended.
    pub fn remove(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        for directory in self.directories() {
            while let Err(error) = remove_tree(&directory) {
                if Instant::now() > end {
                    return Err(error)
                        .with_context(|| format!("cannot remove the control group {}", directory.display()));
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Removes the directory of all labs where no lab is left in it.
    pub fn remove_root(&self) {
        for root in self.hierarchies.roots() {
            let _ = fs::remove_dir(root.join(ROOT));
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        self.hierarchies.roots().map(|root| below(root, &self.path)).collect()
    }

    /// The one directory through which the group is frozen and its processes are counted.
    fn freezing(&self) -> Option<PathBuf> {
        let root = self.hierarchies.unified.as_ref().or(self.hierarchies.freezer.as_ref())?;
        Some(below(root, &self.path))
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let directory = self.freezing().context("this machine has no control group that can freeze")?;
        let unified = self.hierarchies.unified.is_some();
        let (file, word) = match (unified, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let file = directory.join(file);
            fs::write(&file, word).with_context(|| format!("cannot write {word} to {}", file.display()))?;
            let settled = if unified {
                let events = fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
                events.lines().any(|line| line == if frozen { "frozen 1" } else { "frozen 0" })
            } else {
                fs::read_to_string(&file).is_ok_and(|state| state.trim() == word)
            };
            if settled {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{} does not become {word} within {PATIENCE:?}", directory.display());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Thaws this group and all below it, whoever froze them: what is frozen by the freezer of the
    /// first version does not die.
    fn thaw_everything(&self) -> io::Result<()> {
        for root in self.hierarchies.freezer.iter() {
            walk(&below(root, &self.path), &mut |group| {
                let _ = fs::write(group.join("freezer.state"), "THAWED");
            });
        }
        Ok(())
    }
}

impl Hierarchies {
    fn mounted() -> Self {
        if super::rootless::is_inside() {
            // They can be seen, but they are not ours.
            return Self::default();
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut found = Self::default();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") if found.unified.is_none() => found.unified = Some(point),
                Some("cgroup") => {
                    let controllers = right.nth(1).unwrap_or_default();
                    if controllers.split(',').any(|name| name == "freezer") {
                        found.freezer = Some(point.clone());
                    }
                    if controllers.split(',').any(|name| CONTROLLERS.contains(&name)) {
                        found.v1.push(point);
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().chain(&self.unified)
    }
}

/// Lets the groups on the way to `path` hand on every controller they have. One that cannot be handed
/// on is left out: limits then are not enforced, which the node's executor reports by itself.
fn delegate(root: &Path, path: &str) {
    let mut group = root.to_path_buf();
    for step in path.trim_matches('/').split('/').map(Some).chain([None]) {
        let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        if let Some(step) = step {
            group.push(step);
        }
    }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn walk(group: &Path, visit: &mut dyn FnMut(&Path)) {
    if !group.is_dir() {
        return;
    }
    visit(group);
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
