//! Requests about services.

use super::{Answer, Refused, find_network, find_service, no_cluster, out_of_sequence, validate};
use crate::allocator;
use crate::ids::{NetworkId, ServiceId};
use crate::model::{Endpoint, Meta, Mode, Service, ServiceSpec};
use crate::state::{Change, State};
use crate::time::Timestamp;
use std::sync::Arc;

type Admitted = Result<(Vec<Change>, Answer), Refused>;

pub(super) fn create(state: &State, spec: &ServiceSpec, networks: &[String], now: Timestamp) -> Admitted {
    let spec = complete(state, spec, networks)?;
    if let Some(other) = state.service_named(&spec.name) {
        let (name, id) = (&spec.name, other.id);
        return Err(Refused::AlreadyExists(format!("a service named {name} exists already ({id})")));
    }
    let number = state.next_number();
    let id = ServiceId::mint(state.id_seed(), number);
    let endpoint = endpoint(state, id, number, &spec, &Endpoint::default())?;
    let meta = Meta { number, version: 0, created_at: now, updated_at: now };
    let (previous, update_status) = (Vec::new(), None);
    let service = Service { id, meta, spec, revision: 1, previous, spec_version: 1, endpoint, update_status };
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
    change(state, &service, complete(state, spec, networks)?)
}

pub(super) fn scale(state: &State, text: &str, replicas: u32) -> Admitted {
    let service = find_service(state, text)?;
    let mut spec = service.spec.clone();
    match &mut spec.mode {
        Mode::Replicated { replicas: current } => *current = replicas,
    }
    validate::service(&spec)?;
    change(state, &service, spec)
}

pub(super) fn remove(state: &State, text: &str) -> Admitted {
    let service = find_service(state, text)?;
    let change = Change::RemoveService { service: service.id, version: service.meta.version };
    Ok((vec![change], Answer::Service(service.id)))
}

fn change(state: &State, service: &Service, spec: ServiceSpec) -> Admitted {
    let answer = Answer::Service(service.id);
    let endpoint = endpoint(state, service.id, service.meta.number, &spec, &service.endpoint)?;
    if spec == service.spec && endpoint == service.endpoint {
        return Ok((Vec::new(), answer));
    }
    let (id, version, spec) = (service.id, service.meta.version, Box::new(spec));
    Ok((vec![Change::UpdateService { service: id, version, spec, endpoint }], answer))
}

/// A valid spec with its networks filled in.
fn complete(state: &State, spec: &ServiceSpec, networks: &[String]) -> Result<ServiceSpec, Refused> {
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
    let vips = allocator::vips(state, &spec.task.networks, &current.vips, number);
    let ports = allocator::ports(state, id, &spec.endpoint, &current.ports);
    Ok(Endpoint {
        vips: vips.map_err(Refused::FailedPrecondition)?,
        ports: ports.map_err(Refused::FailedPrecondition)?,
    })
}
