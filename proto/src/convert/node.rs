//! Machines.

use super::{Invalid, Problem, choice, choices, meta, nested, parsed, parsed_each, texts};
use crate::v1 as pb;
use rswarm_control::model::{Availability, Description, Node, NodeStatus, Role, stock_texts, stocks};
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
            taints,
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
            taints: texts(taints),
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
            taints: parsed_each("taints", &wire.taints)?,
            status: choice::<pb::NodeStatus, _>("status", wire.status)?,
            status_since: Timestamp(wire.status_since_ms),
            message: wire.message,
            description: nested("description", Some(wire.description.unwrap_or_default()))?,
            session: wire.session,
        })
    }
}

impl From<&Description> for pb::NodeDescription {
    fn from(description: &Description) -> Self {
        let Description {
            capacity,
            os,
            arch,
            kernel,
            engine_version,
            warnings,
            labels,
            generic,
            devices,
            level,
        } = description;
        Self {
            capacity: Some(capacity.into()),
            os: os.clone(),
            arch: arch.clone(),
            kernel: kernel.clone(),
            engine_version: engine_version.clone(),
            warnings: warnings.clone(),
            labels: labels.clone(),
            generic: stock_texts(generic),
            devices: devices.iter().cloned().collect(),
            level: *level,
        }
    }
}

impl TryFrom<pb::NodeDescription> for Description {
    type Error = Invalid;

    fn try_from(wire: pb::NodeDescription) -> Result<Self, Invalid> {
        Ok(Self {
            capacity: wire.capacity.unwrap_or_default().into(),
            os: wire.os,
            arch: wire.arch,
            kernel: wire.kernel,
            engine_version: wire.engine_version,
            warnings: wire.warnings,
            labels: wire.labels,
            generic: stocks(&wire.generic)
                .map_err(|error| Invalid::new("generic", Problem::Malformed(error.to_string())))?,
            devices: wire.devices.into_iter().collect(),
            level: wire.level,
        })
    }
}
