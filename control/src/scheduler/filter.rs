//! Why a node cannot run a task. Every refusal is counted and quoted to the user, with the nearest miss.

use super::constraint;
use super::seat::{HostPorts, Seat};
use crate::level;
use crate::model::{Availability, Effect, NodeStatus, TaskSpec, cdi_name};
use std::collections::BTreeMap;
use std::fmt;

/// The first reason for which a node is passed over, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    Unseen,
    Paused,
    Drained,
    Outdated(u32),
    Constraint(String),
    Platform,
    Taint(String),
    Device(String),
    /// A rule about another service, in words that fit before "on 3 nodes".
    Affinity(String),
    MaxPerNode(u32),
    Cpus,
    Memory,
    Generic(String),
    HostPort(u16),
}

/// Devices that are named when another is missing.
const DEVICES_TOLD: usize = 8;

/// What nothing that happens in a turn can change: the node itself.
pub(super) fn closed(seat: &Seat, spec: &TaskSpec) -> Option<Refusal> {
    let node = &seat.node;
    if node.status != NodeStatus::Ready {
        return Some(Refusal::Unseen);
    }
    match node.availability {
        Availability::Active => {}
        Availability::Pause => return Some(Refusal::Paused),
        Availability::Drain => return Some(Refusal::Drained),
    }
    if !level::knows(node, spec) {
        return Some(Refusal::Outdated(level::of_task(spec)));
    }
    let placement = &spec.placement;
    if let Some(unmet) = placement.constraints.iter().find(|c| !constraint::holds(c, node)) {
        return Some(Refusal::Constraint(unmet.to_string()));
    }
    if !constraint::is_built_for(placement, node) {
        return Some(Refusal::Platform);
    }
    let mut taints = constraint::untolerated(placement, node);
    if let Some(taint) = taints.find(|taint| taint.effect != Effect::PreferNoSchedule) {
        return Some(Refusal::Taint(taint.to_string()));
    }
    let devices = spec.containers.iter().flat_map(|container| &container.profile.devices);
    let mut named = devices.filter(|device| device.is_cdi());
    let missing = named.find(|device| !node.description.devices.contains(&device.source));
    missing.map(|device| Refusal::Device(device.source.clone()))
}

/// What is left of the node for a task of `same` others of its service there.
pub(super) fn full(seat: &Seat, spec: &TaskSpec, same: u32, ports: &HostPorts) -> Option<Refusal> {
    let max = spec.placement.max_per_node;
    if max != 0 && same >= max {
        return Some(Refusal::MaxPerNode(max));
    }
    let wanted = spec.resources.reservations;
    if wanted.nano_cpus > seat.free.nano_cpus {
        return Some(Refusal::Cpus);
    }
    if wanted.memory_bytes > seat.free.memory_bytes {
        return Some(Refusal::Memory);
    }
    let left = |kind| seat.generic.get(kind).map_or(0, crate::model::Stock::len);
    if let Some((kind, _)) = spec.resources.generic.iter().find(|(kind, count)| **count > left(*kind)) {
        return Some(Refusal::Generic(kind.clone()));
    }
    let taken = ports.iter().find(|port| seat.host_ports.contains(port));
    taken.map(|(port, _)| Refusal::HostPort(*port))
}

/// How near a refusal was: the later its question the nearer, then the smaller the share of what lacks.
type Distance = (std::cmp::Reverse<u8>, u64);

/// What lacks, in words, and how near it was; nothing for a node that is not there to be used.
fn miss(refusal: &Refusal, seat: &Seat, spec: &TaskSpec) -> Option<(Distance, String)> {
    let (host, description) = (&seat.node.hostname, &seat.node.description);
    let wanted = spec.resources.reservations;
    let share = |lacks: u64, asked: u64| lacks.saturating_mul(1_000_000) / asked.max(1);
    let (stage, share, words) = match refusal {
        Refusal::Unseen | Refusal::Paused | Refusal::Drained => return None,
        Refusal::Outdated(level) => {
            let words = format!(
                "{host} runs rswarm {} of level {}, and this needs {level}",
                description.engine_version,
                level::of(description)
            );
            (0, 0, words)
        }
        Refusal::Constraint(_) => {
            let constraints = &spec.placement.constraints;
            let unmet = constraints.iter().find(|c| !constraint::holds(c, &seat.node))?;
            let value = constraint::value(&unmet.key, &seat.node);
            let words = match value.as_ref() {
                "" => format!("{host} has no {}", unmet.key),
                value => format!("{host} has {}={value}", unmet.key),
            };
            (1, 0, words)
        }
        Refusal::Platform => (2, 0, format!("{host} is {}/{}", description.os, description.arch)),
        Refusal::Taint(taint) => (3, 0, format!("{host} is tainted {taint}")),
        Refusal::Device(name) => {
            let kind = cdi_name(name).map_or("", |(kind, _)| kind);
            let same = |other: &&String| cdi_name(other).is_some_and(|(its, _)| its == kind);
            let others: Vec<&str> =
                description.devices.iter().filter(same).take(DEVICES_TOLD).map(String::as_str).collect();
            let words = match others.is_empty() {
                true => format!("{host} has no {kind}"),
                false => format!("{host} has {}", others.join(", ")),
            };
            (4, 0, words)
        }
        Refusal::Affinity(_) => (4, 0, String::new()),
        Refusal::MaxPerNode(_) => (5, 0, String::new()),
        Refusal::Cpus => {
            let lacks = wanted.nano_cpus - seat.free.nano_cpus;
            (6, share(lacks, wanted.nano_cpus), format!("{host} lacks {} CPUs", Cpus(lacks)))
        }
        Refusal::Memory => {
            let lacks = wanted.memory_bytes - seat.free.memory_bytes;
            (7, share(lacks, wanted.memory_bytes), format!("{host} lacks {}", Bytes(lacks)))
        }
        Refusal::Generic(kind) => {
            let asked = spec.resources.generic.get(kind).copied().unwrap_or(0);
            let lacks = asked - seat.generic.get(kind).map_or(0, crate::model::Stock::len).min(asked);
            (8, share(lacks, asked), format!("{host} lacks {lacks} {kind}"))
        }
        Refusal::HostPort(port) => (9, 0, format!("{host} has port {port} in use")),
    };
    Some(((std::cmp::Reverse(stage), share), words))
}

