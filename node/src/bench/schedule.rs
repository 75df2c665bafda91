//! What the leader's thinking costs: turns of the crank on clusters that exist in memory only. The time is that of one
//! processor, so that whatever else the machine does counts little.

use super::figure::{Figure, Of, Samples};
use super::note;
use anyhow::{Context, Result, ensure};
use rswarm_control::admission::{self, Answer, Init, NetworkSpec, Request};
use rswarm_control::liveness::Heard;
use rswarm_control::model::{
    Affinity, AffinityRule, Availability, ContainerSpec, Description, EndpointSpec, Health, JoinTokens, Meta,
    Mode, Node, NodeStatus, Observed, Preference, Resources, Role, Secret, ServiceSpec, Settings, Task,
    TaskSpec, UpdateConfig,
};
use rswarm_control::{Change, Crank, NodeId, Proposal, Report, State, Timestamp, tick};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::Duration;

/// When it is in these clusters.
pub const NOW: Timestamp = Timestamp(1_700_000_000_000);
const SEED: u64 = 7;
const ZONES: usize = 5;
/// A network with room for a hundred thousand tasks, which the default one has not.
const LARGE: &str = "172.16.0.0/14";
/// Services, each of so many tasks.
const SERVICES: usize = 10;
const REPLICAS: u32 = 1_000;

/// Decisions a second on 5,000 nodes, and a turn with nothing to do on 1,000.
///
/// # Errors
/// If the cluster in memory does not do what it is asked to.
pub fn run(trials: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (goal, what, target, rules) in [
        ("sched.plain.per_s", "decisions, 5,000 nodes", ">=50000", plain as fn(&mut TaskSpec, usize)),
        ("sched.spread.per_s", "spread over 5 zones", ">=20000", spread),
        ("sched.antiaffinity.per_s", "apart from itself and another", ">=10000", apart),
    ] {
        let state = waiting(5_000, REPLICAS, rules).context(goal)?;
        let samples = (0..trials).map(|_| decide(&state)).collect::<Result<Samples>>().context(goal)?;
        note(&format!("{goal}: {:.0}", samples.median().unwrap_or_default()));
        figures.extend(figure(goal, what, &samples, "1/s", Some(target)));
    }
    let state = settled()?;
    let heard = Heard::new(NOW);
    let (mut first, mut next) = (Samples::default(), Samples::default());
    let idle = |crank: &mut Crank| {
        let began = worked();
        let plan = crank.turn(&state, &heard, NOW);
        let took = (worked() - began).as_secs_f64() * 1_000.0;
        ensure!(plan.changes.is_empty(), "a cluster with nothing to do does something");
        Ok(took)
    };
    for _ in 0..trials {
        // One that has just come to lead looks at everything.
        let mut crank = Crank::default();
        first.push(idle(&mut crank)?);
        for _ in 0..10 {
            next.push(idle(&mut crank)?);
        }
    }
    let what = "a leader's first turn, nothing to do, 1,000 nodes, 10,000 tasks";
    figures.extend(figure("sched.tick_first_ms", what, &first, "ms", None));
    let what = "its next turns, nothing to do";
    figures.extend(figure("sched.tick_idle_ms", what, &next, "ms", Some("<=2")));
    Ok(figures)
}

/// How long this thread has had a processor.
fn worked() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn figure(
    goal: &'static str,
    what: &'static str,
    samples: &Samples,
    unit: &'static str,
    target: Option<&'static str>,
) -> Option<Figure> {
    let figure = Figure::new(goal, what, Of::Median, samples, unit)?;
    let figure = match target {
        Some(target) => figure.target(target),
        None => figure,
    };
    Some(Figure { seed: Some(SEED), ..figure })
}

fn plain(_: &mut TaskSpec, _: usize) {}

fn spread(task: &mut TaskSpec, _: usize) {
    task.placement.preferences.extend("spread=node.labels.zone".parse::<Preference>());
}

/// Each service keeps its own tasks on different nodes, and away from its neighbour's.
fn apart(task: &mut TaskSpec, number: usize) {
    for other in [number, number ^ 1] {
        let rule = Affinity::parse(AffinityRule::Apart, &name(other));
        task.placement.affinities.extend(rule);
    }
}

/// One whole turn that finds a node for every waiting task: decisions a second.
fn decide(state: &State) -> Result<f64> {
    let began = worked();
    let plan = tick(state, &Heard::new(NOW), NOW);
    let took = worked() - began;
    let decided = plan.changes.iter().filter(|change| matches!(change, Change::Assign { .. })).count();
    ensure!(decided == SERVICES * REPLICAS as usize, "only {decided} tasks found a node");
    Ok(decided as f64 / took.as_secs_f64())
}

/// A cluster whose nodes have just been opened, so that all tasks wait for one.
fn waiting(nodes: usize, replicas: u32, rules: fn(&mut TaskSpec, usize)) -> Result<State> {
    let mut state = cluster(nodes)?;
    for number in 0..SERVICES {
        create(&mut state, number, replicas, rules)?;
    }
    while turn(&mut state)? {}
    Ok(open(state))
}

/// A cluster in which all is as asked for.
fn settled() -> Result<State> {
    let mut state = waiting(1_000, REPLICAS, plain)?;
    turn(&mut state)?;
    all_run(&mut state)?;
    Ok(state)
}

