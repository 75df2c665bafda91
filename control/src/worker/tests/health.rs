//! Claims over what a worker makes of health.

use super::*;
use crate::model::Health;

/// A worker whose task 1 has started and is not healthy yet.
fn starting() -> Worker {
    let mut worker = fresh();
    worker.assign(&assigned([task(1, Desired::Running)]));
    worker.observe(T1, Seen::Prepared);
    worker.observe(T1, Seen::Starting { pid: 7 });
    worker
}

fn last(worker: &Worker) -> Report {
    worker.reports().pop().expect("one task")
}

#[rustfmt::skip]
#[test]
fn a_task_runs_when_it_is_healthy() {
    let mut worker = starting();
    assert_eq!((last(&worker).observed, last(&worker).health), (Observed::Starting, Health::Starting));
    check(worker.observe(T1, Seen::Ailing("refused".into())), expect!["report 1 starting"]);
    assert_eq!(last(&worker).message, "not healthy yet: refused");
    check(worker.observe(T1, Seen::Ailing("refused at 12:00".into())), expect![""]);
    check(worker.observe(T1, Seen::Healthy), expect!["report 1 running"]);
    check(worker.observe(T1, Seen::Healthy), expect![""]);
    check(worker.observe(T1, Seen::Ailing("a hiccup".into())), expect![""]);
    check(worker.observe(T1, Seen::Starting { pid: 7 }), expect![""]);
    let report = last(&worker);
    assert_eq!((report.health, report.message.as_str(), report.pid), (Health::Healthy, "", Some(7)));
}

#[rustfmt::skip]
#[test]
fn an_unhealthy_task_is_stopped_and_has_failed() {
    for mut worker in [starting(), running()] {
        let effects = worker.observe(T1, Seen::Unhealthy("HTTP 503".into()));
        let (grace, delay) = (Duration::from_secs(3), UNROUTED_WITHIN);
        assert!(effects.iter().any(|effect| effect.action == Action::Stop { task: T1, grace, delay }));
        assert_eq!(last(&worker).health, Health::Unhealthy);
        check(worker.observe(T1, Seen::Healthy), expect![""]);
        check(worker.assign(&assigned([started(task(1, Desired::Running))])), expect![""]);
        check(worker.assign(&assigned([ill(task(1, Desired::Running))])), expect!["stop 1 within 3s"]);
        check(worker.assign(&assigned([ill(task(1, Desired::Running))])), expect![""]);
        check(worker.observe(T1, code(143)), expect!["report 1 failed"]);
        let report = last(&worker);
        assert_eq!((report.error.as_str(), report.exit_code), ("unhealthy container: HTTP 503", Some(143)));
    }
}

#[rustfmt::skip]
#[test]
fn a_clean_exit_of_an_unhealthy_task_is_a_failure_unless_it_was_asked_to_end() {
    let mut worker = starting();
    worker.observe(T1, Seen::Unhealthy(String::new()));
    check(worker.assign(&assigned([started(task(1, Desired::Shutdown))])), expect!["stop 1 within 3s"]);
    check(worker.observe(T1, code(0)), expect!["report 1 shutdown"]);
    let mut worker = starting();
    worker.observe(T1, Seen::Unhealthy(String::new()));
    check(worker.observe(T1, code(0)), expect!["report 1 failed"]);
    assert_eq!(last(&worker).error, "unhealthy container");
}

#[rustfmt::skip]
#[test]
fn nothing_is_stopped_for_its_health_before_the_managers_are_heard() {
    let mut worker = found(Seen::Starting { pid: 7 });
    check(worker.observe(T1, Seen::Unhealthy("refused".into())), expect!["report 1 starting"]);
    check(worker.assign(&assigned([started(task(1, Desired::Running))])), expect!["stop 1 after 2s within 3s"]);
}

fn fenced_task() -> AssignedTask {
    let mut task = task(1, Desired::Running);
    Arc::make_mut(&mut task.spec).on_node_loss = Some(crate::model::OnNodeLoss::Fence);
    task
}

/// A worker that may run fenced tasks, and the assignment of one of which it is told what `is` makes of it.
fn fenced(is: impl Fn(AssignedTask) -> AssignedTask) -> (Worker, Assignment) {
    let assignment = assigned([is(fenced_task())]);
    let mut worker = fresh();
    worker.renew(Timestamp(1_000), Timestamp(1_000));
    worker.assign(&assigned([fenced_task()]));
    worker.observe(T1, Seen::Prepared);
    worker.observe(T1, Seen::Starting { pid: 7 });
    (worker, assignment)
}

#[rustfmt::skip]
#[test]
fn a_fenced_task_that_is_ill_or_starting_ends_with_its_lease_and_at_once() {
    // It is starting: it was never found healthy.
    let (mut worker, _) = fenced(|task| task);
    let lapsed = worker.leased_until().expect("it has a lease");
    check(worker.fence(lapsed), expect!["stop 1 within 3s"]);
    check(worker.observe(T1, code(143)), expect!["report 1 orphaned"]);
    // It is ill, and left alone until nobody routes to it: the lease does not wait for that.
    let (mut worker, _) = fenced(|task| task);
    worker.observe(T1, Seen::Unhealthy("refused".into()));
    check(worker.fence(lapsed), expect!["stop 1 within 3s"]);
    check(worker.observe(T1, code(143)), expect!["report 1 orphaned"]);
    // It is ill and is being stopped, with more time than the lease has left.
    let (mut worker, known) = fenced(ill);
    worker.observe(T1, Seen::Unhealthy("refused".into()));
    check(worker.assign(&known), expect!["stop 1 within 3s"]);
    check(worker.fence(lapsed), expect!["stop 1 within 3s"]);
    check(worker.observe(T1, code(143)), expect!["report 1 orphaned"]);
    // And one that was not started yet is not started any more.
    let mut worker = fresh();
    worker.renew(Timestamp(1_000), Timestamp(1_000));
    worker.assign(&assigned([fenced_task()]));
    check(worker.fence(lapsed), expect!["stop 1 within 3s"]);
    check(worker.observe(T1, Seen::Prepared), expect!["report 1 ready"]);
}

#[rustfmt::skip]
#[test]
fn readiness_is_told_once_known_and_ends_nothing() {
    let mut worker = starting();
    check(worker.observe(T1, Seen::Healthy), expect!["report 1 running"]);
    assert_eq!(last(&worker).ready, None);
    check(worker.observe(T1, Seen::Ready), expect!["report 1 running"]);
    check(worker.observe(T1, Seen::Ready), expect![""]);
    check(worker.observe(T1, Seen::Unready("refused".into())), expect!["report 1 running"]);
    assert_eq!((last(&worker).ready, last(&worker).message.as_str()), (Some(false), "not ready: refused"));
    check(worker.observe(T1, Seen::Unready("refused again".into())), expect![""]);
    check(worker.observe(T1, Seen::Ready), expect!["report 1 running"]);
    assert_eq!(last(&worker).message, "");
}

#[rustfmt::skip]
#[test]
fn an_adopted_task_is_not_said_to_be_unready() {
    let mut worker = found(Seen::Starting { pid: 7 });
    check(worker.assign(&assigned([started(task(1, Desired::Running))])), expect![""]);
    let report = last(&worker);
    assert_eq!((report.observed, report.ready), (Observed::Starting, None));
    check(worker.observe(T1, Seen::Healthy), expect!["report 1 running, retune 1"]);
}
