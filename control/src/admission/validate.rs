//! What a spec must look like.

use super::{Refused, profile};
use crate::model::{
    AffinityRule, FailureAction, Preference, RestartCondition, UpdateConfig, UpdateOrder, WEIGHT_MAX,
};
use crate::model::{
    Allow, ContainerSpec, EndpointMode, EndpointSpec, Mount, Placement, PortMode, PortSpec, Protocol,
    Resources, ServiceSpec, TaskSpec,
};
use crate::model::{HealthSpec, HealthTest, HttpProbe, Probe};
use std::collections::BTreeSet;
use std::time::Duration;

/// No service has more tasks than this.
const REPLICAS_MAX: u32 = 100_000;
/// Less than a thousandth of a processor cannot be enforced.
const NANO_CPUS_MIN: u64 = 1_000_000;
/// No container starts with less memory.
const MEMORY_BYTES_MIN: u64 = 4 << 20;
/// Rules of one kind in a placement: constraints, preferences, …
const RULES_MAX: usize = 32;
/// Entries of an allow list.
const ALLOW_MAX: usize = 128;
/// Longest text that is kept anywhere in a spec, in bytes.
const TEXT_MAX: usize = 64 << 10;

pub(super) fn service(spec: &ServiceSpec) -> Result<(), Refused> {
    name("service", &spec.name)?;
    labels(spec.labels.keys())?;
    if let Some(replicas) = spec.mode.replicas().filter(|replicas| *replicas > REPLICAS_MAX) {
        return invalid(format!("replicas: {replicas} is more than {REPLICAS_MAX}"));
    }
    if spec.mode.is_global() && spec.task.placement.max_per_node != 0 {
        return invalid(format!(
            "max replicas per node: a {} service has one task on each node; leave it out",
            spec.mode.name()
        ));
    }
    let overlaps = |config: &UpdateConfig| config.order == UpdateOrder::StartFirst;
    if spec.task.is_fenced() && (overlaps(&spec.update) || overlaps(&spec.rollback)) {
        return invalid(
            "on node loss: fence means never two at once, and start-first means two; choose one of them",
        );
    }
    if spec.mode.is_job() {
        if spec.task.restart.condition == RestartCondition::Any {
            return invalid(
                "restart condition: a job's task is not replaced after a good end; write on-failure or none",
            );
        }
        if spec.update != UpdateConfig::default() || spec.rollback != UpdateConfig::default() {
            return invalid(
                "update: a job is run anew when it changes, not updated; leave out its update and rollback \
                            options",
            );
        }
    }
    for (what, config) in [("update", &spec.update), ("rollback", &spec.rollback)] {
        if config.max_failure_permille > 1000 {
            return invalid(format!("{what}: the failure ratio lies between 0 and 1"));
        }
    }
    if spec.rollback.failure_action == FailureAction::Rollback {
        return invalid("rollback: a rollback that fails can be paused or go on, but not be rolled back");
    }
    task(&spec.task)?;
    placement(&spec.task.placement)?;
    endpoint(&spec.endpoint)
}

/// Names become host names in the cluster's DNS, so they are DNS labels.
pub(super) fn name(kind: &str, name: &str) -> Result<(), Refused> {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let edge = |c: char| c.is_ascii_alphanumeric();
    let fits = !name.is_empty() && name.len() <= 63;
    if fits && name.chars().all(inner) && name.starts_with(edge) && name.ends_with(edge) {
        return Ok(());
    }
    invalid(format!(
        "{kind} name `{}` is not allowed: use 1 to 63 letters, digits, `-` and `_`, beginning and ending with \
         a letter or digit",
        name.escape_debug().take(80).collect::<String>()
    ))
}

pub(super) fn labels<'a>(keys: impl Iterator<Item = &'a String>) -> Result<(), Refused> {
    for key in keys {
        if key.is_empty() || key.len() > 255 || key.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return invalid(format!(
                "label `{}`: a key is 1 to 255 characters without spaces",
                key.escape_debug()
            ));
        }
    }
    Ok(())
}

