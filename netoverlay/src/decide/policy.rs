//! Who may connect to whom on a network. An address is taken for the service that the table says it belongs to, never
//! for what a packet says of itself: source addresses are genuine, because nobody can send from another's.
//!
//! The kernel judges packets by what is compiled here; the same rules, asked one connection at a time, find out which
//! connections of before are no longer allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use crate::table::{Access, Allow, Endpoint, Network, NetworkId, Protocol, Table};

/// The rules of one network. Without any, everybody may connect to everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Addresses that take connections only from those listed for their service: tasks and virtual addresses.
    pub guarded: BTreeMap<Ipv4Addr, Arc<str>>,
    /// Those of them that are tasks'.
    pub tasks: BTreeSet<Ipv4Addr>,
    /// Who may connect, by the service connected to. Every service of a guarded address is there.
    pub rules: BTreeMap<Arc<str>, BTreeSet<Allow>>,
    /// The tasks of those who may connect to anybody.
    pub members: BTreeMap<Arc<str>, BTreeSet<Ipv4Addr>>,
    /// Tasks of services that are gone, or have left the network: nobody knows any more what they may.
    pub gone: BTreeSet<Ipv4Addr>,
    /// Whether addresses that are nobody's take no connections either.
    pub isolated: bool,
}

/// A connection, as it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Whoever opened it.
    pub source: Ipv4Addr,
    /// The address it was opened to.
    pub destination: Ipv4Addr,
    /// The IP protocol.
    pub protocol: u8,
    /// The port it was opened to; 0 if the protocol has none.
    pub port: u16,
}

/// The number of a protocol in an IP packet.
pub fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

impl Policy {
    /// The rules of a network of the table.
    pub fn new(table: &Table, network: &Network) -> Self {
        let on = |id: NetworkId| id == network.id;
        let services = || table.services.iter().filter(|service| on(service.network));
        let endpoints = || table.endpoints.iter().filter(|endpoint| on(endpoint.network));
        let mut policy = Self { isolated: network.isolated, ..Self::default() };
        let mut listed: BTreeMap<&str, bool> = BTreeMap::new();
        for service in services() {
            let (is_closed, allowed) = match &service.access {
                Access::Open => (network.isolated, &[][..]),
                Access::Only(allowed) => (true, &allowed[..]),
            };
            listed.insert(&service.name, is_closed);
            if is_closed {
                let name: Arc<str> = service.name.as_str().into();
                policy.guarded.extend(service.vip.map(|vip| (vip, name.clone())));
                policy.rules.insert(name, allowed.iter().cloned().collect());
            }
        }
        let closed = |endpoint: &Endpoint| match &endpoint.service {
            None => network.isolated,
            // Of one that is gone, or has left the network, nobody knows any more who may.
            Some(service) => listed.get(&**service).copied().unwrap_or(true),
        };
        let is_gone = |service: &Arc<str>| !listed.contains_key(&**service);
        let gone = endpoints().filter(|endpoint| endpoint.service.as_ref().is_some_and(is_gone));
        policy.gone = gone.map(|endpoint| endpoint.address).collect();
        for endpoint in endpoints().filter(|endpoint| closed(endpoint)) {
            let service = endpoint.service.clone().unwrap_or_default();
            policy.rules.entry(service.clone()).or_default();
            policy.guarded.insert(endpoint.address, service);
            policy.tasks.insert(endpoint.address);
        }
        let named: BTreeSet<Arc<str>> =
            policy.rules.values().flatten().map(|allow| allow.service.clone()).collect();
        for endpoint in endpoints() {
            if let Some(name) = endpoint.service.as_ref().filter(|name| named.contains(*name)) {
                policy.members.entry(name.clone()).or_default().insert(endpoint.address);
            }
        }
        policy
    }

    /// Whether there is nothing to enforce.
    pub fn is_empty(&self) -> bool {
        !self.isolated && self.guarded.is_empty()
    }

    /// Whether a task may open this connection to an address of the network.
    pub fn allows(&self, opening: Opening) -> bool {
        let Some(service) = self.guarded.get(&opening.destination) else { return !self.isolated };
        let is_meant = |allow: &Allow| {
            let port = allow.port.map(|(protocol, port)| (number(protocol), port));
            self.members.get(&allow.service).is_some_and(|members| members.contains(&opening.source))
                && port.is_none_or(|port| port == (opening.protocol, opening.port))
        };
        self.rules.get(service).is_some_and(|rules| rules.iter().any(is_meant))
    }

