//! Requests about networks.

use super::{Answer, Refused, find_network, no_cluster, validate};
use crate::allocator;
use crate::ids::NetworkId;
use crate::level;
use crate::model::{Labels, Meta, Network, Subnet};
use crate::state::{Change, State};
use crate::time::Timestamp;
use std::net::Ipv4Addr;

/// What a container may send where the user does not say: what fits through the mesh without splitting.
pub const MTU: u32 = 1_400;

/// A network a user asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSpec {
    /// Unique among networks.
    pub name: String,
    /// For people and tools.
    pub labels: Labels,
    /// `None` takes the next of the cluster's address pools.
    pub subnet: Option<Subnet>,
    /// `None` takes the first address of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// Largest packet in bytes; `None` takes 1400.
    pub mtu: Option<u32>,
    /// Whether containers outside of services may join.
    pub attachable: bool,
    /// Whether containers are cut off from the world outside.
    pub internal: bool,
    /// Whether tasks take connections only from services that theirs allows.
    pub isolated: bool,
}

impl NetworkSpec {
    /// A network with every default.
    pub fn new(name: impl Into<String>) -> Self {
        let (labels, subnet, gateway, mtu) = (Labels::new(), None, None, None);
        let (attachable, internal, isolated) = (false, false, false);
        Self { name: name.into(), labels, subnet, gateway, mtu, attachable, internal, isolated }
    }
}

pub(super) fn create(
    state: &State,
    spec: &NetworkSpec,
    now: Timestamp,
) -> Result<(Vec<Change>, Answer), Refused> {
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    validate::name("network", &spec.name)?;
    validate::labels(spec.labels.keys())?;
    if spec.isolated {
        level::enforced(state)?;
    }
    if let Some(other) = state.network_named(&spec.name) {
        let (name, id) = (&spec.name, other.id);
        return Err(Refused::AlreadyExists(format!("a network named {name} exists already ({id})")));
    }
    let subnet = match spec.subnet {
        Some(subnet) => check_subnet(state, subnet)?,
        None => allocator::free_subnet(state, &cluster.settings).ok_or_else(|| {
            Refused::FailedPrecondition(
                "all subnets of the cluster's address pools are in use; give one".into(),
            )
        })?,
    };
    let vni = allocator::free_vni(state)
        .ok_or_else(|| Refused::FailedPrecondition("all network ids are in use".into()))?;
    let number = state.next_number();
    let id = NetworkId::mint(state.id_seed(), number);
    let network = build(id, number, spec, subnet, vni, now)?;
    Ok((vec![Change::CreateNetwork(Box::new(network))], Answer::Network(id)))
}

pub(super) fn build(
    id: NetworkId,
    number: u64,
    spec: &NetworkSpec,
    subnet: Subnet,
    vni: u32,
    now: Timestamp,
) -> Result<Network, Refused> {
    let gateway = spec.gateway.or_else(|| allocator::gateway(subnet));
    let gateway = gateway
        .filter(|gateway| subnet.contains(*gateway))
        .ok_or_else(|| Refused::Invalid(format!("the gateway must be an address of the subnet {subnet}")))?;
    let mtu = spec.mtu.unwrap_or(MTU);
    if !(576..=65_000).contains(&mtu) {
        return validate::invalid(format!("an MTU of {mtu} is not possible; give 576 to 65000"));
    }
    Ok(Network {
        id,
        meta: Meta { number, version: 0, created_at: now, updated_at: now },
        name: spec.name.clone(),
        vni,
        subnet,
        gateway,
        mtu,
        labels: spec.labels.clone(),
        attachable: spec.attachable,
        internal: spec.internal,
        isolated: spec.isolated,
    })
}

pub(super) fn update(state: &State, text: &str, isolated: bool) -> Result<(Vec<Change>, Answer), Refused> {
    let network = find_network(state, text)?;
    let answer = Answer::Network(network.id);
    if network.isolated == isolated {
        return Ok((Vec::new(), answer));
    }
    level::enforced(state)?;
    let version = network.meta.version;
    Ok((vec![Change::UpdateNetwork { network: network.id, version, isolated }], answer))
}

pub(super) fn remove(state: &State, text: &str) -> Result<(Vec<Change>, Answer), Refused> {
    let network = find_network(state, text)?;
    let name = &network.name;
    if state.cluster().is_some_and(|cluster| cluster.default_network == network.id) {
        return Err(Refused::FailedPrecondition(format!(
            "network {name} is the one that services join by default; it cannot be removed"
        )));
    }
    if let Some(user) = state.network_user(network.id) {
        return Err(Refused::FailedPrecondition(format!("network {name} is in use by {user}")));
    }
    Ok((vec![Change::RemoveNetwork { network: network.id }], Answer::Network(network.id)))
}

fn check_subnet(state: &State, subnet: Subnet) -> Result<Subnet, Refused> {
    if !(8..=29).contains(&subnet.prefix()) {
        return validate::invalid(format!("subnet {subnet}: give a prefix of 8 to 29 bits"));
    }
    let base = subnet.base();
    if base.is_loopback() || base.is_multicast() || base.is_link_local() || base.octets()[0] == 0 {
        return validate::invalid(format!("subnet {subnet} is reserved and cannot be used for containers"));
    }
    match state.networks().find(|other| other.subnet.overlaps(subnet)) {
        Some(other) => Err(Refused::FailedPrecondition(format!(
            "subnet {subnet} overlaps that of network {} ({})",
            other.name, other.subnet
        ))),
        None => Ok(subnet),
    }
}
