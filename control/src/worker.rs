//! What a node does about its assignment. The executor is told through [`Effect`]s and answers with
//! [`Seen`]; what the managers should know comes out as reports.
//!
//! Effects are idempotent and numbered: an executor that gets one older than the last it got for the same
//! task passes it over, and answers carry the number of the effect they belong to.

use crate::assignment::{AssignedTask, Assignment};
use crate::ids::{NodeId, TaskId};
use crate::liveness::{LEASE, LEASE_GRACE};
use crate::model::{Desired, Health, Observed, TaskResources};
use crate::state::Report;
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The tasks a node holds, and what it does about them.
#[derive(Clone, Debug)]
pub struct Worker {
    node: NodeId,
    generation: u64,
    /// Before the first assignment arrives nobody knows what is wanted, so nothing is stopped.
    assigned: Option<BTreeMap<TaskId, AssignedTask>>,
    held: BTreeMap<TaskId, Held>,
    lease: Lease,
}

/// Whether fenced tasks may run here. They may until a [`LEASE`](crate::liveness::LEASE) after the last word to the
/// leader that it has confirmed, by the node's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    /// The daemon has just started: none is started, and what runs is left to the leases that containers have
    /// themselves.
    Unknown,
    /// They may run until then.
    Until(Timestamp),
    /// They have been stopped.
    Lapsed,
}

/// Something to be done, and its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// Grows with every effect of a worker.
    pub generation: u64,
    /// What.
    pub action: Action,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Get image, file systems and network ready, but do not start. Answered by [`Seen::Prepared`] or
    /// [`Seen::Unpreparable`].
    Prepare(Box<AssignedTask>),
    /// Start what is prepared. Answered by [`Seen::Running`] or [`Seen::Ended`].
    Start(TaskId),
    /// Let it go on with other limits. Answered by [`Seen::Retuned`] or [`Seen::Untuned`].
    Retune {
        /// What it is now.
        task: Box<AssignedTask>,
        /// How long to wait before, unless another effect comes first.
        delay: Duration,
    },
    /// End it, however far it is. Answered by [`Seen::Ended`].
    Stop {
        /// Which.
        task: TaskId,
        /// How long after its stop signal it is killed.
        grace: Duration,
        /// How long it is left alone before, unless another effect comes first.
        delay: Duration,
    },
    /// Remove what is left of it, logs included. Answered by [`Seen::Gone`].
    Remove(TaskId),
    /// Tell the managers.
    Report(Report),
}

/// What the executor has seen of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is being prepared; the text says how far it is.
    Preparing(String),
    /// It could start.
    Prepared,
    /// It cannot be prepared, and why.
    Unpreparable(String),
    /// It was started, has a health check, and was not found healthy yet.
    Starting {
        /// Its process.
        pid: u32,
    },
    /// Of one that was never healthy a probe has failed, and what it said.
    Ailing(String),
    /// Its health check has found it well.
    Healthy,
    /// Its health check has failed too often, and what it said last.
    Unhealthy(String),
    /// Its readiness probe lets it be given connections.
    Ready,
    /// Its readiness probe has failed too often, and what it said last.
    Unready(String),
    /// It runs.
    Running {
        /// Its process.
        pid: u32,
    },
    /// It goes on with the limits it was last told.
    Retuned,
    /// It keeps the limits it had, and why.
    Untuned(String),
    /// It has ended, or never came to run.
    Ended {
        /// How, if it ran: 0 to 255, 128 + n for signal n.
        exit_code: Option<i32>,
        /// What went wrong; empty if nothing did.
        error: String,
    },
    /// It was lost, through no fault of its own, with the machine or with the daemon's state; the text
    /// says how. It is replaced at once, whatever its restart policy.
    Lost(String),
    /// Nothing is left of it.
    Gone,
}

/// A task of which something may be there.
#[derive(Clone, Debug)]
struct Held {
    observed: Observed,
    asked: Asked,
    message: String,
    error: String,
    exit_code: Option<i32>,
    pid: Option<u32>,
    /// It was stopped because the lease had lapsed.
    fenced: bool,
    health: Health,
    /// As far as its readiness probe has found out.
    ready: Option<bool>,
    /// What it was last told that it may use; nothing where another daemon did that.
    tuned: Option<TaskResources>,
    /// How often in a row that was refused, and whether it is to be tried again.
    refusals: u32,
    refused: bool,
}

