//! One turn of the leader's crank.

use crate::liveness::{self, Heard};
use crate::plan::{Draft, Plan};
use crate::state::State;
use crate::time::Timestamp;
use crate::{allocator, orchestrator, reaper, scheduler};

/// Looks at the whole cluster and proposes what should change next.
///
/// Running it twice on one state proposes the same plan twice; running it on the state it asked for
/// proposes nothing. It is to be run when the state has changed, when the plan's `wake_at` has come, and
/// when a node is heard from that is not [`Ready`](crate::model::NodeStatus::Ready). It remembers nothing between calls, so a new leader continues mid-sentence.
pub fn tick(state: &State, heard: &Heard, now: Timestamp) -> Plan {
    let mut draft = Draft::new(state, now);
    if state.cluster().is_none() {
        return draft.finish();
    }
    liveness::watch(&mut draft, heard);
    reaper::end(&mut draft);
    for service in state.services().map(|service| service.id) {
        orchestrator::reconcile(&mut draft, service);
    }
    loop {
        allocator::allocate(&mut draft);
        scheduler::schedule(&mut draft);
        let unblocked = orchestrator::unblock(&mut draft);
        if unblocked.is_empty() {
            break;
        }
        for service in unblocked {
            orchestrator::reconcile(&mut draft, service);
        }
    }
    reaper::forget(&mut draft);
    draft.finish()
}
