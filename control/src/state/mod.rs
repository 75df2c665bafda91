//! The replicated state machine: every manager holds one and applies the same proposals to it.
//!
//! Maps are persistent, so a clone is a snapshot and costs nothing.

mod apply;

mod change;
mod requests;
mod snapshot;

pub(crate) use apply::Turn;
pub use change::{Change, NewTask, Proposal, Report, Rollback};
pub use requests::{NotARequestId, REMEMBERED_FOR, REMEMBERED_MAX, RequestId, Requests};
pub use snapshot::Snapshot;

use crate::admission::Answer;
use crate::events;
use crate::ids::{NetworkId, NodeId, ServiceId, TaskId};
use crate::model::{Cluster, Network, Node, Role, Service, Task};
use crate::time::Timestamp;
use imbl::{OrdMap, OrdSet, Vector};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Everything the managers agree on.
///
/// **Invariant:** [`State::apply`] is a function of the state and the proposal alone, so that all
/// managers hold the same. Clocks and random numbers are read by whoever proposes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    index: u64,
    clock: Timestamp,
    next_number: u64,
    next_raft: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    removed_nodes: OrdMap<NodeId, Timestamp>,
    services: OrdMap<ServiceId, Arc<Service>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    requests: Requests<Answer>,
    events: Vector<Arc<events::Event>>,
    forgotten: u64,
    // What follows can be derived from the above.
    tasks_by_service: OrdMap<ServiceId, TaskMap>,
    restless: OrdSet<TaskId>,
    tasks_by_node: OrdMap<NodeId, OrdSet<TaskId>>,
    service_names: OrdMap<String, ServiceId>,
    network_names: OrdMap<String, NetworkId>,
    addresses: OrdMap<(NetworkId, Ipv4Addr), Owner>,
}

pub(crate) type TaskMap = OrdMap<TaskId, Arc<Task>>;

/// Who holds an address of an overlay network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The address is the virtual IP of a service.
    Service(ServiceId),
    /// The address belongs to a task.
    Task(TaskId),
}

/// What a proposal has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Log index of the entry.
    pub index: u64,
    /// What was touched, in order.
    pub events: Vec<Event>,
}

/// One object was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which.
    pub object: Object,
    /// How.
    pub kind: EventKind,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// The cluster itself.
    Cluster,
    /// A node.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A network.
    Network(NetworkId),
    /// A task.
    Task(TaskId),
}

/// How an object was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// It is new.
    Created,
    /// It is different.
    Updated,
    /// It is gone.
    Removed,
}

/// A proposal that lost a race: the state has moved since it was decided. The proposer looks again;
/// nothing else happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proposal is stale: {0}")]
pub struct Stale(pub String);

pub(crate) fn stale<T>(why: impl Into<String>) -> Result<T, Stale> {
    Err(Stale(why.into()))
}

impl State {
    /// Index of the last applied log entry.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The latest time that any applied proposal carried.
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// The number the next created object must have.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// The cluster, once it is initialised.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// The level of the log that all managers understand. See [`crate::level`].
    pub fn level(&self) -> u32 {
        self.cluster.as_ref().map_or(crate::level::OLDEST, |cluster| cluster.level)
    }

    /// What was answered to a request, if it was carried out and is remembered.
    pub fn answered(&self, request: RequestId) -> Option<Answer> {
        self.requests.answer(request).copied()
    }

    /// What ids are minted from; zero before the cluster is initialised.
    pub fn id_seed(&self) -> u64 {
        self.cluster.as_ref().map_or(0, |cluster| cluster.id_seed)
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// All nodes, in a form that knows what it shares with others of its kind.
    pub(crate) fn node_map(&self) -> &OrdMap<NodeId, Arc<Node>> {
        &self.nodes
    }

    /// When a node was removed, if it was: its certificate no longer proves anything.
    pub fn removed_at(&self, id: NodeId) -> Option<Timestamp> {
        self.removed_nodes.get(&id).copied()
    }

    /// One service.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    /// All services, by id.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service of this name.
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        self.service_names.get(name).and_then(|id| self.services.get(id))
    }

