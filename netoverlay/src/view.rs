//! What the running parts of the overlay look at: the table in force, and whom this node suspects.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use crate::{
    decide::names::Names,
    table::{NetworkId, NodeId, Protocol, PublishedPort, Table},
};

/// One moment's knowledge. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The table in force.
    pub table: Arc<Table>,
    /// Its names.
    pub names: Arc<Names>,
    /// Nodes that do not answer.
    pub suspects: Arc<BTreeSet<NodeId>>,
    /// Where each address is among the table's endpoints.
    places: Arc<HashMap<(NetworkId, Ipv4Addr), usize>>,
}

impl View {
    /// A view of `table`, suspecting nobody.
    pub fn new(table: Table) -> Self {
        let place = |(place, endpoint): (usize, &crate::table::Endpoint)| {
            ((endpoint.network, endpoint.address), place)
        };
        Self {
            names: Arc::new(Names::new(&table)),
            places: Arc::new(table.endpoints.iter().enumerate().map(place).collect()),
            table: Arc::new(table),
            suspects: Arc::default(),
        }
    }

    /// The same, suspecting these.
    #[must_use]
    pub fn suspecting(self, suspects: BTreeSet<NodeId>) -> Self {
        Self { suspects: Arc::new(suspects), ..self }
    }

    /// The published port of that number.
    pub fn port(&self, protocol: Protocol, port: u16) -> Option<&PublishedPort> {
        self.table.ports.iter().find(|published| published.protocol == protocol && published.port == port)
    }

    /// The node that has `address`.
    pub fn node_of(&self, network: NetworkId, address: Ipv4Addr) -> Option<&NodeId> {
        let place = self.places.get(&(network, address))?;
        self.table.endpoints.get(*place).map(|endpoint| &endpoint.node)
    }
}
