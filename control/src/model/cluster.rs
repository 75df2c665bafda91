//! The cluster itself: its authority, its tokens, its settings.

use super::{Filling, Meta, Subnet};
use crate::ids::{ClusterId, NetworkId};
use crate::time::Timestamp;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

/// What there is one of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Drawn from the seed, like every other id.
    pub id: ClusterId,
    /// Version and age.
    pub meta: Meta,
    /// For people; not used to find anything.
    pub name: String,
    /// Random, given at init: what makes the ids of two clusters differ.
    pub id_seed: u64,
    /// The root certificate every node trusts.
    pub ca_cert_pem: String,
    /// The key that signs nodes' certificates. Managers only.
    pub ca_key_pem: Secret,
    /// What a machine must know to join.
    pub tokens: JoinTokens,
    /// What an administrator may change.
    pub settings: Settings,
    /// The network of services that name none.
    pub default_network: NetworkId,
    /// Raised when the cluster is rebuilt from a backup, so that nodes notice.
    pub incarnation: u64,
    /// What its managers understand. See [`crate::level`].
    pub level: u32,
}

/// The secret parts of the two join tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinTokens {
    /// Joins as a worker.
    pub worker: Secret,
    /// Joins as a manager.
    pub manager: Secret,
}

/// Cluster-wide settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ended tasks remembered for each slot.
    pub task_history_limit: u32,
    /// How long a node's certificate is valid.
    pub cert_expiry: Duration,
    /// Where networks without a subnet of their own get one.
    pub address_pools: Vec<Subnet>,
    /// Prefix length of the subnets cut from the pools.
    pub address_pool_prefix: u8,
    /// How nodes are filled with the tasks of services that do not say so themselves.
    pub placement: Filling,
    /// Whether services are rebalanced by themselves when a node has come back, and if so, after which moment: what came
    /// back before has been seen to.
    pub rebalance_since: Option<Timestamp>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            task_history_limit: 5,
            cert_expiry: Duration::from_secs(90 * 24 * 3600),
            address_pools: vec![Subnet::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("10.0.0.0/8 is a subnet")],
            address_pool_prefix: 24,
            placement: Filling::default(),
            rebalance_since: None,
        }
    }
}

/// A text that is never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
