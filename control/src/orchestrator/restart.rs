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
    /// Create a task now. If it is to start later, it is prepared meanwhile.
    At(Start),
    /// Create none before then: the last one could not even be prepared, or did not come to run, and
    /// another would fail as fast.
    Wait(Timestamp),
    /// Create none.
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
    // An ending that lies ahead was noted by a leader whose clock was wrong; do not wait for it.
    let due = if last.status.at > now { now } else { last.status.at.after(delay(policy, failures)) };
    let Some(free) = attempt_free_at(policy, tasks, service.spec_version, last.restarts) else {
        return Restart::Never;
    };
    let at = due.max(free);
    if last.status.running_at.is_none() && at > now {
        return Restart::Wait(at);
    }
    Restart::At(Start { at, restarts: last.restarts.saturating_add(1), failures })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, spec, with_task};

    /// A service whose one task ran for `ran` and then failed, for the `times`th time in a row.
    fn failed(
        change: impl FnOnce(&mut crate::model::TaskSpec),
        times: u32,
        ran: Duration,
    ) -> (Bed, crate::ServiceId) {
        let mut bed = Bed::new();
        let node = bed.node("n1", 64);
        let service = bed.service(with_task(spec("web", 1), change));
        for _ in 0..times {
            bed.pass(DELAY_MAX);
            bed.heard.beat(node, bed.now);
            bed.tick();
            let task = bed.tasks(service).pop().expect("one is wanted");
            bed.report(task.id, Observed::Running);
            bed.pass(ran);
            bed.report(task.id, Observed::Failed);
        }
        (bed, service)
    }

    fn decided(bed: &Bed, service: crate::ServiceId) -> Restart {
        decide(bed.state.service(service).expect("it exists"), &bed.tasks(service), bed.now)
    }

    fn waits(bed: &Bed, service: crate::ServiceId) -> Option<Duration> {
        match decided(bed, service) {
            Restart::At(start) => Some(start.at.since(bed.now)),
            Restart::Wait(_) | Restart::Never => None,
        }
    }

    #[test]
    fn the_delay_doubles_up_to_five_minutes() {
        let delays: Vec<u64> = (1..=9)
            .map(|times| failed(|_| (), times, Duration::from_secs(1)))
            .map(|(bed, service)| waits(&bed, service).expect("it is restarted").as_secs())
            .collect();
        assert_eq!(delays, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn health_resets_the_delay() {
        let (bed, service) = failed(|_| (), 4, HEALTHY_AFTER);
        assert_eq!(waits(&bed, service), Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_delay_longer_than_the_limit_is_kept() {
        let hour = Duration::from_secs(3600);
        let (bed, service) = failed(|task| task.restart.delay = hour, 1, Duration::from_secs(1));
        assert_eq!(waits(&bed, service), Some(hour));
    }

    #[test]
    fn no_attempts_means_none() {
        let (bed, service) = failed(|task| task.restart.max_attempts = Some(0), 1, Duration::from_secs(1));
        assert_eq!(decided(&bed, service), Restart::Never);
    }

    #[test]
    fn a_leader_with_a_wrong_clock_does_not_delay_its_successors_restarts() {
        let (mut bed, service) = failed(|_| (), 1, Duration::from_secs(3600));
        bed.now = Timestamp(bed.now.0 - 1_800_000);
        assert_eq!(waits(&bed, service), Some(Duration::ZERO));
    }
}
