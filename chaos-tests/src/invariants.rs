//! What must hold in every cluster, simulated or real: one list, each with a sentence.
//!
//! Safety is checked after every step, rest when faults have ended and the cluster has had its time. What
//! only an observer of the steps themselves can see is marked [`Check::Watched`]: whoever runs the cluster
//! reports it under the name that stands here.

mod rules;

use rswarm_control::model::{
    Availability, Constraint, ConstraintKey, ConstraintOp, Desired, Effect, FailureAction, Health, Mode,
    Node, NodeStatus, Observed, OnNodeLoss, PortMode, Protocol, Resources, RestartCondition, Service, Slot,
    Task, UpdateOrder,
};
use rswarm_control::state::Owner;
use rswarm_control::{Change, NetworkId, NodeId, Proposal, ServiceId, State, TaskId, endpoints};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Something that must hold.
#[derive(Debug)]
pub struct Invariant {
    /// Short, for tables and for tests.
    pub name: &'static str,
    /// What is promised.
    pub sentence: &'static str,
    /// How it is checked.
    pub check: Check,
}

/// What came of a check; an error says where the promise was broken.
pub type Finding = Result<(), String>;

/// How, and when, an invariant is checked.
#[derive(Debug)]
pub enum Check {
    /// After each applied entry, on the state.
    State(fn(&State) -> Finding),
    /// After each applied entry, on what it did.
    Step(fn(&Step<'_>) -> Finding),
    /// Whenever a container was started, on what really runs.
    Facts(fn(&Scene<'_>) -> Finding),
    /// When faults have ended and the cluster has come to rest.
    Rest(fn(&Scene<'_>) -> Finding),
    /// By whoever runs the cluster.
    Watched,
}

/// One applied entry.
#[derive(Debug)]
pub struct Step<'a> {
    /// The state before it.
    pub before: &'a State,
    /// What was applied.
    pub proposal: &'a Proposal,
    /// The state after it.
    pub after: &'a State,
}

/// What is believed, and what is so.
#[derive(Debug)]
pub struct Scene<'a> {
    /// What the managers agree on.
    pub state: &'a State,
    /// What is there.
    pub containers: &'a [Fact],
    /// Tasks whose node was given up at some time: a second container in their slot is no surprise.
    pub excused: &'a BTreeSet<TaskId>,
    /// Services whose containers do not stay up, whoever runs them.
    pub hopeless: &'a BTreeSet<ServiceId>,
}

/// One container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Of which task.
    pub task: TaskId,
    /// Where.
    pub node: NodeId,
    /// Of which service.
    pub service: ServiceId,
    /// In which of its places.
    pub slot: rswarm_control::model::Slot,
    /// Whether it runs; else it is prepared, or has ended and is remembered.
    pub running: bool,
    /// Whether its node stops it when it cannot reach the managers.
    pub fenced: bool,
    /// Whether its probes, if it has any, have found it well or ready, be it once.
    pub was_well: bool,
}

macro_rules! invariants {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $sentence:literal, $check:expr;)*) => {
        $($(#[$doc])* pub const $id: &Invariant =
            &Invariant { name: $name, sentence: $sentence, check: $check };)*
        /// All of them.
        pub const ALL: &[&Invariant] = &[$($id),*];
    };
}

invariants! {
    /// The state machine is deterministic.
    REPLICAS_AGREE = "replicas agree",
        "Managers that have applied the same entries hold the same state.", Check::Watched;
    /// A snapshot holds everything.
    SNAPSHOT_WHOLE = "snapshot whole",
        "A state restored from its snapshot is the state.", Check::Watched;
    /// What was acknowledged stays.
    ACKNOWLEDGED_STAYS = "acknowledged stays",
        "A request that was answered with yes has been carried out.", Check::Watched;
    /// Nothing reused.
    IDS_NEVER_REPEAT = "ids never repeat",
        "No object gets an id that another object has had.", Check::Watched;
    /// No way back.
    STATES_MOVE_FORWARD = "states move forward",
        "What is observed and what is desired of a task only moves forward.", Check::Step(forward);
    /// Placement is allowed.
    PLACED_WELL = "placed well",
        "A task is assigned only to a node that is ready, active and meets its constraints, and to its own if it has one.", Check::Step(placed);
    /// Neighbours.
    RULES_ARE_KEPT = "rules are kept",
        "A task is given to no node that sends it away, has its share of the service, or a task it keeps apart from.",
        Check::Step(rules::neighbours);
    /// One wanted task.
    ONE_WANTED = "one wanted task",
        "A slot has at most one live task that is told to run, save where a node is or was lost.",
        Check::Facts(one_wanted);
    /// One running container.
    ONE_RUNS = "one container runs",
        "A slot has at most one running container, save where a node was given up.", Check::Facts(one_runs);
    /// Fenced.
    FENCED_RUNS_ONCE = "fenced runs once",
        "A slot has at most one running container of tasks that are fenced, whatever happens to nodes that are members.",
        Check::Facts(fenced_once);
    /// Kept.
    PLACES_ARE_KEPT = "places are kept",
        "A slot whose task waits for its lost node, or has not certainly stopped there, gets no other.",
        Check::Step(places_kept);
    /// Room.
    WITHIN_CAPACITY = "within capacity",
        "The reservations of a node's live tasks do not exceed its capacity.", Check::State(capacity);
    /// Things.
    GIVEN_ONCE = "given once",
        "No node gives its tasks more of a kind than it has, and no named thing to two.", Check::State(rules::generic);
    /// Addresses.
    ADDRESSES_UNIQUE = "addresses unique",
        "An address of a network has one holder and lies in the network's subnet.", Check::State(addresses);
    /// Ports.
    PORTS_UNIQUE = "ports unique",
        "A port published on every node belongs to one service; one on a task's node to one task there.",
        Check::State(ports);
    /// Subnets.
    NETWORKS_APART = "networks apart",
        "No two networks share a subnet, a number or a name.", Check::State(networks);
    /// Routes.
    ROUTES_LEAD_SOMEWHERE = "routes lead somewhere",
        "A table offers new connections only tasks that run, are wanted, well and ready, and whose node is not given up.",
        Check::State(routes);
    /// Health.
    ROUTED_WHEN_WELL = "routed when well",
        "Nobody is sent to a container that its probes have never found well.", Check::Facts(routed_when_well);
    /// Done is done.
    NOT_RUN_AGAIN = "not run again",
        "A slot of a job that has come to a good end is not run again, and no more are at work than may be.",
        Check::Step(not_again);
    /// Failures stop an update.
    FAILURES_STOP = "failures stop updates",
        "An update with more failures than it allows replaces no further slot.", Check::Step(failures_stop);
    /// Nothing left to say.
    PLAN_IS_FIXPOINT = "plan is a fixpoint",
        "A plan can be applied to the state it was drawn from, and leaves nothing to plan.", Check::Watched;
    /// What is passed over.
    MEMORY_MATTERS_NOT = "memory matters not",
        "A leader that remembers what it looked at comes to the same plan as one that remembers nothing.",
        Check::Watched;
    /// Who is told.
    TOLD_WHAT_CONCERNS = "told what concerns it",
        "A node whose assignment or table an entry changes is among those that the entry is said to concern.",
        Check::Watched;
    /// Once.
    STARTED_ONCE = "started once",
        "No task's container is started twice.", Check::Watched;
    /// Only what was asked for.
    RUNS_ONLY_ASSIGNED = "runs only what was assigned",
        "A node starts only tasks that were assigned to it.", Check::Watched;
    /// No panic.
    NOTHING_PANICS = "nothing panics", "No decision panics, whatever happened before it.", Check::Watched;
    /// No busy loop.
    COMES_TO_REST = "comes to rest",
        "After faults have ended the cluster converges in bounded time.", Check::Watched;
    /// Quiet.
    IDLE_IS_SILENT = "idle is silent", "A cluster at rest proposes nothing.", Check::Watched;
    /// In time.
    REPLACED_IN_TIME = "replaced in time",
        "Tasks of a silent node are replaced within 3 s, 4 s if it led, and the time it takes to start them.",
        Check::Watched;
    /// Belief is fact.
    BELIEF_IS_FACT = "belief is fact",
        "At rest, the tasks that are believed to run are the containers that run.", Check::Rest(belief);
    /// Clean.
    NOTHING_LEFT = "nothing left over",
        "At rest, no node holds anything of a task that nobody knows.", Check::Rest(leftovers);
    /// The goal.
    CONVERGED = "converged",
        "At rest, each slot of each service runs, is given up by its policy, or says why it waits.",
        Check::Rest(converged);
    /// No false excuse.
    PENDING_FOR_A_REASON = "pending for a reason",
        "At rest, a task waits for a node only if no node could take it.", Check::Rest(pending);
    /// Drained.
    DRAINED_IS_EMPTY = "drained is empty",
        "At rest, nothing runs on a drained node that is heard from.", Check::Rest(drained);
    /// Bounded.
    HISTORY_IS_BOUNDED = "history is bounded",
        "At rest, no slot remembers more ended tasks than the settings and its policy ask for.",
        Check::Rest(history);
}

fn fail(text: String) -> Finding {
    Err(text)
}

fn forward(step: &Step<'_>) -> Finding {
    for after in step.after.tasks() {
        let Some(before) = step.before.task(after.id) else { continue };
        if after.observed < before.observed {
            return fail(format!("{} went from {} to {}", after.name(), before.observed, after.observed));
        }
        if before.observed.is_terminal() && after.observed != before.observed {
            return fail(format!("{} had ended {}, now {}", after.name(), before.observed, after.observed));
        }
        if after.desired < before.desired {
            return fail(format!("{} was wanted {}, now {}", after.name(), before.desired, after.desired));
        }
        if before.node.is_some() && after.node != before.node {
            return fail(format!("{} changed its node", after.name()));
        }
    }
    Ok(())
}

fn placed(step: &Step<'_>) -> Finding {
    for change in &step.proposal.changes {
        let Change::Assign { task, node, .. } = change else { continue };
        // Within the same entry it may have been marked for removal, never forgotten.
        let (Some(task), Some(node)) = (step.after.task(*task), step.after.node(*node)) else { continue };
        if node.status != NodeStatus::Ready || node.availability != Availability::Active {
            return fail(format!("{} was given to {}, which takes none", task.name(), node.hostname));
        }
        if task.slot.node().is_some_and(|own| own != node.id) {
            return fail(format!("{} was given to {}", task.name(), node.hostname));
        }
        if let Some(unmet) = task.spec.placement.constraints.iter().find(|c| !meets(node, c)) {
            return fail(format!("{} was given to {} against {unmet:?}", task.name(), node.hostname));
        }
    }
    Ok(())
}

/// Written anew on purpose: a check that calls the code it checks finds nothing.
fn meets(node: &Node, constraint: &Constraint) -> bool {
    let arch = |name: &str| match name.to_ascii_lowercase().as_str() {
        "amd64" | "x86-64" | "x86_64" => "x86_64".to_owned(),
        "arm64" | "aarch64" => "aarch64".to_owned(),
        other => other.to_owned(),
    };
    let one = |value: &String| {
        let (is, wanted) = match &constraint.key {
            ConstraintKey::NodeId => (node.id.to_string(), value.clone()),
            ConstraintKey::Hostname => (node.hostname.clone(), value.clone()),
            ConstraintKey::Role => (node.role.to_string(), value.clone()),
            ConstraintKey::Label(key) => (node.labels.get(key).cloned().unwrap_or_default(), value.clone()),
            ConstraintKey::EngineLabel(key) => {
                (node.description.labels.get(key).cloned().unwrap_or_default(), value.clone())
            }
            ConstraintKey::PlatformOs => (node.description.os.clone(), value.clone()),
            ConstraintKey::PlatformArch => (arch(&node.description.arch), arch(value)),
        };
        is.eq_ignore_ascii_case(&wanted)
    };
    constraint.values.iter().any(one) == (constraint.op == ConstraintOp::Equal)
}

fn one_wanted(scene: &Scene<'_>) -> Finding {
    let mut holders = BTreeMap::new();
    for task in scene.state.tasks() {
        let running = task.is_live() && task.desired == Desired::Running;
        if !running || is_lost(scene.state, task) || scene.excused.contains(&task.id) {
            continue;
        }
        if let Some(other) = holders.insert((task.service, task.slot), task.id)
            && !may_overlap(scene.state, other, task.id)
        {
            return fail(format!("{} is wanted twice: {other} and {}", task.name(), task.id));
        }
    }
    Ok(())
}

/// Whether two tasks may run in one slot: one takes over from the other, and their service asks, or has asked,
/// for the new one to come first. Why the old one goes (its spec, or its node is drained) may have changed since.
fn may_overlap(state: &State, one: TaskId, other: TaskId) -> bool {
    let (Some(one), Some(_)) = (state.task(one), state.task(other)) else { return true };
    let Some(service) = state.service(one.service) else { return true };
    let specs = service.previous.iter().map(|revision| &revision.spec).chain([&service.spec]);
    let mut ways = specs.flat_map(|spec| [&spec.update, &spec.rollback]);
    ways.any(|way| way.order == UpdateOrder::StartFirst)
}

fn is_lost(state: &State, task: &Task) -> bool {
    task.node.is_some_and(|node| state.node(node).is_none_or(|node| node.status.is_lost()))
}

fn one_runs(scene: &Scene<'_>) -> Finding {
    let mut holders = BTreeMap::new();
    for fact in scene.containers {
        if !fact.running || scene.excused.contains(&fact.task) {
            continue;
        }
        if let Some(other) = holders.insert((fact.service, fact.slot), fact.task)
            && !may_overlap(scene.state, other, fact.task)
        {
            return fail(format!(
                "slot {} of {} runs twice: {other} and {}",
                fact.slot, fact.service, fact.task
            ));
        }
    }
    Ok(())
}

fn fenced_once(scene: &Scene<'_>) -> Finding {
    let mut holders = BTreeMap::new();
    let member =
        |fact: &&Fact| scene.state.node(fact.node).is_some_and(|node| node.status != NodeStatus::Left);
    for fact in scene.containers.iter().filter(|fact| fact.running && fact.fenced).filter(member) {
        if let Some(other) = holders.insert((fact.service, fact.slot), fact.task) {
            let (slot, service, task) = (fact.slot, fact.service, fact.task);
            return fail(format!("fenced slot {slot} of {service} runs twice: {other} and {task}"));
        }
    }
    Ok(())
}

fn places_kept(step: &Step<'_>) -> Finding {
    for change in &step.proposal.changes {
        let Change::CreateTask(new) = change else { continue };
        let (Some(before), Some(after)) = (step.before.service(new.service), step.after.service(new.service))
        else {
            continue;
        };
        let holds = [before, after]
            .iter()
            .all(|service| service.spec.task.on_node_loss.is_some_and(|loss| loss != OnNodeLoss::Replace));
        let kept = |state: &State, task: &Task| {
            let node = task.node.and_then(|node| state.node(node));
            task.is_live()
                && task.desired == Desired::Running
                && task.spec_version == new.spec_version
                && node.is_some_and(|node| {
                    node.status == NodeStatus::Down && node.availability != Availability::Drain
                })
        };
        let kept = |task: &&std::sync::Arc<Task>| {
            task.slot == new.slot
                && kept(step.before, task)
                && step.after.task(task.id).is_some_and(|task| kept(step.after, task))
        };
        if let Some(task) = step.before.tasks_of(new.service).find(kept).filter(|_| holds) {
            return fail(format!("{} is replaced, though {} keeps its place", task.name(), task.id));
        }
    }
    Ok(())
}

fn reserved(state: &State, node: NodeId) -> Resources {
    state.tasks_on(node).filter(|task| task.is_live()).fold(Resources::default(), |sum, task| {
        let more = task.spec.resources.reservations;
        Resources {
            nano_cpus: sum.nano_cpus + more.nano_cpus,
            memory_bytes: sum.memory_bytes + more.memory_bytes,
        }
    })
}

fn capacity(state: &State) -> Finding {
    for node in state.nodes() {
        let (used, capacity) = (reserved(state, node.id), node.description.capacity);
        if used.nano_cpus > capacity.nano_cpus || used.memory_bytes > capacity.memory_bytes {
            return fail(format!("{} has {capacity:?}, of which {used:?} are reserved", node.hostname));
        }
    }
    Ok(())
}

fn addresses(state: &State) -> Finding {
    let mut held: BTreeSet<(NetworkId, Ipv4Addr)> = BTreeSet::new();
    let tasks = state.tasks().filter(|task| task.is_live());
    let of_tasks =
        tasks.flat_map(|task| task.addresses.iter().map(|(network, at)| (*network, *at, task.name())));
    let of_services = state.services().flat_map(|service| {
        service.endpoint.vips.iter().map(|(network, at)| (*network, *at, service.spec.name.clone()))
    });
    for (network, address, holder) in of_tasks.chain(of_services) {
        if !held.insert((network, address)) {
            return fail(format!("{address} of network {network} is held twice, once by {holder}"));
        }
        let Some(network) = state.network(network) else {
            return fail(format!("{holder} has {address} on a network that is gone"));
        };
        let last = network.subnet.nth(network.subnet.size() - 1);
        let special = address == network.gateway || address == network.subnet.base() || Some(address) == last;
        if !network.subnet.contains(address) || special {
            return fail(format!("{holder} has {address} on {} ({})", network.name, network.subnet));
        }
    }
    Ok(())
}

fn ports(state: &State) -> Finding {
    let mut everywhere: BTreeMap<(u16, Protocol), ServiceId> = BTreeMap::new();
    for service in state.services() {
        for port in service.endpoint.ports.iter().filter(|port| port.mode == PortMode::Ingress) {
            if everywhere.insert((port.published, port.protocol), service.id).is_some() {
                return fail(format!(
                    "port {} is published twice, once by {}",
                    port.published, service.spec.name
                ));
            }
        }
    }
    Ok(())
}

fn networks(state: &State) -> Finding {
    let all: Vec<_> = state.networks().collect();
    for (position, one) in all.iter().enumerate() {
        let clash = |other: &&std::sync::Arc<rswarm_control::model::Network>| {
            other.subnet.overlaps(one.subnet) || other.vni == one.vni || other.name == one.name
        };
        if let Some(other) = all[..position].iter().find(|other| clash(other)) {
            return fail(format!("{} and {} are not apart", one.name, other.name));
        }
    }
    Ok(())
}

fn routes(state: &State) -> Finding {
    // One table of each kind is enough: they differ in what they leave out.
    let Some(node) = state.nodes().nth(state.index() as usize % state.nodes().count().max(1)) else {
        return Ok(());
    };
    let table = endpoints::of(state, node.id);
    let of_networks = table.networks.values().flat_map(|network| {
        let backends = network.services.iter().flat_map(|service| &service.backends);
        backends.map(|backend| (network.network.vni, backend))
    });
    let of_ports =
        table.ports.iter().flat_map(|port| port.backends.iter().map(|backend| (port.vni, backend)));
    for (vni, backend) in of_networks.chain(of_ports) {
        let network = state.networks().find(|network| network.vni == vni);
        let owner = network.and_then(|network| state.owner_of(network.id, backend.address));
        let task = match owner {
            Some(Owner::Task(task)) => state.task(task),
            Some(Owner::Service(_)) | None => None,
        };
        let Some(task) = task else {
            return fail(format!(
                "{} is told to connect to {}, where nobody is",
                node.hostname, backend.address
            ));
        };
        let away = backend.node != node.id && is_lost(state, task);
        let well = matches!(task.status.health, Health::Unchecked | Health::Healthy) && !task.status.unready;
        if !well {
            return fail(format!(
                "{} is told to connect to {}, which is not well",
                node.hostname,
                task.name()
            ));
        }
        if task.observed != Observed::Running || !task.is_wanted() || task.node != Some(backend.node) || away
        {
            return fail(format!("{} is told to connect to {}", node.hostname, task.name()));
        }
    }
    Ok(())
}

fn routed_when_well(scene: &Scene<'_>) -> Finding {
    for fact in scene.containers.iter().filter(|fact| fact.running && !fact.was_well) {
        let Some(service) = scene.state.service(fact.service) else { continue };
        if endpoints::routable(scene.state, service, fact.node).iter().any(|task| task.id == fact.task) {
            return fail(format!("{} is routed to, though no probe has found it well", fact.task));
        }
    }
    Ok(())
}

fn belief(scene: &Scene<'_>) -> Finding {
    let heard = |task: &&std::sync::Arc<Task>| {
        task.node.and_then(|node| scene.state.node(node)).is_some_and(|node| node.status == NodeStatus::Ready)
    };
    let believed: BTreeSet<TaskId> = scene
        .state
        .tasks()
        .filter(|task| matches!(task.observed, Observed::Running | Observed::Starting))
        .filter(heard)
        .map(|task| task.id)
        .collect();
    let facts: BTreeSet<TaskId> =
        scene.containers.iter().filter(|fact| fact.running).map(|fact| fact.task).collect();
    let calm = |task: &TaskId| {
        let service = scene.state.task(*task).map(|task| task.service);
        service.is_none_or(|service| !scene.hopeless.contains(&service))
    };
    match believed.symmetric_difference(&facts).find(|task| calm(task)) {
        None => Ok(()),
        Some(task) if facts.contains(task) => fail(format!("{task} runs, and nobody believes it")),
        Some(task) => fail(format!("{task} is believed to run, and does not")),
    }
}

fn leftovers(scene: &Scene<'_>) -> Finding {
    match scene.containers.iter().find(|fact| scene.state.task(fact.task).is_none()) {
        None => Ok(()),
        Some(fact) => {
            fail(format!("node {} holds a container of {}, which nobody knows", fact.node, fact.task))
        }
    }
}

fn converged(scene: &Scene<'_>) -> Finding {
    let state = scene.state;
    for service in state.services().filter(|service| !scene.hopeless.contains(&service.id)) {
        let name = &service.spec.name;
        let mut slots: BTreeMap<_, Vec<&std::sync::Arc<Task>>> = BTreeMap::new();
        for task in state.tasks_of(service.id).filter(|task| task.desired != Desired::Remove) {
            slots.entry(task.slot).or_default().push(task);
        }
        match service.spec.mode {
            Mode::Replicated { replicas } if slots.len() != replicas as usize => {
                return fail(format!("{name} has {} slots, not {replicas}", slots.len()));
            }
            Mode::Replicated { .. } => {}
            Mode::ReplicatedJob { .. } | Mode::GlobalJob { .. } => {
                job_at_rest(state, service, &slots)?;
                continue;
            }
            Mode::Global => {
                if let Some(node) =
                    state.nodes().find(|n| may_have(n, service) && !slots.contains_key(&Slot::Node(n.id)))
                {
                    return fail(format!("{name} has no slot on {}", node.hostname));
                }
                // Where it may not begin it may still be, but need not.
                slots.retain(|slot, _| {
                    slot.node().and_then(|n| state.node(n)).is_some_and(|n| may_have(n, service))
                });
            }
        }
        for (slot, mut tasks) in slots {
            tasks.sort_by_key(|task| task.meta.number);
            let seen = |task: &Task| !is_lost(state, task) && task.is_live() && task.is_wanted();
            let runs = tasks.iter().any(|task| seen(task) && task.observed == Observed::Running);
            let waits = tasks.iter().any(|task| seen(task) && task.node.is_none() && !task.note.is_empty());
            let policy = &service.spec.task.restart;
            let given_up = tasks.iter().all(|task| !task.is_live())
                && (policy.condition != RestartCondition::Any || policy.max_attempts.is_some());
            if !(runs || waits || given_up) {
                let last = tasks.last().map(|task| (task.observed, task.desired, task.start_at));
                return fail(format!("{name}.{slot} neither runs nor says why: {last:?}"));
            }
        }
    }
    for task in state.tasks().filter(|task| state.service(task.service).is_none()) {
        if !is_lost(state, task) {
            return fail(format!("{} is left of a service that was removed: {}", task.name(), task.observed));
        }
    }
    Ok(())
}

/// A job is over, or each slot that is open runs, waits for a reason, or is given up.
fn job_at_rest(
    state: &State,
    service: &Service,
    slots: &BTreeMap<Slot, Vec<&std::sync::Arc<Task>>>,
) -> Finding {
    let name = &service.spec.name;
    let done =
        |tasks: &Vec<&std::sync::Arc<Task>>| tasks.iter().any(|task| task.observed == Observed::Completed);
    let seen = |task: &Task| task.is_live() && task.is_wanted() && !is_lost(state, task);
    let mut idle = slots.values().filter(|tasks| !done(tasks) && !tasks.iter().any(|task| seen(task)));
    if service.expired_at.is_some() {
        let runs = slots.values().flatten().find(|task| seen(task));
        return runs.map_or(Ok(()), |task| fail(format!("{} outlives its job's deadline", task.name())));
    }
    let complete = match service.spec.mode {
        Mode::ReplicatedJob { completions, .. } => slots.len() == completions as usize,
        _ => state.nodes().all(|n| !may_have(n, service) || slots.contains_key(&Slot::Node(n.id))),
    };
    let late = !service.spec.mode.deadline().is_zero();
    if late && !slots.values().all(done) {
        return fail(format!("{name} is not over yet, and its deadline is still to come"));
    }
    let at_work = slots.values().any(|tasks| tasks.iter().any(|task| seen(task)));
    if !complete && !at_work && !late {
        return fail(format!("{name} has {} slots, and nothing is at work", slots.len()));
    }
    let policy = &service.spec.task.restart;
    let may_give_up = policy.condition == RestartCondition::None || policy.max_attempts.is_some();
    let away = |tasks: &Vec<&std::sync::Arc<Task>>| {
        let node = tasks.first().and_then(|task| task.slot.node()).and_then(|node| state.node(node));
        node.is_some_and(|node| !may_have(node, service))
    };
    match idle.find(|tasks| !may_give_up && !away(tasks)) {
        None => Ok(()),
        Some(tasks) => fail(format!("{name} does nothing about {:?}", tasks.last().map(|task| task.slot))),
    }
}

fn not_again(step: &Step<'_>) -> Finding {
    for change in &step.proposal.changes {
        let Change::CreateTask(new) = change else { continue };
        let Some(service) = step.after.service(new.service).filter(|service| service.spec.mode.is_job())
        else {
            continue;
        };
        let of_run = |state: &State| {
            let tasks = state.tasks_of(new.service).filter(|task| task.spec_version == new.spec_version);
            tasks.filter(|task| task.desired != Desired::Remove).cloned().collect::<Vec<_>>()
        };
        let done =
            |task: &std::sync::Arc<Task>| task.slot == new.slot && task.observed == Observed::Completed;
        if of_run(step.before).iter().any(done) {
            return fail(format!("{}.{} is run again", service.spec.name, new.slot));
        }
        let at_work = |state: &State| {
            let live = of_run(state).into_iter().filter(|task| task.is_live() && task.is_wanted());
            live.filter(|task| !is_lost(state, task)).map(|task| task.slot).collect::<BTreeSet<_>>().len()
        };
        let (before, after) = (at_work(step.before), at_work(step.after));
        if let Mode::ReplicatedJob { max_concurrent: max @ 1.., .. } = service.spec.mode
            && after > before
            && after > max as usize
        {
            return fail(format!("{after} tasks of {} are at work, which allows {max}", service.spec.name));
        }
    }
    Ok(())
}

fn failures_stop(step: &Step<'_>) -> Finding {
    let before = step.before;
    for change in &step.proposal.changes {
        let Change::CreateTask(new) = change else { continue };
        let Some(service) = before.service(new.service) else { continue };
        let Some(status) = service.update_status.as_ref().filter(|status| status.state.is_moving()) else {
            continue;
        };
        let pace = if status.state.is_rollback() { &service.spec.rollback } else { &service.spec.update };
        if pace.failure_action == FailureAction::Continue || new.spec_version != service.spec_version {
            continue;
        }
        // What is replaced because of the update, and not because its node is lost, drained or changed.
        let replaced = before.tasks_of(service.id).any(|task| {
            let node = task.node.and_then(|node| before.node(node));
            task.slot == new.slot
                && task.spec_version != service.spec_version
                && task.is_live()
                && task.is_wanted()
                && node.is_some_and(|node| may_have(node, service))
        });
        let mut touched: BTreeMap<Slot, bool> = BTreeMap::new();
        for task in before.tasks_of(service.id).filter(|task| task.desired != Desired::Remove) {
            let made = task.spec_version == service.spec_version && task.meta.created_at >= status.since;
            let ended = matches!(task.observed, Observed::Completed | Observed::Failed | Observed::Rejected);
            let ran = task.status.running_at.map(|began| task.status.at.since(began));
            let failed = made && ended && ran.is_none_or(|ran| ran < pace.monitor);
            let outdated = task.is_live() && task.spec_version != service.spec_version;
            if made || outdated {
                *touched.entry(task.slot).or_default() |= failed;
            }
        }
        let failures = touched.values().filter(|failed| **failed).count();
        if replaced && failures * 1000 > touched.len() * usize::from(pace.max_failure_permille) {
            let of = touched.len();
            return fail(format!("{} goes on with {failures} failures in {of} slots", service.spec.name));
        }
    }
    Ok(())
}

/// Whether a global service is to have a task on a node.
fn may_have(node: &Node, service: &Service) -> bool {
    node.status == NodeStatus::Ready
        && node.availability == Availability::Active
        && !rules::is_tainted(node, &service.spec.task.placement, &[Effect::NoExecute, Effect::NoSchedule])
        && service.spec.task.placement.constraints.iter().all(|constraint| meets(node, constraint))
}

fn pending(scene: &Scene<'_>) -> Finding {
    let state = scene.state;
    let host_ports = |task: &Task| -> BTreeSet<(u16, Protocol)> {
        let service = state.service(task.service);
        let ports = service.into_iter().flat_map(|service| &service.endpoint.ports);
        ports.filter(|port| port.mode == PortMode::Host).map(|port| (port.published, port.protocol)).collect()
    };
    let waits = |task: &&std::sync::Arc<Task>| task.observed == Observed::Pending && task.is_wanted();
    for task in state.tasks().filter(|task| waits(task) && !rules::minds_others(state, task)) {
        let (asked, ports) = (task.spec.resources.reservations, host_ports(task));
        let takes = |node: &&std::sync::Arc<Node>| {
            let (used, capacity) = (reserved(state, node.id), node.description.capacity);
            node.status == NodeStatus::Ready
                && node.availability == Availability::Active
                && task.slot.node().is_none_or(|own| own == node.id)
                && rules::allow(state, node, task)
                && task.spec.placement.constraints.iter().all(|constraint| meets(node, constraint))
                && used.nano_cpus + asked.nano_cpus <= capacity.nano_cpus
                && used.memory_bytes + asked.memory_bytes <= capacity.memory_bytes
                && state.tasks_on(node.id).filter(|t| t.is_live()).all(|t| host_ports(t).is_disjoint(&ports))
        };
        if let Some(node) = state.nodes().find(takes) {
            return fail(format!(
                "{} waits ({}), though {} could take it",
                task.name(),
                task.note,
                node.hostname
            ));
        }
    }
    Ok(())
}

fn drained(scene: &Scene<'_>) -> Finding {
    // What finds no place elsewhere holds up the others of its service.
    let held_up = |service| {
        scene.state.tasks_of(service).any(|task| task.is_live() && task.is_wanted() && !task.note.is_empty())
    };
    let runs =
        |fact: &&Fact| fact.running && !held_up(fact.service) && !scene.hopeless.contains(&fact.service);
    for fact in scene.containers.iter().filter(runs) {
        let node = scene.state.node(fact.node);
        if node.is_some_and(|n| n.availability == Availability::Drain && n.status == NodeStatus::Ready) {
            return fail(format!("{} runs on node {}, which is drained", fact.task, fact.node));
        }
    }
    Ok(())
}

fn history(scene: &Scene<'_>) -> Finding {
    let limit = scene.state.cluster().map_or(0, |cluster| cluster.settings.task_history_limit);
    let mut ended: BTreeMap<_, u32> = BTreeMap::new();
    for task in scene.state.tasks().filter(|task| !task.is_live()) {
        let policy = &task.spec.restart;
        let counted = policy.max_attempts.filter(|_| !policy.window.is_zero()).map_or(0, |max| max + 1);
        let count = ended.entry((task.service, task.slot)).or_default();
        *count += 1;
        if *count > limit.max(counted).max(1) {
            return fail(format!("{} ended tasks of {} are remembered", count, task.name()));
        }
    }
    Ok(())
}
