//! Jobs: tasks that run to their end, once for each version of the task spec.

use super::slots::{Slots, is_given_up, slots};
use super::{global, update};
use crate::model::{Desired, Mode, Observed, Service, Slot, Task};
use crate::plan::{Draft, Start};
use crate::state::{Change, State};
use crate::time::Timestamp;
use std::sync::Arc;

/// Slots that are opened in one turn. A plan is one entry of the log, which should not grow without bound; the next
/// turn goes on.
const TURN_MAX: usize = 1_000;

/// Opens the slots whose turn it is, and ends what the job no longer needs. Whether it goes on.
pub(super) fn run(draft: &mut Draft, service: &Service) -> bool {
    let former =
        |task: &&Arc<Task>| task.spec_version != service.spec_version && task.desired != Desired::Remove;
    for task in draft.state().tasks_of(service.id).filter(former).cloned().collect::<Vec<_>>() {
        draft.want(task.id, Desired::Remove);
    }
    if is_over_time(draft, service) {
        let live = |task: &&Arc<Task>| task.is_live() && task.is_wanted();
        for task in draft.state().tasks_of(service.id).filter(live).cloned().collect::<Vec<_>>() {
            draft.dismiss(&task);
        }
        return false;
    }
    for tasks in slots(draft.state(), service.id).values() {
        let done = is_done(tasks);
        for task in tasks.iter().filter(|task| task.is_live() && task.is_wanted()) {
            // One that was taken for lost may have come to its end meanwhile.
            if done || update::is_drained(draft.state(), task) {
                draft.dismiss(task);
            }
        }
    }
    match service.spec.mode {
        Mode::GlobalJob { .. } if is_late(service, draft.now) => {}
        Mode::GlobalJob { .. } => global::scale(draft, service),
        _ => open(draft, service),
    }
    true
}

/// Opens slots, lowest free number first, while fewer are at work than may be, and closes those that are no longer
/// asked for.
fn open(draft: &mut Draft, service: &Service) {
    let (completions, concurrency) =
        (service.spec.mode.replicas().unwrap_or(0), service.spec.mode.concurrency());
    let mut slots = slots(draft.state(), service.id);
    let surplus = slots.split_off(&Slot::Replica(completions.saturating_add(1)));
    for task in surplus.values().flatten() {
        draft.want(task.id, Desired::Remove);
    }
    let at_work = at_work(draft.state(), service, &slots);
    let room = (concurrency as usize).saturating_sub(at_work).min(TURN_MAX);
    let free = (1..=completions).map(Slot::Replica).filter(|slot| !slots.contains_key(slot));
    let free: Vec<Slot> = free.take(room).collect();
    let occupied = draft.state().occupied(service.id);
    for slot in free {
        draft.create_task(service.id, slot, Start { at: draft.now, ..Start::default() }, &occupied);
    }
}

/// Slots that are neither done nor given up, and what of former runs has not ended yet.
fn at_work(state: &State, service: &Service, slots: &Slots) -> usize {
    let leaving = state.occupying(service.id).filter(|task| task.desired == Desired::Remove);
    let open = slots.values().filter(|tasks| !is_done(tasks) && !is_given_up(service, tasks));
    leaving.count() + open.count()
}

/// Whether a slot has had its run. Its tasks are all of the present version.
pub(crate) fn is_done(tasks: &[Arc<Task>]) -> bool {
    tasks.iter().any(|task| task.observed == Observed::Completed)
}

/// Slots that have had their run.
pub(crate) fn completed(state: &State, service: &Service) -> u32 {
    let done = state
        .tasks_of(service.id)
        .filter(|task| task.observed == Observed::Completed && task.spec_version == service.spec_version)
        .filter(|task| task.desired != Desired::Remove)
        .map(|task| task.slot);
    u32::try_from(done.collect::<std::collections::BTreeSet<_>>().len()).unwrap_or(u32::MAX)
}

/// Whether a run has taken longer than it may, which is recorded when it becomes so. Runs that are over by then
/// are over.
fn is_over_time(draft: &mut Draft, service: &Service) -> bool {
    if service.expired_at.is_some() {
        return true;
    }
    let Some(due) = service.job_due() else { return false };
    let slots = slots(draft.state(), service.id);
    let over = match service.spec.mode.replicas() {
        Some(completions) => completed(draft.state(), service) >= completions,
        None => slots.values().all(|tasks| is_done(tasks)),
    };
    if over {
        return false;
    }
    if due > draft.now {
        draft.wake_at(due);
        return false;
    }
    draft.propose(Change::ExpireJob { service: service.id, spec_version: service.spec_version });
    true
}

/// Whether the time of a run has passed: no more nodes take part in it.
pub(crate) fn is_late(service: &Service, now: Timestamp) -> bool {
    service.expired_at.is_some() || service.job_due().is_some_and(|due| due <= now)
}
