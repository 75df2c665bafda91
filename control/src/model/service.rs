//! What users ask for.

use super::{Allow, Labels, Meta, TaskSpec};
use crate::ids::{NetworkId, ServiceId, TaskId};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// A service: some number of equal tasks behind one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Never reused.
    pub id: ServiceId,
    /// Version and age.
    pub meta: Meta,
    /// What is asked for now.
    pub spec: ServiceSpec,
    /// Who asked for it, as they called themselves; for people.
    pub author: String,
    /// Since when it is asked for.
    pub spec_since: Timestamp,
    /// Counts the specs this service has had, from 1.
    pub revision: u64,
    /// What was asked for before, oldest first; the last [`Service::PREVIOUS_MAX`].
    pub previous: Vec<Revision>,
    /// Counts the task specs this service has had, from 1: with the service's id it names one, so that
    /// tasks of equal `spec_version` share it in memory and on disk.
    pub spec_version: u64,
    /// Since when its task spec is asked for; a job's run begins then.
    pub version_since: Timestamp,
    /// When the run of a job was stopped because it took longer than it may.
    pub expired_at: Option<Timestamp>,
    /// Its addresses and ports.
    pub endpoint: Endpoint,
    /// How its last or current update goes, if it ever had one.
    pub update_status: Option<UpdateStatus>,
    /// While its tasks move to where they would be placed now.
    pub rebalance: Option<Rebalance>,
}

/// A service whose tasks move to where they would be placed now, some at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebalance {
    /// When that began.
    pub since: Timestamp,
    /// Who asked for it, as they called themselves.
    pub author: String,
    /// How many tasks may still be moved: where rules chase each other, it ends all the same.
    pub left: u32,
    /// Nobody asked for it: one task at a time, one service after another.
    pub gentle: bool,
    /// The tasks that make room at present, and why.
    pub moving: BTreeMap<TaskId, String>,
}

impl Service {
    /// Why a task makes room for another on a better node, if it does.
    pub fn moved(&self, task: TaskId) -> Option<&str> {
        self.rebalance.as_ref()?.moving.get(&task).map(String::as_str)
    }

    /// How many former specs are kept.
    pub const PREVIOUS_MAX: usize = 10;

    /// How tasks are replaced at present: as an update asks, or a rollback.
    pub fn pace(&self) -> &UpdateConfig {
        match &self.update_status {
            Some(status) if status.state.is_rollback() => &self.spec.rollback,
            Some(_) | None => &self.spec.update,
        }
    }

    /// When the present run of a job is stopped, if it has a deadline.
    pub fn job_due(&self) -> Option<Timestamp> {
        let deadline = self.spec.mode.deadline();
        (!deadline.is_zero()).then(|| self.version_since.after(deadline))
    }

    /// Whether every slot has been given the task spec that is asked for now, or would have been.
    pub fn is_settled(&self) -> bool {
        self.update_status.as_ref().is_none_or(|status| status.state.is_complete())
    }

    /// What an update that fails goes back to: the last spec that had been rolled out completely.
    pub fn last_good(&self) -> Option<&Revision> {
        let other = |revision: &&Revision| revision.spec.task != self.spec.task;
        let good = self.previous.iter().rev().filter(other).find(|revision| revision.settled);
        good.or_else(|| self.previous.iter().rev().find(other))
    }
}

/// A former spec of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its [`Service::revision`].
    pub number: u64,
    /// Who asked for it, as they called themselves.
    pub author: String,
    /// When it was asked for.
    pub since: Timestamp,
    /// When it was replaced by its successor.
    pub replaced_at: Timestamp,
    /// Whether it had been rolled out completely by then.
    pub settled: bool,
    /// What was asked for.
    pub spec: ServiceSpec,
}

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// A DNS label, unique among services.
    pub name: String,
    /// For people and tools; changing them restarts nothing.
    pub labels: Labels,
    /// How many tasks, and where.
    pub mode: Mode,
    /// What each task runs.
    pub task: Arc<TaskSpec>,
    /// How tasks are replaced when `task` changes.
    pub update: UpdateConfig,
    /// How tasks are replaced when `task` goes back to what it was. Its failure action is not
    /// [`FailureAction::Rollback`].
    pub rollback: UpdateConfig,
    /// How the service is reached.
    pub endpoint: EndpointSpec,
}

