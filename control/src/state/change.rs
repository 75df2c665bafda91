//! Changes: facts that the log carries and every manager applies.

use super::RequestId;
use crate::admission::Answer;
use crate::ids::{NetworkId, NodeId, RaftId, ServiceId, TaskId};
use crate::model::{
    Availability, Claims, Cluster, Description, Desired, Endpoint, Health, JoinTokens, Labels, Taint,
};
use crate::model::{Network, Node, NodeStatus, Observed, Role, Service, ServiceSpec, Settings, Slot, Task};
use crate::model::{Rebalance, UpdateState, UpdateStatus};
use crate::time::Timestamp;
use std::net::Ipv4Addr;

/// Changes that hold together: all are applied or none. One log entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal {
    /// In order; later ones see what earlier ones did.
    pub changes: Vec<Change>,
    /// When it was decided, by the leader's clock. The only time that [`State::apply`] knows.
    ///
    /// [`State::apply`]: crate::state::State::apply
    pub at: Timestamp,
}

/// One fact. A `version` is the one of the object that the decision was based on; where it has moved,
/// the proposal is stale. Other preconditions stand with the variant.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The cluster exists. First of all changes; `id` must be the one its seed gives.
    Init(Box<Cluster>),
    /// The join tokens are these.
    SetTokens {
        /// Of the cluster.
        version: u64,
        /// The new ones.
        tokens: JoinTokens,
    },
    /// The settings are these.
    SetSettings {
        /// Of the cluster.
        version: u64,
        /// The new ones.
        settings: Settings,
    },

    /// All managers understand the log up to this level, which is higher than the cluster's. None may say less.
    SetLevel {
        /// Of the cluster.
        version: u64,
        /// The new one.
        level: u32,
    },
    /// What else this proposal does carries out a request that may be repeated. Stale if it was carried out before.
    Once {
        /// Which.
        request: RequestId,
        /// What is answered, now and to repetitions.
        answer: Answer,
    },

    /// A machine joined. Its number must be the next, its id the one that number gives. A manager's
    /// `raft` is given by `apply`, whatever stands here; its meta but for the number likewise.
    CreateNode(Box<Node>),
    /// An administrator changed a node. A worker that becomes a manager is given a seat, a manager that
    /// becomes a worker loses it.
    UpdateNode {
        /// Which.
        node: NodeId,
        /// Of the node.
        version: u64,
        /// What it shall be.
        role: Role,
        /// Whether it may be given work.
        availability: Availability,
        /// All of its labels.
        labels: Labels,
        /// All of its taints.
        taints: Vec<Taint>,
    },
    /// A node's daemon has opened a session, so the node is ready. Older epochs are stale.
    OpenSession {
        /// Which.
        node: NodeId,
        /// Greater than in any earlier session of this node.
        epoch: u64,
        /// As the machine calls itself.
        hostname: String,
        /// Where other nodes reach it.
        addr: String,
        /// What it says of itself.
        description: Description,
    },
    /// A node is heard from, or is not.
    SetNodeStatus {
        /// Which.
        node: NodeId,
        /// Must still be the status that the decision was based on.
        was: NodeStatus,
        /// What it is now.
        status: NodeStatus,
        /// Why, for people.
        message: String,
    },
    /// A node is no longer a member, and its certificate no longer proves anything. Its tasks are orphaned.
    RemoveNode {
        /// Which.
        node: NodeId,
        /// Of the node.
        version: u64,
    },

    /// After the loss of a quorum one manager goes on alone. The others keep their role and lose their seats, until
    /// they come back without what they remember.
    StartAnew {
        /// Greater than the cluster's.
        incarnation: u64,
        /// The manager that goes on.
        node: NodeId,
        /// Where it is reached now, `ip:port`.
        addr: String,
    },
    /// A manager without a seat, or whose seat's log is lost, gets a new seat: the old one may have voted in ways that
    /// nobody remembers.
    Reseat {
        /// Which.
        node: NodeId,
        /// Must still be its seat.
        lost: Option<RaftId>,
    },

    /// A user asked for a service. Its number must be the next; its name, addresses and ports free.
    CreateService(Box<Service>),
    /// A user asked for something else. `spec_version` is raised if the task spec differs.
    UpdateService {
        /// Which.
        service: ServiceId,
        /// Of the service.
        version: u64,
        /// What is asked for now.
        spec: Box<ServiceSpec>,
        /// Its addresses and ports from now on.
        endpoint: Endpoint,
        /// Who asks, as they call themselves.
        author: String,
        /// Why this goes back to a former spec, if it does.
        rollback: Option<Rollback>,
    },
    /// An update of a service has come further.
    SetUpdateStatus {
        /// Which.
        service: ServiceId,
        /// Must still be the service's `spec_version`.
        spec_version: u64,
        /// Must still be how far it was.
        was: UpdateState,
        /// How far it is. An update that goes on after a pause does so from now on.
        status: UpdateStatus,
    },
    /// The tasks of a service move to where they would be placed now, or do not any more. Stale if some are to move of a
    /// service whose rebalance has ended, or if a gentle one is to begin while another goes on.
    SetRebalance {
        /// Which.
        service: ServiceId,
        /// Must still be the beginning of the rebalance that goes on; none if that does not matter, as for a user's
        /// wish.
        since: Option<Timestamp>,
        /// How far that is.
        rebalance: Option<Rebalance>,
    },
    /// The run of a job has taken longer than it may, and is stopped.
    ExpireJob {
        /// Which.
        service: ServiceId,
        /// Must still be the service's `spec_version`.
        spec_version: u64,
    },
    /// A user no longer wants a service. It is gone at once, with its name, addresses and ports; its
    /// tasks are marked for removal.
    RemoveService {
        /// Which.
        service: ServiceId,
        /// Of the service.
        version: u64,
    },

    /// A user asked for a network. Its number must be the next; its name, VNI and subnet free.
    CreateNetwork(Box<Network>),
    /// A user changed who may connect to whom on a network.
    UpdateNetwork {
        /// Which.
        network: NetworkId,
        /// Of the network.
        version: u64,
        /// Whether tasks take connections only from services that theirs allows.
        isolated: bool,
    },
    /// A user no longer wants a network, and nothing uses it.
    RemoveNetwork {
        /// Which.
        network: NetworkId,
    },

    /// A slot gets a task.
    CreateTask(NewTask),
    /// A new task has its addresses, which must be free, and waits for a node.
    Allocate {
        /// Which.
        task: TaskId,
        /// One for each of its networks.
        addresses: Vec<(NetworkId, Ipv4Addr)>,
    },
    /// A pending task has a node, which must be ready and active.
    Assign {
        /// Which.
        task: TaskId,
        /// Where.
        node: NodeId,
        /// The named things of the node that it is given, which nobody else may have.
        claims: Claims,
    },
    /// Why a task waits; empty when nothing holds it up.
    Note {
        /// Which.
        task: TaskId,
        /// For people.
        note: String,
    },
    /// Something else is wanted of a task. Going back is stale.
    SetDesired {
        /// Which.
        task: TaskId,
        /// What.
        desired: Desired,
    },
    /// A task that runs goes on with what its service asks for now, which differs only in its resources.
    Retune {
        /// Which.
        task: TaskId,
        /// Must still be the service's.
        spec_version: u64,
    },
    /// A node has seen something of a task. Never stale: what is not news, or not that node's to say,
    /// is passed over.
    Report(Report),
    /// A task without a node has ended, or one whose node will never tell.
    EndTask {
        /// Which.
        task: TaskId,
        /// Must be terminal.
        observed: Observed,
        /// Why, for people.
        message: String,
    },
    /// A task that has ended is forgotten.
    RemoveTask {
        /// Which.
        task: TaskId,
    },
}

