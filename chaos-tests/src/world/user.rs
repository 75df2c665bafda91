//! The user, who wants something else all the time, and the machines that join.

use super::machine::{Image, Machine, Power};
use super::office::Ticket;
use super::{Event, M, Planted, World, not_before};
use crate::invariants;
use rswarm_control::admission::{self, Answer, Init, Join, NetworkSpec, NodeUpdate, Refused, Request};
use rswarm_control::model::{
    Availability, Constraint, ContainerSpec, EndpointSpec, FailureAction, JoinTokens, Labels, Mode,
    OnNodeLoss, PortMode, PortSpec, Probe, Protocol, Readiness, Resources, RestartCondition, RestartPolicy,
    Role, Secret, ServiceSpec, Settings, TaskResources, TaskSpec, UpdateConfig, UpdateOrder,
};
use rswarm_control::{Proposal, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const GIB: u64 = 1 << 30;
/// No more services than this at a time.
const SERVICES_MAX: usize = 8;
/// No more machines than this, gone ones included.
const MACHINES_MAX: usize = 12;
/// How often an unanswered request is asked again.
const TRIES: u32 = 40;

/// A request on its way.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    request: Request,
    tries: u32,
    /// The machine that asks for itself.
    machine: Option<M>,
}

impl World {
    /// The first machine makes a cluster, and others join.
    pub(super) fn found(&mut self) {
        let managers = self.rng.pick(&[1, 3, 3, 3, 5]).unwrap_or(3);
        let workers = self.rng.below(5);
        self.found_with(managers, workers);
    }

    pub(super) fn found_with(&mut self, managers: u64, workers: u64) {
        let founder = self.buy();
        let secret = |letter: &str| Secret(letter.repeat(16));
        let init = Init {
            name: "simulated".into(),
            id_seed: self.seed.wrapping_mul(0x9e37_79b9),
            ca_cert_pem: "certificate".into(),
            ca_key_pem: secret("k"),
            tokens: JoinTokens { worker: secret("w"), manager: secret("m") },
            settings: Settings::default(),
            hostname: self.machines[founder].name.clone(),
            addr: self.machines[founder].addr.clone(),
            availability: Availability::Active,
            description: self.machines[founder].description.clone(),
        };
        let at = Timestamp(self.now);
        match admission::init(&self.log.truth, &init, at) {
            Ok((changes, Answer::Node(node))) => {
                self.found_log(founder, Proposal { changes, at });
                self.enter(founder, node, founder);
            }
            other => self.fail(invariants::NOTHING_PANICS, format!("a cluster cannot be founded: {other:?}")),
        }
        for number in 1..managers + workers {
            let role = if number < managers { Role::Manager } else { Role::Worker };
            self.join(role);
        }
    }

    fn buy(&mut self) -> M {
        let m = self.machines.len();
        let capacity = Resources {
            nano_cpus: self.rng.between(2, 8) * 1_000_000_000,
            memory_bytes: self.rng.between(2, 16) * GIB,
        };
        self.machines.push(Machine::new(m, capacity));
        m
    }

    fn join(&mut self, role: Role) {
        let m = self.buy();
        let secret = Secret(if role == Role::Manager { "m" } else { "w" }.repeat(16));
        let machine = &self.machines[m];
        let join = Join {
            secret,
            hostname: machine.name.clone(),
            addr: machine.addr.clone(),
            availability: Availability::Active,
            description: machine.description.clone(),
        };
        self.request(Request::Join(join), Some(m));
    }

    /// A machine has become a node.
    fn enter(&mut self, m: M, node: rswarm_control::NodeId, leader: M) {
        self.machines[m].node = Some(node);
        self.machines[m].agent.known = vec![leader];
        self.note(|| format!("m{m} is node {node}"));
        if self.machines[m].power == Power::On {
            self.start_daemon(m);
        }
    }

    pub(super) fn request(&mut self, request: Request, machine: Option<M>) {
        let number = self.fresh();
        self.requests.insert(number, Asked { request, tries: 0, machine });
        self.after(1, Event::Ask { request: number });
    }

