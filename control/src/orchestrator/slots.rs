//! Each slot is filled by one task: never by two that run, and by none only while its restart policy
//! says so.

use super::restart::{self, Restart};
use super::{global, job, update};
use crate::diff::sides;
use crate::ids::ServiceId;
use crate::model::{Desired, Observed, Service, Slot, Task, UpdateOrder};
use crate::plan::{Draft, Start, Whom, Why};
use crate::scheduler::constraint;
use crate::state::{State, TaskMap};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// The open slots of a service and their tasks, oldest first. A slot is open until its tasks are to be
/// removed, also when its last task has ended for good.
pub(crate) type Slots = BTreeMap<Slot, Vec<Arc<Task>>>;

pub(crate) fn slots(state: &State, service: ServiceId) -> Slots {
    let mut slots = Slots::new();
    for task in state.tasks_of(service).filter(|task| task.desired != Desired::Remove) {
        slots.entry(task.slot).or_default().push(task.clone());
    }
    for tasks in slots.values_mut() {
        tasks.sort_by_key(|task| task.meta.number);
    }
    slots
}

/// The slots of services, as far as they were asked for. Brought up to date by what has changed since.
#[derive(Debug, Default)]
pub(crate) struct Known(BTreeMap<ServiceId, (TaskMap, Arc<Slots>)>);

impl Known {
    /// The open slots of a service.
    pub(crate) fn slots(&mut self, state: &State, service: ServiceId) -> Arc<Slots> {
        let now = state.task_map(service);
        let (before, slots) = self.0.entry(service).or_default();
        if !before.ptr_eq(&now) {
            let slots = Arc::make_mut(slots);
            for change in before.diff(&now) {
                let (old, new) = sides(change);
                if let Some(old) = old
                    && let Entry::Occupied(mut tasks) = slots.entry(old.slot)
                {
                    tasks.get_mut().retain(|task| task.id != old.id);
                    if tasks.get().is_empty() {
                        tasks.remove();
                    }
                }
                if let Some(new) = new.filter(|task| task.desired != Desired::Remove) {
                    let tasks = slots.entry(new.slot).or_default();
                    let place = tasks.partition_point(|task| task.meta.number < new.meta.number);
                    tasks.insert(place, new.clone());
                }
            }
            *before = now;
        }
        slots.clone()
    }

    /// Forgets services that are no more.
    pub(crate) fn keep(&mut self, is_there: impl Fn(ServiceId) -> bool) {
        self.0.retain(|service, _| is_there(*service));
    }
}

/// Stops all but one of the tasks that are wanted in a slot. There are two when one was taken for lost:
/// if it comes back before its replacement runs, it is kept. And there are two while a new task gets ready
/// beside the one it takes over from.
pub(super) fn keep_one(draft: &mut Draft, service: &Service) {
    for tasks in draft.slots(service.id).values().filter(|tasks| tasks.len() > 1) {
        let wanted = || tasks.iter().filter(|task| task.is_live() && task.is_wanted());
        let (absent, present): (Vec<_>, Vec<_>) = wanted().cloned().partition(|t| draft.state().is_lost(t));
        let runs = |task: &Arc<Task>| task.observed == Observed::Running;
        let (kept, ready) = match pair(draft, service, &present) {
            Some(pair) => (pair.to_vec(), true),
            None => match best(&present) {
                Some(best) => (vec![best.clone()], runs(best)),
                None => continue,
            },
        };
        let surplus = present.iter().filter(|task| kept.iter().all(|kept| kept.id != task.id));
        // A lost task is written off only when its replacement runs.
        for task in surplus.chain(absent.iter().filter(|_| ready)) {
            draft.dismiss(task);
        }
    }
}

/// Of those that run the youngest, since others may have been told to connect to it; else the one that is
/// furthest.
fn best(tasks: &[Arc<Task>]) -> Option<&Arc<Task>> {
    let running = tasks.iter().filter(|task| task.observed == Observed::Running);
    let furthest = || tasks.iter().max_by_key(|task| (task.observed, std::cmp::Reverse(task.meta.number)));
    running.max_by_key(|task| task.meta.number).or_else(furthest)
}

/// A task that still serves and the one that takes over from it, where the new one comes first and has not run
/// for long enough.
fn pair(draft: &mut Draft, service: &Service, present: &[Arc<Task>]) -> Option<[Arc<Task>; 2]> {
    if service.pace().order != UpdateOrder::StartFirst {
        return None;
    }
    let outgoing = |task: &Arc<Task>| update::is_outgoing(draft.state(), service, task);
    let (old, new): (Vec<_>, Vec<_>) = present.iter().cloned().partition(outgoing);
    let old = best(&old).filter(|task| task.observed == Observed::Running)?.clone();
    let new = best(&new)?.clone();
    let running_at = new.status.running_at.filter(|_| new.observed == Observed::Running);
    match running_at.map(|at| at.after(service.pace().healthy_time)) {
        Some(due) if due <= draft.now => None,
        Some(due) => {
            draft.hold(Whom::Slot(service.id, new.slot), due, Why::HealthyTime);
            Some([old, new])
        }
        None => Some([old, new]),
    }
}