impl Change {
    /// Whether it makes an object, whose number must be the next.
    pub fn takes_number(&self) -> bool {
        matches!(
            self,
            Self::CreateNode(_) | Self::CreateService(_) | Self::CreateNetwork(_) | Self::CreateTask(_)
        )
    }

    /// The object whose version it states, by the number of its id: of two such changes that were decided on at once,
    /// one is stale. The cluster itself is 0.
    pub fn versioned(&self) -> Option<u64> {
        match self {
            Self::UpdateNode { node, .. } | Self::RemoveNode { node, .. } => Some(node.0),
            Self::UpdateService { service, .. } | Self::RemoveService { service, .. } => Some(service.0),
            Self::UpdateNetwork { network, .. } => Some(network.0),
            Self::SetTokens { .. } | Self::SetSettings { .. } | Self::SetLevel { .. } => Some(0),
            _ => None,
        }
    }
}

/// Why a service goes back to a former spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// For people.
    pub message: String,
    /// The task whose failure led to it, if one did.
    pub failed_task: Option<TaskId>,
    /// Whether nobody asked for it.
    pub automatic: bool,
}

/// A task to be. What is not here is taken from its service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// The one that `number` gives.
    pub id: TaskId,
    /// Must be the next.
    pub number: u64,
    /// Whose it is.
    pub service: ServiceId,
    /// Which place it fills.
    pub slot: Slot,
    /// Must still be the service's.
    pub spec_version: u64,
    /// [`Desired::Ready`] or [`Desired::Running`].
    pub desired: Desired,
    /// When a task held at [`Desired::Ready`] may run.
    pub start_at: Timestamp,
    /// See [`Task::restarts`](crate::model::Task::restarts).
    pub restarts: u32,
    /// See [`Task::failures`](crate::model::Task::failures).
    pub failures: u32,
}

/// What a node has seen of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub task: TaskId,
    /// Who says so; only the task's own node is believed.
    pub node: NodeId,
    /// What was seen.
    pub observed: Observed,
    /// For people: what is going on.
    pub message: String,
    /// For people: what went wrong; empty if nothing did.
    pub error: String,
    /// How the (first) container ended, if it did.
    pub exit_code: Option<i32>,
    /// The (first) container's process, while it runs.
    pub pid: Option<u32>,
    /// What its health check has found.
    pub health: Health,
    /// What its readiness probe has found; nothing known leaves it as it was.
    pub ready: Option<bool>,
}

impl Report {
    /// Whether this says anything that is not known of the task, by the node that may say it.
    pub fn is_news(&self, task: &Task) -> bool {
        let status = &task.status;
        let differs = self.message != status.message
            || self.error != status.error
            || self.exit_code != status.exit_code
            || self.pid != status.pid
            || self.health != status.health
            || self.ready.is_some_and(|ready| ready == status.unready);
        task.node == Some(self.node)
            && !task.observed.is_terminal()
            && (self.observed > task.observed || self.observed == task.observed && differs)
    }
}
