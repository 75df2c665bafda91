//! What a spec says of a container beyond its program, as the executor is told it.

use crate::executor::{self, ContainerRequest, Device, IoLimit, Limits, LogOptions, Rlimit, device_numbers};
use anyhow::{Context, Result};
use rswarm_control::admission::{LOG_BYTES_MIN, LOG_FILES_MAX, log_bytes};
use rswarm_control::assignment::AssignedTask;
use rswarm_control::model::{ContainerSpec, LogDriver, Profile, Swap, TaskResources, Userns};
use std::path::Path;

/// Processes and threads of a task of which nothing is said.
const PIDS: u64 = 1024;

/// Makes a container what its profile says.
pub fn apply(profile: &Profile, request: &mut ContainerRequest) {
    request.groups.clone_from(&profile.groups);
    request.stdin = profile.stdin;
    request.extra_hosts.clone_from(&profile.hosts);
    request.dns.search.clone_from(&profile.dns.search);
    request.dns.options.extend(profile.dns.options.iter().cloned());
    request.privileges.cap_add.clone_from(&profile.cap_add);
    request.privileges.cap_drop.clone_from(&profile.cap_drop);
    request.privileges.sysctls.clone_from(&profile.sysctls);
    let rlimit = |(name, limit): (&String, &rswarm_control::model::Ulimit)| Rlimit {
        name: name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    };
    request.rlimits = profile.ulimits.iter().map(rlimit).collect();
    let device = |device: &rswarm_control::model::Device| Device {
        source: (&device.source).into(),
        target: device.target.clone(),
        access: device.access.clone(),
    };
    // The others are given by whoever reads the node's CDI files.
    request.devices = profile.devices.iter().filter(|device| !device.is_cdi()).map(device).collect();
    request.log = log(&profile.log);
    request.shm_bytes = profile.shm_bytes;
    request.oom_score_adj = profile.oom_score_adj;
    request.own_users = profile.userns == Userns::Auto;
}

/// Where a container's log is kept. What is said of it was found good when it was asked for, by whichever version.
fn log(spec: &LogDriver) -> LogOptions {
    let option = |name: &str| spec.options.get(name);
    let usual = LogOptions::default();
    LogOptions {
        file_bytes_max: option("max-size")
            .and_then(|text| log_bytes(text))
            .unwrap_or(usual.file_bytes_max)
            .max(LOG_BYTES_MIN),
        files_max: option("max-file")
            .and_then(|text| text.parse().ok())
            .unwrap_or(usual.files_max)
            .clamp(1, LOG_FILES_MAX),
        compress: option("compress").is_none_or(|text| text != "false"),
        driver: match spec.name.as_deref() {
            Some("journald") => executor::LogDriver::Journald,
            Some("none") => executor::LogDriver::None,
            _ => executor::LogDriver::Local,
        },
    }
}

/// How a container's entries in the journal are told from others, by Docker's names.
pub fn journal(task: &AssignedTask, spec: &ContainerSpec, id: &str) -> Vec<(String, String)> {
    let name = format!("{}.{}", task.service_name, task.slot);
    let tag = spec.profile.log.options.get("tag").cloned().unwrap_or_else(|| name.clone());
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        field("CONTAINER_ID", id),
        field("CONTAINER_NAME", &name),
        field("CONTAINER_TAG", &tag),
        field("SYSLOG_IDENTIFIER", &tag),
        field("IMAGE_NAME", &spec.image),
        field("RSWARM_SERVICE", &task.service_name),
    ]
}

/// What a task may use at most, on this node.
///
/// # Errors
/// If a device that is spoken of is not here.
pub fn limits(resources: &TaskResources) -> Result<Limits> {
    let (limits, bounds) = (&resources.limits, &resources.bounds);
    let some = |amount: u64| Some(amount).filter(|amount| *amount > 0);
    let io = bounds.io.iter().map(|bound| {
        let (_, major, minor) = device_numbers(Path::new(&bound.device))
            .with_context(|| format!("cannot limit how fast {} is used on this node", bound.device))?;
        Ok(IoLimit { major, minor, read_bps: some(bound.read_bps), write_bps: some(bound.write_bps) })
    });
    Ok(Limits {
        nano_cpus: some(limits.nano_cpus),
        memory_bytes: some(limits.memory_bytes),
        pids: some(bounds.pids.unwrap_or(PIDS)),
        swap_bytes: match bounds.swap {
            Swap::None => 0,
            Swap::Unlimited => u64::MAX,
            Swap::Bytes(bytes) => bytes,
        },
        io_weight: Some(bounds.io_weight).filter(|weight| *weight > 0),
        io: io.collect::<Result<_>>()?,
    })
}
