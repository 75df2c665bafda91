//! What users ask for.

use super::{Labels, Meta, TaskSpec};
use crate::ids::{NetworkId, ServiceId, TaskId};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// A service: some number of equal tasks behind one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Never reused.
    pub id: ServiceId,
    /// Version and age.
    pub meta: Meta,
    /// What is asked for now.
    pub spec: ServiceSpec,
    /// Counts the specs this service has had, from 1.
    pub revision: u64,
    /// What was asked for before, oldest first; the last [`Service::PREVIOUS_MAX`].
    pub previous: Vec<Revision>,
    /// Counts the task specs this service has had, from 1: with the service's id it names one, so that
    /// tasks of equal `spec_version` share it in memory and on disk.
    pub spec_version: u64,
    /// Its addresses and ports.
    pub endpoint: Endpoint,
    /// How its last or current update goes, if it ever had one.
    pub update_status: Option<UpdateStatus>,
}

impl Service {
    /// How many former specs are kept.
    pub const PREVIOUS_MAX: usize = 10;
}

/// A former spec of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// Its [`Service::revision`].
    pub number: u64,
    /// When it was replaced by its successor.
    pub replaced_at: Timestamp,
    /// What was asked for.
    pub spec: ServiceSpec,
}

/// What a user asks for.
#[derive(Clone, Debug, PartialEq)]
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
}

impl Mode {
    /// How many tasks this asks for.
    pub fn replicas(&self) -> u32 {
        match self {
            Self::Replicated { replicas } => *replicas,
        }
    }
}

/// How tasks are replaced by newer ones. Slots are replaced one at a time, old task first; the other
/// orders and numbers are kept for the rolling updater.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateConfig {
    /// Slots replaced at a time; 0 means all.
    pub parallelism: u32,
    /// Pause between slots.
    pub delay: Duration,
    /// How long a new task is watched before it counts as good.
    pub monitor: Duration,
    /// Which of old and new comes first.
    pub order: UpdateOrder,
    /// What happens when new tasks fail.
    pub failure_action: FailureAction,
    /// Share of slots, in thousandths, that may fail before that happens.
    pub max_failure_permille: u16,
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
        }
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
    /// When it was completed, if it was.
    pub completed_at: Option<Timestamp>,
    /// For people.
    pub message: String,
    /// The new task whose failure paused it.
    pub failed_task: Option<TaskId>,
}

/// How far an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateState {
    /// Some slots are still to be replaced.
    Updating,
    /// Stopped by a failure; the next change of the spec starts anew.
    Paused,
    /// Every slot runs the current spec.
    Completed,
}

/// How a service is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSpec {
    /// What its name resolves to.
    pub mode: EndpointMode,
    /// What is published, and how.
    pub ports: Vec<PortSpec>,
}

/// What a service's name resolves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointMode {
    /// One virtual address for each network.
    #[default]
    Vip,
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
}
