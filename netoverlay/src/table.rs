//! What the overlay is told: every node, network, endpoint, service and published port, as one value with a
//! generation number. Only what is listed here is routable; what the overlay itself suspects is not part of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// The name of a node, as its certificate proves it. Cheap to clone; ordered, because the lower id dials.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Wraps the printable id of a node.
    pub fn new(id: impl AsRef<str>) -> Self {
        Self(Arc::from(id.as_ref()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of an overlay network, 24 bits wide because that is what a packet's header carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(u32);

impl NetworkId {
    /// The largest number a packet can carry.
    pub const MAX: u32 = 0x00ff_ffff;

    /// `None` if `number` needs more than 24 bits.
    pub fn new(number: u32) -> Option<Self> {
        (number <= Self::MAX).then_some(Self(number))
    }

    /// The number, at most [`NetworkId::MAX`].
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node and where its overlay socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Address and UDP port of its overlay.
    pub underlay: SocketAddr,
}

/// One overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its number.
    pub id: NetworkId,
    /// First address of the subnet.
    pub subnet: Ipv4Addr,
    /// Length of the subnet's prefix in bits, at most 32.
    pub prefix: u8,
    /// The address each node's end of the network answers to: gateway and name server.
    pub gateway: Ipv4Addr,
    /// Largest packet inside the network, in bytes.
    pub mtu: u16,
    /// Whether its containers are cut off from everything outside of their networks.
    pub internal: bool,
    /// Whether its tasks take connections only from where their services say so.
    pub isolated: bool,
}

impl Network {
    /// Whether `address` lies in the subnet.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        u32::from(address) & mask == u32::from(self.subnet) & mask
    }
}

/// The address of one task in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The network.
    pub network: NetworkId,
    /// The task's address.
    pub address: Ipv4Addr,
    /// The node it runs on.
    pub node: NodeId,
    /// Names that mean this task alone: `web.1`, its host name, its container's name.
    pub names: Vec<String>,
    /// What it is a task of; `None` if that is not known. Of a service that the network does not list it takes no new
    /// connections.
    pub service: Option<Arc<str>>,
}

/// A service in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The network.
    pub network: NetworkId,
    /// Its name.
    pub name: String,
    /// Further names of it in this network.
    pub aliases: Vec<String>,
    /// Its virtual address; `None` for a service whose name means its tasks' addresses.
    pub vip: Option<Ipv4Addr>,
    /// Whether a client's connections to that go to the same task as long as it takes any.
    pub client_affinity: bool,
    /// Addresses of the tasks that take new connections now.
    pub backends: Vec<Ipv4Addr>,
    /// Addresses of the tasks that keep the TCP connections they have, and take no new ones.
    pub draining: Vec<Ipv4Addr>,
    /// Who may connect to its tasks.
    pub access: Access,
}

/// Who may connect to the tasks of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Access {
    /// Every task of the network.
    #[default]
    Open,
    /// Those, and nobody else.
    Only(Vec<Allow>),
}

/// Somebody who may connect.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// The service whose tasks may.
    pub service: Arc<str>,
    /// To this port alone; else to all ports, by all protocols.
    pub port: Option<(Protocol, u16)>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A task behind a published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The node it runs on.
    pub node: NodeId,
    /// Its address in the port's network.
    pub address: Ipv4Addr,
}

/// A port every node answers on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// The port on each node.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The service it belongs to, for messages.
    pub service: String,
    /// The network through which the tasks are reached.
    pub network: NetworkId,
    /// The port inside the tasks.
    pub target_port: u16,
    /// Whether a connection begins with a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// Whether each client's connections go to one task.
    pub client_affinity: bool,
    /// The tasks that take new connections now.
    pub backends: Vec<Backend>,
}

/// Everything the overlay is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Grows with every change; an older table than the current one is refused.
    pub generation: u64,
    /// All nodes of the cluster, this one among them.
    pub nodes: Vec<Node>,
    /// The networks this node needs.
    pub networks: Vec<Network>,
    /// All endpoints in them.
    pub endpoints: Vec<Endpoint>,
    /// All services in them.
    pub services: Vec<Service>,
    /// All published ports.
    pub ports: Vec<PublishedPort>,
}

