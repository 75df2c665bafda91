//! Tasks move to where the scheduler would put them now: when a user asks for it, and, if the cluster is set so, by
//! themselves when a node has come back. A service is moved in steps, each decided on when the one before is done,
//! within its update settings; it is balanced when no task would be strictly better off elsewhere.

use crate::admission::{Answer, Refused, find_service};
use crate::ids::{ServiceId, TaskId};
use crate::level;
use crate::model::{Availability, Mode, Mount, NodeStatus, Observed, Rebalance, Service, Task};
use crate::orchestrator::{self, AUTHOR};
use crate::plan::{Draft, Whom, Why};
use crate::scheduler::{Board, movable};
use crate::state::{Change, State};
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a node must have been back before anything moves to it by itself.
pub const BACK_FOR: Duration = Duration::from_secs(60);

/// How often a task is moved at the most, on average.
const MOVES_EACH: u32 = 4;

/// Decides on a user's wish to have services rebalanced; all that can be where none is named. Nothing is done where
/// no task of them would be better off elsewhere.
pub(crate) fn admit(
    state: &State,
    names: &[String],
    now: Timestamp,
) -> Result<(Vec<Change>, Answer), Refused> {
    if state.level() < level::REBALANCE {
        return Err(Refused::FailedPrecondition(
            "tasks can be rebalanced when all managers run this version: upgrade the others first".into(),
        ));
    }
    let services: Vec<Arc<Service>> = match names {
        [] => state.services().filter(|service| obstacle(service).is_none()).cloned().collect(),
        names => {
            let found: Result<Vec<_>, Refused> = names.iter().map(|name| find_service(state, name)).collect();
            let found = found?;
            if let Some((service, why)) = found.iter().find_map(|s| obstacle(s).map(|why| (s, why))) {
                let name = &service.spec.name;
                return Err(Refused::FailedPrecondition(format!(
                    "service {name} cannot be rebalanced: {why}"
                )));
            }
            found
        }
    };
    let mut board = Board::new(state, now, None);
    if services.iter().all(|service| next(&mut board, state, service, 1).is_empty()) {
        return Ok((Vec::new(), Answer::Done));
    }
    // What one service's moves change may be a reason for another's.
    let begin = |service: &Arc<Service>| {
        // What moves already goes on doing so.
        let moving = service.rebalance.as_ref().map(|under_way| under_way.moving.clone()).unwrap_or_default();
        let left = budget(state, service);
        let rebalance = Rebalance { since: now, author: String::new(), left, gentle: false, moving };
        (service.id, Change::SetRebalance { service: service.id, since: None, rebalance: Some(rebalance) })
    };
    let begun: BTreeMap<ServiceId, Change> = services.iter().map(begin).collect();
    Ok((begun.into_values().collect(), Answer::Done))
}

/// Why the tasks of a service stay where they are.
fn obstacle(service: &Service) -> Option<String> {
    let mounts = || service.spec.task.containers.iter().flat_map(|container| &container.mounts);
    match service.spec.mode {
        Mode::Replicated { .. } if mounts().any(|mount| matches!(mount, Mount::Volume { .. })) => {
            Some("its tasks keep data in volumes of their nodes".into())
        }
        Mode::Replicated { .. } => None,
        Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob { .. } => {
            Some(format!("it is {}", service.spec.mode.name()))
        }
    }
}

/// How many tasks of a service are moved at the most: where rules chase each other, it ends all the same.
fn budget(state: &State, service: &Service) -> u32 {
    u32::try_from(movable(state, service).len()).unwrap_or(u32::MAX).saturating_mul(MOVES_EACH)
}

