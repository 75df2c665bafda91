//! Changes to nodes.

use super::Turn;
use crate::ids::{NodeId, RaftId};
use crate::model::{Description, Node, NodeStatus, Observed, Role};
use crate::state::{EventKind, Object, Stale, stale};
use std::sync::Arc;

impl Turn {
    pub(super) fn create_node(&mut self, node: &Node) -> Result<(), Stale> {
        let meta = self.take_number(node.meta.number)?;
        if node.id != NodeId::mint(self.state.id_seed(), meta.number) {
            return stale("the node's id is not the one its number gives");
        }
        if node.role == Role::Manager && crate::level::of(&node.description) < self.state.level() {
            return stale(format!("a manager must understand level {}", self.state.level()));
        }
        let raft = self.seat(node.role, None);
        let node = Node { meta, raft, status_since: self.at, ..node.clone() };
        self.event(Object::Node(node.id), EventKind::Created);
        self.state.nodes.insert(node.id, Arc::new(node));
        Ok(())
    }

    pub(super) fn update_node(
        &mut self,
        id: NodeId,
        version: u64,
        role: Role,
        alter: impl FnOnce(&mut Node),
    ) -> Result<(), Stale> {
        let node = self.versioned_node(id, version)?;
        if node.raft.is_some() && role == Role::Worker && self.state.managers() == 1 {
            return stale("it is the last manager");
        }
        if role == Role::Manager
            && node.role == Role::Worker
            && crate::level::of(&node.description) < self.state.level()
        {
            return stale(format!("a manager must understand level {}", self.state.level()));
        }
        let raft = if role == node.role { node.raft } else { self.seat(role, node.raft) };
        self.change_node(id, |node| {
            node.role = role;
            node.raft = raft;
            alter(node);
        })
    }

    pub(super) fn open_session(
        &mut self,
        id: NodeId,
        epoch: u64,
        hostname: &str,
        addr: &str,
        description: &Description,
    ) -> Result<(), Stale> {
        if self.known_node(id)?.session >= epoch {
            return stale(format!("node {id} has opened a newer session"));
        }
        let at = self.at;
        self.change_node(id, |node| {
            node.session = epoch;
            node.hostname = hostname.into();
            node.addr = addr.into();
            node.description = description.clone();
            node.message.clear();
            if node.status != NodeStatus::Ready {
                node.status = NodeStatus::Ready;
                node.status_since = at;
            }
        })
    }

    pub(super) fn set_node_status(
        &mut self,
        id: NodeId,
        was: NodeStatus,
        status: NodeStatus,
        message: &str,
    ) -> Result<(), Stale> {
        if self.known_node(id)?.status != was {
            return stale(format!("the status of node {id} has changed"));
        }
        let at = self.at;
        self.change_node(id, |node| {
            node.status = status;
            node.status_since = at;
            node.message = message.into();
        })
    }

    pub(super) fn remove_node(&mut self, id: NodeId, version: u64) -> Result<(), Stale> {
        let node = self.versioned_node(id, version)?;
        if node.raft.is_some() && self.state.managers() == 1 {
            return stale("it is the last manager");
        }
        let live: Vec<_> = self.state.tasks_on(id).filter(|task| task.is_live()).map(|t| t.id).collect();
        for task in live {
            self.end_task(task, Observed::Orphaned, "its node was removed")?;
        }
        self.state.nodes.remove(&id);
        self.state.removed_nodes.insert(id, self.at);
        self.event(Object::Node(id), EventKind::Removed);
        Ok(())
    }

    pub(super) fn start_anew(&mut self, incarnation: u64, id: NodeId, addr: &str) -> Result<(), Stale> {
        let Some(cluster) = self.state.cluster.clone() else { return stale("there is no cluster") };
        if cluster.incarnation >= incarnation {
            return stale(format!("the cluster is of incarnation {} already", cluster.incarnation));
        }
        if self.known_node(id)?.raft.is_none() {
            return stale(format!("node {id} has no seat to go on with"));
        }
        self.update_cluster(cluster.meta.version, |cluster| cluster.incarnation = incarnation)?;
        self.change_node(id, |node| node.addr = addr.into())?;
        let others: Vec<NodeId> = self
            .state
            .nodes()
            .filter(|node| node.raft.is_some() && node.id != id)
            .map(|node| node.id)
            .collect();
        others.into_iter().try_for_each(|other| self.change_node(other, |node| node.raft = None))
    }

    pub(super) fn reseat(&mut self, id: NodeId, lost: Option<RaftId>) -> Result<(), Stale> {
        let node = self.known_node(id)?;
        if node.role != Role::Manager || node.raft != lost {
            return stale(format!("the seat of node {id} has changed"));
        }
        let raft = self.seat(Role::Manager, None);
        self.change_node(id, |node| node.raft = raft)
    }

    /// The seat in the consensus group that goes with a role.
    fn seat(&mut self, role: Role, current: Option<RaftId>) -> Option<RaftId> {
        match (role, current) {
            (Role::Worker, _) => None,
            (Role::Manager, Some(seat)) => Some(seat),
            (Role::Manager, None) => {
                self.state.next_raft += 1;
                Some(RaftId(self.state.next_raft))
            }
        }
    }

    fn known_node(&self, id: NodeId) -> Result<Arc<Node>, Stale> {
        self.state.nodes.get(&id).cloned().ok_or_else(|| Stale(format!("node {id} is gone")))
    }

    fn versioned_node(&self, id: NodeId, version: u64) -> Result<Arc<Node>, Stale> {
        let node = self.known_node(id)?;
        if node.meta.version == version { Ok(node) } else { stale(format!("node {id} has changed")) }
    }

    fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) -> Result<(), Stale> {
        let (index, at) = (self.index, self.at);
        let Some(node) = self.state.nodes.get_mut(&id) else { return stale(format!("node {id} is gone")) };
        let node = Arc::make_mut(node);
        change(node);
        node.meta.version = index;
        node.meta.updated_at = at;
        self.event(Object::Node(id), EventKind::Updated);
        Ok(())
    }
}
