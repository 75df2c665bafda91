//! Global services: a slot on each node that may have one.

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

/// How many tasks a service shall have now. A global one has as many as there are nodes that may have one or have
/// it already; one on a node that is lost is not counted.
pub(crate) fn wanted(state: &State, service: &Service) -> u32 {
    match service.spec.mode {
        Mode::Replicated { replicas } => replicas,
        Mode::Global => {
            let holds = |node: &Node| {
                !node.status.is_lost()
                    && state
                        .tasks_on(node.id)
                        .any(|task| task.service == service.id && task.is_live() && task.is_wanted())
            };
            let nodes = state.nodes().filter(|node| may_begin(node, &service.spec.task) || holds(node));
            u32::try_from(nodes.count()).unwrap_or(u32::MAX)
        }
    }
}