/// The next tasks that would be better off elsewhere, `width` at most, and why. If it is more than one, the board has
/// them there then. They are found in the order in which they are placed, and what some of them hold until they have
/// ended is not free for others, so that each comes to where it was found to be better off.
fn next(board: &mut Board, state: &State, service: &Service, width: usize) -> BTreeMap<TaskId, String> {
    let mut moves = BTreeMap::new();
    let mut filled = BTreeSet::new();
    // Tasks of one spec on one node are alike.
    let mut settled = BTreeSet::new();
    for task in movable(state, service) {
        if moves.len() == width {
            break;
        }
        // Where something just moves to, nothing is moved from at once: that would no longer be what it moves to.
        if task.node.is_some_and(|home| filled.contains(&home))
            || settled.contains(&(task.node, task.spec_version))
        {
            continue;
        }
        let Some(better) = board.better(state, service, &task) else {
            settled.insert((task.node, task.spec_version));
            continue;
        };
        moves.insert(task.id, better.why);
        if moves.len() < width {
            board.shift(state, &task, better.node);
        }
        filled.insert(better.node);
        settled.clear();
    }
    moves
}

/// Takes the next step, with one service at a time: what moves is weighed on a board on which all else has come to
/// rest, and a turn that follows at once finds nothing to do. Returns the services that it changes.
pub(crate) fn step(draft: &mut Draft) -> Vec<ServiceId> {
    if draft.state().level() < level::REBALANCE {
        return Vec::new();
    }
    on_return(draft);
    let services: Vec<Arc<Service>> =
        draft.state().services().filter(|service| service.rebalance.is_some()).cloned().collect();
    let (mut moves, mut waits) = (false, false);
    let (mut quiet, mut idle, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for service in services {
        let Some(rebalance) = service.rebalance.clone() else { continue };
        if service.update_status.as_ref().is_some_and(|status| status.state.is_paused()) {
            changes.push((service.id, rebalance.since, None));
        } else if is_quiet(draft, &service, &rebalance) {
            quiet.push((service, rebalance));
        } else if !rebalance.moving.is_empty() {
            match falters(draft.state(), &service, &rebalance) {
                true => changes.push((service.id, rebalance.since, None)),
                false => moves = true,
            }
        } else if !is_updating(&service) && !rebalance.gentle {
            // Where there is an update, its turn comes when that is over.
            idle.push((service.id, rebalance.since));
        }
    }
    // Those who were asked for come first.
    quiet.sort_by_key(|(service, rebalance)| (rebalance.gentle, service.id));
    let mut board: Option<Board> = None;
    for (service, rebalance) in quiet {
        if moves {
            waits |= !rebalance.gentle;
            continue;
        }
        let width = match service.pace().parallelism {
            _ if rebalance.gentle => 1,
            0 => u32::MAX,
            width => width,
        };
        let width = width.min(rebalance.left);
        // Nothing is put on it or taken from it but by the last who asks.
        let board = board.get_or_insert_with(|| Board::new(draft.state(), draft.now, None));
        let moving = next(board, draft.state(), &service, width as usize);
        if moving.is_empty() {
            match rebalance.gentle {
                true => changes.push((service.id, rebalance.since, None)),
                false => idle.push((service.id, rebalance.since)),
            }
            continue;
        }
        moves = true;
        let left = rebalance.left.saturating_sub(moving.len() as u32);
        changes.push((service.id, rebalance.since, Some(Rebalance { left, moving, ..rebalance })));
    }
    // They are done together: what the last of them moves may be a reason for the first.
    if !moves && !waits {
        changes.extend(idle.into_iter().map(|(service, since)| (service, since, None)));
    }
    let changed = changes.iter().map(|(service, ..)| *service).collect();
    for (service, since, rebalance) in changes {
        draft.propose(Change::SetRebalance { service, since: Some(since), rebalance });
    }
    changed
}

/// Ends what cannot go on: a task shall run before the one that moves has ended, and finds no place beside it. Says
/// whether there was anything: then others may move.
pub(crate) fn give_up(draft: &mut Draft) -> bool {
    let state = draft.state();
    let waits = |moving: &TaskId| {
        let task = state.task(*moving).filter(|task| task.is_live() && task.is_wanted());
        task.is_some_and(|task| {
            state.tasks_of(task.service).any(|other| {
                let waits = other.is_live() && other.is_wanted() && other.node.is_none();
                other.slot == task.slot && waits && !other.note.is_empty()
            })
        })
    };
    let stuck = |service: &Arc<Service>| {
        let rebalance = service.rebalance.as_ref()?;
        rebalance.moving.keys().any(waits).then_some((service.id, rebalance.since))
    };
    let stuck: Vec<(ServiceId, Timestamp)> = state.services().filter_map(stuck).collect();
    for (service, since) in &stuck {
        draft.propose(Change::SetRebalance { service: *service, since: Some(*since), rebalance: None });
        orchestrator::reconcile(draft, *service);
    }
    !stuck.is_empty()
}

/// Whether all has left that was to move, and what follows it does not come to run: others need not wait for that.
fn falters(state: &State, service: &Service, rebalance: &Rebalance) -> bool {
    let mut live = state.tasks_of(service.id).filter(|task| task.is_live());
    let moves = |id: &TaskId| state.task(*id).is_some_and(|task| task.is_live());
    !rebalance.moving.keys().any(moves)
        && live.any(|task| task.observed != Observed::Running && task.failures > 0)
}

fn is_updating(service: &Service) -> bool {
    service.update_status.as_ref().is_some_and(|status| !status.state.is_complete())
}

/// Whether what was moved last has come to run and rested, and nothing else goes on with the service.
fn is_quiet(draft: &mut Draft, service: &Service, rebalance: &Rebalance) -> bool {
    let state = draft.state();
    let moves = |id: &TaskId| state.task(*id).is_some_and(|task| task.is_live());
    let live = state.tasks_of(service.id).filter(|task| task.is_live() && !state.is_lost(task));
    // One that finds no place may find it by this.
    let restless =
        |task: &Arc<Task>| task.node.is_some() && (task.observed != Observed::Running || !task.is_wanted());
    let (mut waits, mut newest) = (false, None);
    for task in live {
        waits |= restless(task);
        newest = newest.max(task.status.running_at);
    }
    if is_updating(service) || waits || rebalance.moving.keys().any(moves) {
        return false;
    }
    let due = newest.map(|newest| newest.after(service.pace().rest())).filter(|due| *due > draft.now);
    match due.filter(|_| !rebalance.moving.is_empty()) {
        Some(due) => {
            draft.hold(Whom::Service(service.id), due, Why::Rest);
            false
        }
        None => true,
    }
}

/// Where the cluster is set so, begins with the services that a node which has come back would relieve.
fn on_return(draft: &mut Draft) {
    let Some(cluster) = draft.state().cluster().cloned() else { return };
    let Some(since) = cluster.settings.rebalance_since else { return };
    let back = draft.state().nodes().filter(|node| {
        node.status == NodeStatus::Ready
            && node.availability == Availability::Active
            && node.status_since > since
    });
    let back: BTreeSet<Timestamp> = back.map(|node| node.status_since).collect();
    let (ready, later): (Vec<Timestamp>, Vec<Timestamp>) =
        back.into_iter().partition(|at| at.after(BACK_FOR) <= draft.now);
    if let Some(next) = later.first() {
        draft.wake_at(next.after(BACK_FOR));
    }
    let Some(seen) = ready.last() else { return };
    let mut settings = cluster.settings.clone();
    settings.rebalance_since = Some(*seen);
    draft.propose(Change::SetSettings { version: cluster.meta.version, settings });
    let mut board = Board::new(draft.state(), draft.now, None);
    let may = |service: &&Arc<Service>| obstacle(service).is_none() && service.rebalance.is_none();
    for service in draft.state().services().filter(may).cloned().collect::<Vec<_>>() {
        if next(&mut board, draft.state(), &service, 1).is_empty() {
            continue;
        }
        let (since, author) = (draft.now, AUTHOR.to_owned());
        let left = budget(draft.state(), &service);
        let rebalance = Some(Rebalance { since, author, left, gentle: true, moving: BTreeMap::new() });
        draft.propose(Change::SetRebalance { service: service.id, since: None, rebalance });
    }
}