/// Why a table was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    /// Two entries claim the same thing.
    #[error("the overlay's table lists {what} twice; list it once")]
    Twice {
        /// The thing, named.
        what: String,
    },
    /// An entry points to nothing.
    #[error("the overlay's table names {what}, but does not list it")]
    Missing {
        /// The thing, named.
        what: String,
    },
    /// An address outside of its network's subnet.
    #[error("address {address} lies outside of network {network}")]
    Outside {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        network: NetworkId,
    },
    /// A table older than the one in force.
    #[error("table {given} is older than table {current}, which is in force")]
    Stale {
        /// Its generation.
        given: u64,
        /// The generation in force.
        current: u64,
    },
}

impl Table {
    /// Checks that every entry points to a listed one, that no address has two owners, and that addresses lie in
    /// their network.
    pub fn check(&self) -> Result<(), Invalid> {
        let twice = |fresh: bool, what: &dyn Fn() -> String| {
            if fresh { Ok(()) } else { Err(Invalid::Twice { what: what() }) }
        };
        let mut nodes = BTreeSet::new();
        for node in &self.nodes {
            twice(nodes.insert(&node.id), &|| format!("node {}", node.id))?;
        }
        let mut networks = BTreeMap::new();
        for network in &self.networks {
            twice(networks.insert(network.id, network).is_none(), &|| format!("network {}", network.id))?;
        }
        let place = |network: NetworkId, address: Ipv4Addr| match networks.get(&network) {
            None => Err(Invalid::Missing { what: format!("network {network}") }),
            Some(found) if !found.contains(address) => Err(Invalid::Outside { address, network }),
            Some(_) => Ok(()),
        };
        let mut addresses = BTreeSet::new();
        for network in &self.networks {
            place(network.id, network.gateway)?;
            addresses.insert((network.id, network.gateway));
        }
        for endpoint in &self.endpoints {
            place(endpoint.network, endpoint.address)?;
            if !nodes.contains(&endpoint.node) {
                return Err(Invalid::Missing { what: format!("node {}", endpoint.node) });
            }
            twice(addresses.insert((endpoint.network, endpoint.address)), &|| {
                format!("address {} of network {}", endpoint.address, endpoint.network)
            })?;
        }
        for service in &self.services {
            if let Some(vip) = service.vip {
                place(service.network, vip)?;
                twice(addresses.insert((service.network, vip)), &|| {
                    format!("address {vip} of network {}", service.network)
                })?;
            }
        }
        let mut ports = BTreeSet::new();
        for port in &self.ports {
            twice(ports.insert((port.protocol, port.port)), &|| {
                format!("port {}/{}", port.port, port.protocol)
            })?;
        }
        Ok(())
    }

    /// The network of that number.
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.iter().find(|network| network.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net() -> NetworkId {
        NetworkId::new(7).expect("seven fits")
    }

    fn table() -> Table {
        Table {
            generation: 1,
            nodes: vec![Node { id: NodeId::new("a"), underlay: "10.0.0.1:2377".parse().unwrap() }],
            networks: vec![Network {
                id: net(),
                subnet: [10, 50, 0, 0].into(),
                prefix: 24,
                gateway: [10, 50, 0, 1].into(),
                mtu: 1400,
                internal: false,
                isolated: false,
            }],
            endpoints: vec![Endpoint {
                network: net(),
                address: [10, 50, 0, 2].into(),
                node: NodeId::new("a"),
                names: vec![],
                service: None,
            }],
            ..Table::default()
        }
    }

    #[test]
    fn a_sound_table_passes() {
        assert_eq!(table().check(), Ok(()));
    }

    #[test]
    fn an_address_has_one_owner() {
        let mut table = table();
        table.endpoints.push(table.endpoints[0].clone());
        assert!(matches!(table.check(), Err(Invalid::Twice { .. })));
        table.endpoints.pop();
        table.endpoints[0].address = [10, 50, 0, 1].into();
        assert!(matches!(table.check(), Err(Invalid::Twice { .. })), "the gateway's address is taken");
    }

    #[test]
    fn an_address_outside_its_network_is_refused() {
        let mut table = table();
        table.endpoints[0].address = [10, 51, 0, 2].into();
        assert!(matches!(table.check(), Err(Invalid::Outside { .. })));
    }

    #[test]
    fn an_endpoint_on_an_unknown_node_is_refused() {
        let mut table = table();
        table.endpoints[0].node = NodeId::new("b");
        assert!(matches!(table.check(), Err(Invalid::Missing { .. })));
    }

    #[test]
    fn network_numbers_have_24_bits() {
        assert!(NetworkId::new(0x00ff_ffff).is_some());
        assert!(NetworkId::new(0x0100_0000).is_none());
    }
}
