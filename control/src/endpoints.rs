//! What a node must know to reach services: addresses, virtual IPs, names and published ports.
//!
//! The whole table is derived from the replicated state; equal tables need not be sent again. A node
//! learns of the networks its own live tasks join and of published ports, and of nothing else.

use crate::ids::{NetworkId, NodeId, ServiceId, TaskId};
use crate::model::{Network, NodeStatus, PortMode, Protocol, Service, Slot, Task};
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The table of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Where the other nodes named below are reached, `ip:port`.
    pub peers: BTreeMap<NodeId, String>,
    /// The networks that live tasks of this node join.
    pub networks: BTreeMap<NetworkId, NetworkTable>,
    /// The ports this node answers on, in order.
    pub ports: Vec<PublishedPort>,
}

/// One network, as seen by its members.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkTable {
    /// The network itself.
    pub network: Arc<Network>,
    /// On which node each address lives; tasks that are starting or draining included.
    pub routes: BTreeMap<Ipv4Addr, NodeId>,
    /// The services on it, by id.
    pub services: Vec<ServiceEntry>,
}

/// A service, as seen on one network. Its name resolves to `vip`, `tasks.NAME` to the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Which.
    pub service: ServiceId,
    /// Its name.
    pub name: String,
    /// Its virtual address, which may receive new connections for any backend.
    pub vip: Ipv4Addr,
    /// Tasks that may be given new connections, by id.
    pub backends: Vec<Backend>,
}

/// A task that may be given new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Which.
    pub task: TaskId,
    /// Which of the service's places it fills.
    pub slot: Slot,
    /// Where it runs.
    pub node: NodeId,
    /// On which network it is to be reached.
    pub network: NetworkId,
    /// Its address there.
    pub address: Ipv4Addr,
}

/// A port this node answers on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// On the node.
    pub published: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// In the containers.
    pub target: u16,
    /// Whether it answers on every node; if not, all backends are on this one.
    pub mode: PortMode,
    /// Whose it is.
    pub service: ServiceId,
    /// Tasks that may be given new connections, by id.
    pub backends: Vec<Backend>,
}

/// What `node` must know.
pub fn of(state: &State, node: NodeId) -> Table {
    let joined: BTreeSet<NetworkId> = state
        .tasks_on(node)
        .filter(|task| task.is_live())
        .flat_map(|task| task.addresses.iter().map(|(network, _)| *network))
        .collect();
    let mut networks: BTreeMap<NetworkId, NetworkTable> = joined
        .iter()
        .filter_map(|id| state.network(*id))
        .map(|network| (network.id, table(state, network, node)))
        .collect();
    for task in state.tasks().filter(|task| task.is_live()) {
        let Some(home) = task.node else { continue };
        for (network, address) in &task.addresses {
            if let Some(table) = networks.get_mut(network) {
                table.routes.insert(*address, home);
            }
        }
    }
    let ports = ports(state, node);
    let peers = networks
        .values()
        .flat_map(|table| table.routes.values())
        .chain(ports.iter().flat_map(|port| port.backends.iter().map(|backend| &backend.node)))
        .filter(|peer| **peer != node)
        .filter_map(|peer| state.node(*peer).map(|peer| (peer.id, peer.addr.clone())))
        .collect();
    Table { peers, networks, ports }
}

/// Whether a task may be given new connections by `from`. A node's own tasks are not taken from it
/// because the managers have lost sight of it.
pub fn is_routable(state: &State, task: &Task, from: NodeId) -> bool {
    use crate::model::Observed;
    let seen = |node| state.node(node).is_some_and(|node| node.status == NodeStatus::Ready);
    task.observed == Observed::Running
        && task.is_wanted()
        && task.node.is_some_and(|node| node == from || seen(node))
}

fn table(state: &State, network: &Arc<Network>, from: NodeId) -> NetworkTable {
    let services = state
        .services()
        .filter_map(|service| {
            let vip = *service.endpoint.vips.get(&network.id)?;
            let backends = backends(state, service, from, network.id);
            Some(ServiceEntry { service: service.id, name: service.spec.name.clone(), vip, backends })
        })
        .collect();
    NetworkTable { network: network.clone(), routes: BTreeMap::new(), services }
}

fn backends(state: &State, service: &Service, from: NodeId, network: NetworkId) -> Vec<Backend> {
    state
        .tasks_of(service.id)
        .filter(|task| is_routable(state, task, from))
        .filter_map(|task| {
            let (_, address) = *task.addresses.iter().find(|(id, _)| *id == network)?;
            Some(Backend { task: task.id, slot: task.slot, node: task.node?, network, address })
        })
        .collect()
}

fn ports(state: &State, node: NodeId) -> Vec<PublishedPort> {
    let mut ports = Vec::new();
    for service in state.services() {
        // A task is reached on the first of its networks.
        let reached = service.spec.task.networks.first();
        for port in &service.endpoint.ports {
            let mut backends =
                reached.map_or_else(Vec::new, |network| backends(state, service, node, *network));
            if port.mode == PortMode::Host {
                backends.retain(|backend| backend.node == node);
                if backends.is_empty() {
                    continue;
                }
            }
            ports.push(PublishedPort {
                published: port.published,
                protocol: port.protocol,
                target: port.target,
                mode: port.mode,
                service: service.id,
                backends,
            });
        }
    }
    ports.sort();
    ports
}
