//! What holds at every moment of an update, and whatever happens to the leader meanwhile.

use crate::world::{World, capacity, spec};
use rswarm_control::admission::Request;
use rswarm_control::model::*;
use rswarm_control::{NodeId, TaskId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const REPLICAS: u32 = 5;
const STEP: Duration = Duration::from_millis(50);

/// Three nodes and a service that has come to rest.
fn cluster(pace: &UpdateConfig) -> World {
    populated(World::new(), pace)
}

fn populated(mut world: World, pace: &UpdateConfig) -> World {
    for name in ["n1", "n2", "n3"] {
        world.join(name, Role::Worker, capacity(8)).expect("a token that is valid");
    }
    let mut spec = spec("web", REPLICAS, "v1");
    (spec.update, spec.rollback) = (pace.clone(), pace.clone());
    if spec.rollback.failure_action == FailureAction::Rollback {
        spec.rollback.failure_action = FailureAction::Pause;
    }
    world.ask(&Request::CreateService { spec, networks: vec![] }).expect("nothing is wrong with it");
    world.run(Duration::from_secs(6));
    world
}

fn update(world: &mut World, image: &str) {
    let mut spec = world.state.service_named("web").expect("it exists").spec.clone();
    Arc::make_mut(&mut spec.task).containers[0].image = image.into();
    let service = "web".into();
    world
        .ask(&Request::UpdateService { service, version: None, spec, networks: vec![] })
        .expect("nothing is wrong with it");
    world.settle();
}

/// What runs, as far as it matters: the slots and their images.
fn runs(world: &World) -> Vec<(Slot, String)> {
    let running: Vec<(TaskId, NodeId)> = world.running().into_iter().collect();
    let mut all: Vec<_> = running
        .iter()
        .filter_map(|(task, _)| world.state.task(*task))
        .map(|task| (task.slot, task.spec.containers[0].image.clone()))
        .collect();
    all.sort();
    all
}

fn end(world: &World) -> (Vec<(Slot, String)>, Option<UpdateState>) {
    let status = world.state.service_named("web").and_then(|service| service.update_status.clone());
    (runs(world), status.map(|status| status.state))
}

fn paces() -> Vec<UpdateConfig> {
    let one = UpdateConfig { monitor: Duration::from_secs(1), ..UpdateConfig::default() };
    let back = FailureAction::Rollback;
    vec![
        one.clone(),
        UpdateConfig {
            parallelism: 2,
            delay: Duration::from_millis(300),
            failure_action: back,
            ..one.clone()
        },
        UpdateConfig { order: UpdateOrder::StartFirst, failure_action: back, ..one.clone() },
        UpdateConfig { order: UpdateOrder::StartFirst, parallelism: 0, healthy_time: STEP * 4, ..one },
    ]
}

#[test]
fn no_more_slots_are_down_than_are_replaced_at_a_time() {
    for pace in paces() {
        let mut world = cluster(&pace);
        update(&mut world, "slow");
        for _ in 0..1_000 {
            world.run(STEP);
            let up: BTreeSet<Slot> = runs(&world).into_iter().map(|(slot, _)| slot).collect();
            let down = REPLICAS as usize - up.len();
            let allowed = match pace.order {
                UpdateOrder::StartFirst => 0,
                UpdateOrder::StopFirst => pace.parallelism as usize,
            };
            assert!(down <= allowed, "{down} slots are down under {pace:?}");
        }
        let done = (1..=REPLICAS).map(|slot| (Slot::Replica(slot), "slow".into())).collect();
        assert_eq!(end(&world), (done, Some(UpdateState::Completed)), "{pace:?}");
    }
}

#[test]
fn a_leader_may_die_at_any_step_of_an_update_or_a_rollback() {
    for pace in paces() {
        for image in ["v2", "broken"] {
            let steps = 200;
            let play = |death: Option<u32>| {
                let mut world = cluster(&pace);
                update(&mut world, image);
                for step in 0..steps {
                    if death == Some(step) {
                        world.new_leader();
                    }
                    world.run(STEP);
                }
                world.run_coarsely(Duration::from_secs(20));
                end(&world)
            };
            let undisturbed = play(None);
            for step in (0..steps).step_by(3) {
                assert_eq!(
                    play(Some(step)),
                    undisturbed,
                    "the leader dies at step {step} of {image}, {pace:?}"
                );
            }
        }
    }
}

#[test]
fn an_update_may_be_superseded_at_any_moment() {
    for pace in paces() {
        for first in ["v2", "slow", "missing"] {
            for step in (0..160).step_by(5) {
                let mut world = cluster(&pace);
                update(&mut world, first);
                world.run(STEP * step);
                update(&mut world, "v3");
                world.run_coarsely(Duration::from_secs(40));
                let done = (1..=REPLICAS).map(|slot| (Slot::Replica(slot), "v3".into())).collect();
                let state = Some(UpdateState::Completed);
                assert_eq!(end(&world), (done, state), "{first} after {step} steps, {pace:?}");
            }
        }
    }
}

fn limit(world: &mut World, memory_bytes: u64, reserved: u64) {
    let mut spec = world.state.service_named("web").expect("it exists").spec.clone();
    let resources = &mut Arc::make_mut(&mut spec.task).resources;
    (resources.limits.memory_bytes, resources.reservations.memory_bytes) = (memory_bytes, reserved);
    let service = "web".into();
    world
        .ask(&Request::UpdateService { service, version: None, spec, networks: vec![] })
        .expect("nothing is wrong with it");
    world.run(Duration::from_secs(30));
}

/// The tasks that are wanted, with the limit each has.
fn limits(world: &World) -> Vec<(TaskId, u64)> {
    let wanted = world.state.tasks().filter(|task| task.is_live() && task.is_wanted());
    wanted.map(|task| (task.id, task.spec.resources.limits.memory_bytes)).collect()
}

#[test]
fn other_limits_are_given_to_tasks_where_they_run() {
    let pace = UpdateConfig { monitor: Duration::from_secs(1), ..UpdateConfig::default() };
    let mut world = populated(World::of_level(rswarm_control::level::PROFILES - 1), &pace);
    let before = limits(&world);
    assert_eq!(before.len(), REPLICAS as usize);
    // Managers of before would not understand it, so there tasks are replaced.
    limit(&mut world, 1 << 30, 0);
    let replaced = limits(&world);
    assert!(
        replaced.iter().all(|(task, limit)| *limit == 1 << 30 && before.iter().all(|(old, _)| old != task))
    );

    world.upgrade(rswarm_control::level::LATEST);
    world.settle();
    limit(&mut world, 2 << 30, 1 << 30);
    let ids = |tasks: &[(TaskId, u64)]| tasks.iter().map(|(task, _)| *task).collect::<Vec<_>>();
    let retuned = limits(&world);
    assert_eq!(ids(&retuned), ids(&replaced));
    assert!(retuned.iter().all(|(_, limit)| *limit == 2 << 30));
    let status = world.state.service_named("web").and_then(|service| service.update_status.clone());
    assert_eq!(status.map(|status| status.state), Some(UpdateState::Completed));

    // Of two tasks on a node of 8 GiB only one can have 5: the other goes where there is room, or waits.
    limit(&mut world, 6 << 30, 5 << 30);
    let reserved = |node: &Node| -> u64 {
        let own = world.state.tasks_on(node.id).filter(|task| task.is_live());
        own.map(|task| task.spec.resources.reservations.memory_bytes).sum()
    };
    assert!(world.state.nodes().all(|node| reserved(node) <= node.description.capacity.memory_bytes));
    assert!(limits(&world).iter().any(|(task, limit)| *limit == 6 << 30 && ids(&retuned).contains(task)));
}
