//! What goes on in a container, read from the kernel: its processes, its traffic, its files.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rswarm_shim::protocol::{LAUNCH_FILE, Launch, Running};
use tokio::net::TcpStream;

use super::bundle::in_user_namespace;
use crate::files::{self, Root};

use super::{Error, Executor, Result, State, blocking, dial, entry, io_error};

/// The kernel tells times to programs in hundredths of a second, whatever it counts in itself.
const TICK_NS: u64 = 10_000_000;
/// A command line is cut off beyond this, in bytes.
const COMMAND_MAX: usize = 4096;

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number on this machine.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its user, as this machine numbers it.
    pub uid: u32,
    /// When it began, in milliseconds since the epoch.
    pub started_unix_ms: u64,
    /// CPU time it has used, in nanoseconds.
    pub cpu_ns: u64,
    /// The number of its terminal, if it has one.
    pub tty: Option<u32>,
    /// Its arguments joined by spaces, or its name in brackets if it has none.
    pub command: String,
}

/// Bytes that have passed a container's network devices, the loopback device left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received.
    pub received_bytes: u64,
    /// Sent.
    pub sent_bytes: u64,
}

impl Executor {
    /// The processes of a running container, by pid.
    pub async fn processes(&self, id: &str) -> Result<Vec<Process>> {
        let running = self.process(id)?;
        let what = || io_error(format!("cannot list the processes of container {id}"));
        blocking(move || processes(&running)).await.map_err(what())
    }

    /// What a running container has received and sent.
    pub async fn traffic(&self, id: &str) -> Result<Traffic> {
        let running = self.process(id)?;
        Ok(blocking(move || traffic(&running)).await)
    }

    /// Connects to what listens on a port inside a running container, on its loopback device.
    pub async fn connect(&self, id: &str, port: u16) -> Result<TcpStream> {
        let running = self.process(id)?;
        let what = io_error(format!("cannot connect to port {port} of container {id}"));
        dial::connect(&running, port).await.map_err(what)
    }

    /// The root directory of a container, to resolve paths beneath: as a running one sees it, or what one that has
    /// ended left behind, which cannot be written to.
    pub async fn root(&self, id: &str, to_write: bool) -> Result<Root> {
        let what = io_error(format!("cannot open the root of container {id}"));
        let entry = self.entry(id)?;
        match entry.state() {
            State::Running(running) => {
                let open = move || {
                    let root = files::directory(Path::new(&format!("/proc/{}/root", running.pid)))?;
                    // The number may have been given to another process meanwhile.
                    match entry::start_ticks(running.pid) == Some(running.start_ticks) {
                        true => Ok(root),
                        false => Err(std::io::Error::new(ErrorKind::NotFound, "the container has ended")),
                    }
                };
                let root = blocking(open).await.map_err(what)?;
                Ok(Root::from(root).with_ids(entry.meta.users))
            }
            State::Created | State::Exited(_) if to_write => Err(Error::NotRunning(id.into())),
            State::Created | State::Exited(_) => {
                // On the disk ids are as the container has them.
                let directory = entry.directory.clone();
                blocking(move || remains(&directory)).await.map(Root::from).map_err(what)
            }
        }
    }

    /// The first process of a running container.
    pub(super) fn process(&self, id: &str) -> Result<Running> {
        match self.running(id)?.state() {
            State::Running(running) => Ok(running),
            State::Created | State::Exited(_) => Err(Error::NotRunning(id.into())),
        }
    }
}

/// The layers of a container that does not run, one over the other, mounted nowhere and for reading only.
fn remains(directory: &Path) -> std::io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let launch: Launch = serde_json::from_slice(&fs::read(directory.join(LAUNCH_FILE))?)?;
    let layers: Vec<OwnedFd> = std::iter::once(&launch.upper)
        .chain(&launch.lower)
        .map(|layer| files::directory(layer))
        .collect::<std::io::Result<_>>()?;
    let names: Vec<String> =
        layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    let made = |options: &[(&str, String)]| -> std::io::Result<OwnedFd> {
        let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (name, value) in options {
            rustix::mount::fsconfig_set_string(&overlay, *name, value.as_str())?;
        }
        if in_user_namespace() {
            rustix::mount::fsconfig_set_flag(&overlay, "userxattr")?;
        }
        rustix::mount::fsconfig_create(&overlay)?;
        Ok(overlay)
    };
    let each: Vec<_> = names.iter().map(|name| ("lowerdir+", name.clone())).collect();
    // Before Linux 6.8 there is only the one text; some of those before look at names only in the end.
    let overlay = made(&each).or_else(|_| made(&[("lowerdir", names.join(":"))]))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A container's processes are those of its pid namespace.
fn processes(running: &Running) -> std::io::Result<Vec<Process>> {
    let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let own = space(running.pid)?;
    let boot_ms = boot_unix_ms();
    let listed = fs::read_dir("/proc")?.flatten();
    let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = pids.filter(|pid| space(*pid).is_ok_and(|other| other == own));
    let mut found: Vec<Process> = inside.filter_map(|pid| process(pid, boot_ms)).collect();
    if entry::start_ticks(running.pid) != Some(running.start_ticks) {
        // The number had been given to another process.
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the container has ended"));
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

/// None: it has ended meanwhile.
fn process(pid: i32, boot_ms: u64) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything; what follows it is fields 3, 4, ...
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = &words[..words.len().min(COMMAND_MAX)];
    let command = String::from_utf8_lossy(words).trim_end_matches('\0').replace('\0', " ");
    Some(Process {
        pid,
        ppid: number(4)? as i32,
        uid,
        started_unix_ms: boot_ms + number(22)? as u64 * TICK_NS / 1_000_000,
        cpu_ns: (number(14)? + number(15)?) as u64 * TICK_NS,
        tty: u32::try_from(number(7)?).ok().filter(|device| *device != 0).map(minor),
        command: if command.is_empty() { format!("[{name}]") } else { command },
    })
}

/// The minor number in a device number as the kernel prints it.
fn minor(device: u32) -> u32 {
    device & 0xff | device >> 12 & 0xf_ff00
}

fn boot_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.saturating_sub(up.tv_sec as u64 * 1000 + up.tv_nsec as u64 / 1_000_000)
}

fn traffic(running: &Running) -> Traffic {
    let text = fs::read_to_string(format!("/proc/{}/net/dev", running.pid)).unwrap_or_default();
    let devices =
        text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    devices.fold(Traffic::default(), |sum, (_, numbers)| {
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
        Traffic { received_bytes: sum.received_bytes + at(0), sent_bytes: sum.sent_bytes + at(8) }
    })
}