/// How many tasks a service has, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A number of tasks, anywhere.
    Replicated {
        /// How many.
        replicas: u32,
    },
    /// One task on each node that may have one.
    Global,
    /// A number of tasks that run to their end, anywhere.
    ReplicatedJob {
        /// How many shall come to a good end.
        completions: u32,
        /// How many are at work at the same time; 0 means all.
        max_concurrent: u32,
        /// How long after its beginning what is left of a run is stopped; zero waits for ever.
        deadline: Duration,
    },
    /// A task on each node that may have one, which runs to its end.
    GlobalJob {
        /// How long after its beginning what is left of a run is stopped, and no more nodes take part in it; zero
        /// waits for ever.
        deadline: Duration,
    },
}

impl Mode {
    /// How many tasks this asks for, or completions, where that is a number and not a matter of the nodes.
    pub fn replicas(&self) -> Option<u32> {
        match self {
            Self::Replicated { replicas } => Some(*replicas),
            Self::ReplicatedJob { completions, .. } => Some(*completions),
            Self::Global | Self::GlobalJob { .. } => None,
        }
    }

    /// Asks for another number of tasks, or completions. Whether this mode has such a number.
    pub fn resize(&mut self, number: u32) -> bool {
        match self {
            Self::Replicated { replicas: current } | Self::ReplicatedJob { completions: current, .. } => {
                *current = number;
                true
            }
            Self::Global | Self::GlobalJob { .. } => false,
        }
    }

    /// How many tasks may be at work at the same time.
    pub fn concurrency(&self) -> u32 {
        match self {
            Self::ReplicatedJob { completions, max_concurrent: 0, .. } => *completions,
            Self::ReplicatedJob { completions, max_concurrent, .. } => *max_concurrent.min(completions),
            Self::Replicated { .. } | Self::Global | Self::GlobalJob { .. } => u32::MAX,
        }
    }

    /// How long a run of a job may take; zero is for ever.
    pub fn deadline(&self) -> Duration {
        match self {
            Self::ReplicatedJob { deadline, .. } | Self::GlobalJob { deadline } => *deadline,
            Self::Replicated { .. } | Self::Global => Duration::ZERO,
        }
    }

    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Replicated { .. } => "replicated",
            Self::Global => "global",
            Self::ReplicatedJob { .. } => "replicated-job",
            Self::GlobalJob { .. } => "global-job",
        }
    }

    /// Whether its slots belong to nodes.
    pub fn is_global(&self) -> bool {
        matches!(self, Self::Global | Self::GlobalJob { .. })
    }

    /// Whether its tasks run to their end and are not replaced then.
    pub fn is_job(&self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob { .. })
    }
}

/// How tasks are replaced by newer ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateConfig {
    /// Slots replaced at a time; 0 means all.
    pub parallelism: u32,
    /// Pause after a slot before another is replaced.
    pub delay: Duration,
    /// A new task that ends within this time has failed. The first slots are watched for so long before
    /// any other is touched, and so are the last.
    pub monitor: Duration,
    /// Which of old and new comes first.
    pub order: UpdateOrder,
    /// What happens when new tasks fail.
    pub failure_action: FailureAction,
    /// Share of the slots to be replaced, in thousandths, that may fail before that happens.
    pub max_failure_permille: u16,
    /// If no slot comes to run for so long, the update is stopped, or rolled back where that is its failure
    /// action; zero waits for ever.
    pub progress_deadline: Duration,
    /// How long a new task must run before its slot counts as replaced.
    pub healthy_time: Duration,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            monitor: Duration::from_secs(5),
            order: UpdateOrder::StopFirst,
            failure_action: FailureAction::Pause,
            max_failure_permille: 0,
            progress_deadline: Duration::from_secs(600),
            healthy_time: Duration::ZERO,
        }
    }
}

