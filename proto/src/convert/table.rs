//! Whole endpoint tables: who is where. They are what a node keeps on disk, and what nodes are sent that do not follow
//! [news](super::news). Generations as for assignments.

use super::{Invalid, choice, each, nested, parsed, port, slot, slot_out};
use crate::v1 as pb;
use rswarm_control::endpoints::{Backend, NetworkTable, PublishedPort, Route, ServiceEntry, Table};
use rswarm_control::{NetworkId, ServiceId, TaskId};
use std::net::Ipv4Addr;
use std::sync::Arc;

impl From<&Table> for pb::Table {
    fn from(table: &Table) -> Self {
        let Table { peers, networks, ports } = table;
        Self {
            generation: 0,
            peers: peers.iter().map(|(node, addr)| (node.to_string(), addr.clone())).collect(),
            networks: networks.values().map(Into::into).collect(),
            ports: ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Table> for Table {
    type Error = Invalid;

    fn try_from(wire: pb::Table) -> Result<Self, Invalid> {
        let networks: Vec<NetworkTable> = each("networks", wire.networks)?;
        let peer = |(node, addr): (String, String)| Ok((parsed("peers", &node)?, addr));
        Ok(Self {
            peers: wire.peers.into_iter().map(peer).collect::<Result<_, _>>()?,
            networks: networks.into_iter().map(|table| (table.network.id, table)).collect(),
            ports: each("ports", wire.ports)?,
        })
    }
}

impl From<&NetworkTable> for pb::NetworkTable {
    fn from(table: &NetworkTable) -> Self {
        let NetworkTable { network, routes, services } = table;
        let route = |(address, route): (&Ipv4Addr, &Route)| pb::Route {
            address: u32::from(*address),
            node: route.node.to_string(),
            service: route.service.map(|service| service.0),
        };
        let (with_vip, without): (Vec<_>, Vec<_>) = services.iter().partition(|entry| entry.vip.is_some());
        Self {
            network: Some(network.as_ref().into()),
            routes: routes.iter().map(route).collect(),
            services: with_vip.into_iter().map(Into::into).collect(),
            without_vip: without.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::NetworkTable> for NetworkTable {
    type Error = Invalid;

    fn try_from(wire: pb::NetworkTable) -> Result<Self, Invalid> {
        let route = |(index, route): (usize, pb::Route)| {
            let node = parsed(&format!("routes[{index}].node"), &route.node)?;
            let service = route.service.map(ServiceId);
            Ok((Ipv4Addr::from(route.address), Route { node, service }))
        };
        let mut services: Vec<ServiceEntry> = each("services", wire.services)?;
        let without: Vec<ServiceEntry> = each("without_vip", wire.without_vip)?;
        services.extend(without.into_iter().map(|entry| ServiceEntry { vip: None, ..entry }));
        services.sort_by_key(|entry| entry.service);
        Ok(Self {
            network: Arc::new(nested("network", wire.network)?),
            routes: wire.routes.into_iter().enumerate().map(route).collect::<Result<_, _>>()?,
            services,
        })
    }
}

impl From<&ServiceEntry> for pb::ServiceEntry {
    fn from(entry: &ServiceEntry) -> Self {
        let ServiceEntry { service, name, vip, client_affinity, backends, draining, allow } = entry;
        Self {
            service: service.to_string(),
            name: name.clone(),
            vip: vip.map_or(0, u32::from),
            client_affinity: *client_affinity,
            backends: backends.iter().map(Into::into).collect(),
            draining: draining.iter().map(|address| u32::from(*address)).collect(),
            allow: allow.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::ServiceEntry> for ServiceEntry {
    type Error = Invalid;

    fn try_from(wire: pb::ServiceEntry) -> Result<Self, Invalid> {
        Ok(Self {
            service: parsed("service", &wire.service)?,
            name: wire.name,
            vip: Some(Ipv4Addr::from(wire.vip)),
            client_affinity: wire.client_affinity,
            backends: each("backends", wire.backends)?,
            draining: wire.draining.into_iter().map(Ipv4Addr::from).collect(),
            allow: each("allow", wire.allow)?,
        })
    }
}

impl From<&Backend> for pb::Backend {
    fn from(backend: &Backend) -> Self {
        let Backend { slot, node, address } = *backend;
        Self {
            // Nodes that are told whole tables want both to be ids, and use neither.
            task: TaskId(0).to_string(),
            network: NetworkId(0).to_string(),
            slot: Some(slot_out(slot)),
            node: node.to_string(),
            address: u32::from(address),
        }
    }
}

impl TryFrom<pb::Backend> for Backend {
    type Error = Invalid;

    fn try_from(wire: pb::Backend) -> Result<Self, Invalid> {
        Ok(Self {
            slot: slot("slot", wire.slot)?,
            node: parsed("node", &wire.node)?,
            address: Ipv4Addr::from(wire.address),
        })
    }
}

impl From<&PublishedPort> for pb::TablePort {
    fn from(published: &PublishedPort) -> Self {
        let PublishedPort {
            published,
            protocol,
            target,
            mode,
            service,
            service_name,
            proxy_protocol,
            client_affinity,
            vni,
            backends,
        } = published;
        Self {
            published: u32::from(*published),
            protocol: pb::Protocol::from(*protocol).into(),
            target: u32::from(*target),
            mode: pb::PortMode::from(*mode).into(),
            service: service.to_string(),
            service_name: service_name.clone(),
            proxy_protocol: *proxy_protocol,
            client_affinity: *client_affinity,
            vni: *vni,
            backends: backends.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::TablePort> for PublishedPort {
    type Error = Invalid;

    fn try_from(wire: pb::TablePort) -> Result<Self, Invalid> {
        Ok(Self {
            published: port("published", wire.published)?,
            protocol: choice::<pb::Protocol, _>("protocol", wire.protocol)?,
            target: port("target", wire.target)?,
            mode: choice::<pb::PortMode, _>("mode", wire.mode)?,
            service: parsed("service", &wire.service)?,
            service_name: wire.service_name,
            proxy_protocol: wire.proxy_protocol,
            client_affinity: wire.client_affinity,
            vni: wire.vni,
            backends: each("backends", wire.backends)?,
        })
    }
}
