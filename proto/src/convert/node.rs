//! Machines.

use super::{Invalid, Problem, choice, choices, meta, parsed};
use crate::v1 as pb;
use rswarm_control::model::{Availability, Description, Node, NodeStatus, Role};
use rswarm_control::{RaftId, Timestamp};

choices! {
    Role = Role { Worker, Manager }
    Availability = Availability { Active, Pause, Drain }
    NodeStatus = NodeStatus { Unknown, Ready, Suspect, Down, Left }
}

impl From<&Node> for pb::Node {
    fn from(node: &Node) -> Self {
        let Node {
            id,
            meta,
            hostname,
            addr,
            role,
            raft,
            availability,
            labels,
            status,
            status_since,
            message,
            description,
            session,
        } = node;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            hostname: hostname.clone(),
            addr: addr.clone(),
            role: pb::Role::from(*role).into(),
            raft_id: raft.map_or(0, |raft| raft.0),
            availability: pb::Availability::from(*availability).into(),
            labels: labels.clone(),
            status: pb::NodeStatus::from(*status).into(),
            status_since_ms: status_since.0,
            message: message.clone(),
            description: Some(description.into()),
            session: *session,
        }
    }
}

impl TryFrom<pb::Node> for Node {
    type Error = Invalid;

    fn try_from(wire: pb::Node) -> Result<Self, Invalid> {
        Ok(Self {
            id: parsed("id", &wire.id)?,
            meta: meta(wire.meta),
            hostname: wire.hostname,
            addr: wire.addr,
            role: choice::<pb::Role, _>("role", wire.role)?,
            raft: (wire.raft_id != 0).then_some(RaftId(wire.raft_id)),
            availability: choice::<pb::Availability, _>("availability", wire.availability)?,
            labels: wire.labels,
            status: choice::<pb::NodeStatus, _>("status", wire.status)?,
            status_since: Timestamp(wire.status_since_ms),
            message: wire.message,
            description: wire.description.unwrap_or_default().into(),
            session: wire.session,
        })
    }
}

impl From<&Description> for pb::NodeDescription {
    fn from(description: &Description) -> Self {
        let Description { capacity, os, arch, kernel, engine_version, warnings } = description;
        Self {
            capacity: Some(capacity.into()),
            os: os.clone(),
            arch: arch.clone(),
            kernel: kernel.clone(),
            engine_version: engine_version.clone(),
            warnings: warnings.clone(),
        }
    }
}

impl From<pb::NodeDescription> for Description {
    fn from(wire: pb::NodeDescription) -> Self {
        Self {
            capacity: wire.capacity.unwrap_or_default().into(),
            os: wire.os,
            arch: wire.arch,
            kernel: wire.kernel,
            engine_version: wire.engine_version,
            warnings: wire.warnings,
        }
    }
}