fn task(spec: &TaskSpec) -> Result<(), Refused> {
    match spec.containers.as_slice() {
        [] => return invalid("a service needs a container image"),
        [one] => container(one)?,
        [_, _, ..] => return invalid("more than one container in a task is not possible yet"),
    }
    resources("limit", spec.resources.limits)?;
    resources("reservation", spec.resources.reservations)?;
    profile::bounds(&spec.resources.bounds)?;
    if spec.resources.generic.len() > RULES_MAX {
        return invalid(format!("generic resources: more than {RULES_MAX} kinds are not possible"));
    }
    if let Some((kind, _)) = spec.resources.generic.iter().find(|(_, count)| **count == 0) {
        return invalid(format!("generic resource `{kind}`: none of it is nothing to ask for; leave it out"));
    }
    let (limits, reserved) = (spec.resources.limits, spec.resources.reservations);
    let exceeds = |reserved: u64, limit: u64| limit != 0 && reserved > limit;
    if exceeds(reserved.memory_bytes, limits.memory_bytes) || exceeds(reserved.nano_cpus, limits.nano_cpus) {
        return invalid("resources: more is reserved than the limit lets the task use");
    }
    let mut seen = BTreeSet::new();
    match spec.networks.iter().find(|network| !seen.insert(**network)) {
        Some(_) => invalid("networks: the same network is named twice"),
        None => Ok(()),
    }
}

fn resources(what: &str, resources: Resources) -> Result<(), Refused> {
    if (1..NANO_CPUS_MIN).contains(&resources.nano_cpus) {
        return invalid(format!("{what}: less than 0.001 CPUs is not possible"));
    }
    if (1..MEMORY_BYTES_MIN).contains(&resources.memory_bytes) {
        return invalid(format!("{what}: less than 4 MiB of memory is not possible"));
    }
    Ok(())
}

fn placement(placement: &Placement) -> Result<(), Refused> {
    let Placement { constraints, platforms, tolerations, affinities, preferences, .. } = placement;
    for (what, count) in [
        ("constraints", constraints.len()),
        ("platforms", platforms.len()),
        ("tolerations", tolerations.len()),
        ("affinities", affinities.len()),
        ("preferences", preferences.len()),
    ] {
        if count > RULES_MAX {
            return invalid(format!("{what}: more than {RULES_MAX} are not possible"));
        }
    }
    let weights = preferences.iter().filter_map(|preference| match preference {
        Preference::Weighted { weight, .. } => Some(*weight),
        Preference::Spread(_) => None,
    });
    let weights = weights.chain(affinities.iter().filter_map(|affinity| affinity.weight));
    if let Some(weight) = weights.into_iter().find(|weight| *weight == 0 || weight.abs() > WEIGHT_MAX) {
        return invalid(format!("placement: {weight} is no weight; it is a number from 1 to {WEIGHT_MAX}"));
    }
    for affinity in affinities {
        name("service", &affinity.service)?;
        let opposite = |other: &&crate::model::Affinity| {
            other.service == affinity.service && other.over == affinity.over && other.weight.is_none()
        };
        let apart = affinities.iter().filter(opposite).any(|other| other.rule == AffinityRule::Apart);
        if affinity.rule == AffinityRule::Together && affinity.weight.is_none() && apart {
            return invalid(format!(
                "affinity: a task cannot be both near to {} and far from it",
                affinity.service
            ));
        }
    }
    Ok(())
}

