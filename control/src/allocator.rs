//! Numbers that must not be given twice: subnets, network ids, addresses and published ports.
//!
//! Services and networks get theirs when they are admitted, so that they are never without; tasks get
//! theirs here, in the leader's turn. What has ended gives its addresses back when that is applied.

use crate::ids::{NetworkId, ServiceId};
use crate::model::{
    Endpoint, EndpointMode, EndpointSpec, Network, Observed, PortSpec, Protocol, PublishedPort, ServiceSpec,
    Settings, Subnet, Task,
};
use crate::plan::Draft;
use crate::state::{Change, State};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Where ports come from that users did not choose.
pub const DYNAMIC_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The first network's id on the wire; lower ones are left to other uses of the same underlay.
pub const VNI_MIN: u32 = 4_096;
/// Network ids have 24 bits.
pub const VNI_MAX: u32 = 0x00ff_ffff;

/// Gives new tasks their addresses.
pub(crate) fn allocate(draft: &mut Draft) {
    let mut new: Vec<Arc<Task>> = draft
        .state()
        .restless()
        .filter(|task| task.observed == Observed::New && task.is_wanted())
        .cloned()
        .collect();
    new.sort_by_key(|task| task.meta.number);
    let mut used_up = BTreeSet::new();
    for task in new {
        match addresses(draft.state(), &task, &mut used_up) {
            Ok(addresses) => draft.propose(Change::Allocate { task: task.id, addresses }),
            Err(note) if note != task.note => draft.propose(Change::Note { task: task.id, note }),
            Err(_) => {}
        }
    }
}

/// In networks that were found to be `used_up` nothing is looked for again: nothing is given back meanwhile, and each
/// search would look at every address.
fn addresses(
    state: &State,
    task: &Task,
    used_up: &mut BTreeSet<NetworkId>,
) -> Result<Vec<(NetworkId, Ipv4Addr)>, String> {
    let mut addresses: Vec<(NetworkId, Ipv4Addr)> = Vec::new();
    for id in &task.spec.networks {
        let Some(network) = state.network(*id) else { return Err(format!("network {id} is gone")) };
        let found = match used_up.contains(id) {
            true => None,
            false => free_address(state, network, task.meta.number),
        };
        let Some(address) = found else {
            used_up.insert(*id);
            return Err(full(network));
        };
        addresses.push((*id, address));
    }
    Ok(addresses)
}

/// What to say of a network without free addresses.
pub(crate) fn full(network: &Network) -> String {
    format!("network {} has no free address left in {}", network.name, network.subnet)
}

/// A free address of a network, for the `number`th object of the cluster. Looking from a place that moves
/// on with every object keeps an address unused for as long as possible after it was given back, so that
/// late packets for its former holder reach nobody.
pub(crate) fn free_address(state: &State, network: &Network, number: u64) -> Option<Ipv4Addr> {
    // The first address names the network and the last is for broadcasts.
    let hosts = network.subnet.size().saturating_sub(2);
    let start = number.checked_rem(hosts)?;
    (0..hosts)
        .filter_map(|step| network.subnet.nth(1 + (start + step) % hosts))
        .find(|address| *address != network.gateway && state.owner_of(network.id, *address).is_none())
}

/// The addresses and ports of a service that is to be as `spec` says; what it has is kept where it can be.
///
/// # Errors
/// In words, if something is not to be had.
pub(crate) fn endpoint(
    state: &State,
    id: ServiceId,
    number: u64,
    spec: &ServiceSpec,
    current: &Endpoint,
) -> Result<Endpoint, String> {
    Ok(Endpoint {
        vips: match spec.endpoint.mode {
            EndpointMode::Vip => vips(state, &spec.task.networks, &current.vips, number)?,
            EndpointMode::Dnsrr => BTreeMap::new(),
        },
        ports: ports(state, id, &spec.endpoint, &current.ports)?,
    })
}

