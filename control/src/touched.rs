//! Whom a change concerns: the nodes whose [assignment](crate::assignment) may differ from what it was, or what they
//! and the managers are to each other. With many nodes most changes concern few of them.

use crate::diff::sides;
use crate::ids::NodeId;
use crate::model::{Health, Node, Role, Task};
use crate::state::{Owner, State};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Nodes to look at again. There may be more of them than need be, never fewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// All there are.
    Everyone,
    /// Only these.
    These(BTreeSet<NodeId>),
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

/// What its node is told of a task, as far as it can change. That the managers know it to be started is told with the
/// whole alone.
fn held(task: &Task) -> impl PartialEq {
    let unhealthy = task.status.health == Health::Unhealthy;
    let life = (task.desired, task.is_live(), unhealthy);
    (task.node, life, Arc::as_ptr(&task.spec), task.addresses.clone(), task.claims.clone())
}
