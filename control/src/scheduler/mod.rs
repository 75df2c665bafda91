//! Which node runs a waiting task.

pub mod constraint;
mod filter;

use crate::ids::{NodeId, ServiceId};
use crate::model::{Node, Observed, PortMode, Protocol, Resources, Service, Task};
use crate::plan::Draft;
use crate::state::{Change, State};
use crate::time::Timestamp;
use filter::Refusals;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A node where a service's current spec failed this often …
const FAULTY_FAILURES: u32 = 5;
/// … in this time comes last for it.
const FAULTY_WINDOW: Duration = Duration::from_secs(300);

/// Lower is better. The order of the fields is the placement policy: avoid nodes where the service keeps
/// failing, spread it, then fill evenly, then be deterministic.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    faulty: bool,
    same_service: u32,
    total: u32,
    node: NodeId,
}

/// A node, and what is left of it.
struct Candidate {
    node: Arc<Node>,
    free: Resources,
    total: u32,
    by_service: BTreeMap<ServiceId, u32>,
    failures: BTreeMap<(ServiceId, u64), u32>,
    host_ports: BTreeSet<(u16, Protocol)>,
}

pub(crate) fn schedule(draft: &mut Draft) {
    let mut pending: Vec<Arc<Task>> = draft
        .state()
        .tasks()
        .filter(|task| task.observed == Observed::Pending && task.node.is_none() && task.is_wanted())
        .cloned()
        .collect();
    if pending.is_empty() {
        return;
    }
    pending.sort_by_key(|task| task.meta.number);
    let mut candidates: Vec<Candidate> =
        draft.state().nodes().map(|node| Candidate::new(draft.state(), node, draft.now)).collect();
    let mut waiting = Vec::new();
    for task in pending {
        let service = draft.state().service(task.service).cloned();
        match choose(&mut candidates, &task, service.as_deref()) {
            Ok(node) => draft.propose(Change::Assign { task: task.id, node }),
            Err(_) => waiting.push((task, service)),
        }
    }
    // Why they wait is said last: what was placed after them is part of it.
    for (task, service) in waiting {
        let Err(refusals) = choose(&mut candidates, &task, service.as_deref()) else { continue };
        let note = refusals.to_string();
        if note != task.note {
            draft.propose(Change::Note { task: task.id, note });
        }
    }
}

fn choose(candidates: &mut [Candidate], task: &Task, service: Option<&Service>) -> Result<NodeId, Refusals> {
    let ports = host_ports(service);
    let mut refusals = Refusals::default();
    let mut best: Option<(Score, usize)> = None;
    for (position, candidate) in candidates.iter().enumerate() {
        match filter::refusal(candidate, task, &ports) {
            Some(refusal) => refusals.add(refusal),
            None => {
                let score = candidate.score(task);
                if best.as_ref().is_none_or(|(lowest, _)| score < *lowest) {
                    best = Some((score, position));
                }
            }
        }
    }
    let (_, position) = best.ok_or(refusals)?;
    let chosen = &mut candidates[position];
    chosen.occupy(task, &ports);
    chosen.count(task);
    Ok(chosen.node.id)
}

/// The ports a task of this service takes on its node.
fn host_ports(service: Option<&Service>) -> Vec<(u16, Protocol)> {
    let ports = service.into_iter().flat_map(|service| &service.endpoint.ports);
    ports.filter(|port| port.mode == PortMode::Host).map(|port| (port.published, port.protocol)).collect()
}

impl Candidate {
    fn new(state: &State, node: &Arc<Node>, now: Timestamp) -> Self {
        let mut this = Self {
            node: node.clone(),
            free: node.description.capacity,
            total: 0,
            by_service: BTreeMap::new(),
            failures: BTreeMap::new(),
            host_ports: BTreeSet::new(),
        };
        for task in state.tasks_on(node.id) {
            let failed = matches!(task.observed, Observed::Failed | Observed::Rejected);
            if task.is_live() {
                let service = state.service(task.service);
                this.occupy(task, &host_ports(service.map(AsRef::as_ref)));
                if task.is_wanted() {
                    this.count(task);
                }
            } else if failed && now.since(task.status.at) < FAULTY_WINDOW {
                *this.failures.entry((task.service, task.spec_version)).or_default() += 1;
            }
        }
        this
    }

    /// Takes what the task holds until it has ended, also while it is being stopped.
    fn occupy(&mut self, task: &Task, ports: &[(u16, Protocol)]) {
        let reserved = task.spec.resources.reservations;
        self.free.nano_cpus = self.free.nano_cpus.saturating_sub(reserved.nano_cpus);
        self.free.memory_bytes = self.free.memory_bytes.saturating_sub(reserved.memory_bytes);
        self.host_ports.extend(ports);
    }

    /// Counts the task where tasks are spread; one that is being stopped leaves its place to others.
    fn count(&mut self, task: &Task) {
        self.total += 1;
        *self.by_service.entry(task.service).or_default() += 1;
    }

    fn score(&self, task: &Task) -> Score {
        let failures = self.failures.get(&(task.service, task.spec_version)).copied().unwrap_or(0);
        Score {
            faulty: failures >= FAULTY_FAILURES,
            same_service: self.by_service.get(&task.service).copied().unwrap_or(0),
            total: self.total,
            node: self.node.id,
        }
    }
}

#[cfg(test)]
mod tests;
