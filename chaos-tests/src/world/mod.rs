//! A whole cluster in one thread: the real control plane on every manager, the real worker on every node,
//! and around them a fake clock, a fake network, fake containers and an abstract but honest replicated log.
//!
//! A run is a function of its seed: nothing here reads a clock, iterates over a hash map or starts a thread.

mod drill;
mod log;
mod machine;
mod office;
mod replay;
pub(crate) mod rng;
mod shrink;
mod storm;
mod taste;
mod user;

pub use drill::{Drill, Drilled, drill};
pub use replay::{LeftOut, Replay};
pub use shrink::{Shrunk, shrink};

use crate::invariants::{self, Check, Fact, Invariant, Scene};
use log::Log;
use machine::{Done, Machine, Power};
use rng::Rng;
use rswarm_control::model::{Desired, NodeStatus};
use rswarm_control::worker::Seen;
use rswarm_control::{NodeId, ServiceId, State, TaskId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// When the world begins, in milliseconds since the epoch.
const BEGIN: u64 = 1_000_000_000;
/// Lines of the trace that a verdict quotes.
const QUOTED: usize = 60;
/// More deeds than this are not kept.
const DEEDS_MAX: usize = 10_000;
/// How long the cluster may take to converge when all is well again. A crash loop may have brought a slot
/// to a restart delay of five minutes.
const CONVERGE: u64 = 420_000;
/// How long a converged cluster must be silent.
const IDLE: u64 = 60_000;

/// How a world is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the storm lasts, in simulated time.
    pub storm: Duration,
    /// Whether faults happen at all; the user is busy all the same.
    pub faults: bool,
    /// A mistake that is made on purpose, to see whether it is caught.
    pub planted: Option<Planted>,
    /// What would happen and does not.
    pub left_out: LeftOut,
}

impl Default for Options {
    fn default() -> Self {
        Self { storm: Duration::from_secs(120), faults: true, planted: None, left_out: LeftOut::default() }
    }
}

/// Mistakes that the world makes on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A node is given an assignment of long ago once more.
    StaleAssignment,
    /// The leader forgets to say that a silent node is down.
    DeafToSilence,
    /// The leader creates one task more than it planned.
    DoubleCreate,
    /// The leader assigns a task to a node of its own liking.
    AnyNode,
    /// The executor believes that it has stopped what it has not.
    DeafToStop,
    /// The executor starts what runs already when its daemon comes back.
    StartsAgain,
    /// One manager passes over an entry of the log.
    SkipsEntry,
    /// The leader forgets what its plan wanted stopped.
    NeverStops,
    /// A leader that follows another does not look again when it meant to.
    LostWakeUp,
    /// The leader keeps a second task in a slot in which one runs.
    KeepsSurplus,
    /// A node reports that a task runs which its health check has not found well.
    RunsTooSoon,
    /// The leader lets an update go on with one failure more than it allows.
    OneFailureMore,
    /// The leader has slots of jobs run that have had their run.
    RunsAgain,
    /// Neither daemons nor shims stop what is fenced.
    IgnoresLease,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::StaleAssignment,
        Self::DeafToSilence,
        Self::DoubleCreate,
        Self::AnyNode,
        Self::DeafToStop,
        Self::StartsAgain,
        Self::SkipsEntry,
        Self::NeverStops,
        Self::LostWakeUp,
        Self::KeepsSurplus,
        Self::RunsTooSoon,
        Self::OneFailureMore,
        Self::RunsAgain,
        Self::IgnoresLease,
    ];
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which run it was.
    pub seed: u64,
    /// A digest of everything that happened; equal for equal seeds and options.
    pub trace_hash: u64,
    /// Events that were handled.
    pub steps: u64,
    /// Entries of the replicated log.
    pub entries: u64,
    /// How long it took in the simulated world.
    pub simulated: Duration,
    /// How many faults were due, and how many wishes of the user, those left out included.
    pub faults: u32,
    /// See [`Outcome::faults`].
    pub wishes: u32,
    /// What faults and wishes did, a line each, in order.
    pub deeds: Vec<String>,
    /// What was made of it.
    pub verdict: Verdict,
}

