//! Overlay networks.

use super::{Labels, Meta, Subnet};
use crate::ids::NetworkId;
use std::net::Ipv4Addr;

/// A network that spans the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Never reused.
    pub id: NetworkId,
    /// Version and age.
    pub meta: Meta,
    /// Unique among networks.
    pub name: String,
    /// What tells its packets from another network's on the wire; 24 bits, from 4096 up.
    pub vni: u32,
    /// Where its tasks and virtual IPs have their addresses.
    pub subnet: Subnet,
    /// The address containers use as their router.
    pub gateway: Ipv4Addr,
    /// Largest packet a container may send, in bytes.
    pub mtu: u32,
    /// For people and tools.
    pub labels: Labels,
    /// Whether containers outside of services may join.
    pub attachable: bool,
    /// Whether containers are cut off from the world outside.
    pub internal: bool,
    /// Whether tasks take connections only from services that theirs allows.
    pub isolated: bool,
}
