//! Who shall have a vote in the consensus group.

use crate::ids::{NodeId, RaftId};
use crate::model::Role;
use crate::state::State;
use std::collections::BTreeMap;

/// One seat that shall exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The machine that has it.
    pub node: NodeId,
    /// Where it is reached, `ip:port`.
    pub addr: String,
}

/// The seats that shall exist. The leader compares them with those that do, and adds and removes one at a
/// time; a manager that was demoted or removed no longer stands here.
pub fn raft_membership(state: &State) -> BTreeMap<RaftId, Seat> {
    state
        .nodes()
        .filter(|node| node.role == Role::Manager)
        .filter_map(|node| Some((node.raft?, Seat { node: node.id, addr: node.addr.clone() })))
        .collect()
}
