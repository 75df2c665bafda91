//! Whom a change concerns: the nodes whose [assignment](crate::assignment) may differ from what it was, or what they
//! and the managers are to each other. With many nodes most changes concern few of them.

use crate::diff::sides;
use crate::ids::{NodeId, ServiceId};
use crate::model::{Health, Mode, Node, Observed, Role, Task};
use crate::state::{Owner, State};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nodes to look at again. There may be more of them than need be, never fewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// All there are.
    Everyone,
    /// Only these.
    These(BTreeSet<NodeId>),
}

impl Default for Touched {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Touched {
    /// Whether a node is among them.
    pub fn has(&self, node: NodeId) -> bool {
        match self {
            Self::Everyone => true,
            Self::These(nodes) => nodes.contains(&node),
        }
    }

    /// These and those.
    pub fn with(self, other: &Self) -> Self {
        match (self, other) {
            (Self::These(mut nodes), Self::These(others)) => {
                nodes.extend(others);
                Self::These(nodes)
            }
            _ => Self::Everyone,
        }
    }
}

/// Whom it concerns that `before` has become `after`. Takes time for what differs, not for what there is, if one
/// state was made from the other.
pub fn between(before: &State, after: &State) -> Touched {
    let mut nodes = BTreeSet::new();
    for change in before.node_map().diff(after.node_map()) {
        let (old, new) = sides(change);
        let sessions = |node: &Arc<Node>| (node.addr.clone(), node.role, node.raft, node.session);
        if old.map(sessions) == new.map(sessions) {
            continue;
        }
        // Every node knows where the managers are.
        if old.into_iter().chain(new).any(|node| node.role == Role::Manager) {
            return Touched::Everyone;
        }
        nodes.extend(old.or(new).map(|node| node.id));
    }
    for change in before.all_tasks().diff(after.all_tasks()) {
        let (old, new) = sides(change);
        let is_same = |(old, new): (&Arc<Task>, &Arc<Task>)| held(old) == held(new);
        if !old.zip(new).is_some_and(is_same) {
            nodes.extend(old.into_iter().chain(new).filter_map(|task| task.node));
        }
    }
    for change in before.network_map().diff(after.network_map()) {
        // One that is new or gone has no task whose addresses have not changed.
        if let (Some(old), Some(new)) = sides(change)
            && old != new
        {
            let tasks = after.owners_in(new.id).filter_map(|(_, owner)| match owner {
                Owner::Task(task) => after.task(task),
                Owner::Service(_) => None,
            });
            nodes.extend(tasks.filter_map(|task| task.node));
        }
    }
    Touched::These(nodes)
}

/// New tasks of one service, at the most, for which their nodes are told at once.
const FEW: usize = 20;

/// The nodes that were given tasks of services that have all of theirs now: nothing else is waited for but that the
/// nodes are told. What is created in bulk can wait, and so can more than a few tasks of a service at once.
pub fn completed(before: &State, after: &State) -> BTreeSet<NodeId> {
    let mut given: BTreeMap<ServiceId, Vec<NodeId>> = BTreeMap::new();
    for change in before.all_tasks().diff(after.all_tasks()) {
        let (old, new) = sides(change);
        let Some(new) = new.filter(|task| task.is_live() && task.is_wanted()) else { continue };
        let place = |task: &Arc<Task>| (task.node, task.desired);
        if let Some(node) = new.node.filter(|_| old.map(place) != Some(place(new))) {
            given.entry(new.service).or_default().push(node);
        }
    }
    given.retain(|service, nodes| nodes.len() <= FEW && is_complete(after, *service));
    given.into_values().flatten().collect()
}

/// Whether every task of a service that there shall be has a node.
fn is_complete(state: &State, service: ServiceId) -> bool {
    let Some(known) = state.service(service) else { return false };
    let mut slots = BTreeSet::new();
    for task in state.tasks_of(service).filter(|task| task.is_live() && task.is_wanted()) {
        if task.node.is_none() {
            return false;
        }
        slots.insert(task.slot);
    }
    match known.spec.mode {
        Mode::Replicated { replicas } => slots.len() >= replicas as usize,
        Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob { .. } => true,
    }
}

/// What its node is told of a task, as far as it can change.
fn held(task: &Task) -> impl PartialEq {
    let started = task.observed >= Observed::Starting;
    let unhealthy = task.status.health == Health::Unhealthy;
    let life = (task.desired, task.is_live(), started, unhealthy);
    (task.node, life, Arc::as_ptr(&task.spec), task.addresses.clone(), task.claims.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, spec};

    fn places(state: &State, service: ServiceId) -> BTreeSet<NodeId> {
        state.tasks_of(service).filter_map(|task| task.node).collect()
    }

    #[test]
    fn a_small_service_has_its_places_while_a_large_one_is_being_created_and_its_nodes_are_told_first() {
        let mut bed = Bed::new();
        for number in 0..40 {
            bed.node(&format!("n{number}"), 64_000);
        }
        let large = bed.service(spec("large", 2_000));
        bed.tick();
        let small = bed.service(spec("small", 10));
        let before = bed.state.clone();
        bed.tick();
        assert_eq!(places(&bed.state, small).len(), 10);
        assert!(bed.state.tasks_of(large).count() < 2_000, "there is more to come");
        assert_eq!(completed(&before, &bed.state), places(&bed.state, small));
    }

    #[test]
    fn one_new_task_of_a_large_service_is_told_at_once_and_many_are_not() {
        let mut bed = Bed::new();
        for number in 0..40 {
            bed.node(&format!("n{number}"), 64_000);
        }
        let large = bed.service(spec("large", 100));
        let before = bed.state.clone();
        bed.tick();
        assert_eq!(bed.tasks(large).iter().filter(|task| task.node.is_some()).count(), 100);
        assert_eq!(completed(&before, &bed.state), BTreeSet::new());
        bed.all_run();
        let ended = bed.tasks(large)[0].id;
        bed.report(ended, Observed::Failed);
        bed.tick();
        bed.pass(std::time::Duration::from_secs(60));
        let before = bed.state.clone();
        bed.tick();
        let successor = bed.tasks(large).into_iter().last().expect("tasks");
        assert_eq!(completed(&before, &bed.state), successor.node.into_iter().collect());
        assert_eq!(completed(&bed.state, &bed.state), BTreeSet::new());
    }

    #[test]
    fn a_service_that_waits_for_room_is_told_with_the_others() {
        let mut bed = Bed::new();
        bed.node("n1", 64_000);
        let mut wide = spec("wide", 2);
        std::sync::Arc::make_mut(&mut wide.task).placement.max_per_node = 1;
        bed.service(wide);
        let before = bed.state.clone();
        bed.tick();
        assert_eq!(completed(&before, &bed.state), BTreeSet::new());
    }
}
