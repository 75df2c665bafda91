mod health;

use super::*;
use crate::model::{Claims, ContainerSpec, Slot, TaskSpec};
use expect_test::{Expect, expect};
use std::sync::Arc;

fn task(id: u64, desired: Desired) -> AssignedTask {
    let container = ContainerSpec { stop_grace: Duration::from_secs(3), ..ContainerSpec::new("demo") };
    AssignedTask {
        id: TaskId(id),
        service: crate::ServiceId(9),
        service_name: "web".into(),
        slot: Slot::Replica(1),
        spec: Arc::new(TaskSpec { containers: vec![container], ..TaskSpec::default() }),
        desired,
        ended: false,
        started: false,
        unhealthy: false,
        addresses: Vec::new(),
        claims: Claims::new(),
    }
}

fn assigned(tasks: impl IntoIterator<Item = AssignedTask>) -> Assignment {
    let tasks = tasks.into_iter().map(|task| (task.id, task)).collect();
    Assignment { tasks, ..Assignment::default() }
}

fn started(mut task: AssignedTask) -> AssignedTask {
    task.started = true;
    task
}

fn ill(mut task: AssignedTask) -> AssignedTask {
    (task.started, task.unhealthy) = (true, true);
    task
}

fn ended(mut task: AssignedTask) -> AssignedTask {
    task.ended = true;
    task
}

const NODE: NodeId = NodeId(1);
const T1: TaskId = TaskId(1);

fn fresh() -> Worker {
    Worker::new(NODE, BTreeMap::new())
}

fn found(seen: Seen) -> Worker {
    Worker::new(NODE, BTreeMap::from([(T1, seen)]))
}

/// A worker whose task 1 has come to run.
fn running() -> Worker {
    let mut worker = fresh();
    worker.assign(&assigned([task(1, Desired::Running)]));
    worker.observe(T1, Seen::Prepared);
    worker.observe(T1, Seen::Running { pid: 7 });
    worker
}

#[allow(clippy::needless_pass_by_value)]
fn check(effects: Vec<Effect>, expected: Expect) {
    let words: Vec<String> =
        effects.iter().map(|effect| effect.to_string().replace("000000000000", "")).collect();
    expected.assert_eq(&words.join(", "));
}

fn code(code: i32) -> Seen {
    Seen::Ended { exit_code: Some(code), error: String::new() }
}

#[rustfmt::skip]
#[test]
fn a_task_goes_its_way() {
    let mut worker = fresh();
    check(worker.assign(&assigned([task(1, Desired::Running)])), expect!["report 1 preparing, prepare 1"]);
    check(worker.observe(T1, Seen::Preparing("pulling demo".into())), expect!["report 1 preparing"]);
    check(worker.observe(T1, Seen::Prepared), expect!["report 1 ready, start 1, report 1 starting"]);
    check(worker.observe(T1, Seen::Running { pid: 7 }), expect!["report 1 running"]);
    check(worker.observe(T1, code(0)), expect!["report 1 completed"]);
    check(worker.assign(&assigned([ended(task(1, Desired::Shutdown))])), expect![""]);
    check(worker.assign(&assigned([])), expect!["remove 1"]);
    check(worker.observe(T1, Seen::Gone), expect![""]);
    assert_eq!(worker.held().count(), 0);
}

#[rustfmt::skip]
#[test]
fn what_is_held_back_is_prepared_and_waits() {
    let mut worker = fresh();
    check(worker.assign(&assigned([task(1, Desired::Ready)])), expect!["report 1 preparing, prepare 1"]);
    check(worker.observe(T1, Seen::Prepared), expect!["report 1 ready"]);
    check(worker.assign(&assigned([task(1, Desired::Ready)])), expect![""]);
    check(worker.assign(&assigned([task(1, Desired::Running)])), expect!["start 1, report 1 starting"]);
}

#[rustfmt::skip]
#[test]
fn an_assignment_that_is_repeated_does_nothing_twice() {
    let mut worker = running();
    check(worker.assign(&assigned([started(task(1, Desired::Running))])), expect![""]);
    check(worker.assign(&assigned([started(task(1, Desired::Shutdown))])), expect!["stop 1 within 3s"]);
    check(worker.assign(&assigned([started(task(1, Desired::Remove))])), expect![""]);
}

#[rustfmt::skip]
#[test]
fn what_was_asked_to_end_has_not_failed() {
    let mut worker = running();
    check(worker.assign(&assigned([started(task(1, Desired::Shutdown))])), expect!["stop 1 within 3s"]);
    check(worker.observe(T1, code(143)), expect!["report 1 shutdown"]);
}

#[rustfmt::skip]
#[test]
fn endings_are_told_apart() {
    check(running().observe(T1, code(0)), expect!["report 1 completed"]);
    check(running().observe(T1, code(1)), expect!["report 1 failed"]);
    check(running().observe(T1, Seen::Ended { exit_code: None, error: "no such file".into() }), expect!["report 1 failed"]);
    check(running().observe(T1, Seen::Lost("its machine was restarted".into())), expect!["report 1 orphaned"]);
    let mut worker = fresh();
    worker.assign(&assigned([task(1, Desired::Running)]));
    check(worker.observe(T1, Seen::Unpreparable("no such image".into())), expect!["report 1 rejected"]);
}

#[rustfmt::skip]
#[test]
fn what_has_ended_stays_so() {
    let mut worker = running();
    worker.observe(T1, code(1));
    check(worker.observe(T1, Seen::Running { pid: 7 }), expect![""]);
    check(worker.observe(T1, code(0)), expect![""]);
    check(worker.observe(TaskId(2), code(0)), expect![""]);
}

