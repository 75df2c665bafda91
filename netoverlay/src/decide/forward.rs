//! Where a packet goes. Outgoing: to the node that owns its destination. Incoming: up, if its source belongs to the
//! node that sent it and its destination lives here. Everything else is dropped, with a reason that is counted.

use std::{
    collections::BTreeSet,
    fmt,
    net::{Ipv4Addr, SocketAddr},
};

use super::{fast::FastMap, former::Former};
use crate::table::{NetworkId, NodeId, Table};

/// Position of a peer in [`Routes::peers`]; valid for that table only.
pub type Slot = u32;

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Local,
    Peer(Slot),
}

#[derive(Debug, Clone)]
struct Net {
    gateway: Ipv4Addr,
    owners: FastMap<Ipv4Addr, Owner>,
    /// The peers that run a task on it.
    members: BTreeSet<Slot>,
}

impl Net {
    fn new(gateway: Ipv4Addr) -> Self {
        Self { gateway, owners: FastMap::default(), members: BTreeSet::new() }
    }
}

/// A table, compiled for looking up packets.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// All nodes but this one, sorted by id.
    pub peers: Vec<(NodeId, SocketAddr)>,
    nets: FastMap<NetworkId, Net>,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Reason {
    /// Not a whole IPv4 packet.
    Malformed,
    /// A network this node has not been told of.
    UnknownNetwork,
    /// A destination nobody has.
    NoRoute,
    /// A packet from this node whose source is not one of its own endpoints.
    ForeignSource,
    /// A packet from a peer whose source is not one of that peer's endpoints.
    Spoofed,
    /// A packet from a peer for an address that is not here.
    NotHere,
    /// Too many packets wait for a peer that is not connected or does not answer.
    PeerDown,
    /// A sealed packet that is not genuine, has come before, or is sealed with a key of before a restart.
    Forged,
    /// Larger than what the path to the peer carries.
    TooBig,
    /// The device did not take it.
    Device,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::UnknownNetwork,
        Self::NoRoute,
        Self::ForeignSource,
        Self::Spoofed,
        Self::NotHere,
        Self::PeerDown,
        Self::Forged,
        Self::TooBig,
        Self::Device,
    ];
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::UnknownNetwork => "unknown network",
            Self::NoRoute => "no route",
            Self::ForeignSource => "foreign source",
            Self::Spoofed => "spoofed source",
            Self::NotHere => "not here",
            Self::PeerDown => "peer down",
            Self::Forged => "not genuine",
            Self::TooBig => "too big",
            Self::Device => "device",
        })
    }
}

impl Routes {
    /// Compiles `table` as `own` sees it.
    pub fn new(table: &Table, own: &NodeId) -> Self {
        let mut peers: Vec<_> = table
            .nodes
            .iter()
            .filter(|node| node.id != *own)
            .map(|node| (node.id.clone(), node.underlay))
            .collect();
        peers.sort();
        let nets = table.networks.iter().map(|network| (network.id, Net::new(network.gateway))).collect();
        let mut routes = Self { peers, nets };
        for endpoint in &table.endpoints {
            let owner = routes.owner(&endpoint.node, own);
            if let (Some(owner), Some(net)) = (owner, routes.nets.get_mut(&endpoint.network)) {
                net.owners.insert(endpoint.address, owner);
                if let Owner::Peer(slot) = owner {
                    net.members.insert(slot);
                }
            }
        }
        routes
    }

    /// Adds addresses that no table lists any more. Who has one now keeps it.
    pub fn linger(&mut self, former: &Former, own: &NodeId) {
        for (network, address, was) in former.places() {
            let Some(owner) = self.owner(&was.node, own) else { continue };
            let net = self.nets.entry(network).or_insert_with(|| Net::new(was.gateway));
            net.owners.entry(address).or_insert(owner);
        }
    }

    fn owner(&self, node: &NodeId, own: &NodeId) -> Option<Owner> {
        if node == own {
            return Some(Owner::Local);
        }
        let found = self.peers.binary_search_by(|(peer, _)| peer.cmp(node)).ok()?;
        Slot::try_from(found).ok().map(Owner::Peer)
    }

    /// The gateway of `network`.
    pub fn gateway(&self, network: NetworkId) -> Option<Ipv4Addr> {
        self.nets.get(&network).map(|net| net.gateway)
    }

    /// The peer an outgoing packet goes to: `head` and `payload` more bytes, at least the headers in `head`.
    pub fn outgoing(&self, network: NetworkId, head: &[u8], payload: usize) -> Result<Slot, Reason> {
        let (source, destination) = addresses(head, payload)?;
        let net = self.nets.get(&network).ok_or(Reason::UnknownNetwork)?;
        let from_here =
            net.owners.get(&source) == Some(&Owner::Local) || source == net.gateway && is_icmp_error(head);
        if !from_here {
            return Err(Reason::ForeignSource);
        }
        match net.owners.get(&destination) {
            Some(Owner::Peer(slot)) => Ok(*slot),
            Some(Owner::Local) | None => Err(Reason::NoRoute),
        }
    }

    /// Whether a packet from `peer` may enter `network` here.
    ///
    /// The gateway's address is the same on all nodes, so a peer with a task on the network may use it, but only to
    /// report errors.
    pub fn incoming(&self, network: NetworkId, peer: Slot, packet: &[u8]) -> Result<(), Reason> {
        let (source, destination) = addresses(packet, 0)?;
        let net = self.nets.get(&network).ok_or(Reason::UnknownNetwork)?;
        let genuine = net.owners.get(&source) == Some(&Owner::Peer(peer))
            || source == net.gateway && net.members.contains(&peer) && is_icmp_error(packet);
        if !genuine {
            return Err(Reason::Spoofed);
        }
        if net.owners.get(&destination) != Some(&Owner::Local) {
            return Err(Reason::NotHere);
        }
        Ok(())
    }
}

fn addresses(packet: &[u8], rest: usize) -> Result<(Ipv4Addr, Ipv4Addr), Reason> {
    let header: &[u8; 20] = packet.first_chunk().ok_or(Reason::Malformed)?;
    let header_length = usize::from(header[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_length < 20 || length < header_length || length != packet.len() + rest {
        return Err(Reason::Malformed);
    }
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Ok((address(12), address(16)))
}

fn is_icmp_error(packet: &[u8]) -> bool {
    let header_length = usize::from(packet[0] & 15) * 4;
    let first_fragment = packet[6] & 0x1f == 0 && packet[7] == 0;
    packet[9] == 1 && first_fragment && matches!(packet.get(header_length), Some(3 | 11 | 12))
}
