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
pub(crate) use slots::{is_given_up, slots};
pub(crate) use update::{is_settled_on, seconds, unblock};

use crate::ids::ServiceId;
use crate::model::Mode;
use crate::plan::Draft;

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
