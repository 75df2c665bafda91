//! Who the managers are, as every node is told, and what each node should be among them.

use super::cluster::Cluster;
use crate::member::believed;
use rswarm_control::model::{Node, Role};
use rswarm_control::state::State;
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Who the managers are. The same for all nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Roster {
    managers: Vec<pb::Manager>,
    /// The seats of those who vote, by node.
    voters: BTreeMap<String, u64>,
    leader: String,
    incarnation: u64,
}

impl Roster {
    /// As of now.
    pub fn of(cluster: &Cluster) -> Self {
        let (state, status) = (cluster.state(), cluster.log().status());
        Self {
            managers: state
                .nodes()
                .filter(|node| node.role == Role::Manager && node.raft.is_some())
                .map(|node| pb::Manager {
                    node_id: node.id.to_string(),
                    addr: node.addr.clone(),
                    raft_id: node.raft.map_or(0, |seat| seat.0),
                })
                .collect(),
            voters: status.voters.iter().map(|voter| (voter.node.clone(), voter.id.0)).collect(),
            leader: believed(&status).map(|leader| leader.node).unwrap_or_default(),
            incarnation: status.incarnation.0,
        }
    }

    /// What a node is told. Whoever has a vote keeps its seat until the vote is taken away: the others count on it, and
    /// without it they might have no majority to take it away with.
    pub fn told_to(&self, name: &str, node: Option<&Node>) -> pb::ManagerList {
        let (role, seat) = match self.voters.get(name) {
            Some(seat) => (Role::Manager, *seat),
            None => {
                let seat = node.and_then(|node| node.raft).map_or(0, |seat| seat.0);
                (node.map_or(Role::Worker, |node| node.role), seat)
            }
        };
        pb::ManagerList {
            managers: self.managers.clone(),
            role: pb::Role::from(role).into(),
            raft_id: seat,
            leader_id: self.leader.clone(),
            incarnation: self.incarnation,
        }
    }
}

/// Keeps it up to date, for as long as it is polled.
pub async fn keep(cluster: Cluster, roster: watch::Sender<Arc<Roster>>) {
    let (mut status, mut index) = (cluster.log().watch(), cluster.view().watch());
    let mut before: Option<Arc<State>> = None;
    let mut stood = None;
    loop {
        let state = cluster.state();
        let now = status.borrow_and_update().clone();
        // Both change with every entry, and what is looked for hardly ever.
        let stands = (now.term, now.leader, now.voters, now.incarnation);
        let same_nodes = before.as_ref().is_some_and(|before| state.shares_nodes_with(before));
        if !same_nodes || stood.as_ref() != Some(&stands) {
            let news = Roster::of(&cluster);
            roster.send_if_modified(|known| {
                let is_news = **known != news;
                if is_news {
                    *known = Arc::new(news);
                }
                is_news
            });
        }
        (before, stood) = (Some(state), Some(stands));
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            changed = index.changed() => if changed.is_err() { return },
        }
    }
}
