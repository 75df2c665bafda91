//! Machines.

use super::{Labels, Meta, Resources, Stocks, Taint};
use crate::ids::{NodeId, RaftId};
use crate::time::Timestamp;
use std::collections::BTreeSet;
use std::fmt;

/// A machine that is a member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Also what its certificate proves.
    pub id: NodeId,
    /// Version and age.
    pub meta: Meta,
    /// As the machine calls itself; not unique.
    pub hostname: String,
    /// Where other nodes reach it, `ip:port`.
    pub addr: String,
    /// What it shall be. Role changes of a running manager take effect when the consensus group follows.
    pub role: Role,
    /// Its seat in the consensus group, while it is a manager.
    pub raft: Option<RaftId>,
    /// Whether it may be given work.
    pub availability: Availability,
    /// Set by administrators, read by constraints.
    pub labels: Labels,
    /// Set by administrators; keep away tasks that do not tolerate them.
    pub taints: Vec<Taint>,
    /// Whether it is heard from.
    pub status: NodeStatus,
    /// When it took that status.
    pub status_since: Timestamp,
    /// Why it has that status, for people; empty when there is nothing to say.
    pub message: String,
    /// What the machine says of itself.
    pub description: Description,
    /// Counts its daemon's sessions; a report from an older one is not believed.
    pub session: u64,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs tasks.
    Worker,
    /// Runs tasks and keeps the cluster's state.
    Manager,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        })
    }
}

/// Whether a node may be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Availability {
    /// It may.
    Active,
    /// It keeps what it has and gets nothing new.
    Pause,
    /// What it has moves away.
    Drain,
}

/// Whether a node is heard from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeStatus {
    /// Not yet heard from since it joined.
    Unknown,
    /// Heard from.
    Ready,
    /// Silent for so long that no new connection is sent to its tasks.
    Suspect,
    /// Silent for so long that its tasks are replaced.
    Down,
    /// Said goodbye.
    Left,
}

impl NodeStatus {
    /// Whether its tasks are to be replaced.
    pub fn is_lost(self) -> bool {
        match self {
            Self::Down | Self::Left => true,
            Self::Unknown | Self::Ready | Self::Suspect => false,
        }
    }
}

/// What a machine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// What its tasks may reserve altogether.
    pub capacity: Resources,
    /// `linux`
    pub os: String,
    /// `x86_64`, `aarch64`, …
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Version of the daemon.
    pub engine_version: String,
    /// What the machine cannot do, for people: for example enforce memory limits.
    pub warnings: Vec<String>,
    /// As its daemon was configured, read by constraints as `engine.labels.KEY`.
    pub labels: Labels,
    /// What else its tasks may use, as its daemon was configured.
    pub generic: Stocks,
    /// The names of its devices in its CDI files, as `KIND=NAME`.
    pub devices: BTreeSet<String>,
    /// Up to which level its daemon understands the log; 0 where it does not say. See [`crate::level`].
    pub level: u32,
}
