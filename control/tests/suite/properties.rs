//! What holds whatever happens. The world itself also checks, at each of its turns, that the leader's
//! decision is a function, can be applied to the state it was drawn from, and leaves nothing to decide.

use crate::world::{FOUNDER, GIB, World, capacity, spec};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rswarm_control::admission::{self, NodeUpdate, Request};
use rswarm_control::model::*;
use rswarm_control::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Event {
    Join,
    Silence(usize),
    Hear(usize),
    PowerOff(usize),
    PowerOn(usize),
    RestartDaemon(usize),
    RemoveNode(usize),
    SetAvailability(usize, u8),
    NewLeader,
    Create(u8),
    Scale(u8, u32),
    Update(u8, u8),
    Remove(u8),
    Exit(usize, i32),
    Wait(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Join),
        2 => (0..8usize).prop_map(Event::Silence),
        2 => (0..8usize).prop_map(Event::Hear),
        1 => (0..8usize).prop_map(Event::PowerOff),
        2 => (0..8usize).prop_map(Event::PowerOn),
        1 => (0..8usize).prop_map(Event::RestartDaemon),
        1 => (0..8usize).prop_map(Event::RemoveNode),
        2 => (0..8usize, 0..3u8).prop_map(|(node, to)| Event::SetAvailability(node, to)),
        1 => Just(Event::NewLeader),
        2 => (0..3u8).prop_map(Event::Create),
        2 => (0..3u8, 0..7u32).prop_map(|(service, replicas)| Event::Scale(service, replicas)),
        2 => (0..3u8, 0..4u8).prop_map(|(service, image)| Event::Update(service, image)),
        1 => (0..3u8).prop_map(Event::Remove),
        2 => (0..50usize, 0..3i32).prop_map(|(task, code)| Event::Exit(task, code)),
        4 => (0..4_000u16).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(2377), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cluster_survives_whatever_happens_and_heals(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new();
        for name in ["n1", "n2", "n3"] {
            world.join(name, Role::Worker, capacity(8)).expect("a token that is valid");
        }
        create(&mut world, 0);
        for event in &events {
            happen(&mut world, event);
            world.settle();
            check(&world);
        }
        heal(&mut world);
        check(&world);
        for service in world.state.services() {
            let progress = convergence::progress(&world.state, service.id).expect("it exists");
            prop_assert!(progress.is_settled(), "{}: {progress:?}", service.spec.name);
        }
        let wanted: usize = world.state.services().map(|s| convergence::wanted(&world.state, s) as usize).sum();
        let members = world.running().into_iter().filter(|(_, node)| world.state.node(*node).is_some());
        prop_assert_eq!(members.count(), wanted, "belief equals fact");
        replay(&world);
    }
}

fn happen(world: &mut World, event: &Event) {
    match *event {
        Event::Join => {
            let name = format!("n{}", world.machines.len());
            if world.machines.len() < 8 {
                world.join(&name, Role::Worker, capacity(8)).expect("a token that is valid");
            }
        }
        Event::Silence(at) => with(world, at, |world, node| world.hear(node, false)),
        Event::Hear(at) => with(world, at, World::hear_if_powered),
        Event::PowerOff(at) => with(world, at, World::power_off),
        Event::PowerOn(at) | Event::RestartDaemon(at) => with(world, at, World::restart_daemon),
        Event::RemoveNode(at) => with(world, at, |world, node| {
            world.ask(&Request::RemoveNode { node: node.to_string(), force: true }).expect("a worker");
        }),
        Event::SetAvailability(at, to) => with(world, at, |world, node| {
            let availability =
                [Availability::Active, Availability::Pause, Availability::Drain][usize::from(to)];
            set_availability(world, node, availability);
        }),
        Event::NewLeader => world.new_leader(),
        Event::Create(service) => create(world, service),
        Event::Scale(service, replicas) => {
            let _ = world.ask(&Request::ScaleService { service: format!("s{service}"), replicas });
        }
        Event::Update(service, image) => update(world, service, &format!("v{image}")),
        Event::Remove(service) => {
            let _ = world.ask(&Request::RemoveService { service: format!("s{service}") });
        }
        Event::Exit(at, code) => {
            let running: Vec<TaskId> = world.running().into_keys().collect();
            if let Some(task) = running.get(at % running.len().max(1)) {
                world.exit(*task, code);
            }
        }
        Event::Wait(millis) => world.run(Duration::from_millis(millis.into())),
    }
}

/// Does something to the `at`th worker machine that is still a member.
fn with(world: &mut World, at: usize, act: impl FnOnce(&mut World, NodeId)) {
    let mut members: Vec<_> = world.state.nodes().filter(|node| node.hostname != FOUNDER).cloned().collect();
    members.sort_by_key(|node| node.meta.number);
    if let Some(node) = members.get(at % members.len().max(1)) {
        act(world, node.id);
    }
}