/// One as large as is wanted, made by turns that remember one another, as those of a leader do.
pub fn large(nodes: usize, services: usize, replicas: u32) -> Result<State> {
    let mut state = open(cluster(nodes)?);
    let network = NetworkSpec { subnet: LARGE.parse().ok(), ..NetworkSpec::new("large") };
    let (changes, _) = admission::admit(&state, &Request::CreateNetwork(network), NOW)?;
    commit(&mut state, changes)?;
    for number in 0..services {
        create_in(&mut state, number, replicas, plain, vec!["large".into()])?;
    }
    let (mut crank, heard) = (Crank::default(), Heard::new(NOW));
    loop {
        let plan = crank.turn(&state, &heard, NOW);
        if plan.changes.is_empty() {
            break;
        }
        commit(&mut state, plan.changes)?;
    }
    ensure!(state.tasks().all(|task| task.node.is_some()), "not every task has found a node");
    all_run(&mut state)?;
    Ok(state)
}

fn all_run(state: &mut State) -> Result<()> {
    let changes = state.tasks().filter_map(|task| report(task, "")).collect();
    commit(state, changes)
}

/// The same with workers that take work.
fn open(state: State) -> State {
    let mut snapshot = state.snapshot();
    for node in snapshot.nodes.iter_mut().filter(|node| node.role == Role::Worker) {
        Arc::make_mut(node).availability = Availability::Active;
    }
    State::restore(snapshot)
}

/// What a node says of a task of its own that runs.
pub fn report(task: &Task, message: &str) -> Option<Change> {
    Some(Change::Report(Report {
        task: task.id,
        node: task.node?,
        observed: Observed::Running,
        message: message.into(),
        error: String::new(),
        exit_code: None,
        pid: None,
        health: Health::Unchecked,
        ready: None,
    }))
}

/// Turns the crank once. Whether there was anything to do.
fn turn(state: &mut State) -> Result<bool> {
    let plan = tick(state, &Heard::new(NOW), NOW);
    let some = !plan.changes.is_empty();
    commit(state, plan.changes)?;
    Ok(some)
}

fn commit(state: &mut State, changes: Vec<Change>) -> Result<()> {
    let index = state.index() + 1;
    state.apply(index, &Proposal { changes, at: NOW })?;
    Ok(())
}

fn name(number: usize) -> String {
    format!("s{number}")
}

fn create(state: &mut State, number: usize, replicas: u32, rules: fn(&mut TaskSpec, usize)) -> Result<()> {
    create_in(state, number, replicas, rules, Vec::new())
}

fn create_in(
    state: &mut State,
    number: usize,
    replicas: u32,
    rules: fn(&mut TaskSpec, usize),
    networks: Vec<String>,
) -> Result<()> {
    let mut task = TaskSpec { containers: vec![ContainerSpec::new("bench")], ..TaskSpec::default() };
    task.resources.reservations = Resources { nano_cpus: 10_000_000, memory_bytes: 16 << 20 };
    rules(&mut task, number);
    let spec = ServiceSpec {
        name: name(number),
        labels: Default::default(),
        mode: Mode::Replicated { replicas },
        task: Arc::new(task),
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec::default(),
    };
    let request = Request::CreateService { spec, networks };
    let (changes, answer) = admission::admit(state, &request, NOW)?;
    ensure!(matches!(answer, Answer::Service(_)), "no service was made");
    commit(state, changes)
}

/// A manager without work, and so many workers that are closed yet.
fn cluster(nodes: usize) -> Result<State> {
    let mut state = State::default();
    let capacity = Resources { nano_cpus: 16_000_000_000, memory_bytes: 64 << 30 };
    let description =
        Description { capacity, os: "linux".into(), arch: "x86_64".into(), ..Description::default() };
    let secret = |letter: &str| Secret(letter.repeat(16));
    let init = Init {
        name: "bench".into(),
        id_seed: SEED,
        ca_cert_pem: String::new(),
        ca_key_pem: secret("k"),
        tokens: JoinTokens { worker: secret("w"), manager: secret("m") },
        settings: Settings::default(),
        hostname: "m1".into(),
        addr: "192.0.2.1:2377".into(),
        availability: Availability::Drain,
        description: description.clone(),
    };
    let (changes, _) = admission::init(&state, &init, NOW)?;
    commit(&mut state, changes)?;
    let mut snapshot = state.snapshot();
    for number in 0..nodes {
        let meta = Meta { number: snapshot.next_number, version: 1, created_at: NOW, updated_at: NOW };
        snapshot.next_number += 1;
        snapshot.nodes.push(Arc::new(Node {
            id: NodeId::mint(SEED, meta.number),
            meta,
            hostname: format!("n{number}"),
            addr: format!("198.51.{}.{}:2377", number / 250, number % 250 + 1),
            role: Role::Worker,
            raft: None,
            availability: Availability::Pause,
            labels: [("zone".to_owned(), format!("z{}", number % ZONES))].into(),
            taints: Vec::new(),
            status: NodeStatus::Ready,
            status_since: NOW,
            message: String::new(),
            description: description.clone(),
            session: 1,
        }));
    }
    Ok(State::restore(snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_state_is_whole() {
        let state = large(40, 3, 50).expect("a cluster");
        assert_eq!(state.tasks().filter(|task| task.observed == Observed::Running).count(), 150);
    }

    #[test]
    fn every_waiting_task_is_decided_on_at_once() {
        for rules in [plain as fn(&mut TaskSpec, usize), spread, apart] {
            let mut state = waiting(40, 20, rules).expect("a cluster");
            turn(&mut state).expect("a turn");
            assert!(state.tasks().all(|task| task.node.is_some()));
        }
    }
}
