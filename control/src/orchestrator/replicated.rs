//! Replicated services: as many slots as there shall be replicas.

use super::slots::Slots;
use crate::ids::NodeId;
use crate::model::{Desired, Observed, Service, Slot, Task};
use crate::plan::{Draft, Start};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Opens slots, lowest free number first, or closes those that are missed least.
pub(super) fn scale(draft: &mut Draft, service: &Service, replicas: u32) {
    let slots = draft.slots(service.id);
    let open = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    let missing = (replicas.saturating_sub(open) as usize).min(draft.share);
    // Where no number was left out, the next ones are free.
    let first = if slots.contains_key(&Slot::Replica(open)) { open + 1 } else { 1 };
    let free: Vec<Slot> =
        (first..).map(Slot::Replica).filter(|slot| !slots.contains_key(slot)).take(missing).collect();
    if !free.is_empty() {
        let occupied = draft.state().occupied(service.id);
        for slot in free {
            draft.create_task(service.id, slot, Start { at: draft.now, ..Start::default() }, &occupied);
        }
    }
    for slot in surplus(draft, &slots, (open.saturating_sub(replicas) as usize).min(draft.share)) {
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

fn surplus(draft: &Draft, slots: &Slots, count: usize) -> Vec<Slot> {
    if count == 0 {
        return Vec::new();
    }
    // Slots of a kind are missed in the order of their numbers, so only the highest of each is compared.
    let mut kinds: BTreeMap<(bool, Option<NodeId>), Vec<Slot>> = BTreeMap::new();
    let mut on_node: BTreeMap<Option<NodeId>, usize> = BTreeMap::new();
    for (slot, tasks) in slots {
        let task = filler(draft, tasks);
        let runs = task.is_some_and(|task| task.observed == Observed::Running);
        let node = task.and_then(|task| task.node);
        kinds.entry((runs, node)).or_default().push(*slot);
        *on_node.entry(node).or_default() += 1;
    }
    let mut chosen = Vec::new();
    for _ in 0..count {
        let missed = |((runs, node), slots): (&(bool, Option<NodeId>), &Vec<Slot>)| {
            let others_on_node = Reverse(node.map_or(0, |_| on_node[node]));
            slots.last().map(|slot| (Missed { runs: *runs, others_on_node, slot: Reverse(*slot) }, *node))
        };
        let Some((least, node)) = kinds.iter().filter_map(missed).min() else { break };
        kinds.entry((least.runs, node)).or_default().pop();
        *on_node.entry(node).or_default() -= 1;
        chosen.push(least.slot.0);
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
