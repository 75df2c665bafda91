//! Requests about the cluster as a whole, and its beginning.

use super::network::{self, NetworkSpec};
use super::node::{self, Join};
use super::{Answer, Refused, no_cluster, out_of_sequence, validate};
use crate::allocator;
use crate::ids::{ClusterId, NetworkId, NodeId};
use crate::level;
use crate::model::{Availability, Cluster, Description, JoinTokens, Meta, Role, Secret, Settings, Subnet};
use crate::state::{Change, State};
use crate::time::Timestamp;
use std::time::Duration;

/// The network of services that name none. With it every service has a virtual IP and a name, and reaches
/// every other that did not ask to be apart.
pub const DEFAULT_NETWORK: &str = "default";

/// Every service without a network of its own lives in the default network, so it is larger than others
/// where the pool allows: this many bits of prefix.
const DEFAULT_NETWORK_PREFIX: u8 = 16;

/// What a cluster begins with. All secrets and `id_seed` are random.
#[derive(Clone, Debug, PartialEq)]
pub struct Init {
    /// For people.
    pub name: String,
    /// What all ids are mixed from.
    pub id_seed: u64,
    /// The root certificate.
    pub ca_cert_pem: String,
    /// Its key.
    pub ca_key_pem: Secret,
    /// What machines must know to join.
    pub tokens: JoinTokens,
    /// Usually the defaults.
    pub settings: Settings,
    /// The founder's host name.
    pub hostname: String,
    /// Where other nodes reach the founder, `ip:port`.
    pub addr: String,
    /// Whether the founder may be given work.
    pub availability: Availability,
    /// What the founder says of itself.
    pub description: Description,
}

/// The ids that a cluster of this seed and its founder will have: its certificates are made before the
/// cluster is. The founder's seat in the consensus group is [`RaftId::FIRST`](crate::RaftId::FIRST).
pub fn first_ids(id_seed: u64) -> (ClusterId, NodeId) {
    (ClusterId::mint(id_seed, 0), NodeId::mint(id_seed, 1))
}

/// The changes with which a cluster begins: itself, its founder, its default network.
///
/// # Errors
/// If the state is not empty, or a setting or address cannot be.
pub fn init(state: &State, init: &Init, now: Timestamp) -> Result<(Vec<Change>, Answer), Refused> {
    if state.cluster().is_some() {
        return Err(Refused::FailedPrecondition(
            "this machine is part of a cluster already; run `rswarm leave --force` first".into(),
        ));
    }
    check_settings(&init.settings)?;
    let (id, founder) = first_ids(init.id_seed);
    let default_network = NetworkId::mint(init.id_seed, 2);
    let meta = Meta { number: 0, version: 0, created_at: now, updated_at: now };
    let cluster = Cluster {
        id,
        meta,
        name: init.name.clone(),
        id_seed: init.id_seed,
        ca_cert_pem: init.ca_cert_pem.clone(),
        ca_key_pem: init.ca_key_pem.clone(),
        tokens: init.tokens.clone(),
        settings: init.settings.clone(),
        default_network,
        incarnation: 1,
        level: level::of(&init.description).min(level::LATEST),
    };
    let join = Join {
        secret: init.tokens.manager.clone(),
        hostname: init.hostname.clone(),
        addr: init.addr.clone(),
        availability: init.availability,
        description: init.description.clone(),
    };
    let node = node::build(founder, 1, Role::Manager, &join, now)?;
    let pool = init.settings.address_pools[0];
    let prefix = pool.prefix().max(DEFAULT_NETWORK_PREFIX.min(init.settings.address_pool_prefix));
    let subnet = Subnet::new(pool.base(), prefix).expect("a pool begins where a smaller block may begin");
    let spec = NetworkSpec { attachable: true, ..NetworkSpec::new(DEFAULT_NETWORK) };
    let network = network::build(default_network, 2, &spec, subnet, allocator::VNI_MIN, now)?;
    let changes = vec![
        Change::Init(Box::new(cluster)),
        Change::CreateNode(Box::new(node)),
        Change::CreateNetwork(Box::new(network)),
    ];
    Ok((changes, Answer::Node(founder)))
}

pub(super) fn rotate_token(
    state: &State,
    role: Role,
    secret: &Secret,
) -> Result<(Vec<Change>, Answer), Refused> {
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    if secret.0.len() < 16 {
        return validate::invalid("a join secret of less than 16 characters could be guessed");
    }
    let mut tokens = cluster.tokens.clone();
    match role {
        Role::Worker => tokens.worker = secret.clone(),
        Role::Manager => tokens.manager = secret.clone(),
    }
    if tokens.worker == tokens.manager {
        return validate::invalid("the two join tokens must differ");
    }
    Ok((vec![Change::SetTokens { version: cluster.meta.version, tokens }], Answer::Done))
}

pub(super) fn update_settings(
    state: &State,
    version: Option<u64>,
    settings: &Settings,
) -> Result<(Vec<Change>, Answer), Refused> {
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    if version.is_some_and(|version| version != cluster.meta.version) {
        return Err(out_of_sequence("cluster", &cluster.name));
    }
    check_settings(settings)?;
    if settings.rebalance_since.is_some() && state.level() < level::REBALANCE {
        return Err(Refused::FailedPrecondition(
            "tasks can be rebalanced when all managers run this version: upgrade the others first".into(),
        ));
    }
    if *settings == cluster.settings {
        return Ok((Vec::new(), Answer::Done));
    }
    let change = Change::SetSettings { version: cluster.meta.version, settings: settings.clone() };
    Ok((vec![change], Answer::Done))
}

fn check_settings(settings: &Settings) -> Result<(), Refused> {
    if settings.cert_expiry < Duration::from_secs(3600) {
        return validate::invalid("certificates must be valid for at least an hour");
    }
    if settings.task_history_limit > 1000 {
        return validate::invalid("a task history of more than 1000 a slot is not possible");
    }
    let prefix = settings.address_pool_prefix;
    let Some(first) = settings.address_pools.first() else {
        return validate::invalid("at least one address pool is needed, for example 10.0.0.0/8");
    };
    let small = settings.address_pools.iter().find(|pool| pool.prefix() > prefix);
    if !(8..=29).contains(&prefix) || small.is_some() {
        return validate::invalid(format!(
            "address pool {}: subnets of /{prefix} cannot be cut from it; give a mask length of its prefix to 29",
            small.unwrap_or(first)
        ));
    }
    Ok(())
}
