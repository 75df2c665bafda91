//! A machine: its daemon with the node's half of the work, its containers, which outlive the daemon, and the
//! streams to the leader.

use super::log::Replica;
use super::office::Office;
use super::{Event, M, Planted, World};
use crate::invariants;
use rswarm_control::assignment::{AssignedTask, Assignment, Difference};
use rswarm_control::endpoints::Table;
use rswarm_control::level;
use rswarm_control::liveness::LEASE_GRACE;
use rswarm_control::model::{Description, Resources, Stock, Stocks};
use rswarm_control::worker::{Action, Effect, Seen, Worker};
use rswarm_control::{NodeId, Report, TaskId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How often a node says that it is alive.
const HEARTBEAT: u64 = 250;
/// A leader that has not answered for so long is looked for again.
const SILENCE: u64 = 1_500;
/// What a container exits with that was killed by its shim when its lease was over.
const LEASE_OVER: i32 = 1_000;
/// How long opening a session may take.
const OPEN: u64 = 3_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    On,
    /// Only the daemon is down; containers go on.
    DaemonDown,
    Off,
}

pub(super) struct Machine {
    pub name: String,
    pub addr: String,
    pub description: Description,
    /// What it is in the cluster, once it has joined.
    pub node: Option<NodeId>,
    pub power: Power,
    /// Counts the daemon's starts.
    pub boot: u64,
    /// Counts losses of power.
    pub outages: u64,
    pub paused_until: u64,
    pub clock_offset: i64,
    /// How much faster its clock runs than the true one.
    pub drift_permille: i64,
    /// It has said goodbye.
    pub leaving: bool,
    pub containers: BTreeMap<TaskId, Container>,
    pub replica: Option<Replica>,
    pub office: Option<Office>,
    pub agent: Agent,
}

/// A container, or what is left of one.
#[derive(Clone, Debug)]
pub(super) struct Container {
    image: Image,
    state: Life,
    pid: u32,
    /// Of one that is fenced: until when its shim lets it run.
    lease: Option<u64>,
    /// When it comes to be what its image makes of it.
    turns_at: u64,
    /// A probe has found it well, be it once.
    pub was_well: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Life {
    Created,
    Running,
    Exited(i32),
    Lost,
}

impl Container {
    pub(super) fn runs(&self) -> bool {
        self.state == Life::Running
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.lease.is_some()
    }

    fn started(&self) -> Seen {
        let pid = self.pid;
        if self.image.is_checked() { Seen::Starting { pid } } else { Seen::Running { pid } }
    }

    fn seen(&self) -> Seen {
        match self.state {
            Life::Created => Seen::Prepared,
            Life::Running => self.started(),
            Life::Exited(LEASE_OVER) => Seen::Lost("its lease ran out".into()),
            Life::Exited(code) => Seen::Ended { exit_code: Some(code), error: String::new() },
            Life::Lost => Seen::Lost("its machine was restarted".into()),
        }
    }
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Image {
    Steady,
    /// Takes its time to arrive.
    Slow,
    Crash,
    Done,
    Missing,
    Unstartable,
    /// Has a health check, and comes to be healthy late.
    Late,
    /// Has a health check, and comes to be unhealthy.
    Sick,
    /// Has a readiness probe that changes its mind.
    Moody,
}

impl Image {
    pub(super) const NAMES: [&str; 9] =
        ["steady", "slow", "crash", "done", "missing", "unstartable", "late", "sick", "moody"];

    pub(super) fn of(name: &str) -> Self {
        match name.split(':').next() {
            Some("slow") => Self::Slow,
            Some("crash") => Self::Crash,
            Some("done") => Self::Done,
            Some("missing") => Self::Missing,
            Some("unstartable") => Self::Unstartable,
            Some("late") => Self::Late,
            Some("sick") => Self::Sick,
            Some("moody") => Self::Moody,
            _ => Self::Steady,
        }
    }

    /// Whether it runs until it is stopped.
    pub(super) fn stays(self) -> bool {
        matches!(self, Self::Steady | Self::Slow | Self::Late | Self::Moody)
    }

