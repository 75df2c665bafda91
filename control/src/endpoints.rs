//! What a node must know to reach services: addresses, virtual IPs, names and published ports.
//!
//! The whole table is derived from the replicated state; equal tables need not be sent again. A node
//! learns of the networks its own live tasks join and of published ports, and of nothing else.

use crate::ids::{NetworkId, NodeId, ServiceId, TaskId};
use crate::model::{Network, NodeStatus, Observed, PortMode, Protocol, Service, Slot, Task};
use crate::state::{Owner, State};
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
    /// Addresses of tasks that are being stopped as planned, or are not ready: no new connections, but those they have
    /// go on.
    pub draining: Vec<Ipv4Addr>,
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
    /// What it is called, for messages.
    pub service_name: String,
    /// The number of the network that the tasks are reached on; a node may serve the port without having
    /// joined that network. 0 where there is none.
    pub vni: u32,
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
    let networks: BTreeMap<NetworkId, NetworkTable> = joined
        .iter()
        .filter_map(|id| state.network(*id))
        .map(|network| (network.id, table(state, network, node)))
        .collect();
    let ports = ports(state, node);
    let peers = networks
        .values()
        .flat_map(|table| table.routes.values().copied())
        .chain(ports.iter().flat_map(|port| port.backends.iter().map(|backend| backend.node)))
        .chain(callers(state, node))
        .filter(|peer| *peer != node)
        .filter_map(|peer| state.node(peer).map(|peer| (peer.id, peer.addr.clone())))
        .collect();
    Table { peers, networks, ports }
}

/// Who may bring clients to `node`'s tasks: a port published on every node is carried from any of them to where the
/// task runs, and a node takes connections from its peers alone.
fn callers(state: &State, node: NodeId) -> Vec<NodeId> {
    let on_every_node = |task: &&Arc<Task>| {
        let service = state.service(task.service);
        task.is_live()
            && service.is_some_and(|service| {
                service.endpoint.ports.iter().any(|port| port.mode == PortMode::Ingress)
            })
    };
    if !state.tasks_on(node).any(|task| on_every_node(&task)) {
        return Vec::new();
    }
    let gone = |status| matches!(status, NodeStatus::Down | NodeStatus::Left);
    state.nodes().filter(|node| !gone(node.status)).map(|node| node.id).collect()
}

/// Which tasks of a service `from` may give new connections to, by id. A node's own tasks are not taken from
/// it because the managers have lost sight of it; and where every other task is out of sight too, trying
/// one that is suspect is better than refusing for certain.
pub fn routable<'a>(state: &'a State, service: &Service, from: NodeId) -> Vec<&'a Arc<Task>> {
    let (mut seen, mut suspect) = (Vec::new(), Vec::new());
    for task in state.tasks_of(service.id) {
        let Some(node) = task.node.and_then(|node| state.node(node)) else { continue };
        if !task.serves() || !task.is_wanted() {
            continue;
        }
        match node.status {
            _ if node.id == from => seen.push(task),
            NodeStatus::Ready => seen.push(task),
            NodeStatus::Suspect => suspect.push(task),
            NodeStatus::Unknown | NodeStatus::Down | NodeStatus::Left => {}
        }
    }
    if seen.is_empty() { suspect } else { seen }
}

fn backend(task: &Task, &(network, address): &(NetworkId, Ipv4Addr)) -> Option<Backend> {
    Some(Backend { task: task.id, slot: task.slot, node: task.node?, network, address })
}

/// Tasks that are being stopped as planned or are not ready: they keep the connections they have.
fn draining(state: &State, service: &Service, network: NetworkId) -> Vec<Ipv4Addr> {
    state
        .tasks_of(service.id)
        .filter(|task| task.observed == Observed::Running && !state.is_lost(task))
        .filter(|task| !task.is_wanted() || !task.serves())
        .filter_map(|task| task.addresses.iter().find(|(id, _)| *id == network).map(|(_, address)| *address))
        .collect()
}

