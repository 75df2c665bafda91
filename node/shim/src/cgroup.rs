//! Control groups: one never-reused path per container, in the unified hierarchy, in the old separate ones, or in
//! both at once, as the machine has them.

use std::fs;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::device_filter;

/// The old controllers we use, where they exist.
const CONTROLLERS: [&str; 6] = ["memory", "cpu", "cpuacct", "pids", "devices", "blkio"];
/// The one more that holds processes still where there is no unified hierarchy to do it.
const FREEZER: &str = "freezer";
/// The unified controllers we use.
const UNIFIED_CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
const CGROUP2_MAGIC: i64 = 0x6367_7270;
const CGROUP1_MAGIC: i64 = 0x0027_e0eb;
/// The period of the CPU quota, in microseconds.
const PERIOD_US: u64 = 100_000;
/// How long the kernel may take to hold every process still.
const FREEZE_MAX: Duration = Duration::from_secs(2);
/// The share of a disk that a cgroup has of which nothing is said.
const IO_WEIGHT_USUAL: u16 = 100;
/// The kernel refuses quotas below this.
const QUOTA_MIN_US: u64 = 1_000;

/// Where a machine keeps its cgroups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The directory of the unified hierarchy.
    pub unified: Option<PathBuf>,
    /// The unified hierarchy has the controllers.
    pub unified_controls: bool,
    /// The directories of the old controllers in use, by name.
    pub controllers: Vec<(String, PathBuf)>,
}

impl Layout {
    /// Looks at what is mounted on `mount`, usually `/sys/fs/cgroup`. None: there are no cgroups.
    pub fn detect(mount: &Path) -> Option<Self> {
        if magic(mount) == Some(CGROUP2_MAGIC) {
            return Some(Self {
                unified: Some(mount.into()),
                unified_controls: true,
                controllers: Vec::new(),
            });
        }
        let unified = Some(mount.join("unified")).filter(|directory| magic(directory) == Some(CGROUP2_MAGIC));
        let controllers: Vec<_> = CONTROLLERS
            .into_iter()
            .chain(Some(FREEZER).filter(|_| unified.is_none()))
            .map(|name| (name.to_owned(), mount.join(name)))
            .filter(|(_, directory)| magic(directory) == Some(CGROUP1_MAGIC))
            .collect();
        if controllers.is_empty() && unified.is_none() {
            return None;
        }
        Some(Self { unified, unified_controls: false, controllers })
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.controllers.iter().map(|(_, root)| root).chain(&self.unified)
    }
}

fn magic(path: &Path) -> Option<i64> {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: `name` is NUL-terminated, and an all-zero statfs is a valid buffer.
    unsafe {
        let mut buffer: libc::statfs = mem::zeroed();
        (libc::statfs(name.as_ptr(), &raw mut buffer) == 0).then_some(buffer.f_type as i64)
    }
}

/// What a container may use; none means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Billionths of one CPU.
    pub nano_cpus: Option<u64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Swap space beyond a limit of memory, in bytes. The largest number is all there is.
    #[serde(default)]
    pub swap_bytes: u64,
    /// Its share of a contended disk, from 10 to 1000, as far as the kernel's scheduler for the disk has shares.
    #[serde(default)]
    pub io_weight: Option<u16>,
    /// How fast it may read and write.
    #[serde(default)]
    pub io: Vec<IoLimit>,
}

/// How fast a container may read from and write to a block device, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// None: any.
    pub read_bps: Option<u64>,
    /// None: any.
    pub write_bps: Option<u64>,
}

/// Devices that may be opened: all of a kind, or some by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Block devices, or else character devices.
    pub block: bool,
    /// None: any.
    pub major: Option<u32>,
    /// None: any.
    pub minor: Option<u32>,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

/// A limit that a machine cannot enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Of memory.
    Memory,
    /// Of CPU time.
    Cpu,
    /// Of processes.
    Pids,
}

