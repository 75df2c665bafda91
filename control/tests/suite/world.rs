//! A cluster without anything real: the leader's turn, every node's worker, and containers that obey at
//! once. Time passes in steps; reports and assignments travel within one.

use rswarm_control::admission::{self, Answer, Init, Join, Refused, Request, Session};
use rswarm_control::model::*;
use rswarm_control::worker::{Action, Seen, Worker};
use rswarm_control::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How far time moves at once; nodes beat every fifth step.
pub const STEP: Duration = Duration::from_millis(50);
/// How long a task of the image `work` is at work.
const WORK: Duration = Duration::from_secs(10);
/// How long a slow image takes to come to run.
const SLOW: Duration = Duration::from_secs(5);
/// The leader's own machine: it takes no tasks and is always heard.
pub const FOUNDER: &str = "m1";

pub struct World {
    pub state: State,
    pub heard: Heard,
    crank: Crank,
    pub now: Timestamp,
    pub machines: BTreeMap<NodeId, Machine>,
    pub log: Vec<(u64, Proposal)>,
    index: u64,
    steps: u64,
    /// The state that the leader and the nodes last looked at, and when the leader wants to look again.
    looked_at: u64,
    due: Timestamp,
    /// Tasks that take their time to come to run.
    slow: Vec<(Timestamp, NodeId, TaskId)>,
    followers: [Follower; 3],
    /// Tasks that are stopped then, unless something comes before.
    stops: Vec<(Timestamp, NodeId, TaskId)>,
}

/// What the nodes make of what they are told of the directory, by one who looks at every so many changes.
struct Follower {
    every: u64,
    seen: State,
    known: BTreeMap<NodeId, (BTreeSet<endpoints::Part>, endpoints::Directory)>,
}

impl Follower {
    fn new(every: u64) -> Self {
        Self { every, seen: State::default(), known: BTreeMap::new() }
    }

    fn look(&mut self, now: &State, nodes: impl Iterator<Item = NodeId>) {
        use endpoints::{Part, between, is_published, of, parts, whole};
        let news = between(&self.seen, now);
        for node in nodes {
            let needed = parts(now, node, is_published(now));
            let (known, directory) = self.known.entry(node).or_default();
            for part in known.difference(&needed).copied() {
                match part {
                    Part::Nodes => directory.nodes.clear(),
                    Part::Published | Part::Network(_) => directory.leave(part),
                }
            }
            for part in &needed {
                let piece = match known.contains(part) {
                    true => news.get(part).cloned(),
                    false => Some(whole(now, *part)),
                };
                piece.into_iter().for_each(|piece| directory.follow(piece).expect("it follows"));
            }
            assert_eq!(directory.table(node), of(now, node), "what {node} was told, and the whole");
            *known = needed;
        }
        self.seen = now.clone();
    }
}

pub struct Machine {
    worker: Worker,
    /// What runs, whatever the worker believes.
    pub containers: BTreeMap<TaskId, Seen>,
    pub heard: bool,
    pub powered: bool,
    reports: Vec<Report>,
}

impl World {
    pub fn new() -> Self {
        Self::of_level(level::LATEST)
    }

    /// One whose managers are programs that understand the log up to this level.
    pub fn of_level(level: u32) -> Self {
        let now = Timestamp(1_000_000);
        let mut world = Self {
            state: State::default(),
            heard: Heard::new(now),
            crank: Crank::default(),
            now,
            machines: BTreeMap::new(),
            log: Vec::new(),
            index: 0,
            steps: 0,
            looked_at: 0,
            due: now,
            slow: Vec::new(),
            followers: [1, 7, 60].map(Follower::new),
            stops: Vec::new(),
        };
        let init = Init {
            name: "test".into(),
            id_seed: 42,
            ca_cert_pem: "cert".into(),
            ca_key_pem: Secret("key".into()),
            tokens: JoinTokens { worker: Secret("w".repeat(16)), manager: Secret("m".repeat(16)) },
            settings: Settings::default(),
            hostname: FOUNDER.into(),
            addr: "10.9.0.1:2377".into(),
            availability: Availability::Drain,
            description: Description { level, ..Description::default() },
        };
        let (changes, answer) =
            admission::init(&world.state, &init, now).expect("an empty state can be initialised");
        world.commit(changes).expect("nothing else is going on");
        let Answer::Node(founder) = answer else { panic!("init answers with the founder") };
        world.boot(founder, FOUNDER, "10.9.0.1:2377", init.description.clone());
        world
    }