/// Sends away tasks whose node may no longer run them, and gives every slot a task that has none and is
/// due for one.
pub(super) fn refill(draft: &mut Draft, service: &Service) {
    let mut occupied = None;
    for (slot, tasks) in &*draft.slots(service.id) {
        let slot = *slot;
        let mut filled = false;
        for task in tasks.iter().filter(|task| task.is_live() && task.is_wanted()) {
            if draft.state().is_lost(task) {
                filled |= draft.state().keeps_place(task);
                continue;
            }
            if may_stay(draft.state(), task) {
                filled = true;
            } else {
                let occupied = occupied.get_or_insert_with(|| draft.state().occupied(service.id));
                occupied.extend(task.node.map(|_| slot));
                draft.want(task.id, Desired::Shutdown);
            }
        }
        let done = service.spec.mode.is_job() && job::is_done(tasks);
        if filled || done || !global::is_open(draft.state(), service, slot) {
            continue;
        }
        match restart::decide(service, tasks, draft.now) {
            Restart::Never => {}
            Restart::Wait(until) => draft.hold(Whom::Slot(service.id, slot), until, Why::Restart),
            Restart::At(start) => {
                let occupied = occupied.get_or_insert_with(|| draft.state().occupied(service.id));
                draft.create_task(service.id, slot, start, occupied);
                for ended in tasks.iter().filter(|task| !task.is_live() && task.is_wanted()) {
                    draft.want(ended.id, Desired::Shutdown);
                }
            }
        }
    }
}

/// Whether a slot stays empty for good, as its restart policy says. `tasks` are oldest first.
pub(crate) fn is_given_up(service: &Service, tasks: &[Arc<Task>]) -> bool {
    let ended = tasks.iter().all(|task| !task.is_live());
    let done = service.spec.mode.is_job() && job::is_done(tasks);
    ended && !done && restart::decide(service, tasks, Timestamp::default()) == Restart::Never
}

/// Lets tasks that were held back start, once their time has come and their slot is vacant, or held by a task
/// that they take over from. One whose node is lost waits until it is back, or the slot has another.
pub(super) fn release(draft: &mut Draft, id: ServiceId) {
    let Some(service) = draft.state().service(id).cloned() else { return };
    let held: Vec<_> = draft
        .state()
        .tasks_of(id)
        .filter(|t| t.desired == Desired::Ready && t.is_live() && !draft.state().is_lost(t))
        .cloned()
        .collect();
    if held.is_empty() {
        return;
    }
    let mut occupied = draft.state().occupied(id);
    if service.pace().order == UpdateOrder::StartFirst {
        let state = draft.state();
        let stays = |task: &&Arc<Task>| !update::is_outgoing(state, &service, task);
        occupied = state.occupying(id).filter(stays).map(|task| task.slot).collect();
    }
    for task in held {
        if task.start_at > draft.now {
            draft.hold(Whom::Slot(id, task.slot), task.start_at, Why::Restart);
        } else if occupied.insert(task.slot) {
            draft.want(task.id, Desired::Running);
        }
    }
}

/// Whether a task's node is not excluded by a label or taint that was changed since the task was placed. Where it is
/// drained, the task moves at the pace of the service's updates.
fn may_stay(state: &State, task: &Task) -> bool {
    let Some(node) = state.home(task) else { return true };
    constraint::may_stay(&task.spec.placement, node)
}

/// What a task that takes over from `last` inherits.
pub(super) fn successor(last: &Task, spec_version: u64, start: Start) -> Start {
    if last.spec_version == spec_version {
        Start { restarts: last.restarts, failures: last.failures, ..start }
    } else {
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Request;
    use crate::model::NodeStatus;
    use crate::testing::{Bed, spec, with_task};

    #[test]
    fn a_task_held_back_on_a_lost_node_is_not_let_go() {
        let mut bed = Bed::new();
        for host in ["n1", "n2", "n3"] {
            bed.node(host, 64);
        }
        let names: Vec<String> = (0..12).map(|number| format!("web{number}")).collect();
        for name in &names {
            bed.service(spec(name, 1));
        }
        bed.tick();
        bed.all_run();
        let old: Vec<_> = bed.state.tasks().map(|task| task.id).collect();
        for name in &names {
            let spec = with_task(spec(name, 1), |task| task.containers[0].image = "newer".into());
            let update =
                Request::UpdateService { service: name.clone(), version: None, spec, networks: vec![] };
            bed.ask(&update).expect("a valid update");
        }
        bed.tick();
        let held = |bed: &Bed| {
            let ready = bed.state.tasks().filter(|task| task.desired == Desired::Ready);
            ready.map(|task| (task.id, task.node)).collect::<Vec<_>>()
        };
        let lost = held(&bed)[0].1.expect("it has a node");
        let since = bed.now;
        bed.alter(lost, |node| (node.status, node.status_since) = (NodeStatus::Down, since));
        bed.heard.forget(lost);
        bed.tick();
        let there: Vec<_> = held(&bed).into_iter().filter(|(_, node)| *node == Some(lost)).collect();
        assert!(!there.is_empty());

        for task in old {
            bed.report(task, Observed::Shutdown);
        }
        bed.tick();
        assert_eq!(held(&bed), there);
        assert_eq!(bed.tick().changes, []);
    }
}