/// What the executor was last asked to do about a task, and has not answered to yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Prepare,
    Start,
    /// When nobody is sent to it any more.
    StopSoon,
    Stop,
    Remove,
}

impl Worker {
    /// A worker on `node` that finds what is left of earlier tasks: after a restart of the daemon those
    /// that run are adopted, and after a restart of the machine their end is reported.
    pub fn new(node: NodeId, found: BTreeMap<TaskId, Seen>) -> Self {
        let mut this =
            Self { node, generation: 0, assigned: None, held: BTreeMap::new(), lease: Lease::Unknown };
        for (task, seen) in found {
            let mut held = Held::new();
            held.see(seen, false);
            this.held.insert(task, held);
        }
        this
    }

    /// The complete list of what this node should hold. Anything else is stopped and removed.
    pub fn assign(&mut self, assignment: &Assignment) -> Vec<Effect> {
        self.assigned = Some(assignment.tasks.clone());
        let tasks: BTreeSet<TaskId> = assignment.tasks.keys().chain(self.held.keys()).copied().collect();
        let mut effects = Effects { generation: &mut self.generation, list: Vec::new() };
        for task in tasks {
            let assigned = assignment.tasks.get(&task);
            let before = effects.list.len();
            step(self.node, self.lease, assigned, &mut self.held, task, &mut effects);
            // The managers have not heard yet that it ended; a report may have been lost.
            let Some(held) = self.held.get_mut(&task) else { continue };
            let unheard = assigned.is_some_and(|assigned| !assigned.ended) && held.observed.is_terminal();
            if unheard && effects.list.len() == before {
                if assigned.is_some_and(|assigned| !assigned.is_wanted()) {
                    held.observed = Observed::Shutdown;
                }
                effects.push(Action::Report(held.report(task, self.node)));
            }
        }
        effects.list
    }

    /// The executor has seen something of a task.
    pub fn observe(&mut self, task: TaskId, seen: Seen) -> Vec<Effect> {
        let mut effects = Effects { generation: &mut self.generation, list: Vec::new() };
        let assigned = self.assigned.as_ref().map(|tasks| tasks.get(&task));
        let Some(held) = self.held.get_mut(&task) else { return Vec::new() };
        if seen == Seen::Gone {
            self.held.remove(&task);
        } else {
            let unwanted = assigned.flatten().is_some_and(|assigned| !assigned.is_wanted());
            if held.see(seen, unwanted) {
                effects.push(Action::Report(held.report(task, self.node)));
            }
        }
        if let Some(assigned) = assigned {
            step(self.node, self.lease, assigned, &mut self.held, task, &mut effects);
        }
        effects.list
    }

    /// A leader has confirmed what this node said at `said`, by the node's own clock, which must go on while the
    /// machine sleeps: fenced tasks may run for a lease from then on.
    pub fn renew(&mut self, said: Timestamp, now: Timestamp) -> Vec<Effect> {
        let until = said.after(LEASE);
        if until <= now || matches!(self.lease, Lease::Until(known) if known >= until) {
            return Vec::new();
        }
        let resumed = !matches!(self.lease, Lease::Until(_));
        self.lease = Lease::Until(until);
        let Some(assigned) = self.assigned.as_ref().filter(|_| resumed) else { return Vec::new() };
        let mut effects = Effects { generation: &mut self.generation, list: Vec::new() };
        for task in assigned.values().filter(|task| task.spec.is_fenced()) {
            step(self.node, self.lease, Some(task), &mut self.held, task.id, &mut effects);
        }
        effects.list
    }

    /// Stops the fenced tasks when the lease has lapsed: by now others may be about to take their places. What was
    /// not started yet is not started any more.
    pub fn fence(&mut self, now: Timestamp) -> Vec<Effect> {
        if !matches!(self.lease, Lease::Until(until) if until <= now) {
            return Vec::new();
        }
        self.lease = Lease::Lapsed;
        let mut effects = Effects { generation: &mut self.generation, list: Vec::new() };
        for (task, held) in self.held.iter_mut().filter(|(_, held)| !held.observed.is_terminal()) {
            let assigned = self.assigned.as_ref().and_then(|assigned| assigned.get(task));
            if assigned.is_some_and(|assigned| assigned.spec.is_fenced()) && !held.fenced {
                (held.asked, held.fenced) = (Asked::Stop, true);
                let (grace, delay) = (grace(assigned).min(LEASE_GRACE), Duration::ZERO);
                effects.push(Action::Stop { task: *task, grace, delay });
            }
        }
        effects.list
    }