fn container(spec: &ContainerSpec) -> Result<(), Refused> {
    if spec.image.trim().is_empty() || spec.image.len() > 512 {
        return invalid("a service needs a container image of at most 512 characters");
    }
    let texts = [&spec.command, &spec.args].into_iter().flatten();
    let texts = texts.chain(spec.env.iter().map(|var| &var.value));
    let texts = texts.chain(spec.user.iter()).chain(spec.hostname.iter());
    for text in texts {
        if text.contains('\0') || text.len() > TEXT_MAX {
            return invalid("commands, arguments and environment hold no NUL and at most 64 KiB each");
        }
    }
    for var in &spec.env {
        if var.name.is_empty() || var.name.contains(['=', '\0']) {
            return invalid(format!(
                "env: `{}` is no variable name; write NAME=VALUE",
                var.name.escape_debug()
            ));
        }
    }
    labels(spec.labels.keys())?;
    if let Some(hostname) = spec.hostname.as_ref().filter(|hostname| !is_hostname(hostname)) {
        return invalid(format!(
            "hostname: `{}` is none: use at most 64 letters, digits, `-`, `_` and `.`",
            hostname.escape_debug().take(80).collect::<String>()
        ));
    }
    if let Some(workdir) = spec.workdir.as_ref().filter(|path| !is_path(path)) {
        return invalid(format!("workdir: `{}` is not an absolute path", workdir.escape_debug()));
    }
    if spec.stop_grace > Duration::from_secs(7 * 24 * 3600) {
        return invalid("stop grace period: more than a week is not possible");
    }
    if let Some(text) = spec.stop_signal.as_ref().filter(|text| !is_signal(text)) {
        return invalid(format!("stop signal: `{}` is none; write SIGTERM, TERM or 15", text.escape_debug()));
    }
    health(spec)?;
    profile::check(&spec.profile)?;
    mounts(&spec.mounts)
}

/// A volume's name by Docker's rule, or a template, whose outcome the node checks.
fn is_volume(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let plain = (2..=128).contains(&name.len())
        && name.bytes().all(word)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    plain || name.contains("{{") && name.len() <= 1024
}

fn mounts(mounts: &[Mount]) -> Result<(), Refused> {
    let mut targets = BTreeSet::new();
    for mount in mounts {
        let target = mount.target();
        if !is_path(target) || target.trim_end_matches('/').is_empty() {
            return invalid(format!(
                "mount: target `{}` is not an absolute path below /",
                target.escape_debug()
            ));
        }
        if !targets.insert(target.trim_end_matches('/')) {
            return invalid(format!("mount: target `{target}` is given twice"));
        }
        match mount {
            Mount::Bind { source, .. } if !is_path(source) => {
                return invalid(format!("mount: source `{}` is not an absolute path", source.escape_debug()));
            }
            Mount::Tmpfs { mode: Some(mode), .. } if *mode > 0o7777 => {
                return invalid(format!("mount: {mode:o} are no permission bits"));
            }
            Mount::Volume { source, .. } if !is_volume(source) => {
                return invalid(format!(
                    "mount: `{}` is no name for a volume; write 2 to 128 letters, digits, `_`, `.` and `-`, a letter or \
                     digit first",
                    source.escape_debug()
                ));
            }
            Mount::Bind { .. } | Mount::Volume { .. } | Mount::Tmpfs { .. } => {}
        }
    }
    Ok(())
}

/// Durations of probes, the start period apart, lie between these.
const PROBE_TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

fn health(spec: &ContainerSpec) -> Result<(), Refused> {
    let HealthSpec { test, interval, timeout, retries, start_period, start_interval } = &spec.health;
    let ready = spec.readiness.as_ref();
    if *test == HealthTest::None
        && spec.health != (HealthSpec { test: HealthTest::None, ..HealthSpec::default() })
    {
        return invalid("health: a container without a health check has no times of one");
    }
    for (what, time) in [
        ("health interval", *interval),
        ("health timeout", *timeout),
        ("health start interval", *start_interval),
        ("readiness interval", ready.map(|ready| ready.interval)),
        ("readiness timeout", ready.map(|ready| ready.timeout)),
    ] {
        if let Some(time) = time.filter(|time| !PROBE_TIMES.contains(time)) {
            return invalid(format!("{what}: {time:?} is not possible; it lies between 1 ms and 24 h"));
        }
    }
    if start_period.is_some_and(|period| period > *PROBE_TIMES.end()) {
        return invalid("health start period: more than 24 h are not possible");
    }
    if *retries == Some(0) || ready.is_some_and(|ready| ready.retries == 0) {
        return invalid("health and readiness: no retries means no verdict; there is at least 1");
    }
    if let HealthTest::Probe(own) = test {
        probe("health", own)?;
    }
    ready.map_or(Ok(()), |ready| probe("readiness", &ready.probe))
}

