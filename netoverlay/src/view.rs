//! What the running parts of the overlay look at: the table in force, and whom this node suspects.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    decide::names::Names,
    table::{NodeId, Protocol, PublishedPort, Table},
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
}

impl View {
    /// A view of `table`, suspecting nobody.
    pub fn new(table: Table) -> Self {
        Self { names: Arc::new(Names::new(&table)), table: Arc::new(table), suspects: Arc::default() }
    }

    /// The published port of that number.
    pub fn port(&self, protocol: Protocol, port: u16) -> Option<&PublishedPort> {
        self.table.ports.iter().find(|published| published.protocol == protocol && published.port == port)
    }
}
