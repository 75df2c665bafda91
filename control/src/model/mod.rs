//! The objects of a cluster: plain data, without behaviour that needs a neighbour.

mod access;
mod cluster;
mod constraint;
mod container;
mod generic;
mod health;
mod network;
mod node;
mod placement;
mod profile;
mod service;
mod subnet;
mod task;
mod transition;

pub use access::{Allow, NotAllow};
pub use cluster::{Cluster, JoinTokens, Secret, Settings};
pub use constraint::{Constraint, ConstraintKey, ConstraintOp, NotAConstraint};
pub use container::{Bounds, ContainerSpec, EnvVar, IoBound, Mount, Resources, RestartCondition, Swap};
pub use container::{OnNodeLoss, RestartPolicy, TaskResources, TaskSpec};
pub use generic::{Claims, Need, NotGeneric, Stock, Stocks, stock_texts, stocks};
pub use health::{Health, HealthCheck, HealthSpec, HealthTest, HttpProbe, Probe, Readiness};
pub use network::Network;
pub use node::{Availability, Description, Node, NodeStatus, Role};
pub(crate) use placement::one_arch;
pub use placement::{Affinity, AffinityRule, Effect, Filling, NotPlacement, Placement, Platform, Preference};
pub use placement::{Taint, Toleration, WEIGHT_MAX};
pub use profile::{
    Device, DnsConfig, LOG_DRIVERS, LogDriver, Profile, Ulimit, Userns, cdi_name, is_namespaced,
};
pub use service::{Endpoint, EndpointMode, EndpointSpec, FailureAction, Mode, PortMode, PortSpec};
pub use service::{Protocol, PublishedPort, Revision, Service, ServiceSpec, UpdateConfig, UpdateOrder};
pub use service::{Rebalance, UpdateState, UpdateStatus};
pub use subnet::{NotASubnet, Subnet};
pub use task::{Desired, Observed, Slot, Task, TaskStatus};
pub use transition::{Actor, Step, Transition};

use crate::time::Timestamp;
use std::collections::BTreeMap;

/// Labels, as users write them.
pub type Labels = BTreeMap<String, String>;

/// What every object knows about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Which object of the cluster this was when it was created; orders objects by age.
    pub number: u64,
    /// Index of the log entry that last changed the object.
    pub version: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