fn probe(what: &str, probe: &Probe) -> Result<(), Refused> {
    let texts = match probe {
        Probe::Command(args) if args.first().is_none_or(String::is_empty) => {
            return invalid(format!("{what}: a probe needs a program to run"));
        }
        Probe::Command(args) => args.as_slice(),
        Probe::Shell(line) => std::slice::from_ref(line),
        Probe::Http(HttpProbe { port: 0, .. }) | Probe::Tcp(0) => {
            return invalid(format!("{what}: port 0 does not exist"));
        }
        Probe::Http(HttpProbe { path, .. }) => {
            if !path.starts_with('/') || path.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return invalid(format!(
                    "{what}: `{}` is no path to ask for; it begins with `/` and has no spaces",
                    path.escape_debug().take(80).collect::<String>()
                ));
            }
            std::slice::from_ref(path)
        }
        Probe::Tcp(_) => &[],
    };
    if texts.iter().any(|text| text.contains('\0') || text.len() > TEXT_MAX) {
        return invalid(format!("{what}: a probe's texts hold no NUL and at most 64 KiB each"));
    }
    Ok(())
}

fn endpoint(spec: &EndpointSpec) -> Result<(), Refused> {
    let is_spread = |port: &PortSpec| port.mode == PortMode::Ingress;
    if spec.mode == EndpointMode::Dnsrr && spec.ports.iter().any(is_spread) {
        return invalid(
            "endpoint mode: a port published with mode ingress cannot be used with dnsrr; publish it with mode=host",
        );
    }
    if spec.mode == EndpointMode::Dnsrr && spec.client_affinity {
        return invalid(
            "client affinity: a dnsrr service has no virtual address, its clients pick a task themselves",
        );
    }
    let mut seen = BTreeSet::new();
    for port in &spec.ports {
        if port.target == 0 || port.published == Some(0) {
            return invalid("publish: port 0 does not exist");
        }
        if let Some(published) = port.published
            && !seen.insert((published, port.protocol))
        {
            return invalid(format!("publish: port {published} is given twice"));
        }
        if port.proxy_protocol && port.protocol != Protocol::Tcp {
            return invalid(format!("publish: port {}: the PROXY protocol is for TCP", port.target));
        }
        if port.mode == PortMode::Host && port.published.is_none() {
            return invalid(format!("publish: port {} in host mode needs a published port", port.target));
        }
    }
    allow(&spec.allow)
}

fn allow(entries: &[Allow]) -> Result<(), Refused> {
    if entries.len() > ALLOW_MAX {
        return invalid(format!("allow from: more than {ALLOW_MAX} entries are not possible"));
    }
    let mut seen = BTreeSet::new();
    for entry in entries {
        name("allowed service's", &entry.from)?;
        if entry.port.is_some_and(|(port, _)| port == 0) {
            return invalid("allow from: port 0 does not exist");
        }
        if !seen.insert(entry) {
            return invalid(format!("allow from: {entry} is given twice"));
        }
    }
    Ok(())
}

pub(super) fn is_path(path: &str) -> bool {
    let climbs = path.split('/').any(|part| part == "..");
    path.starts_with('/') && path.len() < 4096 && !path.contains('\0') && !climbs
}

/// One with placeholders is known in full only where its task runs.
fn is_hostname(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.contains("{{") || (1..=64).contains(&text.len()) && text.chars().all(plain)
}

/// A name or number that Linux has, real-time signals by number only.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.contains(&name) || text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number))
}

pub(super) fn invalid<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Invalid(why.into()))
}
