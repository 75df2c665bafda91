//! A container's network namespace: its loopback, its settings, and the way to the name server.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use super::{failed, forget_connections_to};
use crate::device::{
    Result,
    conntrack::{TCP, UDP},
    link::Links,
    netns::Netns,
    nft::{
        Base, Chain, ChainKind, Family, Field, Hook, Nft, Rule, Ruleset, Statement, Table, Target, Value,
        priority,
    },
};

/// Where containers look names up.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The table that leads name queries to our sockets.
const DNS_TABLE: &str = "rswarm_dns";

/// A container's network namespace. Without an attachment it has the loopback only.
#[derive(Clone, Debug)]
pub struct Sandbox {
    id: String,
    pin: PathBuf,
    netns: Netns,
    links: Links,
}

/// The sockets on which a container's name queries arrive, bound inside its namespace, nonblocking.
#[derive(Debug)]
pub struct DnsSockets {
    /// Queries by UDP.
    pub udp: UdpSocket,
    /// Connections for queries by TCP.
    pub tcp: TcpListener,
}

impl Sandbox {
    /// Makes the namespace of container `id`, pinned at `pin`, or adopts the one that is there. `id` is unique
    /// on this node for all time; links are named after it.
    pub async fn ensure(id: &str, pin: &Path) -> Result<Self> {
        let netns = Netns::ensure_with(
            pin,
            &[
                ("net/ipv4/ping_group_range", &format!("0 {}", last_group())),
                ("net/ipv4/ip_unprivileged_port_start", "0"),
            ],
        )?;
        let links = Links::open(&netns)?;
        links.set_up("lo").await?;
        Ok(Self { id: id.to_owned(), pin: pin.to_owned(), netns, links })
    }

    /// Removes the namespace pinned at `pin`, if it is there, and with it all its links.
    pub async fn remove(pin: &Path) -> Result<()> {
        match Netns::open(pin) {
            Ok(netns) => {
                // A process that hangs must not keep the links, whose names the next container may need.
                let links = Links::open(&netns)?;
                for link in links.list().await?.iter().filter(|link| link.kind == "veth") {
                    links.delete(&link.name).await?;
                }
            }
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
        Netns::remove(pin)
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its namespace is pinned.
    pub fn pin(&self) -> &Path {
        &self.pin
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its links.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Opens sockets inside the namespace and leads to them what the container sends to port 53 of
    /// [`NAME_SERVER`]. Port 53 itself stays free for a name server of the container's own. Called again, for
    /// instance by a new daemon, the new sockets take the place of the old.
    pub fn open_dns(&self) -> Result<DnsSockets> {
        let sockets = self.netns.run(|| -> io::Result<DnsSockets> {
            let udp = UdpSocket::bind((NAME_SERVER, 0))?;
            let tcp = TcpListener::bind((NAME_SERVER, 0))?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok(DnsSockets { udp, tcp })
        })?;
        let sockets = sockets.map_err(failed("open sockets for name queries", &self.netns))?;
        let port = |address: io::Result<std::net::SocketAddr>| {
            address.map(|address| address.port()).map_err(failed("ask a socket for its port", &self.netns))
        };
        let table = dns_table(port(sockets.udp.local_addr())?, port(sockets.tcp.local_addr())?);
        Nft::open(&self.netns)?.replace(&Ruleset { tables: vec![table] })?;
        forget_connections_to(&self.netns, NAME_SERVER)?;
        Ok(sockets)
    }
}

/// The last of the groups 0, 1, 2 … that exist here: inside a user namespace not all do, and the kernel refuses
/// a range that ends elsewhere.
fn last_group() -> u32 {
    let map = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    last_group_of(&map).unwrap_or(0)
}

fn last_group_of(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (first, _, count) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
        (first == 0).then(|| count.saturating_sub(1).min(i32::MAX as u32))
    })
}

fn dns_table(udp_port: u16, tcp_port: u16) -> Table {
    let lead = |protocol, port| {
        let to = SocketAddrV4::new(NAME_SERVER, port);
        Rule(vec![
            Statement::Is(Field::IpDestination, Value::Address(NAME_SERVER.into())),
            Statement::Is(Field::Protocol, Value::Byte(protocol)),
            Statement::Is(Field::DestinationPort, Value::Port(53)),
            Statement::Dnat(Target::One((*to.ip()).into(), Some(to.port()))),
        ])
    };
    let mut table = Table::new(Family::Ip, DNS_TABLE);
    let base = Base::new(ChainKind::Nat, Hook::Output, priority::DSTNAT);
    table.chains.push(Chain::base("queries", base, vec![lead(UDP, udp_port), lead(TCP, tcp_port)]));
    table
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_last_group_is_that_of_the_user_namespace() {
        assert_eq!(last_group_of("         0          0 4294967295\n"), Some(2_147_483_647));
        assert_eq!(last_group_of("0 1000 1\n"), Some(0));
        assert_eq!(last_group_of("1 100000 65535\n0 1000 2"), Some(1));
        assert_eq!(last_group_of("nonsense"), None);
    }

    #[test]
    fn queries_are_led_to_the_sockets() {
        expect![[r#"
            table ip rswarm_dns {
              chain queries {
                type nat hook output priority -100; policy accept;
                ip daddr 127.0.0.11 meta l4proto 17 th dport 53 dnat to 127.0.0.11:1053
                ip daddr 127.0.0.11 meta l4proto 6 th dport 53 dnat to 127.0.0.11:2053
              }
            }
        "#]]
        .assert_eq(&dns_table(1053, 2053).to_string());
    }
}
