//! Addresses that tasks have just given up. What such a task has said last may still be on its way, or be said once more
//! because it got lost: for a moment its packets are carried on, although no table lists it any more. Where connections
//! go is not decided here: new ones it does not get.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::table::{Endpoint, NetworkId, NodeId, Table};

/// How long: several times what a kernel waits before it sends again what nobody has acknowledged.
pub const LINGERS: Duration = Duration::from_secs(2);

/// An address in its network.
type Place = (NetworkId, Ipv4Addr);

/// Whose an address was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The node its task ran on.
    pub node: NodeId,
    /// The gateway of its network, of which this node may no longer be told.
    pub gateway: Ipv4Addr,
}

/// The addresses of the latest table, and those that have left it.
#[derive(Debug, Default)]
pub struct Former {
    known: BTreeMap<Place, Owner>,
    left: BTreeMap<Place, (Owner, Instant)>,
}

impl Former {
    /// Takes in the latest table. An address that has another task now, and a node that is gone, do not linger.
    pub fn see(&mut self, table: &Table, now: Instant) {
        let gateways: BTreeMap<NetworkId, Ipv4Addr> =
            table.networks.iter().map(|network| (network.id, network.gateway)).collect();
        let owned = |endpoint: &Endpoint| {
            let gateway = *gateways.get(&endpoint.network)?;
            let owner = Owner { node: endpoint.node.clone(), gateway };
            Some(((endpoint.network, endpoint.address), owner))
        };
        let before = std::mem::replace(&mut self.known, table.endpoints.iter().filter_map(owned).collect());
        let left = before.into_iter().filter(|(place, _)| !self.known.contains_key(place));
        self.left.extend(left.map(|(place, owner)| (place, (owner, now + LINGERS))));
        let nodes: BTreeSet<&NodeId> = table.nodes.iter().map(|node| &node.id).collect();
        let known = &self.known;
        self.left.retain(|place, (owner, until)| {
            *until > now && !known.contains_key(place) && nodes.contains(&owner.node)
        });
    }

    /// Forgets those that have lingered long enough; `false` if there are none.
    pub fn prune(&mut self, now: Instant) -> bool {
        let before = self.left.len();
        self.left.retain(|_, (_, until)| *until > now);
        self.left.len() < before
    }

    /// Those that linger, and whose they were.
    pub fn places(&self) -> impl Iterator<Item = (NetworkId, Ipv4Addr, &Owner)> {
        self.left.iter().map(|((network, address), (owner, _))| (*network, *address, owner))
    }

    /// When to prune next.
    pub fn next(&self) -> Option<Instant> {
        self.left.values().map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Network, Node};

    fn net() -> NetworkId {
        NetworkId::new(7).unwrap()
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name)
    }

    /// Tasks by the last number of their addresses, and the nodes they run on, which are listed.
    fn table(tasks: &[(u8, &str)], nodes: &[&str]) -> Table {
        let endpoint = |(number, on): &(u8, &str)| Endpoint {
            network: net(),
            address: address(*number),
            node: node(on),
            names: Vec::new(),
            service: None,
        };
        let listed = |name: &&str| Node { id: node(name), underlay: ([10, 0, 0, 1], 1).into() };
        let network = Network {
            id: net(),
            subnet: address(0),
            prefix: 24,
            gateway: address(1),
            mtu: 1400,
            internal: false,
            isolated: false,
        };
        Table {
            networks: vec![network],
            endpoints: tasks.iter().map(endpoint).collect(),
            nodes: nodes.iter().map(listed).collect(),
            ..Table::default()
        }
    }

    fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 50, 0, number)
    }

    fn lingering(former: &Former) -> Vec<(u8, String)> {
        former.places().map(|(_, address, owner)| (address.octets()[3], owner.node.to_string())).collect()
    }

    #[test]
    fn who_leaves_lingers_for_a_moment_on_its_node() {
        let (mut former, now) = (Former::default(), Instant::now());
        former.see(&table(&[(2, "a"), (3, "b")], &["a", "b"]), now);
        assert!(lingering(&former).is_empty());
        former.see(&table(&[(3, "b")], &["a", "b"]), now);
        assert_eq!(lingering(&former), [(2, "a".to_owned())]);
        // Another table does not prolong it.
        former.see(&table(&[(3, "b")], &["a", "b"]), now + LINGERS / 2);
        assert_eq!(former.next(), Some(now + LINGERS));
        assert!(!former.prune(now + LINGERS / 2));
        assert!(former.prune(now + LINGERS));
        assert!(lingering(&former).is_empty() && former.next().is_none());
    }

    #[test]
    fn an_address_that_is_used_again_and_a_node_that_is_gone_do_not_linger() {
        let (mut former, now) = (Former::default(), Instant::now());
        former.see(&table(&[(2, "a"), (3, "b")], &["a", "b"]), now);
        former.see(&table(&[], &["a"]), now);
        assert_eq!(lingering(&former), [(2, "a".to_owned())], "b is gone");
        former.see(&table(&[(2, "c")], &["a", "c"]), now);
        assert!(lingering(&former).is_empty(), "it is c's now");
    }

    #[test]
    fn a_network_that_is_no_longer_told_of_lingers_whole() {
        let (mut former, now) = (Former::default(), Instant::now());
        former.see(&table(&[(2, "a"), (3, "b")], &["a", "b"]), now);
        former.see(&Table { networks: vec![], ..table(&[], &["a", "b"]) }, now);
        assert_eq!(lingering(&former), [(2, "a".to_owned()), (3, "b".to_owned())]);
        assert!(former.places().all(|(_, _, owner)| owner.gateway == address(1)));
    }
}
