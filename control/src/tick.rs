//! One turn of the leader's crank.

use crate::calm::Calm;
use crate::liveness::{self, Heard};
use crate::model::Service;
use crate::orchestrator::Known;
use crate::plan::{Draft, Hold, Plan};
use crate::state::State;
use crate::time::Timestamp;
use crate::{allocator, level, orchestrator, reaper, rebalance, scheduler};
use std::sync::Arc;

/// Looks at the whole cluster and proposes what should change next.
///
/// Running it twice on one state proposes the same plan twice; running it on the state it asked for
/// proposes nothing. It is to be run when the state has changed, when the plan's `wake_at` has come, and
/// when a node is heard from that is not [`Ready`](crate::model::NodeStatus::Ready). It remembers nothing between
/// calls, so a new leader continues mid-sentence.
pub fn tick(state: &State, heard: &Heard, now: Timestamp) -> Plan {
    Crank::default().turn(state, heard, now)
}

/// Turns that follow each other, by one leader. What nothing happened to is not looked at again.
///
/// **Invariant:** each turn comes to the same plan as [`tick`]; a new one at any moment makes no difference but to
/// the time it takes.
#[derive(Debug, Default)]
pub struct Crank {
    calm: Calm,
    known: Known,
}

impl Crank {
    /// See [`tick`].
    pub fn turn(&mut self, state: &State, heard: &Heard, now: Timestamp) -> Plan {
        let mut draft = Draft::new(state, now);
        draft.known = std::mem::take(&mut self.known);
        self.draw(&mut draft, heard);
        self.known = std::mem::take(&mut draft.known);
        self.known.keep(|service| !state.task_map(service).is_empty());
        draft.finish()
    }

    fn draw(&mut self, draft: &mut Draft, heard: &Heard) {
        if draft.state().cluster().is_none() {
            return;
        }
        level::raise(draft);
        liveness::watch(draft, heard);
        reaper::end(draft);
        rebalance::step(draft);
        self.calm.disturb(draft.state(), draft.now);
        draft.share = self.share(draft);
        let mut looked_at = Vec::new();
        for service in draft.state().service_ids() {
            if let Some(wake_at) = self.calm.of(draft.state(), service) {
                wake_at.into_iter().for_each(|wake_at| draft.wake_at(wake_at));
                continue;
            }
            let before = draft.state().clone();
            let wake_at = draft.during(|draft| orchestrator::reconcile(draft, service));
            looked_at.push((service, before, wake_at));
        }
        loop {
            place(draft);
            let gave_up = rebalance::give_up(draft);
            // Tasks that lost their purpose in this very turn need not wait for the next.
            reaper::end(draft);
            // What came of this turn may be a reason to move something, or to move nothing any more.
            let changed = rebalance::step(draft);
            if !gave_up && changed.is_empty() {
                break;
            }
            changed.into_iter().for_each(|service| orchestrator::reconcile(draft, service));
        }
        for service in draft.state().service_ids() {
            if self.calm.of(draft.state(), service).is_none() {
                reaper::forget(draft, service);
            }
        }
        for (service, before, wake_at) in looked_at {
            self.calm.remember(&before, draft.state(), service, wake_at);
        }
    }

    /// What comes to one service of what can be created in one turn. What is calm is complete.
    fn share(&self, draft: &mut Draft) -> usize {
        let restless = |service: &&Arc<Service>| self.calm.of(draft.state(), service.id).is_none();
        let restless: Vec<Arc<Service>> = draft.state().services().filter(restless).cloned().collect();
        let scaling = restless.iter().filter(|service| orchestrator::is_scaling(draft, service));
        orchestrator::share(scaling.count())
    }
}

/// Gives waiting tasks what they need, as far as there is any.
pub(crate) fn place(draft: &mut Draft) {
    loop {
        allocator::allocate(draft);
        scheduler::schedule(draft);
        let unblocked = orchestrator::unblock(draft);
        if unblocked.is_empty() {
            break;
        }
        unblocked.into_iter().for_each(|service| orchestrator::reconcile(draft, service));
    }
}

/// What the next turn would not do yet, and why.
pub(crate) fn holds(state: &State, heard: &Heard, now: Timestamp) -> Vec<Hold> {
    let mut draft = Draft::new(state, now);
    Crank::default().draw(&mut draft, heard);
    draft.holds().to_vec()
}
