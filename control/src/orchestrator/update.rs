//! Tasks of an older spec are replaced slot by slot, the old task first.

use super::slots::{Slots, slots};
use crate::ids::ServiceId;
use crate::model::{Desired, FailureAction, Observed, Service, Slot, Task, TaskSpec};
use crate::model::{UpdateState, UpdateStatus};
use crate::plan::{Draft, Start};
use crate::scheduler::constraint;
use crate::state::{Change, State};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Takes the next step of a service's update, if one is going on.
pub(super) fn roll(draft: &mut Draft, id: ServiceId) {
    let Some(service) = draft.state().service(id).cloned() else { return };
    let Some(status) = service.update_status.clone() else { return };
    if status.state != UpdateState::Updating {
        return;
    }
    let slots = slots(draft.state(), id);
    if let Some(failed) = too_many_failures(&service, &status, &slots) {
        return pause(draft, &service, status, failed);
    }
    let dirty = dirty(draft.state(), &service, &slots);
    let busy = slots.values().filter(|tasks| is_busy(draft, &service, tasks)).count();
    if dirty.is_empty() {
        if busy == 0 {
            complete(draft, &service, status, &slots);
        }
        return;
    }
    let width = match service.spec.update.parallelism {
        0 => usize::MAX,
        width => width as usize,
    };
    let chosen: Vec<_> = next(&dirty).take(width.saturating_sub(busy)).collect();
    for (_, task) in &chosen {
        let never_ran = task.status.running_at.is_none();
        draft.want(task.id, if never_ran { Desired::Remove } else { Desired::Shutdown });
    }
    let occupied = draft.state().occupied(id);
    for (slot, _) in chosen {
        draft.create_task(id, slot, Start { at: draft.now, ..Start::default() }, &occupied);
    }
}

/// Whether a task runs what its service asks for now. A spec that differs only in where it may run, and
/// does not exclude the task's node, is no reason to replace it.
pub(crate) fn is_current(state: &State, service: &Service, task: &Task) -> bool {
    if task.spec_version == service.spec_version || task.spec == service.spec.task {
        return true;
    }
    let placement = service.spec.task.placement.clone();
    let placed_well = state.home(task).is_some_and(|node| constraint::may_stay(&placement, node));
    placed_well && TaskSpec { placement, ..TaskSpec::clone(&task.spec) } == *service.spec.task
}

/// The slots whose task is out of date. A task that is lost is replaced anyway.
fn dirty(state: &State, service: &Service, slots: &Slots) -> BTreeMap<Slot, Arc<Task>> {
    let outdated = |task: &&Arc<Task>| {
        task.is_live() && task.is_wanted() && !state.is_lost(task) && !is_current(state, service, task)
    };
    slots
        .iter()
        .filter_map(|(slot, tasks)| tasks.iter().find(outdated).map(|task| (*slot, task.clone())))
        .collect()
}

/// Slots that serve nobody come first.
fn next(dirty: &BTreeMap<Slot, Arc<Task>>) -> impl Iterator<Item = (Slot, &Arc<Task>)> {
    let runs = |task: &Task| task.observed == Observed::Running;
    let idle = dirty.iter().filter(move |(_, task)| !runs(task));
    idle.chain(dirty.iter().filter(move |(_, task)| runs(task))).map(|(slot, task)| (*slot, task))
}

/// Whether a slot has been replaced and its new task does not run yet, or not for long enough.
fn is_busy(draft: &mut Draft, service: &Service, tasks: &[Arc<Task>]) -> bool {
    let new = tasks
        .iter()
        .find(|task| task.is_live() && task.is_wanted() && task.spec_version == service.spec_version);
    let Some(new) = new else { return false };
    if service.spec.update.failure_action == FailureAction::Continue && new.failures > 0 {
        return false;
    }
    let running_at = new.status.running_at.filter(|_| new.observed == Observed::Running);
    let Some(running_at) = running_at else { return true };
    let due = running_at.after(service.spec.update.delay);
    if due > draft.now {
        draft.wake_at(due);
    }
    due > draft.now
}

/// The latest failure of a new task, if there are more than the update allows.
fn too_many_failures<'a>(
    service: &Service,
    status: &UpdateStatus,
    slots: &'a Slots,
) -> Option<&'a Arc<Task>> {
    let config = &service.spec.update;
    let failed = |task: &&Arc<Task>| {
        let early = task.status.running_at.is_none_or(|began| task.status.at.since(began) < config.monitor);
        let ended = matches!(task.observed, Observed::Completed | Observed::Failed | Observed::Rejected);
        ended
            && early
            && task.spec_version == service.spec_version
            && task.meta.created_at >= status.started_at
    };
    let failures: Vec<_> = slots.values().filter_map(|tasks| tasks.iter().find(failed)).collect();
    match config.failure_action {
        FailureAction::Continue => None,
        // Going back is the rolling updater's; until it exists, stopping is the safer half of it.
        FailureAction::Pause | FailureAction::Rollback => {
            let allowed = slots.len() * usize::from(config.max_failure_permille);
            let last = failures.iter().max_by_key(|task| (task.status.at, task.meta.number));
            last.filter(|_| failures.len() * 1000 > allowed).copied()
        }
    }
}

fn pause(draft: &mut Draft, service: &Service, status: UpdateStatus, failed: &Task) {
    let why = match (failed.status.error.as_str(), failed.status.exit_code) {
        ("", Some(code)) => format!("exited with code {code}"),
        ("", None) => failed.observed.to_string(),
        (error, _) => error.to_owned(),
    };
    let name = failed.name();
    let message =
        format!("update paused due to failure or early termination of task {name} ({}): {why}", failed.id);
    let status = UpdateStatus { state: UpdateState::Paused, message, failed_task: Some(failed.id), ..status };
    put(draft, service, status);
}

/// Every slot has been replaced; the last new tasks are watched for a while before that counts.
fn complete(draft: &mut Draft, service: &Service, status: UpdateStatus, slots: &Slots) {
    let newest = slots
        .values()
        .flatten()
        .filter(|task| task.is_live() && task.spec_version == service.spec_version)
        .filter_map(|task| task.status.running_at)
        .max();
    if let Some(due) = newest.map(|at| at.after(service.spec.update.monitor)).filter(|due| *due > draft.now) {
        return draft.wake_at(due);
    }
    let (state, completed_at) = (UpdateState::Completed, Some(draft.now));
    let message = "update completed".into();
    put(draft, service, UpdateStatus { state, completed_at, message, ..status });
}

fn put(draft: &mut Draft, service: &Service, status: UpdateStatus) {
    let spec_version = service.spec_version;
    draft.propose(Change::SetUpdateStatus { service: service.id, spec_version, status });
}