impl Limits {
    /// What is left of the limits on a machine that lacks some.
    pub fn without(mut self, lacks: &[Lack]) -> Self {
        for lack in lacks {
            match lack {
                Lack::Memory => self.memory_bytes = None,
                Lack::Cpu => self.nano_cpus = None,
                Lack::Pids => self.pids = None,
            }
        }
        self
    }
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// Periods in which it was held back by its CPU limit.
    pub throttled_periods: u64,
    /// Memory without the part of the page cache that can be given back at once.
    pub memory_bytes: u64,
    /// The memory limit, if there is one.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Read from block devices.
    #[serde(default)]
    pub read_bytes: u64,
    /// Written to block devices.
    #[serde(default)]
    pub written_bytes: u64,
    /// How much had to wait; none where the kernel does not say.
    #[serde(default)]
    pub pressure: Option<Pressure>,
}

/// The share of the last 10 s in which some process waited for something, in hundredths of a percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: u32,
    /// For memory.
    pub memory: u32,
    /// For a disk.
    pub io: u32,
}

/// One cgroup: the same relative path in each hierarchy of a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Where the hierarchies are.
    pub layout: Layout,
    /// The path in each, relative to its root.
    pub path: String,
}

impl Cgroup {
    /// Makes the cgroup and what is missing above it.
    pub fn create(&self) -> io::Result<()> {
        for root in self.layout.roots() {
            let directory = root.join(&self.path);
            // The kernel gives a cgroup its controllers only if each one above it passes them on.
            if self.layout.unified_controls {
                let mut at = root.clone();
                let names: Vec<_> = Path::new(&self.path).components().collect();
                for name in &names {
                    pass_on_controllers(&at);
                    at.push(name);
                    make_directory(&at)?;
                }
            } else {
                fs::create_dir_all(&directory)
                    .map_err(|error| named(&directory, "cannot make cgroup", error))?;
            }
        }
        Ok(())
    }

    /// Limits that cannot be set here, although the cgroup exists.
    pub fn lacks(&self) -> Vec<Lack> {
        let files: [(Lack, &str, &str); 3] = if self.layout.unified_controls {
            [(Lack::Memory, "", "memory.max"), (Lack::Cpu, "", "cpu.max"), (Lack::Pids, "", "pids.max")]
        } else {
            [
                (Lack::Memory, "memory", "memory.limit_in_bytes"),
                (Lack::Cpu, "cpu", "cpu.cfs_quota_us"),
                (Lack::Pids, "pids", "pids.max"),
            ]
        };
        let missing = |controller: &str, file: &str| {
            self.directory(controller).is_none_or(|directory| !directory.join(file).exists())
        };
        files
            .into_iter()
            .filter(|(_, controller, file)| missing(controller, file))
            .map(|(lack, ..)| lack)
            .collect()
    }

    /// The directory a process can be cloned into, if there is a unified hierarchy.
    pub fn open_unified(&self) -> Option<OwnedFd> {
        let directory = self.layout.unified.as_ref()?.join(&self.path);
        fs::File::open(directory).ok().map(OwnedFd::from)
    }

    /// Moves a process in. With `cloned`, it was cloned into the unified hierarchy already.
    pub fn add(&self, pid: i32, cloned: bool) -> io::Result<()> {
        let unified = self.layout.unified.iter().filter(|_| !cloned);
        for root in self.layout.controllers.iter().map(|(_, root)| root).chain(unified) {
            let file = root.join(&self.path).join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(|error| named(&file, "cannot join", error))?;
        }
        Ok(())
    }

    /// Moves a process in where there are no controllers, if such a hierarchy lies beside others.
    pub fn add_uncontrolled(&self, pid: i32) -> io::Result<()> {
        match &self.layout.unified {
            Some(root) if !self.layout.unified_controls => {
                let file = root.join(&self.path).join("cgroup.procs");
                fs::write(&file, pid.to_string()).map_err(|error| named(&file, "cannot join", error))
            }
            _ => Ok(()),
        }
    }