    /// Asks whoever leads, or thinks it does.
    pub(super) fn ask(&mut self, number: u64) {
        let Some(asked) = self.requests.get_mut(&number) else { return };
        asked.tries += 1;
        let (request, tries) = (asked.request.clone(), asked.tries);
        if tries > TRIES {
            self.requests.remove(&number);
            return;
        }
        let leads = |m: &M| self.machines[*m].office.as_ref().is_some_and(|o| o.seated) && self.acts(*m);
        let leaders: Vec<M> = (0..self.machines.len()).filter(leads).collect();
        let Some(m) = self.rng.pick(&leaders) else {
            return self.after(500, Event::Ask { request: number });
        };
        let wall = self.wall(m);
        let Some(replica) = self.machines[m].replica.as_ref() else { return };
        let at = not_before(&replica.state, wall);
        match admission::admit(&replica.state, &request, at) {
            Ok((changes, answer)) if changes.is_empty() => self.answered(number, answer),
            Ok((changes, answer)) => {
                self.propose(m, Proposal { changes, at }, Ticket::User { request: number, answer });
            }
            Err(refused) => {
                self.note(|| format!("refused: {refused}"));
                match refused {
                    Refused::Conflict(_) => self.after(100, Event::Ask { request: number }),
                    _ => drop(self.requests.remove(&number)),
                }
            }
        }
    }

    /// A request was carried out; it must be so.
    pub(super) fn answered(&mut self, number: u64, answer: Answer) {
        let Some(asked) = self.requests.remove(&number) else { return };
        let state = &self.log.truth;
        let there = match (&asked.request, answer) {
            (Request::CreateService { .. }, Answer::Service(id)) => state.service(id).is_some(),
            (Request::RemoveService { .. }, Answer::Service(id)) => state.service(id).is_none(),
            (Request::CreateNetwork(_), Answer::Network(id)) => state.network(id).is_some(),
            (Request::Join(_), Answer::Node(id)) => state.node(id).is_some(),
            (Request::RemoveNode { .. }, Answer::Node(id)) => state.node(id).is_none(),
            _ => true,
        };
        if !there {
            self.fail(invariants::ACKNOWLEDGED_STAYS, format!("{:?}", asked.request));
        }
        match (asked.request, answer, asked.machine) {
            (Request::Join(_), Answer::Node(node), Some(m)) => {
                let leader = self.log.leader.unwrap_or(0);
                self.enter(m, node, leader);
            }
            (Request::Leave { .. }, _, Some(m)) => {
                self.note(|| format!("m{m} has left"));
                self.machines[m].leaving = true;
                if self.machines[m].power == Power::On {
                    self.clear(m);
                }
                self.after(1_000, Event::Gone { m });
            }
            _ => {}
        }
    }

    /// Nobody will tell what became of a request. The user asks again, and may then be told that it was
    /// done already.
    pub(super) fn unanswered(&mut self, number: u64) {
        let wait = self.rng.between(50, 1_000);
        self.after(wait, Event::Ask { request: number });
    }

    /// The user thinks of something.
    pub(super) fn user(&mut self) {
        if self.quiet {
            return;
        }
        let pause = self.rng.between(300, 6_000);
        self.after(pause, Event::User);
        let number = self.wishes;
        self.wishes += 1;
        if self.options.left_out.wishes.contains(&number) {
            return;
        }
        if self.rearrange() {
            return;
        }
        let state = self.log.truth.clone();
        let services: Vec<_> = state.services().cloned().collect();
        let some = services.get(self.rng.below(services.len() as u64) as usize).cloned();
        let name = some.as_ref().map(|service| service.spec.name.clone());
        let dice = self.rng.below(100);
        // This mistake shows only in updates that fail.
        if let (Some(Planted::OneFailureMore), Some(old), 25..) = (self.options.planted, &some, dice)
            && let Mode::Replicated { replicas: 2.. } = old.spec.mode
        {
            return self.update_badly(old);
        }
        match (dice, some, name) {
            (0..=24, _, _) | (_, None, _) | (_, _, None) => {
                if services.len() < SERVICES_MAX {
                    let (number, spec) = (self.fresh(), self.spec());
                    let name = format!("s{number}");
                    let networks = self.networks();
                    self.request(
                        Request::CreateService { spec: ServiceSpec { name, ..spec }, networks },
                        None,
                    );
                }
            }
            (25..=44, _, Some(service)) => {
                let replicas = u32::try_from(self.rng.below(9)).unwrap_or(1);
                self.request(Request::ScaleService { service, replicas }, None);
            }
            (45..=48, _, Some(service)) => {
                let pause = self.rng.percent(40);
                self.request(Request::PauseUpdate { service, pause }, None);
            }
            (49..=52, Some(old), Some(service)) => {
                let numbers: Vec<u64> = old.previous.iter().map(|revision| revision.number).collect();
                let to = if self.rng.percent(50) { None } else { self.rng.pick(&numbers) };
                self.request(Request::RollbackService { service, to }, None);
            }
            (53..=64, Some(old), Some(service)) => {
                let mut spec = self.spec();
                spec.name.clone_from(&old.spec.name);
                // A service keeps its mode; mostly the user knows.
                if self.rng.percent(90) && spec.mode.is_job() == old.spec.mode.is_job() {
                    spec.mode = old.spec.mode.clone();
                }
                let networks = self.networks();
                let version = self.rng.percent(50).then_some(old.meta.version);
                self.request(Request::UpdateService { service, version, spec, networks }, None);
            }
            (65..=73, _, Some(service)) => self.request(Request::RemoveService { service }, None),
            (74..=77, _, _) => {
                let number = self.fresh();
                self.request(Request::CreateNetwork(NetworkSpec::new(format!("n{number}"))), None);
            }
            (78..=79, _, _) => {
                let networks: Vec<_> = state.networks().map(|network| network.name.clone()).collect();
                let network = networks[self.rng.below(networks.len() as u64) as usize].clone();
                self.request(Request::RemoveNetwork { network }, None);
            }
            _ => self.change_nodes(&state),
        }
    }