    /// Whether a connection of before is to end because it is no longer allowed. One of a task that is leaving goes on:
    /// nothing was said about it.
    pub fn ends(&self, opening: Opening) -> bool {
        let leaves = |address: &Ipv4Addr| self.gone.contains(address);
        self.guarded.contains_key(&opening.destination)
            && !leaves(&opening.destination)
            && !leaves(&opening.source)
            && !self.allows(opening)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{NodeId, Service};

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const ICMP: u8 = 1;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 50, 0, last)
    }

    fn net() -> NetworkId {
        NetworkId::new(9).unwrap()
    }

    fn service(name: &str, vip: u8, access: Access) -> Service {
        Service {
            network: net(),
            name: name.into(),
            aliases: vec![],
            vip: Some(ip(vip)),
            client_affinity: false,
            backends: vec![],
            draining: vec![],
            access,
        }
    }

    fn only(rules: &[(&str, Option<(Protocol, u16)>)]) -> Access {
        Access::Only(
            rules.iter().map(|(name, port)| Allow { service: (*name).into(), port: *port }).collect(),
        )
    }

    /// web has .10 and .11, db .20, cache .30, a service that is gone .40, and of .50 nobody knows whose it is.
    fn policy(isolated: bool) -> Policy {
        let network = Network {
            id: net(),
            subnet: ip(0),
            prefix: 24,
            gateway: ip(1),
            mtu: 1400,
            internal: false,
            isolated,
        };
        let task = |last, service: Option<&str>| Endpoint {
            network: net(),
            address: ip(last),
            node: NodeId::new("a"),
            names: vec![],
            service: service.map(Into::into),
        };
        let db = only(&[("web", Some((Protocol::Tcp, 5432))), ("cache", None), ("nobody", None)]);
        let table = Table {
            endpoints: vec![
                task(10, Some("web")),
                task(11, Some("web")),
                task(20, Some("db")),
                task(30, Some("cache")),
                task(40, Some("gone")),
                task(50, None),
            ],
            services: vec![
                service("web", 100, Access::Open),
                service("db", 101, db),
                service("cache", 102, only(&[])),
            ],
            ..Table::default()
        };
        Policy::new(&table, &network)
    }

    #[test]
    fn who_may_connect_to_whom() {
        // From, to, protocol, port; on a network where everybody may unless a service says otherwise, and on an isolated one.
        let table = [
            (10, 20, TCP, 5432, true, true),
            (11, 101, TCP, 5432, true, true),
            (10, 20, TCP, 80, false, false),
            (10, 20, UDP, 5432, false, false),
            (10, 20, ICMP, 0, false, false),
            (30, 20, TCP, 80, true, true),
            (30, 101, ICMP, 0, true, true),
            (20, 20, TCP, 5432, false, false),
            (50, 20, TCP, 5432, false, false),
            (40, 20, TCP, 5432, false, false),
            (20, 10, TCP, 80, true, false),
            (20, 100, TCP, 80, true, false),
            (10, 11, TCP, 80, true, false),
            (10, 30, TCP, 80, false, false),
            (20, 102, TCP, 80, false, false),
            (10, 40, TCP, 80, false, false),
            (10, 50, TCP, 80, true, false),
            (10, 99, TCP, 80, true, false),
        ];
        let (open, isolated) = (policy(false), policy(true));
        for (from, to, protocol, port, on_open, on_isolated) in table {
            let opening = Opening { source: ip(from), destination: ip(to), protocol, port };
            assert_eq!(open.allows(opening), on_open, "{opening:?}");
            assert_eq!(isolated.allows(opening), on_isolated, "{opening:?} on an isolated network");
        }
    }

    #[test]
    fn what_is_open_ends_when_it_is_no_longer_allowed_but_not_because_a_task_is_leaving() {
        // web has lost its port, gone is being stopped, .99 has ended.
        let table = [
            (10, 20, 80, true),
            (10, 20, 5432, false),
            (10, 101, 80, true),
            (20, 30, 80, true),
            (40, 20, 5432, false),
            (10, 40, 80, false),
            (10, 99, 80, false),
        ];
        for (from, to, port, ends) in table {
            let opening = Opening { source: ip(from), destination: ip(to), protocol: TCP, port };
            for isolated in [false, true] {
                assert_eq!(policy(isolated).ends(opening), ends, "{opening:?}, isolated: {isolated}");
            }
        }
    }

    #[test]
    fn without_rules_there_is_nothing_to_enforce() {
        assert!(!policy(false).is_empty() && !policy(true).is_empty());
        assert!(Policy::default().is_empty());
        let (policy, anybody) = (Policy::default(), ip(7));
        assert!(policy.allows(Opening { source: anybody, destination: anybody, protocol: 1, port: 0 }));
    }
}
