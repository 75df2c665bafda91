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
        assert!(effects.iter().any(|effect| effect.action == Action::Stop { task: T1, grace: Duration::from_secs(3) }));
        assert_eq!(last(&worker).health, Health::Unhealthy);
        check(worker.observe(T1, Seen::Healthy), expect![""]);
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
    check(worker.assign(&assigned([started(task(1, Desired::Shutdown))])), expect![""]);
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
    check(worker.assign(&assigned([started(task(1, Desired::Running))])), expect!["stop 1 within 3s"]);
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
    check(worker.observe(T1, Seen::Healthy), expect!["report 1 running"]);
}