    /// Asks for what cannot be started, in an update that shall stop at its first failure.
    fn update_badly(&mut self, old: &rswarm_control::model::Service) {
        let mut spec = old.spec.clone();
        Arc::make_mut(&mut spec.task).containers[0].image = format!("unstartable:{}", self.rng.below(4));
        spec.update = UpdateConfig::default();
        let (service, networks) = (spec.name.clone(), Vec::new());
        self.request(Request::UpdateService { service, version: None, spec, networks }, None);
    }

    fn change_nodes(&mut self, state: &rswarm_control::State) {
        let nodes: Vec<_> = state.nodes().cloned().collect();
        let Some(node) = nodes.get(self.rng.below(nodes.len() as u64) as usize) else { return };
        let text = node.id.to_string();
        let mut update = NodeUpdate { node: text.clone(), ..NodeUpdate::default() };
        match self.rng.below(100) {
            0..=44 => {
                let all =
                    [Availability::Active, Availability::Active, Availability::Pause, Availability::Drain];
                update.availability = self.rng.pick(&all);
            }
            45..=64 => {
                let disk = self.rng.pick(&["ssd", "hdd"]).unwrap_or("ssd");
                update.labels_add = Labels::from([("disk".to_owned(), disk.to_owned())]);
            }
            65..=79 => {
                let more = node.role == Role::Worker && state.managers() < 5;
                update.role = Some(if more { Role::Manager } else { Role::Worker });
            }
            80..=86 => {
                let force = self.rng.percent(70);
                return self.request(Request::RemoveNode { node: text, force }, None);
            }
            87..=91 => {
                let machine = self.machines.iter().position(|machine| machine.node == Some(node.id));
                let force = self.rng.percent(50);
                return self.request(Request::Leave { node: node.id, force }, machine);
            }
            _ if self.machines.len() < MACHINES_MAX => {
                let role = if self.rng.percent(30) { Role::Manager } else { Role::Worker };
                return self.join(role);
            }
            _ => return,
        }
        self.request(Request::UpdateNode(update), None);
    }

    fn networks(&mut self) -> Vec<String> {
        let known: Vec<String> = self.log.truth.networks().map(|network| network.name.clone()).collect();
        let position = self.rng.below(known.len() as u64) as usize;
        if self.rng.percent(60) { Vec::new() } else { known.get(position).cloned().into_iter().collect() }
    }