    /// Whether it is asked for anything while it runs.
    fn is_probed(self) -> bool {
        self.is_checked() || self == Self::Moody
    }

    /// Whether its health is asked for.
    fn is_checked(self) -> bool {
        matches!(self, Self::Late | Self::Sick)
    }
}

/// A step of the executor that comes to its end.
#[derive(Clone, Debug)]
pub(super) enum Done {
    Prepare(Box<AssignedTask>),
    Start,
    Stop(u64),
    Remove,
}

/// The daemon's memory.
pub(super) struct Agent {
    pub worker: Worker,
    assignment: Assignment,
    pub table: Option<Table>,
    latest: BTreeMap<TaskId, Report>,
    unsent: BTreeSet<TaskId>,
    link: Link,
    steps: BTreeMap<TaskId, u64>,
    leader: Option<M>,
    /// On disk.
    pub known: Vec<M>,
    /// The cluster does not want it any more.
    pub finished: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Looking,
    Opening { stream: u64, since: u64 },
    Open { stream: u64, heard: u64 },
}

/// A connection between a node and a manager: each direction delivers in order, or not at all.
pub(super) struct Stream {
    pub node: M,
    boot: u64,
    pub manager: M,
    up: VecDeque<(u64, Up)>,
    down: VecDeque<(u64, Down)>,
}

#[derive(Clone, Debug)]
pub(super) enum Up {
    Hello,
    /// When it was sent, by the node's clock.
    Beat(u64),
    Reports(Vec<Report>),
}

#[derive(Clone, Debug)]
pub(super) enum Down {
    Welcome,
    NotLeader(Option<M>),
    Removed,
    Managers(Vec<M>, Option<M>),
    Table(Box<Table>),
    Full(Box<Assignment>),
    Difference(Box<Difference>),
    /// The beat, if the leader is one for certain.
    Reply(Option<u64>),
}

impl Machine {
    pub(super) fn new(number: M, capacity: Resources) -> Self {
        let (os, arch, level) = ("linux".into(), "x86_64".into(), level::LATEST);
        let names = |names: [&str; 2]| Stock::Named(names.map(str::to_owned).into());
        let generic = match number % 4 {
            0 => Stocks::from([("gpu".to_owned(), Stock::Count(2))]),
            1 => Stocks::from([("nic".to_owned(), names(["eth1", "eth2"]))]),
            2 => Stocks::from([("gpu".to_owned(), names(["a", "b"])), ("nic".to_owned(), Stock::Count(1))]),
            _ => Stocks::new(),
        };
        let description = Description { capacity, os, arch, level, generic, ..Description::default() };
        Self {
            name: format!("m{number}"),
            addr: format!("10.9.{}.{}:2377", number / 250, number % 250 + 1),
            description,
            node: None,
            power: Power::On,
            boot: 0,
            outages: 0,
            paused_until: 0,
            clock_offset: 0,
            drift_permille: [0, 20, -20, 10, -10][number % 5],
            leaving: false,
            containers: BTreeMap::new(),
            replica: None,
            office: None,
            agent: Agent::new(NodeId(0), BTreeMap::new(), Vec::new()),
        }
    }
}

/// What keeps it from being heard, for people.
impl std::fmt::Display for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { link, leader, known, finished, .. } = self;
        write!(f, "{link:?}, leader {leader:?}, managers {known:?}, finished {finished}")
    }
}

impl Agent {
    fn new(node: NodeId, found: BTreeMap<TaskId, Seen>, known: Vec<M>) -> Self {
        Self {
            worker: Worker::new(node, found),
            assignment: Assignment::default(),
            table: None,
            latest: BTreeMap::new(),
            unsent: BTreeSet::new(),
            link: Link::Looking,
            steps: BTreeMap::new(),
            leader: None,
            known,
            finished: false,
        }
    }
}

impl World {
    /// A daemon starts: it finds what is there, and looks for the leader.
    pub(super) fn boot(&mut self, m: M, power: bool) {
        if self.machines[m].power == Power::On || (self.machines[m].power == Power::Off && !power) {
            return;
        }
        self.note(|| format!("m{m} starts"));
        self.start_daemon(m);
    }

