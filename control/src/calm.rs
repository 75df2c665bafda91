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
        if is_same && service_now.as_ref().is_none_or(|service| depends_on_its_own(service)) {
            self.services.insert(service, Seen { service: service_now, tasks, wake_at });
        } else {
            self.services.remove(&service);
        }
    }
}

/// Whether what a service needs follows from its own tasks and the nodes they are on. While it is updated it may wait for
/// what the tasks of others give up.
fn depends_on_its_own(service: &Service) -> bool {
    let is_updated = service.update_status.as_ref().is_some_and(|status| status.state.is_moving());
    match service.spec.mode {
        Mode::Replicated { .. } | Mode::ReplicatedJob { .. } => !is_updated,
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

#[cfg(test)]
mod tests {
    use crate::admission::Request;
    use crate::model::{Observed, UpdateOrder};
    use crate::testing::{Bed, MIB, spec, with_task};

    #[test]
    fn a_task_is_given_more_when_another_service_has_made_room_on_its_node() {
        let mut bed = Bed::new();
        bed.node("n1", 1_000);
        bed.upgrade();
        let reserving = |name: &str, mib: u64| {
            let reserve = |task: &mut crate::model::TaskSpec| {
                task.resources.reservations.memory_bytes = mib * MIB;
            };
            let mut spec = with_task(spec(name, 1), reserve);
            spec.update.order = UpdateOrder::StartFirst;
            spec
        };
        let (grows, leaves) = (bed.service(reserving("grows", 400)), bed.service(reserving("leaves", 500)));
        bed.tick();
        bed.all_run();
        let (service, spec) = ("grows".into(), reserving("grows", 600));
        bed.ask(&Request::UpdateService { service, version: None, spec, networks: vec![] })
            .expect("it is there");
        while !bed.tick().changes.is_empty() {}
        let reserved = |bed: &Bed| bed.tasks(grows)[0].spec.resources.reservations.memory_bytes / MIB;
        assert_eq!(reserved(&bed), 400, "there is no room");

        let task = bed.tasks(leaves)[0].id;
        bed.ask(&Request::RemoveService { service: "leaves".into() }).expect("it is there");
        while !bed.tick().changes.is_empty() {}
        bed.report(task, Observed::Shutdown);
        bed.tick();
        assert_eq!(reserved(&bed), 600);
    }
}
