//! What a node must know to reach services: addresses, virtual IPs, names and published ports.
//!
//! A node learns of the networks its own live tasks join and of published ports, and of nothing else. It is told parts
//! of a [`Directory`], which are the same for all nodes, at first whole and then what has changed; its [`Table`]
//! follows from them.

mod directory;
mod news;

pub use directory::{Directory, Missed, Part, Place, Reached, Row, Section, Spot, Standing};
pub use news::{NodesNews, Piece, SectionNews, between, is_published, parts, takes_out, whole};

use crate::ids::{NetworkId, NodeId, ServiceId};
use crate::model::{Allow, Network, NodeStatus, PortMode, Protocol, Service, Slot, Task};
use crate::state::State;
use std::collections::BTreeMap;
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
    /// Where each address lives; tasks that are starting or draining included.
    pub routes: BTreeMap<Ipv4Addr, Route>,
    /// The services on it, by id.
    pub services: Vec<ServiceEntry>,
}

/// Where an address lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// On which node.
    pub node: NodeId,
    /// Whose task has it; the service itself may be gone. `None` if whoever tells does not say.
    pub service: Option<ServiceId>,
}

/// A service, as seen on one network. Its name resolves to `vip`, or without one to the backends; `tasks.NAME` to these
/// in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Which.
    pub service: ServiceId,
    /// Its name.
    pub name: String,
    /// Its virtual address, which may receive new connections for any backend.
    pub vip: Option<Ipv4Addr>,
    /// Whether each client's connections to that go to one backend.
    pub client_affinity: bool,
    /// Tasks that may be given new connections, by address.
    pub backends: Vec<Backend>,
    /// Addresses of tasks that are being stopped as planned, or are not ready: no new connections, but those they have
    /// go on.
    pub draining: Vec<Ipv4Addr>,
    /// Whose tasks may connect to its own, where that is limited.
    pub allow: Vec<Allow>,
}

/// A task that may be given new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Which of the service's places it fills.
    pub slot: Slot,
    /// Where it runs.
    pub node: NodeId,
    /// Its address on the network it is reached on.
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
    /// Whether each connection begins with a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// Whether each client's connections go to one task.
    pub client_affinity: bool,
    /// The number of the network that the tasks are reached on; a node may serve the port without having
    /// joined that network. 0 where there is none.
    pub vni: u32,
    /// Tasks that may be given new connections, by address.
    pub backends: Vec<Backend>,
}

