//! Tasks that are known to have ended before the managers say so. Their own node has seen it and told its peers; until
//! the next table agrees they get no connections. The managers' word is final: what they go on listing is used again.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::table::{NetworkId, NodeId, Table};

/// The managers have this long to agree that a task has ended.
pub const HOLDS: Duration = Duration::from_secs(10);

/// The ended tasks, by network and address.
#[derive(Debug, Default)]
pub struct Ended(BTreeMap<(NetworkId, Ipv4Addr), Instant>);

impl Ended {
    /// Notes that node `by` says its task at `address` has ended. `false` if it is not that node's to say, or not new.
    pub fn note(
        &mut self,
        table: &Table,
        by: &NodeId,
        (network, address): (NetworkId, Ipv4Addr),
        now: Instant,
    ) -> bool {
        let its_own = table
            .endpoints
            .iter()
            .any(|known| known.network == network && known.address == address && known.node == *by);
        its_own
            && is_used(table, network, address)
            && self.0.insert((network, address), now + HOLDS).is_none()
    }

    /// Forgets what `table` no longer uses, so that the address may be another task's, and what has held too long.
    pub fn prune(&mut self, table: &Table, now: Instant) {
        self.0.retain(|(network, address), until| *until > now && is_used(table, *network, *address));
    }

    /// `table` without connections to what has ended. Packets of connections that exist still find their way.
    pub fn taken_from(&self, mut table: Table) -> Table {
        if self.0.is_empty() {
            return table;
        }
        for service in &mut table.services {
            let lives = |address: &Ipv4Addr| !self.0.contains_key(&(service.network, *address));
            service.backends.retain(lives);
            service.draining.retain(lives);
        }
        for port in &mut table.ports {
            port.backends.retain(|backend| !self.0.contains_key(&(port.network, backend.address)));
        }
        table
    }

    /// When to prune next.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }
}

fn is_used(table: &Table, network: NetworkId, address: Ipv4Addr) -> bool {
    let by_service = table
        .services
        .iter()
        .filter(|service| service.network == network)
        .any(|service| service.backends.contains(&address) || service.draining.contains(&address));
    let mut ports = table.ports.iter().filter(|port| port.network == network);
    by_service || ports.any(|port| port.backends.iter().any(|backend| backend.address == address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Access, Backend, Endpoint, Protocol, PublishedPort, Service};

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 2);
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 3);

    fn net() -> NetworkId {
        NetworkId::new(7).unwrap()
    }

    fn table(backends: &[Ipv4Addr]) -> Table {
        let endpoint = |address, node: &str| Endpoint {
            network: net(),
            address,
            node: NodeId::new(node),
            names: vec![],
            service: None,
        };
        Table {
            endpoints: vec![endpoint(FIRST, "a"), endpoint(SECOND, "b")],
            services: vec![Service {
                network: net(),
                name: "web".into(),
                aliases: vec![],
                vip: Some([10, 50, 0, 100].into()),
                client_affinity: false,
                backends: backends.to_vec(),
                draining: vec![],
                access: Access::Open,
            }],
            ports: vec![PublishedPort {
                port: 80,
                protocol: Protocol::Tcp,
                service: "web".into(),
                network: net(),
                target_port: 80,
                proxy_protocol: false,
                client_affinity: false,
                backends: backends
                    .iter()
                    .map(|address| Backend { node: NodeId::new("a"), address: *address })
                    .collect(),
            }],
            ..Table::default()
        }
    }

    #[test]
    fn an_ended_task_gets_no_connections_until_the_managers_have_spoken() {
        let (now, told) = (Instant::now(), table(&[FIRST, SECOND]));
        let mut ended = Ended::default();
        assert!(ended.note(&told, &NodeId::new("a"), (net(), FIRST), now));
        assert!(!ended.note(&told, &NodeId::new("a"), (net(), FIRST), now), "said once");
        let used = ended.taken_from(told.clone());
        assert_eq!(used.services[0].backends, [SECOND]);
        assert_eq!(used.ports[0].backends.len(), 1);
        assert_eq!(used.endpoints.len(), 2, "open connections may still end in order");

        // A table that knows it too, and then another task of the same address.
        ended.prune(&table(&[SECOND]), now);
        ended.prune(&told, now);
        assert_eq!(ended.taken_from(told.clone()), told);
    }

    #[test]
    fn the_managers_word_is_final() {
        let (now, told) = (Instant::now(), table(&[FIRST]));
        let mut ended = Ended::default();
        ended.note(&told, &NodeId::new("a"), (net(), FIRST), now);
        assert_eq!(ended.next(), Some(now + HOLDS));
        ended.prune(&told, now + HOLDS / 2);
        assert!(ended.taken_from(told.clone()).services[0].backends.is_empty(), "refused, not tried");
        ended.prune(&told, now + HOLDS);
        assert_eq!(ended.taken_from(told.clone()), told);
    }

    #[test]
    fn a_node_speaks_for_its_own_tasks_alone() {
        let told = table(&[FIRST, SECOND]);
        let mut ended = Ended::default();
        assert!(!ended.note(&told, &NodeId::new("a"), (net(), SECOND), Instant::now()));
        assert!(!ended.note(&told, &NodeId::new("a"), (net(), [10, 50, 0, 9].into()), Instant::now()));
        assert_eq!(ended.next(), None);
    }
}