    pub fn commit(&mut self, changes: Vec<Change>) -> Result<Applied, Stale> {
        self.index += 1;
        let proposal = Proposal { changes, at: self.now };
        self.log.push((self.index, proposal.clone()));
        let before = self.state.clone();
        let applied = self.state.apply(self.index, &proposal)?;
        self.check_told(&before, &applied);
        Ok(applied)
    }

    /// Who is told only what concerns it, or only what has changed, misses nothing: not from each state to the next,
    /// nor from one to a later one.
    fn check_told(&mut self, before: &State, applied: &Applied) {
        let touched = touched::between(before, &self.state);
        for id in self.machines.keys() {
            let held = assignment::of(before, *id) == assignment::of(&self.state, *id);
            assert!(held || touched.has(*id), "node {id} is not told: {applied:?}");
        }
        for follower in &mut self.followers {
            if self.index.is_multiple_of(follower.every) {
                follower.look(&self.state, self.machines.keys().copied());
            }
        }
    }

    pub fn ask(&mut self, request: &Request) -> Result<Answer, Refused> {
        let (changes, answer) = admission::admit(&self.state, request, self.now)?;
        if !changes.is_empty() {
            self.commit(changes).expect("what was just admitted can be applied");
        }
        Ok(answer)
    }

    pub fn join(&mut self, hostname: &str, role: Role, capacity: Resources) -> Result<NodeId, Refused> {
        let cluster = self.state.cluster().expect("the world has a cluster");
        let secret = match role {
            Role::Worker => cluster.tokens.worker.clone(),
            Role::Manager => cluster.tokens.manager.clone(),
        };
        let (os, arch) = ("linux".into(), "x86_64".into());
        let description = Description { capacity, os, arch, level: level::LATEST, ..Description::default() };
        let addr = format!("10.9.0.{}:2377", self.machines.len() + 1);
        let availability = Availability::Active;
        let join = Join {
            secret,
            hostname: hostname.into(),
            addr: addr.clone(),
            availability,
            description: description.clone(),
        };
        let Answer::Node(id) = self.ask(&Request::Join(join))? else { panic!("join answers with a node") };
        self.boot(id, hostname, &addr, description);
        Ok(id)
    }

    /// The only manager comes back as a program that understands this level of the log.
    pub fn upgrade(&mut self, level: u32) {
        let id = self.node_named(FOUNDER);
        let description = Description { level, ..Description::default() };
        self.boot(id, FOUNDER, "10.9.0.1:2377", description);
    }

    fn boot(&mut self, id: NodeId, hostname: &str, addr: &str, description: Description) {
        let machine = Machine {
            worker: Worker::new(id, BTreeMap::new()),
            containers: BTreeMap::new(),
            heard: true,
            powered: true,
            reports: Vec::new(),
        };
        self.machines.insert(id, machine);
        let (hostname, addr) = (hostname.into(), addr.into());
        self.ask(&Request::OpenSession(Session { node: id, hostname, addr, description })).expect("a member");
        self.heard.beat(id, self.now);
    }

    pub fn node_named(&self, hostname: &str) -> NodeId {
        let node = self.state.nodes().find(|node| node.hostname == hostname);
        node.unwrap_or_else(|| panic!("no node {hostname}")).id
    }

    /// Cuts a node off, or lets it back.
    pub fn hear(&mut self, id: NodeId, heard: bool) {
        let node = self.state.node(id).cloned();
        let machine = self.machines.get_mut(&id).expect("a machine");
        if heard && !machine.heard && machine.powered {
            machine.reports = machine.worker.reports();
            if let Some(node) = node {
                let (hostname, addr) = (node.hostname.clone(), node.addr.clone());
                let description = node.description.clone();
                let session = Session { node: id, hostname, addr, description };
                self.ask(&Request::OpenSession(session)).expect("a member");
                self.heard.beat(id, self.now);
            }
        }
        self.machines.get_mut(&id).expect("a machine").heard = heard;
    }

    pub fn hear_if_powered(&mut self, id: NodeId) {
        if self.machines[&id].powered {
            self.hear(id, true);
        }
    }