/// What is made of a run.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Everything held.
    Held,
    /// Something did not.
    Broken {
        /// Which promise.
        invariant: &'static Invariant,
        /// Where.
        detail: String,
        /// What happened before, oldest first.
        trace: Vec<String>,
    },
}

impl Outcome {
    /// Whether everything held.
    pub fn held(&self) -> bool {
        matches!(self.verdict, Verdict::Held)
    }
}

/// For people: what was broken, how it came to that, and how to see it again.
impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Verdict::Broken { invariant, detail, trace } = &self.verdict else {
            return write!(f, "seed {}: everything held for {:?}", self.seed, self.simulated);
        };
        for line in trace {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {} broke `{}` after {:?}", self.seed, invariant.name, self.simulated)?;
        writeln!(f, "  promised: {}", invariant.sentence)?;
        write!(f, "  found:    {detail}")
    }
}

/// Runs a world: it is founded, lives through a storm, is healed, and must come to rest.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut world = World::new(seed, options.clone());
    let lived = std::panic::catch_unwind(AssertUnwindSafe(|| world.live()));
    if let Err(panic) = lived {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.fail(invariants::NOTHING_PANICS, words.unwrap_or_else(|| "a panic without words".into()));
    }
    world.outcome()
}

/// A machine's place in the list; machines are never taken off it.
type M = usize;

/// Something that is due.
#[derive(Clone, Debug)]
enum Event {
    /// Leases, elections, catching up.
    Raft,
    /// The leader of a term sends what it has, and counts who has it.
    Round { m: M, term: u64 },
    /// A follower has been sent entries.
    Deliver { m: M, boot: u64, upto: usize },
    /// The leader looks.
    Think { m: M, term: u64, turn: u64 },
    /// The leader tells its nodes what has changed for them.
    Push { m: M, term: u64 },
    /// The leader proposes the reports that have gathered.
    Pump { m: M, term: u64 },
    /// A node looks for the leader.
    Look { m: M, boot: u64, tries: u64 },
    /// A node's session says that it is alive, and looks whether the leader is.
    Beat { m: M, boot: u64 },
    /// A stream may have something to deliver.
    Flush { stream: u64, up: bool },
    /// The executor is done with a step.
    Step { m: M, boot: u64, task: TaskId, generation: u64, done: Done },
    /// The executor tells the daemon what became of a container.
    Notice { m: M, boot: u64, task: TaskId, seen: Seen },
    /// A daemon asks a container how it is.
    Probe { m: M, boot: u64, task: TaskId },
    /// A container ends.
    Exit { m: M, power: u64, task: TaskId, code: i32 },
    /// The lease of a container may be over.
    Lease { m: M, power: u64, task: TaskId },
    /// A daemon starts.
    Boot { m: M, power: bool },
    /// The user asks for something new.
    User,
    /// The user's request is tried again.
    Ask { request: u64 },
    /// Something goes wrong.
    Storm,
    /// A fault of the network ends.
    Mend { cut: u64 },
    /// A machine that left is switched off when it is empty.
    Gone { m: M },
}

/// Everything.
pub(crate) struct World {
    seed: u64,
    options: Options,
    rng: Rng,
    /// The true time, in milliseconds.
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    steps: u64,
    trace: Trace,
    broken: Option<(&'static Invariant, String)>,

    machines: Vec<Machine>,
    log: Log,
    streams: BTreeMap<u64, machine::Stream>,
    /// Links that carry nothing, by the fault that cut them.
    cuts: BTreeMap<u64, BTreeSet<(M, M)>>,
    slow_pulls: bool,
    quiet: bool,
    weather: storm::Weather,
    faults: u32,
    wishes: u32,
    requests: BTreeMap<u64, user::Asked>,
    next: u64,
    once: bool,

    ids: BTreeSet<u64>,
    started: BTreeSet<TaskId>,
    assigned: BTreeMap<TaskId, NodeId>,
    of: BTreeMap<TaskId, (ServiceId, rswarm_control::model::Slot)>,
    excused: BTreeSet<TaskId>,
    facts_stale: bool,
}

struct Trace {
    hash: u64,
    last: VecDeque<String>,
    /// Whether what happens is the deed of a fault or of the user.
    doing: bool,
    deeds: Vec<String>,
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let weather = storm::Weather::draw(&mut rng);
        Self {
            seed,
            options,
            rng,
            now: BEGIN,
            queue: BTreeMap::new(),
            sequence: 0,
            steps: 0,
            trace: Trace {
                hash: 0xcbf2_9ce4_8422_2325,
                last: VecDeque::new(),
                doing: false,
                deeds: Vec::new(),
            },
            broken: None,
            machines: Vec::new(),
            log: Log::default(),
            streams: BTreeMap::new(),
            cuts: BTreeMap::new(),
            slow_pulls: false,
            quiet: false,
            weather,
            faults: 0,
            wishes: 0,
            requests: BTreeMap::new(),
            next: 0,
            once: false,
            ids: BTreeSet::new(),
            started: BTreeSet::new(),
            assigned: BTreeMap::new(),
            of: BTreeMap::new(),
            excused: BTreeSet::new(),
            facts_stale: false,
        }
    }