    /// Every service that exists or has left tasks behind, by id.
    pub fn service_ids(&self) -> BTreeSet<ServiceId> {
        self.services.keys().chain(self.tasks_by_service.keys()).copied().collect()
    }

    /// One network.
    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }

    /// All networks, by id.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// All networks, in a form that knows what it shares with others of its kind.
    pub(crate) fn network_map(&self) -> &OrdMap<NetworkId, Arc<Network>> {
        &self.networks
    }

    /// The network of this name.
    pub fn network_named(&self, name: &str) -> Option<&Arc<Network>> {
        self.network_names.get(name).and_then(|id| self.networks.get(id))
    }

    /// One task.
    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }

    /// All tasks, by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// The tasks of a service, ended ones included, by id.
    pub fn tasks_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_by_service.get(&service).into_iter().flat_map(TaskMap::values)
    }

    /// All tasks, in a form that knows what it shares with others of its kind.
    pub(crate) fn all_tasks(&self) -> &TaskMap {
        &self.tasks
    }

    /// All services, in a form that knows what it shares with others of its kind.
    pub(crate) fn service_map(&self) -> &OrdMap<ServiceId, Arc<Service>> {
        &self.services
    }

    /// The tasks of a service, in a form that knows what it shares with others of its kind.
    pub(crate) fn task_map(&self, service: ServiceId) -> TaskMap {
        self.tasks_by_service.get(&service).cloned().unwrap_or_default()
    }

    /// The tasks that have not ended and do not just run as they shall, by id: few, where there is little to do.
    pub(crate) fn restless(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.restless.iter().map(|id| &self.tasks[id])
    }

    /// The tasks that were ever assigned to a node, ended ones included, by id.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_by_node.get(&node).into_iter().flatten().map(|id| &self.tasks[id])
    }

    /// Who holds an address of a network.
    pub fn owner_of(&self, network: NetworkId, address: Ipv4Addr) -> Option<Owner> {
        self.addresses.get(&(network, address)).copied()
    }

    /// What has happened, oldest first: the last [`EVENTS_MAX`](events::EVENTS_MAX) events.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<events::Event>> {
        self.events.iter()
    }

    /// The log entry of the last event that is not kept any more; 0 while all are.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn keep_events(&mut self, news: Vec<events::Event>) {
        self.events.extend(news.into_iter().map(Arc::new));
        while self.events.len() > events::EVENTS_MAX {
            self.forgotten = self.events.pop_front().map_or(self.forgotten, |event| event.index);
        }
    }

    /// The addresses of a network that somebody holds, in order.
    pub(crate) fn owners_in(&self, network: NetworkId) -> impl Iterator<Item = (Ipv4Addr, Owner)> {
        let all = (network, Ipv4Addr::UNSPECIFIED)..=(network, Ipv4Addr::BROADCAST);
        self.addresses.range(all).map(|((_, address), owner)| (*address, *owner))
    }

    /// Whether no node differs from what `other` knows of it, as far as that is known without looking at them.
    pub fn shares_nodes_with(&self, other: &Self) -> bool {
        self.nodes.ptr_eq(&other.nodes)
    }

    /// Whether more than tasks differs from what `other` knows, as far as that is known without looking inside.
    pub fn differs_beside_tasks(&self, other: &Self) -> bool {
        let same_cluster = match (&self.cluster, &other.cluster) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let same = same_cluster
            && self.nodes.ptr_eq(&other.nodes)
            && self.services.ptr_eq(&other.services)
            && self.networks.ptr_eq(&other.networks);
        !same
    }

    /// How many nodes have a seat in the consensus group, or shall get the one they were given.
    pub fn managers(&self) -> usize {
        self.nodes().filter(|node| node.role == Role::Manager && node.raft.is_some()).count()
    }
}
