//! Who shall have a vote in the consensus group.

use crate::ids::{NodeId, RaftId};
use crate::model::Role;
use crate::state::{Change, State};
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

/// What the first leader of a new incarnation proposes before anything else: that it is alone, and that the seats
/// of the others no longer exist. `None` once that is so.
pub fn start_anew(state: &State, incarnation: u64, node: NodeId, addr: &str) -> Option<Change> {
    let cluster = state.cluster()?;
    (cluster.incarnation < incarnation).then(|| Change::StartAnew { incarnation, node, addr: addr.into() })
}
