//! Tasks that must go are replaced slot by slot: those of an older spec while an update goes on, and those on
//! nodes that are drained at any time. How many at once, which of old and new comes first, and what is made of
//! failures, is for the service to say.

use super::global;
use super::restart::{self, Restart};
use super::slots::{Slots, successor};
use crate::allocator;
use crate::ids::{ServiceId, TaskId};
use crate::level;
use crate::model::{Availability, FailureAction, Observed, Service, Slot, Task, TaskSpec};
use crate::model::{UpdateConfig, UpdateOrder, UpdateState, UpdateStatus};
use crate::plan::{Draft, Occupied, Start, Whom, Why};
use crate::scheduler::{self, constraint};
use crate::state::{Change, Rollback, State};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Who asks for the former spec when an update has failed.
pub const AUTHOR: &str = "rswarm";

/// Takes the next step. Whether the service itself has changed by that, so that all its slots are to be looked
/// at again.
pub(super) fn roll(draft: &mut Draft, id: ServiceId) -> bool {
    let Some(service) = draft.state().service(id).cloned() else { return false };
    retune(draft, &service);
    let all = draft.slots(id);
    let status = service.update_status.clone().filter(|status| status.state.is_moving());
    if let Some(status) = &status
        && let Some(problem) = problem(draft, &service, status, &all)
    {
        give_up(draft, &service, status.clone(), problem);
        return true;
    }
    let busy = all.values().filter(|tasks| is_busy(draft, &service, tasks)).count();
    let mut leaving: Vec<Leaving> =
        all.iter().filter_map(|(slot, tasks)| Leaving::of(draft.state(), &service, *slot, tasks)).collect();
    let over = leaving.is_empty() && busy == 0 && !is_awaited(draft.state(), &all);
    if let Some(status) = status.filter(|_| over) {
        complete(draft, &service, status, &all);
        return false;
    }
    leaving.retain(|slot| !slot.has_successor);
    if status_moves(&service) && is_unproven(draft, &service, &all) {
        leaving.retain(|slot| slot.drained);
    }
    // Slots that serve nobody come first.
    leaving.sort_by_key(|slot| (slot.runs(), slot.slot));
    let width = match service.pace().parallelism {
        0 => usize::MAX,
        width => width as usize,
    };
    let mut room = width.saturating_sub(busy);
    for slot in leaving {
        // Where nothing ever ran there is nothing to lose, and nothing to wait for.
        let counts = slot.tasks.iter().any(|task| task.status.running_at.is_some());
        if room > 0 || !counts {
            let holds_up = replace(draft, &service, &slot, &all[&slot.slot]);
            room -= usize::from(holds_up && counts);
        } else {
            draft.hold_back(Whom::Slot(id, slot.slot), Why::Turn);
        }
    }
    false
}

/// Tasks that differ from what is asked for only in their resources are given those where they run, all at once: what
/// is not replaced is not put at risk. One whose node has not so much left is replaced like any other.
fn retune(draft: &mut Draft, service: &Service) {
    if draft.state().level() < level::PROFILES || !outdated_go(service) {
        return;
    }
    let fits = |task: &Task| {
        task.is_live()
            && task.is_wanted()
            && task.spec_version != service.spec_version
            && task.spec != service.spec.task
            && task.spec.can_become(&service.spec.task)
    };
    let tasks: Vec<_> = draft.state().tasks_of(service.id).filter(|task| fits(task)).cloned().collect();
    for task in tasks {
        let state = draft.state();
        if !state.is_lost(&task) && !is_drained(state, &task) && has_room(state, service, &task) {
            draft.propose(Change::Retune { task: task.id, spec_version: service.spec_version });
        }
    }
}

