//! How containers differ from one another, and what tasks may use.

use super::{Invalid, Problem, parsed, parsed_each, port, texts};
use crate::v1 as pb;
use rswarm_control::model::{Bounds, Device, DnsConfig, IoBound, LogDriver, Profile, Swap, Ulimit, Userns};
use std::net::IpAddr;

impl From<&Profile> for pb::Profile {
    fn from(profile: &Profile) -> Self {
        let Profile {
            groups,
            stdin,
            hosts,
            dns,
            cap_add,
            cap_drop,
            sysctls,
            ulimits,
            devices,
            shm_bytes,
            oom_score_adj,
            log,
            userns,
        } = profile;
        let DnsConfig { servers, search, options } = dns;
        let LogDriver { name, options: log_options } = log;
        let host = |(name, address): &(String, IpAddr)| pb::HostEntry {
            name: name.clone(),
            address: address.to_string(),
        };
        let device = |device: &Device| {
            let Device { source, target, access } = device.clone();
            pb::Device { source, target, access }
        };
        let ulimit = |(name, limit): (&String, &Ulimit)| {
            let Ulimit { soft, hard } = *limit;
            (name.clone(), pb::Ulimit { soft, hard })
        };
        Self {
            groups: groups.clone(),
            stdin: *stdin,
            hosts: hosts.iter().map(host).collect(),
            dns_servers: texts(servers),
            dns_search: search.clone(),
            dns_options: options.clone(),
            cap_add: cap_add.clone(),
            cap_drop: cap_drop.clone(),
            sysctls: sysctls.clone(),
            ulimits: ulimits.iter().map(ulimit).collect(),
            devices: devices.iter().map(device).collect(),
            shm_bytes: *shm_bytes,
            oom_score_adj: *oom_score_adj,
            log: (*log != LogDriver::default())
                .then(|| pb::LogDriver { name: name.clone(), options: log_options.clone() }),
            userns_auto: *userns == Userns::Auto,
        }
    }
}

impl TryFrom<pb::Profile> for Profile {
    type Error = Invalid;

    fn try_from(wire: pb::Profile) -> Result<Self, Invalid> {
        let host = |pb::HostEntry { name, address }| {
            Ok::<_, Invalid>((name, parsed("address", &address).map_err(|error| error.within("hosts"))?))
        };
        let device = |pb::Device { source, target, access }| Device { source, target, access };
        let ulimit = |(name, pb::Ulimit { soft, hard })| (name, Ulimit { soft, hard });
        let pb::LogDriver { name, options } = wire.log.unwrap_or_default();
        Ok(Self {
            groups: wire.groups,
            stdin: wire.stdin,
            hosts: wire.hosts.into_iter().map(host).collect::<Result<_, _>>()?,
            dns: DnsConfig {
                servers: parsed_each("dns_servers", &wire.dns_servers)?,
                search: wire.dns_search,
                options: wire.dns_options,
            },
            cap_add: wire.cap_add,
            cap_drop: wire.cap_drop,
            sysctls: wire.sysctls,
            ulimits: wire.ulimits.into_iter().map(ulimit).collect(),
            devices: wire.devices.into_iter().map(device).collect(),
            shm_bytes: wire.shm_bytes,
            oom_score_adj: wire.oom_score_adj,
            log: LogDriver { name, options },
            userns: if wire.userns_auto { Userns::Auto } else { Userns::Host },
        })
    }
}

impl From<&Bounds> for pb::Bounds {
    fn from(bounds: &Bounds) -> Self {
        let Bounds { pids, swap, io_weight, io: bound } = bounds;
        let swap_bytes = match swap {
            Swap::None => None,
            Swap::Unlimited => Some(u64::MAX),
            Swap::Bytes(bytes) => Some(*bytes),
        };
        let io = |bound: &IoBound| {
            let IoBound { device, read_bps, write_bps } = bound.clone();
            pb::IoBound { device, read_bps, write_bps }
        };
        Self { pids: *pids, swap_bytes, io_weight: u32::from(*io_weight), io: bound.iter().map(io).collect() }
    }
}

impl TryFrom<pb::Bounds> for Bounds {
    type Error = Invalid;

    fn try_from(wire: pb::Bounds) -> Result<Self, Invalid> {
        let io = |pb::IoBound { device, read_bps, write_bps }| IoBound { device, read_bps, write_bps };
        let io_weight = match port("io_weight", wire.io_weight)? {
            weight @ 0..=1000 => weight,
            other => {
                let problem = Problem::TooLarge { value: u64::from(other), max: 1000 };
                return Err(Invalid::new("io_weight", problem));
            }
        };
        Ok(Self {
            pids: wire.pids,
            swap: match wire.swap_bytes {
                None => Swap::None,
                Some(u64::MAX) => Swap::Unlimited,
                Some(bytes) => Swap::Bytes(bytes),
            },
            io_weight,
            io: wire.io.into_iter().map(io).collect(),
        })
    }
}
