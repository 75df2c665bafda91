//! Who may connect to whom: the rules of a network and of the services on it, and what they come to.
//!
//! A task takes connections from everybody on its network, unless the network is isolated or its service has an allow
//! list. Then it takes those that an entry of the list speaks of, and no others. Answers need no permission; what is
//! published may be reached by everybody where it is published.

use crate::ids::NetworkId;
use crate::model::{Allow, Network, PortMode, Protocol, Service};

/// Whether tasks on a network take connections only from those whom their service's list allows.
pub fn is_closed(is_isolated: bool, allow: &[Allow]) -> bool {
    is_isolated || !allow.is_empty()
}

/// What the rules come to on one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing says otherwise.
    Open,
    /// This entry of the list says so.
    Allowed(Allow),
    /// The network is isolated, or there is a list, and no entry says so.
    Missing {
        /// The network is isolated.
        isolated: bool,
    },
}

impl Verdict {
    /// Whether it is a yes.
    pub fn is_yes(&self) -> bool {
        !matches!(self, Self::Missing { .. })
    }
}

/// Whether tasks of the service named `from` may connect to a port of the tasks of `to` on a network.
pub fn judge(network: &Network, from: &str, to: &Service, port: u16, protocol: Protocol) -> Verdict {
    let allow = &to.spec.endpoint.allow;
    if !is_closed(network.isolated, allow) {
        return Verdict::Open;
    }
    let entry = allow.iter().find(|entry| entry.from == from && entry.covers(port, protocol));
    entry.map_or(Verdict::Missing { isolated: network.isolated }, |entry| Verdict::Allowed(entry.clone()))
}

/// Whether one service may reach another, and by which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// Networks that both are on, in the order in which the one that asks looks for names: the other's name means its
    /// address on the first of them.
    pub networks: Vec<(NetworkId, Verdict)>,
    /// Ports under which everybody reaches the other on the nodes.
    pub published: Vec<(u16, PortMode)>,
}

impl Ways {
    /// Whether it may be reached by its name.
    pub fn is_yes(&self) -> bool {
        self.networks.first().is_some_and(|(_, verdict)| verdict.is_yes())
    }
}

/// The ways from one service to a port of another. `network` finds networks by id.
pub fn ways<'a>(
    from: &Service,
    to: &Service,
    port: u16,
    protocol: Protocol,
    network: impl Fn(NetworkId) -> Option<&'a Network>,
) -> Ways {
    let common = from.spec.task.networks.iter().filter(|id| to.spec.task.networks.contains(id));
    let judged = common
        .filter_map(|id| network(*id))
        .map(|network| (network.id, judge(network, &from.spec.name, to, port, protocol)));
    let published = to.endpoint.ports.iter().filter(|p| p.target == port && p.protocol == protocol);
    Ways { networks: judged.collect(), published: published.map(|p| (p.published, p.mode)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{NetworkSpec, Request};
    use crate::testing::{Bed, port, spec};
    use std::collections::BTreeMap;

    #[test]
    fn who_may_connect_to_whom_and_why() {
        let mut bed = Bed::new();
        bed.upgrade();
        for (name, isolated) in [("open", false), ("shut", true)] {
            bed.ask(&Request::CreateNetwork(NetworkSpec { isolated, ..NetworkSpec::new(name) }))
                .expect("free");
        }
        let mut service = |name: &str, networks: &[&str], allow: &[&str]| {
            let mut spec = spec(name, 1);
            spec.endpoint.allow = allow.iter().map(|text| text.parse().expect("an entry")).collect();
            spec.endpoint.ports.push(port(None, 80, PortMode::Ingress));
            let networks = networks.iter().map(ToString::to_string).collect();
            bed.ask(&Request::CreateService { spec, networks }).expect("it may");
        };
        service("web", &["open", "shut"], &[]);
        service("mute", &["shut"], &[]);
        service("free", &["open"], &[]);
        service("db", &["open", "shut"], &["web:5432", "mute", "later:53/udp"]);
        service("far", &["default"], &[]);

        let networks: BTreeMap<NetworkId, String> =
            bed.state.networks().map(|network| (network.id, network.name.clone())).collect();
        let told = |from: &str, to: &str, port, protocol| {
            let find = |name: &str| bed.state.service_named(name).expect("it is there").clone();
            let ways = ways(&find(from), &find(to), port, protocol, |id| bed.state.network(id).map(|n| &**n));
            let words: Vec<String> = ways
                .networks
                .iter()
                .map(|(id, verdict)| {
                    let verdict = match verdict {
                        Verdict::Open => "open".to_owned(),
                        Verdict::Allowed(entry) => format!("allows {entry}"),
                        Verdict::Missing { isolated: true } => "isolated".to_owned(),
                        Verdict::Missing { isolated: false } => "not listed".to_owned(),
                    };
                    format!("{}: {verdict}", networks[id])
                })
                .collect();
            (ways.is_yes(), words.join(", "), ways.published.len())
        };
        use Protocol::{Tcp, Udp};
        let table = [
            ("web", "db", 5432, Tcp, true, "open: allows web:5432/tcp, shut: allows web:5432/tcp", 0),
            ("web", "db", 80, Tcp, false, "open: not listed, shut: isolated", 1),
            ("web", "db", 5432, Udp, false, "open: not listed, shut: isolated", 0),
            ("mute", "db", 1, Udp, true, "shut: allows mute", 0),
            ("db", "web", 80, Tcp, true, "open: open, shut: isolated", 1),
            ("db", "mute", 80, Tcp, false, "shut: isolated", 1),
            ("free", "web", 80, Tcp, true, "open: open", 1),
            ("free", "db", 5432, Tcp, false, "open: not listed", 0),
            ("web", "web", 80, Tcp, true, "open: open, shut: isolated", 1),
            ("mute", "mute", 80, Tcp, false, "shut: isolated", 1),
            ("db", "db", 5432, Tcp, false, "open: not listed, shut: isolated", 0),
            ("far", "db", 5432, Tcp, false, "", 0),
        ];
        for (from, to, port, protocol, yes, words, published) in table {
            let expected = (yes, words.to_owned(), published);
            assert_eq!(told(from, to, port, protocol), expected, "{from} to {to}:{port}/{protocol}");
        }
    }
}