/// Whether a task's node has what the service reserves now, beside what its other tasks have.
fn has_room(state: &State, service: &Service, task: &Task) -> bool {
    let Some(node) = state.home(task) else { return false };
    let (wanted, had) = (service.spec.task.resources.reservations, task.spec.resources.reservations);
    let others = state.tasks_on(node.id).filter(|other| other.is_live() && other.id != task.id);
    let (cpus, memory) = others.fold((0_u64, 0_u64), |(cpus, memory), other| {
        let reserved = other.spec.resources.reservations;
        (cpus.saturating_add(reserved.nano_cpus), memory.saturating_add(reserved.memory_bytes))
    });
    if !level::knows(node, &service.spec.task) {
        return false;
    }
    let capacity = node.description.capacity;
    let fits = |used: u64, had: u64, wanted: u64, capacity: u64| {
        wanted <= had || used.saturating_add(wanted) <= capacity
    };
    fits(cpus, had.nano_cpus, wanted.nano_cpus, capacity.nano_cpus)
        && fits(memory, had.memory_bytes, wanted.memory_bytes, capacity.memory_bytes)
}

fn status_moves(service: &Service) -> bool {
    service.update_status.as_ref().is_some_and(|status| status.state.is_moving())
}

/// Whether tasks of an older spec make room. Those of a global service that could not be replaced while their node
/// was paused or away still do when the update is over.
fn outdated_go(service: &Service) -> bool {
    let paused = service.update_status.as_ref().is_some_and(|status| status.state.is_paused());
    status_moves(service) || service.spec.mode.is_global() && !paused
}

/// A slot with tasks that must go.
struct Leaving {
    slot: Slot,
    tasks: Vec<Arc<Task>>,
    /// They must go whatever they run: their node is drained, or another suits them better.
    drained: bool,
    /// The task that takes over is there already.
    has_successor: bool,
}

impl Leaving {
    fn of(state: &State, service: &Service, slot: Slot, tasks: &[Arc<Task>]) -> Option<Self> {
        let moving = outdated_go(service) && global::is_open(state, service, slot);
        let present = tasks.iter().filter(|task| task.is_live() && task.is_wanted() && !state.is_lost(task));
        let (mut leaving, mut drained, mut has_successor) = (Vec::new(), false, false);
        for task in present {
            let there = is_sent_away(state, service, task);
            if there || moving && !is_current(state, service, task) {
                drained |= there;
                leaving.push(task.clone());
            } else {
                has_successor = true;
            }
        }
        let tasks = leaving;
        (!tasks.is_empty()).then_some(Self { slot, tasks, drained, has_successor })
    }

    fn runs(&self) -> bool {
        self.tasks.iter().any(|task| task.observed == Observed::Running)
    }
}

/// Whether a task's node shall be empty.
pub(super) fn is_drained(state: &State, task: &Task) -> bool {
    state.home(task).is_some_and(|node| node.availability == Availability::Drain)
}

/// Whether a task shall leave its node: it is drained, or another suits the task better.
fn is_sent_away(state: &State, service: &Service, task: &Task) -> bool {
    is_drained(state, task) || service.moved(task.id).is_some()
}

/// Whether a task makes room for another sooner or later, although not while an update is paused.
pub(super) fn is_outgoing(state: &State, service: &Service, task: &Task) -> bool {
    is_sent_away(state, service, task) || !is_current(state, service, task)
}

/// Whether a task runs what its service asks for now. A spec that differs only in where it may run, and
/// does not exclude the task's node, or in what follows its end, is no reason to replace it.
pub(super) fn is_current(state: &State, service: &Service, task: &Task) -> bool {
    if task.spec_version == service.spec_version || task.spec == service.spec.task {
        return true;
    }
    // Whether its node stops it by itself is something the node has to know from the beginning.
    if task.spec.is_fenced() != service.spec.task.is_fenced() {
        return false;
    }
    let (placement, restart) = (service.spec.task.placement.clone(), service.spec.task.restart.clone());
    let on_node_loss = service.spec.task.on_node_loss;
    let fits = |node| constraint::may_stay(&placement, node);
    let placed_well = placement == task.spec.placement || state.home(task).is_some_and(|node| fits(node));
    placed_well
        && TaskSpec { placement, restart, on_node_loss, ..TaskSpec::clone(&task.spec) } == *service.spec.task
}

/// Whether a task runs what its service asks for now, or will not be replaced before its node takes tasks again.
pub(crate) fn is_settled_on(state: &State, service: &Service, task: &Task) -> bool {
    is_current(state, service, task) || !global::is_open(state, service, task.slot)
}

