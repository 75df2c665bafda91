//! What a task runs: a sandbox of one or more containers that share a network namespace.

use super::{HealthSpec, Labels, Placement, Profile, Readiness};
use crate::ids::NetworkId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Everything that, when it changes, makes a running task out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskSpec {
    /// Started in this order; one, for now.
    pub containers: Vec<ContainerSpec>,
    /// Of the task as a whole.
    pub resources: TaskResources,
    /// Whether and when an ended task is replaced.
    pub restart: RestartPolicy,
    /// Which nodes may run it.
    pub placement: Placement,
    /// The networks it joins. Admission fills in the default network where a user named none.
    pub networks: Vec<NetworkId>,
    /// Raised to replace tasks although nothing else changed.
    pub force: u64,
    /// What becomes of its place when its node is lost; nothing said is [`TaskSpec::node_loss`]'s to say.
    pub on_node_loss: Option<OnNodeLoss>,
}

/// What becomes of a task's place when its node is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnNodeLoss {
    /// It is given to another task at once. If the node was only cut off, both run for that time.
    Replace,
    /// It is given to another task when the first has certainly stopped: a node that cannot reach the managers
    /// stops such tasks by itself, and the managers wait until it must have.
    Fence,
    /// It is kept until the node is back or removed.
    Wait,
}

impl TaskSpec {
    /// What becomes of its place when its node is lost. What a task keeps in a volume of its node is nowhere else,
    /// so there it waits.
    pub fn node_loss(&self) -> OnNodeLoss {
        let mounts = self.containers.iter().flat_map(|container| &container.mounts);
        let local = mounts.into_iter().any(|mount| matches!(mount, Mount::Volume { .. }));
        self.on_node_loss.unwrap_or(if local { OnNodeLoss::Wait } else { OnNodeLoss::Replace })
    }

    /// Whether a running task of this spec can go on as one of the other: they differ in nothing but amounts.
    pub fn can_become(&self, other: &Self) -> bool {
        self.resources.can_become(&other.resources)
            && Self { resources: other.resources.clone(), ..self.clone() } == *other
    }

    /// Whether its node stops it when it cannot reach the managers.
    pub fn is_fenced(&self) -> bool {
        self.node_loss() == OnNodeLoss::Fence
    }
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Unique within the task.
    pub name: String,
    /// As the user wrote it.
    pub image: String,
    /// `sha256:…`, once resolved.
    pub image_digest: Option<String>,
    /// Replaces the image's entrypoint, unless empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments, unless empty.
    pub args: Vec<String>,
    /// Added to the image's, in this order.
    pub env: Vec<EnvVar>,
    /// Labels of the container, as opposed to those of the service.
    pub labels: Labels,
    /// Host name inside; by default the task's id.
    pub hostname: Option<String>,
    /// `user[:group]`, by name or number; by default the image's.
    pub user: Option<String>,
    /// Absolute; by default the image's.
    pub workdir: Option<String>,
    /// What is mounted where.
    pub mounts: Vec<Mount>,
    /// `SIGTERM`, `15`, …; by default the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// How long after that signal it is killed.
    pub stop_grace: Duration,
    /// Whether its root file system is mounted read-only.
    pub read_only: bool,
    /// Whether a small init process runs as its process 1.
    pub init: bool,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether and how it is asked if it is well; what is not is replaced.
    pub health: HealthSpec,
    /// Whether and how it is asked if it may be given connections.
    pub readiness: Option<Readiness>,
    /// How else it differs from what every container is.
    pub profile: Profile,
}

impl ContainerSpec {
    /// A container of `image` with every default.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            name: "main".into(),
            image: image.into(),
            image_digest: None,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            labels: Labels::new(),
            hostname: None,
            user: None,
            workdir: None,
            mounts: Vec::new(),
            stop_signal: None,
            stop_grace: Duration::from_secs(10),
            read_only: false,
            init: false,
            tty: false,
            health: HealthSpec::default(),
            readiness: None,
            profile: Profile::default(),
        }
    }
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    /// Not empty, no `=`.
    pub name: String,
    /// Anything without NUL.
    pub value: String,
}

/// What is mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A directory or file of the node.
    Bind {
        /// Absolute path on the node.
        source: String,
        /// Absolute path in the container.
        target: String,
        /// Whether the container may not write to it.
        read_only: bool,
    },
    /// A named volume of the node, made when it is first needed.
    Volume {
        /// Its name; may be a template.
        source: String,
        /// Absolute path in the container.
        target: String,
        /// Whether the container may not write to it.
        read_only: bool,
        /// Whether a new one stays empty, instead of getting what the image has at the target.
        no_copy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Absolute path in the container.
        target: String,
        /// Most it may hold; half of the node's memory by default.
        size_bytes: Option<u64>,
        /// Permission bits of its root; 0o1777 by default.
        mode: Option<u32>,
    },
}

impl Mount {
    /// Absolute path in the container.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. } | Self::Volume { target, .. } | Self::Tmpfs { target, .. } => target,
        }
    }
}

/// An amount of what a node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resources {
    /// Billionths of a processor.
    pub nano_cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// What a task may use and what is set aside for it. Zero means: not limited, nothing reserved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskResources {
    /// The most it may use.
    pub limits: Resources,
    /// What the scheduler sets aside for it.
    pub reservations: Resources,
    /// What else it needs of its node, by kind, and how many.
    pub generic: BTreeMap<String, u64>,
    /// What else it may not exceed.
    pub bounds: Bounds,
}

impl TaskResources {
    /// Whether a task with these can go on with the others as it runs: what it was given by name stays its own.
    pub fn can_become(&self, other: &Self) -> bool {
        self.generic == other.generic
    }
}

/// Limits that nothing is reserved of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Most processes and threads; zero is any number. Nothing said is 1024.
    pub pids: Option<u64>,
    /// What it may use of the node's swap space beyond its limit of memory.
    pub swap: Swap,
    /// Its share of a contended disk, from 10 to 1000, where others have 100 or their own; zero says nothing.
    pub io_weight: u16,
    /// How fast it may read and write, by device.
    pub io: Vec<IoBound>,
}

/// What a task with a limit of memory may use of its node's swap space. Without such a limit it may use any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    /// None.
    #[default]
    None,
    /// As much as there is.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
}

/// How fast a task may read from and write to a device of its node; zero is without limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoBound {
    /// Absolute path of the device on the node.
    pub device: String,
    /// Bytes read in a second.
    pub read_bps: u64,
    /// Bytes written in a second.
    pub write_bps: u64,
}

/// Whether and when an ended task is replaced. A task lost with its node is always replaced, at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Which endings count.
    pub condition: RestartCondition,
    /// Wait before the first restart; doubles up to five minutes while the task keeps failing.
    pub delay: Duration,
    /// Restarts of a slot after which it is given up; `None` never gives up.
    pub max_attempts: Option<u32>,
    /// How far back attempts are counted; zero: as far as is remembered.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        let (condition, delay) = (RestartCondition::Any, Duration::from_secs(5));
        Self { condition, delay, max_attempts: None, window: Duration::ZERO }
    }
}

/// After which endings a task is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartCondition {
    /// All.
    Any,
    /// All but a clean exit.
    OnFailure,
    /// None.
    None,
}
