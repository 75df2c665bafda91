//! Replicated services: as many slots as there shall be replicas.

use super::slots::{Slots, slots};
use crate::model::{Desired, Observed, Service, Slot, Task};
use crate::plan::{Draft, Start};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Opens slots, lowest free number first, or closes those that are missed least.
pub(super) fn scale(draft: &mut Draft, service: &Service, replicas: u32) {
    let slots = slots(draft.state(), service.id);
    let open = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    let missing = replicas.saturating_sub(open) as usize;
    let free: Vec<Slot> =
        (1..).map(Slot::Replica).filter(|slot| !slots.contains_key(slot)).take(missing).collect();
    for slot in free {
        draft.create_task(service.id, slot, Start { at: draft.now, ..Start::default() });
    }
    for slot in surplus(draft, &slots, open.saturating_sub(replicas)) {
        for task in &slots[&slot] {
            draft.want(task.id, Desired::Remove);
        }
    }
}

/// How much a slot is missed if it is closed; the least goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Missed {
    runs: bool,
    others_on_node: Reverse<usize>,
    slot: Reverse<Slot>,
}

fn surplus(draft: &Draft, slots: &Slots, count: u32) -> Vec<Slot> {
    let mut left: BTreeMap<Slot, Option<&Arc<Task>>> =
        slots.iter().map(|(slot, tasks)| (*slot, filler(draft, tasks))).collect();
    let mut chosen = Vec::new();
    for _ in 0..count {
        let mut on_node = BTreeMap::new();
        for task in left.values().flatten() {
            *on_node.entry(task.node).or_insert(0) += 1;
        }
        let missed = |slot: Slot, task: Option<&Arc<Task>>| Missed {
            runs: task.is_some_and(|task| task.observed == Observed::Running),
            others_on_node: Reverse(task.map_or(0, |task| on_node[&task.node])),
            slot: Reverse(slot),
        };
        let least = left.iter().map(|(slot, task)| (missed(*slot, *task), *slot)).min();
        let Some((_, slot)) = least else { break };
        left.remove(&slot);
        chosen.push(slot);
    }
    chosen
}

/// The task that fills a slot, or will.
fn filler<'a>(draft: &Draft, tasks: &'a [Arc<Task>]) -> Option<&'a Arc<Task>> {
    tasks
        .iter()
        .filter(|task| task.is_live() && task.is_wanted() && !draft.state().is_lost(task))
        .max_by_key(|task| task.observed)
}