/// Gives a slot its next task, and lets the old one go: now, or when the new one runs. What was tried and failed
/// is tried again as the restart policy says. Whether others must wait for this slot: not for one that failed.
fn replace(draft: &mut Draft, service: &Service, leaving: &Leaving, tasks: &[Arc<Task>]) -> bool {
    let gone = |task: &Task| leaving.tasks.iter().any(|old| old.id == task.id);
    let tried: Vec<_> = tasks
        .iter()
        .filter(|task| task.spec_version == service.spec_version && !gone(task))
        .cloned()
        .collect();
    let now = Start { at: draft.now, ..Start::default() };
    let start = match (tried.is_empty(), leaving.tasks.last()) {
        (true, Some(old)) => successor(old, service.spec_version, now),
        _ => match restart::decide(service, &tried, draft.now) {
            Restart::At(start) => start,
            Restart::Wait(until) => {
                draft.hold(Whom::Slot(service.id, leaving.slot), until, Why::Restart);
                return false;
            }
            Restart::Never => return false,
        },
    };
    let overlaps = service.pace().order == UpdateOrder::StartFirst && leaving.runs();
    for task in &leaving.tasks {
        if !(overlaps && task.observed == Observed::Running) {
            draft.dismiss(task);
        }
    }
    let occupied = if overlaps { Occupied::new() } else { draft.state().occupied(service.id) };
    draft.create_task(service.id, leaving.slot, start, &occupied);
    let first_try = start.failures == 0;
    for ended in tried.iter().filter(|task| !task.is_live() && task.is_wanted()) {
        draft.want(ended.id, crate::model::Desired::Shutdown);
    }
    first_try
}

/// Whether a slot has been given a new task that does not run yet, or not for long enough. A slot in which it
/// failed holds nobody up.
fn is_busy(draft: &mut Draft, service: &Service, tasks: &[Arc<Task>]) -> bool {
    let state = draft.state();
    let new = tasks.iter().rfind(|task| {
        task.is_live()
            && task.is_wanted()
            && !state.is_lost(task)
            && !is_sent_away(state, service, task)
            && is_current(state, service, task)
    });
    let Some(new) = new else { return false };
    let has_predecessor = tasks.first().is_some_and(|first| first.meta.number < new.meta.number);
    if new.failures > 0 || !has_predecessor {
        return false;
    }
    let running_at = new.status.running_at.filter(|_| new.observed == Observed::Running);
    let Some(running_at) = running_at else { return true };
    let due = running_at.after(service.pace().rest());
    if due > draft.now {
        draft.hold(Whom::Slot(service.id, new.slot), due, Why::Rest);
    }
    due > draft.now
}

/// Whether any slot has a task that may yet come to run for the first time.
fn is_awaited(state: &State, all: &Slots) -> bool {
    all.values().flatten().any(|task| {
        task.is_live()
            && task.is_wanted()
            && !state.is_lost(task)
            && task.failures == 0
            && task.status.running_at.is_none()
    })
}

/// Whether the first tasks of a new spec are still being watched: until one of them has held out, no other slot
/// is put at risk.
fn is_unproven(draft: &mut Draft, service: &Service, all: &Slots) -> bool {
    let pace = service.pace();
    if pace.failure_action == FailureAction::Continue {
        return false;
    }
    let state = draft.state();
    let runs = |task: &&Arc<Task>| {
        task.observed == Observed::Running
            && task.is_wanted()
            && !state.is_lost(task)
            && is_current(state, service, task)
    };
    let first = all.values().flatten().filter(runs).filter_map(|task| task.status.running_at).min();
    match first.map(|first| first.after(pace.monitor)).filter(|due| *due > draft.now) {
        Some(due) => {
            draft.hold(Whom::Service(service.id), due, Why::Watched);
            true
        }
        None => false,
    }
}

/// Why an update cannot go on.
struct Problem {
    /// `due to …`
    why: String,
    failed_task: Option<TaskId>,
    /// Nothing failed, but it took too long.
    timed_out: bool,
}