#[rustfmt::skip]
#[test]
fn a_restarted_daemon_adopts_what_runs_and_reports_what_ended() {
    let mut worker = found(Seen::Running { pid: 7 });
    check(worker.assign(&assigned([started(task(1, Desired::Running))])), expect!["retune 1"]);
    let reports: Vec<Observed> = worker.reports().iter().map(|report| report.observed).collect();
    assert_eq!(reports, [Observed::Running]);

    let mut worker = found(code(2));
    check(worker.assign(&assigned([started(task(1, Desired::Running))])), expect!["report 1 failed"]);
    let mut worker = found(code(143));
    check(worker.assign(&assigned([started(task(1, Desired::Shutdown))])), expect!["report 1 shutdown"]);
    let mut worker = found(Seen::Prepared);
    check(worker.assign(&assigned([task(1, Desired::Running)])), expect!["start 1, report 1 starting"]);
    let mut worker = found(Seen::Preparing(String::new()));
    check(worker.assign(&assigned([task(1, Desired::Running)])), expect!["prepare 1"]);
}

#[rustfmt::skip]
#[test]
fn nothing_is_stopped_before_anybody_said_what_is_wanted() {
    let mut worker = found(Seen::Starting { pid: 7 });
    check(worker.observe(T1, Seen::Running { pid: 7 }), expect!["report 1 running"]);
    check(worker.assign(&assigned([])), expect!["stop 1 within 10s"]);
    check(worker.observe(T1, code(143)), expect!["report 1 shutdown, remove 1"]);
}

#[rustfmt::skip]
#[test]
fn what_was_started_once_is_not_started_again() {
    check(fresh().assign(&assigned([started(task(1, Desired::Running))])), expect!["report 1 orphaned"]);
    check(fresh().assign(&assigned([task(1, Desired::Shutdown)])), expect!["report 1 shutdown"]);
    check(fresh().assign(&assigned([ended(task(1, Desired::Shutdown))])), expect![""]);
}

#[rustfmt::skip]
#[test]
fn what_the_managers_gave_up_is_stopped() {
    check(running().assign(&assigned([ended(started(task(1, Desired::Running)))])), expect!["stop 1 within 3s"]);
}

#[test]
fn every_effect_has_a_higher_number_than_the_last() {
    let mut worker = fresh();
    let mut effects = worker.assign(&assigned([task(1, Desired::Running), task(2, Desired::Running)]));
    effects.extend(worker.observe(T1, Seen::Prepared));
    assert!(effects.is_sorted_by(|one, next| one.generation < next.generation));
}

#[test]
fn other_limits_are_told_once_and_again_to_what_another_daemon_started() {
    let with = |memory_bytes: u64| {
        let mut task = started(task(1, Desired::Running));
        Arc::make_mut(&mut task.spec).resources.limits.memory_bytes = memory_bytes;
        assigned([task])
    };
    let retunes = |effects: Vec<Effect>| {
        effects.iter().filter(|effect| matches!(effect.action, Action::Retune { .. })).count()
    };
    let mut worker = running();
    assert_eq!(retunes(worker.assign(&with(0))), 0, "it was started with these");
    assert_eq!(retunes(worker.assign(&with(9))), 1);
    assert_eq!(retunes(worker.assign(&with(9))), 0);
    // What was told to a container of a daemon that is no more is not known.
    let mut worker = found(Seen::Running { pid: 7 });
    assert_eq!(retunes(worker.assign(&with(9))), 1);
    assert_eq!(retunes(worker.assign(&with(9))), 0);
    // One that is being started has what it was prepared with, and is told what has changed when it runs.
    let mut worker = fresh();
    worker.assign(&assigned([task(1, Desired::Running)]));
    assert_eq!(retunes(worker.assign(&with(9))), 0);
    worker.observe(T1, Seen::Prepared);
    assert_eq!(retunes(worker.observe(T1, Seen::Running { pid: 7 })), 1);
}

#[rustfmt::skip]
#[test]
fn refused_limits_are_told_once_and_tried_again_ever_later() {
    let with = |memory_bytes: u64| {
        let mut task = started(task(1, Desired::Running));
        Arc::make_mut(&mut task.spec).resources.limits.memory_bytes = memory_bytes;
        assigned([task])
    };
    let refusal = || Seen::Untuned("too much is in use".into());
    let error = |worker: &Worker| worker.reports()[0].error.clone();
    let mut worker = running();
    check(worker.assign(&with(9)), expect!["retune 1"]);
    check(worker.observe(T1, refusal()), expect!["report 1 running, retune 1 after 2s"]);
    assert_eq!(error(&worker), "has not been given the limits asked for: too much is in use");
    check(worker.observe(T1, refusal()), expect!["retune 1 after 4s"]);
    for _ in 0..9 {
        worker.observe(T1, refusal());
    }
    check(worker.observe(T1, refusal()), expect!["retune 1 after 60s"]);
    // Others take the place of those at once, and are told anew.
    check(worker.assign(&with(10)), expect!["retune 1"]);
    check(worker.observe(T1, Seen::Untuned("no such disk".into())), expect!["report 1 running, retune 1 after 2s"]);
    assert_eq!(error(&worker), "has not been given the limits asked for: no such disk");
    check(worker.observe(T1, Seen::Retuned), expect!["report 1 running"]);
    assert_eq!(error(&worker), "");
    check(worker.observe(T1, Seen::Retuned), expect![""]);
    // What is no longer wanted is not given any.
    check(worker.assign(&with(11)), expect!["retune 1"]);
    check(worker.assign(&assigned([started(task(1, Desired::Shutdown))])), expect!["stop 1 within 3s"]);
    check(worker.observe(T1, refusal()), expect!["report 1 running"]);
}