/// Billionths of a processor, in processors.
pub(crate) struct Cpus(pub(crate) u64);

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up: what is shown must be enough.
        let thousandths = self.0.div_ceil(1_000_000);
        let (whole, rest) = (thousandths / 1000, thousandths % 1000);
        let digits = format!("{rest:03}");
        match digits.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            digits => write!(f, "{whole}.{digits}"),
        }
    }
}

/// Bytes, rounded up to the unit shown.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
        // The largest unit of which there are ten, so that two digits at least are true.
        let (unit, bits) =
            units.into_iter().rev().find(|(_, bits)| self.0 >= 10 << bits).unwrap_or(("KiB", 10));
        write!(f, "{} {unit}", self.0.div_ceil(1 << bits))
    }
}

/// How many nodes were passed over, and why.
#[derive(Default)]
pub(crate) struct Refusals {
    counts: BTreeMap<Refusal, u32>,
    nearest: Option<(Distance, String)>,
}

impl Refusals {
    pub(super) fn add(&mut self, refusal: Refusal, seat: &Seat, spec: &TaskSpec) {
        if let Some((distance, words)) = miss(&refusal, seat, spec)
            && self.nearest.as_ref().is_none_or(|(nearest, _)| distance < *nearest)
        {
            self.nearest = Some((distance, words));
        }
        *self.counts.entry(refusal).or_default() += 1;
    }

    /// Each reason in words, and how many nodes it is of, as the filters come.
    pub(crate) fn reasons(&self) -> Vec<(String, u32)> {
        self.counts.iter().map(|(refusal, count)| (refused(refusal, *count), *count)).collect()
    }

    /// The nearest miss, in words; empty if there is none worth telling.
    pub(crate) fn nearest(&self) -> &str {
        self.nearest.as_ref().map_or("", |(_, words)| words)
    }

    /// Each reason in words, the most frequent kind as the filters come; then the nearest miss.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.reasons().into_iter().map(|(words, _)| words).collect();
        words.extend(Some(self.nearest().to_owned()).filter(|words| !words.is_empty()));
        words
    }
}

pub(super) fn refused(refusal: &Refusal, count: u32) -> String {
    let (nodes, are) = if count == 1 { ("node", "is") } else { ("nodes", "are") };
    match refusal {
        Refusal::Unseen => format!("{count} {nodes} not ready"),
        Refusal::Paused => format!("{count} {nodes} {are} paused"),
        Refusal::Drained => format!("{count} {nodes} {are} drained"),
        Refusal::Outdated(_) => format!("rswarm is too old for the options asked for on {count} {nodes}"),
        Refusal::Constraint(text) => format!("{text} does not hold on {count} {nodes}"),
        Refusal::Platform => format!("unsupported platform on {count} {nodes}"),
        Refusal::Taint(taint) => format!("taint {taint} is not tolerated on {count} {nodes}"),
        Refusal::Device(name) => format!("there is no device {name} on {count} {nodes}"),
        Refusal::Affinity(words) => format!("{words} on {count} {nodes}"),
        Refusal::MaxPerNode(max) => format!("max replicas per node ({max}) reached on {count} {nodes}"),
        Refusal::Cpus => format!("insufficient CPUs on {count} {nodes}"),
        Refusal::Memory => format!("insufficient memory on {count} {nodes}"),
        Refusal::Generic(kind) => format!("insufficient {kind} on {count} {nodes}"),
        Refusal::HostPort(port) => format!("host port {port} already in use on {count} {nodes}"),
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words().as_slice() {
            [] => f.write_str("no suitable node (the cluster has no nodes)"),
            words => write!(f, "no suitable node ({})", words.join("; ")),
        }
    }
}
