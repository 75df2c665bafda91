//! The state as plain lists, for whoever writes it to disk and reads it back.

use super::{Owner, RequestId, State};
use crate::admission::Answer;
use crate::events::Event;
use crate::ids::NodeId;
use crate::model::{Cluster, Network, Node, Service, Task};
use crate::time::Timestamp;
use std::sync::Arc;

/// Everything from which a [`State`] can be rebuilt. Tasks of equal service and `spec_version` share
/// one spec, which may be written once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Index of the last applied log entry.
    pub index: u64,
    /// The latest time that any applied proposal carried.
    pub clock: Timestamp,
    /// The number of the next object.
    pub next_number: u64,
    /// The last seat that was given to a manager.
    pub next_raft: u64,
    /// The cluster, if it is initialised.
    pub cluster: Option<Arc<Cluster>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// Nodes that were removed, and when.
    pub removed_nodes: Vec<(NodeId, Timestamp)>,
    /// All services.
    pub services: Vec<Arc<Service>>,
    /// All networks.
    pub networks: Vec<Arc<Network>>,
    /// All tasks.
    pub tasks: Vec<Arc<Task>>,
    /// The last requests that were carried out, oldest first.
    pub requests: Vec<(RequestId, Timestamp, Answer)>,
    /// The last events, oldest first.
    pub events: Vec<Arc<Event>>,
    /// The log entry of the last event that is not among them; 0 if all are.
    pub forgotten: u64,
}

impl State {
    /// The state as plain lists.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            index: self.index,
            clock: self.clock,
            next_number: self.next_number,
            next_raft: self.next_raft,
            cluster: self.cluster.clone(),
            nodes: self.nodes.values().cloned().collect(),
            removed_nodes: self.removed_nodes.iter().map(|(id, at)| (*id, *at)).collect(),
            services: self.services.values().cloned().collect(),
            networks: self.networks.values().cloned().collect(),
            tasks: self.tasks.values().cloned().collect(),
            requests: self.requests.iter().map(|(id, at, answer)| (id, at, *answer)).collect(),
            events: self.events.iter().cloned().collect(),
            forgotten: self.forgotten,
        }
    }

    /// The state that a snapshot was taken of.
    pub fn restore(snapshot: Snapshot) -> Self {
        let mut state = Self {
            index: snapshot.index,
            clock: snapshot.clock,
            next_number: snapshot.next_number,
            next_raft: snapshot.next_raft,
            cluster: snapshot.cluster,
            removed_nodes: snapshot.removed_nodes.into_iter().collect(),
            requests: snapshot.requests.into_iter().collect(),
            events: snapshot.events.into_iter().collect(),
            forgotten: snapshot.forgotten,
            ..Self::default()
        };
        for node in snapshot.nodes {
            state.nodes.insert(node.id, node);
        }
        for network in snapshot.networks {
            state.network_names.insert(network.name.clone(), network.id);
            state.networks.insert(network.id, network);
        }
        for service in snapshot.services {
            state.index_service(&service);
            state.services.insert(service.id, service);
        }
        for task in snapshot.tasks {
            state.index_task(&task);
            state.put_task(task);
        }
        state
    }

    pub(super) fn index_service(&mut self, service: &Service) {
        self.service_names.insert(service.spec.name.clone(), service.id);
        for (network, vip) in &service.endpoint.vips {
            self.addresses.insert((*network, *vip), Owner::Service(service.id));
        }
    }

    pub(super) fn unindex_service(&mut self, service: &Service) {
        self.service_names.remove(&service.spec.name);
        for (network, vip) in &service.endpoint.vips {
            self.addresses.remove(&(*network, *vip));
        }
    }

    /// Puts a task, new or changed, in all places that hold it whole.
    pub(super) fn put_task(&mut self, task: Arc<Task>) {
        if task.is_restless() {
            self.restless.insert(task.id);
        } else {
            self.restless.remove(&task.id);
        }
        self.tasks_by_service.entry(task.service).or_default().insert(task.id, task.clone());
        self.tasks.insert(task.id, task);
    }

    pub(super) fn index_task(&mut self, task: &Task) {
        if let Some(node) = task.node {
            self.tasks_by_node.entry(node).or_default().insert(task.id);
        }
        if task.is_live() {
            for (network, address) in &task.addresses {
                self.addresses.insert((*network, *address), Owner::Task(task.id));
            }
        }
    }

    /// Gives back the addresses of a task that has ended.
    pub(super) fn release_addresses(&mut self, task: &Task) {
        for (network, address) in &task.addresses {
            if self.owner_of(*network, *address) == Some(Owner::Task(task.id)) {
                self.addresses.remove(&(*network, *address));
            }
        }
    }

    pub(super) fn unindex_task(&mut self, task: &Task) {
        self.release_addresses(task);
        self.tasks.remove(&task.id);
        self.restless.remove(&task.id);
        if let Some(tasks) = self.tasks_by_service.get_mut(&task.service) {
            tasks.remove(&task.id);
            if tasks.is_empty() {
                self.tasks_by_service.remove(&task.service);
            }
        }
        if let Some(node) = task.node
            && let Some(tasks) = self.tasks_by_node.get_mut(&node)
        {
            tasks.remove(&task.id);
            if tasks.is_empty() {
                self.tasks_by_node.remove(&node);
            }
        }
    }
}
