//! What a decision may read, and what it may say.

use crate::ids::{NodeId, ServiceId, TaskId};
use crate::model::{Desired, Node, Slot, Task};
use crate::orchestrator::{self, Known, Slots};
use crate::state::{Change, NewTask, State, Turn};
use crate::time::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What should change next, and when to ask again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be proposed together.
    pub changes: Vec<Change>,
    /// When something is due although nothing else happens.
    pub wake_at: Option<Timestamp>,
}

/// A plan in the making: the state as it would be, and the changes that make it so.
///
/// Changes pass through the very function the replicated log uses, so a later step sees what an earlier
/// one proposed and a plan cannot mean one thing here and another there.
pub(crate) struct Draft {
    pub(crate) now: Timestamp,
    /// How many slots each service may open or close.
    pub(crate) share: usize,
    /// The slots of services, as they were when they were last asked for.
    pub(crate) known: Known,
    turn: Turn,
    plan: Plan,
    holds: Vec<Hold>,
}

impl Draft {
    pub(crate) fn new(state: &State, now: Timestamp) -> Self {
        let (share, turn) = (orchestrator::share(1), Turn::new(state.clone(), state.index() + 1, now));
        Self { now, share, known: Known::default(), turn, plan: Plan::default(), holds: Vec::new() }
    }

    pub(crate) fn state(&self) -> &State {
        &self.turn.state
    }

    /// The open slots of a service.
    pub(crate) fn slots(&mut self, service: ServiceId) -> Arc<Slots> {
        self.known.slots(&self.turn.state, service)
    }

    pub(crate) fn propose(&mut self, change: Change) {
        self.turn.apply(&change).expect("a plan agrees with the state it was drawn from");
        self.plan.changes.push(change);
    }

    /// Asks to be run again at `when`, even if nothing else happens.
    pub(crate) fn wake_at(&mut self, when: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(when, |wake| wake.min(when)));
    }

    /// When `work` asks to be run again, if it does.
    pub(crate) fn during(&mut self, work: impl FnOnce(&mut Self)) -> Option<Timestamp> {
        let before = self.plan.wake_at.take();
        work(self);
        let during = self.plan.wake_at;
        before.into_iter().for_each(|wake| self.wake_at(wake));
        during
    }

    /// Asks to be run again at `until`, and says what waits so long.
    pub(crate) fn hold(&mut self, whom: Whom, until: Timestamp, why: Why) {
        self.wake_at(until);
        let hold = Hold { whom, until: Some(until), why };
        if !self.holds.contains(&hold) {
            self.holds.push(hold);
        }
    }

    /// Says what waits for something that is not a matter of time.
    pub(crate) fn hold_back(&mut self, whom: Whom, why: Why) {
        self.holds.push(Hold { whom, until: None, why });
    }

    pub(crate) fn holds(&self) -> &[Hold] {
        &self.holds
    }

    pub(crate) fn finish(self) -> Plan {
        self.plan
    }

    /// Gives a slot a task that starts as soon as it may: at once, if its time has come and the slot is
    /// not one of the `occupied`.
    pub(crate) fn create_task(&mut self, service: ServiceId, slot: Slot, start: Start, occupied: &Occupied) {
        let number = self.state().next_number();
        let id = TaskId::mint(self.state().id_seed(), number);
        let spec_version = self.state().service(service).map_or(0, |service| service.spec_version);
        let may_start = start.at <= self.now && !occupied.contains(&slot);
        let desired = if may_start { Desired::Running } else { Desired::Ready };
        let Start { at: start_at, restarts, failures } = start;
        self.propose(Change::CreateTask(NewTask {
            id,
            number,
            service,
            slot,
            spec_version,
            desired,
            start_at,
            restarts,
            failures,
        }));
    }

    /// Sends a task away. One that never ran leaves no history.
    pub(crate) fn dismiss(&mut self, task: &Task) {
        let never_ran = task.status.running_at.is_none();
        self.want(task.id, if never_ran { Desired::Remove } else { Desired::Shutdown });
    }

    pub(crate) fn want(&mut self, task: TaskId, desired: Desired) {
        self.propose(Change::SetDesired { task, desired });
    }
}

/// Something that is not done yet, and why: what [`explain`](crate::explain) tells the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) whom: Whom,
    /// When it is looked at again at the latest.
    pub(crate) until: Option<Timestamp>,
    pub(crate) why: Why,
}

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Node(NodeId),
    Service(ServiceId),
    Slot(ServiceId, Slot),
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The delay before another attempt.
    Restart,
    /// A new task that runs holds the next slot up for a while.
    Rest,
    /// The first tasks of a new spec, or the last, are watched.
    Watched,
    /// The old task stays until the new one has run for long enough.
    HealthyTime,
    /// Other slots come first.
    Turn,
    /// Nothing, but if no task comes to run until then the update has failed.
    Deadline,
    /// Silence becomes loss.
    Silence,
}

/// When a new task may start, and what its slot has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) at: Timestamp,
    pub(crate) restarts: u32,
    pub(crate) failures: u32,
}

impl State {
    /// The node a task is on, if it has one that still exists.
    pub(crate) fn home(&self, task: &Task) -> Option<&Arc<Node>> {
        task.node.and_then(|node| self.node(node))
    }

    /// Whether the node of a task is lost, so that the task is to be replaced.
    pub(crate) fn is_lost(&self, task: &Task) -> bool {
        match (task.node, self.home(task)) {
            (None, _) => false,
            (Some(_), Some(node)) => node.status.is_lost(),
            (Some(_), None) => true,
        }
    }

    /// The tasks of a service that may be running, as far as anyone can tell.
    pub(crate) fn occupying(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_of(service)
            .filter(|task| task.is_live() && task.has_begun() && task.node.is_some())
            .filter(|task| !self.is_lost(task) || self.keeps_place(task))
    }

    /// The slots of a service in which a task may be running, as far as anyone can tell.
    pub(crate) fn occupied(&self, service: ServiceId) -> Occupied {
        self.occupying(service).map(|task| task.slot).collect()
    }
}

/// Slots in which a task may be running.
pub(crate) type Occupied = BTreeSet<Slot>;

impl Task {
    /// Whether it was told to run: one that is only prepared for is no hindrance.
    pub(crate) fn has_begun(&self) -> bool {
        self.desired != Desired::Ready
    }
}