    /// Sets the limits, lifting those that are none. Less memory than is in use and cannot be taken back is refused,
    /// before anything is changed: the kernel would kill for it. Taking back may take its time.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        self.limit_memory(limits)?;
        self.limit_io(limits)?;
        let or_max = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
        let quota_us = limits.nano_cpus.map(|nano| (nano / (1_000_000_000 / PERIOD_US)).max(QUOTA_MIN_US));
        if self.layout.unified_controls {
            let cpu = format!("{} {PERIOD_US}", or_max(quota_us));
            self.set("", "cpu.max", &cpu, quota_us.is_some())?;
            return self.set("", "pids.max", &or_max(limits.pids), limits.pids.is_some());
        }
        if quota_us.is_some() {
            self.set("cpu", "cpu.cfs_period_us", &PERIOD_US.to_string(), true)?;
        }
        let quota = quota_us.map_or("-1".to_owned(), |quota| quota.to_string());
        self.set("cpu", "cpu.cfs_quota_us", &quota, quota_us.is_some())?;
        self.set("pids", "pids.max", &or_max(limits.pids), limits.pids.is_some())
    }

    fn limit_memory(&self, limits: &Limits) -> io::Result<()> {
        let limited = limits.memory_bytes.is_some();
        let total = limits.memory_bytes.and_then(|bytes| bytes.checked_add(limits.swap_bytes));
        if !self.layout.unified_controls {
            let or_negative = |value: Option<u64>| value.map_or("-1".to_owned(), |value| value.to_string());
            let (memory, total) = (or_negative(limits.memory_bytes), or_negative(total));
            // Memory must stay below memory and swap together: lowering begins with one, raising with the other.
            if self.set("memory", "memory.limit_in_bytes", &memory, true).is_err() {
                let _ = self.set("memory", "memory.memsw.limit_in_bytes", &total, false);
                let set = self.set("memory", "memory.limit_in_bytes", &memory, limited);
                set.map_err(|error| in_use(error, limits))?;
            }
            let _ = self.set("memory", "memory.memsw.limit_in_bytes", &total, false);
            return Ok(());
        }
        let or_max = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
        let used = || number(&self.read("", "memory.current")).unwrap_or(0);
        let too_much = |bytes: u64| used() > bytes;
        // Above its maximum the kernel kills, above this mark it only takes back, and does that while it is written.
        let marked = limits.memory_bytes.filter(|bytes| too_much(*bytes));
        if let Some(bytes) = marked {
            self.set("", "memory.high", &bytes.to_string(), false)?;
        }
        let set = match marked.is_some_and(too_much) {
            true => Err(in_use(io::ErrorKind::ResourceBusy.into(), limits)),
            false => self.set("", "memory.max", &or_max(limits.memory_bytes), limited),
        };
        if marked.is_some() {
            let _ = self.set("", "memory.high", "max", false);
        }
        set?;
        // Without swap the limit is what it says; not every kernel counts swap.
        let swap = total.map(|_| limits.swap_bytes);
        let _ = self.set("", "memory.swap.max", &or_max(swap), false);
        Ok(())
    }

    /// Sets what holds for disks, lifting what no longer does.
    fn limit_io(&self, limits: &Limits) -> io::Result<()> {
        // A matter of the scheduler in use for the disk; without one that has shares there are none. On every scale
        // a cgroup of which nothing is said has the same.
        let weight = limits.io_weight.unwrap_or(IO_WEIGHT_USUAL).to_string();
        let weights = if self.layout.unified_controls {
            [("", "io.weight"), ("", "io.bfq.weight")]
        } else {
            [("blkio", "blkio.weight"), ("blkio", "blkio.bfq.weight")]
        };
        for (controller, file) in weights {
            let _ = self.set(controller, file, &weight, false);
        }
        if self.layout.unified_controls {
            let or_max = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
            for device in self.limited_devices("", "io.max", &limits.io) {
                self.set("", "io.max", &format!("{device} rbps=max wbps=max"), false)?;
            }
            for IoLimit { major, minor, read_bps, write_bps } in &limits.io {
                let line = format!("{major}:{minor} rbps={} wbps={}", or_max(*read_bps), or_max(*write_bps));
                self.set("", "io.max", &line, true)?;
            }
            return Ok(());
        }
        type Rate = fn(&IoLimit) -> Option<u64>;
        let rates = [
            ("blkio.throttle.read_bps_device", (|limit| limit.read_bps) as Rate),
            ("blkio.throttle.write_bps_device", |limit| limit.write_bps),
        ];
        for (file, rate) in rates {
            for device in self.limited_devices("blkio", file, &limits.io) {
                self.set("blkio", file, &format!("{device} 0"), false)?;
            }
            for limit in &limits.io {
                let line = format!("{}:{} {}", limit.major, limit.minor, rate(limit).unwrap_or(0));
                self.set("blkio", file, &line, true)?;
            }
        }
        Ok(())
    }

    /// The devices a file of limits speaks of that are not limited any more.
    fn limited_devices(&self, controller: &str, file: &str, limits: &[IoLimit]) -> Vec<String> {
        let text = self.read(controller, file);
        let devices = text.lines().filter_map(|line| line.split(' ').next());
        let kept = |device: &&str| limits.iter().any(|at| format!("{}:{}", at.major, at.minor) == **device);
        devices.filter(|device| device.contains(':') && !kept(device)).map(str::to_owned).collect()
    }

    /// Allows opening only some devices.
    pub fn restrict_devices(&self, allowed: &[DeviceRule]) -> io::Result<()> {
        if self.layout.unified_controls {
            let Some(directory) = self.open_unified() else {
                return Err(io::Error::other(format!("cgroup {} has gone", self.path)));
            };
            return device_filter::attach(directory.as_fd(), allowed);
        }
        if self.directory("devices").is_none() {
            return Ok(());
        }
        self.set("devices", "devices.deny", "a", true)?;
        for DeviceRule { block, major, minor, access } in allowed {
            let number = |number: &Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
            let kind = if *block { 'b' } else { 'c' };
            let rule = format!("{kind} {}:{} {access}", number(major), number(minor));
            self.set("devices", "devices.allow", &rule, true)?;
        }
        // Making a node is governed by CAP_MKNOD; only opening one is governed here.
        self.set("devices", "devices.allow", "c *:* m", true)?;
        self.set("devices", "devices.allow", "b *:* m", true)
    }

    /// What is in use now; zero where the kernel does not say.
    pub fn usage(&self) -> Usage {
        if self.layout.unified_controls {
            let cpu = self.read("", "cpu.stat");
            let memory = number(&self.read("", "memory.current")).unwrap_or(0);
            return Usage {
                cpu_ns: field(&cpu, "usage_usec") * 1_000,
                throttled_periods: field(&cpu, "nr_throttled"),
                memory_bytes: memory.saturating_sub(field(&self.read("", "memory.stat"), "inactive_file")),
                memory_limit_bytes: number(&self.read("", "memory.max")),
                pids: number(&self.read("", "pids.current")).unwrap_or(0),
                oom_kills: self.oom_kills(),
                read_bytes: keyed(&self.read("", "io.stat"), "rbytes="),
                written_bytes: keyed(&self.read("", "io.stat"), "wbytes="),
                pressure: self.pressure(),
            };
        }
        let disks = self.read("blkio", "blkio.throttle.io_service_bytes");
        let memory = number(&self.read("memory", "memory.usage_in_bytes")).unwrap_or(0);
        let reclaimable = field(&self.read("memory", "memory.stat"), "total_inactive_file");
        Usage {
            cpu_ns: number(&self.read("cpuacct", "cpuacct.usage")).unwrap_or(0),
            throttled_periods: field(&self.read("cpu", "cpu.stat"), "nr_throttled"),
            memory_bytes: memory.saturating_sub(reclaimable),
            // Without a limit the kernel names the largest page-aligned number.
            memory_limit_bytes: number(&self.read("memory", "memory.limit_in_bytes"))
                .filter(|limit| *limit < i64::MAX as u64 / 2),
            pids: number(&self.read("pids", "pids.current")).unwrap_or(0),
            oom_kills: self.oom_kills(),
            read_bytes: keyed(&disks, "Read "),
            written_bytes: keyed(&disks, "Write "),
            pressure: self.pressure(),
        }
    }

    fn pressure(&self) -> Option<Pressure> {
        let of = |file| {
            let text = self.read("", file);
            let average =
                text.lines().find_map(|line| line.strip_prefix("some avg10="))?.split(' ').next()?;
            // Always with two digits after the point.
            average.replace('.', "").parse().ok()
        };
        Some(Pressure { cpu: of("cpu.pressure")?, memory: of("memory.pressure")?, io: of("io.pressure")? })
    }

    /// Holds every process inside still, or lets them go on, and waits until that is so.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        match (&self.layout.unified, frozen) {
            (_, false) => self.thaw()?,
            (Some(_), true) => self.set("", "cgroup.freeze", "1", true)?,
            (None, true) => self.set(FREEZER, "freezer.state", "FROZEN", true)?,
        }
        let deadline = Instant::now() + FREEZE_MAX;
        while self.is_frozen() != frozen {
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a process hangs in the kernel"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets every process inside go on, and does not wait until that is so.
    pub fn thaw(&self) -> io::Result<()> {
        match &self.layout.unified {
            Some(_) => self.set("", "cgroup.freeze", "0", true),
            None => self.set(FREEZER, "freezer.state", "THAWED", true),
        }
    }

    /// Every process inside is held still.
    pub fn is_frozen(&self) -> bool {
        match self.layout.unified {
            Some(_) => field(&self.read("", "cgroup.events"), "frozen") == 1,
            None => self.read(FREEZER, "freezer.state").trim() == "FROZEN",
        }
    }

    /// Processes killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        if self.layout.unified_controls {
            field(&self.read("", "memory.events"), "oom_kill")
        } else {
            field(&self.read("memory", "memory.oom_control"), "oom_kill")
        }
    }

    /// Kills every process inside.
    pub fn kill(&self) {
        if let Some(root) = &self.layout.unified
            && fs::write(root.join(&self.path).join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for pid in self.processes() {
            // SAFETY: a signal to a process of this cgroup; the worst a race can hit is a zombie's number.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    /// The processes inside.
    pub fn processes(&self) -> Vec<i32> {
        self.layout.roots().last().map(|root| processes(&root.join(&self.path))).unwrap_or_default()
    }

    /// Makes a cgroup inside this one for a part of its processes, in one hierarchy only: it is for telling them
    /// apart and ending them, while the limits of this one go on to hold. None: there is no hierarchy for it.
    pub fn divide(&self, name: &str) -> io::Result<Option<Self>> {
        let controllers = &self.layout.controllers;
        let (unified, controllers) = match &self.layout.unified {
            Some(root) => (Some(root.clone()), Vec::new()),
            None => {
                let pids = controllers.iter().find(|(name, _)| name == "pids").or(controllers.first());
                (None, pids.into_iter().cloned().collect())
            }
        };
        let layout = Layout { unified, unified_controls: self.layout.unified_controls, controllers };
        let part = Self { layout, path: format!("{}/{name}", self.path) };
        let Some(directory) = part.layout.roots().next().map(|root| root.join(&part.path)) else {
            return Ok(None);
        };
        make_directory(&directory)?;
        Ok(Some(part))
    }

    /// Removes the cgroup, waiting up to `patience` for its dying processes. Absent is as good as removed.
    pub fn remove(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        for root in self.layout.roots() {
            let directory = root.join(&self.path);
            loop {
                match fs::remove_dir(&directory) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        let parts_gone = remove_parts(&directory);
                        if !parts_gone && Instant::now() >= deadline {
                            return Err(named(&directory, "cannot remove cgroup", error));
                        }
                        if !parts_gone {
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                    Err(error) => return Err(named(&directory, "cannot remove cgroup", error)),
                }
            }
        }
        Ok(())
    }

    /// Removes the cgroups of this path in hierarchies that we do not use, but others may have. What is still in use
    /// stays.
    pub fn remove_beside(&self) {
        let ours: Vec<&PathBuf> = self.layout.roots().collect();
        let Some(mount) =
            ours.first().filter(|_| !self.layout.unified_controls).and_then(|root| root.parent())
        else {
            return;
        };
        let hierarchies = fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
        for root in hierarchies.filter(|root| !ours.contains(&root) && magic(root) == Some(CGROUP1_MAGIC)) {
            let directory = root.join(&self.path);
            remove_parts(&directory);
            let _ = fs::remove_dir(directory);
        }
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        let root = if controller.is_empty() {
            self.layout.unified.as_ref()
        } else {
            self.layout.controllers.iter().find(|(name, _)| name == controller).map(|(_, root)| root)
        };
        root.map(|root| root.join(&self.path))
    }

    /// Writes a control file. Unless `needed`, a file that does not exist is no error.
    fn set(&self, controller: &str, file: &str, value: &str, needed: bool) -> io::Result<()> {
        let missing =
            || io::Error::other(format!("cannot set {file}: this machine has no such cgroup controller"));
        let Some(directory) = self.directory(controller) else {
            return if needed { Err(missing()) } else { Ok(()) };
        };
        let path = directory.join(file);
        // Not `fs::write`: asked to create a control file, the kernel speaks of permissions.
        let write = || fs::OpenOptions::new().write(true).open(&path)?.write_all(value.as_bytes());
        match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !needed => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(error) => Err(named(&path, &format!("cannot write {value:?} to"), error)),
            Ok(()) => Ok(()),
        }
    }

    fn read(&self, controller: &str, file: &str) -> String {
        self.directory(controller)
            .and_then(|path| fs::read_to_string(path.join(file)).ok())
            .unwrap_or_default()
    }
}

/// Lets the cgroups inside a cgroup have the controllers that we use, as far as it has them. Those that they have
/// already are left alone: to write them down again would wait for all other cgroups that come or go.
fn pass_on_controllers(directory: &Path) {
    let listed = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let (has, passes_on) = (listed("cgroup.controllers"), listed("cgroup.subtree_control"));
    let among = |list: &str, controller: &str| list.split_whitespace().any(|name| name == controller);
    for controller in UNIFIED_CONTROLLERS {
        if among(&has, controller) && !among(&passes_on, controller) {
            // One that is not ours to pass on shows when a limit is set.
            let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// The processes of a cgroup and of the cgroups inside it.
fn processes(directory: &Path) -> Vec<i32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    // A process of another pid namespace is listed as 0.
    let own = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0);
    own.chain(parts(directory).iter().flat_map(|part| processes(part))).collect()
}

/// The cgroups inside a cgroup.
fn parts(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the cgroups inside a cgroup; says whether there were any and all are gone.
fn remove_parts(directory: &Path) -> bool {
    let parts = parts(directory);
    let mut gone = !parts.is_empty();
    for part in parts {
        remove_parts(&part);
        gone &= fs::remove_dir(&part).is_ok();
    }
    gone
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(named(path, "cannot make cgroup", error))
        }
        _ => Ok(()),
    }
}

/// What the kernel's refusal of less memory means.
fn in_use(error: io::Error, limits: &Limits) -> io::Error {
    match (error.kind(), limits.memory_bytes) {
        (io::ErrorKind::ResourceBusy, Some(bytes)) => io::Error::new(
            error.kind(),
            format!("it uses more memory than {} MiB and cannot give it back", bytes.div_ceil(1 << 20)),
        ),
        _ => error,
    }
}

fn named(path: &Path, what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// The sum, over all disks, of the number that follows `key` on each line.
fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| number(line.split_once(key)?.1.split(' ').next()?);
    text.lines().filter_map(value).sum()
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').and_then(number)).unwrap_or(0)
}
