//! Why a task is as it is.

use super::{Asked, Explanation, Past, Wait, words};
use crate::convergence;
use crate::model::{Actor, Desired, NodeStatus, Observed, Service, Step, Task, UpdateOrder};
use crate::orchestrator::is_given_up;
use crate::plan::{Whom, Why};
use crate::scheduler;
use crate::time::Timestamp;
use crate::worker::UNTUNED;
use std::sync::Arc;

impl Asked<'_> {
    pub(super) fn task(&self, task: &Arc<Task>) -> Explanation {
        let mut told = Explanation {
            id: task.id.to_string(),
            name: task.name(),
            summary: self.how(task),
            waits: self.waits_of(task),
            past: self.past(task),
            ..Explanation::default()
        };
        told.facts.push(("Service", task.service_name.clone()));
        if let Some(node) = task.node {
            told.facts.push(("Node", self.hostname(node)));
        }
        told.facts.push(("Wanted", task.desired.to_string()));
        if let Some(next) = self
            .others(task)
            .filter(|other| other.meta.number > task.meta.number)
            .min_by_key(|t| t.meta.number)
        {
            told.facts.push(("Followed by", format!("{} ({})", next.id, next.observed)));
        }
        if waits_for_a_node(task) {
            let refusals = scheduler::refusals(self.state, self.now, task);
            if let Some(refusals) = refusals {
                told.refusals = refusals.reasons();
                told.nearest = refusals.nearest().to_owned();
            }
        }
        if let Some(node) = task.node.filter(|_| task.is_live()) {
            told.choice = Some(scheduler::choice(self.state, self.now, task, node));
        }
        told
    }

    /// The other tasks of a task's slot.
    fn others<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = &'a Arc<Task>> {
        self.state.tasks_of(task.service).filter(|other| other.slot == task.slot && other.id != task.id)
    }

    fn how(&self, task: &Task) -> String {
        let node = task.node.map(|node| self.hostname(node)).unwrap_or_default();
        if !task.is_live() {
            let words = convergence::words(task);
            let state = task.observed.to_string();
            return if words == state {
                format!("has ended: {state}")
            } else {
                format!("has ended, {state}: {words}")
            };
        }
        let lost = self.state.is_lost(task);
        match task.observed {
            _ if lost => format!("is {} on {node} as far as anybody knows: that node is lost", task.observed),
            Observed::New => "waits for its addresses".into(),
            Observed::Pending => "waits for a node".into(),
            Observed::Running if task.is_wanted() => format!("runs on {node}"),
            observed if !task.is_wanted() => format!("is being stopped on {node}; it is still {observed}"),
            Observed::Ready if task.desired == Desired::Ready => format!("is ready on {node}, and held back"),
            observed => format!("is {observed} on {node}"),
        }
    }

    /// What a task waits for now.
    pub(super) fn waits_of(&self, task: &Arc<Task>) -> Vec<Wait> {
        let wait = |what: String, since: Timestamp, next: Option<Timestamp>| Wait {
            who: task.name(),
            what,
            since: Some(since),
            next,
        };
        let mut waits = Vec::new();
        let since = task.status.at;
        let node = self.state.home(task);
        if !task.is_live() {
            return self.after(task);
        }
        if let Some(node) = node.filter(|node| node.status != NodeStatus::Ready) {
            let held = self.holds(Whom::Node(node.id)).find_map(|hold| hold.until);
            let why = self.brake().map_or(String::new(), |brake| format!("; {brake}"));
            let what = match node.status {
                NodeStatus::Suspect => format!("a sign of life from {}{why}", node.hostname),
                _ => format!("{} to come back, unless another task takes its place", node.hostname),
            };
            waits.push(wait(what, node.status_since, held));
        }
        if !task.is_wanted() {
            let grace = task.spec.containers.first().map_or(0, |container| container.stop_grace.as_secs());
            let asked = wished_at(task).unwrap_or(since);
            waits.push(wait(format!("its end, for {grace} s at most before it is killed"), asked, None));
            return waits;
        }
        match task.observed {
            Observed::New | Observed::Pending => {
                let what = match task.note.as_str() {
                    "" => "a node".to_owned(),
                    note => note.strip_prefix("no ").map_or(note.to_owned(), |rest| format!("a {rest}")),
                };
                waits.push(wait(what, since, None));
            }
            Observed::Assigned => waits.push(wait("its node to take it".into(), since, None)),
            Observed::Accepted | Observed::Preparing => {
                let what = match task.status.message.as_str() {
                    "" => "its image and file systems".to_owned(),
                    message => message.to_owned(),
                };
                waits.push(wait(what, since, None));
            }
            Observed::Starting => {
                let what = match task.status.message.as_str() {
                    "" => "its container to run, and to be healthy where that is checked".to_owned(),
                    message => message.to_owned(),
                };
                waits.push(wait(what, since, None));
            }
            Observed::Running if task.status.error.starts_with(UNTUNED) => {
                waits.push(wait(format!("other limits: it {}", task.status.error), since, None));
            }
            _ => {}
        }
        if task.desired == Desired::Ready {
            waits.extend(self.held_back(task));
        }
        for hold in self.holds(Whom::Slot(task.service, task.slot)) {
            // The delay of a task that is there is told with the task.
            if task.desired != Desired::Ready || hold.until != Some(task.start_at) {
                let update =
                    self.state.service(task.service).and_then(|service| service.update_status.as_ref());
                let asked = update.filter(|_| hold.why == Why::Turn).map_or(since, |status| status.since);
                waits.push(wait(words(hold.why).into(), asked, hold.until));
            }
        }
        waits
    }

    /// What keeps a task that is prepared from starting.
    fn held_back(&self, task: &Arc<Task>) -> Option<Wait> {
        let wait = |what, next| Wait { who: task.name(), what, since: Some(task.meta.created_at), next };
        if task.start_at > self.now {
            let failures = match task.failures {
                0 => String::new(),
                1 => " after a failure".into(),
                failures => format!(" after {failures} failures in a row"),
            };
            return Some(wait(format!("the restart delay{failures}"), Some(task.start_at)));
        }
        let start_first = |service: &Arc<Service>| service.pace().order == UpdateOrder::StartFirst;
        let overlaps = self.state.service(task.service).is_some_and(start_first);
        let holder = self.others(task).find(|other| {
            other.is_live()
                && other.desired != Desired::Ready
                && other.node.is_some()
                && !self.state.is_lost(other)
        })?;
        let node = holder.node.map(|node| self.hostname(node)).unwrap_or_default();
        let what = if overlaps && holder.is_wanted() { "give way" } else { "end" };
        Some(wait(format!("task {} on {node} to {what}", holder.id), None))
    }

    /// What a slot waits for whose last task has ended.
    fn after(&self, task: &Arc<Task>) -> Vec<Wait> {
        let mut slot: Vec<_> = self.others(task).cloned().collect();
        if slot.iter().any(|other| other.meta.number > task.meta.number) {
            return Vec::new();
        }
        let wait = |what: String, next| Wait { who: task.name(), what, since: Some(task.status.at), next };
        slot.push(task.clone());
        slot.sort_by_key(|task| task.meta.number);
        let service = self.state.service(task.service);
        if service.is_some_and(|service| is_given_up(service, &slot)) {
            let what = "nobody: its restart policy allows no other attempt until the service changes";
            return vec![wait(what.into(), None)];
        }
        let holds = self.holds(Whom::Slot(task.service, task.slot));
        holds.map(|hold| wait(words(hold.why).into(), hold.until)).collect()
    }

    fn past(&self, task: &Task) -> Vec<Past> {
        let mut past = Vec::new();
        let before = self.others(task).filter(|other| other.meta.number < task.meta.number);
        if let Some(before) = before.max_by_key(|other| other.meta.number) {
            let last = before.history.iter().rev().find(|step| matches!(step.to, Step::Observed(_)));
            past.extend(last.map(|last| self.step(before, last)));
        }
        past.extend(task.history.iter().map(|step| self.step(task, step)));
        past
    }

    fn step(&self, task: &Task, step: &crate::model::Transition) -> Past {
        let what = match step.to {
            Step::Observed(Observed::New) => "created".into(),
            Step::Observed(Observed::Assigned) => {
                let node = task.node.map(|node| self.hostname(node)).unwrap_or_default();
                format!("assigned to {node}")
            }
            Step::Observed(observed) => observed.to_string(),
            Step::Desired(Desired::Running) => "let go".into(),
            Step::Desired(desired) => format!("wanted {desired}"),
        };
        let by = match (step.by, task.node) {
            (Actor::Node, Some(node)) => self.hostname(node),
            (Actor::Node, None) | (Actor::Managers, _) => "managers".into(),
        };
        let (at, index, whom, why) = (step.at, step.index, task.id.to_string(), step.why.to_string());
        Past { at, index, whom, what, by, why }
    }
}

fn waits_for_a_node(task: &Task) -> bool {
    task.observed == Observed::Pending && task.node.is_none() && task.is_wanted()
}

/// When it was last decided what is wanted of a task.
fn wished_at(task: &Task) -> Option<Timestamp> {
    task.history.iter().rev().find(|step| matches!(step.to, Step::Desired(_))).map(|step| step.at)
}
