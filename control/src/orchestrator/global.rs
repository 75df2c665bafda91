//! Global services: a slot on each node that may have one.

use super::job;
use super::slots::slots;
use crate::model::{Availability, Desired, Effect, Mode, Node, NodeStatus, Service, Slot, TaskSpec};
use crate::plan::{Draft, Start};
use crate::scheduler::constraint;
use crate::state::State;

/// Slots of a service that are opened in one turn. A plan is one entry of the log, which should not grow without
/// bound; the next turn goes on.
const TURN_MAX: usize = 1_000;

/// Opens a slot on each node that has none and may have one, and closes those of nodes that are no longer members.
/// What is on a node that is drained, or that the service is no longer meant for, ends: it has nowhere else to go.
pub(super) fn scale(draft: &mut Draft, service: &Service) {
    let slots = slots(draft.state(), service.id);
    for (slot, tasks) in &slots {
        let node =
            slot.node().and_then(|node| draft.state().node(node)).filter(|n| n.status != NodeStatus::Left);
        let stays = node.map(|node| {
            node.availability != Availability::Drain
                && constraint::may_stay(&service.spec.task.placement, node)
        });
        match stays {
            None => tasks.iter().for_each(|task| draft.want(task.id, Desired::Remove)),
            Some(false) => {
                for task in tasks.iter().filter(|task| task.is_live() && task.is_wanted()) {
                    draft.want(task.id, Desired::Shutdown);
                }
            }
            Some(true) => {}
        }
    }
    let open = draft.state().nodes().filter(|node| may_begin(node, &service.spec.task));
    let new = open.map(|node| Slot::Node(node.id)).filter(|slot| !slots.contains_key(slot));
    let new: Vec<Slot> = new.take(TURN_MAX).collect();
    let occupied = draft.state().occupied(service.id);
    for slot in new {
        draft.create_task(service.id, slot, Start { at: draft.now, ..Start::default() }, &occupied);
    }
}

/// Whether a slot may be given a task: always, unless its node is not to be given any.
pub(super) fn is_open(state: &State, service: &Service, slot: Slot) -> bool {
    let Some(node) = slot.node() else { return true };
    state.node(node).is_some_and(|node| may_begin(node, &service.spec.task))
}

/// Whether a node may be given tasks of this spec, as far as they may run there at all; whether there is room is
/// for the scheduler to say.
fn may_begin(node: &Node, spec: &TaskSpec) -> bool {
    let placement = &spec.placement;
    let there = node.status == NodeStatus::Ready && node.availability == Availability::Active;
    let tainted =
        constraint::untolerated(placement, node).any(|taint| taint.effect != Effect::PreferNoSchedule);
    there
        && !tainted
        && placement.constraints.iter().all(|constraint| constraint::holds(constraint, node))
        && constraint::is_built_for(placement, node)
}

/// The nodes that a global service has a task on or may be given one; of a job, those that have had it too. One on a
/// node that is lost is not counted, unless it has come to its end.
pub(crate) fn holders(state: &State, service: &Service) -> u32 {
    let slots = slots(state, service.id);
    let late = job::is_late(service, state.clock());
    let holds = |node: &Node| {
        slots.get(&Slot::Node(node.id)).is_some_and(|tasks| {
            let there = !node.status.is_lost() && tasks.iter().any(|task| task.is_live() && task.is_wanted());
            there || service.spec.mode.is_job() && (job::is_done(tasks) || service.expired_at.is_some())
        })
    };
    let may = |node: &Node| !late && may_begin(node, &service.spec.task);
    u32::try_from(state.nodes().filter(|node| may(node) || holds(node)).count()).unwrap_or(u32::MAX)
}

/// How many tasks a service shall have now.
pub(crate) fn wanted(state: &State, service: &Service) -> u32 {
    let left = |total: u32| match service.expired_at {
        None => total.saturating_sub(job::completed(state, service)),
        Some(_) => 0,
    };
    match service.spec.mode {
        Mode::Replicated { replicas } => replicas,
        Mode::Global => holders(state, service),
        Mode::ReplicatedJob { completions, .. } => left(completions).min(service.spec.mode.concurrency()),
        Mode::GlobalJob { .. } => left(holders(state, service)),
    }
}