/// The virtual addresses of a service: those it has, where its networks are still the same.
pub(crate) fn vips(
    state: &State,
    networks: &[NetworkId],
    current: &BTreeMap<NetworkId, Ipv4Addr>,
    number: u64,
) -> Result<BTreeMap<NetworkId, Ipv4Addr>, String> {
    let vip = |id: &NetworkId| match (current.get(id), state.network(*id)) {
        (Some(vip), _) => Ok((*id, *vip)),
        (None, Some(network)) => {
            Ok((*id, free_address(state, network, number).ok_or_else(|| full(network))?))
        }
        (None, None) => Err(format!("network {id} is gone")),
    };
    networks.iter().map(vip).collect()
}

/// The ports of a service. Those the user did not choose stay as they are where the rest of the port is
/// still the same.
///
/// # Errors
/// Says which port is taken, and by whom; or that all are.
pub(crate) fn ports(
    state: &State,
    service: ServiceId,
    spec: &EndpointSpec,
    current: &[PublishedPort],
) -> Result<Vec<PublishedPort>, String> {
    let mut kept: Vec<PublishedPort> = current.to_vec();
    let mut taken: BTreeSet<(u16, Protocol)> = spec
        .ports
        .iter()
        .filter_map(|port| port.published.map(|published| (published, port.protocol)))
        .collect();
    let mut ports = Vec::new();
    for port in &spec.ports {
        let PortSpec { target, protocol, mode, proxy_protocol, .. } = *port;
        let at = |published| PublishedPort { published, target, protocol, mode, proxy_protocol };
        let published = match port.published {
            Some(published) => {
                if let Some(holder) = state.port_holder(service, &at(published)) {
                    let name = &holder.spec.name;
                    return Err(format!("port {published} is already in use by service {name}"));
                }
                published
            }
            None => {
                let same = |p: &PublishedPort| {
                    *p == at(p.published)
                        && DYNAMIC_PORTS.contains(&p.published)
                        && !taken.contains(&(p.published, protocol))
                };
                match kept.iter().position(same) {
                    Some(position) => kept.remove(position).published,
                    None => free_port(state, protocol, &taken)
                        .ok_or("all ports of 30000 to 32767 are in use; choose one with `published`")?,
                }
            }
        };
        taken.insert((published, protocol));
        ports.push(at(published));
    }
    Ok(ports)
}

/// The lowest port that no service has, this one included: another of its ports may want to keep it.
fn free_port(state: &State, protocol: Protocol, taken: &BTreeSet<(u16, Protocol)>) -> Option<u16> {
    let held: BTreeSet<_> = state
        .services()
        .flat_map(|service| &service.endpoint.ports)
        .map(|port| (port.published, port.protocol))
        .collect();
    DYNAMIC_PORTS
        .into_iter()
        .find(|port| !held.contains(&(*port, protocol)) && !taken.contains(&(*port, protocol)))
}

/// The first subnet of the pools that no network touches.
pub(crate) fn free_subnet(state: &State, settings: &Settings) -> Option<Subnet> {
    let prefix = settings.address_pool_prefix;
    let pools = settings.address_pools.iter().filter(|pool| pool.prefix() <= prefix && prefix <= 32);
    pools.into_iter().find_map(|pool| {
        let step = 1u64 << (32 - prefix);
        let mut offset = 0;
        while let Some(base) = pool.nth(offset) {
            let subnet = Subnet::new(base, prefix).ok()?;
            match state.networks().map(|network| network.subnet).find(|other| other.overlaps(subnet)) {
                None => return Some(subnet),
                // Jump behind what is in the way, which may be much larger than one step.
                Some(other) => {
                    let behind = u64::from(u32::from(other.base())) + other.size();
                    let here = u64::from(u32::from(pool.base()));
                    offset = behind.saturating_sub(here).next_multiple_of(step).max(offset + step);
                }
            }
        }
        None
    })
}

/// The lowest network id that no network has.
pub(crate) fn free_vni(state: &State) -> Option<u32> {
    let taken: BTreeSet<u32> = state.networks().map(|network| network.vni).collect();
    (VNI_MIN..=VNI_MAX).find(|vni| !taken.contains(vni))
}

/// The address containers of a new network use as their router: the first.
pub(crate) fn gateway(subnet: Subnet) -> Option<Ipv4Addr> {
    subnet.nth(1).filter(|_| subnet.size() >= 4)
}