fn problem(draft: &mut Draft, service: &Service, status: &UpdateStatus, all: &Slots) -> Option<Problem> {
    if let Some(failed) = too_many_failures(draft.state(), service, status, all) {
        let (name, why) = (failed.name(), ending(failed));
        let why = format!("due to failure or early termination of task {name} ({}): {why}", failed.id);
        return Some(Problem { why, failed_task: Some(failed.id), timed_out: false });
    }
    let deadline = service.pace().progress_deadline;
    if deadline.is_zero() {
        return None;
    }
    let current: Vec<_> =
        all.values().flatten().filter(|task| task.spec_version == service.spec_version).cloned().collect();
    let last = current.iter().filter_map(|task| task.status.running_at).max();
    let pace = service.pace();
    let last = status.since.max(last.unwrap_or_default()).after(pace.rest().max(pace.monitor));
    let due = last.after(deadline);
    let outdated = |task: &Arc<Task>| {
        task.is_live()
            && task.is_wanted()
            && !is_current(draft.state(), service, task)
            && global::is_open(draft.state(), service, task.slot)
    };
    let left = is_awaited(draft.state(), all) || all.values().flatten().any(outdated);
    if !left {
        return None;
    }
    if due > draft.now {
        draft.hold(Whom::Service(service.id), due, Why::Deadline);
        return None;
    }
    let waiting = current.iter().filter(|task| task.is_live() && task.status.running_at.is_none());
    let waiting = waiting.min_by_key(|task| task.meta.number);
    let whose = waiting.map_or(String::new(), |task| {
        format!("; task {} waits: {}", task.name(), crate::convergence::words(task))
    });
    let why = format!("since no task came to run within {}{whose}", seconds(deadline));
    Some(Problem { why, failed_task: waiting.map(|task| task.id), timed_out: true })
}

pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        whole if whole >= 120 && whole % 60 == 0 => format!("{} min", whole / 60),
        _ => format!("{} s", time.as_secs_f64()),
    }
}

fn ending(task: &Task) -> String {
    match (task.status.error.as_str(), task.status.exit_code) {
        ("", Some(code)) => format!("exited with code {code}"),
        ("", None) => task.observed.to_string(),
        (error, _) => error.to_owned(),
    }
}

/// The latest failure of a new task, if there are more than the update allows. A slot fails once, however often
/// its task is started again.
fn too_many_failures<'a>(
    state: &State,
    service: &Service,
    status: &UpdateStatus,
    all: &'a Slots,
) -> Option<&'a Arc<Task>> {
    let pace = service.pace();
    if pace.failure_action == FailureAction::Continue {
        return None;
    }
    let made =
        |task: &Task| task.spec_version == service.spec_version && task.meta.created_at >= status.since;
    let failed = |task: &&Arc<Task>| made(task) && failed_early(task, pace);
    let failures: Vec<_> = all.values().filter_map(|tasks| tasks.iter().find(failed)).collect();
    let touched = |tasks: &&Vec<Arc<Task>>| {
        tasks.iter().any(|task| made(task) || task.is_live() && !is_current(state, service, task))
    };
    let allowed = all.values().filter(touched).count() * usize::from(pace.max_failure_permille);
    let last = failures.iter().max_by_key(|task| (task.status.at, task.meta.number));
    last.filter(|_| failures.len() * 1000 > allowed).copied()
}

/// Whether a task ended by itself before it had proved good.
fn failed_early(task: &Task, pace: &UpdateConfig) -> bool {
    let early = task.status.running_at.is_none_or(|began| task.status.at.since(began) < pace.monitor);
    early && matches!(task.observed, Observed::Completed | Observed::Failed | Observed::Rejected)
}

