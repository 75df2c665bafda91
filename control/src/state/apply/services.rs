//! Changes to services and networks.

use super::Turn;
use crate::ids::{NetworkId, ServiceId};
use crate::model::{
    Desired, Endpoint, Network, PortMode, Rebalance, Revision, Service, ServiceSpec, UpdateState,
    UpdateStatus,
};
use crate::state::{EventKind, Object, Owner, Rollback, Stale, stale};
use crate::time::Timestamp;
use std::sync::Arc;

impl Turn {
    pub(super) fn create_service(&mut self, service: &Service) -> Result<(), Stale> {
        let meta = self.take_number(service.meta.number)?;
        if service.id != ServiceId::mint(self.state.id_seed(), meta.number) {
            return stale("the service's id is not the one its number gives");
        }
        self.check_service(service.id, &service.spec, &service.endpoint)?;
        let (revision, spec_version) = (1, 1);
        let (previous, update_status) = (Vec::new(), None);
        let (spec_since, version_since, expired_at) = (self.at, self.at, None);
        let service = Service {
            meta,
            spec_since,
            version_since,
            expired_at,
            revision,
            spec_version,
            previous,
            update_status,
            rebalance: None,
            ..service.clone()
        };
        self.state.index_service(&service);
        self.event(Object::Service(service.id), EventKind::Created);
        self.state.services.insert(service.id, Arc::new(service));
        Ok(())
    }

    pub(super) fn update_service(
        &mut self,
        id: ServiceId,
        version: u64,
        spec: &ServiceSpec,
        endpoint: &Endpoint,
        author: &str,
        rollback: Option<&Rollback>,
    ) -> Result<(), Stale> {
        let old = self.versioned_service(id, version)?;
        self.check_service(id, spec, endpoint)?;
        self.state.unindex_service(&old);
        let mut service = Service::clone(&old);
        service.previous.push(Revision {
            number: old.revision,
            author: old.author.clone(),
            since: old.spec_since,
            replaced_at: self.at,
            settled: old.is_settled(),
            spec: old.spec.clone(),
        });
        let surplus = service.previous.len().saturating_sub(Service::PREVIOUS_MAX);
        service.previous.drain(..surplus);
        service.revision += 1;
        if spec.task != old.spec.task {
            service.spec_version += 1;
            service.version_since = self.at;
            service.expired_at = None;
            // All of its tasks are placed anew.
            service.rebalance = None;
        }
        // A job is not updated, it is run anew.
        if spec.task != old.spec.task && !spec.mode.is_job() {
            let state = if rollback.is_some() { UpdateState::RollbackStarted } else { UpdateState::Updating };
            service.update_status = Some(UpdateStatus {
                state,
                started_at: self.at,
                since: self.at,
                completed_at: None,
                message: rollback.map_or("update in progress".into(), |rollback| rollback.message.clone()),
                failed_task: rollback.and_then(|rollback| rollback.failed_task),
                automatic: rollback.is_some_and(|rollback| rollback.automatic),
                timed_out: false,
            });
        }
        author.clone_into(&mut service.author);
        service.spec_since = self.at;
        service.spec = spec.clone();
        service.endpoint = endpoint.clone();
        self.state.index_service(&service);
        self.put_service(service);
        Ok(())
    }

    pub(super) fn set_update_status(
        &mut self,
        id: ServiceId,
        spec_version: u64,
        was: UpdateState,
        status: &UpdateStatus,
    ) -> Result<(), Stale> {
        let mut service = Service::clone(&*self.known_service(id)?);
        let before = service.update_status.as_ref().map(|status| status.state);
        if service.spec_version != spec_version || before != Some(was) {
            return stale(format!("service {} has changed", service.spec.name));
        }
        let goes_on = was.is_paused() && status.state.is_moving();
        let since = if goes_on { self.at } else { status.since };
        service.update_status = Some(UpdateStatus { since, ..status.clone() });
        self.put_service(service);
        Ok(())
    }

    pub(super) fn set_rebalance(
        &mut self,
        id: ServiceId,
        since: Option<Timestamp>,
        to: Option<&Rebalance>,
    ) -> Result<(), Stale> {
        let mut service = Service::clone(&*self.known_service(id)?);
        let current = service.rebalance.as_ref().map(|rebalance| rebalance.since);
        let begins_by_itself = since.is_none() && to.is_some_and(|to| to.gentle);
        if since.is_some_and(|since| current != Some(since)) || (begins_by_itself && current.is_some()) {
            return stale(format!("service {} has been asked to be rebalanced anew", service.spec.name));
        }
        // An update that was not known of when this was decided on has ended it.
        if service.rebalance.is_none() && to.is_some_and(|to| !to.moving.is_empty()) {
            return stale(format!("service {} is no longer rebalanced", service.spec.name));
        }
        service.rebalance = to.cloned();
        self.put_service(service);
        Ok(())
    }

    pub(super) fn expire_job(&mut self, id: ServiceId, spec_version: u64) -> Result<(), Stale> {
        let mut service = Service::clone(&*self.known_service(id)?);
        if service.spec_version != spec_version || service.expired_at.is_some() {
            return stale(format!("service {} has changed", service.spec.name));
        }
        service.expired_at = Some(self.at);
        self.put_service(service);
        Ok(())
    }

