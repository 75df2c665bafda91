//! A node as the scheduler sees it: what is left of it, and who is there.

use crate::ids::{ServiceId, TaskId};
use crate::model::{Claims, Node, Observed, PortMode, Protocol, Resources, Service, Stock, Stocks, TaskSpec};
use crate::state::State;
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A node where a service's current spec failed this often …
const FAULTY_FAILURES: u32 = 5;
/// … in this time comes last for it.
const FAULTY_WINDOW: Duration = Duration::from_secs(300);

/// Ports that a task takes on its node.
pub(super) type HostPorts = Vec<(u16, Protocol)>;

/// The ports a task of this service takes on its node.
pub(super) fn host_ports(service: Option<&Service>) -> HostPorts {
    let ports = service.into_iter().flat_map(|service| &service.endpoint.ports);
    ports.filter(|port| port.mode == PortMode::Host).map(|port| (port.published, port.protocol)).collect()
}

/// A node, and what is left of it.
pub(super) struct Seat {
    pub(super) node: Arc<Node>,
    pub(super) free: Resources,
    /// What is reserved, which may be more than there is.
    used: Resources,
    pub(super) generic: Stocks,
    /// Tasks that stay here.
    pub(super) total: u32,
    pub(super) by_service: BTreeMap<ServiceId, u32>,
    pub(super) host_ports: BTreeSet<(u16, Protocol)>,
    failures: BTreeMap<(ServiceId, u64), u32>,
}

impl Seat {
    /// The node as it is, but `without` one of its tasks.
    pub(super) fn new(state: &State, node: &Arc<Node>, now: Timestamp, without: Option<TaskId>) -> Self {
        let mut this = Self {
            node: node.clone(),
            free: node.description.capacity,
            used: Resources::default(),
            generic: node.description.generic.clone(),
            total: 0,
            by_service: BTreeMap::new(),
            failures: BTreeMap::new(),
            host_ports: BTreeSet::new(),
        };
        if node.status.is_lost() {
            // Its tasks are replaced elsewhere, so they count nowhere.
            return this;
        }
        for task in state.tasks_on(node.id).filter(|task| Some(task.id) != without) {
            let failed = matches!(task.observed, Observed::Failed | Observed::Rejected);
            if task.is_live() {
                let ports = host_ports(state.service(task.service).map(AsRef::as_ref));
                this.occupy(&task.spec, &ports, &task.claims);
                if task.is_wanted() {
                    this.count(task.service);
                }
            } else if failed && now.since(task.status.at) < FAULTY_WINDOW {
                *this.failures.entry((task.service, task.spec_version)).or_default() += 1;
            }
        }
        this
    }

    /// Takes what the task holds until it has ended, also while it is being stopped.
    pub(super) fn occupy(&mut self, spec: &TaskSpec, ports: &HostPorts, claims: &Claims) {
        let reserved = spec.resources.reservations;
        self.used.nano_cpus = self.used.nano_cpus.saturating_add(reserved.nano_cpus);
        self.used.memory_bytes = self.used.memory_bytes.saturating_add(reserved.memory_bytes);
        self.reckon();
        for (kind, count) in &spec.resources.generic {
            match self.generic.get_mut(kind) {
                Some(Stock::Count(left)) => *left = left.saturating_sub(*count),
                Some(Stock::Named(names)) => {
                    let held = claims.get(kind);
                    names.retain(|name| held.is_none_or(|held| !held.contains(name)));
                }
                None => {}
            }
        }
        self.host_ports.extend(ports);
    }

    /// Gives back what the task held.
    pub(super) fn vacate(&mut self, spec: &TaskSpec, ports: &HostPorts, claims: &Claims) {
        let reserved = spec.resources.reservations;
        self.used.nano_cpus = self.used.nano_cpus.saturating_sub(reserved.nano_cpus);
        self.used.memory_bytes = self.used.memory_bytes.saturating_sub(reserved.memory_bytes);
        self.reckon();
        for (kind, count) in &spec.resources.generic {
            match (self.generic.get_mut(kind), self.node.description.generic.get(kind)) {
                (Some(Stock::Count(left)), Some(Stock::Count(all))) => {
                    *left = left.saturating_add(*count).min(*all);
                }
                (Some(Stock::Named(names)), Some(Stock::Named(all))) => {
                    let held = claims.get(kind).into_iter().flatten();
                    names.extend(held.filter(|name| all.contains(*name)).cloned());
                }
                _ => {}
            }
        }
        for port in ports {
            self.host_ports.remove(port);
        }
    }

    fn reckon(&mut self) {
        let capacity = self.node.description.capacity;
        self.free.nano_cpus = capacity.nano_cpus.saturating_sub(self.used.nano_cpus);
        self.free.memory_bytes = capacity.memory_bytes.saturating_sub(self.used.memory_bytes);
    }

    /// No longer counts a task that was counted.
    pub(super) fn discount(&mut self, service: ServiceId) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.by_service.get_mut(&service) {
            *count = count.saturating_sub(1);
        }
    }

    /// Counts the task where tasks are spread; one that is being stopped leaves its place to others.
    pub(super) fn count(&mut self, service: ServiceId) {
        self.total += 1;
        *self.by_service.entry(service).or_default() += 1;
    }

    /// Which of its named things a task would be given: the first that are free.
    pub(super) fn claims(&self, spec: &TaskSpec) -> Claims {
        let claim = |(kind, count): (&String, &u64)| match self.generic.get(kind) {
            Some(Stock::Named(names)) => {
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                Some((kind.clone(), names.iter().take(count).cloned().collect()))
            }
            Some(Stock::Count(_)) | None => None,
        };
        spec.resources.generic.iter().filter_map(claim).collect()
    }

    /// How many tasks of a service stay here.
    pub(super) fn of(&self, service: ServiceId) -> u32 {
        self.by_service.get(&service).copied().unwrap_or(0)
    }

    /// Whether a service's spec keeps failing here.
    pub(super) fn is_faulty(&self, service: ServiceId, spec_version: u64) -> bool {
        self.failures.get(&(service, spec_version)).is_some_and(|failures| *failures >= FAULTY_FAILURES)
    }

    /// How much of it is reserved once a task of this spec is here, in millionths: processors and memory, in sum.
    pub(super) fn fullness(&self, spec: &TaskSpec) -> u64 {
        let (capacity, wanted) = (self.node.description.capacity, spec.resources.reservations);
        let share = |capacity: u64, free: u64, wanted: u64| {
            let used = u128::from(capacity - free.min(capacity)) + u128::from(wanted);
            let share = (used * 1_000_000).checked_div(u128::from(capacity)).unwrap_or(0);
            u64::try_from(share.min(1_000_000)).unwrap_or(1_000_000)
        };
        share(capacity.nano_cpus, self.free.nano_cpus, wanted.nano_cpus)
            + share(capacity.memory_bytes, self.free.memory_bytes, wanted.memory_bytes)
    }
}
