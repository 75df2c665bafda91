//! Why a node cannot run a task. Every refusal is counted and quoted to the user.

use super::{Candidate, constraint};
use crate::model::{Availability, NodeStatus, Protocol, Task};
use std::collections::BTreeMap;
use std::fmt;

/// The first reason for which a node is passed over, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    Unseen,
    Paused,
    Drained,
    Constraint(String),
    Cpus,
    Memory,
    HostPort(u16),
}

pub(super) fn refusal(candidate: &Candidate, task: &Task, ports: &[(u16, Protocol)]) -> Option<Refusal> {
    let node = &candidate.node;
    if node.status != NodeStatus::Ready {
        return Some(Refusal::Unseen);
    }
    match node.availability {
        Availability::Active => {}
        Availability::Pause => return Some(Refusal::Paused),
        Availability::Drain => return Some(Refusal::Drained),
    }
    if let Some(unmet) = task.spec.placement.constraints.iter().find(|c| !constraint::holds(c, node)) {
        return Some(Refusal::Constraint(unmet.to_string()));
    }
    let wanted = task.spec.resources.reservations;
    if wanted.nano_cpus > candidate.free.nano_cpus {
        return Some(Refusal::Cpus);
    }
    if wanted.memory_bytes > candidate.free.memory_bytes {
        return Some(Refusal::Memory);
    }
    let taken = ports.iter().find(|port| candidate.host_ports.contains(port));
    taken.map(|(port, _)| Refusal::HostPort(*port))
}

/// How many nodes were passed over, and why.
#[derive(Default)]
pub(super) struct Refusals(BTreeMap<Refusal, u32>);

impl Refusals {
    pub(super) fn add(&mut self, refusal: Refusal) {
        *self.0.entry(refusal).or_default() += 1;
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no suitable node (")?;
        if self.0.is_empty() {
            f.write_str("the cluster has no nodes")?;
        }
        for (position, (refusal, count)) in self.0.iter().enumerate() {
            let separator = if position > 0 { "; " } else { "" };
            let nodes = if *count == 1 { "node" } else { "nodes" };
            let are = if *count == 1 { "is" } else { "are" };
            f.write_str(separator)?;
            match refusal {
                Refusal::Unseen => write!(f, "{count} {nodes} not ready"),
                Refusal::Paused => write!(f, "{count} {nodes} {are} paused"),
                Refusal::Drained => write!(f, "{count} {nodes} {are} drained"),
                Refusal::Constraint(text) => write!(f, "{text} does not hold on {count} {nodes}"),
                Refusal::Cpus => write!(f, "insufficient CPUs on {count} {nodes}"),
                Refusal::Memory => write!(f, "insufficient memory on {count} {nodes}"),
                Refusal::HostPort(port) => write!(f, "host port {port} already in use on {count} {nodes}"),
            }?;
        }
        f.write_str(")")
    }
}