    /// Takes a machine's power, and its containers with it.
    pub fn power_off(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).expect("a machine");
        for seen in machine.containers.values_mut() {
            if matches!(seen, Seen::Running { .. } | Seen::Starting { .. }) {
                *seen = Seen::Lost("its machine was restarted".into());
            }
        }
        (machine.heard, machine.powered) = (false, false);
    }

    pub fn power_on(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).expect("a machine");
        machine.powered = true;
        machine.worker = Worker::new(id, machine.containers.clone());
        self.hear(id, true);
    }

    /// Kills the daemon and starts it again; the containers stay.
    pub fn restart_daemon(&mut self, id: NodeId) {
        self.machines.get_mut(&id).expect("a machine").heard = false;
        self.power_on(id);
    }

    /// The leader is another one from now on, which has heard nobody yet.
    pub fn new_leader(&mut self) {
        self.heard = Heard::new(self.now);
        self.due = self.now;
    }

    /// A container ends by itself.
    pub fn exit(&mut self, task: TaskId, code: i32) {
        let seen = Seen::Ended { exit_code: Some(code), error: String::new() };
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            if self.machines[&id].containers.contains_key(&task) {
                self.see(id, task, seen.clone());
            }
        }
    }

    /// A container's probes find something out.
    pub fn find(&mut self, task: TaskId, seen: &Seen) {
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            if self.machines[&id].containers.contains_key(&task) {
                self.see(id, task, seen.clone());
            }
        }
    }

    pub fn run(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.now < until {
            self.step(STEP);
        }
    }

    /// Lets time pass in larger steps, for when only the outcome matters.
    pub fn run_coarsely(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.now < until {
            self.step(STEP * 5);
        }
    }

    fn step(&mut self, time: Duration) {
        self.now = self.now.after(time);
        let beats = self.steps / 5;
        self.steps += u64::try_from(time.as_millis() / STEP.as_millis()).expect("a short step");
        if self.steps / 5 > beats {
            let heard = self.machines.iter().filter(|(_, machine)| machine.heard);
            for id in heard.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.heard.beat(id, self.now);
                let effects = self.machines.get_mut(&id).expect("a machine").worker.renew(self.now, self.now);
                self.carry_out(id, effects);
                if self.state.node(id).is_some_and(|node| node.status != NodeStatus::Ready) {
                    self.due = self.now;
                }
            }
        }
        self.come_to_run();
        self.come_to_end();
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            let effects = self.machines.get_mut(&id).expect("a machine").worker.fence(self.now);
            self.carry_out(id, effects);
        }
        self.settle();
    }

    /// What was slow to start runs by now, and what was at work is done, unless it was stopped.
    fn come_to_run(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.slow).into_iter().partition(|(at, ..)| *at <= now);
        self.slow = later;
        let due: Vec<(Timestamp, NodeId, TaskId)> = due;
        for (_, id, task) in due {
            match self.machines[&id].containers.get(&task) {
                Some(Seen::Starting { .. }) => self.see(id, task, Seen::Healthy),
                Some(Seen::Running { .. }) => {
                    self.see(id, task, Seen::Ended { exit_code: Some(0), error: String::new() });
                }
                _ => {}
            }
        }
    }

    /// What was to be stopped by now is, if it still runs.
    fn come_to_end(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.stops).into_iter().partition(|(at, ..)| *at <= now);
        self.stops = later;
        for (_, id, task) in due {
            if let Some(Seen::Starting { .. } | Seen::Running { .. }) =
                self.machines[&id].containers.get(&task)
            {
                self.see(id, task, Seen::Ended { exit_code: Some(143), error: String::new() });
            }
        }
    }

    /// Lets everything happen that can happen without time passing.
    pub fn settle(&mut self) {
        for _ in 0..100 {
            let before = self.index;
            if self.looked_at != self.index || self.due <= self.now {
                self.looked_at = self.index;
                self.turn();
                self.assign();
            }
            self.report();
            if self.index == before {
                return;
            }
        }
        let last: Vec<_> = self.log.iter().rev().take(3).collect();
        panic!("the world does not come to rest: {last:#?}");
    }

    fn turn(&mut self) {
        let plan = self.crank.turn(&self.state, &self.heard, self.now);
        let afresh = tick(&self.state, &self.heard, self.now);
        assert_eq!(plan, afresh, "a leader's memory makes no difference");
        self.due = plan.wake_at.unwrap_or(Timestamp(u64::MAX));
        assert!(self.due > self.now, "what is due now is done now");
        if plan.changes.is_empty() {
            return;
        }
        assert_eq!(plan, tick(&self.state, &self.heard, self.now), "the leader's turn is a function");
        self.commit(plan.changes.clone()).expect("a plan can be applied to the state it was drawn from");
        let again = tick(&self.state, &self.heard, self.now);
        assert_eq!(again.changes, [], "a plan leaves nothing to plan; it was {:#?}", plan.changes);
    }

    fn assign(&mut self) {
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            let machine = &self.machines[&id];
            if !machine.heard || self.state.node(id).is_none() {
                continue;
            }
            let assignment = assignment::of(&self.state, id);
            let effects = self.machines.get_mut(&id).expect("a machine").worker.assign(&assignment);
            self.carry_out(id, effects);
        }
    }

    fn report(&mut self) {
        let mut changes = Vec::new();
        for machine in self.machines.values_mut().filter(|machine| machine.heard) {
            changes.extend(machine.reports.drain(..).map(Change::Report));
        }
        let known = |change: &Change| match change {
            Change::Report(report) => self.state.task(report.task).is_some_and(|task| report.is_news(task)),
            _ => true,
        };
        changes.retain(known);
        if !changes.is_empty() {
            self.commit(changes).expect("reports are never stale");
        }
    }

    fn see(&mut self, id: NodeId, task: TaskId, seen: Seen) {
        let machine = self.machines.get_mut(&id).expect("a machine");
        match seen {
            Seen::Gone => drop(machine.containers.remove(&task)),
            // What is found of a container that runs does not make it another.
            Seen::Healthy | Seen::Unhealthy(_) | Seen::Ready | Seen::Unready(_) | Seen::Ailing(_) => {}
            _ => drop(machine.containers.insert(task, seen.clone())),
        }
        let effects = machine.worker.observe(task, seen);
        self.carry_out(id, effects);
    }

    fn carry_out(&mut self, id: NodeId, effects: Vec<worker::Effect>) {
        for effect in effects {
            let machine = self.machines.get_mut(&id).expect("a machine");
            let (task, seen) = match effect.action {
                Action::Report(report) => {
                    machine.reports.push(report);
                    continue;
                }
                Action::Prepare(task) => (task.id, prepare(&task.spec.containers[0].image)),
                Action::Start(task) => {
                    let was = machine.containers.get(&task);
                    assert_eq!(was, Some(&Seen::Prepared), "what is started was prepared");
                    let image = self.state.task(task).map(|task| task.spec.containers[0].image.clone());
                    let image = image.unwrap_or_default();
                    let takes = match image.as_str() {
                        "slow" => Some(SLOW),
                        "work" => Some(WORK),
                        _ => None,
                    };
                    self.slow.extend(takes.map(|time| (self.now.after(time), id, task)));
                    (task, start(&image))
                }
                Action::Stop { task, delay, .. } if !delay.is_zero() => {
                    self.stops.push((self.now.after(delay), id, task));
                    continue;
                }
                Action::Stop { task, .. } => {
                    (task, Seen::Ended { exit_code: Some(143), error: String::new() })
                }
                Action::Remove(task) => (task, Seen::Gone),
                Action::Retune { .. } => continue,
            };
            self.see(id, task, seen);
        }
    }

    /// What is really running, and where.
    pub fn running(&self) -> BTreeMap<TaskId, NodeId> {
        let on = |(id, machine): (&NodeId, &Machine)| {
            let runs =
                |(_, seen): &(&TaskId, &Seen)| matches!(seen, Seen::Running { .. } | Seen::Starting { .. });
            machine.containers.iter().filter(runs).map(|(task, _)| (*task, *id)).collect::<Vec<_>>()
        };
        self.machines.iter().flat_map(on).collect()
    }
}

fn prepare(image: &str) -> Seen {
    match image {
        "missing" => Seen::Unpreparable("no such image: missing".into()),
        _ => Seen::Prepared,
    }
}

fn start(image: &str) -> Seen {
    match image {
        "broken" => Seen::Ended { exit_code: Some(1), error: String::new() },
        "done" => Seen::Ended { exit_code: Some(0), error: String::new() },
        "slow" | "checked" => Seen::Starting { pid: 100 },
        _ => Seen::Running { pid: 100 },
    }
}

pub fn spec(name: &str, replicas: u32, image: &str) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        labels: Labels::new(),
        mode: Mode::Replicated { replicas },
        task: std::sync::Arc::new(TaskSpec {
            containers: vec![ContainerSpec::new(image)],
            ..TaskSpec::default()
        }),
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec::default(),
    }
}

pub const GIB: u64 = 1 << 30;

pub fn capacity(gib: u64) -> Resources {
    Resources { nano_cpus: 4_000_000_000, memory_bytes: gib * GIB }
}
