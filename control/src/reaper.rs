//! Tasks that nobody will end, and history that nobody needs.

use crate::model::{Desired, NodeStatus, Observed, RestartPolicy, Service, Slot, Task};
use crate::plan::Draft;
use crate::state::Change;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A task whose node has been down for this long is given up, and its addresses are used again.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// However many restarts a policy allows, no more ended tasks of a slot are kept to count them.
const WINDOW_HISTORY_MAX: u32 = 100;

/// Ends tasks that no node will report on.
pub(crate) fn end(draft: &mut Draft) {
    let tasks: Vec<Arc<Task>> = draft.state().tasks().filter(|task| task.is_live()).cloned().collect();
    for task in tasks {
        let ending = match draft.state().home(&task) {
            None if task.node.is_none() && !task.is_wanted() => {
                Some((Observed::Shutdown, "no longer wanted before it had a node"))
            }
            None => None,
            Some(node) => match node.status {
                NodeStatus::Left => Some((Observed::Orphaned, "its node left the cluster")),
                NodeStatus::Down => {
                    let due = node.status_since.after(ORPHAN_AFTER);
                    if due > draft.now {
                        draft.wake_at(due);
                    }
                    (due <= draft.now).then_some((Observed::Orphaned, "its node was down for too long"))
                }
                NodeStatus::Unknown | NodeStatus::Ready | NodeStatus::Suspect => None,
            },
        };
        if let Some((observed, message)) = ending {
            draft.propose(Change::EndTask { task: task.id, observed, message: message.into() });
        }
    }
}

/// Forgets ended tasks that are to be removed or that are history beyond the limit.
pub(crate) fn forget(draft: &mut Draft) {
    // Tasks that lost their purpose in this very turn need not wait for the next.
    end(draft);
    let limit = draft.state().cluster().map_or(0, |cluster| cluster.settings.task_history_limit);
    let mut unwanted = Vec::new();
    for service in draft.state().service_ids() {
        // What an update replaced, and what failed on the way, is counted until it is over.
        let moves = |service: &Arc<Service>| {
            service.update_status.as_ref().is_some_and(|status| status.state.is_moving())
        };
        let counted = if draft.state().service(service).is_some_and(moves) { 2 } else { 0 };
        let mut slots: BTreeMap<Slot, Vec<&Arc<Task>>> = BTreeMap::new();
        for task in draft.state().tasks_of(service) {
            if task.desired == Desired::Remove {
                unwanted.extend((!task.is_live()).then_some(task.id));
            } else {
                slots.entry(task.slot).or_default().push(task);
            }
        }
        for tasks in slots.values_mut() {
            tasks.sort_by_key(|task| task.meta.number);
            // The last task of a slot that was given up is what says so.
            let given_up = usize::from(!tasks.iter().any(|task| task.is_wanted() && task.is_live()));
            let keep = tasks.last().map_or(0, |task| history(&task.spec.restart, limit)).max(given_up);
            let keep = keep.max(counted);
            let ended: Vec<_> = tasks.iter().filter(|task| !task.is_live()).collect();
            let surplus = ended.len().saturating_sub(keep);
            unwanted.extend(ended[..surplus].iter().map(|task| task.id));
        }
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
