//! What a node should hold: its tasks, and the networks they join. Sent in full when a session opens and
//! as differences after that; equal assignments need not be sent at all.

use crate::ids::{NetworkId, NodeId, ServiceId, TaskId};
use crate::model::{Claims, Desired, Health, Network, Observed, Slot, Task, TaskSpec};
use crate::state::State;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Everything a node should hold. What it holds beyond that is to be removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment {
    /// By id. Ended tasks are listed as long as they are remembered, so that the node keeps their logs.
    pub tasks: BTreeMap<TaskId, AssignedTask>,
    /// Those that live tasks of this node join.
    pub networks: BTreeMap<NetworkId, Arc<Network>>,
}

/// A task as its node needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct AssignedTask {
    /// Which.
    pub id: TaskId,
    /// Whose it is.
    pub service: ServiceId,
    /// The service's name.
    pub service_name: String,
    /// Which of the service's places it fills.
    pub slot: Slot,
    /// What it runs.
    pub spec: Arc<TaskSpec>,
    /// What is wanted of it.
    pub desired: Desired,
    /// Whether the managers know it to have ended, by whatever way: it must not run.
    pub ended: bool,
    /// Whether the managers know it to have been started: a node that has no trace of it must not start
    /// it again.
    pub started: bool,
    /// Whether the managers know that it is unhealthy: nobody is sent to it any more, and it may be stopped.
    pub unhealthy: bool,
    /// Its address on each of its networks.
    pub addresses: Vec<(NetworkId, Ipv4Addr)>,
    /// The named things of its node that it was given.
    pub claims: Claims,
}

impl AssignedTask {
    fn of(task: &Task) -> Self {
        Self {
            id: task.id,
            service: task.service,
            service_name: task.service_name.clone(),
            slot: task.slot,
            spec: task.spec.clone(),
            desired: task.desired,
            ended: !task.is_live(),
            started: task.observed >= Observed::Starting,
            unhealthy: task.is_live() && task.status.health == Health::Unhealthy,
            addresses: task.addresses.clone(),
            claims: task.claims.clone(),
        }
    }

    /// What tells its containers which generic resources they have: the kind in capitals, and how many or, where
    /// they have names, which. The names of the variables are Docker's.
    pub fn generic_env(&self) -> Vec<(String, String)> {
        let entry = |(kind, count): (&String, &u64)| {
            let value = match self.claims.get(kind) {
                Some(names) => names.iter().cloned().collect::<Vec<_>>().join(","),
                None => count.to_string(),
            };
            (format!("DOCKER_RESOURCE_{}", kind.to_uppercase()), value)
        };
        self.spec.resources.generic.iter().map(entry).collect()
    }

    /// Whether it is to end, once nobody is sent to it any more.
    pub fn is_to_end(&self) -> bool {
        !self.ended && (self.unhealthy || !self.is_wanted())
    }

    /// Whether it may run, now or after its restart delay.
    pub fn is_wanted(&self) -> bool {
        !self.ended && self.desired <= Desired::Running
    }
}

/// What turns one assignment into another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// New or different tasks.
    pub tasks: Vec<AssignedTask>,
    /// Tasks no longer listed.
    pub removed_tasks: Vec<TaskId>,
    /// New networks.
    pub networks: Vec<Arc<Network>>,
    /// Networks no longer listed.
    pub removed_networks: Vec<NetworkId>,
}

/// What `node` should hold.
pub fn of(state: &State, node: NodeId) -> Assignment {
    let tasks: BTreeMap<_, _> = state.tasks_on(node).map(|task| (task.id, AssignedTask::of(task))).collect();
    let networks = tasks
        .values()
        .filter(|task| !task.ended)
        .flat_map(|task| &task.addresses)
        .filter_map(|(id, _)| state.network(*id).map(|network| (*id, network.clone())))
        .collect();
    Assignment { tasks, networks }
}

impl Assignment {
    /// What turns `earlier` into this.
    pub fn since(&self, earlier: &Self) -> Difference {
        Difference {
            tasks: changed(&earlier.tasks, &self.tasks),
            removed_tasks: gone(&earlier.tasks, &self.tasks),
            networks: changed(&earlier.networks, &self.networks),
            removed_networks: gone(&earlier.networks, &self.networks),
        }
    }

    /// Follows a difference that was made from this.
    pub fn follow(&mut self, difference: Difference) {
        for id in difference.removed_tasks {
            self.tasks.remove(&id);
        }
        for id in difference.removed_networks {
            self.networks.remove(&id);
        }
        self.tasks.extend(difference.tasks.into_iter().map(|task| (task.id, task)));
        self.networks.extend(difference.networks.into_iter().map(|network| (network.id, network)));
    }
}

impl Difference {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn changed<K: Ord, V: Clone + PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<V> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(_, value)| value.clone()).collect()
}

fn gone<K: Ord + Copy, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    old.keys().filter(|key| !new.contains_key(key)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, spec};

    #[test]
    fn following_the_differences_leads_to_the_whole() {
        let mut bed = Bed::new();
        let node = bed.node("n1", 64);
        let mut followed = Assignment::default();
        let mut sent = 0;
        for replicas in [3, 5, 0, 1] {
            match bed.state.service_named("web") {
                None => drop(bed.service(spec("web", replicas))),
                Some(_) => {
                    let service = "web".into();
                    bed.ask(&crate::admission::Request::ScaleService { service, replicas })
                        .expect("a number");
                }
            }
            bed.tick();
            bed.all_run();
            let now = of(&bed.state, node);
            let difference = now.since(&followed);
            sent += usize::from(!difference.is_empty());
            followed.follow(difference);
            assert_eq!(followed, now);
        }
        assert_eq!(sent, 4);
        assert!(followed.since(&followed).is_empty());
    }

    #[test]
    fn a_node_sees_only_its_own_tasks_and_their_networks() {
        let mut bed = Bed::new();
        let (one, other) = (bed.node("n1", 64), bed.node("n2", 64));
        let service = bed.service(spec("web", 2));
        bed.tick();
        for node in [one, other] {
            let assignment = of(&bed.state, node);
            assert!(
                bed.tasks(service)
                    .iter()
                    .all(|task| { assignment.tasks.contains_key(&task.id) == (task.node == Some(node)) })
            );
            assert_eq!(assignment.networks.len(), 1);
        }
    }
}