    /// Until when fenced tasks may run, while they may; to be looked at then with [`Worker::fence`].
    pub fn leased_until(&self) -> Option<Timestamp> {
        match self.lease {
            Lease::Until(until) => Some(until),
            Lease::Unknown | Lease::Lapsed => None,
        }
    }

    /// The fenced tasks that are not known to have ended.
    pub fn leased(&self) -> impl Iterator<Item = TaskId> {
        let fenced = |task: &TaskId| self.assigned(*task).is_some_and(|assigned| assigned.spec.is_fenced());
        let live = self.held.iter().filter(|(_, held)| !held.observed.is_terminal());
        live.map(|(task, _)| *task).filter(fenced)
    }

    /// Everything the managers should know, for a session that has just been opened: reports on the way
    /// when the last one broke may be lost.
    pub fn reports(&self) -> Vec<Report> {
        self.held.iter().map(|(task, held)| held.report(*task, self.node)).collect()
    }

    /// What is known of each task of which something may be there.
    pub fn held(&self) -> impl Iterator<Item = (TaskId, Observed)> {
        self.held.iter().map(|(task, held)| (*task, held.observed))
    }

    /// What a task is assigned as, if it is.
    pub fn assigned(&self, task: TaskId) -> Option<&AssignedTask> {
        self.assigned.as_ref()?.get(&task)
    }
}

struct Effects<'a> {
    generation: &'a mut u64,
    list: Vec<Effect>,
}

impl Effects<'_> {
    fn push(&mut self, action: Action) {
        *self.generation += 1;
        self.list.push(Effect { generation: *self.generation, action });
    }
}

/// Does the next thing about one task, if nothing is being done about it already.
fn step(
    node: NodeId,
    lease: Lease,
    assigned: Option<&AssignedTask>,
    held: &mut BTreeMap<TaskId, Held>,
    id: TaskId,
    effects: &mut Effects<'_>,
) {
    let wanted = assigned.filter(|task| task.is_wanted());
    let Some(this) = held.get_mut(&id) else {
        let Some(assigned) = assigned.filter(|task| !task.ended) else { return };
        let mut new = Held::new();
        match wanted {
            Some(task) if !task.started => {
                (new.observed, new.asked) = (Observed::Preparing, Asked::Prepare);
                new.tuned = Some(task.spec.resources.clone());
                effects.push(Action::Report(new.report(id, node)));
                effects.push(Action::Prepare(Box::new(task.clone())));
                held.insert(id, new);
            }
            Some(_) => {
                // One attempt is one attempt: what has vanished is not started a second time.
                new.observed = Observed::Orphaned;
                new.error = "its container is gone; the node's state was lost".into();
                effects.push(Action::Report(new.report(id, node)));
            }
            None => {
                new.observed = Observed::Shutdown;
                effects.push(Action::Report(Report { task: assigned.id, ..new.report(id, node) }));
            }
        }
        return;
    };
    let ended = this.observed.is_terminal();
    match (wanted, assigned) {
        (Some(task), _) if this.observed == Observed::Ready && this.asked == Asked::Nothing => {
            let may_run = !task.spec.is_fenced() || matches!(lease, Lease::Until(_));
            if task.desired == Desired::Running && may_run {
                (this.observed, this.asked) = (Observed::Starting, Asked::Start);
                effects.push(Action::Start(id));
                effects.push(Action::Report(this.report(id, node)));
            }
        }
        // Left over from a daemon that stopped before it was done: begin again.
        (Some(task), _) if this.observed < Observed::Ready && this.asked == Asked::Nothing => {
            this.asked = Asked::Prepare;
            this.tuned = Some(task.spec.resources.clone());
            effects.push(Action::Prepare(Box::new(task.clone())));
        }
        (Some(task), _) if this.health == Health::Unhealthy && !ended => {
            // Those who route to it are told first, by the managers; that takes no longer than it may.
            let (asked, delay) = match task.unhealthy {
                true => (Asked::Stop, Duration::ZERO),
                false => (Asked::StopSoon, UNROUTED_WITHIN),
            };
            if this.asked != asked && this.asked != Asked::Stop {
                this.asked = asked;
                effects.push(Action::Stop { task: id, grace: grace(Some(task)), delay });
            }
        }
        (Some(task), _) if this.observed == Observed::Running => {
            let others = this.tuned.as_ref() != Some(&task.spec.resources);
            if others || this.refused {
                this.refusals = if others { 0 } else { this.refusals };
                (this.tuned, this.refused) = (Some(task.spec.resources.clone()), false);
                let delay = retuned_after(this.refusals);
                effects.push(Action::Retune { task: Box::new(task.clone()), delay });
            }
        }
        (Some(_), _) => {}
        (None, None) if ended => {
            if this.asked != Asked::Remove {
                this.asked = Asked::Remove;
                effects.push(Action::Remove(id));
            }
        }
        // Ended and remembered: its logs are kept.
        (None, Some(_)) if ended => {}
        (None, _) => {
            if this.asked != Asked::Stop {
                this.asked = Asked::Stop;
                effects.push(Action::Stop { task: id, grace: grace(assigned), delay: Duration::ZERO });
            }
        }
    }
}

