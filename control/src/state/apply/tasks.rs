//! Changes to tasks.

use super::{Turn, reason};
use crate::ids::{NetworkId, NodeId, TaskId};
use crate::model::{Actor, Availability, Claims, Desired, NodeStatus, Observed, Step, Stock, Task};
use crate::model::{TaskStatus, Transition};
use crate::scheduler::constraint;
use crate::state::{EventKind, NewTask, Object, Owner, Report, Stale, stale};
use std::net::Ipv4Addr;
use std::sync::Arc;

impl Turn {
    pub(super) fn create_task(&mut self, new: &NewTask) -> Result<(), Stale> {
        let meta = self.take_number(new.number)?;
        if new.id != TaskId::mint(self.state.id_seed(), meta.number) {
            return stale("the task's id is not the one its number gives");
        }
        let Some(service) = self.state.service(new.service) else {
            return stale(format!("service {} is gone", new.service));
        };
        if service.spec_version != new.spec_version {
            return stale(format!("service {} has changed", service.spec.name));
        }
        // Who is asked whether it is ready is so when it has said it.
        let unready = service.spec.task.containers.iter().any(|container| container.readiness.is_some());
        let task = Task {
            id: new.id,
            meta,
            service: new.service,
            service_name: service.spec.name.clone(),
            slot: new.slot,
            spec: service.spec.task.clone(),
            spec_version: new.spec_version,
            node: None,
            desired: new.desired,
            observed: Observed::New,
            status: TaskStatus { at: self.at, unready, ..TaskStatus::default() },
            addresses: Vec::new(),
            claims: Claims::new(),
            note: String::new(),
            start_at: new.start_at,
            restarts: new.restarts,
            failures: new.failures,
            history: vec![Transition {
                to: Step::Observed(Observed::New),
                at: self.at,
                index: self.index,
                by: Actor::Managers,
                why: reason::of_creation(service, new),
            }],
        };
        self.state.index_task(&task);
        self.event(Object::Task(task.id), EventKind::Created);
        self.state.put_task(Arc::new(task));
        Ok(())
    }

    pub(super) fn allocate(&mut self, id: TaskId, addresses: &[(NetworkId, Ipv4Addr)]) -> Result<(), Stale> {
        if self.known_task(id)?.observed != Observed::New {
            return stale(format!("task {id} has its addresses"));
        }
        for (network, address) in addresses {
            if self.state.network(*network).is_none() {
                return stale(format!("network {network} is gone"));
            }
            if self.state.owner_of(*network, *address).is_some() {
                return stale(format!("the address {address} was taken"));
            }
            self.state.addresses.insert((*network, *address), Owner::Task(id));
        }
        let at = self.at;
        self.change_task(id, |task| {
            task.addresses = addresses.to_vec();
            task.observed = Observed::Pending;
            task.status.at = at;
            task.note.clear();
        })
    }

    pub(super) fn assign(&mut self, id: TaskId, node: NodeId, claims: &Claims) -> Result<(), Stale> {
        let task = self.known_task(id)?;
        if task.observed != Observed::Pending || task.node.is_some() || !task.is_wanted() {
            return stale(format!("task {id} does not wait for a node"));
        }
        let open = self.state.node(node).is_some_and(|node| {
            node.status == NodeStatus::Ready && node.availability == Availability::Active
        });
        if !open {
            return stale(format!("node {node} takes no tasks"));
        }
        if !self.state.node(node).is_some_and(|node| constraint::may_stay(&task.spec.placement, node)) {
            return stale(format!("node {node} has other labels or taints"));
        }
        if !claims.is_empty() {
            self.check_claims(node, claims)?;
        }
        let at = self.at;
        self.change_task(id, |task| {
            task.claims.clone_from(claims);
            task.node = Some(node);
            task.observed = Observed::Assigned;
            task.status.at = at;
            task.note.clear();
        })?;
        self.state.tasks_by_node.entry(node).or_default().insert(id);
        Ok(())
    }

    pub(super) fn retune(&mut self, id: TaskId, spec_version: u64) -> Result<(), Stale> {
        let task = self.known_task(id)?;
        let Some(service) = self.state.service(task.service) else {
            return stale(format!("service {} is gone", task.service));
        };
        if service.spec_version != spec_version {
            return stale(format!("service {} has changed", service.spec.name));
        }
        if !task.is_live() || !task.spec.can_become(&service.spec.task) {
            return stale(format!("task {id} has to be replaced"));
        }
        let spec = service.spec.task.clone();
        self.change_task(id, |task| {
            task.spec = spec;
            task.spec_version = spec_version;
        })
    }