fn table(state: &State, network: &Arc<Network>, from: NodeId) -> NetworkTable {
    let entry = |service: &Arc<Service>| {
        let vip = *service.endpoint.vips.get(&network.id)?;
        let on_it = |task: &&Arc<Task>| {
            let address = task.addresses.iter().find(|(id, _)| *id == network.id)?;
            backend(task, address)
        };
        let backends = routable(state, service, from).iter().filter_map(on_it).collect();
        let draining = draining(state, service, network.id);
        Some(ServiceEntry { service: service.id, name: service.spec.name.clone(), vip, backends, draining })
    };
    let services = state.services().filter_map(entry).collect();
    NetworkTable { network: network.clone(), routes: routes(state, network.id), services }
}

/// Where the live tasks of a network are: they alone hold addresses.
fn routes(state: &State, network: NetworkId) -> BTreeMap<Ipv4Addr, NodeId> {
    let home = |owner| match owner {
        Owner::Task(task) => state.task(task).and_then(|task| task.node),
        Owner::Service(_) => None,
    };
    state.owners_in(network).filter_map(|(address, owner)| Some((address, home(owner)?))).collect()
}

fn ports(state: &State, node: NodeId) -> Vec<PublishedPort> {
    let mut ports = Vec::new();
    for service in state.services().filter(|service| !service.endpoint.ports.is_empty()) {
        // A task is reached on the first of its own networks.
        let backends: Vec<Backend> = routable(state, service, node)
            .iter()
            .filter_map(|task| backend(task, task.addresses.first()?))
            .collect();
        let reached = backends.first().and_then(|backend| state.network(backend.network));
        let vni = reached.map_or(0, |network| network.vni);
        for port in &service.endpoint.ports {
            let mut backends = backends.clone();
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
                service_name: service.spec.name.clone(),
                vni,
                backends,
            });
        }
    }
    ports.sort();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, port, spec};
    use std::time::Duration;

    /// A service of two tasks on two nodes that publishes a port.
    fn published(mode: PortMode) -> (Bed, ServiceId, Vec<NodeId>) {
        let mut bed = Bed::new();
        let nodes = vec![bed.node("n1", 64), bed.node("n2", 64), bed.node("n3", 64)];
        let mut wanted = spec("web", 2);
        wanted.endpoint.ports.push(port(Some(80), 8080, mode));
        let service = bed.service(wanted);
        bed.tick();
        bed.all_run();
        (bed, service, nodes)
    }

    fn homes(bed: &Bed, service: ServiceId) -> Vec<NodeId> {
        bed.tasks(service).iter().map(|task| task.node.expect("it has a node")).collect()
    }

    #[test]
    fn a_port_answers_on_every_node_also_without_a_task() {
        let (bed, service, nodes) = published(PortMode::Ingress);
        let idle =
            nodes.iter().find(|node| !homes(&bed, service).contains(node)).expect("two tasks, three nodes");
        let table = of(&bed.state, *idle);
        assert_eq!(table.ports[0].backends.len(), 2);
        assert_eq!(table.networks.len(), 0, "it has no task, so it learns of no network");
        assert_eq!(table.peers.len(), 2, "but it must reach the nodes that have");
        for home in homes(&bed, service) {
            assert!(of(&bed.state, home).peers.contains_key(idle), "and they must know who calls");
        }
    }

    #[test]
    fn a_host_port_answers_where_a_task_runs() {
        let (bed, service, nodes) = published(PortMode::Host);
        for node in nodes {
            let backends: Vec<NodeId> =
                of(&bed.state, node).ports.iter().flat_map(|port| &port.backends).map(|b| b.node).collect();
            let expected = if homes(&bed, service).contains(&node) { vec![node] } else { vec![] };
            assert_eq!(backends, expected);
        }
    }

    #[test]
    fn members_of_a_network_learn_its_names_and_routes() {
        let (bed, service, _) = published(PortMode::Ingress);
        let table = of(&bed.state, homes(&bed, service)[0]);
        let network = table.networks.values().next().expect("the default network");
        assert_eq!(network.routes.len(), 2);
        let entry = &network.services[0];
        assert_eq!((entry.name.as_str(), entry.backends.len()), ("web", 2));
        assert!(network.network.subnet.contains(entry.vip));
    }

    #[test]
    fn a_suspect_nodes_tasks_get_no_new_connections_unless_there_are_no_others() {
        let (mut bed, service, nodes) = published(PortMode::Ingress);
        let homes = homes(&bed, service);
        let idle = *nodes.iter().find(|node| !homes.contains(node)).expect("two tasks, three nodes");
        let backends = |bed: &Bed, from| {
            let table = of(&bed.state, from);
            table.ports[0].backends.iter().map(|backend| backend.node).collect::<Vec<_>>()
        };
        bed.alter(homes[0], |node| node.status = NodeStatus::Suspect);
        assert_eq!(backends(&bed, idle), [homes[1]]);
        assert_eq!(backends(&bed, homes[0]).len(), 2, "its own task is nobody else's to judge");
        bed.alter(homes[1], |node| node.status = NodeStatus::Suspect);
        assert_eq!(backends(&bed, idle).len(), 2, "better an attempt than a certain refusal");
        bed.alter(homes[1], |node| node.status = NodeStatus::Down);
        assert_eq!(backends(&bed, idle), [homes[0]]);
    }

    #[test]
    fn a_task_that_is_to_end_is_drained_but_still_routed_to() {
        let (mut bed, service, _) = published(PortMode::Ingress);
        let task = bed.tasks(service)[0].clone();
        let change = crate::Change::SetDesired { task: task.id, desired: crate::model::Desired::Shutdown };
        bed.commit(vec![change]).expect("in time");
        let table = of(&bed.state, task.node.expect("it has a node"));
        assert_eq!(table.ports[0].backends.len(), 1);
        let network = table.networks.values().next().expect("the default network");
        assert_eq!(network.routes.len(), 2, "open connections go on");
    }

    #[test]
    fn a_task_that_is_not_well_or_not_ready_keeps_its_connections_and_gets_no_new_ones() {
        use crate::model::Health;
        let (mut bed, service, nodes) = published(PortMode::Ingress);
        let [one, other] = bed.tasks(service).try_into().expect("two");
        let network = one.addresses[0].0;
        let mut told = |health, ready| {
            let before = bed.state.clone();
            let report = crate::Report { health, ready, ..bed.report_of(one.id, Observed::Running) };
            let applied = bed.commit(vec![crate::Change::Report(report)]).expect("reports are never stale");
            let tables = |state: &State| nodes.iter().map(|node| of(state, *node)).collect::<Vec<_>>();
            if tables(&before) != tables(&bed.state) {
                assert!(applied.endpoints, "a table changed in silence");
                let touched = crate::touched::between(&before, &bed.state);
                assert!(nodes.iter().all(|node| touched.has(*node)));
            }
            let table = of(&bed.state, one.node.expect("it has a node"));
            let entry = &table.networks[&network].services[0];
            assert_eq!(entry.backends, table.ports[0].backends);
            let backends: Vec<TaskId> = entry.backends.iter().map(|backend| backend.task).collect();
            (backends, entry.draining.clone())
        };
        let mut both = vec![one.id, other.id];
        both.sort();
        let address = one.addresses[0].1;
        assert_eq!(told(Health::Healthy, None), (both.clone(), vec![]));
        assert_eq!(told(Health::Healthy, Some(false)), (vec![other.id], vec![address]));
        assert_eq!(told(Health::Healthy, None), (vec![other.id], vec![address]), "nothing new is known");
        assert_eq!(told(Health::Healthy, Some(true)), (both.clone(), vec![]));
        assert_eq!(told(Health::Unhealthy, Some(true)), (vec![other.id], vec![address]));
    }

    #[test]
    fn nothing_new_means_an_equal_table() {
        let (mut bed, service, nodes) = published(PortMode::Ingress);
        let before: Vec<Table> = nodes.iter().map(|node| of(&bed.state, *node)).collect();
        bed.pass(Duration::from_millis(250));
        let task = bed.tasks(service)[0].id;
        let mut report = bed.report_of(task, Observed::Running);
        report.message = "still well".into();
        bed.commit(vec![crate::Change::Report(report)]).expect("reports are never stale");
        let after: Vec<Table> = nodes.iter().map(|node| of(&bed.state, *node)).collect();
        assert_eq!(before, after);
    }
}