    pub(super) fn start_daemon(&mut self, m: M) {
        let again = self.options.planted == Some(Planted::StartsAgain);
        let machine = &mut self.machines[m];
        machine.power = Power::On;
        machine.boot += 1;
        let Some(node) = machine.node else { return };
        let found = machine.containers.iter().map(|(task, container)| (*task, container.seen())).collect();
        let known = std::mem::take(&mut machine.agent.known);
        machine.agent = Agent::new(node, found, known);
        let (boot, leaving) = (machine.boot, machine.leaving);
        let runs: Vec<TaskId> = machine
            .containers
            .iter()
            .filter(|(_, container)| container.runs())
            .map(|(task, _)| *task)
            .collect();
        if leaving {
            self.clear(m);
            return;
        }
        if let Some(task) = runs.first().filter(|_| again) {
            self.count_start(m, *task);
        }
        for task in &runs {
            self.probe_from(m, boot, *task);
        }
        self.after(1, Event::Look { m, boot, tries: 0 });
        self.after(HEARTBEAT, Event::Beat { m, boot });
    }

    /// Kills the daemon, or takes the machine's power.
    pub(super) fn stop_daemon(&mut self, m: M, power_too: bool) {
        self.note(|| format!("m{m} {}", if power_too { "loses power" } else { "loses its daemon" }));
        self.drop_office(m);
        let machine = &mut self.machines[m];
        machine.boot += 1;
        machine.paused_until = 0;
        machine.power = if power_too { Power::Off } else { Power::DaemonDown };
        if power_too {
            machine.outages += 1;
            for container in machine.containers.values_mut().filter(|container| container.runs()) {
                container.state = Life::Lost;
            }
        }
    }

    /// Stops and removes everything.
    pub(super) fn clear(&mut self, m: M) {
        let agent = &mut self.machines[m].agent;
        agent.finished = true;
        agent.link = Link::Looking;
        self.assign(m, Assignment::default());
    }

    /// A machine that left is switched off when it is empty.
    pub(super) fn gone(&mut self, m: M) {
        let machine = &self.machines[m];
        if machine.power == Power::On && machine.containers.is_empty() && machine.replica.is_none() {
            self.note(|| format!("m{m} is switched off for good"));
            self.machines[m].power = Power::Off;
            return;
        }
        self.after(1_000, Event::Gone { m });
    }

    pub(super) fn look(&mut self, m: M, boot: u64, tries: u64) {
        let machine = &self.machines[m];
        let agent = &machine.agent;
        if machine.boot != boot || agent.link != Link::Looking || agent.finished || machine.power != Power::On
        {
            return;
        }
        let turn = agent.known.get(tries as usize % agent.known.len().max(1)).copied();
        let Some(manager) = agent.leader.or(turn) else { return };
        let wait = if agent.leader.is_some() { 50 } else { (50 << tries.min(5)).min(1_000) };
        let reached = self.reach_each_other(m, manager) && self.machines[manager].power == Power::On;
        if !reached || self.machines[manager].replica.is_none() {
            self.machines[m].agent.leader = None;
            return self.after(wait, Event::Look { m, boot, tries: tries + 1 });
        }
        let (stream, now) = (self.fresh(), self.now);
        let (up, down) = (VecDeque::new(), VecDeque::new());
        self.streams.insert(stream, Stream { node: m, boot, manager, up, down });
        self.machines[m].agent.link = Link::Opening { stream, since: now };
        self.send_up(stream, Up::Hello);
    }

    /// The node's end of a session is over: it looks for the leader again.
    fn session_over(&mut self, m: M, forget: bool) {
        let boot = self.machines[m].boot;
        let agent = &mut self.machines[m].agent;
        if let Link::Opening { stream, .. } | Link::Open { stream, .. } = agent.link {
            self.streams.remove(&stream);
        }
        agent.link = Link::Looking;
        if forget {
            agent.leader = None;
        }
        let (wait, tries) = (self.rng.between(30, 80), self.rng.below(8));
        self.after(wait, Event::Look { m, boot, tries });
    }

