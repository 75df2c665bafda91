//! Tasks: single attempts to run one slot of a service.

use super::{Claims, Health, Meta, TaskSpec, Transition};
use crate::ids::{NetworkId, NodeId, ServiceId, TaskId};
use crate::time::Timestamp;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// One attempt to run one slot of a service. It is placed once and never restarted; what follows it in
/// its slot is another task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Never reused.
    pub id: TaskId,
    /// Version and age; [`Meta::number`] orders the tasks of a slot.
    pub meta: Meta,
    /// Whose it is. The service may be gone while its tasks are being removed.
    pub service: ServiceId,
    /// The service's name, kept for when the service is gone.
    pub service_name: String,
    /// Which of the service's places it fills.
    pub slot: Slot,
    /// What it runs; shared by all tasks of the service with the same `spec_version`.
    pub spec: Arc<TaskSpec>,
    /// Which of the service's task specs that is.
    pub spec_version: u64,
    /// Where, once that is decided.
    pub node: Option<NodeId>,
    /// What the managers want of it.
    pub desired: Desired,
    /// What has been seen of it.
    pub observed: Observed,
    /// More about what has been seen.
    pub status: TaskStatus,
    /// Its address on each of its networks.
    pub addresses: Vec<(NetworkId, Ipv4Addr)>,
    /// The named things of its node that it was given.
    pub claims: Claims,
    /// Why it waits; empty when nothing holds it up.
    pub note: String,
    /// When a task held at [`Desired::Ready`] may run.
    pub start_at: Timestamp,
    /// Restarts of its slot with this `spec_version` that led to this task; counted against
    /// [`RestartPolicy::max_attempts`](super::RestartPolicy::max_attempts).
    pub restarts: u32,
    /// How many tasks of its slot ended by themselves in a row before it; lengthens the restart delay.
    pub failures: u32,
    /// What it has been through, oldest first.
    pub history: Vec<Transition>,
}

impl Task {
    /// Whether it may be running, or come to run.
    pub fn is_live(&self) -> bool {
        !self.observed.is_terminal()
    }

    /// Whether it has not ended and does not just run as it shall: whatever is to be done about tasks one by one is
    /// to be done about these.
    pub(crate) fn is_restless(&self) -> bool {
        self.is_live() && (self.observed, self.desired) != (Observed::Running, Desired::Running)
    }

    /// Whether it is wanted to run, now or after its restart delay.
    pub fn is_wanted(&self) -> bool {
        match self.desired {
            Desired::Ready | Desired::Running => true,
            Desired::Shutdown | Desired::Remove => false,
        }
    }

    /// Whether it may be given new connections, as far as it is concerned.
    pub fn serves(&self) -> bool {
        self.observed == Observed::Running
            && !self.status.unready
            && matches!(self.status.health, Health::Unchecked | Health::Healthy)
    }

    /// `web.1`; in a global service the node stands for the number.
    pub fn name(&self) -> String {
        format!("{}.{}", self.service_name, self.slot)
    }
}

/// A place of a service that one task at a time fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// One of the replicas, from 1.
    Replica(u32),
    /// The one of this node, in a global service.
    Node(NodeId),
}

impl Slot {
    /// The only node that its tasks may run on, if there is but one.
    pub fn node(self) -> Option<NodeId> {
        match self {
            Self::Replica(_) => None,
            Self::Node(node) => Some(node),
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(number) => write!(f, "{number}"),
            Self::Node(node) => write!(f, "{node}"),
        }
    }
}

/// What the managers want of a task. Only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Desired {
    /// Be prepared, and wait.
    Ready,
    /// Run.
    Running,
    /// End, and stay as history.
    Shutdown,
    /// End, and be forgotten.
    Remove,
}

/// What has been seen of a task. Only moves forward; the last five are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Observed {
    /// Has no addresses yet.
    New,
    /// Has addresses and waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node knows of it.
    Accepted,
    /// Its image and file systems are being made ready.
    Preparing,
    /// Could start.
    Ready,
    /// Is being started, or not yet healthy.
    Starting,
    /// Runs, and is healthy where that is checked.
    Running,
    /// Exited with 0, by itself.
    Completed,
    /// Ended because it was asked to.
    Shutdown,
    /// Exited with another code, or could not be started.
    Failed,
    /// Could not be made ready.
    Rejected,
    /// Nobody will ever tell: its node was removed, or was away for too long.
    Orphaned,
}

impl Observed {
    /// Whether nothing can follow.
    pub fn is_terminal(self) -> bool {
        self >= Self::Completed
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Orphaned => "orphaned",
        })
    }
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Shutdown => "shutdown",
            Self::Remove => "remove",
        })
    }
}

/// More about what has been seen of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskStatus {
    /// When the observed state was reached.
    pub at: Timestamp,
    /// When it came to run, if it did: with a health check when it was found healthy, with a readiness probe when it
    /// was ready too.
    pub running_at: Option<Timestamp>,
    /// For people: what is going on.
    pub message: String,
    /// For people: what went wrong; empty if nothing did.
    pub error: String,
    /// How the (first) container ended, if it did: 0 to 255, 128 + n for signal n.
    pub exit_code: Option<i32>,
    /// The (first) container's process on its node, while it runs.
    pub pid: Option<u32>,
    /// What its health check has found.
    pub health: Health,
    /// Whether its readiness probe keeps it from being given connections.
    pub unready: bool,
}