    pub(super) fn remove_service(&mut self, id: ServiceId, version: u64) -> Result<(), Stale> {
        let service = self.versioned_service(id, version)?;
        self.state.unindex_service(&service);
        self.state.services.remove(&id);
        self.event(Object::Service(id), EventKind::Removed);
        let tasks: Vec<_> = self.state.tasks_of(id).map(|task| task.id).collect();
        for task in tasks {
            self.set_desired(task, Desired::Remove)?;
        }
        Ok(())
    }

    pub(super) fn create_network(&mut self, network: &Network) -> Result<(), Stale> {
        let meta = self.take_number(network.meta.number)?;
        if network.id != NetworkId::mint(self.state.id_seed(), meta.number) {
            return stale("the network's id is not the one its number gives");
        }
        let clash = self.state.networks().find(|other| {
            other.name == network.name || other.vni == network.vni || other.subnet.overlaps(network.subnet)
        });
        if let Some(other) = clash {
            return stale(format!("network {} was there first", other.name));
        }
        self.state.network_names.insert(network.name.clone(), network.id);
        self.event(Object::Network(network.id), EventKind::Created);
        self.state.networks.insert(network.id, Arc::new(Network { meta, ..network.clone() }));
        Ok(())
    }

    pub(super) fn update_network(
        &mut self,
        id: NetworkId,
        version: u64,
        isolated: bool,
    ) -> Result<(), Stale> {
        let Some(network) = self.state.network(id).cloned() else {
            return stale(format!("network {id} is gone"));
        };
        if network.meta.version != version {
            return stale(format!("network {} has changed", network.name));
        }
        let mut network = Network { isolated, ..Network::clone(&network) };
        network.meta.version = self.index;
        network.meta.updated_at = self.at;
        self.event(Object::Network(id), EventKind::Updated);
        self.state.networks.insert(id, Arc::new(network));
        Ok(())
    }

    pub(super) fn remove_network(&mut self, id: NetworkId) -> Result<(), Stale> {
        let Some(network) = self.state.network(id).cloned() else {
            return stale(format!("network {id} is gone"));
        };
        if self.state.cluster().is_some_and(|cluster| cluster.default_network == id) {
            return stale("it is the default network");
        }
        if let Some(user) = self.state.network_user(id) {
            return stale(format!("network {} is used by {user}", network.name));
        }
        self.state.networks.remove(&id);
        self.state.network_names.remove(&network.name);
        self.event(Object::Network(id), EventKind::Removed);
        Ok(())
    }

    /// Whether name, networks, addresses and ports of a service are there to be taken.
    fn check_service(&self, id: ServiceId, spec: &ServiceSpec, endpoint: &Endpoint) -> Result<(), Stale> {
        if self.state.service_named(&spec.name).is_some_and(|other| other.id != id) {
            return stale(format!("the name {} was taken", spec.name));
        }
        for network in &spec.task.networks {
            if self.state.network(*network).is_none() {
                return stale(format!("network {network} is gone"));
            }
        }
        for (network, vip) in &endpoint.vips {
            match self.state.owner_of(*network, *vip) {
                None => {}
                Some(Owner::Service(owner)) if owner == id => {}
                Some(Owner::Service(_) | Owner::Task(_)) => {
                    return stale(format!("the address {vip} was taken"));
                }
            }
        }
        for port in &endpoint.ports {
            if let Some(other) = self.state.port_holder(id, port) {
                return stale(format!("port {} was taken by {}", port.published, other.spec.name));
            }
        }
        let twice = endpoint.ports.iter().enumerate().any(|(i, port)| {
            let same = |p: &crate::model::PublishedPort| {
                p.published == port.published && p.protocol == port.protocol
            };
            endpoint.ports[..i].iter().any(same)
        });
        if twice { stale("a port is published twice") } else { Ok(()) }
    }

    fn known_service(&self, id: ServiceId) -> Result<Arc<Service>, Stale> {
        self.state.services.get(&id).cloned().ok_or_else(|| Stale(format!("service {id} is gone")))
    }

    fn versioned_service(&self, id: ServiceId, version: u64) -> Result<Arc<Service>, Stale> {
        let service = self.known_service(id)?;
        if service.meta.version == version {
            Ok(service)
        } else {
            stale(format!("service {} has changed", service.spec.name))
        }
    }

    fn put_service(&mut self, mut service: Service) {
        service.meta.version = self.index;
        service.meta.updated_at = self.at;
        self.event(Object::Service(service.id), EventKind::Updated);
        self.state.services.insert(service.id, Arc::new(service));
    }
}

impl crate::state::State {
    /// Another service than `id` that stands in the way of publishing `port`. Ports published on tasks'
    /// nodes only do not stand in each other's way; the scheduler keeps them apart.
    pub fn port_holder(&self, id: ServiceId, port: &crate::model::PublishedPort) -> Option<&Arc<Service>> {
        self.services().filter(|service| service.id != id).find(|service| {
            service.endpoint.ports.iter().any(|held| {
                held.published == port.published
                    && held.protocol == port.protocol
                    && (held.mode == PortMode::Ingress || port.mode == PortMode::Ingress)
            })
        })
    }

    /// Who uses a network, for people.
    pub fn network_user(&self, network: NetworkId) -> Option<String> {
        let service = self.services().find(|service| service.spec.task.networks.contains(&network));
        if let Some(service) = service {
            return Some(format!("service {}", service.spec.name));
        }
        let mut holders = self.addresses.range((network, std::net::Ipv4Addr::UNSPECIFIED)..);
        match holders.next() {
            Some(((of, _), Owner::Task(task))) if *of == network => Some(format!("task {task}")),
            _ => None,
        }
    }
}
