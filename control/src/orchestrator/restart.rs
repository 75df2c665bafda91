//! Whether, and when, a slot without a task gets another.

use super::slots::successor;
use crate::model::{Observed, RestartCondition, RestartPolicy, Service, Task};
use crate::plan::Start;
use crate::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// The delay doubles up to this, unless the user asked for more.
pub const DELAY_MAX: Duration = Duration::from_secs(300);
/// A task that ran for this long was healthy; the delay starts anew.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    At(Start),
    Never,
}

/// `tasks` are those of one slot, oldest first; none of them fills it.
pub(super) fn decide(service: &Service, tasks: &[Arc<Task>], now: Timestamp) -> Restart {
    let policy = &service.spec.task.restart;
    let Some(last) = tasks.last() else { return Restart::At(Start { at: now, ..Start::default() }) };
    if !ended_by_itself(last) {
        return Restart::At(successor(last, service.spec_version, Start { at: now, ..Start::default() }));
    }
    if last.spec_version != service.spec_version {
        // A spec that the slot has not tried yet pays nothing for its predecessor.
        return Restart::At(Start { at: now, ..Start::default() });
    }
    let clean = last.observed == Observed::Completed;
    match policy.condition {
        RestartCondition::Any => {}
        RestartCondition::OnFailure if !clean => {}
        RestartCondition::OnFailure | RestartCondition::None => return Restart::Never,
    }
    let failures = if was_healthy(last) { 1 } else { last.failures.saturating_add(1) };
    let due = last.status.at.after(delay(policy, failures));
    let Some(free) = attempt_free_at(policy, tasks, service.spec_version, last.restarts) else {
        return Restart::Never;
    };
    Restart::At(Start { at: due.max(free), restarts: last.restarts.saturating_add(1), failures })
}

/// Whether a task ended without having been asked to, on a node that said so.
fn ended_by_itself(task: &Task) -> bool {
    let told = matches!(
        task.observed,
        Observed::Completed | Observed::Failed | Observed::Rejected | Observed::Shutdown
    );
    told && task.is_wanted()
}

fn was_healthy(task: &Task) -> bool {
    task.status.running_at.is_some_and(|began| task.status.at.since(began) >= HEALTHY_AFTER)
}

fn delay(policy: &RestartPolicy, failures: u32) -> Duration {
    let doubled = policy.delay.saturating_mul(1u32 << failures.saturating_sub(1).min(16));
    doubled.min(DELAY_MAX.max(policy.delay))
}

/// From when on the policy allows another attempt; `None` if it never will.
fn attempt_free_at(
    policy: &RestartPolicy,
    tasks: &[Arc<Task>],
    spec_version: u64,
    restarts: u32,
) -> Option<Timestamp> {
    let Some(max) = policy.max_attempts else { return Some(Timestamp::default()) };
    if policy.window.is_zero() {
        return (restarts < max).then(Timestamp::default);
    }
    if max == 0 {
        return None;
    }
    // The attempt that lies `max` back must have left the window.
    let attempts: Vec<_> =
        tasks.iter().filter(|t| t.spec_version == spec_version && t.restarts > 0).collect();
    let nth_last = attempts.len().checked_sub(max as usize).map(|nth| attempts[nth]);
    Some(nth_last.map_or(Timestamp::default(), |task| task.meta.created_at.after(policy.window)))
}
