//! The parts of an OCI runtime specification that the shim carries out, and the directory they come in.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rswarm_shim::cgroup::{DeviceRule, IoLimit, Limits};
use rswarm_shim::protocol::{CONFIG_FILE, LAUNCH_FILE, Launch, SECCOMP_FILE};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::sys::{Failure, Result};

/// One container, as the daemon has laid it out.
pub struct Bundle {
    pub directory: PathBuf,
    pub spec: Spec,
    pub launch: Launch,
    /// Compiled filters, in the order of loading.
    pub seccomp: Vec<Vec<libc::sock_filter>>,
}

impl Bundle {
    pub fn read(directory: &Path) -> Result<Self> {
        Ok(Self {
            directory: directory.into(),
            spec: json(&directory.join(CONFIG_FILE))?,
            launch: json(&directory.join(LAUNCH_FILE))?,
            seccomp: seccomp(&directory.join(SECCOMP_FILE))?,
        })
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes =
        fs::read(path).map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::setup(format!("{}: {error}", path.display())))
}

/// Each filter is a little-endian count of instructions and then these, eight bytes each.
fn seccomp(path: &Path) -> Result<Vec<Vec<libc::sock_filter>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::io(format_args!("read {}", path.display()), &error)),
    };
    let damaged = || Failure::setup(format!("{} is damaged", path.display()));
    let mut filters = Vec::new();
    let mut rest = &bytes[..];
    while let Some((count, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*count) as usize * 8;
        let (filter, after) = after.split_at_checked(length).ok_or_else(damaged)?;
        let instruction = |word: &[u8]| libc::sock_filter {
            code: u16::from_le_bytes([word[0], word[1]]),
            jt: word[2],
            jf: word[3],
            k: u32::from_le_bytes([word[4], word[5], word[6], word[7]]),
        };
        filters.push(filter.chunks_exact(8).map(instruction).collect());
        rest = after;
    }
    if rest.is_empty() { Ok(filters) } else { Err(damaged()) }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub process: Process,
    pub root: Root,
    pub hostname: Option<String>,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub linux: Linux,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    pub cwd: String,
    #[serde(default)]
    pub capabilities: Capabilities,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    #[serde(default)]
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Default, Deserialize)]
pub struct Capabilities {
    #[serde(default)]
    pub bounding: Vec<String>,
}

#[derive(Clone, Deserialize)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Deserialize)]
pub struct Root {
    pub path: PathBuf,
    #[serde(default)]
    pub readonly: bool,
}

#[derive(Deserialize)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub source: Option<PathBuf>,
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    #[serde(default)]
    pub masked_paths: Vec<String>,
    #[serde(default)]
    pub readonly_paths: Vec<String>,
    #[serde(default)]
    pub sysctl: BTreeMap<String, String>,
    #[serde(default)]
    pub resources: Resources,
    /// Device nodes to make beyond those every container has.
    #[serde(default)]
    pub devices: Vec<DeviceNode>,
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
}

#[derive(PartialEq, Eq, Deserialize)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

#[derive(Deserialize)]
pub struct DeviceNode {
    pub path: String,
    /// `c` or `b`.
    #[serde(rename = "type")]
    pub kind: String,
    pub major: u32,
    pub minor: u32,
}

#[derive(Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    memory: Option<Memory>,
    cpu: Option<Cpu>,
    pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    block_io: Option<BlockIo>,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Memory {
    limit: Option<i64>,
    /// Together with memory.
    swap: Option<i64>,
}

#[derive(Deserialize)]
struct Cpu {
    quota: Option<i64>,
    period: Option<u64>,
}

#[derive(Deserialize)]
struct Pids {
    limit: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    weight: Option<u16>,
    #[serde(default)]
    throttle_read_bps_device: Vec<Throttle>,
    #[serde(default)]
    throttle_write_bps_device: Vec<Throttle>,
}

#[derive(Deserialize)]
struct Throttle {
    major: u32,
    minor: u32,
    rate: u64,
}

#[derive(Deserialize)]
struct Device {
    allow: bool,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    access: Option<String>,
}

impl Resources {
    pub fn limits(&self) -> Limits {
        let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        let nano_cpus = self.cpu.as_ref().and_then(|cpu| {
            let period = cpu.period.filter(|period| *period > 0).unwrap_or(100_000);
            Some((u128::from(positive(cpu.quota?)?) * 1_000_000_000 / u128::from(period)) as u64)
        });
        let memory_bytes = self.memory.as_ref().and_then(|memory| memory.limit).and_then(positive);
        let swap_bytes = match self.memory.as_ref().and_then(|memory| memory.swap) {
            None => 0,
            Some(-1) => u64::MAX,
            Some(total) => positive(total).unwrap_or(0).saturating_sub(memory_bytes.unwrap_or(0)),
        };
        Limits {
            nano_cpus,
            memory_bytes,
            pids: self.pids.as_ref().and_then(|pids| pids.limit).and_then(positive),
            swap_bytes,
            io_weight: self.block_io.as_ref().and_then(|io| io.weight),
            io: self.block_io.as_ref().map(BlockIo::limits).unwrap_or_default(),
        }
    }

    /// What may be opened; all else may not.
    pub fn devices(&self) -> Vec<DeviceRule> {
        let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let allowed = self.devices.iter().filter(|device| device.allow);
        let rule = |device: &Device| DeviceRule {
            block: device.kind.as_deref() == Some("b"),
            major: number(device.major),
            minor: number(device.minor),
            access: device.access.clone().unwrap_or_else(|| "rwm".into()),
        };
        allowed.map(rule).collect()
    }
}

impl BlockIo {
    fn limits(&self) -> Vec<IoLimit> {
        let mut limits: BTreeMap<(u32, u32), IoLimit> = BTreeMap::new();
        for throttle in &self.throttle_read_bps_device {
            limit(&mut limits, throttle).read_bps = Some(throttle.rate);
        }
        for throttle in &self.throttle_write_bps_device {
            limit(&mut limits, throttle).write_bps = Some(throttle.rate);
        }
        limits.into_values().collect()
    }
}

/// What is known of a device so far.
fn limit<'a>(limits: &'a mut BTreeMap<(u32, u32), IoLimit>, throttle: &Throttle) -> &'a mut IoLimit {
    let Throttle { major, minor, .. } = *throttle;
    limits.entry((major, minor)).or_insert(IoLimit { major, minor, read_bps: None, write_bps: None })
}