/// Stops an update that cannot go on, or goes back to the last good spec where the service asks for that. What
/// fails on the way back only stops.
fn give_up(draft: &mut Draft, service: &Service, status: UpdateStatus, problem: Problem) {
    let Problem { why, failed_task, timed_out } = problem;
    let back = status.state == UpdateState::Updating
        && service.spec.update.failure_action == FailureAction::Rollback;
    let mut but = String::new();
    if back {
        match go_back(draft.state(), service) {
            Ok((spec, endpoint)) => {
                let message = format!("update rolled back {why}");
                let rollback = Some(Rollback { message, failed_task, automatic: true });
                let (id, version, author) = (service.id, service.meta.version, AUTHOR.to_owned());
                let spec = Box::new(spec);
                draft.propose(Change::UpdateService {
                    service: id,
                    version,
                    spec,
                    endpoint,
                    author,
                    rollback,
                });
                return;
            }
            Err(reason) => but = format!("; it cannot be rolled back: {reason}"),
        }
    }
    let (what, state) = match status.state {
        UpdateState::RollbackStarted => ("rollback", UpdateState::RollbackPaused),
        _ => ("update", UpdateState::Paused),
    };
    let message = format!("{what} paused {why}{but}");
    put(draft, service, UpdateStatus { state, message, failed_task, timed_out, ..status });
}

/// What a service goes back to, if that is still possible.
fn go_back(
    state: &State,
    service: &Service,
) -> Result<(crate::model::ServiceSpec, crate::model::Endpoint), String> {
    let good = service.last_good().ok_or("there is no other spec to go back to")?;
    if let Some(network) = good.spec.task.networks.iter().find(|network| state.network(**network).is_none()) {
        return Err(format!("its network {network} is gone"));
    }
    let endpoint =
        allocator::endpoint(state, service.id, service.meta.number, &good.spec, &service.endpoint)?;
    Ok((good.spec.clone(), endpoint))
}

/// Every slot has been replaced; the last new tasks are watched for a while before that counts.
fn complete(draft: &mut Draft, service: &Service, status: UpdateStatus, all: &Slots) {
    let newest = all
        .values()
        .flatten()
        .filter(|task| task.is_live() && task.spec_version == service.spec_version)
        .filter_map(|task| task.status.running_at)
        .max();
    if let Some(due) = newest.map(|at| at.after(service.pace().monitor)).filter(|due| *due > draft.now) {
        return draft.hold(Whom::Service(service.id), due, Why::Watched);
    }
    let (state, message) = match status.state {
        // Why nobody's wish was undone is worth more than that it was.
        UpdateState::RollbackStarted if status.automatic => {
            (UpdateState::RollbackCompleted, status.message.clone())
        }
        UpdateState::RollbackStarted => (UpdateState::RollbackCompleted, "rollback completed".into()),
        _ => (UpdateState::Completed, "update completed".into()),
    };
    let completed_at = Some(draft.now);
    put(draft, service, UpdateStatus { state, completed_at, message, ..status });
}

fn put(draft: &mut Draft, service: &Service, status: UpdateStatus) {
    let (service_id, spec_version) = (service.id, service.spec_version);
    let was = service.update_status.as_ref().map_or(status.state, |status| status.state);
    draft.propose(Change::SetUpdateStatus { service: service_id, spec_version, was, status });
}

/// A new task that shall run before the old one stops, and finds no place only because the old one has it (a
/// port of the node, its last memory), would wait for ever: there the old one goes first. The services for which that
/// is so.
pub(crate) fn unblock(draft: &mut Draft) -> BTreeSet<ServiceId> {
    let mut unblocked = BTreeSet::new();
    let mut stuck = Vec::new();
    let waits = |task: &&Arc<Task>| {
        task.observed == Observed::Pending && task.node.is_none() && task.is_wanted() && !task.note.is_empty()
    };
    for new in draft.state().restless().filter(waits) {
        let service = draft.state().service(new.service);
        let Some(service) = service.filter(|s| s.pace().order == UpdateOrder::StartFirst) else { continue };
        let old = draft.state().tasks_of(service.id).find(|old| {
            old.slot == new.slot
                && old.id != new.id
                && old.is_live()
                && old.is_wanted()
                && is_outgoing(draft.state(), service, old)
        });
        stuck.extend(old.map(|old| (old.clone(), new.id)));
    }
    for (old, new) in stuck {
        let mut trial = Draft::new(draft.state(), draft.now);
        let (observed, message) = (Observed::Shutdown, String::new());
        trial.propose(Change::EndTask { task: old.id, observed, message });
        scheduler::schedule(&mut trial);
        if trial.state().task(new).is_some_and(|new| new.node.is_some()) {
            draft.dismiss(&old);
            unblocked.insert(old.service);
        }
    }
    unblocked
}
