//! What a proposal does to the state: all of it, or nothing.

mod nodes;
mod reason;
mod services;
mod tasks;

use super::{Applied, Change, Event, EventKind, Object, Proposal, Stale, State, stale};
use crate::events;
use crate::ids::ClusterId;
use crate::model::{Cluster, Meta, Node, Role};
use crate::time::Timestamp;
use std::sync::Arc;

impl State {
    /// Applies the log entry `index`. Total and deterministic: every manager gets the same answer.
    ///
    /// # Errors
    /// If the state has moved since the proposal was decided. Nothing of it is applied then, but the
    /// index advances, since the entry stands in the log.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Result<Applied, Stale> {
        let mut turn = Turn::new(self.clone(), index, proposal.at);
        let result = proposal.changes.iter().try_for_each(|change| turn.apply(change));
        match result {
            Ok(()) => {
                let news = events::between(self, &turn.state, &turn.applied, proposal.at);
                *self = turn.state;
                self.keep_events(news);
                self.index = index;
                self.clock = self.clock.max(proposal.at);
                Ok(turn.applied)
            }
            Err(stale) => {
                self.index = index;
                Err(stale)
            }
        }
    }
}

/// One proposal being applied.
pub(crate) struct Turn {
    pub(crate) state: State,
    index: u64,
    at: Timestamp,
    applied: Applied,
}

impl Turn {
    pub(crate) fn new(state: State, index: u64, at: Timestamp) -> Self {
        Self { state, index, at, applied: Applied { index, ..Applied::default() } }
    }

    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), Stale> {
        match change {
            Change::Init(cluster) => self.init(cluster),
            Change::SetTokens { version, tokens } => {
                self.update_cluster(*version, |cluster| cluster.tokens = tokens.clone())
            }
            Change::SetSettings { version, settings } => {
                self.update_cluster(*version, |cluster| cluster.settings = settings.clone())
            }
            Change::SetLevel { version, level } => self.set_level(*version, *level),
            Change::Once { request, answer } => {
                let at = self.at;
                match self.state.requests.note(*request, at, *answer) {
                    true => Ok(()),
                    false => stale(format!("request {request} was carried out before")),
                }
            }
            Change::CreateNode(node) => self.create_node(node),
            Change::UpdateNode { node, version, role, availability, labels, taints } => {
                let alter = |node: &mut Node| {
                    node.availability = *availability;
                    node.labels.clone_from(labels);
                    node.taints.clone_from(taints);
                };
                self.update_node(*node, *version, *role, alter)
            }
            Change::OpenSession { node, epoch, hostname, addr, description } => {
                self.open_session(*node, *epoch, hostname, addr, description)
            }
            Change::SetNodeStatus { node, was, status, message } => {
                self.set_node_status(*node, *was, *status, message)
            }
            Change::RemoveNode { node, version } => self.remove_node(*node, *version),
            Change::StartAnew { incarnation, node, addr } => self.start_anew(*incarnation, *node, addr),
            Change::Reseat { node, lost } => self.reseat(*node, *lost),
            Change::CreateService(service) => self.create_service(service),
            Change::UpdateService { service, version, spec, endpoint, author, rollback } => {
                self.update_service(*service, *version, spec, endpoint, author, rollback.as_ref())
            }
            Change::SetUpdateStatus { service, spec_version, was, status } => {
                self.set_update_status(*service, *spec_version, *was, status)
            }
            Change::SetRebalance { service, since, rebalance } => {
                self.set_rebalance(*service, *since, rebalance.as_ref())
            }
            Change::ExpireJob { service, spec_version } => self.expire_job(*service, *spec_version),
            Change::RemoveService { service, version } => self.remove_service(*service, *version),
            Change::CreateNetwork(network) => self.create_network(network),
            Change::UpdateNetwork { network, version, isolated } => {
                self.update_network(*network, *version, *isolated)
            }
            Change::RemoveNetwork { network } => self.remove_network(*network),
            Change::CreateTask(task) => self.create_task(task),
            Change::Allocate { task, addresses } => self.allocate(*task, addresses),
            Change::Assign { task, node, claims } => self.assign(*task, *node, claims),
            Change::Note { task, note } => self.note(*task, note),
            Change::SetDesired { task, desired } => self.set_desired(*task, *desired),
            Change::Retune { task, spec_version } => self.retune(*task, *spec_version),
            Change::Report(report) => self.report(report),
            Change::EndTask { task, observed, message } => self.end_task(*task, *observed, message),
            Change::RemoveTask { task } => self.remove_task(*task),
        }
    }

    fn set_level(&mut self, version: u64, level: u32) -> Result<(), Stale> {
        let lower = |node: &Node| node.role == Role::Manager && crate::level::of(&node.description) < level;
        if self.state.nodes().any(|node| lower(node)) {
            return stale(format!("a manager does not understand level {level}"));
        }
        if self.state.level() >= level {
            return stale(format!("the cluster is at level {} already", self.state.level()));
        }
        self.update_cluster(version, |cluster| cluster.level = level)
    }

    fn init(&mut self, cluster: &Cluster) -> Result<(), Stale> {
        if self.state.cluster.is_some() {
            return stale("the cluster is initialised already");
        }
        if cluster.id != ClusterId::mint(cluster.id_seed, 0) || self.state.next_number != 0 {
            return stale("the cluster's id is not the one its seed gives");
        }
        let meta = self.meta();
        self.state.next_number = 1;
        self.state.cluster = Some(Arc::new(Cluster { meta, ..cluster.clone() }));
        self.event(Object::Cluster, EventKind::Created);
        Ok(())
    }

    fn update_cluster(&mut self, version: u64, change: impl FnOnce(&mut Cluster)) -> Result<(), Stale> {
        let (index, at) = (self.index, self.at);
        let Some(cluster) = self.state.cluster.as_mut() else { return stale("there is no cluster") };
        if cluster.meta.version != version {
            return stale("the cluster has changed");
        }
        let cluster = Arc::make_mut(cluster);
        change(cluster);
        cluster.meta.version = index;
        cluster.meta.updated_at = at;
        self.event(Object::Cluster, EventKind::Updated);
        Ok(())
    }

    /// Takes the next number for an object, if that is the one it was decided to have.
    fn take_number(&mut self, number: u64) -> Result<Meta, Stale> {
        if self.state.cluster.is_none() {
            return stale("there is no cluster");
        }
        if number != self.state.next_number {
            return stale("another object was created first");
        }
        let meta = self.meta();
        self.state.next_number += 1;
        Ok(meta)
    }

    /// The meta of an object created now.
    fn meta(&self) -> Meta {
        Meta { number: self.state.next_number, version: self.index, created_at: self.at, updated_at: self.at }
    }

    fn event(&mut self, object: Object, kind: EventKind) {
        self.applied.events.push(Event { object, kind });
    }
}

#[cfg(test)]
mod tests;