    /// Whether a node has these things, and nobody else has been given them.
    fn check_claims(&self, node: NodeId, claims: &Claims) -> Result<(), Stale> {
        let stocks = self.state.node(node).map(|node| &node.description.generic);
        for (kind, names) in claims {
            let there = match stocks.and_then(|stocks| stocks.get(kind)) {
                Some(Stock::Named(there)) => names.is_subset(there),
                Some(Stock::Count(_)) | None => false,
            };
            let taken = self
                .state
                .tasks_on(node)
                .filter(|task| task.is_live())
                .any(|task| task.claims.get(kind).is_some_and(|held| !held.is_disjoint(names)));
            if !there || taken {
                return stale(format!("node {node} has other {kind} to give"));
            }
        }
        Ok(())
    }

    pub(super) fn note(&mut self, id: TaskId, note: &str) -> Result<(), Stale> {
        self.known_task(id)?;
        self.change_task(id, |task| task.note = note.into())
    }

    pub(super) fn set_desired(&mut self, id: TaskId, desired: Desired) -> Result<(), Stale> {
        let task = self.known_task(id)?;
        if desired < task.desired {
            return stale(format!("task {id} is wanted as {} already", task.desired));
        }
        if desired == task.desired {
            return Ok(());
        }
        let why = reason::of_wish(&self.state, &task, desired);
        self.move_task(id, Actor::Managers, why, |task| task.desired = desired)
    }

    pub(super) fn report(&mut self, report: &Report) -> Result<(), Stale> {
        let Some(task) = self.state.task(report.task).cloned() else { return Ok(()) };
        if !report.is_news(&task) {
            return Ok(());
        }
        let at = self.at;
        let moved = report.observed != task.observed;
        self.move_task(report.task, Actor::Node, reason::of_report(report), |task| {
            if moved {
                task.status.at = at;
            }
            task.observed = report.observed;
            task.status.health = report.health;
            task.status.unready = report.ready.map_or(task.status.unready, |ready| !ready);
            if task.serves() && task.status.running_at.is_none() {
                task.status.running_at = Some(at);
            }
            task.status.message.clone_from(&report.message);
            task.status.error.clone_from(&report.error);
            task.status.exit_code = report.exit_code;
            task.status.pid = report.pid;
        })?;
        self.settle(report.task);
        Ok(())
    }

    pub(super) fn end_task(&mut self, id: TaskId, observed: Observed, message: &str) -> Result<(), Stale> {
        let task = self.known_task(id)?;
        if task.observed.is_terminal() || !observed.is_terminal() {
            return stale(format!("task {id} is {}", task.observed));
        }
        let at = self.at;
        self.move_task(id, Actor::Managers, reason::cut(message), |task| {
            task.observed = observed;
            task.status.at = at;
            task.status.message = message.into();
            task.status.pid = None;
            task.note.clear();
        })?;
        self.settle(id);
        Ok(())
    }

    pub(super) fn remove_task(&mut self, id: TaskId) -> Result<(), Stale> {
        let task = self.known_task(id)?;
        if task.is_live() {
            return stale(format!("task {id} has not ended"));
        }
        self.state.unindex_task(&task);
        self.event(Object::Task(id), EventKind::Removed);
        Ok(())
    }

    /// A task that has ended needs its addresses no more.
    fn settle(&mut self, id: TaskId) {
        if let Some(task) = self.state.task(id).cloned()
            && !task.is_live()
        {
            self.state.release_addresses(&task);
        }
    }

    fn known_task(&self, id: TaskId) -> Result<Arc<Task>, Stale> {
        self.state.tasks.get(&id).cloned().ok_or_else(|| Stale(format!("task {id} is gone")))
    }

    fn change_task(&mut self, id: TaskId, change: impl FnOnce(&mut Task)) -> Result<(), Stale> {
        self.move_task(id, Actor::Managers, Box::default(), change)
    }

    /// Changes a task, and writes down where that brings it.
    fn move_task(
        &mut self,
        id: TaskId,
        by: Actor,
        why: Box<str>,
        change: impl FnOnce(&mut Task),
    ) -> Result<(), Stale> {
        let (index, at) = (self.index, self.at);
        let mut task = Task::clone(&*self.known_task(id)?);
        let before = (task.desired, task.observed);
        change(&mut task);
        let step = match (task.desired, task.observed) {
            (desired, _) if desired != before.0 => Some(Step::Desired(desired)),
            (_, observed) if observed != before.1 => Some(Step::Observed(observed)),
            _ => None,
        };
        if let Some(to) = step.filter(|_| task.history.len() < Transition::MAX) {
            task.history.push(Transition { to, at, index, by, why });
        }
        task.meta.version = index;
        task.meta.updated_at = at;
        self.state.put_task(Arc::new(task));
        self.event(Object::Task(id), EventKind::Updated);
        Ok(())
    }
}
