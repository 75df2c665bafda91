//! What was rehearsed is what is done, when nothing else happens.

use crate::world::{GIB, World, capacity, spec};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rswarm_control::admission::{NodeUpdate, Request, admit};
use rswarm_control::model::*;
use rswarm_control::rehearsal::{Fate, Outcome, rehearse};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
struct Asked {
    replicas: u32,
    memory: u64,
    start_first: bool,
    parallelism: u32,
    packed: bool,
}

#[derive(Clone, Debug)]
enum Act {
    Create(Asked),
    Update(usize),
    Scale(usize, u32),
    Drain(usize),
    Rollback(usize),
}

fn asked() -> impl Strategy<Value = Asked> {
    (1..6u32, 0..3u64, any::<bool>(), 0..3u32, any::<bool>()).prop_map(
        |(replicas, memory, start_first, parallelism, packed)| Asked {
            replicas,
            memory,
            start_first,
            parallelism,
            packed,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        asked().prop_map(Act::Create),
        (0..4usize).prop_map(Act::Update),
        (0..4usize, 0..8u32).prop_map(|(service, replicas)| Act::Scale(service, replicas)),
        (0..6usize).prop_map(Act::Drain),
        (0..4usize).prop_map(Act::Rollback),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, rng_seed: RngSeed::Fixed(577), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_rehearsed_is_what_is_done(
        nodes in prop::collection::vec(4..12u64, 2..6),
        services in prop::collection::vec(asked(), 1..4),
        acts in prop::collection::vec(act(), 1..4),
    ) {
        let mut world = World::new();
        for (number, memory) in nodes.iter().enumerate() {
            world.join(&format!("n{number}"), Role::Worker, capacity(*memory)).expect("a token that is valid");
        }
        for (number, asked) in services.iter().enumerate() {
            let spec = described(&format!("s{number}"), asked);
            world.ask(&Request::CreateService { spec, networks: vec![] }).expect("nothing is wrong with it");
            world.settle();
        }
        world.run_coarsely(Duration::from_secs(120));
        for (number, act) in acts.iter().enumerate() {
            let Some(ask) = request(&world, act, number) else { continue };
            let Ok((planned, _)) = rehearse(&world.state, &ask, world.now) else { continue };
            let (again, _) = rehearse(&world.state, &ask, world.now).expect("it was possible just now");
            prop_assert_eq!(planned.moved(&again), None);
            world.ask(&ask).expect("it was rehearsed");
            world.settle();
            world.run_coarsely(planned.took + Duration::from_secs(60));
            prop_assert_eq!(told(&planned), found(&world, &planned), "{:?} came to something else", act);
        }
    }

    #[test]
    fn a_rebalance_comes_to_what_was_rehearsed_and_when_asked_for_again_to_an_end(
        nodes in prop::collection::vec(4..12u64, 2..5),
        services in prop::collection::vec(asked(), 1..4),
        packed in any::<bool>(),
        more in prop::collection::vec(4..12u64, 1..3),
    ) {
        let mut world = World::new();
        let join = |world: &mut World, name: String, memory: u64| {
            world.join(&name, Role::Worker, capacity(memory)).expect("a token that is valid");
        };
        for (number, memory) in nodes.iter().enumerate() {
            join(&mut world, format!("n{number}"), *memory);
        }
        for (number, asked) in services.iter().enumerate() {
            let spec = described(&format!("s{number}"), &Asked { packed, ..asked.clone() });
            world.ask(&Request::CreateService { spec, networks: vec![] }).expect("nothing is wrong with it");
            world.settle();
        }
        world.run_coarsely(Duration::from_secs(60));
        for (number, memory) in more.iter().enumerate() {
            join(&mut world, format!("new{number}"), *memory);
        }
        world.run_coarsely(Duration::from_secs(10));
        let one = Request::Rebalance { services: vec!["s0".into()] };
        let (planned, _) = rehearse(&world.state, &one, world.now).expect("it can be rebalanced");
        world.ask(&one).expect("it was rehearsed");
        world.settle();
        world.run_coarsely(planned.took + Duration::from_secs(60));
        prop_assert_eq!(told(&planned), found(&world, &planned));

        let all = Request::Rebalance { services: Vec::new() };
        let is_balanced = |world: &World| {
            let (changes, _) = admit(&world.state, &all, world.now).expect("all can be rebalanced");
            changes.is_empty()
        };
        for _ in 0..4 {
            world.ask(&all).expect("all can be rebalanced");
            world.settle();
            world.run_coarsely(Duration::from_secs(600));
            prop_assert!(world.state.services().all(|service| service.rebalance.is_none()), "it ends");
            if is_balanced(&world) {
                break;
            }
        }
        prop_assert!(is_balanced(&world), "one more does nothing");
    }
}

#[test]
fn a_task_moves_although_its_node_looks_fuller_than_it_will_be_while_it_leaves() {
    for start_first in [false, true] {
        let mut world = World::new();
        let join = |world: &mut World, name: &str, memory: u64| {
            world.join(name, Role::Worker, capacity(memory)).expect("a token that is valid");
        };
        join(&mut world, "small", 7);
        for (name, memory) in [("moves", 2), ("stays", 2), ("large", 4)] {
            if name == "large" {
                join(&mut world, "big", 9);
            }
            let asked = Asked { replicas: 1, memory, start_first, parallelism: 1, packed: true };
            let request = Request::CreateService { spec: described(name, &asked), networks: vec![] };
            world.ask(&request).expect("nothing is wrong with it");
            world.settle();
            world.run_coarsely(Duration::from_secs(60));
        }
        let home = |world: &World| {
            let mut tasks = world.state.tasks().filter(|task| task.is_live() && task.is_wanted());
            let task = tasks.find(|task| task.service_name == "moves");
            let node = task.and_then(|task| task.node).and_then(|node| world.state.node(node));
            node.map(|node| node.hostname.clone())
        };
        assert_eq!(home(&world).as_deref(), Some("small"));
        let ask = Request::Rebalance { services: vec!["moves".into()] };
        world.ask(&ask).expect("it can be rebalanced");
        world.settle();
        world.run_coarsely(Duration::from_secs(60));
        assert_eq!(home(&world).as_deref(), Some("big"), "start first: {start_first}");
        assert!(world.state.services().all(|service| service.rebalance.is_none()));
    }
}

fn described(name: &str, asked: &Asked) -> ServiceSpec {
    let mut spec = spec(name, asked.replicas, "v0");
    let task = Arc::make_mut(&mut spec.task);
    task.resources.reservations.memory_bytes = asked.memory * GIB;
    task.placement.filling = Some(if asked.packed { Filling::BinPack } else { Filling::Spread });
    spec.update.parallelism = asked.parallelism;
    spec.update.monitor = Duration::from_secs(1);
    if asked.start_first {
        spec.update.order = UpdateOrder::StartFirst;
    }
    spec.rollback = spec.update.clone();
    spec
}

fn request(world: &World, act: &Act, number: usize) -> Option<Request> {
    let services: Vec<_> = world.state.services().collect();
    let named = |at: usize| services.get(at % services.len().max(1)).map(|service| service.spec.name.clone());
    Some(match act {
        Act::Create(asked) => {
            Request::CreateService { spec: described(&format!("new{number}"), asked), networks: vec![] }
        }
        Act::Update(at) => {
            let service = named(*at)?;
            let mut spec = world.state.service_named(&service)?.spec.clone();
            Arc::make_mut(&mut spec.task).containers[0].image = format!("v{number}-next");
            Request::UpdateService { service, version: None, spec, networks: vec![] }
        }
        Act::Scale(at, replicas) => Request::ScaleService { service: named(*at)?, replicas: *replicas },
        Act::Drain(at) => {
            let (node, availability) = (format!("n{at}"), Some(Availability::Drain));
            Request::UpdateNode(NodeUpdate { node, availability, ..NodeUpdate::default() })
        }
        Act::Rollback(at) => Request::RollbackService { service: named(*at)?, to: None },
    })
}

/// Which task comes to which node.
fn told(planned: &Outcome) -> BTreeMap<String, String> {
    let lasting = planned.places.iter().filter(|place| place.fate != Fate::Stops);
    lasting.map(|place| (place.name.clone(), place.after.clone())).collect()
}

/// Which task is on which node, of the services that the plan speaks of.
fn found(world: &World, planned: &Outcome) -> BTreeMap<String, String> {
    let service = |name: &str| name.rsplit_once('.').map(|(service, _)| service.to_owned());
    let spoken: Vec<_> = planned.places.iter().filter_map(|place| service(&place.name)).collect();
    let wanted = world.state.tasks().filter(|task| task.is_live() && task.is_wanted());
    wanted
        .filter(|task| spoken.contains(&task.service_name))
        .map(|task| {
            let node = task.node.and_then(|node| world.state.node(node));
            (task.name(), node.map_or(String::new(), |node| node.hostname.clone()))
        })
        .collect()
}