    pub(super) fn beat(&mut self, m: M, boot: u64) {
        if self.machines[m].boot != boot || self.machines[m].agent.finished {
            return;
        }
        match self.machines[m].agent.link {
            Link::Looking => {}
            Link::Opening { since, .. } if self.now - since > OPEN => self.session_over(m, true),
            Link::Opening { .. } => {}
            Link::Open { heard, .. } if self.now - heard > SILENCE => self.session_over(m, true),
            Link::Open { stream, .. } => {
                let said = self.uptime(m);
                self.send_up(stream, Up::Beat(said));
            }
        }
        if self.options.planted != Some(Planted::IgnoresLease) {
            let now = Timestamp(self.uptime(m));
            let effects = self.machines[m].agent.worker.fence(now);
            self.carry_out(m, effects);
        }
        self.after(HEARTBEAT, Event::Beat { m, boot });
    }

    /// The machine's own clock since it was built, which is a little fast or slow.
    fn uptime(&self, m: M) -> u64 {
        self.now.saturating_add_signed(self.now as i64 * self.machines[m].drift_permille / 1_000)
    }

    /// Fenced tasks may run on, in the daemon's eyes and in their shims'.
    fn confirmed(&mut self, m: M, said: u64) {
        let now = Timestamp(self.uptime(m));
        let effects = self.machines[m].agent.worker.renew(Timestamp(said), now);
        let leased: Vec<TaskId> = self.machines[m].agent.worker.leased().collect();
        let Some(until) = self.machines[m].agent.worker.leased_until() else { return };
        for task in leased {
            self.lease(m, task, until.after(LEASE_GRACE).0);
        }
        self.carry_out(m, effects);
    }

    fn lease(&mut self, m: M, task: TaskId, until: u64) {
        let (uptime, machine) = (self.uptime(m), &mut self.machines[m]);
        let Some(container) = machine.containers.get_mut(&task).filter(|container| container.runs()) else {
            return;
        };
        let Some(lease) = container.lease.as_mut() else { return };
        *lease = until.max(*lease);
        let power = machine.outages;
        self.after(until.saturating_sub(uptime), Event::Lease { m, power, task });
    }

    /// A shim looks whether its container may still run: it does so without a daemon, too.
    pub(super) fn look_at_lease(&mut self, m: M, power: u64, task: TaskId) {
        let uptime = self.uptime(m);
        let lease = self.machines[m].containers.get(&task).and_then(|container| container.lease);
        let Some(left) = lease.map(|until| until.saturating_sub(uptime)) else { return };
        if self.options.planted == Some(Planted::IgnoresLease) {
            return;
        }
        match left {
            0 => self.exit(m, power, task, LEASE_OVER),
            // Put off meanwhile; who did that looks again. A slow clock looks too early.
            left if left < 1_000 => self.after(left.max(1), Event::Lease { m, power, task }),
            _ => {}
        }
    }

    fn send_up(&mut self, stream: u64, message: Up) {
        let delay = self.latency();
        let at = self.now + delay;
        if let Some(open) = self.streams.get_mut(&stream) {
            open.up.push_back((at, message));
            self.after(delay, Event::Flush { stream, up: true });
        }
    }

    pub(super) fn send_down(&mut self, stream: u64, message: Down) {
        let delay = self.latency();
        let at = self.now + delay;
        if let Some(open) = self.streams.get_mut(&stream) {
            open.down.push_back((at, message));
            self.after(delay, Event::Flush { stream, up: false });
        }
    }

    fn latency(&mut self) -> u64 {
        match self.rng.below(100) {
            0 if !self.quiet => self.rng.between(50, 600),
            1..10 => self.rng.between(5, 40),
            _ => self.rng.between(1, 5),
        }
    }

