//! A copy of the cluster on which everything goes as it shall.

use super::{Peak, reserved};
use crate::ids::{NodeId, ServiceId};
use crate::liveness::Heard;
use crate::model::{Desired, Health, NodeStatus, Observed, Resources};
use crate::state::{Change, Proposal, Report, Stale, State};
use crate::tick::Crank;
use crate::time::Timestamp;
use crate::touched::{self, Touched};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Turns after which a rehearsal is broken off: of a service of thousands that is updated one by one, the
/// beginning must do.
const TURNS_MAX: usize = 20_000;
/// What lies further ahead is no longer looked at.
const HORIZON: Duration = Duration::from_secs(12 * 3600);

pub(super) struct Stage {
    state: State,
    heard: Heard,
    now: Timestamp,
    began: Timestamp,
    /// When something was last done for a service.
    worked: Timestamp,
    crank: Crank,
    /// Services whose tasks were touched.
    moved: BTreeSet<ServiceId>,
    /// What was reserved at first, and at most, on the nodes that were touched.
    peaks: BTreeMap<NodeId, (Resources, Resources)>,
}

impl Stage {
    pub(super) fn new(state: &State, now: Timestamp) -> Self {
        // Nodes that are there stay there: they are heard from at the end of time.
        let mut heard = Heard::new(now);
        for node in
            state.nodes().filter(|node| matches!(node.status, NodeStatus::Ready | NodeStatus::Suspect))
        {
            heard.beat(node.id, now.after(HORIZON * 1000));
        }
        Self {
            state: state.clone(),
            heard,
            now,
            began: now,
            worked: now,
            crank: Crank::default(),
            moved: BTreeSet::new(),
            peaks: BTreeMap::new(),
        }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// How long it took until nothing more was done.
    pub(super) fn took(&self) -> Duration {
        self.worked.since(self.began)
    }

    pub(super) fn moved(&self) -> &BTreeSet<ServiceId> {
        &self.moved
    }

    pub(super) fn commit(&mut self, changes: Vec<Change>) -> Result<(), Stale> {
        for change in &changes {
            let task = match change {
                Change::CreateTask(new) => Some(new.service),
                Change::SetDesired { task, .. } | Change::Assign { task, .. } => {
                    self.state.task(*task).map(|task| task.service)
                }
                _ => None,
            };
            if task.is_some() || matches!(change, Change::SetUpdateStatus { .. } | Change::Report(_)) {
                self.worked = self.now;
            }
            self.moved.extend(task);
        }
        let before = self.state.clone();
        let proposal = Proposal { changes, at: self.now };
        self.state.apply(self.state.index() + 1, &proposal)?;
        for node in self.touched_since(&before) {
            let now = reserved(&self.state, node);
            let (_, most) = self.peaks.entry(node).or_insert_with(|| {
                let first = reserved(&before, node);
                (first, first)
            });
            most.nano_cpus = most.nano_cpus.max(now.nano_cpus);
            most.memory_bytes = most.memory_bytes.max(now.memory_bytes);
        }
        Ok(())
    }

    fn touched_since(&self, before: &State) -> BTreeSet<NodeId> {
        match touched::between(before, &self.state) {
            Touched::These(nodes) => nodes,
            Touched::Everyone => self.state.nodes().map(|node| node.id).collect(),
        }
    }

    /// Goes on until there is nothing left to do. Whether it came to that.
    pub(super) fn play(&mut self) -> bool {
        let end = self.began.after(HORIZON);
        for _ in 0..TURNS_MAX {
            let plan = self.crank.turn(&self.state, &self.heard, self.now);
            let work = if plan.changes.is_empty() { self.obey() } else { plan.changes };
            if !work.is_empty() {
                if self.commit(work).is_err() {
                    return false;
                }
                continue;
            }
            match plan.wake_at {
                Some(due) if due <= end => self.now = due.max(Timestamp(self.now.0 + 1)),
                Some(_) | None => return true,
            }
        }
        false
    }

    /// What the nodes report that do at once what they are asked.
    fn obey(&self) -> Vec<Change> {
        let mut reports = Vec::new();
        for task in self.state.restless() {
            let Some(node) = self.state.home(task).filter(|node| node.status == NodeStatus::Ready) else {
                continue;
            };
            let observed = match task.desired {
                Desired::Ready => Observed::Ready,
                Desired::Running => Observed::Running,
                Desired::Shutdown | Desired::Remove => Observed::Shutdown,
            };
            if task.is_live() && task.observed < observed {
                let (message, error) = (String::new(), String::new());
                let (health, ready) = (Health::Unchecked, (observed == Observed::Running).then_some(true));
                reports.push(Change::Report(Report {
                    task: task.id,
                    node: node.id,
                    observed,
                    message,
                    error,
                    exit_code: None,
                    pid: None,
                    health,
                    ready,
                }));
            }
        }
        reports
    }

    /// What was reserved, where that changed.
    pub(super) fn peaks(&self) -> Vec<Peak> {
        let peak = |(id, (before, most)): (&NodeId, &(Resources, Resources))| {
            let node = self.state.node(*id)?;
            let (before, most, after) = (*before, *most, reserved(&self.state, *id));
            let capacity = node.description.capacity;
            let peak = Peak { node: node.hostname.clone(), before, most, after, capacity };
            (before != most || before != after).then_some(peak)
        };
        let mut peaks: Vec<Peak> = self.peaks.iter().filter_map(peak).collect();
        peaks.sort_by(|one, other| one.node.cmp(&other.node));
        peaks
    }
}
