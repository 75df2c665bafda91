//! Requests about services.

use super::{Answer, Refused, find_network, find_service, no_cluster, out_of_sequence, validate};
use crate::allocator;
use crate::ids::{NetworkId, ServiceId};
use crate::model::{Endpoint, Meta, Service, ServiceSpec, UpdateState, UpdateStatus};
use crate::state::{Change, Rollback, State};
use crate::time::Timestamp;
use std::sync::Arc;

type Admitted = Result<(Vec<Change>, Answer), Refused>;

pub(super) fn create(state: &State, spec: &ServiceSpec, networks: &[String], now: Timestamp) -> Admitted {
    let spec = complete(state, spec, networks, None)?;
    if let Some(other) = state.service_named(&spec.name) {
        let (name, id) = (&spec.name, other.id);
        return Err(Refused::AlreadyExists(format!("a service named {name} exists already ({id})")));
    }
    let number = state.next_number();
    let id = ServiceId::mint(state.id_seed(), number);
    let endpoint = endpoint(state, id, number, &spec, &Endpoint::default())?;
    let meta = Meta { number, version: 0, created_at: now, updated_at: now };
    let service = Service {
        id,
        meta,
        spec,
        author: String::new(),
        spec_since: now,
        revision: 1,
        previous: Vec::new(),
        spec_version: 1,
        version_since: now,
        expired_at: None,
        endpoint,
        update_status: None,
        rebalance: None,
    };
    Ok((vec![Change::CreateService(Box::new(service))], Answer::Service(id)))
}

pub(super) fn update(
    state: &State,
    text: &str,
    version: Option<u64>,
    spec: &ServiceSpec,
    networks: &[String],
) -> Admitted {
    let service = find_service(state, text)?;
    if version.is_some_and(|version| version != service.meta.version) {
        return Err(out_of_sequence("service", &service.spec.name));
    }
    if spec.name != service.spec.name {
        let name = &service.spec.name;
        return validate::invalid(format!(
            "service {name} cannot be renamed; create another and remove this one"
        ));
    }
    let (mode, asked) = (&service.spec.mode, &spec.mode);
    if std::mem::discriminant(mode) != std::mem::discriminant(asked) {
        return validate::invalid(format!(
            "service {} is {} and cannot become {}; create another and remove this one",
            spec.name,
            mode.name(),
            asked.name()
        ));
    }
    change(state, &service, complete(state, spec, networks, Some(&service.spec))?)
}

pub(super) fn scale(state: &State, text: &str, replicas: u32) -> Admitted {
    let service = find_service(state, text)?;
    let mut spec = service.spec.clone();
    if !spec.mode.resize(replicas) {
        return validate::invalid(format!(
            "service {} is {}: it has one task on each node that may have one, and cannot be scaled; choose its nodes \
             with constraints",
            spec.name,
            spec.mode.name()
        ));
    }
    validate::service(&spec)?;
    change(state, &service, spec)
}

pub(super) fn remove(state: &State, text: &str) -> Admitted {
    let service = find_service(state, text)?;
    let change = Change::RemoveService { service: service.id, version: service.meta.version };
    Ok((vec![change], Answer::Service(service.id)))
}