    /// The manager's end of a stream is closed; the node learns of it if packets get there.
    pub(super) fn hang_up(&mut self, stream: u64) {
        let Some(closed) = self.streams.remove(&stream) else { return };
        let m = closed.node;
        let agent = &self.machines[m].agent;
        let mine = matches!(agent.link, Link::Opening { stream: s, .. } | Link::Open { stream: s, .. } if s == stream);
        if mine && self.machines[m].boot == closed.boot && self.acts(m) && self.reaches(closed.manager, m) {
            self.session_over(m, true);
        }
    }

    pub(super) fn flush(&mut self, stream: u64, up: bool) {
        loop {
            let Some(open) = self.streams.get(&stream) else { return };
            let (node, manager, boot) = (open.node, open.manager, open.boot);
            let (from, to) = if up { (node, manager) } else { (manager, node) };
            let at = if up { open.up.front().map(|front| front.0) } else { open.down.front().map(|f| f.0) };
            match at {
                Some(at) if at <= self.now => {}
                _ => return,
            }
            if self.machines[node].boot != boot {
                self.streams.remove(&stream);
                return;
            }
            if self.machines[to].power != Power::On {
                return;
            }
            if !self.reaches(from, to) {
                return self.after(100, Event::Flush { stream, up });
            }
            if self.machines[to].paused_until > self.now {
                let rest = self.machines[to].paused_until - self.now;
                return self.after(rest, Event::Flush { stream, up });
            }
            let Some(open) = self.streams.get_mut(&stream) else { return };
            if up {
                let Some((_, message)) = open.up.pop_front() else { return };
                let Some(id) = self.machines[node].node else { return };
                self.take(manager, stream, id, message);
            } else {
                let Some((_, message)) = open.down.pop_front() else { return };
                self.take_down(node, stream, message);
            }
        }
    }

    fn take_down(&mut self, m: M, stream: u64, message: Down) {
        let now = self.now;
        let agent = &mut self.machines[m].agent;
        match &mut agent.link {
            Link::Open { stream: mine, heard } if *mine == stream => *heard = now,
            Link::Opening { stream: mine, .. } if *mine == stream => {}
            _ => return,
        }
        match message {
            Down::Welcome => {
                agent.link = Link::Open { stream, heard: now };
                for report in agent.worker.reports() {
                    agent.latest.insert(report.task, report);
                }
                agent.unsent = agent.latest.keys().copied().collect();
                self.say(m);
            }
            Down::NotLeader(leader) => {
                agent.leader = leader;
                self.session_over(m, false);
            }
            Down::Removed => {
                self.note(|| format!("m{m} hears that it was removed"));
                self.clear(m);
            }
            Down::Managers(known, leader) => {
                agent.leader = leader;
                if !known.is_empty() {
                    agent.known = known;
                }
            }
            Down::Table(table) => agent.table = Some(*table),
            Down::Full(assignment) => self.assign(m, *assignment),
            Down::Difference(difference) => {
                let mut assignment = std::mem::take(&mut agent.assignment);
                assignment.follow(*difference);
                self.assign(m, assignment);
            }
            Down::Reply(None) => {}
            Down::Reply(Some(said)) => self.confirmed(m, said),
        }
    }

    fn assign(&mut self, m: M, assignment: Assignment) {
        let agent = &mut self.machines[m].agent;
        let effects = agent.worker.assign(&assignment);
        agent.latest.retain(|task, _| assignment.tasks.contains_key(task));
        agent.unsent.retain(|task| assignment.tasks.contains_key(task));
        agent.assignment = assignment;
        self.carry_out(m, effects);
    }

    fn observe(&mut self, m: M, task: TaskId, seen: Seen) {
        let effects = self.machines[m].agent.worker.observe(task, seen);
        self.carry_out(m, effects);
    }