    fn live(&mut self) {
        self.found();
        self.run_for(5_000);
        if self.options.faults {
            self.after(1_000, Event::Storm);
        }
        self.after(10, Event::User);
        self.run_for(u64::try_from(self.options.storm.as_millis()).unwrap_or(u64::MAX / 4));
        if self.broken.is_none() {
            self.heal();
            self.come_to_rest();
        }
    }

    fn outcome(self) -> Outcome {
        let verdict = match self.broken {
            None => Verdict::Held,
            Some((invariant, detail)) => {
                Verdict::Broken { invariant, detail, trace: self.trace.last.into_iter().collect() }
            }
        };
        Outcome {
            seed: self.seed,
            trace_hash: self.trace.hash,
            steps: self.steps,
            entries: self.log.entries.len() as u64,
            simulated: Duration::from_millis(self.now - BEGIN),
            faults: self.faults,
            wishes: self.wishes,
            deeds: self.trace.deeds,
            verdict,
        }
    }

    /// Lets time pass until something is broken or the time is over.
    fn run_for(&mut self, time: u64) {
        let until = self.now + time;
        while self.broken.is_none() {
            match self.queue.first_key_value() {
                Some(((at, _), _)) if *at <= until => {}
                _ => break,
            }
            let Some(((at, _), event)) = self.queue.pop_first() else { break };
            self.now = self.now.max(at);
            self.steps += 1;
            self.handle(event);
            if std::mem::take(&mut self.facts_stale) {
                self.check_facts();
            }
        }
        if self.broken.is_none() {
            self.now = until;
        }
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let since = self.now - BEGIN;
        let line = format!("{:>4}.{:03} {}", since / 1000, since % 1000, line());
        for byte in line.bytes() {
            self.trace.hash = (self.trace.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.trace.last.len() == QUOTED {
            self.trace.last.pop_front();
        }
        if self.trace.doing && self.trace.deeds.len() < DEEDS_MAX {
            self.trace.deeds.push(line.clone());
        }
        self.trace.last.push_back(line);
    }

    fn fail(&mut self, invariant: &'static Invariant, detail: impl Into<String>) {
        if self.broken.is_none() {
            self.broken = Some((invariant, detail.into()));
        }
    }

    fn handle(&mut self, event: Event) {
        // A machine that is paused does what is due when it goes on.
        let held = match &event {
            Event::Round { m, .. }
            | Event::Deliver { m, .. }
            | Event::Think { m, .. }
            | Event::Push { m, .. }
            | Event::Pump { m, .. }
            | Event::Look { m, .. }
            | Event::Beat { m, .. }
            | Event::Step { m, .. }
            | Event::Probe { m, .. }
            | Event::Notice { m, .. } => self.machines[*m].paused_until.checked_sub(self.now),
            _ => None,
        };
        if let Some(rest) = held.filter(|rest| *rest > 0) {
            return self.after(rest, event);
        }
        match event {
            Event::Raft => self.raft(),
            Event::Round { m, term } => self.round(m, term),
            Event::Deliver { m, boot, upto } => self.deliver_entries(m, boot, upto),
            Event::Think { m, term, turn } => self.think(m, term, turn),
            Event::Push { m, term } => self.push(m, term),
            Event::Pump { m, term } => self.pump(m, term),
            Event::Look { m, boot, tries } => self.look(m, boot, tries),
            Event::Beat { m, boot } => self.beat(m, boot),
            Event::Flush { stream, up } => self.flush(stream, up),
            Event::Step { m, boot, task, generation, done } => self.step(m, boot, task, generation, done),
            Event::Notice { m, boot, task, seen } => self.notice(m, boot, task, seen),
            Event::Probe { m, boot, task } => self.probe(m, boot, task),
            Event::Exit { m, power, task, code } => self.exit(m, power, task, code),
            Event::Lease { m, power, task } => self.look_at_lease(m, power, task),
            Event::Boot { m, power } => self.boot(m, power),
            Event::User => self.doing(Self::user),
            Event::Ask { request } => self.ask(request),
            Event::Storm => self.doing(Self::storm),
            Event::Mend { cut } => {
                if self.cuts.remove(&cut).is_some() {
                    self.note(|| format!("the network is mended (#{cut})"));
                }
            }
            Event::Gone { m } => self.gone(m),
        }
    }

    /// Lets a fault or the user act, and keeps account of it.
    fn doing(&mut self, act: impl FnOnce(&mut Self)) {
        self.trace.doing = true;
        act(self);
        self.trace.doing = false;
    }

    /// Whether packets get from one machine to another.
    fn reaches(&self, from: M, to: M) -> bool {
        from == to || !self.cuts.values().any(|cut| cut.contains(&(from, to)))
    }

    fn reach_each_other(&self, a: M, b: M) -> bool {
        self.reaches(a, b) && self.reaches(b, a)
    }

    /// Whether a machine's daemon does anything now.
    fn acts(&self, m: M) -> bool {
        self.machines[m].power == Power::On && self.machines[m].paused_until <= self.now
    }

    /// A machine's own clock.
    fn wall(&self, m: M) -> u64 {
        self.now.saturating_add_signed(self.machines[m].clock_offset)
    }

    fn facts(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        for machine in &self.machines {
            let Some(node) = machine.node else { continue };
            for (task, container) in &machine.containers {
                let Some(&(service, slot)) = self.of.get(task) else { continue };
                facts.push(Fact {
                    task: *task,
                    node,
                    service,
                    slot,
                    running: container.runs(),
                    fenced: container.is_fenced(),
                    was_well: container.was_well,
                });
            }
        }
        facts
    }

    fn check_facts(&mut self) {
        let facts = self.facts();
        let hopeless = BTreeSet::new();
        let scene =
            Scene { state: &self.log.truth, containers: &facts, excused: &self.excused, hopeless: &hopeless };
        let broken = invariants::ALL.iter().find_map(|invariant| match invariant.check {
            Check::Facts(check) => check(&scene).err().map(|detail| (*invariant, detail)),
            _ => None,
        });
        if let Some((invariant, detail)) = broken {
            self.fail(invariant, detail);
        }
    }

    /// Services whose tasks do not stay up whatever the cluster does.
    fn hopeless(&self) -> BTreeSet<ServiceId> {
        let image = |spec: &rswarm_control::model::TaskSpec| machine::Image::of(&spec.containers[0].image);
        let services = self.log.truth.services();
        let bad = services.filter(|service| {
            let tasks = self.log.truth.tasks_of(service.id);
            let job = service.spec.mode.is_job();
            let good = |image: machine::Image| image.stays() || job && image == machine::Image::Done;
            !good(image(&service.spec.task)) || tasks.filter(|t| t.is_live()).any(|t| !good(image(&t.spec)))
        });
        bad.map(|service| service.id).collect()
    }

    /// What stands between the cluster and rest.
    fn unrest(&self) -> Option<(&'static Invariant, String)> {
        let (facts, hopeless) = (self.facts(), self.hopeless());
        let scene =
            Scene { state: &self.log.truth, containers: &facts, excused: &self.excused, hopeless: &hopeless };
        let unheard = self.machines.iter().enumerate().find(|(_, machine)| {
            let node = machine.node.and_then(|node| self.log.truth.node(node));
            machine.power == Power::On
                && !machine.leaving
                && node.is_some_and(|node| !matches!(node.status, NodeStatus::Ready | NodeStatus::Left))
        });
        if let Some((m, _)) = unheard {
            let agent = &self.machines[m].agent;
            return Some((invariants::COMES_TO_REST, format!("m{m} is there and is not heard: {agent}")));
        }
        // A task that waits for a node may be waiting out its restart delay as well.
        let held = self.log.truth.tasks().find(|task| {
            task.is_live() && task.desired == Desired::Ready && !hopeless.contains(&task.service)
        });
        if let Some(task) = held {
            return Some((
                invariants::COMES_TO_REST,
                format!("{} is held back until {:?}", task.name(), task.start_at),
            ));
        }
        let balances = |service: &&std::sync::Arc<rswarm_control::model::Service>| {
            service.rebalance.is_some() && !hopeless.contains(&service.id)
        };
        if let Some(service) = self.log.truth.services().find(balances) {
            let found = format!("{} is being rebalanced: {:?}", service.spec.name, service.rebalance);
            return Some((invariants::COMES_TO_REST, found));
        }
        let since = self.log.truth.cluster().and_then(|cluster| cluster.settings.rebalance_since);
        let back = |node: &&std::sync::Arc<rswarm_control::model::Node>| {
            node.status == NodeStatus::Ready
                && node.availability == rswarm_control::model::Availability::Active
                && since.is_some_and(|since| node.status_since > since)
        };
        if let Some(node) = self.log.truth.nodes().find(back) {
            let words = format!("{} has come back, and nothing moved to it yet", node.hostname);
            return Some((invariants::COMES_TO_REST, words));
        }
        // One that never gives up may wait for ever for a place.
        let waits = |id| self.log.truth.tasks_of(id).any(|task| task.is_live() && !task.note.is_empty());
        let moves = |service: &&std::sync::Arc<rswarm_control::model::Service>| {
            let status = service.update_status.as_ref();
            status.is_some_and(|status| status.state.is_moving())
                && !(service.pace().progress_deadline.is_zero() && waits(service.id))
                && !hopeless.contains(&service.id)
        };
        if let Some(service) = self.log.truth.services().find(moves) {
            return Some((invariants::COMES_TO_REST, format!("{} is being updated", service.spec.name)));
        }
        invariants::ALL.iter().find_map(|invariant| match invariant.check {
            Check::Rest(check) => check(&scene).err().map(|detail| (*invariant, detail)),
            _ => None,
        })
    }

    /// All is well again: the cluster must converge, and then be silent.
    fn come_to_rest(&mut self) {
        let deadline = self.now + CONVERGE;
        let mut calm = 0;
        let mut entries = self.log.entries.len();
        while self.broken.is_none() && calm < 12 {
            self.run_for(1_000);
            let unrest = self.unrest();
            let moved = std::mem::replace(&mut entries, self.log.entries.len()) != entries;
            calm = match &unrest {
                None if !moved || !self.hopeless().is_empty() => calm + 1,
                _ => 0,
            };
            if self.now >= deadline && calm == 0 {
                let (invariant, detail) =
                    unrest.unwrap_or((invariants::COMES_TO_REST, "entries are still being proposed".into()));
                self.fail(invariant, detail);
            }
        }
        if self.broken.is_none() && self.hopeless().is_empty() {
            let before = self.log.entries.len();
            self.run_for(IDLE);
            if self.log.entries.len() != before && self.broken.is_none() {
                let entry = &self.log.entries[before];
                self.fail(invariants::IDLE_IS_SILENT, format!("{:?}", entry.proposal.changes));
            }
        }
        self.check_replicas();
    }

    fn check_replicas(&mut self) {
        let broken = self.machines.iter().find_map(|machine| {
            let replica = machine.replica.as_ref()?;
            let lags = replica.applied != self.log.entries.len();
            (!lags && replica.state != self.log.truth).then(|| machine.name.clone())
        });
        if let Some(name) = broken {
            self.fail(invariants::REPLICAS_AGREE, format!("manager {name} holds something else"));
        }
    }
}

/// The time as a manager takes it: its own clock, but never before what the cluster has already seen.
fn not_before(state: &State, wall: u64) -> Timestamp {
    Timestamp(wall).max(state.clock())
}
