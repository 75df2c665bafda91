//! What all nodes are told alike, in parts of which each node is told those that it needs; its own [`Table`] follows
//! from them. So what has changed is worked out, and put into words, once for all nodes.

use super::{Backend, NetworkTable, PublishedPort, Route, ServiceEntry, Table};
use crate::ids::{NetworkId, NodeId, ServiceId};
use crate::model::{self, Allow, Network, NodeStatus, PortMode, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A part of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Where the nodes are, and how they fare.
    Nodes,
    /// The services that publish ports, and their tasks.
    Published,
    /// The services of one network, and all tasks on it.
    Network(NetworkId),
}

/// The parts that a node was told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directory {
    /// By [number](crate::model::Meta::number), which stands for the node in all other parts.
    pub nodes: BTreeMap<u64, Place>,
    /// All parts but [`Part::Nodes`].
    pub sections: BTreeMap<Part, Section>,
}

/// Where a node is, and how it fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub id: NodeId,
    /// Where its overlay is reached, `ip:port`.
    pub addr: String,
    /// Whether it is heard from.
    pub status: NodeStatus,
}

/// Services and tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// The network that all of it is about, if it is about one.
    pub network: Option<Arc<Network>>,
    /// How services are reached.
    pub services: BTreeMap<ServiceId, Reached>,
    /// Live tasks, by where they are reached.
    pub rows: BTreeMap<Spot, Row>,
}

/// How a service is reached, as far as one part goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Its name.
    pub name: String,
    /// Its virtual address, on a network, if it has one.
    pub vip: Option<Ipv4Addr>,
    /// Whether each client's connections go to one task.
    pub client_affinity: bool,
    /// Its ports, among what is published.
    pub ports: Vec<model::PublishedPort>,
    /// Whose tasks may connect to its own, on a network.
    pub allow: Vec<Allow>,
}

/// The number of a network, and an address on it.
pub type Spot = (u32, Ipv4Addr);

/// A live task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose it is. The service itself may be gone.
    pub service: ServiceId,
    /// Which of the service's places it fills.
    pub slot: Slot,
    /// The number of the node it is on.
    pub node: u64,
    /// What may be sent to it.
    pub standing: Standing,
}

/// What may be sent to a task, as far as it is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Packets, by those who know its address.
    Routed,
    /// New connections.
    Serving,
    /// What belongs to the connections that it has.
    Draining,
}

/// A piece of news that does not follow what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what is said to have changed is not known")]
pub struct Missed;

impl Directory {
    /// What `me` makes of it.
    pub fn table(&self, me: NodeId) -> Table {
        let home = |row: &Row| self.nodes.get(&row.node);
        let networks: BTreeMap<NetworkId, NetworkTable> = self
            .sections
            .values()
            .filter_map(|section| Some((section.network.clone()?, section)))
            .map(|(network, section)| {
                let route = |((_, address), row): (&Spot, &Row)| {
                    Some((*address, Route { node: home(row)?.id, service: Some(row.service) }))
                };
                let routes = section.rows.iter().filter_map(route).collect();
                (network.id, NetworkTable { routes, services: self.services(section, me), network })
            })
            .collect();
        let ports = self.ports(me);
        let named: BTreeSet<NodeId> = networks
            .values()
            .flat_map(|table| table.routes.values().map(|route| route.node))
            .chain(ports.iter().flat_map(|port| port.backends.iter().map(|backend| backend.node)))
            .collect();
        let called = self.is_called(me);
        let peers = self
            .nodes
            .values()
            .filter(|place| place.id != me)
            .filter(|place| named.contains(&place.id) || called && !place.status.is_lost())
            .map(|place| (place.id, place.addr.clone()))
            .collect();
        Table { peers, networks, ports }
    }

