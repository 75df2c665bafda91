//! What a node should hold. Generations are the session's affair: the sender sets them on the message,
//! the receiver reads them from it.

use super::{
    Invalid, attachments, attachments_out, choice, claims, claims_out, each, nested, parsed, parsed_each,
    slot, slot_out,
};
use crate::v1 as pb;
use rswarm_control::assignment::{AssignedTask, Assignment, Difference};
use rswarm_control::model::Network;
use std::sync::Arc;

impl From<&AssignedTask> for pb::AssignedTask {
    fn from(task: &AssignedTask) -> Self {
        let AssignedTask {
            id,
            service,
            service_name,
            slot,
            spec,
            desired,
            ended,
            started,
            unhealthy,
            addresses,
            claims,
        } = task;
        Self {
            id: id.to_string(),
            service: service.to_string(),
            service_name: service_name.clone(),
            slot: Some(slot_out(*slot)),
            spec: Some(spec.as_ref().into()),
            desired: pb::Desired::from(*desired).into(),
            ended: *ended,
            started: *started,
            unhealthy: *unhealthy,
            addresses: attachments_out(addresses),
            claims: claims_out(claims),
        }
    }
}

impl TryFrom<pb::AssignedTask> for AssignedTask {
    type Error = Invalid;

    fn try_from(wire: pb::AssignedTask) -> Result<Self, Invalid> {
        Ok(Self {
            id: parsed("id", &wire.id)?,
            service: parsed("service", &wire.service)?,
            service_name: wire.service_name,
            slot: slot("slot", wire.slot)?,
            spec: Arc::new(nested("spec", wire.spec)?),
            desired: choice::<pb::Desired, _>("desired", wire.desired)?,
            ended: wire.ended,
            started: wire.started,
            unhealthy: wire.unhealthy,
            addresses: attachments("addresses", wire.addresses)?,
            claims: claims(wire.claims),
        })
    }
}

impl From<&Assignment> for pb::Assignment {
    fn from(assignment: &Assignment) -> Self {
        let Assignment { tasks, networks } = assignment;
        Self {
            generation: 0,
            tasks: tasks.values().map(Into::into).collect(),
            networks: networks.values().map(|network| network.as_ref().into()).collect(),
        }
    }
}

impl TryFrom<pb::Assignment> for Assignment {
    type Error = Invalid;

    fn try_from(wire: pb::Assignment) -> Result<Self, Invalid> {
        let tasks: Vec<AssignedTask> = each("tasks", wire.tasks)?;
        Ok(Self {
            tasks: tasks.into_iter().map(|task| (task.id, task)).collect(),
            networks: networks(wire.networks)?.into_iter().map(|network| (network.id, network)).collect(),
        })
    }
}

impl From<&Difference> for pb::AssignmentDifference {
    fn from(difference: &Difference) -> Self {
        let Difference { tasks, removed_tasks, networks, removed_networks } = difference;
        Self {
            generation: 0,
            tasks: tasks.iter().map(Into::into).collect(),
            removed_tasks: removed_tasks.iter().map(ToString::to_string).collect(),
            networks: networks.iter().map(|network| network.as_ref().into()).collect(),
            removed_networks: removed_networks.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<pb::AssignmentDifference> for Difference {
    type Error = Invalid;

    fn try_from(wire: pb::AssignmentDifference) -> Result<Self, Invalid> {
        Ok(Self {
            tasks: each("tasks", wire.tasks)?,
            removed_tasks: parsed_each("removed_tasks", &wire.removed_tasks)?,
            networks: networks(wire.networks)?,
            removed_networks: parsed_each("removed_networks", &wire.removed_networks)?,
        })
    }
}

fn networks(wire: Vec<pb::Network>) -> Result<Vec<Arc<Network>>, Invalid> {
    let networks: Vec<Network> = each("networks", wire)?;
    Ok(networks.into_iter().map(Arc::new).collect())
}