/// Goes back to a former spec: the last one, or the one of revision `to`.
pub(super) fn rollback(state: &State, text: &str, to: Option<u64>) -> Admitted {
    let service = find_service(state, text)?;
    let name = &service.spec.name;
    let former = match to {
        None => service.previous.last().ok_or_else(|| {
            Refused::FailedPrecondition(format!("service {name} does not have a previous spec"))
        })?,
        Some(to) => service.previous.iter().find(|revision| revision.number == to).ok_or_else(|| {
            let known: Vec<_> = service.previous.iter().map(|revision| revision.number.to_string()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            Refused::NotFound(format!(
                "service {name} does not remember revision {to}; it has {known}, and runs {}",
                service.revision
            ))
        })?,
    };
    if let Some(network) = former.spec.task.networks.iter().find(|network| state.network(**network).is_none())
    {
        let number = former.number;
        return Err(Refused::FailedPrecondition(format!(
            "network {network}, which revision {number} of service {name} joins, is gone"
        )));
    }
    let (mut changes, answer) = change(state, &service, former.spec.clone())?;
    for change in &mut changes {
        if let Change::UpdateService { rollback, .. } = change {
            let message = format!("rollback to revision {} in progress", former.number);
            *rollback = Some(Rollback { message, failed_task: None, automatic: false });
        }
    }
    Ok((changes, answer))
}

/// Stops an update where it is, or lets it go on.
pub(super) fn pause(state: &State, text: &str, pause: bool) -> Admitted {
    let service = find_service(state, text)?;
    let (name, answer) = (&service.spec.name, Answer::Service(service.id));
    let refused = |what: &str| Err(Refused::FailedPrecondition(format!("service {name} is not {what}")));
    let Some(status) = service.update_status.clone() else { return refused("being updated") };
    let (now, message) = match (status.state, pause) {
        (UpdateState::Updating, true) => (UpdateState::Paused, "update paused by request"),
        (UpdateState::RollbackStarted, true) => (UpdateState::RollbackPaused, "rollback paused by request"),
        (UpdateState::Paused, false) => (UpdateState::Updating, "update in progress"),
        (UpdateState::RollbackPaused, false) => (UpdateState::RollbackStarted, "rollback in progress"),
        (state, true) if state.is_paused() => return Ok((Vec::new(), answer)),
        (state, false) if state.is_moving() => return Ok((Vec::new(), answer)),
        (_, true) => return refused("being updated"),
        (_, false) => return refused("paused in an update"),
    };
    let failed_task = if pause { None } else { status.failed_task.filter(|_| status.automatic) };
    let was = status.state;
    let status =
        UpdateStatus { state: now, message: message.into(), failed_task, timed_out: false, ..status };
    let (service, spec_version) = (service.id, service.spec_version);
    Ok((vec![Change::SetUpdateStatus { service, spec_version, was, status }], answer))
}

fn change(state: &State, service: &Service, spec: ServiceSpec) -> Admitted {
    let answer = Answer::Service(service.id);
    let endpoint = endpoint(state, service.id, service.meta.number, &spec, &service.endpoint)?;
    if spec == service.spec && endpoint == service.endpoint {
        return Ok((Vec::new(), answer));
    }
    let (id, version, spec) = (service.id, service.meta.version, Box::new(spec));
    let (author, rollback) = (String::new(), None);
    Ok((vec![Change::UpdateService { service: id, version, spec, endpoint, author, rollback }], answer))
}

/// A valid spec, in place of the one before, with its networks filled in.
fn complete(
    state: &State,
    spec: &ServiceSpec,
    networks: &[String],
    before: Option<&ServiceSpec>,
) -> Result<ServiceSpec, Refused> {
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    let mut spec = spec.clone();
    let ids: Result<Vec<NetworkId>, Refused> =
        networks.iter().map(|text| find_network(state, text).map(|network| network.id)).collect();
    let task = Arc::make_mut(&mut spec.task);
    task.networks.extend(ids?);
    if task.networks.is_empty() {
        task.networks.push(cluster.default_network);
    }
    validate::service(&spec)?;
    crate::level::admits(state, &spec, before)?;
    match spec.task.networks.iter().find(|network| state.network(**network).is_none()) {
        Some(network) => Err(Refused::NotFound(format!("no such network: {network}"))),
        None => Ok(spec),
    }
}

fn endpoint(
    state: &State,
    id: ServiceId,
    number: u64,
    spec: &ServiceSpec,
    current: &Endpoint,
) -> Result<Endpoint, Refused> {
    allocator::endpoint(state, id, number, spec, current).map_err(Refused::FailedPrecondition)
}
