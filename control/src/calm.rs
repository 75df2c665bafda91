//! What a leader need not look at again.
//!
//! What is to be done about a service follows from the service, its tasks, the nodes they are on and the cluster's
//! settings. Where nothing was to be done, and none of these has changed since, nothing is to be done now; the state
//! shares what has not changed, so that is known without looking inside.

use crate::ids::{NodeId, ServiceId};
use crate::model::{Cluster, Mode, Node, Service};
use crate::state::State;
use crate::state::TaskMap;
use crate::time::Timestamp;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The services about which there was nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Calm {
    now: Timestamp,
    cluster: Option<Arc<Cluster>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    services: BTreeMap<ServiceId, Seen>,
}

/// A service and its tasks when nothing was to be done, and until when that holds if nobody touches them.
#[derive(Debug)]
struct Seen {
    service: Option<Arc<Service>>,
    tasks: TaskMap,
    wake_at: Option<Timestamp>,
}

impl Calm {
    /// Forgets what no longer holds at `now`, or may not: time has come, or a node or the settings have changed.
    pub(crate) fn disturb(&mut self, state: &State, now: Timestamp) {
        let same_cluster = same(self.cluster.as_ref(), state.cluster());
        if !same_cluster || now < self.now {
            self.services.clear();
        }
        for change in self.nodes.diff(state.node_map()) {
            let node = match change {
                DiffItem::Add(node, _) | DiffItem::Remove(node, _) => *node,
                DiffItem::Update { old: (node, before), new: (_, after) } => {
                    if Arc::ptr_eq(before, after) {
                        continue;
                    }
                    *node
                }
            };
            for task in state.tasks_on(node) {
                self.services.remove(&task.service);
            }
        }
        self.services.retain(|_, seen| seen.wake_at.is_none_or(|wake_at| wake_at > now));
        self.now = now;
        self.cluster = state.cluster().cloned();
        self.nodes = state.node_map().clone();
    }

    /// Whether there is nothing to do about a service, and until when at most.
    pub(crate) fn of(&self, state: &State, service: ServiceId) -> Option<Option<Timestamp>> {
        let seen = self.services.get(&service)?;
        let is_same = same(seen.service.as_ref(), state.service(service))
            && seen.tasks.ptr_eq(&state.task_map(service));
        is_same.then_some(seen.wake_at)
    }

    /// Notes that nothing was done about a service in a turn, if that is so.
    pub(crate) fn remember(
        &mut self,
        before: &State,
        after: &State,
        service: ServiceId,
        wake_at: Option<Timestamp>,
    ) {
        let tasks = after.task_map(service);
        let is_same =
            same(before.service(service), after.service(service)) && tasks.ptr_eq(&before.task_map(service));
        let service_now = after.service(service).cloned();
        if is_same && service_now.as_ref().is_none_or(|service| depends_on_its_own_nodes(service)) {
            self.services.insert(service, Seen { service: service_now, tasks, wake_at });
        } else {
            self.services.remove(&service);
        }
    }
}

/// Whether what a service needs follows from the nodes that its tasks are on, and not from all.
fn depends_on_its_own_nodes(service: &Service) -> bool {
    match service.spec.mode {
        Mode::Replicated { .. } | Mode::ReplicatedJob { .. } => true,
        Mode::Global | Mode::GlobalJob { .. } => false,
    }
}

fn same<T>(left: Option<&Arc<T>>, right: Option<&Arc<T>>) -> bool {
    match (left, right) {
        (None, None) => true,
        (Some(left), Some(right)) => Arc::ptr_eq(left, right),
        _ => false,
    }
}
