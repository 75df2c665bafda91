//! Tasks, and what nodes report of them.

use super::{Invalid, Problem, attachments, attachments_out, choice, choices, meta, nested, parsed};
use super::{claims, claims_out, health, health_out};
use super::{each, parsed_or_none, required};
use crate::v1 as pb;
use rswarm_control::model::{Actor, Desired, Observed, Slot, Step, Task, TaskSpec, TaskStatus, Transition};
use rswarm_control::{NodeId, Report, Timestamp};
use std::sync::Arc;

choices! {
    Desired = Desired { Ready, Running, Shutdown, Remove }
    Observed = Observed {
        New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Completed, Shutdown, Failed,
        Rejected, Orphaned,
    }
}

impl From<&Task> for pb::Task {
    fn from(task: &Task) -> Self {
        Self { spec: Some(task.spec.as_ref().into()), ..task_without_spec(task) }
    }
}

/// A task whose spec is sent or written elsewhere.
pub(crate) fn task_without_spec(task: &Task) -> pb::Task {
    let Task {
        id,
        meta,
        service,
        service_name,
        slot,
        spec: _,
        spec_version,
        node,
        desired,
        observed,
        status,
        addresses,
        claims,
        note,
        start_at,
        restarts,
        failures,
        history,
    } = task;
    pb::Task {
        id: id.to_string(),
        meta: Some(meta.into()),
        service: service.to_string(),
        service_name: service_name.clone(),
        slot: Some(slot_out(*slot)),
        spec: None,
        spec_version: *spec_version,
        node: node.map(|node| node.to_string()).unwrap_or_default(),
        desired: pb::Desired::from(*desired).into(),
        observed: pb::Observed::from(*observed).into(),
        status: Some(status.into()),
        addresses: attachments_out(addresses),
        note: note.clone(),
        start_at_ms: start_at.0,
        restarts: *restarts,
        failures: *failures,
        claims: claims_out(claims),
        history: history.iter().map(Into::into).collect(),
    }
}

impl TryFrom<pb::Task> for Task {
    type Error = Invalid;

    fn try_from(mut wire: pb::Task) -> Result<Self, Invalid> {
        let spec: TaskSpec = nested("spec", wire.spec.take())?;
        task(wire, Arc::new(spec))
    }
}

/// A task whose spec comes from elsewhere; its own is not looked at.
pub(crate) fn task(wire: pb::Task, spec: Arc<TaskSpec>) -> Result<Task, Invalid> {
    Ok(Task {
        id: parsed("id", &wire.id)?,
        meta: meta(wire.meta),
        service: parsed("service", &wire.service)?,
        service_name: wire.service_name,
        slot: slot("slot", wire.slot)?,
        spec,
        spec_version: wire.spec_version,
        node: parsed_or_none("node", &wire.node)?,
        desired: choice::<pb::Desired, _>("desired", wire.desired)?,
        observed: choice::<pb::Observed, _>("observed", wire.observed)?,
        status: wire.status.unwrap_or_default().into(),
        addresses: attachments("addresses", wire.addresses)?,
        claims: claims(wire.claims),
        note: wire.note,
        start_at: Timestamp(wire.start_at_ms),
        restarts: wire.restarts,
        failures: wire.failures,
        history: each("history", wire.history)?,
    })
}

pub(crate) fn slot_out(slot: Slot) -> pb::Slot {
    use pb::slot::Kind;
    let kind = match slot {
        Slot::Replica(number) => Kind::Replica(number),
        Slot::Node(node) => Kind::Node(node.to_string()),
    };
    pb::Slot { kind: Some(kind) }
}

pub(crate) fn slot(field: &str, wire: Option<pb::Slot>) -> Result<Slot, Invalid> {
    use pb::slot::Kind;
    let kind = required(field, wire)?.kind;
    match required("kind", kind).map_err(|error| error.within(field))? {
        Kind::Replica(number) => Ok(Slot::Replica(number)),
        Kind::Node(node) => Ok(Slot::Node(parsed("node", &node).map_err(|error| error.within(field))?)),
    }
}

impl From<&Transition> for pb::Transition {
    fn from(transition: &Transition) -> Self {
        let Transition { to, at, index, by, why } = transition;
        let (observed, desired) = match to {
            Step::Observed(observed) => (pb::Observed::from(*observed), pb::Desired::Unspecified),
            Step::Desired(desired) => (pb::Observed::Unspecified, pb::Desired::from(*desired)),
        };
        Self {
            observed: observed.into(),
            desired: desired.into(),
            at_ms: at.0,
            index: *index,
            by_node: *by == Actor::Node,
            why: why.to_string(),
        }
    }
}

impl TryFrom<pb::Transition> for Transition {
    type Error = Invalid;

    fn try_from(wire: pb::Transition) -> Result<Self, Invalid> {
        let to = match wire.desired() {
            pb::Desired::Unspecified => Step::Observed(choice::<pb::Observed, _>("observed", wire.observed)?),
            _ => Step::Desired(choice::<pb::Desired, _>("desired", wire.desired)?),
        };
        let by = if wire.by_node { Actor::Node } else { Actor::Managers };
        Ok(Self { to, at: Timestamp(wire.at_ms), index: wire.index, by, why: wire.why.into() })
    }
}

impl From<&TaskStatus> for pb::TaskStatus {
    fn from(status: &TaskStatus) -> Self {
        let TaskStatus { at, running_at, message, error, exit_code, pid, health, unready } = status;
        Self {
            at_ms: at.0,
            running_at_ms: running_at.map(|at| at.0),
            message: message.clone(),
            error: error.clone(),
            exit_code: *exit_code,
            pid: *pid,
            health: health_out(*health),
            unready: *unready,
        }
    }
}

impl From<pb::TaskStatus> for TaskStatus {
    fn from(wire: pb::TaskStatus) -> Self {
        Self {
            at: Timestamp(wire.at_ms),
            running_at: wire.running_at_ms.map(Timestamp),
            message: wire.message,
            error: wire.error,
            exit_code: wire.exit_code,
            pid: wire.pid,
            health: health(wire.health),
            unready: wire.unready,
        }
    }
}

/// A report leaves without its node, which the session it is sent on proves.
impl From<&Report> for pb::TaskReport {
    fn from(report: &Report) -> Self {
        let Report { task, node: _, observed, message, error, exit_code, pid, health, ready } = report;
        Self {
            task_id: task.to_string(),
            observed: pb::Observed::from(*observed).into(),
            status: Some(pb::TaskStatus {
                at_ms: 0,
                running_at_ms: None,
                message: message.clone(),
                error: error.clone(),
                exit_code: *exit_code,
                pid: *pid,
                health: health_out(*health),
                unready: false,
            }),
            ready: *ready,
        }
    }
}

/// What `node` reports on its session. Times are the leader's to say, so those of the message are passed
/// over.
///
/// # Errors
/// If the message names no task, or a state that is none.
pub fn report(node: NodeId, wire: pb::TaskReport) -> Result<Report, Invalid> {
    let status = wire.status.unwrap_or_default();
    Ok(Report {
        task: parsed("task_id", &wire.task_id)?,
        node,
        observed: choice::<pb::Observed, _>("observed", wire.observed)?,
        message: status.message,
        error: status.error,
        exit_code: status.exit_code,
        pid: status.pid,
        health: health(status.health),
        ready: wire.ready,
    })
}
