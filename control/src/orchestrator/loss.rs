//! What becomes of the places of tasks whose node is lost, and what is said about it.

use crate::model::{NodeStatus, OnNodeLoss, Task};
use crate::plan::Draft;
use crate::state::{Change, State};
use std::sync::Arc;

impl State {
    /// Whether a live task whose node is lost keeps its place: nobody may take it yet. A fenced one does until it has
    /// certainly stopped, and is ended then; one whose node was never told to stop it, until the node is back.
    pub(crate) fn keeps_place(&self, task: &Task) -> bool {
        let down = self.home(task).is_some_and(|node| node.status == NodeStatus::Down);
        down && task.has_begun() && self.policy(task) != OnNodeLoss::Replace
    }

    /// What its service says now, or what it was told itself if that is gone.
    fn policy(&self, task: &Task) -> OnNodeLoss {
        self.service(task.service).map_or(task.spec.node_loss(), |service| service.spec.task.node_loss())
    }
}

/// Says of tasks that keep their place why that is so, and no longer says it of those that are back.
pub(super) fn explain(draft: &mut Draft, id: crate::ids::ServiceId) {
    let is_down = draft.state().nodes().any(|node| node.status == NodeStatus::Down);
    let placed =
        |task: &&Arc<Task>| task.is_live() && task.node.is_some() && (is_down || !task.note.is_empty());
    for task in draft.state().tasks_of(id).filter(placed).cloned().collect::<Vec<_>>() {
        let note = match draft.state().keeps_place(&task) && task.is_wanted() && task.slot.node().is_none() {
            true => why(draft.state(), &task),
            false => String::new(),
        };
        if note != task.note {
            draft.propose(Change::Note { task: task.id, note });
        }
    }
}

fn why(state: &State, task: &Task) -> String {
    let host = state.home(task).map_or("", |node| node.hostname.as_str());
    match state.policy(task) {
        OnNodeLoss::Fence if task.spec.is_fenced() => {
            format!("{host} is lost; another task takes its place when it has certainly stopped there")
        }
        OnNodeLoss::Fence | OnNodeLoss::Replace => format!(
            "{host} is lost, and was not told to stop it by itself; its place is kept until {host} is back or removed"
        ),
        OnNodeLoss::Wait => format!("{host} is lost; its place is kept until {host} is back or removed"),
    }
}