    fn spec(&mut self) -> ServiceSpec {
        let image = if self.rng.percent(75) { Some("steady") } else { self.rng.pick(&Image::NAMES) };
        let version = self.rng.below(4);
        let mut container = ContainerSpec::new(format!("{}:{version}", image.unwrap_or("steady")));
        container.stop_grace = Duration::from_secs(self.rng.between(1, 10));
        container.readiness = (image == Some("moody")).then(|| Readiness::new(Probe::Tcp(80)));
        let reservations = Resources {
            nano_cpus: self.rng.below(4) * 250_000_000,
            memory_bytes: self.rng.below(5) * GIB / 2,
        };
        let mut task = TaskSpec {
            containers: vec![container],
            resources: TaskResources { reservations, ..TaskResources::default() },
            ..TaskSpec::default()
        };
        if self.rng.percent(30) {
            task.restart = RestartPolicy {
                condition: self
                    .rng
                    .pick(&[RestartCondition::Any, RestartCondition::OnFailure, RestartCondition::None])
                    .unwrap_or(RestartCondition::Any),
                delay: Duration::from_millis(self.rng.between(0, 5_000)),
                max_attempts: self.rng.percent(50).then_some(u32::try_from(self.rng.below(4)).unwrap_or(0)),
                window: Duration::from_secs(self.rng.pick(&[0, 0, 30]).unwrap_or(0)),
            };
        }
        if self.rng.percent(20) {
            let text =
                self.rng.pick(&["node.labels.disk==ssd", "node.labels.disk!=hdd", "node.role==worker"]);
            let constraint = text.and_then(|text| text.parse::<Constraint>().ok());
            task.placement.constraints.extend(constraint);
        }
        let mut endpoint = EndpointSpec::default();
        if self.rng.percent(25) {
            let published = 8_000 + u16::try_from(self.rng.below(6)).unwrap_or(0);
            let mode = self.rng.pick(&[PortMode::Ingress, PortMode::Host]).unwrap_or(PortMode::Ingress);
            let published = (mode == PortMode::Host || self.rng.percent(50)).then_some(published);
            endpoint.ports.push(PortSpec {
                published,
                target: 80,
                protocol: Protocol::Tcp,
                mode,
                proxy_protocol: false,
            });
        }
        let update = UpdateConfig {
            parallelism: u32::try_from(self.rng.below(3)).unwrap_or(1),
            delay: Duration::from_secs(self.rng.pick(&[0, 0, 2]).unwrap_or(0)),
            monitor: Duration::from_secs(self.rng.between(0, 5)),
            order: if self.rng.percent(40) { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst },
            failure_action: self
                .rng
                .pick(&[FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback])
                .unwrap_or(FailureAction::Pause),
            max_failure_permille: self.rng.pick(&[0, 0, 250]).unwrap_or(0),
            progress_deadline: Duration::from_secs(self.rng.pick(&[0, 20, 60]).unwrap_or(0)),
            healthy_time: Duration::from_millis(self.rng.pick(&[0, 0, 1_500]).unwrap_or(0)),
        };
        let action = if self.rng.percent(20) { FailureAction::Continue } else { FailureAction::Pause };
        let rollback = UpdateConfig { failure_action: action, ..update.clone() };
        let replicas = u32::try_from(self.rng.below(7)).unwrap_or(1);
        let labels = Labels::new();
        let deadline = Duration::from_secs(self.rng.pick(&[0, 0, 20]).unwrap_or(0));
        let max_concurrent = u32::try_from(self.rng.below(3)).unwrap_or(0);
        let mode = match self.rng.below(100) {
            0..=14 => Mode::Global,
            15..=29 => Mode::ReplicatedJob { completions: replicas, max_concurrent, deadline },
            30..=36 => Mode::GlobalJob { deadline },
            _ => Mode::Replicated { replicas },
        };
        let (mut update, mut rollback) = (update, rollback);
        let losses = [None, None, Some(OnNodeLoss::Fence), Some(OnNodeLoss::Fence), Some(OnNodeLoss::Wait)];
        task.on_node_loss = self.rng.pick(&losses).unwrap_or(None);
        if task.is_fenced() {
            (update.order, rollback.order) = (UpdateOrder::StopFirst, UpdateOrder::StopFirst);
        }
        if mode.is_job() {
            (update, rollback) = (UpdateConfig::default(), UpdateConfig::default());
            if task.restart.condition == RestartCondition::Any {
                task.restart.condition = RestartCondition::OnFailure;
            }
            if self.rng.percent(60) {
                task.containers[0].image = format!("done:{version}");
            }
        }
        self.choose_places(&mut task);
        let task = Arc::new(task);
        ServiceSpec { name: String::new(), labels, mode, task, update, rollback, endpoint }
    }

    /// A service of so many steady tasks, for a drill.
    pub(super) fn plain_service(&mut self, name: &str, replicas: u32) {
        let task = TaskSpec { containers: vec![ContainerSpec::new("steady")], ..TaskSpec::default() };
        let spec = ServiceSpec {
            name: name.into(),
            labels: Labels::new(),
            mode: Mode::Replicated { replicas },
            task: Arc::new(task),
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            endpoint: EndpointSpec::default(),
        };
        self.request(Request::CreateService { spec, networks: Vec::new() }, None);
    }

    /// Gives most services whose tasks do not stay up something that does.
    pub(super) fn repair_services(&mut self) {
        for id in self.hopeless() {
            let Some(service) = self.log.truth.service(id).cloned() else { continue };
            let name = service.spec.name.clone();
            if self.rng.percent(30) {
                self.request(Request::RemoveService { service: name }, None);
                continue;
            }
            let mut spec = service.spec.clone();
            Arc::make_mut(&mut spec.task).containers[0].image = "steady:9".into();
            self.request(
                Request::UpdateService { service: name, version: None, spec, networks: Vec::new() },
                None,
            );
        }
    }
}
