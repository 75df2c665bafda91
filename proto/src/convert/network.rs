//! Networks and subnets.

use super::{Invalid, Problem, meta, nested, parsed};
use crate::v1 as pb;
use rswarm_control::model::{Network, Subnet};
use std::net::Ipv4Addr;

impl From<&Subnet> for pb::Subnet {
    fn from(subnet: &Subnet) -> Self {
        Self { base: u32::from(subnet.base()), prefix: u32::from(subnet.prefix()) }
    }
}

impl TryFrom<pb::Subnet> for Subnet {
    type Error = Invalid;

    fn try_from(wire: pb::Subnet) -> Result<Self, Invalid> {
        let pb::Subnet { base, prefix } = wire;
        let subnet =
            u8::try_from(prefix).ok().and_then(|prefix| Self::new(Ipv4Addr::from(base), prefix).ok());
        subnet.ok_or_else(|| {
            let problem = format!("{}/{prefix} is not a subnet", Ipv4Addr::from(base));
            Invalid::new("prefix", Problem::Malformed(problem))
        })
    }
}

impl From<&Network> for pb::Network {
    fn from(network: &Network) -> Self {
        let Network { id, meta, name, vni, subnet, gateway, mtu, labels, attachable, internal, isolated } =
            network;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            name: name.clone(),
            vni: *vni,
            subnet: Some(subnet.into()),
            gateway: u32::from(*gateway),
            mtu: *mtu,
            labels: labels.clone(),
            attachable: *attachable,
            internal: *internal,
            isolated: *isolated,
        }
    }
}

impl TryFrom<pb::Network> for Network {
    type Error = Invalid;

    fn try_from(wire: pb::Network) -> Result<Self, Invalid> {
        Ok(Self {
            id: parsed("id", &wire.id)?,
            meta: meta(wire.meta),
            name: wire.name,
            vni: wire.vni,
            subnet: nested("subnet", wire.subnet)?,
            gateway: Ipv4Addr::from(wire.gateway),
            mtu: wire.mtu,
            labels: wire.labels,
            attachable: wire.attachable,
            internal: wire.internal,
            isolated: wire.isolated,
        })
    }
}
