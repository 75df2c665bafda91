//! Whom a change concerns: the nodes whose [assignment](crate::assignment) or [table](crate::endpoints) may differ
//! from what it was. With many nodes most changes concern few of them.

use crate::ids::{NetworkId, NodeId};
use crate::model::{Node, Service, Task};
use crate::state::{Owner, State};
use imbl::ordmap::DiffItem;
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
}

/// Whom it concerns that `before` has become `after`. Takes time for what differs, not for what there is, if one
/// state was made from the other.
pub fn between(before: &State, after: &State) -> Touched {
    let networks = before.networks().map(|network| network.id).ne(after.networks().map(|network| network.id));
    if networks || services_moved(before, after) {
        return Touched::Everyone;
    }
    let Some(mut nodes) = nodes_between(before, after) else { return Touched::Everyone };
    let mut networks = BTreeSet::new();
    for change in before.all_tasks().diff(after.all_tasks()) {
        let (old, new) = match change {
            DiffItem::Add(_, new) => (None, Some(new)),
            DiffItem::Remove(_, old) => (Some(old), None),
            DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
        };
        let both = || old.into_iter().chain(new);
        nodes.extend(both().filter_map(|task| task.node));
        if old.map(|task| role(task)) == new.map(|task| role(task)) {
            continue;
        }
        if both().any(|task| is_published(before, task) || is_published(after, task)) {
            return Touched::Everyone;
        }
        networks.extend(both().flat_map(|task| task.addresses.iter().map(|(network, _)| *network)));
    }
    for network in networks {
        nodes.extend(members(before, network));
        nodes.extend(members(after, network));
    }
    Touched::These(nodes)
}

/// The nodes that concern only themselves, if none concerns others.
fn nodes_between(before: &State, after: &State) -> Option<BTreeSet<NodeId>> {
    let mut nodes = BTreeSet::new();
    for change in before.node_map().diff(after.node_map()) {
        let DiffItem::Update { old: (id, old), new: (_, new) } = change else { return None };
        let seen = |node: &Arc<Node>| (node.addr.clone(), node.role, node.raft, node.status);
        if seen(old) != seen(new) {
            return None;
        }
        nodes.insert(*id);
    }
    Some(nodes)
}

/// Whether any service is reached in another way than before.
fn services_moved(before: &State, after: &State) -> bool {
    let is_reached =
        |service: &Arc<Service>| !service.endpoint.vips.is_empty() || !service.endpoint.ports.is_empty();
    before.service_map().diff(after.service_map()).any(|change| match change {
        DiffItem::Add(_, service) | DiffItem::Remove(_, service) => is_reached(service),
        DiffItem::Update { old: (_, old), new: (_, new) } => {
            old.endpoint != new.endpoint || old.spec.name != new.spec.name && is_reached(new)
        }
    })
}

/// What others see of a task.
fn role(task: &Task) -> impl PartialEq {
    (task.node, task.desired, task.observed, task.serves(), task.addresses.clone())
}

fn is_published(state: &State, task: &Task) -> bool {
    state.service(task.service).is_some_and(|service| !service.endpoint.ports.is_empty())
}

/// Where the live tasks of a network are.
fn members(state: &State, network: NetworkId) -> impl Iterator<Item = NodeId> {
    let task = |owner| match owner {
        Owner::Task(task) => state.task(task).and_then(|task| task.node),
        Owner::Service(_) => None,
    };
    state.owners_in(network).filter_map(move |(_, owner)| task(owner))
}
