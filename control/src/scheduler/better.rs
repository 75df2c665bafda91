//! Whether a task that runs would be placed elsewhere now, and why.

use super::board::Board;
use super::choice;
use super::filter::Refusal;
use crate::ids::NodeId;
use crate::model::{Availability, NodeStatus, Service, Task};
use crate::state::State;
use std::sync::Arc;

/// A node on which a task would be better off.
pub(crate) struct Better {
    pub(crate) node: NodeId,
    /// What speaks for it, in words.
    pub(crate) why: String,
}

impl Board {
    /// The node to which the scheduler would now give what runs in the place of `task`, if that is strictly better
    /// than where it is: what differs by id alone is not. Nodes that something else moves away from are not looked at.
    /// The board is left as it was found.
    pub(crate) fn better(&mut self, state: &State, service: &Service, task: &Task) -> Option<Better> {
        let home = state.home(task)?;
        // A node that gets nothing new keeps what it has.
        if home.status != NodeStatus::Ready || home.availability != Availability::Active {
            return None;
        }
        let (spec, spec_version) = (service.spec.task.clone(), service.spec_version);
        let probe = Task { spec, spec_version, ..task.clone() };
        let place = self.place_of(home.id)?;
        self.lift(state, task, place);
        let better = self.compared(state, &probe, place);
        self.put(state, task, place, &task.claims);
        better
    }

    /// Has a task move to another node than its own.
    pub(crate) fn shift(&mut self, state: &State, task: &Task, to: NodeId) {
        let from = task.node.and_then(|node| self.place_of(node));
        let (Some(from), Some(to)) = (from, self.place_of(to)) else { return };
        self.succeed(state, task, from, to);
    }

    fn compared(&mut self, state: &State, probe: &Task, here: u32) -> Option<Better> {
        let (group, seats, left) = self.group(state, probe);
        let there = group.best(left).filter(|there| *there != here)?;
        let [mine, other] = [here, there].map(|place| &seats[place as usize]);
        let best = group.stand(other, there)?;
        let (node, name) = (other.node.id, &other.node.hostname);
        let Some(stand) = group.stand(mine, here) else {
            let refusal = group.refusal(mine, here)?;
            // What came after it is no reason to send it away, where the user did not ask for that.
            return match refusal {
                Refusal::Affinity(_) | Refusal::MaxPerNode(_) | Refusal::Cpus | Refusal::Memory => {
                    let why = super::filter::refused(&refusal, 1);
                    Some(Better { node, why: format!("{name} may have it, and here: {why}") })
                }
                _ => None,
            };
        };
        let is_better = (best.faulty, best.weight, &best.crowd, best.tail)
            < (stand.faulty, stand.weight, &stand.crowd, stand.tail);
        let decides = || {
            let criteria = choice::criteria(probe, group.filling(), &best, &stand);
            criteria.into_iter().find(|criterion| criterion.decides)
        };
        is_better.then(|| Better {
            node,
            why: decides().map_or_else(
                || format!("{name} suits it better"),
                |one| {
                    format!("{name} suits it better ({}: {} there, {} here)", one.what, one.here, one.there)
                },
            ),
        })
    }
}

/// The tasks of a service that could be better off elsewhere: they run, and are wanted to.
pub(crate) fn movable(state: &State, service: &Service) -> Vec<Arc<Task>> {
    use crate::model::{Desired, Observed};
    let runs = |task: &&Arc<Task>| {
        task.observed == Observed::Running && task.desired == Desired::Running && !state.is_lost(task)
    };
    let mut tasks: Vec<Arc<Task>> = state.tasks_of(service.id).filter(runs).cloned().collect();
    tasks.sort_by_key(|task| (task.slot, task.meta.number));
    tasks
}