    fn carry_out(&mut self, m: M, effects: Vec<Effect>) {
        for effect in effects {
            let generation = effect.generation;
            let (task, delay, done) = match effect.action {
                Action::Report(report) => {
                    let agent = &mut self.machines[m].agent;
                    if agent.latest.get(&report.task) != Some(&report) {
                        agent.unsent.insert(report.task);
                        agent.latest.insert(report.task, report);
                    }
                    continue;
                }
                // What a container may use is no matter of this world.
                Action::Retune { .. } => continue,
                Action::Prepare(task) => {
                    let slow = Image::of(&task.spec.containers[0].image) == Image::Slow;
                    let delay = if slow || self.slow_pulls && self.rng.percent(50) {
                        self.rng.between(2_000, 20_000)
                    } else {
                        self.rng.between(10, 300)
                    };
                    (task.id, delay, Done::Prepare(task))
                }
                Action::Start(task) => (task, self.rng.between(2, 30), Done::Start),
                Action::Stop { task, grace, delay } => {
                    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                    (task, ms(delay) + self.rng.between(1, 5), Done::Stop(ms(grace)))
                }
                Action::Remove(task) => (task, self.rng.between(2, 50), Done::Remove),
            };
            let machine = &mut self.machines[m];
            machine.agent.steps.insert(task, generation);
            let boot = machine.boot;
            self.after(delay, Event::Step { m, boot, task, generation, done });
        }
        self.say(m);
    }

    /// Sends what there is to say.
    fn say(&mut self, m: M) {
        let agent = &mut self.machines[m].agent;
        let Link::Open { stream, .. } = agent.link else { return };
        if agent.unsent.is_empty() {
            return;
        }
        let unsent = std::mem::take(&mut agent.unsent);
        let reports = unsent.iter().filter_map(|task| agent.latest.get(task).cloned()).collect();
        self.send_up(stream, Up::Reports(reports));
    }

    pub(super) fn step(&mut self, m: M, boot: u64, task: TaskId, generation: u64, done: Done) {
        let machine = &mut self.machines[m];
        if machine.boot != boot || machine.agent.steps.get(&task) != Some(&generation) {
            return;
        }
        machine.agent.steps.remove(&task);
        let life = machine.containers.get(&task).map(|container| container.state.clone());
        let over = |error: &str| Some(Seen::Ended { exit_code: None, error: error.into() });
        let seen = match done {
            Done::Prepare(task) => match Image::of(&task.spec.containers[0].image) {
                Image::Missing => Some(Seen::Unpreparable("no such image".into())),
                image => {
                    let pid = 100 + (task.id.0 % 30_000) as u32;
                    let lease = task.spec.is_fenced().then_some(0);
                    let turns_at = u64::MAX;
                    let was_well = !image.is_probed();
                    let new = Container { image, state: Life::Created, pid, lease, turns_at, was_well };
                    machine.containers.entry(task.id).or_insert(new);
                    Some(Seen::Prepared)
                }
            },
            Done::Start => match life {
                Some(Life::Created) => self.start(m, task),
                Some(_) => over("it has been started before"),
                None => over("no such container"),
            },
            Done::Stop(grace) => match life {
                Some(Life::Running) if self.options.planted == Some(Planted::DeafToStop) => over(""),
                Some(Life::Running) => {
                    let (wait, power) = (self.rng.between(20, 2_500).min(grace), machine.outages);
                    self.after(wait, Event::Exit { m, power, task, code: 143 });
                    None
                }
                Some(Life::Exited(_) | Life::Lost) => None,
                Some(Life::Created) | None => over(""),
            },
            Done::Remove => {
                machine.containers.remove(&task);
                Some(Seen::Gone)
            }
        };
        if let Some(seen) = seen {
            self.observe(m, task, seen);
        }
    }

    fn start(&mut self, m: M, task: TaskId) -> Option<Seen> {
        self.count_start(m, task);
        let (boot, power) = (self.machines[m].boot, self.machines[m].outages);
        let container = self.machines[m].containers.get_mut(&task)?;
        if container.image == Image::Unstartable {
            container.state = Life::Exited(127);
            return Some(Seen::Ended { exit_code: Some(127), error: "no such program".into() });
        }
        container.state = Life::Running;
        let (image, leased) = (container.image, container.lease.is_some());
        let started = container.started();
        self.note(|| format!("m{m} runs {task}"));
        if leased {
            let until = self.uptime(m) + u64::try_from(LEASE_GRACE.as_millis()).unwrap_or(0);
            self.lease(m, task, until);
        }
        let told = self.rng.between(0, 10);
        self.after(told, Event::Notice { m, boot, task, seen: started });
        match image {
            Image::Crash => {
                let wait = self.rng.between(1, 3_000);
                self.after(wait, Event::Exit { m, power, task, code: 1 });
            }
            Image::Done => self.after(2_000, Event::Exit { m, power, task, code: 0 }),
            Image::Late | Image::Sick | Image::Moody => self.probe_from(m, boot, task),
            Image::Steady | Image::Slow | Image::Missing | Image::Unstartable => {}
        }
        None
    }