/// How long limits that were refused so often in a row are left alone: what is in use may become less.
fn retuned_after(refusals: u32) -> Duration {
    const FIRST: Duration = Duration::from_secs(2);
    const MOST: Duration = Duration::from_secs(60);
    match refusals {
        0 => Duration::ZERO,
        refusals => FIRST.saturating_mul(1 << (refusals - 1).min(5)).min(MOST),
    }
}

/// How long an unhealthy task is left alone until the managers say that nobody is sent to it any more.
pub const UNROUTED_WITHIN: Duration = Duration::from_secs(2);

/// How it is told that a running task was not given the limits asked for.
pub const UNTUNED: &str = "has not been given the limits asked for: ";

/// Why a task was stopped that nobody asked to stop.
pub const FENCED: &str = "stopped by its node, which could not reach the managers";

/// The longest any of a task's containers is given; for a task that nobody knows, the default.
fn grace(assigned: Option<&AssignedTask>) -> Duration {
    let graces = assigned.map(|task| task.spec.containers.iter().map(|container| container.stop_grace).max());
    graces.flatten().unwrap_or(Duration::from_secs(10))
}

impl Held {
    fn new() -> Self {
        Self {
            observed: Observed::Accepted,
            asked: Asked::Nothing,
            message: String::new(),
            error: String::new(),
            exit_code: None,
            pid: None,
            fenced: false,
            health: Health::Unchecked,
            ready: None,
            tuned: None,
            refusals: 0,
            refused: false,
        }
    }

