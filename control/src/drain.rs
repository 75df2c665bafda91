//! What is still on a node that is being drained, and what holds it up there.

use crate::convergence;
use crate::ids::{NodeId, TaskId};
use crate::model::{Observed, Service, Task};
use crate::state::State;
use std::sync::Arc;

/// A task that is still on a drained node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Which.
    pub task: TaskId,
    /// `web.1`
    pub name: String,
    /// Why it is still there.
    pub words: String,
}

/// The tasks that have not left a drained node yet, by name.
pub fn remaining(state: &State, node: NodeId) -> Vec<Remaining> {
    let live = state.tasks_on(node).filter(|task| task.is_live());
    let mut remaining: Vec<Remaining> =
        live.map(|task| Remaining { task: task.id, name: task.name(), words: holdup(state, task) }).collect();
    remaining.sort_by(|one, other| (&one.name, one.task).cmp(&(&other.name, other.task)));
    remaining
}

fn holdup(state: &State, task: &Task) -> String {
    if state.is_lost(task) {
        return "the node is not heard; it ends when it is, or when the node is removed".into();
    }
    if !task.is_wanted() {
        return "it is being stopped".into();
    }
    let Some(service) = state.service(task.service) else { return "its service was removed".into() };
    let after = |other: &&Arc<Task>| {
        other.slot == task.slot && other.id != task.id && other.is_live() && other.is_wanted()
    };
    if let Some(next) = state.tasks_of(service.id).find(after) {
        return format!("the task that takes over is {}", said(next));
    }
    match first_in_the_way(state, service, task) {
        Some(other) => format!("its service replaces {} first, which is {}", other.name(), said(other)),
        None => "its service's update settings hold it back".into(),
    }
}

/// How far a task is, and why it is no further.
fn said(task: &Task) -> String {
    match (task.observed.to_string(), convergence::words(task)) {
        (observed, words) if words == observed => observed,
        (observed, words) => format!("{observed}: {words}"),
    }
}

/// Another slot's task that does not run yet: its service moves so many at a time.
fn first_in_the_way<'a>(state: &'a State, service: &Service, task: &Task) -> Option<&'a Arc<Task>> {
    let coming = |other: &&Arc<Task>| {
        other.slot != task.slot && other.is_live() && other.is_wanted() && other.observed != Observed::Running
    };
    state.tasks_of(service.id).filter(coming).min_by_key(|other| other.meta.number)
}
