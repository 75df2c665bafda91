//! How containers differ from one another, and what tasks may use at most.

use super::node::resources;
use crate::cli::output::value::{Struct, Value};
use rswarm_control::model::{Bounds, ContainerSpec, Device, IoBound, Profile, Swap, TaskResources, Ulimit};

/// What a task may use at most.
pub fn limits(task: &TaskResources) -> Struct {
    let Bounds { pids, swap, io_weight, io: devices } = &task.bounds;
    let swap = match swap {
        Swap::None => Value::Nil,
        Swap::Unlimited => Value::Int(-1),
        Swap::Bytes(bytes) => Value::Int(i64::try_from(*bytes).unwrap_or(i64::MAX)),
    };
    let io = |bound: &IoBound| {
        Struct::new("ThrottleDevice")
            .with("Path", &bound.device)
            .maybe("ReadBps", bound.read_bps)
            .maybe("WriteBps", bound.write_bps)
    };
    resources(&task.limits)
        .maybe(
            "Pids",
            pids.map(|pids| match pids {
                0 => Value::Int(-1),
                some => Value::from(some),
            }),
        )
        .maybe("SwapBytes", swap)
        .maybe("BlkioWeight", u32::from(*io_weight))
        .maybe("BlkioDevices", devices.iter().map(io).collect::<Vec<_>>())
}

/// What is said beyond the program, by Docker's names.
pub fn shape(shown: Struct, profile: &Profile) -> Struct {
    let capabilities = |names: &[String]| names.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
    let hosts = profile.hosts.iter().map(|(name, address)| format!("{address} {name}"));
    let servers = profile.dns.servers.iter().map(ToString::to_string);
    let dns = Struct::new("DNSConfig")
        .maybe("Nameservers", servers.collect::<Vec<_>>())
        .maybe("Search", profile.dns.search.as_slice())
        .maybe("Options", profile.dns.options.as_slice());
    let limit = |value: u64| Value::Int(i64::try_from(value).unwrap_or(-1));
    let ulimit = |(name, given): (&String, &Ulimit)| {
        Struct::new("Ulimit")
            .with("Name", name)
            .with("Hard", limit(given.hard))
            .with("Soft", limit(given.soft))
    };
    let device = |device: &Device| {
        Struct::new("DeviceMapping")
            .with("PathOnHost", &device.source)
            .maybe("PathInContainer", device.target.as_str())
            .maybe("CgroupPermissions", device.access.as_str())
    };
    shown
        .maybe("Groups", profile.groups.as_slice())
        .maybe("OpenStdin", profile.stdin)
        .maybe("Hosts", hosts.collect::<Vec<_>>())
        .maybe("DNSConfig", dns)
        .maybe("Sysctls", &profile.sysctls)
        .maybe("CapabilityAdd", capabilities(&profile.cap_add))
        .maybe("CapabilityDrop", capabilities(&profile.cap_drop))
        .maybe("Ulimits", profile.ulimits.iter().map(ulimit).collect::<Vec<_>>())
        .maybe("Devices", profile.devices.iter().map(device).collect::<Vec<_>>())
        .maybe("ShmSize", profile.shm_bytes)
        .maybe("OomScoreAdj", Value::Int(profile.oom_score_adj.into()))
}

/// The log driver, if anything was said of it.
pub fn log(container: Option<&ContainerSpec>) -> Struct {
    let log = container.map(|container| container.profile.log.clone()).unwrap_or_default();
    Struct::new("Driver").maybe("Name", log.name).maybe("Options", &log.options)
}