    fn services(&self, section: &Section, me: NodeId) -> Vec<ServiceEntry> {
        let mut rows = by_service(section);
        let entry = |(service, reached): (&ServiceId, &Reached)| {
            let rows = rows.remove(service).unwrap_or_default();
            let is_lost = |row: &Row| self.nodes.get(&row.node).is_none_or(|place| place.status.is_lost());
            ServiceEntry {
                service: *service,
                name: reached.name.clone(),
                vip: reached.vip,
                client_affinity: reached.client_affinity,
                backends: self.usable(&rows, me).into_iter().map(|(_, backend)| backend).collect(),
                draining: rows
                    .iter()
                    .filter(|(_, row)| row.standing == Standing::Draining && !is_lost(row))
                    .map(|((_, address), _)| *address)
                    .collect(),
                allow: reached.allow.clone(),
            }
        };
        section.services.iter().map(entry).collect()
    }

    /// Which tasks `me` may give new connections to. A node's own tasks are not taken from it because the managers
    /// have lost sight of it; and where every other task is out of sight too, trying one that is suspect is better
    /// than refusing for certain.
    fn usable(&self, rows: &[(Spot, Row)], me: NodeId) -> Vec<(u32, Backend)> {
        let (mut seen, mut suspect) = (Vec::new(), Vec::new());
        for ((vni, address), row) in rows.iter().filter(|(_, row)| row.standing == Standing::Serving) {
            let Some(place) = self.nodes.get(&row.node) else { continue };
            let backend = (*vni, Backend { slot: row.slot, node: place.id, address: *address });
            match place.status {
                _ if place.id == me => seen.push(backend),
                NodeStatus::Ready => seen.push(backend),
                NodeStatus::Suspect => suspect.push(backend),
                NodeStatus::Unknown | NodeStatus::Down | NodeStatus::Left => {}
            }
        }
        if seen.is_empty() { suspect } else { seen }
    }

    fn ports(&self, me: NodeId) -> Vec<PublishedPort> {
        let Some(section) = self.sections.get(&Part::Published) else { return Vec::new() };
        let mut rows = by_service(section);
        let mut ports = Vec::new();
        for (service, reached) in &section.services {
            let usable = self.usable(&rows.remove(service).unwrap_or_default(), me);
            // A port is reached on one network.
            let vni = usable.first().map_or(0, |(vni, _)| *vni);
            let backends: Vec<Backend> =
                usable.into_iter().filter(|(on, _)| *on == vni).map(|(_, backend)| backend).collect();
            for port in &reached.ports {
                let mut backends = backends.clone();
                if port.mode == PortMode::Host {
                    backends.retain(|backend| backend.node == me);
                    if backends.is_empty() {
                        continue;
                    }
                }
                ports.push(PublishedPort {
                    published: port.published,
                    protocol: port.protocol,
                    target: port.target,
                    mode: port.mode,
                    service: *service,
                    service_name: reached.name.clone(),
                    proxy_protocol: port.proxy_protocol,
                    client_affinity: reached.client_affinity,
                    vni,
                    backends,
                });
            }
        }
        ports.sort();
        ports
    }

    /// Whether any node may bring clients to the tasks of `me`: a port published on every node is carried from any of
    /// them to where the task runs, and a node takes connections from its peers alone.
    fn is_called(&self, me: NodeId) -> bool {
        let Some(section) = self.sections.get(&Part::Published) else { return false };
        let number = self.nodes.iter().find(|(_, place)| place.id == me).map(|(number, _)| *number);
        let on_every_node = |service: &ServiceId| {
            let reached = section.services.get(service);
            reached.is_some_and(|reached| reached.ports.iter().any(|port| port.mode == PortMode::Ingress))
        };
        section.rows.values().any(|row| Some(row.node) == number && on_every_node(&row.service))
    }
}

fn by_service(section: &Section) -> BTreeMap<ServiceId, Vec<(Spot, Row)>> {
    let mut services: BTreeMap<ServiceId, Vec<(Spot, Row)>> = BTreeMap::new();
    for (spot, row) in &section.rows {
        services.entry(row.service).or_default().push((*spot, *row));
    }
    services
}
