//! What the leader says of the overlay, as the overlay wants to be told.

use rswarm_control::endpoints as told;
use rswarm_control::ids::{NetworkId, NodeId, ServiceId};
use rswarm_control::model::{Allow, Protocol};
use rswarm_control::policy;
use rswarm_netoverlay::table as overlay;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Translates a table. What cannot be said to the overlay is left out and logged: one odd entry must not take
/// the others with it.
pub fn translate(table: &told::Table, generation: u64, me: NodeId, my_addr: SocketAddr) -> overlay::Table {
    let mut nodes = vec![overlay::Node { id: node(me), underlay: my_addr }];
    for (id, addr) in &table.peers {
        match addr.parse() {
            Ok(underlay) => nodes.push(overlay::Node { id: node(*id), underlay }),
            Err(_) => tracing::warn!(node = %id, addr, "a node's address cannot be used"),
        }
    }
    let known =
        |id: &NodeId| *id == me || table.peers.get(id).is_some_and(|addr| addr.parse::<SocketAddr>().is_ok());
    let numbers: BTreeMap<NetworkId, overlay::NetworkId> = table
        .networks
        .values()
        .filter_map(|entry| Some((entry.network.id, overlay::NetworkId::new(entry.network.vni)?)))
        .collect();

    let mut networks = Vec::new();
    let mut endpoints = Vec::new();
    let mut services = Vec::new();
    for (id, entry) in &table.networks {
        let Some(number) = numbers.get(id).copied() else { continue };
        networks.push(overlay::Network {
            id: number,
            subnet: entry.network.subnet.base(),
            prefix: entry.network.subnet.prefix(),
            gateway: entry.network.gateway,
            mtu: u16::try_from(entry.network.mtu).unwrap_or(1400),
            internal: entry.network.internal,
            isolated: entry.network.isolated,
        });
        let mut names: BTreeMap<Ipv4Addr, Vec<String>> = BTreeMap::new();
        let mut called: BTreeMap<ServiceId, Arc<str>> = BTreeMap::new();
        for service in &entry.services {
            for backend in &service.backends {
                let (name, slot) = (&service.name, backend.slot);
                let names = names.entry(backend.address).or_default();
                names.extend([format!("{name}.{slot}"), format!("{slot}.{name}")]);
            }
            called.insert(service.service, service.name.as_str().into());
            services.push(overlay::Service {
                network: number,
                name: service.name.clone(),
                aliases: Vec::new(),
                vip: service.vip,
                client_affinity: service.client_affinity,
                backends: service.backends.iter().map(|backend| backend.address).collect(),
                draining: service.draining.clone(),
                access: access(entry.network.isolated, &service.allow),
            });
        }
        for (address, route) in entry.routes.iter().filter(|(_, route)| known(&route.node)) {
            // What is no longer there is called as no service can be.
            let owner = |id| called.entry(id).or_insert_with(|| format!("gone.{id}").into()).clone();
            endpoints.push(overlay::Endpoint {
                network: number,
                address: *address,
                node: node(route.node),
                names: names.remove(address).unwrap_or_default(),
                service: route.service.map(owner),
            });
        }
    }
    let mut ports = Vec::new();
    for port in &table.ports {
        let Some(network) = overlay::NetworkId::new(port.vni) else { continue };
        let backends = port
            .backends
            .iter()
            .filter(|backend| known(&backend.node))
            .map(|backend| overlay::Backend { node: node(backend.node), address: backend.address })
            .collect();
        ports.push(overlay::PublishedPort {
            port: port.published,
            protocol: protocol(port.protocol),
            service: port.service_name.clone(),
            proxy_protocol: port.proxy_protocol,
            client_affinity: port.client_affinity,
            network,
            target_port: port.target,
            backends,
        });
    }
    overlay::Table { generation, nodes, networks, endpoints, services, ports }
}

fn access(isolated: bool, allow: &[Allow]) -> overlay::Access {
    if !policy::is_closed(isolated, allow) {
        return overlay::Access::Open;
    }
    let entry = |allow: &Allow| overlay::Allow {
        service: allow.from.as_str().into(),
        port: allow.port.map(|(port, of)| (protocol(of), port)),
    };
    overlay::Access::Only(allow.iter().map(entry).collect())
}

fn protocol(protocol: Protocol) -> overlay::Protocol {
    match protocol {
        Protocol::Tcp => overlay::Protocol::Tcp,
        Protocol::Udp => overlay::Protocol::Udp,
    }
}

fn node(id: NodeId) -> overlay::NodeId {
    overlay::NodeId::new(id.to_string())
}