/// What `node` must know.
pub fn of(state: &State, node: NodeId) -> Table {
    let mut directory = Directory::default();
    for part in parts(state, node, is_published(state)) {
        directory.follow(whole(state, part)).expect("a whole part follows from nothing");
    }
    directory.table(node)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Request;
    use crate::model::Observed;
    use crate::testing::{Bed, port, spec};
    use std::collections::BTreeSet;
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
        assert!(entry.vip.is_some_and(|vip| network.network.subnet.contains(vip)));
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
            bed.commit(vec![crate::Change::Report(report)]).expect("reports are never stale");
            let tables = |state: &State| nodes.iter().map(|node| of(state, *node)).collect::<Vec<_>>();
            assert_eq!(tables(&before) != tables(&bed.state), !between(&before, &bed.state).is_empty());
            let table = of(&bed.state, one.node.expect("it has a node"));
            let entry = &table.networks[&network].services[0];
            assert_eq!(entry.backends, table.ports[0].backends);
            let backends: Vec<Ipv4Addr> = entry.backends.iter().map(|backend| backend.address).collect();
            (backends, entry.draining.clone())
        };
        let (address, its) = (one.addresses[0].1, other.addresses[0].1);
        let mut both = vec![address, its];
        both.sort();
        assert_eq!(told(Health::Healthy, None), (both.clone(), vec![]));
        assert_eq!(told(Health::Healthy, Some(false)), (vec![its], vec![address]));
        assert_eq!(told(Health::Healthy, None), (vec![its], vec![address]), "nothing new is known");
        assert_eq!(told(Health::Healthy, Some(true)), (both.clone(), vec![]));
        assert_eq!(told(Health::Unhealthy, Some(true)), (vec![its], vec![address]));
    }

    #[test]
    fn an_allow_list_is_told_to_every_member_and_restarts_nothing() {
        let (mut bed, service, _) = published(PortMode::Ingress);
        bed.upgrade();
        let before = bed.state.clone();
        let mut spec = bed.state.service(service).expect("it is there").spec.clone();
        spec.endpoint.allow.push("front:8080".parse().expect("an entry"));
        let ask = Request::UpdateService {
            service: "web".into(),
            version: None,
            spec: spec.clone(),
            networks: Vec::new(),
        };
        bed.ask(&ask).expect("it may be asked");
        let [(_, Piece::Section(_, news))] =
            &between(&before, &bed.state).into_iter().collect::<Vec<_>>()[..]
        else {
            panic!("news of the network, and of nothing else")
        };
        assert!(!news.whole && news.rows.is_empty() && news.services.len() == 1);
        for home in homes(&bed, service) {
            let table = of(&bed.state, home);
            let network = table.networks.values().next().expect("the default network");
            assert_eq!(network.services[0].allow, spec.endpoint.allow);
            assert!(network.routes.values().all(|route| route.service == Some(service)));
        }
        bed.tick();
        assert!(bed.tasks(service).iter().all(|task| task.spec_version == 1 && task.is_wanted()));
    }

    #[test]
    fn a_network_that_becomes_isolated_is_told_to_its_members_and_restarts_nothing() {
        let (mut bed, service, nodes) = published(PortMode::Host);
        bed.upgrade();
        let members: BTreeSet<NodeId> = homes(&bed, service).into_iter().collect();
        let isolate = |isolated| Request::UpdateNetwork { network: "default".into(), isolated };
        for isolated in [true, false] {
            let before = bed.state.clone();
            bed.ask(&isolate(isolated)).expect("it may be asked");
            let event = bed.state.events().next_back().expect("it has happened").clone();
            assert_eq!((event.action.word(), &*event.name), ("update", "default"));
            assert!(event.attributes.contains(&("isolated.new".into(), isolated.to_string())));
            assert_eq!(bed.words(&isolate(isolated)), "done", "and nothing has changed");
            let mut told = Directory::default();
            for part in parts(&before, homes(&bed, service)[0], true) {
                told.follow(whole(&before, part)).expect("a whole part follows from nothing");
            }
            for piece in between(&before, &bed.state).into_values() {
                told.follow(piece).expect("it follows");
            }
            let table = told.table(homes(&bed, service)[0]);
            assert_eq!(table, of(&bed.state, homes(&bed, service)[0]));
            assert!(table.networks.values().all(|table| table.network.isolated == isolated));
            let touched = crate::touched::between(&before, &bed.state);
            assert!(nodes.iter().all(|node| touched.has(*node) == members.contains(node)));
            bed.tick();
            assert!(bed.tasks(service).iter().all(|task| task.spec_version == 1 && task.is_wanted()));
        }
    }

    #[test]
    fn without_a_virtual_address_a_name_means_the_tasks() {
        use crate::model::EndpointMode;

        let (mut bed, service, _) = published(PortMode::Host);
        bed.upgrade();
        let network = bed.tasks(service)[0].addresses[0].0;
        let home = homes(&bed, service)[0];
        let told = |bed: &Bed| {
            let table = of(&bed.state, home);
            let [entry] = &table.networks[&network].services[..] else { panic!("one service") };
            (entry.vip.is_some(), entry.backends.len())
        };
        assert_eq!(told(&bed), (true, 2));
        let vip = bed.state.service(service).expect("it is there").endpoint.vips[&network];
        for (mode, has_vip) in [(EndpointMode::Dnsrr, false), (EndpointMode::Vip, true)] {
            let before = bed.state.clone();
            let mut spec = bed.state.service(service).expect("it is there").spec.clone();
            spec.endpoint.mode = mode;
            let (name, networks) = ("web".to_owned(), Vec::new());
            let ask = Request::UpdateService { service: name, version: None, spec, networks };
            bed.ask(&ask).expect("it may be asked");
            assert_eq!(told(&bed), (has_vip, 2));
            assert!(between(&before, &bed.state).contains_key(&Part::Network(network)));
            assert_eq!(bed.state.owner_of(network, vip).is_some(), has_vip, "its address is free for others");
            bed.tick();
            assert!(bed.tasks(service).iter().all(|task| task.spec_version == 1 && task.is_wanted()));
        }
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