    /// A daemon asks a container how it is, from now on.
    fn probe_from(&mut self, m: M, boot: u64, task: TaskId) {
        let turns_at = self.now + self.rng.between(500, 8_000);
        let Some(container) = self.machines[m].containers.get_mut(&task) else { return };
        if container.image.is_probed() {
            container.turns_at = container.turns_at.min(turns_at);
            let delay = self.rng.between(100, 1_500);
            self.after(delay, Event::Probe { m, boot, task });
        }
    }

    pub(super) fn probe(&mut self, m: M, boot: u64, task: TaskId) {
        let (now, calm, chance) = (self.now, self.quiet, self.rng.percent(60));
        let machine = &mut self.machines[m];
        let container = machine.containers.get_mut(&task).filter(|container| container.runs());
        let Some(container) = container.filter(|_| machine.boot == boot) else { return };
        let said = || "no answer".to_owned();
        let (seen, again) = match container.image {
            Image::Late if now < container.turns_at => (Seen::Ailing(said()), true),
            Image::Late => (Seen::Healthy, false),
            Image::Sick if now >= container.turns_at => (Seen::Unhealthy(said()), false),
            Image::Sick if chance => (Seen::Healthy, true),
            Image::Sick => (Seen::Ailing(said()), true),
            Image::Moody if chance || calm => (Seen::Ready, true),
            Image::Moody => (Seen::Unready(said()), true),
            _ => return,
        };
        container.was_well |= matches!(seen, Seen::Healthy | Seen::Ready);
        self.facts_stale = true;
        self.observe(m, task, seen);
        if again {
            let delay = self.rng.between(500, 3_000);
            self.after(delay, Event::Probe { m, boot, task });
        }
    }

    fn count_start(&mut self, m: M, task: TaskId) {
        self.facts_stale = true;
        if !self.started.insert(task) {
            self.fail(invariants::STARTED_ONCE, format!("m{m} starts {task}, which was started before"));
        }
        let node = self.machines[m].node;
        if self.assigned.get(&task).copied() != node {
            self.fail(invariants::RUNS_ONLY_ASSIGNED, format!("m{m} starts {task}, which is not its own"));
        }
    }

    pub(super) fn notice(&mut self, m: M, boot: u64, task: TaskId, seen: Seen) {
        if self.machines[m].boot == boot {
            self.observe(m, task, seen);
        }
    }

    pub(super) fn exit(&mut self, m: M, power: u64, task: TaskId, code: i32) {
        let machine = &mut self.machines[m];
        let Some(container) = machine.containers.get_mut(&task) else { return };
        if machine.outages != power || !container.runs() {
            return;
        }
        container.state = Life::Exited(code);
        let boot = machine.boot;
        self.note(|| format!("{task} on m{m} exits with {code}"));
        let seen = container_end(code);
        let delay = self.rng.between(1, 20);
        self.after(delay, Event::Notice { m, boot, task, seen });
    }

    /// Running containers, and where.
    pub(super) fn running(&self) -> Vec<(M, TaskId)> {
        let machines = self.machines.iter().enumerate();
        let on = |(m, machine): (M, &'_ Machine)| {
            let runs = machine.containers.iter().filter(|(_, container)| container.runs());
            runs.map(|(task, _)| (m, *task)).collect::<Vec<_>>()
        };
        machines.flat_map(on).collect()
    }
}

fn container_end(code: i32) -> Seen {
    match code {
        LEASE_OVER => Seen::Lost("its lease ran out".into()),
        code => Seen::Ended { exit_code: Some(code), error: String::new() },
    }
}