impl UpdateConfig {
    /// How long a slot is left alone once its new task runs, before another is replaced.
    pub fn rest(&self) -> Duration {
        self.delay.max(self.healthy_time)
    }
}

/// Which of an old task and its successor comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateOrder {
    /// The old task has ended before the new one starts.
    StopFirst,
    /// The new task runs before the old one is stopped.
    StartFirst,
}

/// What happens when an update fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureAction {
    /// It stops where it is.
    Pause,
    /// It goes on.
    Continue,
    /// It goes back to the former spec.
    Rollback,
}

/// How an update goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateStatus {
    /// How far it is.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// Since when it goes on without a pause: failures from before are forgiven.
    pub since: Timestamp,
    /// When it was completed, if it was.
    pub completed_at: Option<Timestamp>,
    /// For people.
    pub message: String,
    /// The new task whose failure paused it, or made the cluster roll it back.
    pub failed_task: Option<TaskId>,
    /// Whether nobody asked for this rollback.
    pub automatic: bool,
    /// Whether it is paused because it did not come further within its progress deadline.
    pub timed_out: bool,
}

/// How far an update, or a rollback, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateState {
    /// Some slots are still to be replaced.
    Updating,
    /// Stopped, by a failure or by a user, until it is resumed or the task spec changes.
    Paused,
    /// Every slot runs the current spec.
    Completed,
    /// Some slots are still to go back.
    RollbackStarted,
    /// Stopped on the way back.
    RollbackPaused,
    /// Every slot runs what it ran before.
    RollbackCompleted,
}

impl UpdateState {
    /// Whether slots are being replaced.
    pub fn is_moving(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }

    /// Whether it was stopped.
    pub fn is_paused(self) -> bool {
        matches!(self, Self::Paused | Self::RollbackPaused)
    }

    /// Whether there is nothing left to do.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Completed | Self::RollbackCompleted)
    }

    /// Whether it goes back to a former spec.
    pub fn is_rollback(self) -> bool {
        matches!(self, Self::RollbackStarted | Self::RollbackPaused | Self::RollbackCompleted)
    }
}

/// How a service is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSpec {
    /// What its name resolves to.
    pub mode: EndpointMode,
    /// What is published, and how.
    pub ports: Vec<PortSpec>,
    /// Whose tasks may connect to those of this service. Where nobody is named, everybody on a network that is not
    /// isolated.
    pub allow: Vec<Allow>,
    /// Whether a client's connections to its virtual addresses go to the same task as long as that takes any.
    pub client_affinity: bool,
}

/// What a service's name resolves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointMode {
    /// One virtual address for each network.
    #[default]
    Vip,
    /// The addresses of its tasks, in another order each time.
    Dnsrr,
}

/// A port to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Port on the nodes; `None` takes a free one of 30000 to 32767.
    pub published: Option<u16>,
    /// Port in the container.
    pub target: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// On every node, or only where a task runs.
    pub mode: PortMode,
    /// Whether each connection begins with a header of the PROXY protocol, version 2, that says whose it is.
    pub proxy_protocol: bool,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Where a published port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortMode {
    /// On every node, for any of the service's tasks.
    Ingress,
    /// On the node of a task, for that task.
    Host,
}

impl Service {
    /// The networks on which others find it by its name.
    pub fn named_on(&self) -> Vec<NetworkId> {
        match self.spec.endpoint.mode {
            EndpointMode::Vip => self.endpoint.vips.keys().copied().collect(),
            EndpointMode::Dnsrr => self.spec.task.networks.clone(),
        }
    }
}

/// A service's addresses and ports, as allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// One for each of its networks.
    pub vips: BTreeMap<NetworkId, Ipv4Addr>,
    /// In the order of the spec.
    pub ports: Vec<PublishedPort>,
}

/// A published port, as allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// Port on the nodes.
    pub published: u16,
    /// Port in the container.
    pub target: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// On every node, or only where a task runs.
    pub mode: PortMode,
    /// Whether each connection begins with a header of the PROXY protocol, version 2, that says whose it is.
    pub proxy_protocol: bool,
}