    /// Takes in what was seen, if it is news. What has ended stays so.
    fn see(&mut self, seen: Seen, unwanted: bool) -> bool {
        if self.observed.is_terminal() {
            return false;
        }
        let said = |this: &Self| {
            let words = (this.message.clone(), this.error.clone());
            (this.observed, words, this.pid, this.health, this.ready)
        };
        let before = said(self);
        let ill = self.health == Health::Unhealthy;
        let stopping = self.asked == Asked::Stop && !ill;
        let settle = |this: &mut Self, observed, answers: Asked| {
            this.observed = this.observed.max(observed);
            if this.asked == answers {
                this.asked = Asked::Nothing;
            }
        };
        match seen {
            Seen::Preparing(message) => {
                settle(self, Observed::Preparing, Asked::Nothing);
                self.message = message;
            }
            Seen::Prepared => {
                settle(self, Observed::Ready, Asked::Prepare);
                self.message.clear();
            }
            Seen::Starting { pid } => {
                settle(self, Observed::Starting, Asked::Start);
                self.pid = Some(pid);
                if self.health == Health::Unchecked {
                    self.health = Health::Starting;
                }
            }
            // Once is enough: what it says each time would be news without end.
            Seen::Ailing(words) if self.health == Health::Starting && self.message.is_empty() => {
                self.message = format!("not healthy yet: {words}");
            }
            Seen::Healthy if !ill && self.pid.is_some() => {
                settle(self, Observed::Running, Asked::Start);
                self.message.clear();
                self.health = Health::Healthy;
            }
            Seen::Unhealthy(words) if self.pid.is_some() => {
                let colon = if words.is_empty() { "" } else { ": " };
                (self.health, self.error) = (Health::Unhealthy, format!("unhealthy container{colon}{words}"));
                self.message.clear();
            }
            Seen::Ready => {
                self.ready = Some(true);
                self.message.clear();
            }
            Seen::Unready(words) if self.ready != Some(false) => {
                self.ready = Some(false);
                if self.message.is_empty() {
                    self.message = format!("not ready: {words}");
                }
            }
            // What is known already, or has no container any more.
            Seen::Ailing(_) | Seen::Healthy | Seen::Unhealthy(_) | Seen::Unready(_) => {}
            Seen::Running { pid } => {
                settle(self, Observed::Running, Asked::Start);
                self.message.clear();
                self.pid = Some(pid);
            }
            Seen::Retuned => {
                self.refusals = 0;
                if !ill {
                    self.error.clear();
                }
            }
            Seen::Untuned(words) => {
                // Once is enough, as above.
                if self.refusals == 0 && !ill {
                    self.error = format!("{UNTUNED}{words}");
                }
                (self.refusals, self.refused) = (self.refusals.saturating_add(1), true);
            }
            Seen::Unpreparable(error) => {
                let observed = if stopping || unwanted { Observed::Shutdown } else { Observed::Rejected };
                self.end(observed, None, error);
            }
            Seen::Ended { exit_code, .. } if self.fenced => {
                self.end(Observed::Orphaned, exit_code, FENCED.into());
            }
            Seen::Ended { exit_code, error } => {
                let observed = match exit_code {
                    _ if stopping || unwanted => Observed::Shutdown,
                    _ if ill => Observed::Failed,
                    Some(0) if error.is_empty() => Observed::Completed,
                    Some(_) | None => Observed::Failed,
                };
                let error = match observed {
                    Observed::Failed if ill => std::mem::take(&mut self.error),
                    // That a signal ended what was asked to end by one is nothing that went wrong.
                    Observed::Shutdown if exit_code.is_some_and(|code| code > 128) => String::new(),
                    _ => error,
                };
                self.end(observed, exit_code, error);
            }
            Seen::Lost(error) => {
                let observed = if stopping || unwanted { Observed::Shutdown } else { Observed::Orphaned };
                self.end(observed, None, error);
            }
            Seen::Gone => self.end(Observed::Orphaned, None, "its container is gone".into()),
        }
        before != said(self)
    }

    fn end(&mut self, observed: Observed, exit_code: Option<i32>, error: String) {
        self.observed = observed;
        self.asked = Asked::Nothing;
        self.message.clear();
        self.exit_code = exit_code;
        self.error = error;
        self.pid = None;
        if self.health != Health::Unhealthy {
            self.health = Health::Unchecked;
        }
    }

    fn report(&self, task: TaskId, node: NodeId) -> Report {
        Report {
            task,
            node,
            observed: self.observed,
            message: self.message.clone(),
            error: self.error.clone(),
            exit_code: self.exit_code,
            pid: self.pid,
            health: self.health,
            ready: self.ready,
        }
    }
}

/// In a few words, for tests and logs.
impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.action {
            Action::Prepare(task) => write!(f, "prepare {}", task.id),
            Action::Start(task) => write!(f, "start {task}"),
            Action::Retune { task, delay } if delay.is_zero() => write!(f, "retune {}", task.id),
            Action::Retune { task, delay } => write!(f, "retune {} after {delay:?}", task.id),
            Action::Stop { task, grace, delay } if delay.is_zero() => {
                write!(f, "stop {task} within {grace:?}")
            }
            Action::Stop { task, grace, delay } => write!(f, "stop {task} after {delay:?} within {grace:?}"),
            Action::Remove(task) => write!(f, "remove {task}"),
            Action::Report(report) => write!(f, "report {} {}", report.task, report.observed),
        }
    }
}

#[cfg(test)]
mod tests;