fn create(world: &mut World, service: u8) {
    let mut spec = spec(&format!("s{service}"), 3, "v0");
    let task = Arc::make_mut(&mut spec.task);
    task.resources.reservations.memory_bytes = GIB;
    task.restart.delay = Duration::from_secs(1);
    let (protocol, mode) = (Protocol::Tcp, PortMode::Ingress);
    spec.endpoint.ports.push(PortSpec { published: None, target: 80, protocol, mode, proxy_protocol: false });
    spec.endpoint.client_affinity = service % 2 == 1;
    let _ = world.ask(&Request::CreateService { spec, networks: vec![] });
}

fn update(world: &mut World, service: u8, image: &str) {
    let name = format!("s{service}");
    let Some(service) = world.state.service_named(&name) else { return };
    let mut spec = service.spec.clone();
    Arc::make_mut(&mut spec.task).containers[0].image = image.into();
    spec.endpoint.client_affinity = !spec.endpoint.client_affinity;
    world
        .ask(&Request::UpdateService {
            service: name,
            version: Some(service.meta.version),
            spec,
            networks: vec![],
        })
        .expect("nothing is wrong with it");
}

fn set_availability(world: &mut World, node: NodeId, availability: Availability) {
    let (node, availability) = (node.to_string(), Some(availability));
    world
        .ask(&Request::UpdateNode(NodeUpdate { node, availability, ..NodeUpdate::default() }))
        .expect("a node");
}

/// Everybody is back, nobody is in the way, paused updates are restarted, and there is time.
fn heal(world: &mut World) {
    for name in ["n101", "n102", "n103", "n104"] {
        world.join(name, Role::Worker, capacity(8)).expect("a token that is valid");
    }
    let members: Vec<_> = world.state.nodes().filter(|node| node.hostname != FOUNDER).cloned().collect();
    for node in members {
        world.restart_daemon(node.id);
        set_availability(world, node.id, Availability::Active);
    }
    for service in 0..3 {
        update(world, service, "final");
    }
    world.run_coarsely(Duration::from_secs(400));
}

fn check(world: &World) {
    let state = &world.state;
    let rebuilt = State::restore(state.snapshot());
    assert_eq!(&rebuilt, state, "what can be derived from the objects is what is kept beside them");

    let mut filled = BTreeSet::new();
    for (task, node) in world.running() {
        let seen = world.machines[&node].heard && state.node(node).is_some();
        let Some(task) = state.task(task).filter(|_| seen) else { continue };
        assert!(filled.insert((task.service, task.slot)), "two tasks run in slot {}", task.name());
    }

    let mut reserved: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for task in state.tasks().filter(|task| task.is_live()) {
        if let Some(node) = task.node {
            *reserved.entry(node).or_default() += task.spec.resources.reservations.memory_bytes;
        }
        for address in &task.addresses {
            assert!(addresses.insert(*address), "{address:?} is given twice");
        }
    }
    for vip in state.services().flat_map(|service| &service.endpoint.vips) {
        assert!(addresses.insert((*vip.0, *vip.1)), "{vip:?} is given twice");
    }
    for (node, bytes) in reserved {
        let capacity = state.node(node).map_or(u64::MAX, |node| node.description.capacity.memory_bytes);
        assert!(bytes <= capacity, "more is reserved on {node} than it has");
    }
    for node in state.nodes() {
        let table = endpoints::of(state, node.id);
        for port in table.ports.iter().filter(|port| port.mode == PortMode::Ingress) {
            let service = state.service(port.service).expect("a port is a service's");
            let routable = endpoints::routable(state, service, node.id);
            let places: BTreeSet<_> =
                routable.iter().filter_map(|task| Some((task.node?, task.addresses.first()?.1))).collect();
            let told: BTreeSet<_> =
                port.backends.iter().map(|backend| (backend.node, backend.address)).collect();
            assert_eq!(told, places, "the backends of {}", service.spec.name);
            assert_eq!(port.client_affinity, service.spec.endpoint.client_affinity);
        }
    }
}

/// Another manager that applies the same log holds the same, also when it starts from a snapshot.
fn replay(world: &World) {
    let mut state = State::default();
    for (position, (index, proposal)) in world.log.iter().enumerate() {
        let _ = state.apply(*index, proposal);
        if position % 10 == 9 {
            state = State::restore(state.snapshot());
        }
    }
    assert_eq!(state, world.state);
}

#[test]
fn an_idle_cluster_decides_nothing() {
    let mut world = World::new();
    world.join("n1", Role::Worker, capacity(8)).expect("a token that is valid");
    create(&mut world, 0);
    world.run(Duration::from_secs(60));
    let entries = world.log.len();
    world.run(Duration::from_secs(600));
    assert_eq!(world.log.len(), entries, "an idle cluster writes nothing to its log");
}

#[test]
fn admission_is_a_function_of_its_arguments() {
    let mut world = World::new();
    world.join("n1", Role::Worker, capacity(8)).expect("a token that is valid");
    let request = Request::CreateService { spec: spec("web", 2, "v1"), networks: vec![] };
    let once = admission::admit(&world.state, &request, world.now);
    assert_eq!(once, admission::admit(&world.state, &request, world.now));
}
