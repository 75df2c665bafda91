//! A lab as it is now, for people and for programs.

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::{
    Lab,
    machine::clock_of,
    process::Process,
    record::{Cut, NodeRecord, Record, Subnet, Worse},
    standstill,
    talk::order,
    vm::Backend,
};

/// A lab as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub directory: PathBuf,
    /// Whether its switch runs. It does not after a reboot of this machine, until a node is started.
    pub switch: bool,
    /// The network of its nodes, once chosen.
    pub network: Option<String>,
    /// This machine's end of the cable to its switch, once there is one.
    pub link: Option<String>,
    /// What its nodes are.
    pub backend: Backend,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Links that pass nothing.
    pub cuts: Vec<Cut>,
    /// Links that pass less than they should.
    pub links: Vec<Worse>,
}

/// A node as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its address, once chosen.
    pub address: Option<Ipv4Addr>,
    /// Whether it joins as a manager.
    pub manager: bool,
    /// `on`, `off` or `paused`.
    pub power: Power,
    /// What its daemon does: `running PID` as seen in the node, `exited CODE`, and so on; `-` when off.
    pub daemon: String,
    /// How many processes it has, containers included.
    pub processes: usize,
    /// How often it was switched on.
    pub boots: u32,
    /// By how many milliseconds its clock is ahead of this machine's.
    pub clock_ms: i64,
}

/// Whether a node has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It runs.
    On,
    /// It was switched off, or died.
    Off,
    /// Its processes stand still.
    Paused,
}

impl std::fmt::Display for Power {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Paused => "paused",
        })
    }
}

impl Lab {
    /// How it is now.
    pub fn status(&self) -> Result<Status> {
        let record = self.record()?;
        let nodes = record.nodes.iter().map(|node| self.node_status(&record, node)).collect();
        Ok(Status {
            name: record.name,
            directory: self.directory.clone(),
            switch: record.switch.is_some_and(Process::is_alive),
            network: record.subnet.map(|subnet| subnet.to_string()),
            link: record.subnet.map(Subnet::host_link),
            backend: record.backend,
            nodes,
            cuts: record.cuts.into_iter().collect(),
            links: record.links,
        })
    }

    fn node_status(&self, record: &Record, node: &NodeRecord) -> NodeStatus {
        let groups = self.groups().node(&node.name);
        let power = match node.init.filter(|init| init.is_alive()) {
            None => Power::Off,
            Some(init) if self.is_paused(record.backend, node, init) => Power::Paused,
            Some(_) => Power::On,
        };
        let processes = match (power, node.init) {
            (Power::Off, _) | (_, None) => 0,
            (_, Some(init)) if !groups.exist() => standstill::members(init).len(),
            _ => groups.processes().len(),
        };
        let daemon = match (power, node.init) {
            (Power::On, Some(init)) => order(init, "status").unwrap_or_else(|_| "unknown".to_string()),
            _ => "-".to_string(),
        };
        NodeStatus {
            name: node.name.clone(),
            address: record.subnet.map(|subnet| subnet.node(node.number)),
            manager: node.manager,
            power,
            daemon,
            processes,
            boots: node.boots,
            clock_ms: clock_of(&self.directory.join(&node.name)),
        }
    }

    /// All processes of its nodes, containers' included, as this machine numbers them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let record = self.record()?;
        let inits = record.nodes.iter().filter_map(|node| node.init);
        Ok(inits.flat_map(standstill::members).map(|process| process.pid).collect())
    }

    /// All processes of one node, as this machine numbers them; none if it is off.
    pub fn processes_of(&self, name: &str) -> Result<Vec<i32>> {
        let init = self.record()?.node(name)?.init;
        Ok(init.into_iter().flat_map(standstill::members).map(|process| process.pid).collect())
    }

    /// Whether a node that has power stands still.
    pub(super) fn is_paused(&self, backend: Backend, node: &NodeRecord, init: Process) -> bool {
        if backend.is_vm() {
            return order(init, "power").is_ok_and(|power| power == "paused");
        }
        let groups = self.groups().node(&node.name);
        if groups.exist() { groups.is_frozen() } else { standstill::is_stopped(init) }
    }
}
