//! Tasks that nobody will end, and history that nobody needs.

use crate::ids::{ServiceId, TaskId};
use crate::model::{Desired, Node, NodeStatus, Observed, RestartPolicy, Service, Task};
use crate::plan::Draft;
use crate::state::Change;
use std::sync::Arc;
use std::time::Duration;

/// A task whose node has been down for this long is given up, and its addresses are used again.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// However many restarts a policy allows, no more ended tasks of a slot are kept to count them.
const WINDOW_HISTORY_MAX: u32 = 100;

/// Ends tasks that no node will report on.
pub(crate) fn end(draft: &mut Draft) {
    let mut endings = Vec::new();
    for task in draft.state().restless().filter(|task| task.node.is_none() && !task.is_wanted()) {
        endings.push((task.id, Observed::Shutdown, "no longer wanted before it had a node"));
    }
    let gone = |node: &&Arc<Node>| matches!(node.status, NodeStatus::Left | NodeStatus::Down);
    let nodes: Vec<Arc<Node>> = draft.state().nodes().filter(gone).cloned().collect();
    for node in nodes {
        let ends = |task: &&Arc<Task>| task.is_live() && !draft.state().keeps_place(task);
        let tasks: Vec<_> = draft.state().tasks_on(node.id).filter(ends).collect();
        let why = match node.status {
            NodeStatus::Left => "its node left the cluster",
            _ if tasks.is_empty() => continue,
            _ => match node.status_since.after(ORPHAN_AFTER) {
                due if due <= draft.now => "its node was down for too long",
                due => {
                    draft.wake_at(due);
                    continue;
                }
            },
        };
        endings.extend(tasks.iter().map(|task| (task.id, Observed::Orphaned, why)));
    }
    for (task, observed, why) in endings {
        draft.propose(Change::EndTask { task, observed, message: why.into() });
    }
}

/// Forgets ended tasks of a service that are to be removed or that are history beyond the limit.
pub(crate) fn forget(draft: &mut Draft, service: ServiceId) {
    let state = draft.state();
    let limit = state.cluster().map_or(0, |cluster| cluster.settings.task_history_limit);
    // What an update replaced, and what failed on the way, is counted until it is over.
    let moves = |service: &Arc<Service>| {
        service.update_status.as_ref().is_some_and(|status| status.state.is_moving())
    };
    let counted = if state.service(service).is_some_and(moves) { 2 } else { 0 };
    let removed = |task: &&Arc<Task>| task.desired == Desired::Remove && !task.is_live();
    let mut unwanted: Vec<TaskId> = state.tasks_of(service).filter(removed).map(|task| task.id).collect();
    for tasks in draft.slots(service).values() {
        // The last task of a slot that was given up is what says so.
        let given_up = usize::from(!tasks.iter().any(|task| task.is_wanted() && task.is_live()));
        let keep = tasks.last().map_or(0, |task| history(&task.spec.restart, limit)).max(given_up);
        let keep = keep.max(counted);
        let ended: Vec<_> = tasks.iter().filter(|task| !task.is_live()).collect();
        let surplus = ended.len().saturating_sub(keep);
        unwanted.extend(ended[..surplus].iter().map(|task| task.id));
    }
    for task in unwanted {
        draft.propose(Change::RemoveTask { task });
    }
}

/// How many ended tasks of a slot are kept: as many as are asked for, or as its restart policy counts.
fn history(policy: &RestartPolicy, limit: u32) -> usize {
    let counted = match policy.max_attempts {
        Some(max) if !policy.window.is_zero() => max.saturating_add(1).min(WINDOW_HISTORY_MAX),
        Some(_) | None => 0,
    };
    limit.max(counted) as usize
}
