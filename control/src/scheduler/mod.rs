//! Which node runs a waiting task.
//!
//! Every node is asked and scored, exactly and without sampling; the lowest score wins, and of equal scores the
//! lowest node id, so that the same state gives the same plan. The work is kept small by remembering: of the nodes
//! scored for one task only those that were touched since are scored anew for the next ([`group`]).

mod better;
mod board;
mod choice;
pub mod constraint;
mod filter;
mod group;
mod seat;

use crate::ids::{NodeId, ServiceId};
use crate::model::{AffinityRule, Observed, Task};
use crate::plan::Draft;
use crate::state::{Change, State};
use crate::time::Timestamp;
pub(crate) use better::movable;
pub(crate) use board::Board;
pub(crate) use choice::choice;
pub use choice::{Choice, Criterion};
pub(crate) use filter::{Bytes, Cpus};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) fn schedule(draft: &mut Draft) {
    let mut pending: Vec<Arc<Task>> = draft
        .state()
        .restless()
        .filter(|task| task.observed == Observed::Pending && task.node.is_none() && task.is_wanted())
        .cloned()
        .collect();
    if pending.is_empty() {
        return;
    }
    pending.sort_by_key(|task| task.meta.number);
    let mut board = Board::new(draft.state(), draft.now, None);
    let mut assign = |draft: &mut Draft, task: &Task| {
        let found = board.place(draft.state(), task);
        found.map(|(node, claims)| draft.propose(Change::Assign { task: task.id, node, claims })).is_some()
    };
    let mut waiting = pending;
    waiting.retain(|task| !assign(draft, task));
    // What was placed may be what others are to be near.
    loop {
        let before = waiting.len();
        waiting.retain(|task| !is_drawn(task) || !assign(draft, task));
        if waiting.len() == before {
            break;
        }
    }
    // Why they wait is said last: what was placed after them is part of it.
    let mut notes: BTreeMap<(ServiceId, u64, Option<NodeId>), Option<String>> = BTreeMap::new();
    for task in waiting {
        let key = (task.service, task.spec_version, task.slot.node());
        let note =
            notes.entry(key).or_insert_with(|| board.refusals(draft.state(), &task).map(|no| no.to_string()));
        if let Some(note) = note.as_ref().filter(|note| **note != task.note) {
            draft.propose(Change::Note { task: task.id, note: note.clone() });
        }
    }
}

/// Whether a task is to be where tasks of some service are.
fn is_drawn(task: &Task) -> bool {
    task.spec.placement.affinities.iter().any(|affinity| affinity.rule == AffinityRule::Together)
}

/// Why no node can take a task now; nothing if one can.
pub(crate) fn refusals(state: &State, now: Timestamp, task: &Task) -> Option<filter::Refusals> {
    Board::new(state, now, None).refusals(state, task)
}

#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;
