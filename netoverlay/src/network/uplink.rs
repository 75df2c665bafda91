//! The way from a network's containers to the world: a veth to the host, and masquerading.
//!
//! Optional, and the only thing the overlay puts into the host's namespace.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use super::{failed, short_name};
use crate::device::{
    Error, Result,
    link::{Links, Route},
    netns::Netns,
    nft::{
        Base, Chain, ChainKind, Family, Field, Hook, Nft, Rule, Ruleset, Statement, Table, Value, priority,
    },
};

/// The network's end of the veth.
const NEAR: &str = "up0";
/// What the host's ends begin with.
const HOST_PREFIX: &str = "ru";
/// The host's table, and that of the network.
const HOST_TABLE: &str = "rswarm";
const NEAR_TABLE: &str = "rswarm_uplink";
/// A table without chains that remembers that the host did not forward packets before.
const WAS_OFF_TABLE: &str = "rswarm_forward_was_off";
/// Addresses between host and networks, in pairs: 169.254.128.0/19, which no address of clouds is in.
const POOL: Ipv4Addr = Ipv4Addr::new(169, 254, 128, 0);
const POOL_PREFIX_LEN: u8 = 19;
const FORWARD: &str = "net/ipv4/ip_forward";

/// The uplink of one network.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// The host's namespace.
    pub host: Netns,
    /// The network's id, unique on this node: the link is named after it.
    pub id: String,
}

/// What stands in an uplink's way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkReport {
    /// Chains of the host that drop forwarded packets by policy, as `table ip filter chain FORWARD`. Their
    /// owner must accept links whose names begin with `ru`; an accept in a table of ours could not.
    pub dropped_by: Vec<String>,
}

impl Uplink {
    /// Makes the uplink of the network whose links are `near`, or mends it.
    pub async fn ensure(&self, near: &Links, mtu: u32) -> Result<UplinkReport> {
        let host = Links::open(&self.host)?;
        let name = self.link_name();
        host.ensure_veth(&name, mtu, NEAR, near).await?;
        let (host_end, near_end) = match pair_of(&host, &name).await? {
            Some(pair) => pair,
            None => self.free_pair(&host).await?,
        };
        host.ensure_address(&name, host_end.into(), 31).await?;
        near.ensure_address(NEAR, near_end.into(), 31).await?;
        host.set_up(&name).await?;
        near.set_up(NEAR).await?;
        near.ensure_route(&Route::default_via(host_end.into())).await?;

        Nft::open(near.netns())?.ensure(&masquerade(
            NEAR_TABLE,
            Statement::Is(Field::OutputLink, Value::Link(NEAR.to_owned())),
        ))?;
        let nft = Nft::open(&self.host)?;
        if self.host.sysctl(FORWARD)? == "0" {
            nft.replace(&Ruleset { tables: vec![Table::new(Family::Ip, WAS_OFF_TABLE)] })?;
            self.host.set_sysctls(&[(FORWARD, "1")])?;
        }
        nft.ensure(&masquerade(
            HOST_TABLE,
            Statement::Within(Field::IpSource, POOL.into(), POOL_PREFIX_LEN),
        ))?;
        Ok(UplinkReport { dropped_by: nft.forward_drops()? })
    }

    /// Removes the uplink, if it is there; with the last one the host is as it was before the first. `near`
    /// are the links of the network, if that is to live on.
    pub async fn remove(&self, near: Option<&Links>) -> Result<()> {
        if let Some(near) = near {
            Nft::open(near.netns())?.remove(Family::Ip, NEAR_TABLE)?;
        }
        let host = Links::open(&self.host)?;
        host.delete(&self.link_name()).await?;
        if host.list().await?.iter().any(|link| is_uplink(&link.name)) {
            return Ok(());
        }
        let nft = Nft::open(&self.host)?;
        if nft.tables()?.contains(&(Family::Ip, WAS_OFF_TABLE.to_owned())) {
            self.host.set_sysctls(&[(FORWARD, "0")])?;
            nft.remove(Family::Ip, WAS_OFF_TABLE)?;
        }
        nft.remove(Family::Ip, HOST_TABLE)
    }

    /// The name of the host's end.
    pub fn link_name(&self) -> String {
        short_name(HOST_PREFIX, &self.id)
    }

    async fn free_pair(&self, host: &Links) -> Result<(Ipv4Addr, Ipv4Addr)> {
        let mut taken = BTreeSet::new();
        for link in host.list().await? {
            if is_uplink(&link.name) {
                taken.extend(pair_of(host, &link.name).await?);
            }
        }
        let pairs = 1_u32 << (31 - u32::from(POOL_PREFIX_LEN));
        let address = |number: u32| Ipv4Addr::from(u32::from(POOL) + number);
        (0..pairs)
            .map(|pair| (address(pair * 2), address(pair * 2 + 1)))
            .find(|pair| !taken.contains(pair))
            .ok_or_else(|| -> Error {
                failed("find free addresses for an uplink", &self.host)(std::io::ErrorKind::AddrInUse.into())
            })
    }
}

fn is_uplink(name: &str) -> bool {
    name.starts_with(HOST_PREFIX) && name.len() == HOST_PREFIX.len() + 13
}

/// The addresses of the uplink whose host end is `name`: the host's, and the network's.
async fn pair_of(host: &Links, name: &str) -> Result<Option<(Ipv4Addr, Ipv4Addr)>> {
    let addresses = match host.addresses(name).await {
        Err(error) if error.is_missing() => return Ok(None),
        addresses => addresses?,
    };
    Ok(addresses.into_iter().find_map(|(address, prefix_len)| match (address, prefix_len) {
        (IpAddr::V4(address), 31) => Some((address, Ipv4Addr::from(u32::from(address) + 1))),
        _ => None,
    }))
}

fn masquerade(name: &str, which: Statement) -> Table {
    let mut table = Table::new(Family::Ip, name);
    let base = Base::new(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT);
    table.chains.push(Chain::base("masquerade", base, vec![Rule(vec![which, Statement::Masquerade])]));
    table
}
