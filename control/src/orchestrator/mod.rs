//! What a service's slots need: tasks created, started, stopped and replaced.

mod global;
mod job;
mod loss;
mod replicated;
mod restart;
mod slots;
mod update;

pub(crate) use global::{holders, wanted};
pub(crate) use job::{completed, is_done};
pub(crate) use slots::{Known, Slots, is_given_up, slots};
pub(crate) use update::{AUTHOR, is_settled_on, seconds, unblock};

use crate::ids::ServiceId;
use crate::model::{Mode, Service};
use crate::plan::Draft;

/// Slots that are opened, or closed, in one turn. A plan is one entry of the log, which should not grow without bound;
/// the next turn goes on. Who asks for something meanwhile waits for a turn, and most of a turn's cost is that of what it
/// opens.
const TURN_MAX: usize = 500;
/// Slots that each service may open or close in one turn, however many others do: a small one does not wait until the
/// large ones are done.
const SHARE_MIN: usize = 20;

/// How many slots each of so many services may open or close in one turn.
pub(crate) fn share(services: usize) -> usize {
    TURN_MAX.checked_div(services).unwrap_or(TURN_MAX).max(SHARE_MIN)
}

/// Whether a service shares what can be created in one turn with others: it is to have another number of slots.
pub(crate) fn is_scaling(draft: &mut Draft, service: &Service) -> bool {
    match service.spec.mode {
        Mode::Replicated { replicas } => draft.slots(service.id).len() != replicas as usize,
        Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob { .. } => false,
    }
}

pub(crate) fn reconcile(draft: &mut Draft, id: ServiceId) {
    // An update that fails changes the service: it is paused, or goes back, and that can fail only once more.
    for _ in 0..3 {
        let Some(service) = draft.state().service(id).cloned() else { return };
        let goes_on = match service.spec.mode {
            Mode::Replicated { replicas } => {
                replicated::scale(draft, &service, replicas);
                true
            }
            Mode::Global => {
                global::scale(draft, &service);
                true
            }
            Mode::ReplicatedJob { .. } | Mode::GlobalJob { .. } => job::run(draft, &service),
        };
        if !goes_on {
            break;
        }
        slots::keep_one(draft, &service);
        slots::refill(draft, &service);
        if service.spec.mode.is_job() || !update::roll(draft, id) {
            break;
        }
    }
    slots::release(draft, id);
    loss::explain(draft, id);
}
